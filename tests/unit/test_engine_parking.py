"""An engine that is parked and woken while its worker lives: calls meanwhile, orders that cross, and its end."""

import asyncio

import pytest

from tests.scripted_worker import House, ready
from workers import engine_parking
from workers.balance import check_balance
from workers.errors import EngineStartError, StaleEpoch
from workers.types import (
    Ack,
    Call,
    EnergyPosting,
    Outcome,
    Park,
    Phase,
    UsageRecord,
    Wake,
    WindowRecord,
    WorkerState,
)

PARK, WAKE = Park(reason="nobody comes"), Wake(reason="somebody came")
READY, PARKED, STARTING, STOPPED = WorkerState.READY, WorkerState.PARKED, WorkerState.STARTING, WorkerState.STOPPED


def tell(house: House, *commands: Park | Wake | Call, epoch: int = 1) -> None:
    house.worker.command(epoch, list(commands))


def state(house: House) -> WorkerState:
    return house.worker.status().state


async def parked(house: House) -> None:
    """Its engine is gone."""
    tell(house, PARK)
    await house.until(lambda: house.worker.status().cause == PARK.reason)


async def run_one(house: House, name: str) -> UsageRecord:
    """An attempt from its call to its charge."""
    house.call(name)
    await house.until(lambda: name in house.engine.queues)
    house.engine.step(name)
    house.engine.say(name, None)
    await house.until(lambda: name in {usage.attempt_id for usage in house.usages()})
    return next(usage for usage in house.usages() if usage.attempt_id == name)


def call(name: str) -> Call:
    return Call(attempt_id=name, path="/v1/completions", body=b"{}")


# -- the plain way


async def test_an_engine_is_parked_and_started_again_and_serves_as_before() -> None:
    """Ready, parked, starting, ready: the same engine, calibrated once, of which nothing runs in between."""
    async with ready(calibration_s=3.0) as house:
        await run_one(house, "a-1")
        await parked(house)
        assert (PARKED, 1, 0) == (state(house), house.engine.num_parks, house.engine.num_stops)
        tell(house, WAKE)
        assert STARTING is state(house)
        await house.until(lambda: state(house) is READY)
        await run_one(house, "a-2")
        assert [3.0] == house.engine.calibrated_s
        seen = list(dict.fromkeys(house.states[house.states.index(READY) :]))
        assert [READY, PARKED, STARTING] == seen
        assert READY is house.states[-1]


async def test_a_parked_worker_still_says_what_it_could_serve() -> None:
    """Whoever plans a wake knows its models and its room; processes it has none."""
    async with ready() as house:
        await parked(house)
        info = house.worker.status().info
        assert info is not None
        assert (("m",), 1000, ()) == (info.models, info.kv_tokens, info.pids)


@pytest.mark.parametrize("is_gone", [False, True], ids=["while it stops", "when it is stopped"])
async def test_who_is_called_on_a_parked_worker_is_refused_and_nothing_ran(is_gone: bool) -> None:
    """The word says that another may take it, or this one later; the caller's picture was old."""
    async with ready() as house:
        if is_gone:
            await parked(house)
        else:
            house.engine.park_gate.clear()
            tell(house, PARK)
        house.call("late")
        await house.until(house.usages)
        (usage,) = house.usages()
        assert (Outcome.FAILED, "worker_parked", 0, {}) == (
            usage.outcome, usage.cause, usage.output_tokens, house.engine.queues
        )  # fmt: skip
        house.engine.park_gate.set()


async def test_the_state_is_heard_before_a_refusal_that_it_causes() -> None:
    """In the same item or an earlier one: whoever hears the refusal knows already that this worker is parked."""
    async with ready() as house:
        tell(house, PARK, call("late"))
        await house.until(house.ends)
        heard = next(number for number, report in enumerate(house.heard) if report.outputs)
        assert PARKED in [report.status.state for report in house.heard[: heard + 1] if report.status is not None]


# -- orders that may not be obeyed


async def test_a_worker_is_not_parked_under_its_attempts() -> None:
    """Whoever ordered it thought that nothing runs; what was called first in the same batch runs too."""
    async with ready() as house:
        tell(house, call("a-1"), PARK)
        await house.until(lambda: "a-1" in house.engine.queues)
        assert READY is state(house)
        house.engine.say("a-1", None)
        await house.until(house.usages)
        assert (0, Outcome.FAILED) == (house.engine.num_parks, house.usages()[0].outcome)
        assert "worker_parked" != house.usages()[0].cause


async def test_a_worker_that_may_not_park_does_not_and_says_so() -> None:
    """Its power states are none: nobody who reads them orders it."""
    async with ready(can_park=False) as house:
        tell(house, PARK)
        await asyncio.sleep(0.01)
        assert (READY, 0, None) == (state(house), house.engine.num_parks, house.worker.status().power_states)


async def test_orders_before_the_first_start_are_ignored() -> None:
    """There is no engine to stop, and the start goes on."""
    house = House()
    house.engine.start_gate.clear()
    house.connect()
    starting = asyncio.create_task(house.worker.start())
    await house.until(lambda: STARTING in house.states)
    tell(house, PARK, WAKE)
    house.engine.start_gate.set()
    await starting
    assert (READY, 0) == (state(house), house.engine.num_parks)
    await house.close()


async def test_a_wake_of_an_engine_that_is_up_changes_nothing() -> None:
    async with ready() as house:
        tell(house, WAKE)
        await run_one(house, "a-1")
        assert {READY, STARTING} >= set(house.states)


async def test_an_older_connection_cannot_park() -> None:
    async with ready() as house:
        house.connect(2)
        await house.until(lambda: house.worker.epoch == 2)
        with pytest.raises(StaleEpoch):
            tell(house, PARK, epoch=1)
        assert READY is state(house)


# -- orders that cross


async def test_a_wake_that_comes_while_the_engine_stops_follows_at_once() -> None:
    """The stop is not broken off: half an engine serves nobody."""
    async with ready() as house:
        house.engine.park_gate.clear()
        tell(house, PARK, WAKE)
        await asyncio.sleep(0.01)
        assert PARKED is state(house)
        house.engine.park_gate.set()
        await house.until(lambda: state(house) is READY)
        assert 1 == house.engine.num_parks
        await run_one(house, "a-1")


async def test_a_second_order_to_park_takes_back_a_wake_that_waits() -> None:
    """The last word counts."""
    async with ready() as house:
        house.engine.park_gate.clear()
        tell(house, PARK, WAKE, PARK)
        house.engine.park_gate.set()
        await house.until(lambda: house.engine.num_parks == 1)
        await asyncio.sleep(0.01)
        assert PARKED is state(house)
        tell(house, WAKE)
        await house.until(lambda: state(house) is READY)


async def test_a_start_is_not_broken_off_to_park() -> None:
    """Most of it is paid; whoever ordered it sees the engine ready, and may order again."""
    async with ready() as house:
        await parked(house)
        house.engine.start_gate.clear()
        tell(house, WAKE)
        await asyncio.sleep(0.01)
        tell(house, PARK, WAKE)
        house.engine.start_gate.set()
        await house.until(lambda: state(house) is READY)
        assert 1 == house.engine.num_parks
        await parked(house)
        assert 2 == house.engine.num_parks


# -- what ends it


async def test_an_engine_that_does_not_start_again_ends_its_worker() -> None:
    """As at a first start: stopped, with the engine's last lines; the fleet starts another."""
    async with ready() as house:
        await parked(house)
        house.engine.start_error = EngineStartError("no memory", last_lines=("OOM",))
        tell(house, WAKE)
        await house.until(lambda: STOPPED in house.states)
        assert (1, True) == (house.engine.num_stops, "OOM" in house.last_status.cause)


async def test_an_engine_that_cannot_be_parked_ends_its_worker() -> None:
    """It may hold the memory of its GPU: its process goes, and the guardian takes what is left."""
    async with ready() as house:
        house.engine.park_error = RuntimeError("stuck")
        tell(house, PARK)
        await house.until(lambda: STOPPED in house.states)
        assert "parking failed: RuntimeError: stuck" == house.last_status.cause
        assert 1 == house.engine.num_stops


async def test_an_engine_that_does_not_stop_in_time_ends_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_parking, "PARK_TIMEOUT_S", 0.01)
    async with ready() as house:
        house.engine.park_gate.clear()
        tell(house, PARK)
        await house.until(lambda: STOPPED in house.states)
        assert "parking failed: TimeoutError" in house.last_status.cause


@pytest.mark.parametrize("gate", ["park_gate", "start_gate"])
async def test_a_stop_breaks_off_what_is_under_way(gate: str) -> None:
    """Nobody waits for an engine to load, or to end, that is not wanted; the engine is told to stop."""
    async with ready() as house:
        if gate == "park_gate":
            house.engine.park_gate.clear()
            tell(house, PARK)
        else:
            await parked(house)
            house.engine.start_gate.clear()
            tell(house, WAKE)
        await asyncio.sleep(0.01)
        async with asyncio.timeout(1.0):
            await house.worker.stop(cause="changed our mind")
        assert (STOPPED, "changed our mind", 1) == (
            state(house), house.worker.status().cause, house.engine.num_stops
        )  # fmt: skip
        house.engine.park_gate.set()


@pytest.mark.parametrize("is_over", [False, True], ids=["while it stops", "when it has stopped"])
async def test_a_worker_that_stops_for_good_is_not_woken(is_over: bool) -> None:
    """Its engine would outlive it."""
    async with ready() as house:
        await parked(house)
        stopping = asyncio.create_task(house.worker.stop(cause="gone"))
        if is_over:
            await stopping
        await asyncio.sleep(0)
        tell(house, WAKE)
        await stopping
        await asyncio.sleep(0.1)
        assert (STOPPED, "gone", 1) == (state(house), house.worker.status().cause, house.engine.num_starts)


async def test_a_parked_worker_that_nobody_speaks_to_is_an_orphan_too() -> None:
    """It holds a place on its machine, if not its memory."""
    async with ready(orphan_timeout_s=0.05) as house:
        await parked(house)
        await house.until(lambda: STOPPED in house.states)
        assert "no control plane" in house.last_status.cause


async def test_a_new_control_plane_finds_a_parked_worker_parked_and_wakes_it() -> None:
    """Its outbox is replayed, its state is said first, its engine comes back for whoever speaks now."""
    async with ready() as house:
        house.worker.command(1, [Ack(number=0)])
        await parked(house)
        house.heard.clear()
        house.connect(2)
        await house.until(lambda: house.states)
        assert PARKED is house.states[0]
        tell(house, WAKE, epoch=2)
        await house.until(lambda: state(house) is READY)


async def test_an_engine_that_idles_parked_is_neither_stalled_nor_sick() -> None:
    async with ready(stall_timeout_s=0.02) as house:
        await parked(house)
        await asyncio.sleep(0.06)
        assert {READY, PARKED, STARTING} >= set(house.states)


# -- its energy


async def test_every_millijoule_of_a_cycle_is_booked_where_it_belongs() -> None:
    """Parked: idle. Started again: overhead. Before and after: as ever. Nothing is unattributed; there is no gap."""
    async with ready() as house:
        await run_one(house, "a-1")
        await parked(house)
        await asyncio.sleep(0.08)
        house.engine.start_gate.clear()
        tell(house, WAKE)
        await asyncio.sleep(0.08)
        house.engine.start_gate.set()
        await house.until(lambda: state(house) is READY)
        await run_one(house, "a-2")
        await house.worker.stop()
        await house.until(lambda: STOPPED in house.states)
        windows = [each.record for each in house.records if isinstance(each.record, WindowRecord)]
        postings = [each.record for each in house.records if isinstance(each.record, EnergyPosting)]
        ends = [windows[0].started_s, *[window.ended_s for window in windows]]
        assert ends[:-1] == [window.started_s for window in windows]
        first_mj = windows[0].counter_mj - windows[0].meter_mj
        assert windows[-1].counter_mj - first_mj == sum(window.meter_mj for window in windows)
        balance = check_balance(windows, postings, house.usages())
        assert (0, 0) == (balance.difference_mj, balance.difference_gpu_us)
        by_phase = {phase: [each for each in windows if each.phase is phase] for phase in Phase}
        resting, starting = by_phase[Phase.PARKED], by_phase[Phase.STARTING]
        assert sum(each.meter_mj for each in resting) == sum(each.idle_mj for each in resting) > 70
        assert sum(each.meter_mj for each in starting) == sum(each.overhead_mj for each in starting) > 70
        assert {()} == {each.causes for each in (*resting, *starting)}
        assert {"a-1", "a-2"} == {posting.attempt_id for posting in postings}


async def test_what_a_start_takes_is_learned_from_it() -> None:
    """A first start of 50 ms and a wake of 100 ms at a kilowatt: the wake is what is known afterwards."""
    house = House()
    house.connect()
    house.engine.start_gate.clear()
    asyncio.get_running_loop().call_later(0.05, house.engine.start_gate.set)
    await house.worker.start()
    first = house.worker.status().power_states
    assert first is not None
    assert ("first start", True) == (first.source, 0.05 <= first.start_s < 0.09)
    await parked(house)
    house.engine.start_gate.clear()
    asyncio.get_running_loop().call_later(0.1, house.engine.start_gate.set)
    tell(house, WAKE)
    await house.until(lambda: state(house) is READY)
    found = house.worker.status().power_states
    assert found is not None
    assert ("measured", True) == (found.source, 0.1 <= found.start_s < 0.15)
    assert pytest.approx(1_000.0, rel=0.05) == found.start_watts
    await house.close()
