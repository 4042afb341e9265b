"""An engine is parked and woken: its process ends and starts again, while its worker and its meter live on.

Owned by ``workers.worker``. It must never know an attempt, an order's sender or a price.

Orders may cross. Parking is never broken off and neither is a start: a wake that comes while the engine is being parked
follows at once, and another order to park takes it back; an order to park that comes during a start is not taken, for
by then most of the start is paid. Whoever gave it sees the engine come up, and may give it again.

Calibration is not repeated: the curves are this engine's own, and are as true after a wake as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from enum import StrEnum

import msgspec

from workers.engine import Engine, EngineSink
from workers.errors import EngineStartError
from workers.metering import Metering
from workers.power_states import PowerBook, prior_of
from workers.step_curves import PowerStates
from workers.types import EngineInfo, Phase, WorkerSpec, WorkerState
from workers.windows import MeterReading

logger = logging.getLogger("jouleway.worker")

PARK_TIMEOUT_S = 30.0
"""How long an engine may take to end; one that does not is given up with its worker."""


class _Stage(StrEnum):
    UP = "up"
    PARKING = "parking"
    PARKED = "parked"
    WAKING = "waking"


class Parking:
    """Of one engine. ``on_change`` hears each new state with its cause and the engine's info."""

    def __init__(
        self,
        spec: WorkerSpec,
        engine: Engine,
        sink: EngineSink,
        *,
        clock: Callable[[], float],
        on_change: Callable[[WorkerState, str, EngineInfo], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._may = spec.can_park
        self._engine = engine
        self._sink = sink
        self._book = PowerBook(prior_of(spec))
        self._clock = clock
        self._on_change = on_change
        self._on_failed = on_failed
        self._stage = _Stage.WAKING
        self._wake_next: str | None = None
        """Why it is to be woken as soon as it is parked."""
        self._rests_since: MeterReading | None = None
        self._task: asyncio.Task[None] | None = None

    def came_up(self, info: EngineInfo, metering: Metering, *, start_s: float) -> None:
        """For the first time; before that every order is ignored. ``start_s``: how long it took."""
        self._info, self._metering, self._stage = info, metering, _Stage.UP
        self._book.started_first(start_s)

    def states(self) -> PowerStates | None:
        """What it takes to park it and to start it again, as known now; None where it must not be parked."""
        return self._book.states() if self._may else None

    def park(self, reason: str) -> None:
        """Nothing runs there, and once it says that it is parked nothing may begin."""
        self._wake_next = None
        if self._stage is _Stage.UP and self._may:
            self._stage = _Stage.PARKING
            self._on_change(WorkerState.PARKED, f"stopping the engine: {reason}", self._info)
            self._task = asyncio.create_task(self._watched(self._park(reason)), name="park")

    def wake(self, reason: str) -> None:
        """Starts it again, now or as soon as it is parked."""
        if self._stage is _Stage.PARKING:
            self._wake_next = reason
        elif self._stage is _Stage.PARKED:
            self._stage = _Stage.WAKING
            self._on_change(WorkerState.STARTING, f"starting the engine again: {reason}", self._info)
            self._task = asyncio.create_task(self._watched(self._wake()), name="wake")

    def look(self) -> None:
        """Learns what it draws while it is parked; called once in a while."""
        if self._stage is _Stage.PARKED:
            self._book.rested(self._rests_since, self._metering.reading)

    async def stop(self) -> None:
        """Breaks off what is under way; the engine itself is for the caller to stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watched(self, work: Coroutine[None, None, None]) -> None:
        """An engine that cannot be parked, or not be started again, ends its worker."""
        try:
            await work
        except Exception as error:
            is_said = isinstance(error, EngineStartError)
            doing, how = self._stage.value, f"{type(error).__name__}: {error}"
            self._on_failed(str(error) if is_said else f"{doing} failed: {how}")

    async def _park(self, reason: str) -> None:
        await self._metering.turn(Phase.PARKED)
        await self._metering.follow(())
        async with asyncio.timeout(PARK_TIMEOUT_S):
            await self._engine.park()
        self._info = msgspec.structs.replace(self._info, pids=())
        self._rests_since = await self._metering.turn(Phase.PARKED)
        self._stage = _Stage.PARKED
        self._on_change(WorkerState.PARKED, reason, self._info)
        wake_next, self._wake_next = self._wake_next, None
        if wake_next is not None:
            self.wake(wake_next)

    async def _wake(self) -> None:
        started_s = self._clock()
        before = await self._metering.turn(Phase.STARTING)
        self._book.rested(self._rests_since, before)
        self._info = await self._engine.start(self._sink)
        self._metering.windows.hook_grade = self._info.hook_grade
        await self._metering.follow(self._info.pids)
        after = await self._metering.turn(Phase.SERVING)
        self._book.woke(self._clock() - started_s, before, after)
        self._stage = _Stage.UP
        self._on_change(WorkerState.READY, "", self._info)
