"""Usage and outcomes over a real ledger: equal to memory's answers, flushed, half flushed or not at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from scheduler.accounting.journal import Journal
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import sqlite_url
from scheduler.accounting.outcomes import Tally, Verdict, decide
from scheduler.accounting.rows import Charge, Hold
from scheduler.accounting.settlement import Settlement
from scheduler.accounting.usage import UsageRow
from scheduler.accounting.usage_book import GROUPS, MINUTE_US, SUMS
from scheduler.accounting.usage_log import LedgerOutcomes, LedgerUsage
from scheduler.core.request import Rates
from tests.usage_contract import check_source
from workers.types import Outcome

RATES = {"USD": Rates(1, 1, 1), "EUR": Rates(1, 1, 1, "EUR")}


class Desk:
    """A settlement on a ledger of its own, and what reads it."""

    def __init__(self, path: Path) -> None:
        self.ledger = Ledger(sqlite_url(path), seed=b"\x01" * 32)
        self.settlement = Settlement(journal=Journal(self.ledger, next_seq=self.ledger.size))
        self.settlement.journal.take_state = lambda: (b"", self.settlement.books.usage.take())
        self.usage = LedgerUsage(self.ledger, self.settlement)
        self.outcomes = LedgerOutcomes(self.ledger, self.settlement, self.usage)

    def charge(self, number: int, chance: random.Random) -> None:
        request_id = f"req-{number:026d}"
        whose = {
            "tenant": chance.choice(["acme", "beta"]),
            "project": chance.choice(["a", "b"]),
            "key_id": chance.choice(["key-1", "key-2"]),
            "model": chance.choice(["m", "n"]),
            "task": chance.choice(["", "nightly", "ä/b"]),
            "tier": chance.choice(["default", "flex"]),
            "arrived_us": chance.randint(0, 3 * 1440) * MINUTE_US + 7,
            "rates": RATES[chance.choice(["USD", "EUR"])],
        }
        hold = Hold(request_id=request_id, input_tokens=99, output_tokens=99, **whose)  # type: ignore[arg-type]
        self.settlement.hold(hold)
        self.settlement.charge(
            Charge(
                request_id=request_id,
                attempt_id=f"{request_id}-1",
                worker_id="w-0",
                outcome=Outcome.COMPLETED,
                input_tokens=chance.randint(0, 50),
                cached_tokens=0,
                output_tokens=chance.randint(0, 50),
                cost_nano=chance.randint(0, 50),
                **whose,  # type: ignore[arg-type]
            )
        )


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "ledger.db")
    yield made
    made.ledger.close()


def all_rows(desk: Desk) -> list[UsageRow]:
    return desk.usage.usage(
        from_us=0, to_us=1 << 60, width_us=MINUTE_US, by=GROUPS[:-1], where={}, limit=100_000, after=None
    )


@pytest.mark.parametrize("seed", range(3))
async def test_every_question_is_answered_as_from_memory(desk: Desk, seed: int) -> None:
    """Whether rows are flushed, taken for a flush, or fresh."""
    chance = random.Random(seed)
    for number in range(120):
        desk.charge(number, chance)
        if number in (40, 80):
            await desk.settlement.journal.commit(with_state=True)
    rows = all_rows(desk)
    assert 120 == sum(row.requests for row in rows)
    check_source(desk.usage, rows, num_questions=120, seed=seed)
    await desk.settlement.journal.commit(with_state=True)
    assert rows == all_rows(desk)
    check_source(desk.usage, rows, num_questions=60, seed=seed)


async def test_what_a_flush_lost_is_not_lost(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken from the books, and the write failed, or succeeded without a word: counted once all the same."""
    desk.charge(1, random.Random(1))
    write = desk.ledger.write

    def fail_before(*_: object) -> bool:
        raise OSError("gone")

    def fail_after(*given: object) -> bool:
        before = desk.ledger._tree
        write(*given)  # type: ignore[arg-type]
        desk.ledger._tree, desk.ledger._is_sure = before, False  # as where the commit's answer was lost
        raise OSError("gone")

    for failing in (fail_before, fail_after):
        monkeypatch.setattr(desk.ledger, "write", failing)
        with pytest.raises(OSError):
            await desk.settlement.journal.commit(with_state=True)
        assert 1 == sum(row.requests for row in all_rows(desk))
    monkeypatch.setattr(desk.ledger, "write", write)
    desk.charge(2, random.Random(2))
    await desk.settlement.journal.commit(with_state=True)
    assert 2 == sum(row.requests for row in all_rows(desk))
    assert [] == desk.settlement.journal.usage


async def test_outcomes_are_found_whether_durable_or_not(desk: Desk) -> None:
    """By request, by task and by id; the latest counts, and usage follows it."""
    chance = random.Random(5)
    for number in range(20):
        desk.charge(number, chance)
    await desk.settlement.commit()
    request_id = f"req-{3:026d}"
    facts = desk.outcomes.find(request_id)
    assert facts is not None
    assert [None] * 5 == [
        desk.outcomes.find(each) for each in ("req-none", "req", "", request_id[:-1], f"{request_id}-1")
    ]
    assert desk.outcomes.find_task("acme", "none") is None
    for accepted in (True, False):
        latest = desk.outcomes.latest(facts.tenant, request_id=request_id, task=None)
        verdict = Verdict(request_id=request_id, accepted=accepted)
        outcome, change = decide(verdict, facts, given_id=None, same_id=None, latest=latest, at_us=1)
        assert change is not None
        desk.outcomes.append(outcome, change)
        assert outcome == desk.outcomes.latest(facts.tenant, request_id=request_id, task=None)
        await desk.outcomes.commit()
        assert outcome == desk.outcomes.latest(facts.tenant, request_id=request_id, task=None)
        assert outcome == desk.outcomes.with_id(outcome.outcome_id)
    total = desk.usage.usage(from_us=0, to_us=1 << 60, width_us=None, by=(), where={}, limit=9, after=None)
    assert (0, 1, 1) == tuple(sum(getattr(row, name) for row in total) for name in ("accepted", "rejected", "judged"))
    of_task = desk.outcomes.find_task(facts.tenant, "nightly")
    assert of_task is not None
    where = {"tenant": frozenset({facts.tenant}), "task": frozenset({"nightly"})}
    rows = desk.usage.usage(from_us=0, to_us=1 << 60, width_us=MINUTE_US, by=(), where=where, limit=99, after=None)
    assert of_task.requests == sum(row.requests for row in rows)
    assert of_task.bucket_us == max(row.bucket_us for row in rows)


def test_sums_and_groups_are_those_of_the_question() -> None:
    """A new amount needs a column."""
    fields = set(msgspec.structs.asdict(UsageRow(bucket_us=0)))
    assert fields == {"bucket_us", *GROUPS, *SUMS}
    assert Tally._fields == ("accepted", "rejected", "judged")
