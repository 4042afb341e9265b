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

import msgspec

from workers.attempts import Attempt, OutputBuffer, drive, usage_of
from workers.attribution import Attribution
from workers.engine import Engine, EngineLoad, EngineSink, Message, Receive, Scope, Send
from workers.engine_model import EngineModel
from workers.errors import EngineStartError, StaleEpoch, WireMismatch
from workers.metering import Metering
from workers.outbox import Outbox
from workers.types import (
    WIRE_VERSION,
    Abort,
    Ack,
    Call,
    Command,
    EngineInfo,
    Report,
    SequenceUsage,
    StepRecord,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)
from workers.windows import PowerMeter, Windows

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
        self._metering: Metering | None = None
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
            self._metering = await self._open_metering(self._info)
            await self._metering.read()
            self._tasks = [
                asyncio.create_task(self._metering.run(), name="metering"),
                asyncio.create_task(self._watch(), name="watch"),
            ]
            if self.spec.calibration_s > 0:
                self._set_state(WorkerState.STARTING, f"calibrating (at most {self.spec.calibration_s:g} s)")
                await self._engine.calibrate(self.spec.calibration_s)
            await self._metering.read()  # serving begins at a window's edge
            self._metering.is_calibrating = False
        except EngineStartError as error:
            self._set_state(WorkerState.STOPPED, str(error))
            raise
        except Exception as error:
            self._set_state(WorkerState.STOPPED, f"start failed: {type(error).__name__}: {error}")
            raise
        self._last_contact_s = self._clock()
        self._set_state(WorkerState.READY, "")

    async def _open_metering(self, info: EngineInfo) -> Metering:
        opened = await asyncio.to_thread(self._open_meter, info)
        windows = Windows(
            attribution=Attribution(model=self._model, num_gpus=info.num_gpus, policy=self.spec.policy),
            outbox=self._outbox,
            unix_clock=self._unix_clock,
            meter_name=lambda: opened.meter.name,
            hook_grade=info.hook_grade,
            policy=self.spec.policy,
            last_counter_mj=self.spec.last_counter_mj,
            late_s=max(self.spec.stall_timeout_s, 2 * self.spec.window_s),
        )
        return Metering(
            meter=opened.meter,
            notes=(*info.notes, *opened.notes),
            windows=windows,
            window_s=self.spec.window_s,
            clock=self._clock,
            num_running=self._num_running,
            on_settled=self._dirty.set,
        )

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
        if self._metering is not None:
            await self._metering.close()
        await self._engine.stop()
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
        idle = EngineLoad(num_running=0, num_waiting=0, kv_used_tokens=0)
        load = self._engine.load() if self._info is not None else idle
        status = WorkerStatus(
            worker_id=self.spec.worker_id,
            state=self._state,
            cause=self._cause,
            zone=self.spec.zone,
            info=self._info,
            num_running=load.num_running,
            num_waiting=load.num_waiting,
            kv_used_tokens=load.kv_used_tokens,
            dropped_step_records_total=self._num_dropped,
            outbox_depth=self._outbox.depth,
            outbox_dropped_total=self._outbox.dropped_total,
        )
        metering = self._metering
        if metering is None:
            return status
        return msgspec.structs.replace(
            status,
            steps_total=metering.windows.num_steps,
            in_flight_mj=metering.windows.in_flight_mj,
            meter=metering.name,
            grade=metering.grade,
            meter_up=metering.is_up,
            power_watts=metering.power_watts,
            counter_mj=metering.counter_mj,
            health=metering.health,
            curves=self._model.curves(),
        )

    # -- the engine's side: sink

    def on_step(self, step: StepRecord) -> None:
        assert self._metering is not None
        self._last_step_s = self._clock()
        self._metering.windows.add_step(step)
        if self._state is WorkerState.SICK:
            self._set_state(WorkerState.READY, "")

    def on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        attempt = self._attempts.get(attempt_id)
        if attempt is not None and attempt.sequences is None:
            attempt.sequences = sequences
            self._finish(attempt)

    def on_dropped(self, num_records: int) -> None:
        self._num_dropped += num_records
        if self._metering is not None:
            self._metering.windows.add_dropped(num_records)

    def on_engine_dead(self, cause: str) -> None:
        self._set_state(WorkerState.STOPPED, cause)
        for attempt in list(self._attempts.values()):
            attempt.failure = attempt.failure or "engine_dead"
            self._disconnect(attempt)

    # -- one attempt

    def _begin(self, call: Call) -> None:
        if call.attempt_id in self._attempts:
            logger.warning("attempt %s is running already: the second call is ignored", call.attempt_id)
            return
        attempt = Attempt(call=call, started_s=self._clock())
        self._attempts[call.attempt_id] = attempt
        if self._metering is not None:
            self._metering.windows.open_attempt(call.attempt_id)
        attempt.failure = self._refusal()
        if attempt.failure:
            attempt.ended_s, attempt.is_asgi_done, attempt.sequences = attempt.started_s, True, ()
            self._buffer.end(attempt)
            self._finish(attempt)
            return
        if self._num_running() == 0:
            self._last_step_s = attempt.started_s  # the stall clock starts with the work
        attempt.task = asyncio.create_task(self._run(attempt), name=call.attempt_id)

    def _refusal(self) -> str:
        """Why no call can be taken now; the worker has the last word, since the caller's picture of it is old."""
        if self._state is not WorkerState.READY:
            return f"worker_{self._state.value}"
        if len(self._attempts) > self.spec.max_running or not self._outbox.has_request_room:
            return "worker_busy"
        return ""

    async def _run(self, attempt: Attempt) -> None:
        """Drives the engine for one attempt, and ends it on every path."""
        try:
            await drive(attempt, engine=self._engine, buffer=self._buffer, clock=self._clock, on_output=self._dirty.set)
        finally:
            attempt.is_asgi_done = True
            attempt.ended_s = self._clock()
            self._buffer.end(attempt)
            self._engine.asgi_ended(attempt.call.attempt_id)
            self._finish(attempt)
            self._dirty.set()

    def _finish(self, attempt: Attempt) -> None:
        """Charges the attempt once both its endings are here."""
        attempt_id = attempt.call.attempt_id
        if not attempt.is_asgi_done or attempt.sequences is None or attempt_id not in self._attempts:
            return
        del self._attempts[attempt_id]
        windows = self._metering.windows if self._metering is not None else None
        provisional = windows.provisional(attempt_id) if windows is not None else (0, 0)
        self._outbox.put(usage_of(attempt, provisional=provisional))
        if windows is not None:
            windows.close_attempt(attempt_id)
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

    # -- the watch

    async def _watch(self) -> None:
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

    def _set_state(self, state: WorkerState, cause: str) -> None:
        if (state, cause) != (self._state, self._cause):
            logger.info("worker %s is %s%s", self.spec.worker_id, state.value, f": {cause}" if cause else "")
        self._state, self._cause = state, cause
        self._status_due = True
        self._dirty.set()
