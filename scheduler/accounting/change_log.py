"""Where changes are kept: what is needed of the ledger for them, and a log in memory.

Called by ``scheduler.tenancy``. It must never look into a change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple, Protocol

from scheduler.accounting.changes import Change

MAX_PAGE = 1_000
MAX_CHANGES_IN_MEMORY = 100_000


class Logged(NamedTuple):
    """A row of kind ``change``, its body unread: not every one of them is of the directory."""

    number: int
    """Rises from row to row, with gaps."""
    fields: Mapping[str, Any]


class ChangeLog(Protocol):
    """Keeps changes in the order of ``append``."""

    def append(self, change: Change) -> None:
        """The change is in the next commit. Raises: what keeps it from being taken at all; nothing is kept then."""

    async def commit(self) -> None:
        """Returns when everything appended before is durable. Raises: what keeps it from being so; the changes wait."""

    async def holds(self, change_id: str) -> bool:
        """Whether a change of this id was ever appended. Raises: what keeps it from being known."""

    async def page(self, *, before: int | None, limit: int) -> list[Logged]:
        """The newest durable ones below a number, the newest first, at most ``limit`` (1 to ``MAX_PAGE``)."""


class MemoryChangeLog:
    """Durable for as long as the process lives; the oldest are forgotten."""

    def __init__(self, *, max_changes: int = MAX_CHANGES_IN_MEMORY) -> None:
        self._rows: deque[Logged] = deque(maxlen=max_changes)
        self._next = 1

    def append(self, change: Change) -> None:
        self._rows.append(Logged(self._next, change.fields()))
        self._next += 1

    async def commit(self) -> None:
        """Nothing to wait for."""

    async def holds(self, change_id: str) -> bool:
        return any(row.fields["id"] == change_id for row in self._rows)

    async def page(self, *, before: int | None, limit: int) -> list[Logged]:
        newest_first = (row for row in reversed(self._rows) if before is None or row.number < before)
        return list(islice(newest_first, limit))
