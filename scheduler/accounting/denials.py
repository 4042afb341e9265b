"""Which denied accesses get a row of their own: so many a minute of each source and of all; the others are counted.

Owned by ``scheduler.tenancy``. It must never know a key or a request.
"""

from __future__ import annotations

MINUTE_US = 60_000_000
MAX_PER_SOURCE = 10
"""Rows a minute."""
MAX_PER_MINUTE = 120
"""Rows of all sources."""


class Denials:
    """Minutes are those of the wall clock; one that is set back begins a new one."""

    def __init__(self) -> None:
        self._minute: int | None = None
        self._rows: dict[str, int] = {}
        """Rows of this minute by source, which are no more than rows."""
        self._num_rows = 0
        self._num_skipped = 0

    def admit(self, source: str, at_us: int) -> int | None:
        """How many were skipped since the last one that was not; None: this one is skipped."""
        minute = at_us // MINUTE_US
        if minute != self._minute:
            self._minute, self._num_rows = minute, 0
            self._rows.clear()
        num_rows = self._rows.get(source, 0)
        if num_rows >= MAX_PER_SOURCE or self._num_rows >= MAX_PER_MINUTE:
            self._num_skipped += 1
            return None
        self._rows[source] = num_rows + 1
        self._num_rows += 1
        num_skipped, self._num_skipped = self._num_skipped, 0
        return num_skipped
