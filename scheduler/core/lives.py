"""Lives of requests: each begins once, is open until it is refused or finished, and is remembered for a while.

Owned by ``scheduler.core.scheduler``. It must never know a worker or why a request ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scheduler.core.actions import Finish, Reject, Rejection
from scheduler.core.attempts import Ending, Entry, Stats
from scheduler.core.deadlines import Deadlines
from scheduler.core.history import Decisions, History, story_of
from scheduler.core.holds import Holds
from scheduler.core.request import Request
from scheduler.core.waiting import Waiting
from workers.types import Outcome


class Lives:
    """Open requests and those that ended; whoever ends one here leaves the queue and gives back what it held."""

    def __init__(self, waiting: Waiting, holds: Holds, stats: Stats) -> None:
        self.open: dict[str, Entry] = {}
        self._waiting = waiting
        self._holds = holds
        self._stats = stats
        self._history = History()
        self._deadlines = Deadlines()
        self._num_places = 0

    def begin(self, request: Request, now_s: float) -> Entry:
        """A new request, with a place of its own."""
        assert request.request_id not in self.open, f"{request.request_id} was submitted twice"
        self._stats.submitted += 1
        self._num_places += 1
        entry = Entry(request=request, place=self._num_places, waits_since_s=min(request.arrival_s, now_s))
        self.open[request.request_id] = entry
        if request.deadline_s is not None:
            self._deadlines.push(request.deadline_s, request.request_id, is_open=self.open.keys())
        return entry

    def due(self, now_s: float) -> Iterator[str]:
        """Takes out every request whose deadline has passed, over or not."""
        return self._deadlines.due(now_s)

    def reject(self, request_id: str, rejection: Rejection, now_s: float) -> Reject:
        """It ends without an attempt that answers it."""
        self._waiting.remove(request_id)
        self._leave(self.open[request_id], "rejected", rejection.reason, now_s)
        self._stats.rejected[rejection.reason] = self._stats.rejected.get(rejection.reason, 0) + 1
        return Reject(request_id=request_id, rejection=rejection)

    def finish(self, entry: Entry, attempt_id: str | None, outcome: Outcome, cause: str, now_s: float) -> Finish:
        """It is over; ``attempt_id`` answered it, or None did."""
        self._leave(entry, outcome.value, cause, now_s)
        self._stats.finished[outcome.value] = self._stats.finished.get(outcome.value, 0) + 1
        return Finish(request_id=entry.request.request_id, attempt_id=attempt_id, outcome=outcome, cause=cause)

    def story(self, request_id: str, decision: Decisions) -> dict[str, Any] | None:
        """The life of a request as plain values; None where it was never seen, or too long ago."""
        entry = self.open.get(request_id) or self._history.get(request_id)
        return None if entry is None else story_of(entry, decision=decision)

    def _leave(self, entry: Entry, outcome: str, cause: str, now_s: float) -> None:
        """What it held is free, and it is only remembered."""
        del self.open[entry.request.request_id]
        entry.end_wait(now_s)
        self._holds.end(entry)
        entry.end = Ending(outcome, cause, now_s)
        self._history.add(entry)
