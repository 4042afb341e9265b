"""The meter's clock: reads it on a thread, makes each reading a window's edge, settles what is due.

Called by ``workers.worker``. It must never know an engine, an attempt's bytes or Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from workers.attribution import Attribution
from workers.engine_model import EngineModel
from workers.errors import MeterUnavailable
from workers.outbox import Outbox
from workers.types import EngineInfo, Grade, Phase, WorkerSpec, WorkerStatus
from workers.windows import MeterReading, PowerMeter, Windows

logger = logging.getLogger("jouleway.worker")

POLL_S = 0.25
"""How often settled windows are looked for between two readings."""

LAST_EDGE_S = 1.0
"""How long an end waits for the counter to move past the last step."""

READ_TIMEOUT_S = 5.0
"""A driver may block for ever when its device is dying; a meter that does not answer in this time is lost."""

NVML_COUNTER = "nvml:energy-counter"


def counter_id(meter_name: str, gpu_uuids: tuple[str, ...]) -> str:
    """Names a counter that counts on whoever reads it; empty for one that each process begins anew."""
    return ",".join(sorted(gpu_uuids)) if meter_name == NVML_COUNTER else ""


def last_counter_mj(spec: WorkerSpec, meter_name: str) -> int | None:
    """Where the first window begins, if the last reading is of the very counter that is read now; else None."""
    is_same = spec.last_counter_id in ("", counter_id(meter_name, spec.gpu_uuids))
    return spec.last_counter_mj if is_same else None


def watts_between(before: MeterReading | None, after: MeterReading | None) -> float | None:
    """Mean power; None where a reading is missing, the counter began anew or did not move on."""
    if before is None or after is None or after.at_s <= before.at_s or after.counter_mj < before.counter_mj:
        return None
    return (after.counter_mj - before.counter_mj) / 1000 / (after.at_s - before.at_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedMeter:
    """A meter, and the downgrades that led to it, in words."""

    meter: PowerMeter
    notes: tuple[str, ...] = ()
    follow: Callable[[tuple[int, ...]], None] = lambda pids: None
    """Told when other processes are the engine, none while it is parked. What counts devices need not know."""


class Metering:
    """One meter, its windows, and what is known of both now."""

    def __init__(
        self,
        *,
        meter: PowerMeter,
        notes: tuple[str, ...],
        gpu_uuids: tuple[str, ...] = (),
        windows: Windows,
        window_s: float,
        clock: Callable[[], float],
        num_running: Callable[[], int],
        on_settled: Callable[[], None],
        follow: Callable[[tuple[int, ...]], None] = lambda pids: None,
    ) -> None:
        """``follow``: what the meter is told when other processes are the engine; see ``OpenedMeter``."""
        self._meter = meter
        self._notes = notes
        self._gpu_uuids = gpu_uuids
        self.windows = windows
        self._window_s = window_s
        self._clock = clock
        self._num_running = num_running
        self._on_settled = on_settled
        self._follow = follow
        self._reading: MeterReading | None = None
        self._fault = ""
        self._has_jumped = False
        """What is counted from here on says nothing of the power before."""
        self._asked: asyncio.Task[MeterReading] | None = None
        self.is_calibrating = True
        self.power_watts: float | None = None

    @property
    def name(self) -> str:
        return self._meter.name

    @property
    def is_up(self) -> bool:
        return self._reading is not None and not self._fault

    @property
    def grade(self) -> Grade:
        """Grade of the last reading; D while there is none."""
        return Grade.D if self._reading is None or self._fault else self._reading.grade

    @property
    def counter_mj(self) -> int | None:
        return None if self._reading is None else self._reading.counter_mj

    @property
    def health(self) -> tuple[str, ...]:
        """Downgrades, faults and the device's own complaints, in words."""
        return (*self._meter.health(), *self._notes, *((self._fault,) if self._fault else ()))

    def told(self, status: WorkerStatus) -> WorkerStatus:
        """With all that is known here."""
        return msgspec.structs.replace(
            status,
            steps_total=self.windows.num_steps,
            in_flight_mj=self.windows.in_flight_mj,
            meter=self.name,
            grade=self.grade,
            meter_up=self.is_up,
            power_watts=self.power_watts,
            counter_mj=self.counter_mj,
            counter_id=counter_id(self.name, self._gpu_uuids),
            health=self.health,
        )

    async def read(self) -> None:
        """One reading, one edge. A lost meter makes an edge too: the model stands in, grade D, named."""
        before = self._reading
        try:
            reading: MeterReading | None = await self._ask()
            self._fault = ""
        except MeterUnavailable as error:
            reading = None
            self._fault = f"meter_lost: {error}"
        except Exception as error:
            # A driver can fail in ways that its file does not know: no reading, and windows go on closing.
            logger.warning("the meter failed: %s: %s", type(error).__name__, error)
            reading = None
            self._fault = f"meter_lost: {type(error).__name__}"
        if reading is not None:
            watts = watts_between(before, reading)
            if watts is not None and not self._has_jumped:
                self.power_watts = watts
            self._has_jumped = False
            self._reading = reading
        self.windows.add_reading(reading, now_s=self._clock(), calibrating=self.is_calibrating)

    async def turn(self, phase: Phase) -> MeterReading | None:
        """From this edge on the engine is serving, parked or starting: the reading there, None without a meter."""
        await self._read_behind_steps()
        if self.reading is None:
            await self.read()  # an engine that is being loaded may have kept us from it for longer than we waited
        self.windows.phase = phase
        return self.reading

    async def follow(self, pids: tuple[int, ...]) -> None:
        """The engine's processes from now on; none while it is parked. Never beside a reading."""
        if self._asked is not None:
            await asyncio.wait((self._asked,), timeout=READ_TIMEOUT_S)
        await asyncio.to_thread(self._follow, pids)
        self._has_jumped = True

    @property
    def reading(self) -> MeterReading | None:
        """The last one; None while the meter is lost."""
        return None if self._fault else self._reading

    async def _ask(self) -> MeterReading:
        """One reading on a thread; never two at once, and a blocked one is left behind. Raises: MeterUnavailable."""
        if self._asked is None or self._asked.done():
            if self._asked is not None and not self._asked.cancelled():
                self._asked.exception()  # of one that came too late, and is told by the next one's if it lasts
            self._asked = asyncio.create_task(asyncio.to_thread(self._meter.read), name="meter-reading")
        asked = self._asked  # who reads beside us may have asked again by then
        done, _ = await asyncio.wait((asked,), timeout=READ_TIMEOUT_S)
        if not done:
            raise MeterUnavailable(f"{self._meter.name} does not answer for {READ_TIMEOUT_S:g} s")
        return asked.result()

    async def _read_behind_steps(self) -> None:
        """A counter shows its last tick: waits until that lies behind the last step."""
        deadline_s = self._clock() + LAST_EDGE_S
        await self.read()
        while not self.windows.is_past_last_step and self._clock() < deadline_s:
            await asyncio.sleep(POLL_S / 5)
            await self.read()

    async def run(self) -> None:
        """An edge every ``window_s``, for as long as the worker lives."""
        next_s = self._clock() + self._window_s
        while True:
            await asyncio.sleep(min(POLL_S, max(next_s - self._clock(), 0.01)))
            if self._clock() >= next_s:
                next_s = self._clock() + self._window_s
                await self.read()
            if self.windows.settle(now_s=self._clock(), num_running=self._num_running()):
                self._on_settled()

    async def close(self) -> None:
        """The last edge; everything that is pending is settled with what is there. Never raises: the engine follows."""
        try:
            await self._read_behind_steps()
            self.windows.close()
            if self._asked is not None and self._asked.done():
                await asyncio.to_thread(self._meter.close)
        except Exception:
            logger.exception("the last window could not be settled, or the meter not be closed")


def open_metering(
    opened: OpenedMeter,
    info: EngineInfo,
    spec: WorkerSpec,
    *,
    model: EngineModel,
    outbox: Outbox,
    clock: Callable[[], float],
    unix_clock: Callable[[], float],
    num_running: Callable[[], int],
    on_settled: Callable[[], None],
) -> Metering:
    """Of an engine that came up: its meter, and windows from the last durable reading of that counter on."""
    windows = Windows(
        attribution=Attribution(model=model, num_gpus=info.num_gpus, policy=spec.policy),
        outbox=outbox,
        unix_clock=unix_clock,
        meter_name=lambda: opened.meter.name,
        hook_grade=info.hook_grade,
        policy=spec.policy,
        last_counter_mj=last_counter_mj(spec, opened.meter.name),
        late_s=max(spec.stall_timeout_s, 2 * spec.window_s),
    )
    return Metering(
        meter=opened.meter,
        notes=(*info.notes, *opened.notes),
        gpu_uuids=spec.gpu_uuids,
        windows=windows,
        window_s=spec.window_s,
        clock=clock,
        num_running=num_running,
        on_settled=on_settled,
        follow=opened.follow,
    )
