"""Answers end and workers forget only after a commit; one commit at a time; what fails is tried again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from scheduler.accounting import journal as journal_module
from scheduler.accounting.settlement import Settlement
from scheduler.committer import NOT_COMMITTED, Committer
from scheduler.connection import Connection
from scheduler.streams import Body, End, Head, Stream
from tests.scripted_link import ScriptedLink, settle_loop
from workers.types import Outcome

DONE = End(outcome=Outcome.COMPLETED)
HEAD = Head(200, [])
FIRST_BYTE = Body(b"first byte")


class GatedSettlement(Settlement):
    """Its disk is as slow as the test wants, and fails when told."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.lets_one_pass = False
        self.num_failures = 0
        self.num_begun = 0
        self.num_under_way = 0

    async def commit(self) -> None:
        self.num_begun += 1
        self.num_under_way += 1
        assert 1 == self.num_under_way
        try:
            await self.gate.wait()
            if self.lets_one_pass:
                self.gate.clear()
            if self.num_failures:
                self.num_failures -= 1
                raise OSError("disk full")
        finally:
            self.num_under_way -= 1

    def book(self, worker_id: str, *numbers: int) -> None:
        for number in numbers:
            assert self.is_new(worker_id, number)


class Case:
    def __init__(self, *, gather_s: float = 0.0, stuck_s: float = 60.0) -> None:
        self.settlement = GatedSettlement()
        self.problems: list[str] = []
        self.waits: list[tuple[str, float]] = []
        self.committer = Committer(
            self.settlement,
            retry_s=0.0,
            gather_s=gather_s,
            stuck_s=stuck_s,
            on_problem=self.problems.append,
            on_wait=lambda part, wait_s: self.waits.append((part, wait_s)),
        )
        self.link = ScriptedLink()
        self.settlement.open_worker("w-0", incarnation="life-1")
        self.connection = Connection(
            self.link,
            max_running=1,
            incarnation="life-1",
            next_epoch=lambda: 1,
            on_report=lambda connection, report: None,
            on_lost=lambda connection, cause: None,
        )
        self.num_streams = 0

    def end(self) -> Stream:
        """A request that only waits for its commit."""
        self.num_streams += 1
        stream = Stream(f"req-{self.num_streams}", on_close=lambda *words: None)
        self.committer.add_end(stream, DONE)
        return stream

    def begin(self) -> Stream:
        """A request whose engine answered at once."""
        self.num_streams += 1
        stream = Stream(f"req-{self.num_streams}", on_close=lambda *words: None)
        self.committer.add_begin(stream)
        stream.put_body(b"first byte")
        return stream


@asynccontextmanager
async def running(**times: float) -> AsyncIterator[Case]:
    case = Case(**times)
    case.connection.start()
    case.link.ready()
    task = asyncio.create_task(case.committer.run())
    await settle_loop()
    try:
        yield case
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await case.connection.close()


async def test_an_answer_ends_after_the_commit() -> None:
    """Not at its beginning."""
    async with running() as case:
        stream = case.end()
        await settle_loop()
        assert (1, None) == (case.settlement.num_begun, await stream.next(0.0))
        case.settlement.gate.set()
        assert DONE == await stream.next(1.0)


async def test_what_comes_during_a_commit_waits_for_the_next_one() -> None:
    """It may have been booked after the ledger's page was written."""
    async with running() as case:
        first = case.end()
        await settle_loop()
        second, third = case.end(), case.end()
        case.settlement.lets_one_pass = True
        case.settlement.gate.set()
        assert DONE == await first.next(1.0)
        await settle_loop()
        assert None is await second.next(0.0)
        case.settlement.gate.set()
        assert [DONE, DONE] == [await second.next(1.0), await third.next(1.0)]
        assert 2 == case.settlement.num_begun, "both waited for one commit"


async def test_a_commit_after_a_quiet_moment_begins_at_once_and_the_next_one_gathers() -> None:
    """Of ten answers that end one after another, one commit."""
    async with running(gather_s=0.1) as case:
        case.settlement.gate.set()
        assert DONE == await case.end().next(0.05)
        streams = []
        for _ in range(10):
            streams.append(case.end())
            await settle_loop()
        assert 1 == case.settlement.num_begun
        assert [DONE] * 10 == [await stream.next(1.0) for stream in streams]
        assert 2 == case.settlement.num_begun


async def test_a_commit_that_hangs_is_a_problem_until_it_ends() -> None:
    """A disk that hangs raises nothing."""
    async with running(stuck_s=0.02) as case:
        stream = case.end()
        async with asyncio.timeout(5.0):
            while not case.problems:
                await asyncio.sleep(0.005)
        assert ["a commit has been under way for 0.02 s"] == case.problems
        case.settlement.gate.set()
        assert DONE == await stream.next(1.0)
        assert "" == case.problems[-1]


async def test_a_worker_may_forget_what_was_booked_before_the_commit_began() -> None:
    """A record that arrives during the commit is acknowledged by the next."""
    async with running() as case:
        case.settlement.book("w-0", 1, 2)
        case.committer.add_records(case.connection)
        await settle_loop()
        case.settlement.book("w-0", 3)
        assert [] == case.link.acks
        case.settlement.gate.set()
        await settle_loop()
        assert [2] == case.link.acks
        case.committer.add_records(case.connection)
        await settle_loop()
        assert [2, 3] == case.link.acks


async def test_records_behind_a_gap_are_not_acknowledged() -> None:
    """Only what is booked without a hole may be forgotten."""
    async with running() as case:
        case.settlement.gate.set()
        case.settlement.book("w-0", 1, 3)
        case.committer.add_records(case.connection)
        await settle_loop()
        assert [1] == case.link.acks


async def test_a_commit_that_fails_keeps_everything_and_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """No answer ends and no worker forgets on a ledger that did not take it; nothing is lost either."""
    async with running() as case:
        case.settlement.num_failures = 2
        stream = case.end()
        case.settlement.book("w-0", 1)
        case.committer.add_records(case.connection)
        case.settlement.gate.set()
        assert DONE == await stream.next(1.0)
        await settle_loop()
        assert [1] == case.link.acks
        assert 3 == case.settlement.num_begun
        assert 2 == caplog.text.count("a commit failed")


async def test_a_second_commit_waits_for_the_first() -> None:
    """Whoever stops must not leave while an answer's commit is still under way."""
    async with running() as case:
        stream = case.end()
        await settle_loop()
        last = asyncio.create_task(case.committer.commit_last())
        await settle_loop()
        assert not last.done()
        case.settlement.gate.set()
        await last
        assert DONE == await stream.next(0.0)


async def test_a_last_commit_that_fails_ends_answers_as_not_committed() -> None:
    """Whoever waits gets an answer, but never one that looks paid."""
    case = Case()
    stream = case.end()
    case.settlement.num_failures = 1
    case.settlement.gate.set()
    await case.committer.commit_last()
    assert End(outcome=Outcome.FAILED, cause=NOT_COMMITTED) == await stream.next(0.0)
    await case.committer.commit_last()


async def test_a_cancelled_commit_loses_nothing() -> None:
    """The next one, whoever asks for it, ends what waited."""
    case = Case()
    stream = case.end()
    commit = asyncio.create_task(case.committer.commit())
    await settle_loop()
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    case.settlement.gate.set()
    await case.committer.commit()
    assert DONE == await stream.next(0.0)


async def test_an_answer_begins_after_the_commit_that_holds_its_hold() -> None:
    """Its bytes wait meanwhile; one that is added during a commit waits for the next."""
    async with running() as case:
        first = case.begin()
        await settle_loop()
        second = case.begin()
        assert [None, None] == [await first.next(0.0), await second.next(0.0)]
        case.settlement.lets_one_pass = True
        case.settlement.gate.set()
        assert FIRST_BYTE == await first.next(1.0)
        await settle_loop()
        assert None is await second.next(0.0)
        case.settlement.gate.set()
        assert FIRST_BYTE == await second.next(1.0)


async def test_an_answer_whose_hold_was_not_written_does_not_begin() -> None:
    """It waits for the next try, and what it waits for is said."""
    async with running() as case:
        case.settlement.num_failures = 2
        stream = case.begin()
        case.settlement.gate.set()
        assert FIRST_BYTE == await stream.next(1.0)
        assert ["OSError: disk full", "OSError: disk full", ""] == case.problems


async def test_a_last_commit_that_fails_begins_no_answer() -> None:
    """Its end comes all the same, as failed."""
    case = Case()
    stream = case.begin()
    case.committer.add_end(stream, DONE)
    case.settlement.num_failures = 1
    case.settlement.gate.set()
    await case.committer.commit_last()
    assert FIRST_BYTE == await stream.next(0.0), "with the end, everything is the reader's"
    assert End(outcome=Outcome.FAILED, cause=NOT_COMMITTED) == await stream.next(0.0)


async def test_a_cancelled_commit_is_no_fault_of_the_ledger() -> None:
    """Nothing is said, and nothing stops."""
    case = Case()
    case.begin()
    commit = asyncio.create_task(case.committer.commit())
    await settle_loop()
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    assert [] == case.problems


async def test_a_journal_that_is_full_is_said_before_the_commit_that_hangs_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that nothing new begins; the commit that empties it takes it back."""
    monkeypatch.setattr(journal_module, "MAX_PENDING_ROWS", 0)
    async with running() as case:
        case.begin()
        assert 1 == len(case.problems)
        assert "rows wait for the disk" in case.problems[0]
        case.settlement.gate.set()
        await settle_loop()
        assert "" == case.problems[-1]


async def test_how_long_answers_waited_is_told_once_each() -> None:
    """Also where the first commit failed: from when they were ready."""
    async with running() as case:
        case.settlement.num_failures = 1
        begun, ended = case.begin(), case.end()
        begun.put_head(HEAD)
        await asyncio.sleep(0.02)
        assert [] == case.waits
        case.settlement.gate.set()
        assert HEAD == await begun.next(5.0)
        assert DONE == await ended.next(5.0)
        assert ["first_byte", "end"] == [part for part, _ in case.waits]
        assert all(wait_s >= 0.02 for _, wait_s in case.waits)
