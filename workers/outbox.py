"""The outbox: numbered records, kept until the control plane says that they are durable.

Called by ``workers.worker`` and ``workers.windows``. It must never know what a record means, Ray or a clock.
"""

from __future__ import annotations

from collections import deque

from workers.types import Numbered, Record

MAX_RECORDS = 50_000
"""Bound of the outbox; about a day of windows, or 25,000 requests that nobody acknowledged."""

WINDOW_SHARE_RATIO = 0.8
"""Windows may fill this part; the rest is kept for charges and postings of requests that already run."""


class Outbox:
    """Records in order, each numbered once and for ever; a new connection replays what was not acknowledged.

    Numbers rise by one and start at 1. Not thread-safe: owned by the worker's event loop.
    """

    def __init__(self, *, max_records: int = MAX_RECORDS) -> None:
        self._records: deque[Numbered] = deque()
        self._max_records = max_records
        self._next_number = 1
        self._sent_number = 0
        self.dropped_total = 0

    @property
    def depth(self) -> int:
        """Records not yet acknowledged."""
        return len(self._records)

    @property
    def has_unsent(self) -> bool:
        """Whether this connection has not been sent everything."""
        return self._sent_number < self._next_number - 1

    @property
    def has_window_room(self) -> bool:
        """Whether one more window may be stored; otherwise its energy is carried on and lands in unattributed."""
        return len(self._records) < self._max_records * WINDOW_SHARE_RATIO

    @property
    def has_request_room(self) -> bool:
        """Whether a further request may be accepted: its charge and its posting must find room later."""
        return len(self._records) < self._max_records * 0.9

    @property
    def is_full(self) -> bool:
        """Whether the next record would be dropped."""
        return len(self._records) >= self._max_records

    def put(self, record: Record) -> bool:
        """Stores a record under the next number; False (and counted) when the outbox is full."""
        if self.is_full:
            self.dropped_total += 1
            return False
        self._records.append(Numbered(self._next_number, record))
        self._next_number += 1
        return True

    def take_unsent(self, *, max_records: int = 1_000) -> list[Numbered]:
        """The next records that this connection has not been sent, oldest first; they stay until acknowledged."""
        if not self.has_unsent:
            return []
        first = self._records[0].number
        start = max(self._sent_number + 1 - first, 0)
        # A deque indexes its middle slowly: what is unsent sits at the right end, so walk from there.
        num_unsent = len(self._records) - start
        taken = [self._records[index - num_unsent] for index in range(min(num_unsent, max_records))]
        if taken:
            self._sent_number = taken[-1].number
        return taken

    def ack(self, number: int) -> None:
        """Forgets every record up to and including ``number``; a number never given out is ignored."""
        if number >= self._next_number:
            return
        while self._records and self._records[0].number <= number:
            self._records.popleft()
        self._sent_number = max(self._sent_number, number)

    def rewind(self) -> None:
        """A new connection: everything unacknowledged is sent again, under its old numbers."""
        self._sent_number = self._records[0].number - 1 if self._records else self._next_number - 1
