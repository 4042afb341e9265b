"""When nobody waits any more: deadlines of open requests, earliest first.

Called by ``scheduler.core.scheduler``. It must never know a clock or what a deadline ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

MIN_SWEPT = 1_024
"""Deadlines of requests that are over are swept once they outnumber the rest and this."""


class Deadlines:
    """A heap in which a request that is over stays until it is due or swept, so that ending one costs nothing."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def push(self, deadline_s: float, request_id: str, *, is_open: Collection[str]) -> None:
        """``is_open`` holds the ids of requests that are not over."""
        heapq.heappush(self._heap, (deadline_s, request_id))
        if len(self._heap) > max(2 * len(is_open), MIN_SWEPT):
            self._heap = [item for item in self._heap if item[1] in is_open]
            heapq.heapify(self._heap)

    def due(self, now_s: float) -> Iterator[str]:
        """Takes out every request whose deadline has passed, over or not."""
        while self._heap and self._heap[0][0] <= now_s:
            yield heapq.heappop(self._heap)[1]

    def __len__(self) -> int:
        return len(self._heap)
