"""One worker from start to stop: what it says and when, whom it obeys, and that nothing is left over."""

import asyncio
import time

import pytest

from tests.scripted_worker import START, House, body, ready
from workers import attempts as attempts_module
from workers import worker as worker_module
from workers.errors import EngineStartError, MeterUnavailable, StaleEpoch, WireMismatch
from workers.types import (
    WIRE_VERSION,
    Abort,
    Ack,
    Chunk,
    Ended,
    EnergyPosting,
    Grade,
    Outcome,
    Progress,
    Report,
    Started,
    UsageRecord,
    WindowRecord,
    WorkerState,
)


@pytest.fixture(autouse=True)
def _short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "ABORT_GRACE_S", 0.02)
    monkeypatch.setattr(worker_module, "END_GRACE_S", 0.05)


# -- start


async def test_a_worker_says_how_its_start_goes_and_what_it_is() -> None:
    """Starting, calibrating, ready: the last status names engine, meter, grade and every step down."""
    async with ready(calibration_s=7.0) as house:
        assert [7.0] == house.engine.calibrated_s
        assert WorkerState.STARTING in house.states
        status = house.last_status
        assert ("scripted", "scripted:counter", Grade.A, True) == (
            status.info and status.info.engine,
            status.meter,
            status.grade,
            status.meter_up,
        )
        assert {"hook: aggregate", "nvml: not here"} <= set(status.health)


async def test_an_engine_that_does_not_start_leaves_nothing_behind() -> None:
    """The error is raised, the cause carries the engine's last lines, and the engine is told to stop."""
    house = House()
    house.connect()
    house.engine.start_error = EngineStartError("no weights", last_lines=("OSError: model.safetensors",))
    with pytest.raises(EngineStartError):
        await house.worker.start()
    await house.until(lambda: WorkerState.STOPPED in house.states)
    assert "OSError: model.safetensors" in house.last_status.cause
    assert (1, True) == (house.engine.num_stops, house.worker.stopped.is_set())
    await house.close()


async def test_a_meter_that_cannot_be_opened_stops_the_engine_again() -> None:
    """An engine that is up but cannot be metered would hold its GPU for ever."""
    house = House()
    house.open_error = MeterUnavailable("no driver")
    with pytest.raises(MeterUnavailable):
        await house.worker.start()
    assert 1 == house.engine.num_stops
    assert "start failed: MeterUnavailable: no driver" == house.worker.status().cause
    await house.close()


async def test_a_stop_ends_a_start_that_is_still_under_way() -> None:
    """Loading weights takes minutes: nobody waits for them to be told to go."""
    house = House()
    house.engine.start_gate.clear()
    starting = asyncio.create_task(house.worker.start())
    await asyncio.sleep(0)
    await house.worker.stop(cause="changed our mind")
    with pytest.raises(EngineStartError, match="changed our mind"):
        await starting
    assert WorkerState.STOPPED is house.worker.status().state
    assert 1 == house.engine.num_stops


# -- attempts


async def test_an_attempt_is_streamed_charged_and_posted_once() -> None:
    """Start, bytes, end; one usage; one posting of what its windows put in flight; nothing stays in flight."""
    async with ready() as house:
        house.call("a-1")
        house.engine.say("a-1", START, body(b"x"))
        await house.until(lambda: Chunk("a-1", b"x") in house.outputs)
        house.engine.step("a-1")
        house.engine.say("a-1", body(b"y"), None)
        postings: list[EnergyPosting] = []
        await house.until(lambda: any(isinstance(each.record, EnergyPosting) for each in house.records))
        postings = [each.record for each in house.records if isinstance(each.record, EnergyPosting)]
        assert [Started("a-1", 200, []), Chunk("a-1", b"x"), Chunk("a-1", b"y"), Ended("a-1", Outcome.COMPLETED)] == [
            *house.outputs
        ]
        (usage,) = house.usages()
        assert (Outcome.COMPLETED, 10, 4, 3) == (
            usage.outcome,
            usage.input_tokens,
            usage.cached_tokens,
            usage.output_tokens,
        )
        windows = [each.record for each in house.records if isinstance(each.record, WindowRecord)]
        shares = [energy_mj for window in windows for name, energy_mj, _ in window.shares if name == "a-1"]
        assert [sum(shares)] == [posting.energy_mj for posting in postings]
        assert sum(shares) > 0
        assert [*range(1, len(house.records) + 1)] == [each.number for each in house.records]
        await house.until(lambda: house.worker.status().outbox_depth == 0)


async def test_all_requests_of_one_step_leave_in_one_item() -> None:
    """Ray carries thousands of items a second, not thousands of tokens: a step is one item."""
    async with ready(max_running=64) as house:
        names = [f"a-{number}" for number in range(50)]
        house.call(*names)
        for name in names:
            house.engine.say(name, START)
        await house.until(lambda: sum(isinstance(output, Started) for output in house.outputs) == len(names))
        house.heard.clear()
        for name in names:
            house.engine.say(name, body(b"t"))
        await house.until(lambda: len(house.outputs) == len(names))
        assert 1 == sum(bool(report.outputs) for report in house.heard)


@pytest.mark.parametrize("is_closed_first", [True, False])
async def test_a_charge_waits_for_both_endings(is_closed_first: bool) -> None:
    """The bytes' end and the closing step record come by two ways, in any order."""
    async with ready() as house:
        house.engine.closes = False
        house.call("a-1")
        house.engine.say("a-1", START, body(b"x"))
        await house.until(lambda: house.outputs)
        if is_closed_first:
            house.engine.close("a-1")
            await asyncio.sleep(0.01)
            assert [] == house.usages()
            house.engine.say("a-1", None)
        else:
            house.engine.say("a-1", None)
            await house.until(house.ends)
            await asyncio.sleep(0.01)
            assert [] == house.usages()
            house.engine.close("a-1")
        await house.until(house.usages)
        house.engine.close("a-1")
        await asyncio.sleep(0.005)
        assert 1 == len(house.usages())


async def test_a_full_worker_refuses_and_says_so() -> None:
    """The worker has the last word: its caller's picture is old. What runs is not disturbed."""
    async with ready(max_running=2) as house:
        house.call("a-1", "a-2", "a-3")
        await house.until(house.ends)
        assert [Ended("a-3", Outcome.FAILED, "worker_busy")] == house.ends()
        house.engine.say("a-1", START, body(b"x"), None)
        await house.until(lambda: len(house.ends()) == 2)
        house.call("a-4")
        house.engine.say("a-4", START, None)
        await house.until(lambda: len(house.ends()) == 3)
        assert Outcome.COMPLETED is house.ends()[-1].outcome


async def test_a_worker_that_is_not_up_refuses() -> None:
    """A call that comes too early ends at once, with the state as its cause, and is charged nothing."""
    house = House()
    house.engine.start_gate.clear()
    house.connect()
    starting = asyncio.create_task(house.worker.start())
    await house.until(lambda: house.worker.epoch == 1)
    house.call("a-1")
    await house.until(house.usages)
    assert ("worker_starting", 0) == (house.usages()[0].cause, house.usages()[0].input_tokens)
    await house.close()
    with pytest.raises(EngineStartError):
        await starting


async def test_the_same_call_twice_runs_once() -> None:
    """Ray does not promise exactly-once calls; an attempt has its own id."""
    async with ready() as house:
        house.call("a-1", "a-1")
        house.engine.say("a-1", START, None, START, None)
        await house.until(house.usages)
        await asyncio.sleep(0.005)
        assert ["a-1"] == house.engine.ended


@pytest.mark.parametrize("obeys", [True, False])
async def test_an_abort_ends_an_attempt_also_against_its_engine(obeys: bool) -> None:
    """The engine hears a disconnect; where it does not obey, its task is cancelled. What ran is charged."""
    async with ready() as house:
        house.engine.obeys = obeys
        house.call("a-1")
        house.engine.say("a-1", START, body(b"x"))
        await house.until(lambda: len(house.outputs) >= 2)
        house.worker.command(1, [Abort(attempt_id="a-1", reason="client_gone"), Abort(attempt_id="?", reason="x")])
        await house.until(house.usages)
        (usage,) = house.usages()
        assert (Outcome.ABORTED, "client_gone", 3) == (usage.outcome, usage.cause, usage.output_tokens)


async def test_progress_travels_at_most_four_times_a_second() -> None:
    """Credit is trued up by it; the first word of an attempt is not held back for a second."""
    async with ready() as house:
        progress = Progress("a-1", 10, 4, 6, 1)
        house.engine.told = [progress]
        await house.until(lambda: any(progress in report.progress for report in house.heard))


# -- connections


async def test_a_cancelled_reader_is_gone_although_something_happens_in_the_same_turn() -> None:
    """A reader that went on would take what the next connection must hear."""
    async with ready() as house:
        reader = house.connect(2)
        await house.until(lambda: house.states[-1] is WorkerState.READY and house.worker.epoch == 2)
        await asyncio.sleep(0.005)
        house.worker.on_dropped(1)
        house.worker._dirty.set()
        reader.cancel()
        await asyncio.wait({reader}, timeout=0.5)
        assert reader.cancelled()


async def test_a_newer_connection_ends_the_older_before_it_takes_anything() -> None:
    """What happens after the new connection is never given to the old one; what ran for the old one is aborted."""
    async with ready() as house:
        old = house.connect(2)
        await house.until(lambda: house.worker.epoch == 2)
        house.call("a-1", epoch=2)
        house.engine.say("a-1", START, body(b"x"))
        await house.until(lambda: len(house.outputs) >= 2)
        num_heard = len(house.heard)
        new_reports: list[Report] = []

        async def read_new() -> None:
            async for report in house.worker.reports(3):
                new_reports.append(report)

        new = asyncio.create_task(read_new())
        with pytest.raises(StaleEpoch) as caught:
            await old
        assert (2, 3) == (caught.value.given, caught.value.current)
        assert num_heard == len(house.heard)
        await house.until(
            lambda: any(isinstance(each.record, UsageRecord) for report in new_reports for each in report.records)
        )
        ends = [output for report in new_reports for output in report.outputs if isinstance(output, Ended)]
        assert [Ended("a-1", Outcome.ABORTED, "orphaned")] == ends
        new.cancel()
        await asyncio.gather(new, return_exceptions=True)


async def test_commands_of_an_older_connection_are_refused() -> None:
    """Two control planes never both command a worker."""
    async with ready() as house:
        for epoch in (0, 2):
            with pytest.raises(StaleEpoch):
                house.call("a-1", epoch=epoch)
        house.connect(5)
        await house.until(lambda: house.worker.epoch == 5)
        with pytest.raises(StaleEpoch):
            house.call("a-1", epoch=1)
        assert {} == house.engine.queues


@pytest.mark.parametrize("epoch", [0, 1])
async def test_a_connection_that_is_not_newer_is_refused(epoch: int) -> None:
    """An epoch is used once; an older control plane cannot take its worker back."""
    async with ready() as house:
        with pytest.raises(StaleEpoch):
            await anext(house.worker.reports(epoch))
        assert 1 == house.worker.epoch


async def test_another_wire_version_does_not_connect() -> None:
    """Nothing is fenced off by somebody who could not be understood."""
    async with ready() as house:
        with pytest.raises(WireMismatch):
            await anext(house.worker.reports(9, WIRE_VERSION + 1))
        assert 1 == house.worker.epoch


async def test_unacknowledged_records_are_replayed_under_their_numbers() -> None:
    """The next connection hears them again; what was acknowledged it does not."""
    house = House(window_s=60.0)
    first = house.connect(1, acks=False)
    await house.worker.start()
    house.call("a-1", "a-2")
    for name in ("a-1", "a-2"):
        house.engine.say(name, START, None)
    await house.until(lambda: len(house.usages()) == 2)
    sent = house.records
    house.worker.command(1, [Ack(number=sent[0].number)])
    house.heard.clear()
    house.connect(2)
    await house.until(lambda: len(house.records) >= len(sent) - 1)
    assert sent[1:] == house.records[: len(sent) - 1]
    await asyncio.gather(first, return_exceptions=True)
    await house.close()


async def test_a_long_replay_does_not_wait_between_items() -> None:
    """Thousands of records leave as fast as they are read, not a thousand a second."""
    house = House(window_s=60.0)
    connected = house.connect(1, acks=False)
    await house.worker.start()
    outbox = house.worker._outbox
    for number in range(2_500):
        outbox.put(UsageRecord(attempt_id=f"r-{number}", outcome=Outcome.COMPLETED))
    house.heard.clear()
    before_s = time.monotonic()
    house.connect(2)
    await house.until(lambda: len(house.usages()) >= 2_500)
    assert time.monotonic() - before_s < 0.9
    await asyncio.gather(connected, return_exceptions=True)
    await house.close()


async def test_a_reader_that_does_not_read_holds_the_engine_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: the engine's send waits until somebody takes what is there. That is no stall."""
    monkeypatch.setattr(worker_module.OutputBuffer.__init__, "__kwdefaults__", {"max_bytes": 1_000})
    async with ready(stall_timeout_s=0.02) as house:
        stalled = house.connect(2)
        await house.until(lambda: house.worker.epoch == 2)
        stalled.cancel()
        await asyncio.gather(stalled, return_exceptions=True)
        house.call("a-1", epoch=2)
        house.engine.say("a-1", START, *[body(b"x" * 400) for _ in range(50)], None)
        await asyncio.sleep(0.06)
        assert house.engine.queues["a-1"].qsize() >= 46
        assert WorkerState.READY is house.worker.status().state
        house.heard.clear()
        house.connect(3)
        await house.until(house.ends)


# -- the watch


async def test_a_stalled_engine_makes_the_worker_sick_and_a_step_heals_it() -> None:
    """What runs is failed, so that it is tried elsewhere; what comes is refused until the engine steps again."""
    async with ready(stall_timeout_s=0.03) as house:
        house.call("a-1")
        await house.until(lambda: WorkerState.SICK in house.states)
        assert "no step for 0 s with 1 running" == house.last_status.cause
        await house.until(house.usages)
        assert (Outcome.FAILED, "stalled") == (house.usages()[0].outcome, house.usages()[0].cause)
        house.call("a-2")
        await house.until(lambda: len(house.ends()) == 2)
        assert "worker_sick" == house.ends()[-1].cause
        house.engine.step()
        await house.until(lambda: house.states[-1] is WorkerState.READY)
        assert "" == house.last_status.cause


async def test_steps_keep_a_busy_worker_well() -> None:
    """Long requests are no stall while the engine steps; nor is an idle worker sick."""
    async with ready(stall_timeout_s=0.1) as house:
        await asyncio.sleep(0.12)
        house.call("a-1")
        for _ in range(6):
            await asyncio.sleep(0.02)
            house.engine.step("a-1")
        assert WorkerState.SICK not in house.states


async def test_an_engine_that_stays_hung_is_given_up() -> None:
    """Sick for as long again: the worker stops with its cause, and whoever started it starts another."""
    async with ready(stall_timeout_s=0.03) as house:
        house.call("a-1")
        await house.until(lambda: WorkerState.STOPPED in house.states)
        assert house.last_status.cause.startswith("hung: no step for")
        assert 1 == house.engine.num_stops


async def test_an_orphan_stops_its_engine() -> None:
    """Reading alone is no sign of a control plane: Ray goes on reading after the reader's death."""
    async with ready(orphan_timeout_s=0.05, window_s=60.0) as house:
        await house.until(house.worker.stopped.is_set)
        assert house.last_status.cause.startswith("no control plane for")
        assert 1 == house.engine.num_stops


async def test_a_worker_whose_start_nobody_waits_for_is_an_orphan_too() -> None:
    """A control plane that died while weights were loading leaves no engine behind."""
    house = House(orphan_timeout_s=0.03)
    house.engine.start_gate.clear()
    with pytest.raises(EngineStartError, match="no control plane for"):
        await house.worker.start()
    assert 1 == house.engine.num_stops


@pytest.mark.parametrize("timeout_s", [0.15, 0.0])
async def test_a_heartbeat_or_no_rule_at_all_keeps_an_idle_worker(timeout_s: float) -> None:
    """An empty batch of commands says that the control plane lives; 0 s means never."""
    async with ready(orphan_timeout_s=timeout_s, window_s=60.0) as house:
        for _ in range(8):
            await asyncio.sleep(0.02)
            if timeout_s:
                house.worker.command(1, [])
        assert WorkerState.READY is house.worker.status().state


# -- stop


async def test_a_dead_engine_fails_what_ran_and_ends_its_worker() -> None:
    """Attempts are the engine's failures, their charges and the last window leave, then it is STOPPED and says why."""
    async with ready() as house:
        house.call("a-1")
        house.engine.say("a-1", START, body(b"x"))
        await house.until(lambda: len(house.outputs) >= 2)
        house.engine.step("a-1")
        house.worker.on_engine_dead("EngineCore died with code -9")
        await house.until(lambda: WorkerState.STOPPED in house.states)
        assert "EngineCore died with code -9" == house.last_status.cause
        assert [(Outcome.FAILED, "engine_dead")] == [(usage.outcome, usage.cause) for usage in house.usages()]
        assert any(isinstance(each.record, EnergyPosting) for each in house.records)
        assert 0 == house.worker.status().in_flight_mj


async def test_a_stop_lets_run_what_ends_in_time() -> None:
    """Draining: nothing new, what runs may end."""
    async with ready() as house:
        house.call("a-1")
        stopping = asyncio.create_task(house.worker.stop(drain_s=5.0))
        await house.until(lambda: house.states[-1] is WorkerState.DRAINING)
        house.call("a-2")
        house.engine.say("a-1", START, None)
        await stopping
        outcomes = {usage.attempt_id: (usage.outcome, usage.cause) for usage in house.usages()}
        assert {"a-1": (Outcome.COMPLETED, ""), "a-2": (Outcome.FAILED, "worker_draining")} == outcomes


async def test_a_stop_says_all_before_it_says_stopped() -> None:
    """Charges, postings and the last window stand before or beside STOPPED; the windows add up to the meter."""
    async with ready() as house:
        house.call("a-1")
        house.engine.say("a-1", START, body(b"x"))
        await house.until(lambda: len(house.outputs) >= 2)
        house.engine.step("a-1")
        await house.worker.stop(cause="told to")
        await house.until(lambda: house.worker.has_said_all)
        first_stopped = next(
            place
            for place, report in enumerate(house.heard)
            if report.status is not None and report.status.state is WorkerState.STOPPED
        )
        assert not any(report.records for report in house.heard[first_stopped + 1 :])
        assert [(Outcome.ABORTED, "worker_stopped")] == [(usage.outcome, usage.cause) for usage in house.usages()]
        windows = [each.record for each in house.records if isinstance(each.record, WindowRecord)]
        assert all(
            window.meter_mj == window.idle_mj + window.overhead_mj + window.unattributed_mj + window.in_flight_mj
            for window in windows
        )
        postings = [each.record for each in house.records if isinstance(each.record, EnergyPosting)]
        assert sum(window.in_flight_mj for window in windows) == sum(posting.energy_mj for posting in postings)
        assert (1, True) == (house.engine.num_stops, house.meter.is_closed)


async def test_an_attempt_that_never_closes_is_closed_by_the_stop() -> None:
    """Whoever waits for its usage gets it, with what is known."""
    async with ready() as house:
        house.engine.closes = False
        house.call("a-1")
        house.engine.say("a-1", START, None)
        await house.until(house.ends)
        await house.worker.stop()
        await house.until(house.usages)
        assert ["a-1"] == [usage.attempt_id for usage in house.usages()]


async def test_two_stops_are_one() -> None:
    """The operator and the orphan rule may both want it."""
    async with ready() as house:
        await asyncio.gather(house.worker.stop(cause="first"), house.worker.stop(cause="second"))
        assert ("first", 1) == (house.worker.status().cause, house.engine.num_stops)


async def test_an_engine_that_fails_to_stop_does_not_keep_the_worker() -> None:
    """STOPPED is said all the same; the process and its guardian do the rest."""
    async with ready() as house:

        async def fail() -> None:
            raise RuntimeError("stuck")

        house.engine.stop = fail  # type: ignore[method-assign]
        await house.worker.stop()
        assert WorkerState.STOPPED is house.worker.status().state


# -- what it says of itself


async def test_complaints_of_the_device_and_lost_records_are_shown() -> None:
    """XID, ECC and throttling are health; lost step records are counted."""
    async with ready() as house:
        house.meter.complaints = ("xid: 79 fallen off the bus",)
        house.worker.on_dropped(3)
        status = house.worker.status()
        assert "xid: 79 fallen off the bus" in status.health
        assert 3 == status.dropped_step_records_total


async def test_a_worker_that_cannot_meter_does_not_serve() -> None:
    """Energy that nobody splits would be nobody's: it stops and is replaced."""
    async with ready() as house:

        def fail(*, now_s: float, num_running: int) -> int:
            raise AssertionError("a bug")

        assert house.worker._metering is not None
        house.worker._metering.windows.settle = fail  # type: ignore[method-assign]
        await house.until(house.worker.stopped.is_set)
        assert house.worker.status().cause.startswith("metering failed: AssertionError")
