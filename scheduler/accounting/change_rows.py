"""Changes as rows of the ledger: the log that the directory is the fold of, and that `jouleway audit` shows.

Made by ``scheduler.service``; implements ``change_log.ChangeLog``. It must never look into a change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from scheduler.accounting.change_log import Logged
from scheduler.accounting.changes import DENIAL_PREFIX, WHATS, Change
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.rows import Changed, decode
from scheduler.accounting.settlement import Settlement

_DENIED = '"what":"access_denied"'
"""Within a text of somebody's own each of these quotes would have a backslash before it."""


class LedgerChangeLog:
    """``attach`` it to the settlement that writes; what was appended before is written then."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._settlement: Settlement | None = None
        self._ledger: Ledger | None = None
        self._early: list[Change] = []
        self._waiting: dict[str, int] = {}
        """Rows that the database may not have: what is in a spool is durable and not found there."""

    def changes(self) -> Iterator[Change]:
        """All of the directory, in their order, without denied accesses. Raises: LedgerError."""
        for seq, body in self._reader.of_kind("change", without=DENIAL_PREFIX):
            if _DENIED in body:  # of an earlier version, which gave them ids like any
                continue
            logged = _logged(seq, body)
            if logged.fields.get("what") in WHATS:
                yield Change.of(dict(logged.fields))

    def attach(self, settlement: Settlement, ledger: Ledger) -> None:
        """From now on rows go there, and sooner or later into the ledger."""
        self._settlement, self._ledger = settlement, ledger
        early, self._early = self._early, []
        for change in early:
            self.append(change)

    def append(self, change: Change) -> None:
        if self._settlement is None:
            self._early.append(change)
        else:
            row = Changed(change_id=change.change_id, fields=change.fields())
            self._waiting[change.change_id] = self._settlement.note(row)

    async def commit(self) -> None:
        """Raises: LedgerError."""
        if self._settlement is not None:
            await self._settlement.commit()
        if self._ledger is not None:
            size = self._ledger.size
            self._waiting = {change_id: seq for change_id, seq in self._waiting.items() if seq >= size}

    async def holds(self, change_id: str) -> bool:
        """Raises: LedgerError."""
        if change_id in self._waiting or any(change.change_id == change_id for change in self._early):
            return True
        return await asyncio.to_thread(self._reader.find, "change", change_id) is not None

    async def page(self, *, before: int | None, limit: int) -> list[Logged]:
        """Raises: LedgerError."""
        found = await asyncio.to_thread(self._reader.last_of_kind, "change", before=before, limit=limit)
        return [_logged(seq, body) for seq, body in found]


def _logged(seq: int, body: str) -> Logged:
    row = decode(body)
    assert isinstance(row, Changed), row.kind
    return Logged(seq, row.fields)
