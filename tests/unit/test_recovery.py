"""A control plane begins where the last one ended, or was killed: books, budgets, fair order, and nothing left held."""

import logging
import random
from contextlib import closing
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.accounting import book_state, recovery
from scheduler.accounting.accounts import OPERATOR
from scheduler.accounting.books import Books
from scheduler.accounting.charging import charge_of_stranger, request_of
from scheduler.accounting.errors import LedgerBroken, LedgerError
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.recovery import LOST
from scheduler.accounting.rows import Charge, Energy, Genesis, Opened, Void
from scheduler.accounting.usage_log import LedgerUsage
from scheduler.accounting.verify import verify
from scheduler.core.actions import Payer
from scheduler.core.budget_accounts import Amounts, Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.request import Band, CostPlus, Request
from scheduler.core.rules import Rules
from tests.core_words import request
from tests.ledger_words import (
    RATES,
    STATEMENT,
    Life,
    Traffic,
    charge_of,
    empty,
    execute,
    hold_of,
    living,
    request_id,
    rows_of,
)
from tests.scripted_link import posting_of, usage_of, window_of

HOUR_US = 3_600_000_000
WHO = {"tenant": "alpha", "project": "p", "key_id": "k", "task": "nightly"}
LEVELS = (Level("tenant", "alpha"), Level("project", "alpha/p"), Level("key", "k"))
MEASURES = (Measure.TOKENS, Measure.OUTPUT_TOKENS, Measure.MONEY_NANO, Measure.REQUESTS, Measure.ENERGY_MJ)


def rules(window: str = "1h", limit: int = 10**9) -> Rules:
    """On every level above a request, and for each of alpha's tasks."""
    budgets = tuple(Budget(measure, limit, Window.parse(window)) for measure in MEASURES)
    return Rules(budgets=dict.fromkeys(LEVELS, budgets), task_budgets={"alpha": budgets})


def asked(at_us: int = 1_000_000, **fields: Any) -> Request:
    return request(arrival_unix_s=at_us / 1_000_000, **{**WHO, **fields})


def used(life: Life, at_us: int = 1_000_000) -> dict[str, tuple[int, ...]]:
    """Of each level, by the order of ``MEASURES``."""
    by_level: dict[str, list[int]] = {}
    for state in life.core.holds.budgets.states(asked(at_us)):
        by_level.setdefault(state.level.kind, []).append(state.used)
    return {kind: tuple(amounts) for kind, amounts in by_level.items()}


def on_every_level(*amounts: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("tenant", "project", "key", "task"), amounts)


def serve(life: Life, number: int, *, is_posted: bool = True, **fields: Any) -> None:
    """One whole request of alpha's, 130 tokens, as the core would have it too."""
    name = request_id(number)
    life.settlement.hold(hold_of(name, **{**WHO, **fields}))
    life.settlement.window("w-0", window_of((f"{name}-1", 100, 10)), number=number)
    charge = charge_of(f"{name}-1", **{**WHO, **fields})
    life.settlement.charge(charge)
    paid = request_of(charge, arrival_s=0.0)
    tokens = charge.input_tokens, charge.cached_tokens, charge.output_tokens, charge.cost_nano
    life.core.holds.budgets.restore(paid, Amounts(*tokens), num_requests=1)
    life.core.holds.owe(charge.attempt_id, paid, "")
    if is_posted:
        life.settlement.post_energy("w-0", posting_of(f"{name}-1", 100, 10))


def replayed(url: str) -> Books:
    """What all rows come to."""
    books = Books()
    for row in rows_of(url):
        books.apply(row)
    return books


# -- books


def test_a_new_ledger_begins_with_who_it_is(ledger_url: str) -> None:
    """And says who opened it, each time, under which statement."""
    for epoch in (1, 2, 3):
        with living(ledger_url) as life:
            assert (0 if epoch == 1 else epoch) == life.recovered.num_rows
            life.commit()
    genesis, *opened = rows_of(ledger_url)
    assert isinstance(genesis, Genesis)
    with closing(Reader(ledger_url)) as reader:
        head = reader.head()
    assert (head["ledger_id"], head["origin"], head["public_key"], STATEMENT) == (
        genesis.ledger_id, genesis.origin, genesis.public_key, genesis.statement
    )  # fmt: skip
    assert [1, 2, 3] == [row.epoch for row in opened if isinstance(row, Opened) and row.statement == STATEMENT]


@pytest.mark.parametrize("use_state", [True, False])
def test_after_an_end_in_order_the_books_are_as_they_were(ledger_url: str, use_state: bool) -> None:
    """From the state alone nothing is replayed; from all rows it is the same."""
    life = Life(ledger_url)
    Traffic(life.settlement).fill(300)
    for hold in list(life.settlement.books.holds):
        life.settlement.release(hold, "over")
    life.end()
    before = book_state.dump(life.settlement.books)
    with living(ledger_url, use_state=use_state) as life:
        assert before == book_state.dump(life.settlement.books)
        size = life.recovered.num_rows
        assert (0 if use_state else size, 0) == (life.recovered.num_replayed, life.recovered.num_voided)


def test_what_was_not_committed_never_was(ledger_url: str) -> None:
    """Killed between two commits: the first is there, whole."""
    with living(ledger_url) as life:
        serve(life, 1)
        life.commit(with_state=True)
        serve(life, 2)
        life.commit()
        serve(life, 3)
    with living(ledger_url) as life:
        assert (10, 4) == (life.recovered.num_rows, life.recovered.num_replayed)
        assert 2 == life.settlement.accounts.tokens_of("alpha").requests
        assert life.settlement.is_charged(f"{request_id(2)}-1")
        assert not life.settlement.is_charged(f"{request_id(3)}-1")
        assert (200, 0) == (life.settlement.accounts.balance().requests_mj, life.settlement.num_open)


def test_time_does_not_go_back_over_a_restart(ledger_url: str) -> None:
    """A clock that was set back by an hour: the ledger's stands still."""
    with living(ledger_url, unix_clock=lambda: 9_000.0) as life:
        life.commit()
    with living(ledger_url, unix_clock=lambda: 5_400.0) as life:
        serve(life, 1)
        life.commit()
    assert {9_000_000_000} == {row.at_us for row in rows_of(ledger_url)}
    with closing(Reader(ledger_url)) as reader:
        assert 7 == verify(reader).num_rows


def test_a_state_of_another_version_means_that_all_rows_are_replayed(
    ledger_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Said in the log; nothing is lost."""
    life = Life(ledger_url, rules=rules())
    serve(life, 1)
    life.end()
    for data in (b"", b"junk", msgspec.msgpack.encode([b"junk", []])):
        execute(ledger_url, "UPDATE states SET data = :data", data=data)
        caplog.clear()
        with caplog.at_level(logging.WARNING), living(ledger_url, rules=rules()) as life:
            assert life.recovered.num_rows == life.recovered.num_replayed == 6
            assert on_every_level(130, 40, charge_of("a-1").cost_nano, 1, 100) == used(life)
        assert "its state is of another version" in caplog.text


@pytest.mark.parametrize("num_behind", [0, 3])
def test_usage_is_counted_once_where_a_state_cannot_be_read(ledger_url: str, num_behind: int) -> None:
    """What was flushed with it stands in the table: a replay of all rows does not bring it again."""

    def usage(life: Life) -> tuple[int, int]:
        source = LedgerUsage(life.ledger, life.settlement)
        rows = source.usage(from_us=0, to_us=1 << 62, width_us=None, by=(), where={}, limit=10, after=None)
        return sum(row.requests for row in rows), sum(row.output_tokens for row in rows)

    with living(ledger_url) as life:
        for number in range(5):
            serve(life, number)
        life.commit(with_state=True)
        for number in range(5, 5 + num_behind):
            serve(life, number)
        life.commit()
        before = usage(life)
    execute(ledger_url, "UPDATE states SET data = :data", data=b"of another version")
    for _ in range(2):
        with living(ledger_url) as life:
            assert before == usage(life)
            life.commit(with_state=True)
            assert before == usage(life)
    assert 5 + num_behind == before[0]


def test_a_row_that_cannot_be_read_is_said(ledger_url: str) -> None:
    """With its number and what to do."""
    with living(ledger_url) as life:
        serve(life, 1)
        life.commit()
    execute(ledger_url, "UPDATE rows SET body = 'CANARY' WHERE seq = 3")
    with pytest.raises(LedgerBroken, match=r"row 3 cannot be read; remedy: jouleway ledger verify") as caught:
        Life(ledger_url)
    assert "CANARY" not in str(caught.value)


# -- holds


@pytest.mark.parametrize("has_state", [True, False])
def test_holds_of_a_lost_control_plane_are_voided_once(ledger_url: str, has_state: bool) -> None:
    """With the reason; also where the one that voided them was killed before it was written."""
    with living(ledger_url) as life:
        for number in (1, 2, 3):
            life.settlement.hold(hold_of(request_id(number)))
        life.settlement.charge(charge_of(f"{request_id(1)}-1"))
        life.settlement.charge(charge_of(f"{request_id(2)}-1", payer=Payer.OPERATOR))
        life.commit(with_state=has_state)
    for num_voided, is_committed in ((2, False), (2, True), (0, True)):
        with living(ledger_url) as life:
            assert num_voided == life.recovered.num_voided == len(life.settlement.orphans)
            assert {} == life.settlement.books.holds
            assert {0} == {life.settlement.books.total("held", unit) for unit in ("input_tokens", "USD")}
            if is_committed:
                life.commit()
    voids = [row for row in rows_of(ledger_url) if isinstance(row, Void)]
    assert [(request_id(2), "alpha", LOST), (request_id(3), "alpha", LOST)] == [
        (row.request_id, row.tenant, row.cause) for row in voids
    ]
    with closing(Reader(ledger_url)) as reader:
        assert 0 == verify(reader).num_open_holds


def test_usage_of_a_stranger_has_its_tenants_name_and_the_operator_pays(ledger_url: str) -> None:
    """Its hold is voided, its worker lived on and says what it executed."""
    with living(ledger_url, rules=rules()) as life:
        life.settlement.hold(hold_of(request_id(1), **WHO))
        life.commit()
    with living(ledger_url, rules=rules()) as life:
        attempt_id = f"{request_id(1)}-1"
        hold = life.settlement.orphans[request_id(1)]
        life.settlement.window("w-0", window_of((attempt_id, 100, 10)), number=1)
        life.settlement.charge(charge_of_stranger(usage_of(attempt_id), worker_id="w-0", status=None, hold=hold))
        life.settlement.post_energy("w-0", posting_of(attempt_id))
        life.commit()
        assert on_every_level(0, 0, 0, 0, 0) == used(life)
    (charge,) = [row for row in rows_of(ledger_url) if isinstance(row, Charge)]
    assert ("alpha", "m", OPERATOR, 0, 0) == (
        charge.tenant, charge.model, charge.account, charge.attempt_number, charge.cost_nano
    )  # fmt: skip
    (energy,) = [row for row in rows_of(ledger_url) if isinstance(row, Energy)]
    assert (OPERATOR, 100) == (energy.account, energy.energy_mj)


# -- budgets


@pytest.mark.parametrize("states", [(), (1,), (2,), (1, 3), (3,)])
def test_what_budgets_were_used_of_is_rebuilt_on_every_level(ledger_url: str, states: tuple[int, ...]) -> None:
    """From a state, from rows, or from both; the operator's part is nobody's."""
    with living(ledger_url, rules=rules()) as life:
        for number in (1, 2, 3):
            serve(life, number)
            life.settlement.charge(charge_of(f"{request_id(number)}-9", payer=Payer.OPERATOR, **WHO))
            life.settlement.give_up(f"{request_id(number)}-9")
            life.commit(with_state=number in states)
    with living(ledger_url, rules=rules()) as life:
        assert on_every_level(390, 120, 3 * charge_of("a-1").cost_nano, 3, 300) == used(life)
        assert {0} == set(life.core.holds.budgets.held_total().values())


def test_use_belongs_to_the_window_of_the_requests_arrival(ledger_url: str) -> None:
    """What lies before the window does not count any more, whatever the clock said when it was written."""
    with living(ledger_url, rules=rules("calendar hour")) as life:
        for number, at_us in enumerate((HOUR_US - 1, HOUR_US, HOUR_US + 5, 2 * HOUR_US), start=1):
            serve(life, number, arrived_us=at_us)
        life.commit()
    with living(ledger_url, rules=rules("calendar hour")) as life:
        assert on_every_level(130, 40, charge_of("a-1").cost_nano, 1, 100) == used(life, 2 * HOUR_US)
        life.commit(with_state=True)
    with living(ledger_url, rules=rules("calendar hour")) as life:
        assert on_every_level(130, 40, charge_of("a-1").cost_nano, 1, 100) == used(life, 2 * HOUR_US)
        assert on_every_level(0, 0, 0, 0, 0) == used(life, 3 * HOUR_US)


def test_a_window_that_is_written_otherwise_is_the_same(ledger_url: str) -> None:
    """And one that is another counts from now on."""
    with living(ledger_url, rules=rules("60m")) as life:
        serve(life, 1)
        life.commit(with_state=True)
    for window, tokens in (("1h", 130), ("3600s", 130), ("2h", 0), ("total", 0)):
        with living(ledger_url, rules=rules(window)) as life:
            assert {tokens} == {amounts[0] for amounts in used(life).values()}


def test_a_budget_that_is_gone_is_forgotten(ledger_url: str) -> None:
    """Nothing is kept for it, and no task either."""
    with living(ledger_url, rules=rules()) as life:
        serve(life, 1)
        life.commit(with_state=True)
    with living(ledger_url, rules=Rules()) as life:
        assert ({}, []) == (used(life), life.core.holds.budgets.used())
        assert 0 == len(life.core.holds.budgets._tasks)


@pytest.mark.parametrize("has_state", [True, False])
def test_energy_of_what_was_charged_before_comes_later_and_budgets_carry_it(ledger_url: str, has_state: bool) -> None:
    """Its hold is gone with the process; its worker still posts, over two restarts."""
    with living(ledger_url, rules=rules()) as life:
        life.settlement.open_worker("w-0", incarnation="life-1")
        serve(life, 1, is_posted=False)
        life.commit()
    with living(ledger_url, rules=rules()) as life:
        assert on_every_level(130, 40, charge_of("a-1").cost_nano, 1, 0) == used(life)
        assert 1 == life.settlement.num_open
        life.commit(with_state=has_state)
    with living(ledger_url, rules=rules()) as life:
        life.settlement.open_worker("w-0", incarnation="life-1")
        life.settlement.window("w-0", window_of((f"{request_id(1)}-1", 50, 5)), number=2)
        assert life.settlement.post_energy("w-0", posting_of(f"{request_id(1)}-1", 150, 15))
        life.commit(with_state=has_state)
        assert on_every_level(130, 40, charge_of("a-1").cost_nano, 1, 150) == used(life)
        assert (0, 150) == (life.settlement.num_open, life.settlement.accounts.balance().requests_mj)
    with living(ledger_url, rules=rules()) as life:
        assert on_every_level(130, 40, charge_of("a-1").cost_nano, 1, 150) == used(life)


def test_what_a_hold_did_not_cover_stays_the_operators(ledger_url: str) -> None:
    """The row says what its budgets carried of the energy."""
    with living(ledger_url, rules=rules()) as life:
        life.settlement.on_settled = lambda attempt_id, energy_mj, gpu_us: (30, 3, 0)
        serve(life, 1)
        life.commit()
    (energy,) = [row for row in rows_of(ledger_url) if isinstance(row, Energy)]
    assert (100, 30, 3, 0) == (energy.energy_mj, energy.budget_mj, energy.budget_gpu_us, energy.budget_ug)
    with living(ledger_url, rules=rules()) as life:
        assert {30} == {amounts[4] for amounts in used(life).values()}


PAID = RATES._replace(plus=CostPlus(gpu_nano_per_s=1_000_000_000))
"""A thousand nano a GPU-microsecond on top."""


def serve_plus(life: Life, *, plus_nano: int, most_nano: int) -> None:
    """A request whose price waits for what is measured: 10 GPU-µs, so 10,000 nano."""
    name = request_id(1)
    life.settlement.hold(hold_of(name, **WHO, rates=PAID))
    life.settlement.window("w-0", window_of((f"{name}-1", 100, 10)), number=1)
    cost_nano = charge_of("a-1").cost_nano + plus_nano
    life.settlement.charge(
        charge_of(
            f"{name}-1",
            **WHO,
            rates=PAID,
            plus_nano=plus_nano,
            most_plus_nano=most_nano,
            cost_nano=cost_nano,
            provisional_gpu_us=plus_nano // 1_000,
        )
    )


def money(life: Life) -> tuple[int, int]:
    """Used and held of the tenant's budget."""
    (state,) = [
        each
        for each in life.core.holds.budgets.states(asked())
        if each.measure is Measure.MONEY_NANO and each.level.kind == "tenant"
    ]
    return state.used, state.held


@pytest.mark.parametrize(
    ("plus_nano", "most_nano"), [(4_000, 12_000), (50_000, 80_000), (10_000, 10_000), (4_000, 7_000)]
)
def test_a_price_that_waits_for_its_measurement_waits_over_a_restart(
    ledger_url: str, plus_nano: int, most_nano: int
) -> None:
    """The most that it may still cost is held; then the one difference is used, live as after the next restart."""
    tokens_nano = charge_of("a-1").cost_nano
    with living(ledger_url, rules=rules()) as life:
        life.settlement.open_worker("w-0", incarnation="life-1")
        serve_plus(life, plus_nano=plus_nano, most_nano=most_nano)
        life.commit()
    for _ in range(2):
        with living(ledger_url, rules=rules()) as life:
            assert (tokens_nano + plus_nano, most_nano - plus_nano) == money(life)
            life.commit(with_state=True)
    with living(ledger_url, rules=rules()) as life:
        life.settlement.open_worker("w-0", incarnation="life-1")
        life.settlement.post_energy("w-0", posting_of(f"{request_id(1)}-1", 100, 10))
        life.commit()
        assert (tokens_nano + min(10_000, most_nano), 0) == money(life)
    with living(ledger_url, rules=rules()) as life:
        assert (tokens_nano + min(10_000, most_nano), 0) == money(life)
    with closing(Reader(ledger_url)) as reader:
        verify(reader)


def test_a_budget_that_is_younger_than_a_charge_is_not_below_nothing(ledger_url: str) -> None:
    """Of what it never counted only the correction is known: it starts at 0, and starts."""
    with living(ledger_url) as life:
        serve_plus(life, plus_nano=50_000, most_nano=80_000)
        life.commit(with_state=True)
        life.settlement.post_energy("w-0", posting_of(f"{request_id(1)}-1", 100, 10))
        life.commit()
    with living(ledger_url, rules=rules()) as life:
        assert (0, 0) == money(life)
        assert {100} == {amounts[4] for amounts in used(life).values()}


# -- workers


def test_what_a_worker_says_again_is_not_booked_twice_and_the_rest_is_acknowledged(ledger_url: str) -> None:
    """It begins with what nobody acknowledged, at or behind the last window that was booked."""
    with living(ledger_url) as life:
        life.settlement.open_worker("w-0", incarnation="life-1")
        assert life.settlement.is_new("w-0", 1)
        serve(life, 1)
        life.commit()
    for first, news in ((1, [False, True, True]), (2, [True, True, True]), (4, [True, True, True])):
        with living(ledger_url) as life:
            life.settlement.open_worker("w-0", incarnation="life-1")
            assert None is life.settlement.watermark("w-0")
            numbers = range(first, first + 3)
            assert news == [life.settlement.is_new("w-0", number) for number in numbers]
            assert first + 2 == life.settlement.watermark("w-0"), "what is booked may be forgotten"


def test_a_worker_without_a_window_so_far_may_be_the_same_one(ledger_url: str) -> None:
    """Its energy comes with its first window, after the restart, and goes to whoever was charged."""
    name = request_id(1)
    with living(ledger_url) as life:
        life.settlement.open_worker("w-0", incarnation="life-1")
        life.settlement.hold(hold_of(name, **WHO))
        life.settlement.charge(charge_of(f"{name}-1", **WHO))
        life.commit()
    with living(ledger_url) as life:
        life.settlement.open_worker("w-0", incarnation="life-1")
        life.settlement.window("w-0", window_of((f"{name}-1", 100, 10)), number=1)
        life.settlement.post_energy("w-0", posting_of(f"{name}-1", 100, 10))
        life.commit()
    (energy,) = [row for row in rows_of(ledger_url) if isinstance(row, Energy)]
    assert (100, "alpha", True) == (energy.energy_mj, energy.account, energy.complete)


def test_usage_and_postings_that_come_again_are_booked_once(ledger_url: str) -> None:
    """They have no number in the ledger: the attempt's id is enough."""
    with living(ledger_url) as life:
        serve(life, 1)
        life.commit(with_state=True)
        serve(life, 2)
        life.commit()
    with living(ledger_url) as life:
        for number in (1, 2):
            assert not life.settlement.charge(charge_of(f"{request_id(number)}-1"))
            assert not life.settlement.post_energy("w-0", posting_of(f"{request_id(number)}-1"))
        life.commit()
    assert 2 == sum(isinstance(row, Charge) for row in rows_of(ledger_url))


def test_a_worker_of_another_process_speaks_for_itself_alone(ledger_url: str) -> None:
    """What its predecessor owed is given up: to whoever was charged, and its budgets carry it."""
    with living(ledger_url, rules=rules()) as life:
        life.settlement.open_worker("w-0", incarnation="life-1")
        serve(life, 1, is_posted=False)
        life.commit()
    with living(ledger_url, rules=rules()) as life:
        life.settlement.open_worker("w-0", incarnation="life-2")
        assert life.settlement.is_new("w-0", 1)
        assert (0, {100}) == (life.settlement.num_open, {amounts[4] for amounts in used(life).values()})


def test_workers_that_are_not_there_any_more_are_given_up(ledger_url: str) -> None:
    """Of those that are there everything is still to come."""
    with living(ledger_url) as life:
        for number, worker_id in ((1, "w-0"), (2, "w-1")):
            life.settlement.window(worker_id, window_of((f"{request_id(number)}-1", 100, 10)), number=1)
        life.commit()
    with living(ledger_url) as life:
        life.settlement.give_up_workers(others_than=["w-1"])
        assert [f"{request_id(2)}-1"] == list(life.settlement.books.open)
        balance = life.settlement.accounts.balance()
        assert (100, 100) == (balance.operator_mj, balance.in_flight_mj)
        assert 1000 == life.settlement.last_counter_mj("w-0")


# -- the fair order


@pytest.mark.parametrize("with_state", [True, False])
def test_whoever_was_served_less_is_next_after_a_restart_too(ledger_url: str, with_state: bool) -> None:
    """Bands apart; what the operator paid for counts for nobody."""
    with living(ledger_url) as life:
        for number, (tenant, output_tokens, tier) in enumerate(
            (("a", 40, "default"), ("b", 10, "default"), ("b", 50, "priority"), ("a", 1, "priority")),
            start=1,
        ):
            serve(life, number, tenant=tenant, output_tokens=output_tokens, tier=tier)
        life.settlement.charge(charge_of(f"{request_id(2)}-9", tenant="b", output_tokens=5_000, payer=Payer.OPERATOR))
        life.commit(with_state=with_state)
    with living(ledger_url) as life:
        for band, first in ((Band.DEFAULT, "b"), (Band.PRIORITY, "a")):
            for tenant in "ab":
                life.core.fairness.enter(request(tenant=tenant, band=band))
            counters = {each: life.core.fairness.counter_gpu_s(request(tenant=each, band=band)) for each in "ab"}
            assert first == min(counters, key=lambda each: counters[each] or 0.0)


def test_only_the_last_rows_decide_the_fair_order(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound of its own: whoever was silent for longer is lifted anyway."""
    monkeypatch.setattr(recovery, "FAIR_ROWS", 0)
    with living(ledger_url) as life:
        serve(life, 1)
        life.commit(with_state=True)
    with living(ledger_url) as life:
        assert 0 == life.recovered.num_replayed
        life.core.fairness.enter(request(tenant="alpha"))
        assert 0 == life.core.fairness.counter_gpu_s(request(tenant="alpha"))


# -- any order at all


def test_however_it_was_ended_and_killed_the_books_are_those_of_the_rows(ledger_url: str) -> None:
    """Traffic, commits, states, kills: after each start books and budgets are what all rows come to."""

    @settings(max_examples=10 if ledger_url.startswith("sqlite") else 3, suppress_health_check=[HealthCheck.too_slow])
    @given(
        lives=st.lists(
            st.tuples(st.integers(0, 60), st.sampled_from(["state", "commit", "nothing"])),
            min_size=1,
            max_size=5,
        ),
        seed=st.integers(0, 1000),
    )
    def run(lives: list[tuple[int, str]], seed: int) -> None:
        empty(ledger_url)
        chance, number = random.Random(seed), 0
        for num_steps, ending in lives:
            life = Life(ledger_url, rules=rules())
            try:
                live = used(life)
                assert live == of_rows(ledger_url)
                for _ in range(num_steps):
                    number += 1
                    serve(life, number, is_posted=chance.random() < 0.8, output_tokens=chance.randint(0, 50))
                    if chance.random() < 0.1:
                        life.settlement.hold(hold_of(request_id(1_000_000 + number), **WHO))
                    if chance.random() < 0.2:
                        life.commit()
                if ending != "nothing":
                    life.commit(with_state=ending == "state")
            finally:
                life.kill()
        expected = replayed(ledger_url)
        for use_state in (True, False):
            with living(ledger_url, rules=rules(), use_state=use_state) as life:
                assert of_rows(ledger_url) == used(life)
                assert {} == life.settlement.books.holds
                books = life.settlement.books
                assert expected.accounts.balance() == books.accounts.balance()
                assert sorted(expected.open) == sorted(books.open)
        with closing(Reader(ledger_url)) as reader:
            verify(reader)

    def of_rows(url: str) -> dict[str, tuple[int, ...]]:
        try:
            rows = rows_of(url)
        except LedgerError:
            return on_every_level(0, 0, 0, 0, 0)
        charges = [row for row in rows if isinstance(row, Charge) and row.account != OPERATOR]
        energy_mj = sum(row.energy_mj for row in rows if isinstance(row, Energy) and row.account != OPERATOR)
        output_tokens = sum(charge.output_tokens for charge in charges)
        return on_every_level(
            sum(charge.input_tokens for charge in charges) + output_tokens,
            output_tokens,
            sum(charge.cost_nano for charge in charges),
            len(charges),
            energy_mj,
        )

    run()
