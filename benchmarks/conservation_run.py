"""One worker's life on virtual time, with faults, beside an observer who reads the counter's file: does it all add up?

Called by ``benchmarks.conservation`` and by ``tests/simulation``. It must never look into windows or a model: records
come out of the worker's stream, and what was burned is known from the counter's file alone. Everything is simulated.

The real ``Worker``, its metering, attribution and outbox run with the real simulated engine; a small control plane
books the records into ``Settlement`` and acknowledges them. A kill drops all of it without a word, unread records too;
the next worker goes on at the last counter that was booked, as the dispatcher has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.virtual_time import VirtualLoop, run_virtually
from scheduler.accounting.charging import charge_of_stranger
from scheduler.accounting.settlement import Settlement
from scheduler.core.actions import Payer
from workers.engine_model import EngineModel
from workers.engines.simulated import SimulatedEngine
from workers.errors import MeterUnavailable, StaleEpoch
from workers.metering import OpenedMeter
from workers.power.simulated import SimulatedMeter
from workers.simulated_counter import CounterFile
from workers.step_curves import PowerStates
from workers.steps import StepRecord
from workers.types import (
    Abort,
    Ack,
    Call,
    Command,
    EnergyPosting,
    MeterSpec,
    Numbered,
    Park,
    Report,
    UsageRecord,
    Wake,
    WindowRecord,
    WorkerSpec,
    WorkerState,
)
from workers.windows import MeterReading
from workers.worker import Worker

WINDOW_S = 5.0
WORKER_ID = "w0"

DEVICE: dict[str, str | int | float | bool | None | list[str]] = {
    "time_t0_s": 0.05, "time_decode_s": 7e-4, "time_prefill_s": 2.4e-4, "time_context_s": 1e-7,
    "energy_e0_joules": 24.0, "energy_decode_joules": 0.5, "energy_prefill_joules": 0.16,
    "energy_context_joules": 1.5e-4, "energy_attention_joules": 7.5e-7, "energy_pivot_joules": 30.0,
    "max_sequences": 32, "kv_tokens": 40_000, "max_batched_tokens": 512,
}  # fmt: skip
"""A device with steps of about 60 ms, so that a window holds about 80 of them: the default's figures, 7.5 times."""

FAULTS = (
    "hang", "long_hang", "engine_dies", "kill", "meter_lost", "counter_stuck", "counter_reset", "records_dropped",
    "aborts", "slow_reader", "kill_without_meter",
)  # fmt: skip


PARKED = "parked"
"""No fault, but ordered like one: the engine is stopped as soon as nothing runs, and started again later."""


class Observer:
    """Somebody else who reads the counter: only its file, in any process."""

    def __init__(self, path: Path) -> None:
        self._file = CounterFile(path)
        self._last_mj = self.first_mj = self._file.read().counter_mj
        self.counted_mj = 0
        self.num_resets = 0

    def look(self) -> None:
        """Last − first, over every life of a counter that was reset: what it shows after that was used since."""
        now_mj = self._file.read().counter_mj
        self.num_resets += now_mj < self._last_mj
        self.counted_mj += now_mj if now_mj < self._last_mj else now_mj - self._last_mj
        self._last_mj = now_mj

    def close(self) -> None:
        self._file.close()


class WatchedMeter:
    """The worker's meter; the observer looks whenever it is read, for only then do both see the same resets."""

    def __init__(self, meter: SimulatedMeter, observer: Observer, *, factor: Callable[[], float]) -> None:
        self._meter = meter
        self._observer = observer
        self._factor = factor

    @property
    def name(self) -> str:
        return self._meter.name

    def read(self) -> MeterReading:
        reading = self._meter.read()
        self._observer.look()
        return replace(reading, counter_mj=round(reading.counter_mj * self._factor()))

    def health(self) -> tuple[str, ...]:
        return self._meter.health()

    def close(self) -> None:
        self._meter.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A wrong program, on purpose: none of it is told to the worker. It begins after ``from_window``."""

    drops_ratio: float = 0.0
    """Share of step records that vanish without being counted."""
    loses_attempt: int | None = None
    """Rows of this attempt vanish from steps."""
    loses_ratio: float = 1.0
    """Share of its rows that do."""
    meter_factor: float = 1.0
    from_window: int = 0


@dataclass(slots=True)
class Outcome:
    """What a run left behind."""

    windows: list[WindowRecord] = field(default_factory=list)
    postings: list[EnergyPosting] = field(default_factory=list)
    usages: list[UsageRecord] = field(default_factory=list)
    settlement: Settlement = field(default_factory=Settlement)
    observed_mj: int = 0
    num_resets: int = 0
    num_lives: int = 0
    num_requests: int = 0
    faults: list[str] = field(default_factory=list)
    in_flight_mj: int = 0
    """Of the last worker, at its end."""
    power_states: PowerStates | None = None
    """As it had learned them by then."""

    @property
    def num_windows(self) -> int:
        return len(self.windows)

    @property
    def difference_mj(self) -> int:
        """Σ requests + idle + overhead + unattributed + in flight − what the observer saw."""
        accounts = self.settlement.accounts
        balance = accounts.balance()
        calibration_mj = balance.calibration_mj
        parts_mj = balance.requests_mj + balance.idle_mj + balance.overhead_mj + balance.unattributed_mj
        return parts_mj + balance.in_flight_mj + calibration_mj - self.observed_mj


class _Sink(Worker):
    """The worker, with a mutant between it and its engine."""

    mutant: Mutant
    random: random.Random
    num_windows: Callable[[], int]
    drop_next: int = 0

    def on_step(self, step: StepRecord) -> None:
        if self.drop_next:
            self.drop_next -= 1
            self.on_dropped(1)  # a loss that the feed noticed
            return
        if self.num_windows() >= self.mutant.from_window:
            if self.random.random() < self.mutant.drops_ratio:
                return
            lost = self.mutant.loses_attempt
            if lost is not None and self.random.random() < self.mutant.loses_ratio:
                step = _without(step, f"req{lost}-1")
        Worker.on_step(self, step)


def _without(step: StepRecord, attempt_id: str) -> StepRecord:
    kept = np.array([payer != attempt_id for payer in step.payers], dtype=bool)
    return replace(
        step,
        payers=tuple(payer for payer in step.payers if payer != attempt_id),
        prefill_tokens=step.prefill_tokens[kept],
        decode_tokens=step.decode_tokens[kept],
        context_tokens=step.context_tokens[kept],
        recomputed_tokens=step.recomputed_tokens[kept],
    )


class House:
    """A control plane and the worker that it restarts, on one virtual loop."""

    def __init__(
        self, loop: VirtualLoop, path: Path, *, seed: int, mutant: Mutant, device: dict[str, object] | None = None
    ) -> None:
        self._clock = loop.time
        self._path = path
        self._seed = seed
        self._mutant = mutant
        self._device = {**DEVICE, **(device or {})}
        self.random = random.Random(f"house-{seed}")
        self.outcome = Outcome()
        self._observer: Observer | None = None
        self._epoch = 0
        self.reader_pause_s = 0.0
        """How long the reader takes over its next item."""
        self._reader_goes_on = asyncio.Event()
        self._running: list[str] = []

    # -- a life

    async def start(self, *, calibration_s: float = 30.0) -> None:
        settlement = self.outcome.settlement
        spec = WorkerSpec(
            worker_id=WORKER_ID,
            engine="simulated",
            model="m",
            engine_args=self._device,  # type: ignore[arg-type]
            meter=MeterSpec(kind="simulated", counter_path=str(self._path)),
            window_s=WINDOW_S,
            calibration_s=calibration_s,
            stall_timeout_s=45.0,
            seed=self._seed,
            last_counter_mj=settlement.last_counter_mj(WORKER_ID),
        )
        self.engine = engine = SimulatedEngine(spec, clock=self._clock)
        observer = self._observer = self._observer or Observer(self._path)

        def factor() -> float:
            return self._mutant.meter_factor if self.outcome.num_windows >= self._mutant.from_window else 1.0

        meter = WatchedMeter(SimulatedMeter(engine.counter, clock=self._clock), observer, factor=factor)
        self.worker = worker = _Sink(
            spec,
            engine,
            open_meter=lambda info: OpenedMeter(meter=meter),
            model=EngineModel(),
            clock=self._clock,
            unix_clock=self._clock,
        )
        worker.mutant, worker.random = self._mutant, random.Random(f"mutant-{self._seed}")
        worker.num_windows = lambda: self.outcome.num_windows
        self.outcome.num_lives += 1
        settlement.open_worker(WORKER_ID, incarnation=str(self.outcome.num_lives))
        await worker.start()
        self._epoch = 1
        self._reader_goes_on.clear()
        self._reader = asyncio.create_task(self._read(worker, self._epoch))
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """In order: the last window closes, and what the outbox holds is read."""
        await self.worker.stop(drain_s=30.0)
        self._reader_goes_on.set()
        for _ in range(100):
            if not self.worker.has_said_all:
                await asyncio.sleep(0.1)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self.outcome.settlement.close_worker(WORKER_ID)

    def raise_if_unread(self) -> None:
        """A reader that failed books nothing any more, and a run would wait for its windows for ever."""
        if self._reader.done() and not self._reader.cancelled():
            self._reader.result()

    def kill(self) -> None:
        """As SIGKILL: nothing is said, closed or handed over. The counter's file stays."""
        self._reader.cancel()
        mine = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        for task in mine:
            task.cancel()
        self.engine.counter.close()
        self.outcome.settlement.close_worker(WORKER_ID)
        self._running.clear()

    def finish(self) -> Outcome:
        assert self._observer is not None
        self._observer.look()
        self.outcome.observed_mj = self._observer.counted_mj
        self.outcome.num_resets = self._observer.num_resets
        status = self.worker.status()
        self.outcome.in_flight_mj, self.outcome.power_states = status.in_flight_mj, status.power_states
        self._observer.close()
        return self.outcome

    # -- the control plane

    async def _read(self, worker: Worker, epoch: int) -> None:
        """Reads the stream, books the records, acknowledges what is booked."""
        with contextlib.suppress(StaleEpoch):
            async for report in worker.reports(epoch):
                self._book(report)
                number = self.outcome.settlement.watermark(WORKER_ID)
                if number is not None and report.records:
                    worker.command(epoch, [Ack(number=number)])
                if self.reader_pause_s:
                    pause_s, self.reader_pause_s = self.reader_pause_s, 0.0
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._reader_goes_on.wait(), pause_s)

    def _book(self, report: Report) -> None:
        for numbered in msgspec.msgpack.decode(msgspec.msgpack.encode(report.records), type=list[Numbered]):
            if not self.outcome.settlement.is_new(WORKER_ID, numbered.number):
                continue
            record = numbered.record
            match record:
                case WindowRecord():
                    self.outcome.windows.append(record)
                    self.outcome.settlement.window(WORKER_ID, record)
                case EnergyPosting():
                    self.outcome.postings.append(record)
                    self.outcome.settlement.post_energy(WORKER_ID, record)
                case UsageRecord():
                    self.outcome.usages.append(record)
                    charge = charge_of_stranger(record, worker_id=WORKER_ID, status=None)
                    self.outcome.settlement.charge(msgspec.structs.replace(charge, payer=Payer.REQUEST, tenant="t"))
                    with contextlib.suppress(ValueError):
                        self._running.remove(record.attempt_id)

    # -- load

    def command(self, *commands: Command) -> None:
        self.worker.command(self._epoch, list(commands))

    def submit(self) -> None:
        """One request: lengths spread widely, some streamed."""
        name = f"req{self.outcome.num_requests}-1"
        self.outcome.num_requests += 1
        prompt = "x" * int(min(self.random.lognormvariate(7.0, 1.0), 8_000))
        body: dict[str, object] = {
            "model": "m",
            "prompt": f"{self.random.random()} {prompt}",
            "max_tokens": max(int(min(self.random.lognormvariate(4.3, 0.8), 600)), 2),
            "ignore_eos": True,
            "stream": self.random.random() < 0.1,
        }
        self._running.append(name)
        self.command(Call(attempt_id=name, path="/v1/completions", body=json.dumps(body).encode()))

    async def load(self, until_s: float, *, abort_ratio: float = 0.02) -> None:
        """Poisson arrivals at a rate that changes every half minute; idle spans too."""
        while self._clock() < until_s:
            rate = self.random.choice((0.0, 0.15, 0.4, 0.8, 1.6))
            span_end_s = min(self._clock() + self.random.uniform(10.0, 50.0), until_s)
            while self._clock() < span_end_s:
                gap_s = self.random.expovariate(rate) if rate else span_end_s - self._clock()
                await asyncio.sleep(min(gap_s, span_end_s - self._clock() + 1e-6))
                if self._clock() < span_end_s and self.worker.status().state is WorkerState.READY:
                    self.submit()
                    if self._running and self.random.random() < abort_ratio:
                        self.command(Abort(attempt_id=self.random.choice(self._running), reason="client_gone"))

    # -- faults

    async def fault(self, name: str) -> None:
        """One fault, and what an operator or a supervisor does about it."""
        draw, counter = self.random.uniform, self.engine.counter
        self.outcome.faults.append(name)
        if name in ("hang", "long_hang"):
            self.engine.hang()
            await asyncio.sleep(draw(2, 30) if name == "hang" else draw(60, 140))
            self.engine.resume()
            if self.worker.status().state in (WorkerState.DRAINING, WorkerState.STOPPED):
                # The worker gave its engine up by itself: a supervisor starts another.
                await self.stop()
                await self.start(calibration_s=draw(0, 20))
        elif name == "engine_dies":
            self.engine.die()
            await asyncio.sleep(draw(0, 12))
            await self.stop()
            await self.start(calibration_s=draw(0, 20))
        elif name in ("kill", "kill_without_meter"):
            if name == "kill_without_meter":
                counter.lose()
                await asyncio.sleep(draw(3, 30))
            self.kill()
            await asyncio.sleep(draw(0.5, 20))
            await self.start(calibration_s=draw(0, 20))
        elif name in ("meter_lost", "counter_stuck"):
            counter.lose() if name == "meter_lost" else counter.stick()
            await asyncio.sleep(draw(1, 60))
            counter.find()
        elif name == "counter_reset":
            counter.reset(self._clock())
        elif name == "records_dropped":
            self.worker.drop_next = self.random.randint(1, 40)
        elif name == "aborts":
            self.command(*(Abort(attempt_id=each, reason="client_gone") for each in self._running))
        elif name == "slow_reader":
            self.reader_pause_s = draw(5, 200)
        elif name == PARKED:
            await self._park_and_wake(draw(5, 90))
        else:
            raise MeterUnavailable(f"no such fault: {name}")

    async def _park_and_wake(self, rest_s: float) -> None:
        """Whoever calls while the engine stops, is stopped or starts is refused; it is ordered until nothing runs."""
        while self.worker.status().state is not WorkerState.PARKED:
            self.command(Park(reason="by chance"))
            await asyncio.sleep(0.2)
        self.submit()
        await asyncio.sleep(rest_s)
        self.submit()
        self.command(Wake(reason="by chance"))
        await asyncio.sleep(1.0)
        self.submit()
        while self.worker.status().state is not WorkerState.READY:
            await asyncio.sleep(0.1)


def run(
    path: Path,
    *,
    seed: int,
    num_windows: int,
    faults: tuple[str, ...] = (),
    mutant: Mutant | None = None,
    device: dict[str, object] | None = None,
) -> Outcome:
    """At least ``num_windows`` windows of one seed; ``faults`` come one after the other, about every ten windows."""

    async def main(loop: VirtualLoop) -> Outcome:
        house = House(loop, path, seed=seed, mutant=mutant or Mutant(), device=device)
        await house.start()
        waiting: list[str] = []
        while house.outcome.num_windows < num_windows:
            load = asyncio.create_task(house.load(loop.time() + house.random.uniform(20, 80)))
            await asyncio.wait((load,))
            house.raise_if_unread()
            if faults:
                if not waiting:
                    waiting = list(faults)
                    house.random.shuffle(waiting)
                load = asyncio.create_task(house.load(loop.time() + 150))
                await asyncio.sleep(house.random.uniform(0, 8))
                await house.fault(waiting.pop())
                load.cancel()
                await asyncio.wait((load,))
        await house.stop()
        return house.finish()

    return run_virtually(main)
