"""Engine + meter + attribution + outbox: one worker as a plain class, without Ray.

Called by ``workers.ray_worker`` (the actor) and by tests. It must never know Ray, tenants, prices or budgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from workers.attempts import Attempt, OutputBuffer, usage_of
from workers.attribution import Attribution
from workers.engine import Engine, EngineLoad, EngineSink, Message, Receive, Scope, Send
from workers.engine_model import EngineModel
from workers.errors import EngineStartError, MeterUnavailable, StaleEpoch, WireMismatch
from workers.outbox import Outbox
from workers.types import (
    WIRE_VERSION,
    Abort,
    Ack,
    Call,
    Command,
    EngineInfo,
    Grade,
    Report,
    SequenceUsage,
    StepRecord,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)
from workers.windows import MeterReading, PowerMeter, Windows

__all__ = ["Engine", "EngineLoad", "EngineSink", "Message", "OpenedMeter", "Receive", "Scope", "Send", "Worker"]

logger = logging.getLogger("jouleway.worker")

STATUS_PERIOD_S = 1.0
PROGRESS_PERIOD_S = 0.25
ABORT_GRACE_S = 5.0
"""How long an engine may take to obey a disconnect before its task is cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedMeter:
    """A meter, and the downgrades that led to it, in words."""

    meter: PowerMeter
    notes: tuple[str, ...] = ()


class Worker:
    """One engine with its meter. ``start`` it, ``command`` it, read ``reports``; ``stop`` it once.

    Not thread-safe: everything runs on one event loop, the meter alone is read on a thread.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        engine: Engine,
        *,
        open_meter: Callable[[EngineInfo], OpenedMeter],
        model: EngineModel | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self.spec = spec
        self._engine = engine
        self._open_meter = open_meter
        self._model = model or EngineModel()
        self._clock = clock
        self._unix_clock = unix_clock
        self._outbox = Outbox()
        self._buffer = OutputBuffer()
        self._attempts: dict[str, Attempt] = {}
        self._windows: Windows | None = None
        self._meter: PowerMeter | None = None
        self._meter_notes: tuple[str, ...] = ()
        self._meter_fault = ""
        self._reading: MeterReading | None = None
        self._power_watts: float | None = None
        self._info: EngineInfo | None = None
        self._state = WorkerState.STARTING
        self._cause = "waiting to start"
        self._epoch = 0
        self._dirty = asyncio.Event()
        self._status_due = True
        self._last_contact_s = clock()
        self._last_step_s = clock()
        self._num_dropped = 0
        self._is_calibrating = True
        self._tasks: list[asyncio.Task[None]] = []
        self._orphan_task: asyncio.Task[None] | None = None
        self.stopped = asyncio.Event()

    # -- start and stop

    async def start(self) -> None:
        """Engine, meter, calibration; then READY. On failure the state is STOPPED and ``cause`` says why.

        Raises: EngineStartError, with the engine's last lines.
        """
        try:
            self._set_state(WorkerState.STARTING, "starting the engine")
            self._info = await self._engine.start(self)
            opened = await asyncio.to_thread(self._open_meter, self._info)
            self._meter, self._meter_notes = opened.meter, opened.notes
            self._windows = Windows(
                attribution=Attribution(model=self._model, num_gpus=self._info.num_gpus, policy=self.spec.policy),
                outbox=self._outbox,
                unix_clock=self._unix_clock,
                meter_name=lambda: opened.meter.name,
                hook_grade=self._info.hook_grade,
                policy=self.spec.policy,
                last_counter_mj=self.spec.last_counter_mj,
                late_s=max(self.spec.stall_timeout_s, 2 * self.spec.window_s),
            )
            await self._read_meter()
            self._tasks = [
                asyncio.create_task(self._meter_loop(), name="meter"),
                asyncio.create_task(self._watch_loop(), name="watch"),
            ]
            if self.spec.calibration_s > 0:
                self._set_state(WorkerState.STARTING, f"calibrating (at most {self.spec.calibration_s:g} s)")
                await self._engine.calibrate(self.spec.calibration_s)
            await self._read_meter()  # serving begins at a window's edge
            self._is_calibrating = False
        except EngineStartError as error:
            self._set_state(WorkerState.STOPPED, str(error))
            raise
        except Exception as error:
            self._set_state(WorkerState.STOPPED, f"start failed: {type(error).__name__}: {error}")
            raise
        self._last_contact_s = self._clock()
        self._set_state(WorkerState.READY, "")

    async def stop(self, *, drain_s: float = 0.0, cause: str = "stopped by the operator") -> None:
        """Lets running attempts end for ``drain_s``, aborts the rest, closes the last window, stops the engine."""
        if self._state is WorkerState.STOPPED and self.stopped.is_set():
            return
        self._set_state(WorkerState.DRAINING, cause)
        deadline_s = self._clock() + drain_s
        while self._attempts and self._clock() < deadline_s:
            await asyncio.sleep(0.05)
        for attempt in list(self._attempts.values()):
            self._abort(attempt, "worker_stopped")
        pending = [attempt.task for attempt in self._attempts.values() if attempt.task is not None]
        if pending:
            await asyncio.wait(pending, timeout=ABORT_GRACE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._windows is not None:
            await self._read_meter()
            self._windows.settle(now_s=self._clock() + 1e6, num_running=0)
        await self._engine.stop()
        if self._meter is not None:
            await asyncio.to_thread(self._meter.close)
        self._set_state(WorkerState.STOPPED, cause)
        self.stopped.set()

    # -- the control side

    async def reports(self, epoch: int, wire_version: int = WIRE_VERSION) -> AsyncIterator[Report]:
        """The one output stream: an item per engine step, at least one a second.

        A newer epoch ends this stream before it can take another item, aborts what runs for the old one and replays
        the outbox. Raises: WireMismatch, StaleEpoch.
        """
        if wire_version != WIRE_VERSION:
            raise WireMismatch(given=wire_version, spoken=WIRE_VERSION)
        self._enter_epoch(epoch)
        next_status_s = next_progress_s = 0.0
        while self._epoch == epoch:
            now_s = self._clock()
            self._last_contact_s = now_s
            status = None
            if self._status_due or now_s >= next_status_s:
                self._status_due = False
                next_status_s = now_s + STATUS_PERIOD_S
                status = self.status()
            progress = []
            if now_s >= next_progress_s and self._info is not None:
                next_progress_s = now_s + PROGRESS_PERIOD_S
                progress = self._engine.progress()
            self._dirty.clear()
            report = Report(
                epoch=epoch,
                outputs=self._buffer.take(),
                progress=progress,
                records=self._outbox.take_unsent(),
                status=status,
            )
            if report.outputs or report.progress or report.records or report.status:
                yield report
            if self._buffer.is_empty and not self._status_due:
                timeout_s = max(next_status_s - self._clock(), 0.0)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._dirty.wait(), timeout_s)
            # Let every request of this engine step write before the item leaves: one item a step, not one a request.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        raise StaleEpoch(given=epoch, current=self._epoch)

    def command(self, epoch: int, commands: list[Command]) -> None:
        """Calls, aborts and acknowledgements, in order. Raises: StaleEpoch."""
        if epoch != self._epoch:
            raise StaleEpoch(given=epoch, current=self._epoch)
        self._last_contact_s = self._clock()
        for command in commands:
            match command:
                case Call():
                    self._begin(command)
                case Abort(attempt_id=attempt_id, reason=reason):
                    if (attempt := self._attempts.get(attempt_id)) is not None:
                        self._abort(attempt, reason)
                case Ack(number=number):
                    self._outbox.ack(number)

    def status(self) -> WorkerStatus:
        """What the worker says of itself now."""
        load = (
            self._engine.load()
            if self._info is not None
            else EngineLoad(num_running=0, num_waiting=0, kv_used_tokens=0)
        )
        health = self._meter.health() if self._meter is not None else ()
        return WorkerStatus(
            worker_id=self.spec.worker_id,
            state=self._state,
            cause=self._cause,
            zone=self.spec.zone,
            info=self._info,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            kv_used_tokens=load.kv_used_tokens,
            steps_total=self._windows.num_steps if self._windows is not None else 0,
            dropped_step_records_total=self._num_dropped,
            outbox_depth=self._outbox.depth,
            outbox_dropped_total=self._outbox.dropped_total,
            in_flight_mj=self._windows.in_flight_mj if self._windows is not None else 0,
            meter=self._meter.name if self._meter is not None else "",
            grade=self._reading.grade if self._reading is not None else Grade.D,
            meter_up=self._reading is not None and not self._meter_fault,
            power_watts=self._power_watts,
            counter_mj=self._reading.counter_mj if self._reading is not None else None,
            health=(*health, *self._meter_notes, *((self._meter_fault,) if self._meter_fault else ())),
            curves=self._model.curves() if self._windows is not None else None,
        )

    # -- the engine's side: sink

    def on_step(self, step: StepRecord) -> None:
        assert self._windows is not None
        self._last_step_s = self._clock()
        self._windows.add_step(step)
        if self._state is WorkerState.SICK:
            self._set_state(WorkerState.READY, "")

    def on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        attempt = self._attempts.get(attempt_id)
        if attempt is not None and attempt.sequences is None:
            attempt.sequences = sequences
            self._finish(attempt)

    def on_dropped(self, num_records: int) -> None:
        self._num_dropped += num_records
        if self._windows is not None:
            self._windows.add_dropped(num_records)

    def on_engine_dead(self, cause: str) -> None:
        self._set_state(WorkerState.STOPPED, cause)
        for attempt in list(self._attempts.values()):
            attempt.failure = attempt.failure or "engine_dead"
            self._disconnect(attempt)

    # -- one attempt

    def _begin(self, call: Call) -> None:
        attempt = Attempt(call=call, started_s=self._clock())
        refusal = self._refusal(call)
        if refusal:
            attempt.failure = refusal
            attempt.ended_s = attempt.started_s
            attempt.sequences = ()
            attempt.is_asgi_done = True
            if call.attempt_id not in self._attempts:
                self._buffer.end(attempt)
                if self._windows is not None:
                    self._windows.open_attempt(call.attempt_id)
                self._attempts[call.attempt_id] = attempt
                self._finish(attempt)
            return
        assert self._windows is not None
        self._attempts[call.attempt_id] = attempt
        self._windows.open_attempt(call.attempt_id)
        if not self._engine_busy():
            self._last_step_s = self._clock()
        attempt.task = asyncio.create_task(self._run(attempt), name=call.attempt_id)

    def _refusal(self, call: Call) -> str:
        """Why this call cannot be taken; the worker has the last word, since the caller's picture of it is old."""
        if self._state is not WorkerState.READY:
            return f"worker_{self._state.value}"
        if call.attempt_id in self._attempts:
            return "duplicate_attempt"
        if len(self._attempts) >= self.spec.max_running or not self._outbox.has_request_room:
            return "worker_busy"
        return ""

    async def _run(self, attempt: Attempt) -> None:
        """Drives the engine's ASGI app for one attempt, and ends it on every path."""
        attempt_id = attempt.call.attempt_id
        try:
            scope, body = self._engine.request(attempt.call)
            is_body_read = False

            async def receive() -> Message:
                nonlocal is_body_read
                if not is_body_read:
                    is_body_read = True
                    return {"type": "http.request", "body": body, "more_body": False}
                await attempt.disconnect.wait()
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                if not self._buffer.has_room:
                    await self._buffer.wait_for_room()
                if attempt.first_byte_s is None and message.get("body"):
                    attempt.first_byte_s = self._clock()
                self._buffer.put(attempt, message)
                self._dirty.set()

            await self._engine.app(scope, receive, send)
        except asyncio.CancelledError:
            attempt.failure = attempt.failure or "cancelled"
        except Exception as error:
            # The text of an engine's exception may hold a prompt: only its type leaves.
            logger.warning("attempt %s failed in the engine: %s", attempt_id, type(error).__name__)
            attempt.failure = attempt.failure or f"engine_error:{type(error).__name__}"
        finally:
            attempt.is_asgi_done = True
            attempt.ended_s = self._clock()
            self._buffer.end(attempt)
            self._engine.asgi_ended(attempt_id)
            self._finish(attempt)
            self._dirty.set()

    def _finish(self, attempt: Attempt) -> None:
        """Charges the attempt once both its endings are here."""
        attempt_id = attempt.call.attempt_id
        if not attempt.is_asgi_done or attempt.sequences is None or attempt_id not in self._attempts:
            return
        del self._attempts[attempt_id]
        provisional = self._windows.provisional(attempt_id) if self._windows is not None else (0, 0)
        self._outbox.put(usage_of(attempt, provisional=provisional))
        if self._windows is not None:
            self._windows.close_attempt(attempt_id)
        self._dirty.set()

    def _abort(self, attempt: Attempt, reason: str) -> None:
        attempt.abort_reason = attempt.abort_reason or reason
        self._disconnect(attempt)

    def _disconnect(self, attempt: Attempt) -> None:
        if attempt.disconnect.is_set():
            return
        attempt.disconnect.set()
        if attempt.task is not None and not attempt.task.done():
            asyncio.get_running_loop().call_later(ABORT_GRACE_S, attempt.task.cancel)

    def _enter_epoch(self, epoch: int) -> None:
        if epoch <= self._epoch:
            raise StaleEpoch(given=epoch, current=self._epoch)
        self._epoch = epoch
        self._dirty.set()
        for attempt in list(self._attempts.values()):
            self._abort(attempt, "orphaned")
        self._buffer.clear()
        self._outbox.rewind()
        self._status_due = True

    # -- meter and watch

    async def _meter_loop(self) -> None:
        """A boundary every ``window_s``; settles whatever is due in between."""
        assert self._windows is not None
        next_s = self._clock() + self.spec.window_s
        while True:
            await asyncio.sleep(min(0.25, max(next_s - self._clock(), 0.01)))
            if self._clock() >= next_s:
                await self._read_meter()
                next_s = self._clock() + self.spec.window_s
            if self._windows.settle(now_s=self._clock(), num_running=self._num_running()):
                self._dirty.set()

    async def _read_meter(self) -> None:
        assert self._windows is not None
        assert self._meter is not None
        before = self._reading
        try:
            reading: MeterReading | None = await asyncio.to_thread(self._meter.read)
        except MeterUnavailable as error:
            reading = None
            self._meter_fault = f"meter_lost: {error}"
        else:
            self._meter_fault = ""
        if reading is not None:
            if before is not None and reading.at_s > before.at_s and reading.counter_mj >= before.counter_mj:
                self._power_watts = (reading.counter_mj - before.counter_mj) / 1000 / (reading.at_s - before.at_s)
            self._reading = reading
        self._windows.add_reading(reading, now_s=self._clock(), calibrating=self._is_calibrating)

    async def _watch_loop(self) -> None:
        """Stall watchdog and orphan rule, once a second."""
        while True:
            await asyncio.sleep(1.0)
            now_s = self._clock()
            stalled_s = now_s - self._last_step_s
            if self._state is WorkerState.READY and self._attempts and stalled_s > self.spec.stall_timeout_s:
                self._set_state(WorkerState.SICK, f"no step for {stalled_s:.0f} s with {len(self._attempts)} running")
                for attempt in list(self._attempts.values()):
                    attempt.failure = attempt.failure or "stalled"
                    self._disconnect(attempt)
            timeout_s = self.spec.orphan_timeout_s
            if timeout_s > 0 and now_s - self._last_contact_s > timeout_s and self._state is WorkerState.READY:
                # Its own task, and kept: it outlives this loop, which it cancels.
                self._orphan_task = asyncio.create_task(self.stop(cause=f"no control plane for {timeout_s:g} s"))
                return

    def _num_running(self) -> int:
        load = self._engine.load()
        return load.num_running + load.num_waiting

    def _engine_busy(self) -> bool:
        return self._num_running() > 0

    def _set_state(self, state: WorkerState, cause: str) -> None:
        if (state, cause) != (self._state, self._cause):
            logger.info("worker %s is %s%s", self.spec.worker_id, state.value, f": {cause}" if cause else "")
        self._state, self._cause = state, cause
        self._status_due = True
        self._dirty.set()
