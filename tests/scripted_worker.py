"""A worker on an engine and a meter that do what the test says, and all that its connection heard.

Used by tests of ``workers.worker`` and of what it owns (``from tests.scripted_worker import ready``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import numpy as np

from workers.engine import EngineLoad, EngineSink, Message, Receive, Scope, Send
from workers.metering import OpenedMeter
from workers.steps import StepRecord
from workers.types import (
    Ack,
    Call,
    Ended,
    EngineInfo,
    Grade,
    Numbered,
    Output,
    Progress,
    Report,
    SequenceUsage,
    UsageRecord,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)
from workers.windows import MeterReading
from workers.worker import Worker

START: Message = {"type": "http.response.start", "status": 200, "headers": []}


def body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


class ScriptedEngine:
    """An engine that sends what a test puts into ``say`` and ends where it puts None; it closes as ``closes`` says."""

    def __init__(self) -> None:
        self.sink: EngineSink | None = None
        self.queues: dict[str, asyncio.Queue[Message | None]] = {}
        self.start_gate = asyncio.Event()
        self.start_gate.set()
        self.start_error: Exception | None = None
        self.calibrated_s: list[float] = []
        self.closes = True
        self.obeys = True
        self.ended: list[str] = []
        self.told: list[Progress] = []
        self.num_starts = 0
        self.num_stops = 0
        self.num_parks = 0
        self.park_gate = asyncio.Event()
        self.park_gate.set()
        self.park_error: Exception | None = None

    async def start(self, sink: EngineSink) -> EngineInfo:
        self.sink = sink
        self.num_starts += 1
        await self.start_gate.wait()
        if self.start_error is not None:
            raise self.start_error
        return EngineInfo(
            engine="scripted",
            version="1",
            models=("m",),
            max_model_len_tokens=100,
            kv_tokens=1000,
            max_sequences=8,
            num_gpus=1,
            notes=("hook: aggregate",),
        )

    def request(self, call: Call, salt: bytes) -> tuple[Scope, bytes]:
        return {"type": "http", "id": call.attempt_id}, call.body

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        queue = self.queues.setdefault(scope["id"], asyncio.Queue())
        gone = asyncio.create_task(receive())
        try:
            while True:
                said = asyncio.create_task(queue.get())
                waits = {said, gone} if self.obeys else {said}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                message = said.result() if said.done() else None
                said.cancel()
                if message is None:
                    return
                await send(message)
        finally:
            gone.cancel()

    def say(self, attempt_id: str, *messages: Message | None) -> None:
        queue = self.queues.setdefault(attempt_id, asyncio.Queue())
        for message in messages:
            queue.put_nowait(message)

    def step(self, *attempt_ids: str, took_s: float = 0.001) -> None:
        """One decode step for the attempts given, that ended now."""
        assert self.sink is not None
        ones, now_s = np.ones(len(attempt_ids), dtype=np.int64), time.monotonic()
        self.sink.on_step(
            StepRecord(
                step=0,
                started_s=now_s - took_s,
                ended_s=now_s,
                payers=attempt_ids,
                prefill_tokens=0 * ones,
                decode_tokens=ones,
                context_tokens=10 * ones,
                recomputed_tokens=0 * ones,
            )
        )

    def asgi_ended(self, attempt_id: str) -> None:
        self.ended.append(attempt_id)
        if self.closes:
            self.close(attempt_id)

    def close(self, attempt_id: str) -> None:
        assert self.sink is not None
        usage = SequenceUsage(
            engine_request_id=f"cmpl-{attempt_id}",
            prompt_tokens=10,
            cached_tokens=4,
            computed_prompt_tokens=6,
            generated_tokens=3,
            scheduled_tokens=8,
        )
        self.sink.on_closed(attempt_id, (usage,))

    def progress(self) -> list[Progress]:
        told, self.told = self.told, []
        return told

    def load(self) -> EngineLoad:
        return EngineLoad(num_running=len(self.queues.keys() - set(self.ended)), num_waiting=0, kv_used_tokens=7)

    async def calibrate(self, max_s: float) -> None:
        self.calibrated_s.append(max_s)

    async def park(self) -> None:
        await self.park_gate.wait()
        if self.park_error is not None:
            raise self.park_error
        self.num_parks += 1

    async def stop(self) -> None:
        self.num_stops += 1


class ScriptedMeter:
    """Counts a kilowatt by the real clock; complains of what a test says."""

    name = "scripted:counter"

    def __init__(self) -> None:
        self.complaints: tuple[str, ...] = ()
        self.is_closed = False
        self.started_s = time.monotonic()

    def read(self) -> MeterReading:
        now_s = time.monotonic()
        return MeterReading(at_s=now_s, counter_mj=int((now_s - self.started_s) * 1e6), grade=Grade.A)

    def health(self) -> tuple[str, ...]:
        return self.complaints

    def close(self) -> None:
        self.is_closed = True


class House:
    """A worker on scripted parts, and everything that its connection heard."""

    def __init__(self, **fields: object) -> None:
        values = {"window_s": 0.02, "calibration_s": 0.0, "max_running": 4, **fields}
        spec = WorkerSpec(worker_id="w", engine="simulated", model="m", **values)  # type: ignore[arg-type]
        self.engine, self.meter = ScriptedEngine(), ScriptedMeter()
        self.open_error: Exception | None = None
        self.worker = Worker(spec, self.engine, open_meter=self._open_meter, watch_period_s=0.005)
        self.heard: list[Report] = []
        self._reader: asyncio.Task[None] | None = None

    def _open_meter(self, info: EngineInfo) -> OpenedMeter:
        if self.open_error is not None:
            raise self.open_error
        return OpenedMeter(meter=self.meter, notes=("nvml: not here",))

    def connect(self, epoch: int = 1, *, acks: bool = True) -> asyncio.Task[None]:
        async def read() -> None:
            async for report in self.worker.reports(epoch):
                self.heard.append(report)
                if acks and report.records:
                    self.worker.command(epoch, [Ack(number=report.records[-1].number)])

        self._reader = asyncio.create_task(read())
        return self._reader

    def call(self, *attempt_ids: str, epoch: int = 1) -> None:
        self.worker.command(epoch, [Call(attempt_id=each, path="/v1/completions", body=b"{}") for each in attempt_ids])

    @property
    def records(self) -> list[Numbered]:
        return [numbered for report in self.heard for numbered in report.records]

    @property
    def outputs(self) -> list[Output]:
        return [output for report in self.heard for output in report.outputs]

    @property
    def states(self) -> list[WorkerState]:
        return [report.status.state for report in self.heard if report.status is not None]

    @property
    def last_status(self) -> WorkerStatus:
        return next(report.status for report in reversed(self.heard) if report.status is not None)

    def usages(self) -> list[UsageRecord]:
        return [each.record for each in self.records if isinstance(each.record, UsageRecord)]

    def ends(self) -> list[Ended]:
        return [output for output in self.outputs if isinstance(output, Ended)]

    async def until(self, is_true: Callable[[], object]) -> None:
        async with asyncio.timeout(2.0):
            while not is_true():
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        self.engine.start_gate.set()
        await self.worker.stop()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)


@contextlib.asynccontextmanager
async def ready(**fields: object) -> AsyncIterator[House]:
    """A worker that is up and connected with epoch 1."""
    house = House(**fields)
    house.connect()
    await house.worker.start()
    await house.until(lambda: house.states and house.states[-1] is WorkerState.READY)
    try:
        yield house
    finally:
        await house.close()
