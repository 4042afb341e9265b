"""The meter's clock: an edge every window, a meter that fails or hangs, and an end that leaves nothing waiting."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from benchmarks.virtual_time import VirtualLoop, run_virtually
from workers import metering as metering_module
from workers.attribution import Attribution
from workers.engine_model import EngineModel
from workers.errors import MeterUnavailable
from workers.metering import NVML_COUNTER, Metering, counter_id, last_counter_mj, watts_between
from workers.outbox import Outbox
from workers.steps import StepRecord
from workers.types import EnergyPosting, Grade, Phase, WindowRecord, WorkerSpec, WorkerState, WorkerStatus
from workers.windows import MeterReading, Windows


class ScriptedMeter:
    """100 W on a clock that is given; ``fault`` is raised, ``tick_s`` is how coarse its counter is."""

    name = "scripted"

    def __init__(self, clock: Callable[[], float], *, tick_s: float = 0.0) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self.fault: Exception | None = None
        self.num_closed = 0
        self.jump_mj = 0

    def read(self) -> MeterReading:
        if self.fault is not None:
            raise self.fault
        now_s = self._clock()
        at_s = now_s // self._tick_s * self._tick_s if self._tick_s else now_s
        return MeterReading(at_s=at_s, counter_mj=round(at_s * 100_000) + self.jump_mj, grade=Grade.A)

    def health(self) -> tuple[str, ...]:
        return ("throttled: power cap",)

    def close(self) -> None:
        self.num_closed += 1


def reading(at_s: float, counter_mj: int) -> MeterReading:
    return MeterReading(at_s=at_s, counter_mj=counter_mj, grade=Grade.A)


class Rig:
    def __init__(
        self,
        clock: Callable[[], float],
        meter: ScriptedMeter,
        *,
        window_s: float = 5.0,
        gpu_uuids: tuple[str, ...] = (),
    ) -> None:
        self.outbox = Outbox()
        self.meter = meter
        self.num_settled = 0
        self.metering = Metering(
            meter=meter,
            notes=("meter_downgrade: no better one",),
            gpu_uuids=gpu_uuids,
            windows=Windows(
                attribution=Attribution(model=EngineModel(), num_gpus=1), outbox=self.outbox, unix_clock=clock,
                meter_name=lambda: meter.name,
            ),
            window_s=window_s,
            clock=clock,
            num_running=lambda: 0,
            on_settled=self._count,
        )  # fmt: skip

    def _count(self) -> None:
        self.num_settled += 1

    @property
    def windows(self) -> list[WindowRecord]:
        return [each.record for each in self.outbox.take_unsent() if isinstance(each.record, WindowRecord)]

    def step(self, started_s: float, ended_s: float, payer: str) -> None:
        one, none = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        self.metering.windows.add_step(
            StepRecord(
                step=0, started_s=started_s, ended_s=ended_s, payers=(payer,), prefill_tokens=none,
                decode_tokens=one, context_tokens=none, recomputed_tokens=none,
            )
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.metering.run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("meter", "uuids", "expected"),
    [
        ("nvml:energy-counter", ("GPU-b", "GPU-a"), 7),
        ("nvml:energy-counter", ("GPU-a",), None),
        ("nvml:energy-counter", ("GPU-a", "GPU-c"), None),
        ("nvml:integrated-power", ("GPU-a", "GPU-b"), None),
        ("modelled:cpu-seconds", ("GPU-a", "GPU-b"), None),
    ],
)
def test_a_reading_goes_on_only_from_the_same_counter(meter: str, uuids: tuple[str, ...], expected: int | None) -> None:
    """The same GPUs in any order, and still their counter: what is integrated or modelled begins anew."""
    spec = WorkerSpec(
        worker_id="w", engine="vllm", model="m", gpu_uuids=uuids, last_counter_mj=7, last_counter_id="GPU-a,GPU-b"
    )
    assert expected == last_counter_mj(spec, meter)
    of_a_file = WorkerSpec(worker_id="w", engine="simulated", model="m", last_counter_mj=7)
    assert 7 == last_counter_mj(of_a_file, "simulated:counter")


def test_the_status_names_a_counter_that_outlives_the_worker() -> None:
    """As it is read now; nothing where it ends with the process."""
    meter = ScriptedMeter(lambda: 1.0)
    rig = Rig(lambda: 1.0, meter, gpu_uuids=("GPU-2", "GPU-1"))
    status = WorkerStatus(worker_id="w", state=WorkerState.READY)
    assert ("scripted", "") == (rig.metering.told(status).meter, rig.metering.told(status).counter_id)
    meter.name = NVML_COUNTER
    assert "GPU-1,GPU-2" == rig.metering.told(status).counter_id == counter_id(meter.name, ("GPU-1", "GPU-2"))


def test_an_edge_comes_every_window() -> None:
    """And is settled soon after, which is told."""

    async def main(loop: VirtualLoop) -> None:
        rig = Rig(loop.time, ScriptedMeter(loop.time))
        await rig.metering.read()
        async with rig.running():
            await asyncio.sleep(26.0)
        windows = rig.windows
        assert 5 == len(windows) == rig.num_settled
        assert [5.0] * 5 == pytest.approx([window.ended_s - window.started_s for window in windows], abs=0.3)
        assert {True} == {window.calibrating for window in windows}
        assert 100 == pytest.approx(rig.metering.power_watts)

    run_virtually(main)


def test_a_lost_meter_is_named_until_it_is_back() -> None:
    """Windows go on closing meanwhile, and the status says that it is down."""

    async def main(loop: VirtualLoop) -> None:
        rig = Rig(loop.time, ScriptedMeter(loop.time))
        metering = rig.metering
        assert not metering.is_up
        await metering.read()
        assert metering.is_up
        assert Grade.A == metering.grade
        assert ("throttled: power cap", "meter_downgrade: no better one") == metering.health
        rig.meter.fault = MeterUnavailable("GPU-x is lost")
        async with rig.running():
            await asyncio.sleep(11.0)
            assert (False, Grade.D) == (metering.is_up, metering.grade)
            assert "meter_lost: GPU-x is lost" == metering.health[-1]
            rig.meter.fault = None
            await asyncio.sleep(5.0)
        assert metering.is_up
        causes = [dict(window.causes).keys() for window in rig.windows]
        assert ["meter_lost" in each for each in causes] == [True, True, False]
        assert "meter_back" in causes[2]

    run_virtually(main)


def test_an_error_that_no_meter_should_raise_is_a_lost_meter() -> None:
    """A driver's surprise must not end the metering; its text is not passed on."""

    async def main(loop: VirtualLoop) -> None:
        rig = Rig(loop.time, ScriptedMeter(loop.time))
        await rig.metering.read()
        rig.meter.fault = ValueError("something of the driver's")
        async with rig.running():
            await asyncio.sleep(6.0)
            assert "meter_lost: ValueError" == rig.metering.health[-1]
            rig.meter.fault = None
            await asyncio.sleep(5.0)
        assert rig.metering.is_up
        assert 2 == len(rig.windows)

    run_virtually(main)


async def test_a_driver_that_hangs_is_a_lost_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for, never asked twice at once, and its answer is taken when it comes."""
    monkeypatch.setattr(metering_module, "READ_TIMEOUT_S", 0.02)
    loop, gate, num_asked = asyncio.get_running_loop(), threading.Event(), []

    class Hanging(ScriptedMeter):
        def read(self) -> MeterReading:
            num_asked.append(1)
            gate.wait(5)
            return super().read()

    rig = Rig(loop.time, Hanging(loop.time))
    await rig.metering.read()
    await rig.metering.read()
    assert 1 == len(num_asked)
    assert "meter_lost: scripted does not answer for 0.02 s" == rig.metering.health[-1]
    await rig.metering.close()
    assert 0 == rig.meter.num_closed, "what hangs cannot be closed"
    gate.set()
    monkeypatch.setattr(metering_module, "READ_TIMEOUT_S", 5.0)
    await rig.metering.read()
    assert rig.metering.is_up


def test_the_end_waits_for_the_tick_behind_the_last_step() -> None:
    """The counter shows its last tick: without the wait the last step's end would have no window."""

    async def main(loop: VirtualLoop) -> None:
        rig = Rig(loop.time, ScriptedMeter(loop.time, tick_s=0.1))
        await rig.metering.read()
        await asyncio.sleep(2.07)
        rig.metering.windows.open_attempt("a")
        rig.step(1.0, 2.06, "a")
        rig.metering.windows.close_attempt("a")
        await rig.metering.close()
        records = [each.record for each in rig.outbox.take_unsent()]
        (posting,) = [record for record in records if isinstance(record, EnergyPosting)]
        assert (True, 1_060_000, 1) == (posting.complete, posting.gpu_us, posting.computed_tokens)
        assert 1 == rig.meter.num_closed
        assert loop.time() < 2.4

    run_virtually(main)


def test_the_end_does_not_wait_for_ever() -> None:
    """A counter that never moves again: a second, then the attempt is posted as incomplete."""

    async def main(loop: VirtualLoop) -> None:
        rig = Rig(loop.time, ScriptedMeter(loop.time, tick_s=100.0))
        await rig.metering.read()
        await asyncio.sleep(2.0)
        rig.metering.windows.open_attempt("a")
        rig.step(1.0, 2.0, "a")
        rig.metering.windows.close_attempt("a")
        await rig.metering.close()
        (posting,) = [each.record for each in rig.outbox.take_unsent() if isinstance(each.record, EnergyPosting)]
        assert not posting.complete
        assert loop.time() < 3.5

    run_virtually(main)


def test_the_end_never_raises() -> None:
    """The engine is stopped after it, whatever the meter did."""

    async def main(loop: VirtualLoop) -> None:
        rig = Rig(loop.time, ScriptedMeter(loop.time))
        await rig.metering.read()
        rig.meter.close = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        await rig.metering.close()

    run_virtually(main)


def test_a_turn_waits_for_the_counter_to_pass_the_last_step() -> None:
    """So that no step is cut by the edge at which its engine is parked; the phase begins there."""

    async def main(loop: VirtualLoop) -> None:
        rig = Rig(loop.time, ScriptedMeter(loop.time, tick_s=0.1))
        await rig.metering.read()
        await asyncio.sleep(5.0)
        rig.metering.windows.open_attempt("a")
        rig.step(4.9, 5.04, "a")
        await asyncio.sleep(0.05)
        reading = await rig.metering.turn(Phase.PARKED)
        assert reading is not None
        assert 5.04 <= reading.at_s <= 5.2
        await asyncio.sleep(5.0)
        await rig.metering.turn(Phase.SERVING)
        rig.metering.windows.close()
        *serving, parked = rig.windows
        assert {Phase.SERVING} == {window.phase for window in serving}
        assert (Phase.PARKED, 0, parked.meter_mj) == (parked.phase, parked.num_steps, parked.idle_mj)

    run_virtually(main)


def test_other_processes_are_told_to_the_meter_and_their_jump_is_no_power() -> None:
    """What a start burned is counted at once when its processes are known: that is energy, not watts."""

    async def main(loop: VirtualLoop) -> None:
        rig, told = Rig(loop.time, ScriptedMeter(loop.time)), list[tuple[int, ...]]()
        rig.metering._follow = told.append
        await rig.metering.read()
        await asyncio.sleep(5.0)
        await rig.metering.read()
        rig.meter.jump_mj = 1_000_000
        await rig.metering.follow((7,))
        await asyncio.sleep(0.1)
        await rig.metering.read()
        assert ([(7,)], 100.0) == (told, pytest.approx(rig.metering.power_watts))
        await asyncio.sleep(5.0)
        await rig.metering.read()
        assert 100.0 == pytest.approx(rig.metering.power_watts)

    run_virtually(main)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (reading(0.0, 0), reading(10.0, 5_000_000), 500.0),
        (reading(0.0, 0), reading(0.0, 5), None),
        (reading(0.0, 9), reading(1.0, 5), None),
        (None, reading(1.0, 5), None),
        (reading(1.0, 5), None, None),
    ],
    ids=["moves", "no time", "began anew", "not read", "not read any more"],
)
def test_power_is_energy_between_two_readings(
    before: MeterReading | None, after: MeterReading | None, expected: float | None
) -> None:
    assert expected == watts_between(before, after)


def test_a_turn_that_finds_no_reading_looks_once_more() -> None:
    """Loading an engine may keep the event loop for longer than a meter is waited for."""

    async def main(loop: VirtualLoop) -> None:
        rig = Rig(loop.time, ScriptedMeter(loop.time))
        await rig.metering.read()
        rig.metering.windows.phase = Phase.STARTING
        await asyncio.sleep(5.0)
        readings, read = [MeterUnavailable("slow"), None], rig.meter.read

        def slow_once() -> MeterReading:
            rig.meter.fault = readings.pop(0)
            return read()

        rig.meter.read = slow_once  # type: ignore[method-assign]
        reading = await rig.metering.turn(Phase.SERVING)
        assert reading is not None
        rig.metering.windows.close()
        (window,) = rig.windows
        assert (Phase.STARTING, 0, window.meter_mj) == (window.phase, window.unattributed_mj, window.overhead_mj)

    run_virtually(main)
