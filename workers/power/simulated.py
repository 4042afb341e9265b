"""Meter of a simulated engine: reads its counter as a real one is read, and is graded D whatever it yields.

Called by ``workers.power.choose`` and by observers that hold only the counter's file. It must never know the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from workers.errors import MeterUnavailable
from workers.simulated_counter import CounterFile, SimulatedCounter
from workers.types import Grade
from workers.windows import MeterReading

STALLED_AFTER_S = 5.0
"""A counter that stands still for this long is named (an idle device still draws its idle watts)."""


class SimulatedMeter:
    """Reads a ``SimulatedCounter`` of this process, or the file of one in any process."""

    name = "simulated:counter"

    def __init__(self, source: SimulatedCounter | str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises: MeterUnavailable where ``source`` is a path and holds no counter."""
        self._counter = source if isinstance(source, SimulatedCounter) else None
        self._file = None if isinstance(source, SimulatedCounter) else CounterFile(source)
        self._clock = clock
        self._last: MeterReading | None = None
        self._fault = ""

    def read(self) -> MeterReading:
        """The shown value, stamped with the tick at which it moved. Raises: MeterUnavailable when it is lost."""
        now_s = self._clock()
        if self._counter is not None:
            value = self._counter.read(now_s)
        elif self._file is not None:
            value = self._file.read()
        else:
            raise MeterUnavailable("the simulated meter is closed")
        self._fault = ""
        if self._last is not None and value.counter_mj < self._last.counter_mj:
            self._fault = f"counter_reset: from {self._last.counter_mj} to {value.counter_mj} mJ"
        elif now_s - value.at_s > STALLED_AFTER_S:
            self._fault = f"counter_stalled: no change for {now_s - value.at_s:.1f} s"
        self._last = MeterReading(at_s=value.at_s, counter_mj=value.counter_mj, grade=Grade.D, fault=self._fault)
        return self._last

    def health(self) -> tuple[str, ...]:
        return (self._fault,) if self._fault else ()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
