"""The course of a run, once a second at most: watts, requests that wait, GPUs that are loaded.

Called by ``scheduler.simulation.fleet`` while it runs, read by whoever draws it. It must never know a policy. It grows
with simulated time only, never with requests or engines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scheduler.simulation.fleet import Fleet

MAX_POINTS = 20_000
"""About five and a half hours of seconds; of a longer run every second point is dropped, again and again."""
SMOOTH_S = 10.0
"""Steps are paid when they are over: watts are means of so long."""

Floats = NDArray[np.float64]


class Course:
    """A fleet's watch."""

    def __init__(self, *, every_s: float = 1.0, on_look: Callable[[float], None] | None = None) -> None:
        """``on_look`` is told the simulated time."""
        assert every_s > 0, every_s
        self.every_s = every_s
        self._on_look = on_look
        self._points: list[tuple[float, float, float, float]] = []

    def look(self, fleet: Fleet, now_s: float) -> None:
        point = (now_s, fleet.joules(now_s).total, float(fleet.num_waiting), float(fleet.loaded_gpus))
        self._points.append(point)
        if len(self._points) >= MAX_POINTS:
            del self._points[1::2]
            self.every_s *= 2
        if self._on_look is not None:
            self._on_look(now_s)

    @property
    def at_s(self) -> Floats:
        return self._column(0)

    @property
    def num_waiting(self) -> Floats:
        """Requests without a first token."""
        return self._column(2)

    @property
    def loaded_gpus(self) -> Floats:
        return self._column(3)

    @property
    def watts(self) -> Floats:
        """Mean since ``SMOOTH_S`` before each point, or since the first one."""
        at_s, joules = self._column(0), self._column(1)
        before = np.minimum(np.searchsorted(at_s, at_s - SMOOTH_S), np.maximum(np.arange(len(at_s)) - 1, 0))
        spans_s = at_s - at_s[before]
        means: Floats = np.zeros_like(at_s)
        np.divide(joules - joules[before], spans_s, out=means, where=spans_s > 0)
        if len(means) > 1:
            means[0] = means[1]
        return means

    def _column(self, number: int) -> Floats:
        return np.array([point[number] for point in self._points], dtype=np.float64)
