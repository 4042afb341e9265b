"""Who waits, for how long at most, and who is worth trying: the queue's driver.

Called by ``scheduler.core.scheduler``. It must never know a worker or a clock.

A model whose head did not fit is *saturated*: nobody of it is tried again until something that could make room for it
happens (credit freed, a worker heard of, another head). So a full cluster costs nothing per arrival.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from scheduler.core.attempts import Entry
from scheduler.core.deadlines import Deadlines
from scheduler.core.queue import Queue
from scheduler.core.request import Request


class Waiting:
    """Entries between their push and their start or refusal."""

    def __init__(self, queue: Queue, *, max_wait_s: float) -> None:
        self._queue = queue
        self._max_wait_s = max_wait_s
        self._entries: dict[str, Entry] = {}
        self._limits = Deadlines()
        """When each has waited too long; who was started meanwhile is passed over."""
        self._saturated: set[str] = set()

    def push(self, entry: Entry) -> None:
        """To its place, for a bounded time."""
        request = entry.request
        self._queue.push(request, entry.place)
        self._entries[request.request_id] = entry
        self._limits.push(entry.waits_since_s + self._max_wait_s, request.request_id, is_open=self._entries.keys())
        if self._queue.head(request.model) is request:
            self._saturated.discard(request.model)

    def remove(self, request_id: str) -> None:
        """Started, cancelled or refused; where it was the head, whoever is next may fit. Unknown ids are ignored."""
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            if self._queue.head(entry.request.model) is entry.request:
                self._saturated.discard(entry.request.model)
            self._queue.remove(request_id)

    def freed(self, models: Iterable[str]) -> None:
        """Something changed for the better for these models."""
        self._saturated.difference_update(models)

    def did_not_fit(self, request: Request) -> None:
        """The head of its model was tried in vain."""
        assert self._queue.head(request.model) is request, f"{request.request_id} is not the next of its model"
        self._saturated.add(request.model)

    def candidates(self) -> Iterator[Entry]:
        """Heads that may fit, the best of all models first: lowest band, then earliest place.

        The caller removes who was started before it asks for the next. A head that is left where it is ends its model:
        nobody overtakes.
        """
        heads = [self._rank(model) for model in self._queue.models if model not in self._saturated]
        heapq.heapify(heads)
        while heads:
            model = heads[0][2]
            head = self._queue.head(model)
            assert head is not None
            yield self._entries[head.request_id]
            left = self._queue.head(model)
            if left is None:
                heapq.heappop(heads)
            elif left is head:
                self._saturated.add(model)
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, self._rank(model))

    def overdue(self, now_s: float) -> Iterator[Entry]:
        """Who has waited too long; the caller removes each."""
        for request_id in self._limits.due(now_s):
            entry = self._entries.get(request_id)
            if entry is not None and entry.waits_since_s + self._max_wait_s <= now_s:
                yield entry

    def _rank(self, model: str) -> tuple[int, int, str]:
        head = self._queue.head(model)
        assert head is not None
        return head.band, self._entries[head.request_id].place, model
