"""The journal: numbers and times are given once, rows must balance, and what a store refuses waits for the next try."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting import journal as journal_module
from scheduler.accounting.journal import Journal, State
from scheduler.accounting.rows import Row, Void
from tests.scripted_link import settle_loop


class ScriptedStore:
    """Keeps what it is given; fails when told."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.states: list[State] = []
        self.num_failures = 0
        self.num_writes = 0

    def write(self, rows: list[Row], state: State | None) -> bool:
        self.num_writes += 1
        if self.num_failures:
            self.num_failures -= 1
            raise OSError("disk full")
        self.rows += rows
        if state is not None:
            self.states.append(state)
        return state is not None


class Clock:
    def __init__(self, *, unix_s: float = 1_000.0) -> None:
        self.unix_s = unix_s

    def __call__(self) -> float:
        return self.unix_s


def row(name: str = "a") -> Row:
    return Void(request_id=name, tenant="t", cause="gone")


def test_rows_are_numbered_from_where_the_ledger_ended() -> None:
    """By one each."""
    journal = Journal(ScriptedStore(), next_seq=7)
    rows = [row(), row(), row()]
    assert [7, 8, 9] == [journal.append(each) for each in rows] == [each.seq for each in rows]
    assert (10, 7) == (journal.next_seq, journal.durable_seq)


@given(times_s=st.lists(st.floats(-1e9, 4e9), min_size=1, max_size=20), last_at_us=st.integers(0, 2 * 10**15))
def test_time_never_goes_back(times_s: list[float], last_at_us: int) -> None:
    """Whatever the clock says, and whatever the last row of an earlier life said."""
    clock = Clock()
    journal = Journal(ScriptedStore(), last_at_us=last_at_us, unix_clock=clock)
    seen = last_at_us
    for clock.unix_s in times_s:
        each = row()
        journal.append(each)
        assert each.at_us == max(seen, int(clock.unix_s * 1_000_000))
        seen = each.at_us


def test_a_row_that_does_not_balance_is_not_written() -> None:
    """And takes no number."""
    journal = Journal(ScriptedStore())
    wrong = row()
    wrong.legs = [("a", "mJ", 5), ("b", "mJ", -4)]
    with pytest.raises(ValueError, match=r"kind void does not balance: \{'mJ': 1\}"):
        journal.append(wrong)
    assert (0, -1) == (journal.next_seq, wrong.seq)


async def test_without_a_store_everything_is_durable_at_once() -> None:
    """Tests and simulations have no disk to wait for."""
    journal = Journal()
    journal.append(row())
    assert (1, False) == (journal.durable_seq, journal.is_full)
    await journal.commit()
    await journal.commit(with_state=True)


async def test_a_commit_writes_what_was_appended_before_it() -> None:
    """In order; what comes meanwhile is the next one's, and nothing is written for nothing."""
    store = ScriptedStore()
    journal = Journal(store)
    first = [row(), row()]
    for each in first:
        journal.append(each)
    commit = asyncio.create_task(journal.commit())
    await settle_loop(3)
    late = row()
    journal.append(late)
    await commit
    assert (first, 2) == (store.rows, journal.durable_seq)
    await journal.commit()
    await journal.commit()
    assert ([*first, late], 3, 2) == (store.rows, journal.durable_seq, store.num_writes)


async def test_what_a_store_refused_is_given_again_with_what_came_behind_it() -> None:
    """In order, however often."""
    store = ScriptedStore()
    journal = Journal(store)
    rows = []
    for store.num_failures in (1, 1, 0):
        rows.append(row(str(len(rows))))
        journal.append(rows[-1])
        if store.num_failures:
            with pytest.raises(OSError, match="disk full"):
                await journal.commit()
            assert 0 == journal.durable_seq
        else:
            await journal.commit()
    assert (rows, 3) == (store.rows, journal.durable_seq)


def test_too_much_that_waits_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nothing new begins."""
    monkeypatch.setattr(journal_module, "MAX_PENDING_ROWS", 3)
    store = ScriptedStore()
    journal = Journal(store)
    assert [False, False, True] == [journal.append(row()) >= 0 and journal.is_full for _ in range(3)]
    asyncio.run(journal.commit())
    assert not journal.is_full


# -- states


@pytest.fixture
def _small_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "STATE_ROWS", 3)


class Case:
    """A journal whose books count."""

    def __init__(self, **options: int) -> None:
        self.store, self.clock = ScriptedStore(), Clock()
        self.journal = Journal(self.store, unix_clock=self.clock, **options)
        self.num_taken = 0
        self.journal.take_state = self.take

    def take(self) -> tuple[bytes, list[tuple[object, ...]]]:
        self.num_taken += 1
        return b"%d" % self.journal.next_seq, [(self.num_taken,)]

    async def commit(self, num_rows: int, *, with_state: bool = False) -> None:
        for _ in range(num_rows):
            self.journal.append(row())
        await self.journal.commit(with_state=with_state)


@pytest.mark.usefixtures("_small_states")
async def test_a_state_comes_after_so_many_rows() -> None:
    """Of everything that is written with it, and of nothing else."""
    case = Case()
    for num_rows, states in ((2, []), (1, [3]), (2, [3]), (0, [3]), (5, [3, 10])):
        await case.commit(num_rows)
        assert states == [state.seq for state in case.store.states]
    assert [b"3", b"10"] == [state.data for state in case.store.states]


async def test_a_state_comes_after_so_much_time_where_there_are_rows() -> None:
    """A ledger in which nothing happens writes nothing."""
    case = Case()
    await case.commit(1)
    case.clock.unix_s += journal_module.STATE_S
    await case.commit(0)
    assert [] == case.store.states
    await case.commit(1)
    assert [2] == [state.seq for state in case.store.states]
    case.clock.unix_s += journal_module.STATE_S - 1
    await case.commit(1)
    case.clock.unix_s += 2 * journal_module.STATE_S
    await case.commit(1)
    assert [2, 4] == [state.seq for state in case.store.states]


async def test_a_state_may_be_asked_for() -> None:
    """At the end, also where no row waits."""
    case = Case(next_seq=5, state_seq=5)
    await case.commit(0, with_state=True)
    await case.commit(1, with_state=True)
    assert [5, 6] == [state.seq for state in case.store.states]


async def test_usage_of_a_try_that_failed_comes_with_the_next_state() -> None:
    """By the number that it was taken at: the store knows which of them it has."""
    case = Case()
    case.store.num_failures = 2
    for num_rows in (2, 1):
        with pytest.raises(OSError, match="disk full"):
            await case.commit(num_rows, with_state=True)
    await case.commit(4)
    await case.commit(1, with_state=True)
    assert [
        (7, [(2, [(1,)]), (3, [(2,)]), (7, [(3,)])]),
        (8, [(8, [(4,)])]),
    ] == [(state.seq, state.usage) for state in case.store.states]
