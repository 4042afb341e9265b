"""Rows while the database is away: on the disk before they count, delivered once, in order, by whoever comes next."""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ledger_load import Load
from benchmarks.recovery import core
from scheduler.accounting import spool as spool_module
from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerLost, LedgerRefused
from scheduler.accounting.journal import State
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.outcomes import Verdict, decide
from scheduler.accounting.recovery import recover
from scheduler.accounting.rows import Prices, Row, decode
from scheduler.accounting.settlement import Settlement
from scheduler.accounting.spool import RETRY_S, Spool, read
from scheduler.accounting.usage_log import LedgerOutcomes, LedgerUsage
from scheduler.accounting.verify import verify
from tests.postgres import PostgresServer, running_server

SEED = b"\x05" * 32


class FlakyLedger(Ledger):
    """As real as SQLite is, and as far away as the test wants."""

    is_away = False
    loses_answers = False
    """It commits, and nobody hears of it."""

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        if self.is_away:
            raise LedgerError("away")
        with super()._writing() as connection:
            yield connection
        if self.loses_answers:
            raise LedgerError("the answer was lost")

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        if self.is_away:
            raise LedgerError("away")
        with super().reading() as connection:
            yield connection


def row(seq: int, text: str = "t") -> Row:
    return Prices(seq=seq, version=f"v-{seq}", text=text)


class Desk:
    """A ledger, its spool and a clock by hand. ``reopen`` is what the next process does after a kill."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.path, self.url, self.now_s = folder / "spool.rows", sqlite_url(folder / "ledger.db"), 100.0
        self.limits = limits
        self.open()

    def open(self) -> None:
        self.ledger = FlakyLedger(self.url, seed=SEED)
        try:
            self.spool = Spool(self.ledger, self.path, clock=lambda: self.now_s, **self.limits)
        except BaseException:
            self.ledger.close()
            raise

    def close(self) -> None:
        """As a kill leaves it: nothing more is written."""
        self.spool.close()
        self.ledger.close()

    def reopen(self) -> None:
        self.close()
        self.open()

    def later(self) -> None:
        self.now_s += RETRY_S

    def put(self, *seqs: int, state: State | None = None) -> bool:
        return self.spool.write([row(seq) for seq in seqs], state)

    @property
    def stored(self) -> list[int]:
        return [seq for seq, *_ in self.ledger.stored()]

    @property
    def kept(self) -> list[int]:
        return [each.seq for each in read(self.path)[0]]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


# -- away and back


def test_while_all_is_well_nothing_is_kept(desk: Desk) -> None:
    """Rows and states go where they belong."""
    assert desk.put(0, 1, state=State(2, b"", []))
    assert ([0, 1], [], 0) == (desk.stored, desk.kept, desk.spool.num_rows)


def test_rows_are_on_the_disk_before_they_count(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is the name of their file, from the start."""
    sizes: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (sizes.append(os.fstat(handle).st_size), fsync(handle)))
    desk.ledger.is_away = True
    assert not desk.put(0, 1, state=State(2, b"", []))
    assert [desk.path.stat().st_size] == sizes
    assert [0, 1] == desk.kept
    assert 0o600 == desk.path.stat().st_mode & 0o777


def test_they_are_delivered_in_order_before_what_comes_next(desk: Desk) -> None:
    """Not before it is time for another try; then rows and states go their usual way."""
    desk.put(0)
    desk.ledger.is_away = True
    desk.put(1)
    desk.put(2)
    desk.ledger.is_away = False
    desk.put(3)
    assert ([0], [1, 2, 3]) == (desk.stored, desk.kept)
    desk.later()
    assert desk.put(4, state=State(5, b"s", [])), "with its state"
    assert ([0, 1, 2, 3, 4], [], 0) == (desk.stored, desk.kept, desk.spool.num_rows)
    assert (5, b"s") == desk.ledger.state()


def test_a_commit_whose_answer_was_lost_is_not_delivered_again(desk: Desk) -> None:
    """Its rows are kept until it is known."""
    desk.ledger.loses_answers = True
    desk.put(0, 1)
    assert [0, 1] == desk.kept
    desk.ledger.loses_answers = False
    desk.later()
    desk.put(2)
    assert ([0, 1, 2], []) == (desk.stored, desk.kept)


def test_a_large_commit_whose_answer_was_lost_is_recognised(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it is more than is delivered at a time."""
    monkeypatch.setattr(spool_module, "DELIVER_ROWS", 3)
    desk.ledger.loses_answers = True
    desk.put(*range(8))
    desk.put(8)
    desk.later()
    desk.put(9)  # the answer of this delivery is lost too
    desk.ledger.loses_answers = False
    desk.later()
    desk.put(10)
    assert (list(range(11)), []) == (desk.stored, desk.kept)


def test_delivery_goes_on_where_it_was_interrupted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away again in the middle."""
    monkeypatch.setattr(spool_module, "DELIVER_ROWS", 2)
    desk.ledger.is_away = True
    desk.put(0)
    desk.put(*range(1, 5))
    desk.ledger.is_away = False
    write, tries = desk.ledger.write, iter((True, False))

    def written(rows: list[Row], state: State | None) -> bool:
        if not next(tries, True):
            raise LedgerError("away again")
        return write(rows, state)

    monkeypatch.setattr(desk.ledger, "write", written)
    desk.later()
    desk.put(5)
    assert ([0, 1], 4) == (desk.stored, desk.spool.num_rows)
    desk.later()
    desk.put(6)
    assert list(range(7)) == desk.stored


# -- the next process


def test_the_next_process_delivers_what_is_left(desk: Desk) -> None:
    """Before anything of its own."""
    desk.ledger.is_away = True
    desk.put(0, 1, 2)
    desk.reopen()
    assert ([0, 1, 2], []) == (desk.stored, desk.kept)


def test_the_next_process_passes_over_what_was_delivered(desk: Desk) -> None:
    """A kill between the commit and the emptied file; also where a text is compacted meanwhile."""
    desk.ledger.is_away = True
    desk.put(0, 1, 2)
    left = desk.path.read_bytes()
    desk.reopen()
    desk.path.write_bytes(left)
    desk.ledger.drop_bodies(0, 2, kinds=["prices"])
    desk.reopen()
    assert ([0, 1, 2], 0) == (desk.stored, desk.spool.num_rows)


def test_what_the_ledger_has_after_all_does_not_stay_in_the_file(desk: Desk) -> None:
    """A commit whose answer was lost, then a kill; what is kept later begins a file of its own."""
    desk.ledger.loses_answers = True
    desk.spool.write([row(0), row(1)], None)
    desk.reopen()
    desk.spool.write([row(2)], None)
    desk.ledger.is_away = True
    desk.spool.write([row(3)], None)
    desk.reopen()
    assert (0, 4) == (desk.spool.num_rows, desk.ledger.size)


def test_a_line_that_a_crash_tore_never_counted(desk: Desk) -> None:
    """At every byte; what follows it is written over."""
    desk.ledger.is_away = True
    desk.put(0)
    whole = desk.path.stat().st_size
    desk.put(1)
    data = desk.path.read_bytes()
    for size in range(whole, len(data)):
        desk.path.write_bytes(data[:size])
        assert ([0], whole) == ([each.seq for each in read(desk.path)[0]], read(desk.path)[1])
    desk.reopen()
    desk.ledger.is_away = True
    desk.put(1)
    assert [1] == desk.kept
    desk.reopen()
    assert [0, 1] == desk.stored


@pytest.mark.parametrize("change", ["flip", "remove", "swap", "no row"])
def test_a_file_that_was_changed_is_refused(desk: Desk, change: str) -> None:
    """More than a torn end is no crash: nothing is delivered, and the file is named."""
    desk.ledger.is_away = True
    desk.put(0, 1, 2)
    lines = desk.path.read_bytes().splitlines(keepends=True)
    if change == "flip":
        lines[1] = lines[1].replace(b'"v-1"', b'"v-9"')
    elif change == "remove":
        del lines[1]
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines[1] = b"%08x {}\n" % spool_module.zlib.crc32(b"{}")
    desk.path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerBroken, match=r"spool\.rows"):
        desk.reopen()
    assert b"".join(lines) == desk.path.read_bytes()


def test_another_row_under_a_number_that_was_durable_here_is_refused(desk: Desk) -> None:
    """Two control planes on one database: what to do is said, and the only copy stays."""
    desk.ledger.is_away = True
    desk.put(0, 1)
    left = desk.path.read_bytes()
    desk.path.unlink()
    desk.reopen()
    desk.spool.write([row(0, "of somebody else")], None)
    desk.path.write_bytes(left)
    with pytest.raises(LedgerBroken, match="keeps a row 0 that was durable here"):
        desk.reopen()
    assert left == desk.path.read_bytes()


def test_a_ledger_that_ends_before_the_spool_is_refused(desk: Desk) -> None:
    """An older copy, or another one."""
    desk.path.write_bytes(spool_module._line(row(4)))
    with pytest.raises(LedgerBroken, match="rows are missing"):
        desk.reopen()


def test_whoever_was_overtaken_keeps_nothing_and_says_so(desk: Desk) -> None:
    """Its rows would be delivered to nobody."""
    desk.put(0)
    with desk.ledger._writing() as connection:
        connection.execute(sa.text("UPDATE ledger SET epoch = epoch + 1"))
    with pytest.raises(LedgerLost):
        desk.put(1)
    assert [] == desk.kept


# -- no room


def test_what_the_database_refuses_is_not_kept_either(desk: Desk) -> None:
    """It would stand before everything that comes after it, also in the next process."""
    desk.spool.write([row(0), row(1)], None)
    with pytest.raises(LedgerRefused, match=r"row 3 \(prices v-1\) is booked already"):
        desk.spool.write([row(2), Prices(seq=3, version="v-1", text="t")], None)
    assert (0, 2) == (desk.spool.num_rows, desk.ledger.size)
    desk.reopen()
    desk.spool.write([row(2)], None)
    assert 3 == desk.ledger.size


@pytest.mark.parametrize("limits", [{"max_rows": 3}, {"max_bytes": 3 * 80}])
def test_a_full_spool_refuses_and_is_emptied_when_the_database_is_back(tmp_path: Path, limits: dict[str, int]) -> None:
    """What it has stays durable; the refused rows come again."""
    desk = Desk(tmp_path, **limits)
    desk.ledger.is_away = True
    desk.put(0, 1)
    with pytest.raises(LedgerError, match=r"spool\.rows is full \(2 rows"):
        desk.put(2, 3)
    desk.later()
    with pytest.raises(LedgerError, match="is full"):
        desk.put(2, 3)
    assert [0, 1] == desk.kept
    desk.ledger.is_away = False
    desk.later()
    desk.put(2, 3)
    assert ([0, 1, 2, 3], []) == (desk.stored, desk.kept)
    desk.close()


@contextmanager
def disk_of(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_refuses_and_what_was_torn_is_cut(desk: Desk) -> None:
    """A real error of the system, in the middle of a row, twice; then it goes on."""
    desk.ledger.is_away = True
    desk.put(0)
    size = desk.path.stat().st_size
    for _ in range(2):
        with disk_of(size + 10), pytest.raises(LedgerError, match=r"spool\.rows cannot be written: File too large"):
            desk.put(1)
        assert (size, [0]) == (desk.path.stat().st_size, desk.kept)
    desk.put(1)
    desk.put(2)
    assert [0, 1, 2] == desk.kept
    desk.reopen()
    assert [0, 1, 2] == desk.stored


def test_a_disk_that_fails_altogether_is_told_and_taken_up_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither synced nor cut: the row is not durable, and is not there twice afterwards."""
    desk.ledger.is_away = True
    desk.put(0)

    def fails(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        for _ in range(2):
            with pytest.raises(LedgerError, match="Input/output error"):
                desk.put(1)
    desk.put(1)
    assert [0, 1] == desk.kept
    desk.ledger.is_away = False
    desk.later()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        desk.put(2)
    assert [0, 1, 2] == desk.stored
    desk.ledger.is_away = True
    desk.put(3)
    assert [3] == desk.kept


# -- through the journal


class Plane:
    """A settlement over a spool, and what it charged."""

    def __init__(self, ledger: Ledger, spool: Spool, seed: int = 0) -> None:
        self.ledger, self.output_tokens = ledger, 0
        self.settlement: Settlement
        self.settlement, _ = recover(ledger, core(), store=spool, statement="s", version="v")
        self.load = Load(self.settlement, seed=seed, on_charge=self._add)

    def _add(self, charge: Any) -> None:
        self.output_tokens += charge.output_tokens

    def run(self, num: int, *, with_state: bool = False) -> None:
        self.load.requests(num)
        asyncio.run(self.settlement.journal.commit(with_state=with_state))

    @property
    def told_tokens(self) -> int:
        source = LedgerUsage(self.ledger, self.settlement)
        rows = source.usage(from_us=0, to_us=1 << 62, width_us=None, by=(), where={}, limit=100, after=None)
        return sum(each.output_tokens for each in rows)

    @property
    def flushed_tokens(self) -> int:
        with self.ledger.reading() as connection:
            return int(connection.execute(sa.text("SELECT COALESCE(SUM(output_tokens), 0) FROM usage")).scalar() or 0)


def test_a_state_is_not_taken_while_away_and_its_usage_is_not_lost(desk: Desk) -> None:
    """Sums that were taken for it wait in the journal; they are flushed once, with the next state."""
    plane = Plane(desk.ledger, desk.spool)
    plane.run(20, with_state=True)
    assert plane.flushed_tokens == plane.output_tokens > 0
    before = desk.ledger.state()
    desk.ledger.is_away = True
    for _ in range(3):
        plane.run(20, with_state=True)
    assert 3 == len(plane.settlement.journal.usage)
    desk.ledger.is_away = False
    assert (before, plane.output_tokens) == (desk.ledger.state(), plane.told_tokens)
    desk.later()
    plane.run(20, with_state=True)
    assert ([], plane.output_tokens) == (plane.settlement.journal.usage, plane.flushed_tokens)
    plane.run(1)
    assert plane.output_tokens == plane.told_tokens


def test_a_state_whose_answer_was_lost_flushes_its_usage_once(desk: Desk) -> None:
    """Although nobody knew that it was stored."""
    plane = Plane(desk.ledger, desk.spool)
    plane.run(20)
    desk.ledger.loses_answers = True
    plane.run(20, with_state=True)
    desk.ledger.loses_answers = False
    desk.later()
    plane.run(20, with_state=True)
    assert plane.output_tokens == plane.flushed_tokens == plane.told_tokens


def test_an_outcome_in_the_spool_is_known(desk: Desk) -> None:
    """The database can be asked again before it was told: a second word must not be booked as if it were the first."""
    plane = Plane(desk.ledger, desk.spool)
    plane.run(1)
    (request_id,) = [row_id for _, kind, row_id, *_ in desk.ledger.stored() if kind == "hold"]
    outcomes = LedgerOutcomes(desk.ledger, plane.settlement, LedgerUsage(desk.ledger, plane.settlement))
    facts = outcomes.find(request_id)
    assert facts is not None
    desk.ledger.is_away = True
    plane.run(1)
    desk.ledger.is_away = False
    for accepted in (True, False, True):
        latest = outcomes.latest(facts.tenant, request_id=request_id, task=None)
        verdict = Verdict(request_id=request_id, accepted=accepted)
        outcome, change = decide(verdict, facts, given_id=None, same_id=None, latest=latest, at_us=1)
        assert change is not None
        outcomes.append(outcome, change)
        asyncio.run(outcomes.commit())
    assert 0 < desk.spool.num_rows
    desk.later()
    plane.run(1)
    assert 0 == desk.spool.num_rows
    assert 3 == len([1 for _, kind, *_ in desk.ledger.stored() if kind == "outcome"])
    assert outcome == outcomes.latest(facts.tenant, request_id=request_id, task=None)


STEPS = st.lists(st.sampled_from(["write", "write", "away", "back", "lose", "later", "kill", "tear"]), max_size=30)


@settings(max_examples=15)
@given(STEPS)
def test_whatever_happens_what_was_durable_is_there_once(steps: list[str]) -> None:
    """Away, back, answers lost, killed, torn, in any order: the rows in their order, and the tree verifies."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder))
        settlement, _ = recover(desk.ledger, core(), store=desk.spool, statement="s", version="v")
        durable: list[str] = []
        for number, step in enumerate((*steps, "kill", "write")):
            match step:
                case "write":
                    settlement.note(Prices(version=f"v-{number}", text="t"))
                    asyncio.run(settlement.commit())
                    durable.append(f"v-{number}")
                case "away":
                    desk.ledger.is_away = True
                case "back":
                    desk.ledger.is_away = desk.ledger.loses_answers = False
                case "lose":
                    desk.ledger.loses_answers = True
                case "later":
                    desk.later()
                case "kill" | "tear":
                    desk.close()
                    if step == "tear":
                        with desk.path.open("ab") as file:
                            file.write(b"0123abcd {")
                    desk.open()
                    settlement, _ = recover(desk.ledger, core(), store=desk.spool, statement="s", version="v")
        found = [decode(body) for _, _, _, body, _ in desk.ledger.stored() if body is not None]
        assert durable == [each.version for each in found if isinstance(each, Prices)]
        assert 0 == desk.spool.num_rows
        desk.close()
        reader = Reader(desk.url)
        assert len(found) == verify(reader).num_rows
        reader.close()


# -- a real server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_server() as running:
        yield running


def test_a_real_server_goes_away_and_comes_back(server: PostgresServer, tmp_path: Path) -> None:
    """Killed under load, twice; once it is the next process that delivers."""
    url, path = server.new_database(), tmp_path / "spool.rows"
    ledger = Ledger(url, seed=SEED)
    now_s = 0.0
    spool = Spool(ledger, path, clock=lambda: now_s)
    plane = Plane(ledger, spool)
    plane.run(30, with_state=True)
    server.stop(at_once=True)
    for _ in range(3):
        plane.run(30, with_state=True)
        now_s += RETRY_S
    assert plane.settlement.journal.durable_seq == plane.settlement.journal.next_seq
    assert spool.num_rows == len(read(path)[0]) > 90 * 3
    with pytest.raises(LedgerError):
        Ledger(url, seed=SEED)
    server.start()
    plane.run(30, with_state=True)
    assert (0, plane.output_tokens) == (spool.num_rows, plane.flushed_tokens)
    server.stop(at_once=True)
    plane.run(30)
    spool.close()  # killed
    ledger.close()
    server.start()
    ledger = Ledger(url, seed=SEED)
    spool = Spool(ledger, path)
    following = Plane(ledger, spool, seed=1)
    following.run(10, with_state=True)
    assert plane.output_tokens + following.output_tokens == following.flushed_tokens
    spool.close()
    ledger.close()
    reader = Reader(url)
    assert plane.settlement.journal.next_seq < verify(reader).num_rows
    reader.close()
