"""One worker's link: rising epochs, tries with an end; commands leave in order and batched, or not at all."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from scheduler import connection as connection_module
from scheduler.connection import MAX_COMMANDS, Connection, Phase
from tests.scripted_link import ScriptedLink, settle_loop, status_of
from workers.errors import StaleEpoch, WireMismatch, WorkerDead
from workers.types import Abort, Ack, Chunk, Report

DEAD = WorkerDead("w-0", "its process died")


class Case:
    """A connection on a scripted link, and what it told its owner."""

    def __init__(self, *, delays_s: tuple[float, ...] = (0.0, 0.0, 0.0)) -> None:
        self.link = ScriptedLink()
        self.reports: list[Report] = []
        self.lost: list[tuple[Phase, str]] = []
        self.raises: Exception | None = None
        self.connection = Connection(
            self.link,
            max_running=8,
            incarnation="life-1",
            next_epoch=itertools.count(100).__next__,
            on_report=self._on_report,
            on_lost=lambda connection, cause: self.lost.append((connection.phase, cause)),
            reconnect_delays_s=delays_s,
        )

    def _on_report(self, connection: Connection, report: Report) -> None:
        assert connection is self.connection
        assert connection.phase is Phase.CONNECTED
        self.reports.append(report)
        if self.raises is not None:
            error, self.raises = self.raises, None
            raise error

    async def connected(self) -> None:
        self.link.ready()
        await settle_loop()
        assert self.connection.phase is Phase.CONNECTED


@asynccontextmanager
async def opened(**options: tuple[float, ...]) -> AsyncIterator[Case]:
    case = Case(**options)
    case.connection.start()
    await settle_loop()
    try:
        yield case
    finally:
        await case.connection.close()
        assert 0 == case.link.num_open_streams


async def test_it_is_connected_with_its_first_report() -> None:
    """Until then nobody knows whether the worker is there."""
    async with opened() as case:
        assert (Phase.CONNECTING, [100]) == (case.connection.phase, case.link.epochs)
        await case.connected()
        case.link.say(Chunk("req-a-1", b"x"))
        await settle_loop()
        assert [True, False] == [report.status is not None for report in case.reports]
        assert status_of() == case.connection.status, "a report without a status leaves the last one standing"


async def test_a_lost_worker_is_connected_again_under_a_higher_epoch() -> None:
    """Each break is told, before the next try; the number of tries counts from the last report."""
    async with opened(delays_s=(0.0,)) as case:
        for round_number in range(1, 4):
            await case.connected()
            case.link.fail(DEAD)
            await settle_loop()
            assert [(Phase.LOST, "worker_lost")] * round_number == case.lost
            assert list(range(100, 101 + round_number)) == case.link.epochs


async def test_a_worker_that_never_answers_is_given_up_after_its_tries() -> None:
    """Lost for each wait, then gone; no further try."""
    async with opened(delays_s=(0.0, 0.0, 0.0)) as case:
        for _ in range(4):
            case.link.fail(DEAD)
        await settle_loop(60)
        assert [(Phase.LOST, "worker_lost")] * 3 + [(Phase.GONE, "worker_lost")] == case.lost
        assert [100, 101, 102, 103] == case.link.epochs
        assert (Phase.GONE, "worker_lost") == (case.connection.phase, case.connection.cause)


async def test_the_waits_are_those_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, and from the first one again after a report."""
    slept_s: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept_s.append(delay_s)

    class Clock:
        def __getattr__(self, name: str) -> object:
            return sleep if name == "sleep" else getattr(asyncio, name)

    monkeypatch.setattr(connection_module, "asyncio", Clock())
    async with opened(delays_s=(0.2, 1.0, 3.0)) as case:
        case.link.fail(DEAD)
        case.link.fail(DEAD)
        case.link.ready()
        for _ in range(4):
            case.link.fail(DEAD)
        await settle_loop(80)
        assert [0.2, 1.0, 0.2, 1.0, 3.0] == slept_s
        assert Phase.GONE is case.connection.phase


async def test_a_stream_that_ends_without_a_word_is_a_lost_worker() -> None:
    """Nobody reads on as if all were well."""
    async with opened() as case:
        await case.connected()
        case.link.fail(None)
        await settle_loop()
        assert [(Phase.LOST, "worker_lost")] == case.lost


async def test_a_newer_control_plane_fences_us_off_for_good() -> None:
    """Not one more try, and nothing of ours is sent there again."""
    async with opened() as case:
        await case.connected()
        case.link.fail(StaleEpoch(given=100, current=900))
        await settle_loop()
        assert [(Phase.FENCED, "fenced_off")] == case.lost
        case.connection.send(Ack(number=1))
        await case.connection.close()
        assert (Phase.FENCED, [100], []) == (case.connection.phase, case.link.epochs, case.link.commands)


async def test_a_worker_of_another_wire_version_is_gone_at_once() -> None:
    """It is replaced, never talked to."""
    async with opened() as case:
        case.link.fail(WireMismatch(given=1, spoken=2))
        await settle_loop()
        assert [(Phase.GONE, "wire_mismatch")] == case.lost
        assert [100] == case.link.epochs


async def test_a_failure_of_ours_while_a_report_is_handled_breaks_the_link_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged by its type and text of ours, and the worker is connected again."""
    async with opened() as case:
        case.raises = KeyError("req-a-1")
        case.link.ready()
        await settle_loop()
        assert [(Phase.LOST, "worker_lost")] == case.lost
        assert "KeyError" in caplog.text
        await case.connected()


async def test_commands_of_one_turn_leave_as_one_batch_in_order() -> None:
    """A step's acknowledgements and calls do not cost a call each."""
    async with opened() as case:
        await case.connected()
        for number in (1, 2, 3):
            case.connection.send(Ack(number=number))
        await settle_loop()
        case.connection.send(Abort(attempt_id="req-a-1", reason="client_gone"))
        await settle_loop()
        assert [3, 1] == [len(batch) for batch in case.link.batches]
        assert [1, 2, 3] == case.link.acks


async def test_a_batch_is_bounded_and_the_rest_follows() -> None:
    """In order, none lost."""
    async with opened() as case:
        await case.connected()
        for number in range(2 * MAX_COMMANDS + 3):
            case.connection.send(Ack(number=number))
        await settle_loop()
        assert [MAX_COMMANDS, MAX_COMMANDS, 3] == [len(batch) for batch in case.link.batches]
        assert list(range(2 * MAX_COMMANDS + 3)) == case.link.acks


async def test_nothing_is_sent_while_not_connected() -> None:
    """What is said before, between and after connections is dropped: it would reach another life."""
    async with opened(delays_s=(0.0,)) as case:
        case.connection.send(Ack(number=1))
        await case.connected()
        case.link.fail(DEAD)
        await settle_loop()
        case.connection.send(Ack(number=2))
        await case.connected()
        assert [] == case.link.commands
        case.connection.send(Ack(number=3))
        case.link.fail(DEAD)  # before the writer's turn is over the stream may be broken
        await settle_loop()
        await case.connected()
        assert case.link.acks in ([], [3])
        await case.connection.close()
        case.connection.send(Ack(number=4))
        await case.connection.flush()
        assert 4 not in case.link.acks


async def test_a_write_that_fails_breaks_the_link() -> None:
    """What waited is dropped with it, and the reader is ended too."""
    async with opened() as case:
        await case.connected()
        case.link.send_error = DEAD
        case.connection.send(Ack(number=1))
        await settle_loop()
        assert [(Phase.LOST, "worker_lost")] == case.lost
        assert [100, 101] == case.link.epochs
        case.link.send_error = None
        await case.connected()
        await settle_loop()
        assert [] == case.link.commands


async def test_an_acknowledgement_is_said_once_a_connection() -> None:
    """Never a lower number, and again after the link broke: the first may have been lost with it."""
    async with opened() as case:
        await case.connected()
        for number in (5, 5, 4, 6):
            case.connection.acknowledge(number)
        await settle_loop()
        assert [5, 6] == case.link.acks
        case.link.fail(DEAD)
        await settle_loop()
        await case.connected()
        case.connection.acknowledge(6)
        await settle_loop()
        assert [5, 6, 6] == case.link.acks


async def test_an_acknowledgement_that_nobody_hears_is_said_later() -> None:
    """A commit may end between two connections: the worker would keep its records for ever."""
    async with opened() as case:
        await case.connected()
        case.link.fail(DEAD)
        await settle_loop()
        assert Phase.LOST is case.connection.phase
        case.connection.acknowledge(7)
        await case.connected()
        case.connection.acknowledge(7)
        await settle_loop()
        assert [7] == case.link.acks


async def test_closing_ends_every_task_of_it() -> None:
    """While connected, and while it waits for its next try."""
    before = asyncio.all_tasks()
    async with opened() as case:
        await case.connected()
    assert Phase.GONE is case.connection.phase
    async with opened(delays_s=(60.0,)) as case:
        case.link.fail(DEAD)
        await settle_loop()
        assert Phase.LOST is case.connection.phase
    assert before == asyncio.all_tasks()
    await Case().connection.close()  # one that was never started


async def test_the_end_of_a_worker_that_is_stopped_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    """No further try, no warning."""
    caplog.set_level(logging.WARNING)
    async with opened() as case:
        await case.connected()
        await case.connection.stop_worker()
        case.link.fail(DEAD)
        await settle_loop()
        assert [(Phase.GONE, "worker_lost")] == case.lost
        assert "" == caplog.text


async def test_flush_hands_over_what_waits_and_bears_a_dead_worker() -> None:
    """The last acknowledgements leave before the link closes, whoever is on the other end."""
    async with opened() as case:
        await case.connected()
        case.connection.send(Ack(number=1))
        await case.connection.flush()
        assert [1] == case.link.acks
        case.link.send_error = StaleEpoch(given=1, current=2)
        case.connection.send(Ack(number=2))
        await case.connection.flush()
