"""The dispatcher with the real core on scripted links: what leaves, in which order, and what is booked, once."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from scheduler.accounting.accounts import OPERATOR
from scheduler.accounting.rows import Charge, Row
from scheduler.accounting.settlement import Settlement
from scheduler.core.actions import Action
from scheduler.core.actions import Park as ParkWorker
from scheduler.core.actions import Wake as WakeWorker
from scheduler.core.admission import Limits
from scheduler.core.request import Request
from scheduler.core.scheduler import Scheduler
from scheduler.dispatcher import Dispatcher
from scheduler.streams import MAX_UNREAD_BYTES, Body, End, Head, Stream, Submission
from tests.scripted_link import (
    MODEL,
    ScriptedLink,
    posting_of,
    settle_loop,
    status_of,
    until,
    usage_of,
    window_of,
)
from workers.errors import StaleEpoch, WorkerDead
from workers.types import (
    Abort,
    Ack,
    Chunk,
    Ended,
    Numbered,
    Outcome,
    Park,
    Progress,
    Started,
    Wake,
    WorkerState,
)

HEADERS = [(b"content-type", b"text/event-stream")]
COMPLETED, ABORTED, FAILED = Outcome.COMPLETED, Outcome.ABORTED, Outcome.FAILED
DEAD = WorkerDead("w-0", "its process died")


class GatedSettlement(Settlement):
    """Its commits wait for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self) -> None:
        await self.gate.wait()


class House:
    """A dispatcher whose time stands still until the test moves it, and its links."""

    def __init__(self, *, limits: Limits | None = None, core: Scheduler | None = None) -> None:
        self.now_s = 1000.0
        self.settlement = GatedSettlement()
        self.core = core or Scheduler(models=[MODEL], limits=limits)
        self.down: list[tuple[str, str]] = []
        self.dispatcher = Dispatcher(
            scheduler=self.core,
            settlement=self.settlement,
            on_worker_down=lambda *words: self.down.append(words),
            clock=lambda: self.now_s,
            unix_clock=lambda: 5.0,
            tick_s=0.001,
        )
        self.rendered: list[tuple[int, int]] = []
        self.num_submitted = 0

    def add(self, worker_id: str = "w-0", **options: object) -> ScriptedLink:
        """A link whose worker is ready."""
        link = ScriptedLink(worker_id)
        self.dispatcher.add_link(link, **options)  # type: ignore[arg-type]
        self.dispatcher._connections[worker_id]._reconnect_delays_s = (0.0, 0.0, 0.0)
        link.ready()
        return link

    def submit(self, *, render: Callable[[int, int], bytes] | None = None, **fields: object) -> Stream:
        """The next request: req-1, req-2…"""
        self.num_submitted += 1
        values: dict[str, object] = {"max_output_tokens": 16, "tenant": "alpha", **fields}
        request = Request(
            request_id=f"req-{self.num_submitted}",
            model=MODEL,
            prompt_tokens_bound=10,
            arrival_s=self.now_s,
            **values,  # type: ignore[arg-type]
        )
        return self.dispatcher.submit(Submission(request=request, path="/v1/x", render=render or self._render))

    def _render(self, max_output_tokens: int, priority: int) -> bytes:
        self.rendered.append((max_output_tokens, priority))
        return b'{"max_tokens":%d}' % max_output_tokens

    def attempts_of(self, tenant: str) -> tuple[int, int, int]:
        """(requests, attempts, output tokens)."""
        totals = self.settlement.accounts.tokens_of(tenant)
        return totals.requests, totals.attempts, totals.output_tokens

    def energy_of(self, tenant: str) -> int:
        return sum(row.energy_mj for row in self.settlement.accounts.tenant_rows() if row.tenant == tenant)

    def assert_quiet(self) -> None:
        """Nothing runs, nothing is owned, nothing is in flight, every attempt that left has one charge."""
        found = self.dispatcher.snapshot()
        assert (0, 0, 0) == (found.num_open, found.num_running, found.open_attempts)
        assert (0, 0, 0) == (
            found.balance.difference_mj, found.balance.in_flight_mj, found.balance.in_flight_gpu_us
        )  # fmt: skip
        assert {(0, 0)} >= {(worker.num_attempts, worker.credit.kv_tokens) for worker in found.workers}
        assert found.dispatched == sum(row.attempts for row in found.tenants)
        assert (0, 0) == (len(self.dispatcher._live), len(self.dispatcher._running))


@asynccontextmanager
async def opened(*, limits: Limits | None = None, core: Scheduler | None = None) -> AsyncIterator[House]:
    house = House(limits=limits, core=core)
    await house.dispatcher.start()
    try:
        yield house
    finally:
        house.settlement.gate.set()
        if house.dispatcher._tasks and not house.dispatcher._tasks[0].done():
            stop = asyncio.create_task(house.dispatcher.stop())
            while not stop.done():
                house.now_s += 1.0
                await asyncio.sleep(0)
            await stop


async def read_all(stream: Stream) -> tuple[int | None, bytes, End]:
    """(status, bytes, end)."""
    status, data = None, b""
    while not isinstance(item := await stream.next(2.0), End):
        assert item is not None, "nothing came"
        if isinstance(item, Head):
            assert (None, b"") == (status, data)
            status = item.status
        else:
            data += item.data
    return status, data, item


def answer(
    link: ScriptedLink, attempt_id: str, *bodies: bytes, energy_mj: int = 100, is_final: bool = True, status: int = 200
) -> None:
    """The worker answers, a report a body; at the end usage, window and posting."""
    link.say(Started(attempt_id, status, HEADERS))
    for body in bodies:
        link.say(Chunk(attempt_id, body))
    if is_final:
        finish(link, attempt_id, energy_mj=energy_mj)


def finish(
    link: ScriptedLink,
    attempt_id: str,
    *,
    outcome: Outcome = COMPLETED,
    cause: str = "",
    energy_mj: int = 100,
    **fields: object,
) -> None:
    link.say(Ended(attempt_id, outcome, cause), records=(usage_of(attempt_id, outcome=outcome, cause=cause, **fields),))
    link.say(records=(window_of((attempt_id, energy_mj, 10)), posting_of(attempt_id, energy_mj)))


# -- an answer


async def test_an_answer_passes_in_order_and_ends_with_its_charge() -> None:
    """Head, bytes, end; called with the cap and the priority of the core; charged and posted to its tenant."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit(band=2)
        await settle_loop()
        (call,) = link.calls
        assert ("req-1-1", "/v1/x", b'{"max_tokens":16}', 2) == (call.attempt_id, call.path, call.body, call.priority)
        assert [(16, 2)] == house.rendered
        answer(link, "req-1-1", b"one ", b"two ", b"three")
        status, data, end = await read_all(stream)
        assert (200, b"one two three", COMPLETED, "") == (status, data, end.outcome, end.cause)
        assert end.charge is not None
        assert ("alpha", 7, 3) == (end.charge.account, end.charge.input_tokens, end.charge.output_tokens)
        await settle_loop()
        assert ((1, 1, 3), 100) == (house.attempts_of("alpha"), house.energy_of("alpha"))
        house.assert_quiet()


async def test_the_head_waits_for_the_first_byte() -> None:
    """Until then the request may still be tried elsewhere."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        link.say(Started("req-1-1", 200, HEADERS))
        await settle_loop()
        assert None is await stream.next(0.0)
        link.say(Chunk("req-1-1", b"x"))
        assert [Head(200, HEADERS), Body(b"x")] == [await stream.next(1.0), await stream.next(1.0)]


async def test_an_answer_without_a_body_has_its_head_all_the_same() -> None:
    """A status alone is an answer."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1")
        assert (200, b"") == (await read_all(stream))[:2]


async def test_an_engines_refusal_is_passed_on_and_not_repeated() -> None:
    """Its 400 is the client's answer, also where another worker stands by."""
    async with opened() as house:
        link, other = house.add("w-0"), house.add("w-1")
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b'{"error":"too long"}', is_final=False, status=400)
        finish(link, "req-1-1", outcome=Outcome.REFUSED, output_tokens=0)
        status, data, end = await read_all(stream)
        assert (400, b'{"error":"too long"}', Outcome.REFUSED) == (status, data, end.outcome)
        assert [] == other.calls


async def test_an_answer_ends_only_after_the_commit_that_holds_its_charge() -> None:
    """Its bytes do not wait for a disk, its end does; the worker may forget its records after it, too."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        house.settlement.gate.clear()
        answer(link, "req-1-1", b"all of it", is_final=False)
        link.say(Ended("req-1-1", COMPLETED), records=(usage_of("req-1-1"),))
        assert [Head(200, HEADERS), Body(b"all of it")] == [await stream.next(1.0), await stream.next(1.0)]
        await settle_loop()
        assert None is await stream.next(0.0)
        assert house.settlement.is_charged("req-1-1")
        assert [] == link.acks
        house.settlement.gate.set()
        assert isinstance(await stream.next(1.0), End)
        await settle_loop()
        assert [1] == link.acks


async def test_many_answers_through_one_report_stay_apart() -> None:
    """One report a step holds everybody's bytes."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        streams = [house.submit() for _ in range(5)]
        await settle_loop()
        names = [f"req-{number}-1" for number in range(1, 6)]
        link.say(*(Started(name, 200, HEADERS) for name in names))
        for step in range(3):
            link.say(*(Chunk(name, b"%s:%d " % (name.encode(), step)) for name in names))
        for name in names:
            finish(link, name)
        for name, stream in zip(names, streams, strict=True):
            assert "".join(f"{name}:{step} " for step in range(3)).encode() == (await read_all(stream))[1]
        await settle_loop()
        house.assert_quiet()


async def test_records_that_come_again_are_booked_once() -> None:
    """A reconnect replays the outbox: same numbers, another copy; they are acknowledged again."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"x")
        await read_all(stream)
        await settle_loop()
        before = house.settlement.accounts.balance()
        link.fail(DEAD)
        await until(lambda: len(link.epochs) == 2)
        link.ready()
        link.repeat(
            [
                Numbered(1, usage_of("req-1-1")),
                Numbered(2, window_of(("req-1-1", 100, 10))),
                Numbered(3, posting_of("req-1-1")),
            ]
        )
        await until(lambda: len(link.acks) == 2)
        assert before == house.settlement.accounts.balance()
        assert ((1, 1, 3), [3, 3]) == (house.attempts_of("alpha"), link.acks[-2:])
        assert 3 == house.dispatcher.snapshot().duplicate_records
        house.assert_quiet()


# -- tried again


async def test_an_engine_error_before_the_first_byte_is_tried_elsewhere_unseen() -> None:
    """Not even its status reaches the client; what it executed is the operator's."""
    async with opened() as house:
        first, second = house.add("w-0"), house.add("w-1")
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(first, "req-1-1", b"Internal Server Error", is_final=False, status=500)
        finish(first, "req-1-1", outcome=FAILED, cause="engine_error", output_tokens=2, energy_mj=40)
        await settle_loop()
        assert ["req-1-2"] == [call.attempt_id for call in second.calls]
        answer(second, "req-1-2", b"fine")
        status, data, end = await read_all(stream)
        assert (200, b"fine", COMPLETED) == (status, data, end.outcome)
        await settle_loop()
        assert ((0, 1, 2), (1, 1, 3)) == (house.attempts_of(OPERATOR), house.attempts_of("alpha"))
        assert (40, 100) == (house.energy_of(OPERATOR), house.energy_of("alpha"))
        house.assert_quiet()


async def test_an_attempt_that_was_replaced_may_not_speak() -> None:
    """Its worker stalled and goes on after all: the client hears one of the two, never both."""
    async with opened() as house:
        first, second = house.add("w-0"), house.add("w-1")
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        first.say(Started("req-1-1", 200, HEADERS), Ended("req-1-1", FAILED, "stalled"))
        await settle_loop()
        assert ["req-1-2"] == [call.attempt_id for call in second.calls]
        first.say(Chunk("req-1-1", b"after all"))
        finish(first, "req-1-1", outcome=FAILED, cause="stalled", energy_mj=40)
        await settle_loop()
        answer(second, "req-1-2", b"fine")
        assert (200, b"fine") == (await read_all(stream))[:2]
        await settle_loop()
        assert (40, 100) == (house.energy_of(OPERATOR), house.energy_of("alpha"))
        house.assert_quiet()


async def test_an_engine_error_with_nowhere_else_to_go_is_a_failure_in_our_words() -> None:
    """The engine's own page stays here."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"Traceback: secret", is_final=False, status=500)
        finish(link, "req-1-1", outcome=FAILED, cause="engine_error")
        status, data, end = await read_all(stream)
        assert (None, b"", FAILED, "engine_error") == (status, data, end.outcome, end.cause)


async def test_a_failure_after_the_first_byte_ends_the_answer() -> None:
    """No second attempt may speak; the executed tokens are the request's."""
    async with opened() as house:
        link, other = house.add("w-0"), house.add("w-1")
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"half", is_final=False)
        finish(link, "req-1-1", outcome=FAILED, cause="engine_error")
        status, data, end = await read_all(stream)
        assert (200, b"half", FAILED, "engine_error") == (status, data, end.outcome, end.cause)
        assert ([], (1, 1, 3)) == (other.calls, house.attempts_of("alpha"))


async def test_a_worker_lost_before_the_first_byte_costs_the_client_nothing() -> None:
    """Retried once elsewhere; the tokens that were computed in vain are the operator's, by its last progress."""
    async with opened() as house:
        first, second = house.add("w-0"), house.add("w-1")
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        first.say(
            Started("req-1-1", 200, HEADERS),
            progress=[Progress("req-1-1", prompt_tokens=7, cached_tokens=0, computed_prompt_tokens=7, output_tokens=2)],
            records=(window_of(("req-1-1", 60, 6)),),
        )
        first.fail(DEAD)
        await settle_loop()
        assert ["req-1-2"] == [call.attempt_id for call in second.calls]
        answer(second, "req-1-2", b"fine")
        status, data, end = await read_all(stream)
        assert (200, b"fine", COMPLETED) == (status, data, end.outcome)
        assert ((0, 1, 2), (1, 1, 3)) == (house.attempts_of(OPERATOR), house.attempts_of("alpha"))
        await settle_loop()
        assert 60 == house.settlement.accounts.balance().in_flight_mj, "its worker may come back with the rest"
        await house.dispatcher.remove_link("w-0")
        assert (60, 100) == (house.energy_of(OPERATOR), house.energy_of("alpha"))
        house.assert_quiet()


async def test_a_worker_lost_after_the_first_byte_ends_the_answer_and_the_request_pays() -> None:
    """Failed with worker_lost; its executed tokens and their joules are accounted to the request."""
    async with opened() as house:
        link, other = house.add("w-0"), house.add("w-1")
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        link.say(
            Started("req-1-1", 200, HEADERS),
            Chunk("req-1-1", b"half"),
            progress=[Progress("req-1-1", prompt_tokens=7, cached_tokens=0, computed_prompt_tokens=7, output_tokens=2)],
            records=(window_of(("req-1-1", 60, 6)),),
        )
        link.fail(DEAD)
        status, data, end = await read_all(stream)
        assert (200, b"half", FAILED, "worker_lost") == (status, data, end.outcome, end.cause)
        assert end.charge is not None
        assert (False, 7, 2) == (end.charge.is_exact, end.charge.input_tokens, end.charge.output_tokens)
        assert ([], (1, 1, 2)) == (other.calls, house.attempts_of("alpha"))
        await house.dispatcher.remove_link("w-0")
        assert 60 == house.energy_of("alpha")
        house.assert_quiet()


async def test_a_worker_that_comes_back_posts_what_it_still_owed() -> None:
    """Its usage is late and changes nothing, its posting is the one that was waited for."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"half", is_final=False)
        link.fail(DEAD)
        await read_all(stream)
        await until(lambda: len(link.epochs) == 2)
        link.ready()
        link.say(records=(usage_of("req-1-1", outcome=ABORTED, cause="orphaned"),))
        link.say(records=(window_of(("req-1-1", 80, 8)), posting_of("req-1-1", 80, 8)))
        await until(lambda: link.acks)
        assert ((1, 1, 0), 80) == (house.attempts_of("alpha"), house.energy_of("alpha"))
        assert (0, 0, 0) == house.attempts_of(OPERATOR)
        assert [3] == link.acks[-1:]
        house.assert_quiet()


async def test_an_attempt_that_never_says_its_usage_is_given_up_while_its_worker_lives() -> None:
    """After its time its last progress is settled, and nothing of it stays in flight; late words change nothing."""
    async with opened(limits=Limits(final_timeout_s=30.0)) as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"all", is_final=False)
        link.say(Ended("req-1-1", COMPLETED), records=(window_of(("req-1-1", 60, 6)),))
        await settle_loop()
        house.now_s += 31.0
        link.ready()
        status, data, end = await read_all(stream)
        assert (200, b"all", COMPLETED, False) == (status, data, end.outcome, end.charge is None or end.charge.is_exact)
        assert 60 == house.energy_of("alpha")
        house.assert_quiet()
        link.say(records=(usage_of("req-1-1"), window_of(("req-1-1", 5, 1)), posting_of("req-1-1", 65, 7)))
        await settle_loop()
        assert ((1, 1, 0), 65) == (house.attempts_of("alpha"), house.energy_of("alpha"))
        house.assert_quiet()


# -- strangers


async def test_strangers_are_aborted_once_and_their_usage_is_the_operators() -> None:
    """Attempts of an earlier control plane: their bytes go nowhere, their tokens and joules have a payer."""
    async with opened() as house:
        link = house.add()
        link.say(Started("req-z-1", 200, HEADERS), Chunk("req-z-1", b"x"))
        link.say(Chunk("req-z-1", b"y"))
        await settle_loop()
        assert [("req-z-1", "orphaned")] == link.aborts
        link.say(Ended("req-z-1", ABORTED, "orphaned"), records=(usage_of("req-z-1", outcome=ABORTED),))
        link.say(records=(window_of(("req-z-1", 30, 3)), posting_of("req-z-1", 30, 3)))
        await settle_loop()
        assert ((0, 1, 3), 30) == (house.attempts_of(OPERATOR), house.energy_of(OPERATOR))
        assert [(OPERATOR, 1)] == [(row.tenant, row.attempts) for row in house.settlement.accounts.tenant_rows()]
        assert 0 == house.dispatcher.snapshot().open_attempts


async def test_a_posting_whose_usage_an_earlier_control_plane_had_leaves_nothing_in_flight() -> None:
    """Its charge was acknowledged there, and its posting comes here: the operator's, for nobody here can know more."""
    async with opened() as house:
        link = house.add()
        link.say(records=(window_of(("req-z-1", 30, 3)), posting_of("req-z-1", 50, 5)))
        await settle_loop()
        balance = house.settlement.accounts.balance()
        assert (0, 30, 0) == (balance.in_flight_mj, house.energy_of(OPERATOR), balance.posting_difference_mj)
        assert 0 == house.dispatcher.snapshot().open_attempts


async def test_a_bad_window_is_named_and_nothing_of_it_is_booked(caplog: pytest.LogCaptureFixture) -> None:
    """What came with it is booked, and the worker may forget all of it: a repetition would be no better."""
    async with opened() as house:
        link = house.add()
        link.say(records=(window_of(meter_mj=1), window_of()))
        await settle_loop()
        found = house.dispatcher.snapshot()
        assert (1, 73, [2]) == (found.bad_windows, found.balance.meter_mj, link.acks)
        assert "does not add up" in caplog.text


# -- readers that go


async def test_a_client_that_leaves_aborts_its_attempt() -> None:
    """Under its own reason; what it executed is charged to it."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"half", is_final=False)
        await settle_loop()
        stream.close("client_gone")
        await settle_loop()
        assert [("req-1-1", "client_gone")] == link.aborts
        link.say(Chunk("req-1-1", b"more"))
        finish(link, "req-1-1", outcome=ABORTED, cause="client_gone")
        _, data, end = await read_all(stream)
        assert (b"", ABORTED, "client_gone") == (data, end.outcome, end.cause)
        await settle_loop()
        assert (1, 1, 3) == house.attempts_of("alpha")
        house.assert_quiet()


async def test_a_client_that_leaves_while_it_waits_costs_nothing() -> None:
    """It ends at once and never reaches a worker."""
    async with opened() as house:
        stream = house.submit()
        stream.close("client_gone")
        end = (await read_all(stream))[2]
        assert (ABORTED, "client_gone", None) == (end.outcome, end.cause, end.charge)
        link = house.add()
        await settle_loop()
        assert [] == link.calls
        stream.close("again")


async def test_a_slow_reader_is_muted_and_aborted() -> None:
    """Memory stays bounded: what still comes is dropped, the end names the reason, others are not touched."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        slow, quick = house.submit(), house.submit()
        await settle_loop()
        for name in ("req-1-1", "req-2-1"):
            answer(link, name, b"x" * (MAX_UNREAD_BYTES - 1), is_final=False)
        await settle_loop()
        assert [Head, Body] == [type(await quick.next(1.0)) for _ in range(2)]
        for _ in range(3):
            link.say(Chunk("req-1-1", b"yy"), Chunk("req-2-1", b"yy"))
        await settle_loop()
        assert [("req-1-1", "slow_reader")] == link.aborts
        assert [Head, Body] == [type(await slow.next(1.0)) for _ in range(2)]
        link.say(Chunk("req-1-1", b"after a hole"))
        finish(link, "req-1-1", outcome=ABORTED, cause="slow_reader")
        finish(link, "req-2-1")
        _, data, end = await read_all(slow)
        assert (b"", ABORTED, "slow_reader") == (data, end.outcome, end.cause)
        assert b"yyyyyy" == (await read_all(quick))[1]


async def test_a_reader_that_was_muted_never_sees_a_whole_answer() -> None:
    """The engine may have finished before it heard of the abort: bytes are missing, so it is not completed."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"x" * MAX_UNREAD_BYTES, is_final=False)
        link.say(Chunk("req-1-1", b"[DONE]"), Ended("req-1-1", COMPLETED), records=(usage_of("req-1-1"),))
        end = (await read_all(stream))[2]
        assert (ABORTED, "slow_reader") == (end.outcome, end.cause)


# -- refusals and failures of ours


async def test_a_refusal_is_the_only_item_and_comes_at_once() -> None:
    """No commit is waited for: nothing was booked."""
    async with opened() as house:
        house.settlement.gate.clear()
        house.core.drain(house.now_s)
        end = (await read_all(house.submit()))[2]
        assert end.rejection is not None
        assert (None, "shutting_down", "shutting_down") == (end.outcome, end.cause, end.rejection.reason)


async def test_a_body_that_cannot_be_rendered_is_settled_and_leaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets its end, the error's text stays out of log and end, and no worker hears of it."""
    caplog.set_level(logging.DEBUG)

    def render(max_output_tokens: int, priority: int) -> bytes:
        raise ValueError("CANARY: the prompt")

    async with opened() as house:
        link = house.add()
        await settle_loop()
        end = (await read_all(house.submit(render=render)))[2]
        assert (FAILED, "render_failed") == (end.outcome, end.cause)
        assert ([], (0, 1, 0)) == (link.calls, house.attempts_of(OPERATOR))
        house.assert_quiet()
        assert "CANARY" not in caplog.text
        assert "ValueError" in caplog.text
        fine = house.submit()
        await settle_loop()
        answer(link, "req-2-1", b"x")
        assert COMPLETED is (await read_all(fine))[2].outcome


async def test_a_failure_in_the_wake_of_an_answer_is_not_charged_with_its_usage() -> None:
    """What the end of one attempt makes room for is another attempt's matter."""

    def render(max_output_tokens: int, priority: int) -> bytes:
        raise ValueError("no")

    async with opened() as house:
        link = house.add(max_running=1)
        await settle_loop()
        first, second = house.submit(), house.submit(render=render)
        await settle_loop()
        answer(link, "req-1-1", b"x")
        charges = [(await read_all(stream))[2].charge for stream in (first, second)]
        assert [("req-1-1", 9, 7), ("req-2-1", None, 0)] == [
            (charge.attempt_id, charge.scheduled_tokens, charge.input_tokens) for charge in charges if charge
        ]
        await settle_loop()
        house.assert_quiet()


class Orders(Scheduler):
    """The core, with orders that a test puts into its next tick."""

    def __init__(self) -> None:
        super().__init__(models=[MODEL])
        self.orders: list[Action] = []

    def tick(self, now_s: float) -> list[Action]:
        orders, self.orders = self.orders, []
        return [*super().tick(now_s), *orders]


async def test_orders_to_park_and_to_wake_reach_their_worker_with_their_reasons() -> None:
    """In order, and nobody else."""
    async with opened(core=(core := Orders())) as house:
        link, other = house.add("w-0"), house.add("w-1")
        await settle_loop()
        core.orders = [ParkWorker(worker_id="w-0", reason="quiet"), WakeWorker(worker_id="w-0", reason="busy")]
        await until(lambda: len(link.commands) == 2)
        assert ([Park(reason="quiet"), Wake(reason="busy")], []) == (link.commands, other.commands)


async def test_who_is_refused_by_a_parked_worker_is_answered_by_another() -> None:
    """The client sees one answer; the attempt that never ran is the operator's, and costs nothing."""
    async with opened() as house:
        link = house.add("w-0")
        await settle_loop()
        stream = house.submit()
        await until(lambda: link.calls)
        link.say(
            Ended("req-1-1", FAILED, "worker_parked"),
            records=(usage_of("req-1-1", outcome=FAILED, cause="worker_parked", output_tokens=0, prompt_tokens=0),),
            status=status_of("w-0", WorkerState.PARKED),
        )
        await settle_loop()
        assert (1, 0) == (house.dispatcher.snapshot().bounced, house.dispatcher.snapshot().retried)
        other = house.add("w-1")
        await until(lambda: other.calls)
        answer(other, "req-1-2", b"x")
        status, data, end = await read_all(stream)
        assert (200, b"x", COMPLETED) == (status, data, end.outcome)
        link.say(records=(posting_of("req-1-1", 0, 0),))
        await settle_loop()
        assert (1, 2) == (house.attempts_of("alpha")[0], house.dispatcher.snapshot().dispatched)
        house.assert_quiet()


async def test_a_tick_that_fails_is_followed_by_the_next(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the whole plane must not stop for one mistake."""
    async with opened() as house:
        num_ticks = 0
        tick = house.core.tick

        def failing(now_s: float) -> list:  # type: ignore[type-arg]
            nonlocal num_ticks
            num_ticks += 1
            if num_ticks == 1:
                raise KeyError("a mistake")
            return tick(now_s)

        monkeypatch.setattr(house.core, "tick", failing)
        await until(lambda: num_ticks >= 2)
        assert "a tick failed" in caplog.text


async def test_time_alone_ends_what_waits() -> None:
    """The clock drives the core: a deadline passes without any event."""
    async with opened() as house:
        stream = house.submit(deadline_s=house.now_s + 5.0)
        house.now_s += 6.0
        end = (await read_all(stream))[2]
        assert end.rejection is not None
        assert "deadline_exceeded" == end.rejection.reason


# -- workers come and go


async def test_a_removed_worker_hands_its_requests_on() -> None:
    """Attempts are retried elsewhere or ended, its name is free again, its in-flight account empty."""
    async with opened() as house:
        first = house.add("w-0")
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        second = house.add("w-1")
        first.say(records=(window_of(("req-1-1", 60, 6)),))
        await settle_loop()
        await house.dispatcher.remove_link("w-0")
        await settle_loop()
        assert ["req-1-2"] == [call.attempt_id for call in second.calls]
        assert ["w-1"] == [worker.worker_id for worker in house.dispatcher.snapshot().workers]
        assert (60, 0) == (house.energy_of(OPERATOR), house.settlement.accounts.balance().in_flight_mj)
        answer(second, "req-1-2", b"fine")
        await read_all(stream)
        house.add("w-0", incarnation="life-2")
        await settle_loop()
        house.assert_quiet()
        await house.dispatcher.remove_link("w-9")


async def test_a_worker_that_was_replaced_while_it_is_removed_keeps_its_successor() -> None:
    """Removing waits for the old link's end, and a gone worker's name may be taken meanwhile."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        for _ in range(4):
            link.fail(DEAD)
        connection = house.dispatcher._connections["w-0"]
        connection._reconnect_delays_s = ()
        link.fail(DEAD)
        await until(lambda: connection.phase.value == "gone")
        removal = asyncio.create_task(house.dispatcher.remove_link("w-0"))
        await asyncio.sleep(0)
        successor = house.add(incarnation="life-2")
        await removal
        await settle_loop()
        house.submit()
        await settle_loop()
        assert 1 == len(successor.calls)


async def test_a_living_link_is_not_replaced() -> None:
    """Two links of one worker would fence each other off for ever."""
    async with opened() as house:
        house.add()
        await settle_loop()
        with pytest.raises(ValueError, match="w-0 has a link already"):
            house.add()


async def test_a_gone_worker_is_reported_once_and_leaves_nothing_in_flight() -> None:
    """After its last try, or when it says that it stopped; the name can be used again at once."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        house.dispatcher._connections["w-0"]._reconnect_delays_s = ()
        link.say(records=(window_of(("req-z-1", 60, 6)),))
        link.fail(DEAD)
        await settle_loop()
        assert [("w-0", "worker_lost")] == house.down
        assert (60, 0) == (house.energy_of(OPERATOR), house.settlement.accounts.balance().in_flight_mj)
        successor = house.add(incarnation="life-2")
        await settle_loop()
        for _ in range(2):
            successor.say(status=status_of(state=WorkerState.STOPPED, cause="engine died"))
        await settle_loop()
        assert [("w-0", "worker_lost"), ("w-0", "engine died")] == house.down


async def test_a_successors_records_count_from_one_again() -> None:
    """Another incarnation has an outbox of its own."""
    async with opened() as house:
        link = house.add(incarnation="life-1")
        link.say(records=(window_of(),))
        await settle_loop()
        await house.dispatcher.remove_link("w-0")
        successor = house.add(incarnation="life-2")
        successor.say(records=(window_of(),))
        await until(lambda: successor.acks)
        assert (2, 0) == (house.settlement.accounts.balance().num_windows, house.settlement.duplicates_total)
        assert [1] == successor.acks


async def test_a_worker_of_a_newer_control_plane_is_let_go() -> None:
    """What ran there ends, nothing stays in flight here, and no successor is asked for."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"half", is_final=False)
        link.fail(StaleEpoch(given=1, current=2))
        end = (await read_all(stream))[2]
        assert FAILED is end.outcome
        assert ([], [], 0) == (house.down, link.aborts, house.dispatcher.snapshot().open_attempts)
        assert "fenced" == house.dispatcher.snapshot().workers[0].phase


async def test_epochs_rise_above_those_of_every_earlier_plane() -> None:
    """By this host's clock in milliseconds, and by one within it."""
    async with opened() as house:
        first, second = house.add("w-0"), house.add("w-1")
        await settle_loop()
        first.fail(DEAD)
        await until(lambda: len(first.epochs) == 2)
        assert ([5000, 5002], [5001]) == (first.epochs, second.epochs)


# -- the stop


async def test_a_stop_lets_what_runs_end_and_refuses_the_rest() -> None:
    """Within its drain time; the workers stay."""
    async with opened() as house:
        link = house.add(max_running=1)
        await settle_loop()
        running, waiting = house.submit(), house.submit()
        await settle_loop()
        stop = asyncio.create_task(house.dispatcher.stop(drain_s=30.0))
        rejection = (await read_all(waiting))[2].rejection
        assert rejection is not None
        assert "shutting_down" == rejection.reason
        late = (await read_all(house.submit()))[2]
        assert "shutting_down" == late.cause
        answer(link, "req-1-1", b"fine")
        assert (b"fine", COMPLETED) == (lambda read: (read[1], read[2].outcome))(await read_all(running))
        await stop
        assert ([], 0) == (link.aborts, link.num_stops)


async def test_a_stop_aborts_what_does_not_end_in_time_and_settles_it() -> None:
    """First by asking its worker; a worker that does not answer either is not waited for."""
    async with opened() as house:
        polite, silent = house.add("w-0"), house.add("w-1")
        await settle_loop()
        streams = [house.submit(), house.submit()]
        await settle_loop()
        assert [1, 1] == [len(link.calls) for link in (polite, silent)]
        stop = asyncio.create_task(house.dispatcher.stop(drain_s=30.0))
        await settle_loop()
        house.now_s += 31.0
        await until(lambda: bool(polite.aborts and silent.aborts))
        finish(polite, polite.aborts[0][0], outcome=ABORTED, cause="shutting_down", output_tokens=1)
        await settle_loop()
        house.now_s += 6.0
        await stop
        ends = [(await read_all(stream))[2] for stream in streams]
        assert [(ABORTED, "shutting_down")] * 2 == [(end.outcome, end.cause) for end in ends]
        assert (0, 0) == (house.core.num_open, house.core.num_running)
        assert (0, 2, 1) == house.attempts_of(OPERATOR)


async def test_a_stop_ends_every_answer_even_while_a_commit_is_under_way() -> None:
    """It waits for the disk, not only for its own part of it."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        house.settlement.gate.clear()
        answer(link, "req-1-1", b"x")
        await until(lambda: house.settlement.is_charged("req-1-1"))
        await settle_loop()
        stop = asyncio.create_task(house.dispatcher.stop())
        await settle_loop()
        assert not stop.done()
        house.settlement.gate.set()
        await stop
        assert COMPLETED is (await read_all(stream))[2].outcome


class StoppingLink(ScriptedLink):
    """On stop it says its last window and, once that is acknowledged, that it is empty."""

    async def stop(self, *, drain_s: float = 0.0) -> None:
        await super().stop(drain_s=drain_s)
        self.say(
            records=(window_of(("req-1-1", 70, 7)), posting_of("req-1-1", 70, 7)),
            status=status_of(self.worker_id, WorkerState.STOPPED, outbox_depth=2),
        )

    async def send(self, commands: list[Abort | Ack]) -> None:  # type: ignore[override]
        await super().send(commands)  # type: ignore[arg-type]
        if self.num_stops and any(isinstance(command, Ack) for command in commands):
            self.say(status=status_of(self.worker_id, WorkerState.STOPPED, outbox_depth=0))


async def test_a_stop_of_the_workers_reads_on_until_their_last_windows_are_booked() -> None:
    """Each is asked; one that fails does not keep the others; everything has its place afterwards."""
    async with opened() as house:
        link = StoppingLink()
        house.dispatcher.add_link(link)
        link.ready()
        broken = house.add("w-1")
        broken.stop_error = RuntimeError("no such actor")
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        answer(link, "req-1-1", b"x", is_final=False)
        link.say(Ended("req-1-1", COMPLETED), records=(usage_of("req-1-1"),))
        await read_all(stream)
        stop = asyncio.create_task(house.dispatcher.stop(stop_workers=True))
        await until(lambda: [3] == link.acks[-1:])
        house.now_s += 6.0  # the other one never says that it stopped
        await stop
        assert (1, 1, 70) == (link.num_stops, broken.num_stops, house.energy_of("alpha"))
        assert ([], []) == (house.down, list(house.dispatcher.snapshot().workers))
        house.assert_quiet()


async def test_a_stop_after_the_stop_changes_nothing() -> None:
    """And no task of it is left."""
    before = asyncio.all_tasks()
    house = House()
    await house.dispatcher.start()
    house.add()
    await settle_loop()
    await house.dispatcher.stop()
    await house.dispatcher.stop()
    await settle_loop()
    assert before == asyncio.all_tasks()


# -- the ledger


async def test_the_first_byte_waits_until_the_hold_is_durable() -> None:
    """The engine computes meanwhile; who waits with a timer is not woken for what it may not have."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        house.settlement.is_durable = lambda seq: False  # type: ignore[method-assign]
        house.settlement.gate.clear()
        stream = house.submit()
        await settle_loop()
        assert ["req-1"] == list(house.settlement.books.holds)
        assert 1 == len(link.calls), "the prefill does not wait for a disk"
        reader = asyncio.create_task(stream.next(60.0))
        answer(link, "req-1-1", b"x", is_final=False)
        await settle_loop()
        assert not reader.done()
        house.settlement.gate.set()
        assert [Head(200, HEADERS), Body(b"x")] == [await reader, await stream.next(1.0)]
        finish(link, "req-1-1")
        assert isinstance(await stream.next(1.0), End)
        assert {} == house.settlement.books.holds


async def test_a_hold_is_written_once_and_given_back_where_nothing_was_charged() -> None:
    """However often it is tried; of whoever never started there is none."""
    rows: list[Row] = []
    async with opened() as house:
        append = house.settlement.journal.append
        house.settlement.journal.append = lambda row: (rows.append(row), append(row))[1]  # type: ignore[method-assign]
        links = [house.add(name) for name in ("w-0", "w-1")]
        await settle_loop()
        stream = house.submit()
        await settle_loop()
        (first,) = [link for link in links if link.calls]
        first.fail(DEAD)
        await settle_loop()
        stream.close("client_gone")
        second = links[1 - links.index(first)]
        await settle_loop()
        finish(second, "req-1-2", outcome=ABORTED, cause="client_gone", output_tokens=0)
        assert isinstance(await stream.next(1.0), End)
    kinds = [row.kind for row in rows if row.kind in ("hold", "void", "charge")]
    assert ("hold", 1, 1) == (kinds[0], kinds.count("hold"), kinds.count("void") + sum(
        isinstance(row, Charge) and row.account == "alpha" for row in rows
    ))  # fmt: skip
    assert {} == house.settlement.books.holds


async def test_while_the_ledger_cannot_be_written_nothing_new_begins(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes is refused, who waits goes on waiting; it is said once, and again when it is over."""
    failures = [OSError("disk full")]

    async def commit() -> None:
        if failures:
            raise failures[0]

    async with opened() as house:
        link = house.add(max_running=1)
        await settle_loop()
        running, waiting = house.submit(), house.submit()
        await settle_loop()
        house.dispatcher._committer._retry_s = 0.0
        monkeypatch.setattr(house.settlement, "commit", commit)
        with caplog.at_level(logging.INFO, logger="jouleway.dispatcher"):
            link.say(records=(window_of(),))
            await until(lambda: bool(house.dispatcher.ledger_problem))
            answer(link, "req-1-1", b"x")
            await settle_loop()
            assert "OSError: disk full" == house.dispatcher.snapshot().ledger_problem
            refused = await house.submit().next(1.0)
            assert isinstance(refused, End)
            assert refused.rejection is not None
            assert ("ledger_unavailable", 503) == (refused.rejection.reason, refused.rejection.status)
            await settle_loop()
            assert 1 == len(link.calls), "req-2 waits, although there is room"
            failures.clear()
            assert isinstance((await read_all(running))[2], End)
            house.now_s += 1.0
            await until(lambda: len(link.calls) == 2)
        assert "" == house.dispatcher.snapshot().ledger_problem
        answer(link, "req-2-1", b"y")
        assert COMPLETED == (await read_all(waiting))[2].outcome
    assert 1 == caplog.text.count("ledger: OSError: disk full")
    assert 1 == caplog.text.count("ledger: writable again")


def hold_back(house: House) -> None:
    """From now on holds are not durable."""
    house.settlement.is_durable = lambda seq: False  # type: ignore[method-assign]
    house.settlement.gate.clear()


async def test_what_nobody_saw_is_tried_again() -> None:
    """The hold is not durable yet: the worker dies after its first bytes, another one answers from the beginning."""
    async with opened() as house:
        links = house.add("w-0"), house.add("w-1")
        await settle_loop()
        hold_back(house)
        stream = house.submit()
        await settle_loop()
        first = next(link for link in links if link.calls)
        answer(first, "req-1-1", b"half", is_final=False)
        await settle_loop()
        first.fail(DEAD)
        second = next(link for link in links if link is not first)
        await until(lambda: second.calls)
        answer(second, "req-1-2", b"whole")
        await settle_loop()
        house.settlement.gate.set()
        status, body, end = await read_all(stream)
        assert (200, b"whole", COMPLETED) == (status, body, end.outcome)
        assert (1, 1) == (house.attempts_of("alpha")[1], house.attempts_of(OPERATOR)[1])


async def test_whoever_was_kept_from_its_answer_does_not_pay() -> None:
    """Its deadline passes while the hold is not durable: no byte of what came is said, and the operator pays."""
    async with opened() as house:
        link = house.add()
        await settle_loop()
        hold_back(house)
        stream = house.submit(deadline_s=house.now_s + 5.0)
        await settle_loop()
        answer(link, "req-1-1", b"half", is_final=False)
        await settle_loop()
        house.now_s += 6.0
        await until(lambda: link.aborts)
        link.say(Chunk("req-1-1", b"more"))
        finish(link, "req-1-1", outcome=ABORTED)
        await settle_loop()
        house.settlement.gate.set()
        status, body, end = await read_all(stream)
        assert (None, b"") == (status, body)
        assert COMPLETED is not end.outcome
        assert (0, 1) == (house.attempts_of("alpha")[1], house.attempts_of(OPERATOR)[1])
