"""Who waits, in which order: a bounded queue of priority bands, kept apart by model.

Called by ``scheduler.core.scheduler``. It must never know a worker, a budget or a clock.

Inside a band the order is the place, a number given once at arrival; a request that comes back from a lost worker
keeps it. Leaving the middle (cancelled, expired) only marks the entry; marked ones are swept when they outnumber the
rest, so that every operation costs O(log n) and memory stays with what waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from scheduler.core.request import Band, Request

BANDS = tuple(Band)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Bounds of each band, over all models."""

    max_requests: int = 10_000
    max_bytes: int = 256 * 1024 * 1024


@dataclass(slots=True)
class _Line:
    """One band of one model: a heap of (place, request id), some of which may have left."""

    heap: list[tuple[int, str]] = field(default_factory=list)
    num_waiting: int = 0


class Queue:
    """Bounded in requests and bytes per band. ``push`` what was admitted, ``head`` and ``pop`` by model."""

    def __init__(self, limits: QueueLimits | None = None) -> None:
        self._limits = limits or QueueLimits()
        self._lines: dict[str, list[_Line]] = {}
        self._waiting: dict[str, Request] = {}
        self._num = [0] * len(BANDS)
        self._bytes = [0] * len(BANDS)

    def has_room(self, request: Request) -> bool:
        """Whether the request's band may take it. A single request of any size fits an empty band."""
        num, limits = self._num[request.band], self._limits
        if num >= limits.max_requests:
            return False
        return num == 0 or self._bytes[request.band] + request.body_bytes <= limits.max_bytes

    def push(self, request: Request, place: int) -> None:
        """Takes it in at its place; the caller asked ``has_room`` unless it held a place before."""
        assert request.request_id not in self._waiting, f"{request.request_id} waits already"
        lines = self._lines.get(request.model)
        if lines is None:
            lines = self._lines[request.model] = [_Line() for _ in BANDS]
        line = lines[request.band]
        heapq.heappush(line.heap, (place, request.request_id))
        line.num_waiting += 1
        self._waiting[request.request_id] = request
        self._num[request.band] += 1
        self._bytes[request.band] += request.body_bytes

    def head(self, model: str) -> Request | None:
        """Who is next: the earliest place of the first band in which somebody waits."""
        for line in self._lines.get(model, ()):
            if line.num_waiting:
                while line.heap[0][1] not in self._waiting:
                    heapq.heappop(line.heap)
                return self._waiting[line.heap[0][1]]
        return None

    def line(self, model: str, band: int) -> Iterator[Request]:
        """Everybody of one band of one model, first come first; what is yielded may be removed meanwhile."""
        lines = self._lines.get(model)
        while lines is not None and lines[band].num_waiting:
            line = lines[band]
            while line.heap[0][1] not in self._waiting:
                heapq.heappop(line.heap)
            request_id = line.heap[0][1]
            yield self._waiting[request_id]
            if request_id in self._waiting:
                return  # it was left where it is: whoever is behind it came later

    def remove(self, request_id: str) -> bool:
        """Takes it out, wherever it stands; False if it does not wait."""
        request = self._waiting.pop(request_id, None)
        if request is None:
            return False
        lines = self._lines[request.model]
        line = lines[request.band]
        line.num_waiting -= 1
        self._num[request.band] -= 1
        self._bytes[request.band] -= request.body_bytes
        if line.heap[0][1] == request_id:
            heapq.heappop(line.heap)
        elif len(line.heap) > 2 * line.num_waiting + 16:
            line.heap = [item for item in line.heap if item[1] in self._waiting]
            heapq.heapify(line.heap)
        if not any(each.num_waiting for each in lines):
            del self._lines[request.model]
        return True

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def request_ids(self) -> list[str]:
        """Everybody who waits, in no order that means anything."""
        return list(self._waiting)

    @property
    def models(self) -> list[str]:
        """Models for which somebody waits."""
        return list(self._lines)

    @property
    def num_waiting(self) -> tuple[int, ...]:
        """By band."""
        return tuple(self._num)

    @property
    def num_bytes(self) -> tuple[int, ...]:
        """By band."""
        return tuple(self._bytes)
