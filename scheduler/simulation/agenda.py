"""Virtual time: what happens when, and what the control plane's clocks show meanwhile.

Called by ``scheduler.simulation.driver``. It must never know what happens.

The control plane reads two clocks that may jump. Its core is told the monotonic one and never lets it go back, so what
it was told last is the time of the trace.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Agenda:
    """A heap of (time, number, what) is the whole clock. Equal times happen in the order they were asked for."""

    def __init__(self, *, start_unix_s: float) -> None:
        self.now_s = 0.0
        """True time."""
        self.told_s = 0.0
        """What the core was told last."""
        self.last_s = 0.0
        """The latest time that anything was asked for."""
        self._monotonic_off_s = 0.0
        self._start_unix_s = start_unix_s
        self._num_events = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, at_s: float, what: Callable[[], None]) -> None:
        """``what`` happens then."""
        self._num_events += 1
        self.last_s = max(self.last_s, at_s)
        heapq.heappush(self._events, (at_s, self._num_events, what))

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        """``what`` happens so much later."""
        self.at(self.now_s + delay_s, what)

    def step(self) -> None:
        """The next thing happens."""
        self.now_s, _, what = heapq.heappop(self._events)
        self.told_s = max(self.told_s, self.monotonic_s)
        what()

    def jump(self, *, monotonic_s: float, wall_s: float) -> float:
        """Both clocks are off by so much more; returns by how much the core's time advanced."""
        before_s = self.told_s
        self._monotonic_off_s += monotonic_s
        self._start_unix_s += wall_s
        self.told_s = max(self.told_s, self.monotonic_s)
        return self.told_s - before_s

    @property
    def monotonic_s(self) -> float:
        """The control plane's monotonic clock, which here may go back."""
        return self.now_s + self._monotonic_off_s

    @property
    def unix_s(self) -> float:
        """Its wall clock."""
        return self._start_unix_s + self.now_s
