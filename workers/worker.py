"""Engine + meter + attribution + outbox: one worker as a plain class, without Ray.

Called by ``workers.host`` and by tests. It must never know Ray, tenants, prices or budgets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from workers.attempts import Attempt, Attempts, OutputBuffer, usage_of, wait_at_most
from workers.engine import Engine, EngineLoad
from workers.engine_model import EngineModel
from workers.engine_parking import Parking
from workers.errors import EngineStartError, StaleEpoch, WireMismatch
from workers.metering import Metering, OpenedMeter, open_metering
from workers.outbox import Outbox
from workers.steps import StepRecord
from workers.types import (
    WIRE_VERSION,
    Abort,
    Ack,
    Call,
    Command,
    EngineInfo,
    Park,
    Report,
    SequenceUsage,
    Wake,
    WorkerSpec,
    WorkerState,
    WorkerStatus,
)
from workers.watch import Verdict, Watch

logger = logging.getLogger("jouleway.worker")

STATUS_PERIOD_S = 1.0
PROGRESS_PERIOD_S = 0.25
WATCH_PERIOD_S = 1.0
END_GRACE_S = 7.0
"""How long a stop waits for aborted attempts to end and close; what is left then is closed without a word."""
ENGINE_STOP_S = 30.0
"""How long an engine may take to stop; what it leaves behind is killed after its process."""


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
        watch_period_s: float = WATCH_PERIOD_S,
    ) -> None:
        self.spec = spec
        self._engine = engine
        self._open_meter = open_meter
        self._model = model or EngineModel()
        self._clock = clock
        self._unix_clock = unix_clock
        self._watch_period_s = watch_period_s
        self._watch = Watch(stall_timeout_s=spec.stall_timeout_s, orphan_timeout_s=spec.orphan_timeout_s, now_s=clock())
        self._outbox = Outbox()
        self._buffer = OutputBuffer()
        self._dirty = asyncio.Event()
        self._attempts = Attempts(
            engine=engine, buffer=self._buffer, clock=clock, on_output=self._dirty.set, on_final=self._on_final
        )
        self._metering: Metering | None = None
        self._parking = Parking(spec, engine, self, clock=clock, on_change=self._on_parking, on_failed=self._begin_stop)
        self._info: EngineInfo | None = None
        self._state = WorkerState.STARTING
        self._cause = "waiting to start"
        self.epoch = 0
        """Of the connection that is served; 0 before the first."""
        self._status_due = True
        self._num_dropped = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.stopped = asyncio.Event()

    # -- start and stop

    async def start(self) -> None:
        """Engine, meter, calibration; then READY. On failure the engine is stopped, and ``cause`` says why.

        Raises: EngineStartError, with the engine's last lines.
        """
        self._tasks.append(asyncio.create_task(self._keep_watch(), name="watch"))
        self._starting = asyncio.create_task(self._start(), name="start")
        try:
            await self._starting
        except asyncio.CancelledError:
            if self._stopping is None:
                raise
            await self.stopped.wait()
            raise EngineStartError(f"stopped before it was up: {self._cause}") from None
        except Exception as error:
            is_said = isinstance(error, EngineStartError)
            self._begin_stop(str(error) if is_said else f"start failed: {type(error).__name__}: {error}")
            await self.stopped.wait()
            raise

    async def _start(self) -> None:
        self._set_state(WorkerState.STARTING, "starting the engine")
        started_s = self._clock()
        self._info = await self._engine.start(self)
        self._metering = open_metering(
            await asyncio.to_thread(self._open_meter, self._info),
            self._info,
            self.spec,
            model=self._model,
            outbox=self._outbox,
            clock=self._clock,
            unix_clock=self._unix_clock,
            num_running=self._num_running,
            on_settled=self._dirty.set,
        )
        await self._metering.read()
        start_s = self._clock() - started_s
        task = asyncio.create_task(self._metering.run(), name="metering")
        task.add_done_callback(self._on_metering_done)
        self._tasks.append(task)
        if self.spec.calibration_s > 0:
            self._set_state(WorkerState.STARTING, f"calibrating (at most {self.spec.calibration_s:g} s)")
            await self._engine.calibrate(self.spec.calibration_s)
        await self._metering.read()  # serving begins at a window's edge
        self._metering.is_calibrating = False
        self._parking.came_up(self._info, self._metering, start_s=start_s)
        self._set_state(WorkerState.READY, "")

    async def stop(self, *, drain_s: float = 0.0, cause: str = "stopped by the operator") -> None:
        """Lets running attempts end for ``drain_s``, aborts the rest, closes the last window, stops the engine.

        Its last records and its state leave through ``reports``. Called again it waits for the first call's end.
        """
        self._begin_stop(cause, drain_s=drain_s)
        await self.stopped.wait()

    @property
    def has_said_all(self) -> bool:
        """Stopped, its last state taken by a connection and its last record acknowledged."""
        return self.stopped.is_set() and not self._status_due and not self._outbox.depth

    def _begin_stop(self, cause: str, *, drain_s: float = 0.0) -> None:
        if self._stopping is None and not self.stopped.is_set():
            self._set_state(WorkerState.DRAINING, cause)
            self._stopping = asyncio.create_task(self._stop(cause, drain_s=drain_s), name="stop")

    async def _stop(self, cause: str, *, drain_s: float) -> None:
        try:
            if self._starting is not None:
                self._starting.cancel()
                await asyncio.wait({self._starting})
            await self._parking.stop()
            self._set_state(WorkerState.DRAINING, cause)
            await self._attempts.wait_empty(drain_s)
            self._attempts.abort_all("worker_stopped")
            await self._attempts.wait_empty(END_GRACE_S)
            self._attempts.close_by_force()
            await self._shut_down()
        finally:
            self._set_state(WorkerState.STOPPED, cause)
            self.stopped.set()

    async def _shut_down(self) -> None:
        """The last edge and the engine's end: what of it fails is only logged, for nobody could do more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closes = [self._engine.stop] if self._metering is None else [self._metering.close, self._engine.stop]
        for close in closes:
            try:
                async with asyncio.timeout(ENGINE_STOP_S):
                    await close()
            except Exception as error:
                logger.error("worker %s did not close all: %s: %s", self.spec.worker_id, type(error).__name__, error)

    def _on_metering_done(self, task: asyncio.Task[None]) -> None:
        """A worker that cannot meter must not serve."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("metering of worker %s failed", self.spec.worker_id, exc_info=error)
            self._begin_stop(f"metering failed: {type(error).__name__}: {error}")

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
        while self.epoch == epoch:
            now_s = self._clock()
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
            if self._buffer.is_empty and not self._status_due and not self._outbox.has_unsent:
                timeout_s = max(next_status_s - self._clock(), 0.0)
                await wait_at_most(timeout_s, self._dirty)
            # Let every request of this engine step write before the item leaves: one item a step, not one a request.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        raise StaleEpoch(given=epoch, current=self.epoch)

    def command(self, epoch: int, commands: list[Command]) -> None:
        """Calls, aborts and acknowledgements, in order; an empty list says that the control plane lives.

        Raises: StaleEpoch.
        """
        if epoch != self.epoch:
            raise StaleEpoch(given=epoch, current=self.epoch)
        self._watch.on_contact(self._clock())
        for command in commands:
            match command:
                case Call():
                    self._begin(command)
                case Abort(attempt_id=attempt_id, reason=reason):
                    self._attempts.abort(attempt_id, reason)
                case Ack(number=number):
                    self._outbox.ack(number)
                    if self._state is WorkerState.STOPPED:
                        self._status_due = True  # whoever stopped it waits for the outbox to be empty
                        self._dirty.set()
                case Park(reason=reason):
                    self._park(reason)
                case Wake(reason=reason):
                    if self._state is WorkerState.PARKED:  # not one that stops for good
                        self._parking.wake(reason)

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
        if self._metering is None:
            return status
        told, health = self._metering.told(status), self._model.health(load.num_running)
        return msgspec.structs.replace(
            told,
            curves=self._model.curves(),
            power_states=self._parking.states(),
            health=(*told.health, *health),
        )

    # -- the engine's side: sink

    def on_step(self, step: StepRecord) -> None:
        assert self._metering is not None
        self._watch.on_step(self._clock())
        self._metering.windows.add_step(step)
        if self._state is WorkerState.SICK:
            self._set_state(WorkerState.READY, "")

    def on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        self._attempts.close(attempt_id, sequences)

    def on_dropped(self, num_records: int) -> None:
        self._num_dropped += num_records
        if self._metering is not None:
            self._metering.windows.add_dropped(num_records)

    def on_engine_dead(self, cause: str) -> None:
        self._attempts.fail_all("engine_dead")
        self._begin_stop(cause)

    # -- attempts

    def _begin(self, call: Call) -> None:
        if call.attempt_id in self._attempts:
            logger.warning("attempt %s is running already: the second call is ignored", call.attempt_id)
            return
        refusal = self._refusal()
        if not len(self._attempts):
            self._watch.on_step(self._clock())  # the stall clock starts with the work
        if self._metering is not None:
            self._metering.windows.open_attempt(call.attempt_id)
        self._attempts.begin(call, refusal=refusal)

    def _refusal(self) -> str:
        """Why no call can be taken now; the worker has the last word, since the caller's picture of it is old."""
        if self._state is not WorkerState.READY:
            return f"worker_{self._state.value}"
        if len(self._attempts) >= self.spec.max_running or not self._outbox.has_request_room:
            return "worker_busy"
        return ""

    def _park(self, reason: str) -> None:
        """Not where anything runs: whoever ordered it thought that nothing did."""
        if len(self._attempts) or self._state not in (WorkerState.READY, WorkerState.PARKED):
            words = f"{self._state.value}, {len(self._attempts)} running"
            logger.info("worker %s is not parked (%s): %s", self.spec.worker_id, words, reason)
        else:
            self._parking.park(reason)

    def _on_parking(self, state: WorkerState, cause: str, info: EngineInfo) -> None:
        self._info = info
        if self._stopping is None:
            self._set_state(state, cause)

    def _on_final(self, attempt: Attempt) -> None:
        """Both endings of an attempt are here: it is charged, and its energy follows with its last window."""
        attempt_id = attempt.call.attempt_id
        windows = self._metering.windows if self._metering is not None else None
        provisional = windows.provisional(attempt_id) if windows is not None else (0, 0)
        self._outbox.put(usage_of(attempt, provisional=provisional))
        if windows is not None:
            windows.close_attempt(attempt_id)
        self._dirty.set()

    def _enter_epoch(self, epoch: int) -> None:
        if epoch <= self.epoch:
            raise StaleEpoch(given=epoch, current=self.epoch)
        self.epoch = epoch
        self._watch.on_contact(self._clock())
        self._dirty.set()
        self._attempts.abort_all("orphaned")
        self._buffer.clear()
        self._outbox.rewind()
        self._status_due = True

    # -- the watch

    async def _keep_watch(self) -> None:
        """Stall watchdog and orphan rule, once a second, from the first moment of the start on."""
        while True:
            await asyncio.sleep(self._watch_period_s)
            now_s = self._clock()
            num_running = self._attempts.num_running
            self._parking.look()
            # Where nobody reads, it is not the engine that holds its requests up.
            has_work = bool(num_running) and self._buffer.has_room
            match self._watch.look(now_s, state=self._state, has_work=has_work):
                case Verdict.STALLED:
                    stalled_s = self._watch.stalled_s(now_s)
                    self._set_state(WorkerState.SICK, f"no step for {stalled_s:.0f} s with {num_running} running")
                    self._attempts.fail_all("stalled")
                case Verdict.HUNG:
                    self._begin_stop(f"hung: no step for {self._watch.stalled_s(now_s):.0f} s")
                case Verdict.ORPHANED:
                    self._begin_stop(f"no control plane for {self._watch.silent_s(now_s):.0f} s")

    def _num_running(self) -> int:
        load = self._engine.load()
        return load.num_running + load.num_waiting

    def _set_state(self, state: WorkerState, cause: str) -> None:
        if (state, cause) != (self._state, self._cause):
            logger.info("worker %s is %s%s", self.spec.worker_id, state.value, f": {cause}" if cause else "")
        self._state, self._cause = state, cause
        self._status_due = True
        self._dirty.set()
