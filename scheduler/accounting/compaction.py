"""Retention: rows that are old enough become one row with their sums; their texts go, their leaf hashes stay.

Called by ``scheduler.service`` once in a while. A receipt that was fetched before goes on proving what it proved, a new
one cannot be had; the tree over all rows verifies as before, and balances are what they were. It must never touch a row
that recovery could still need, nor one that is kept for good: prices, changes, outcomes, corrections.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial

from scheduler.accounting.ledger import Ledger
from scheduler.accounting.rows import Daily, Row, decode
from scheduler.accounting.settlement import Settlement

logger = logging.getLogger("jouleway.ledger")

COMPACTED = frozenset({"hold", "void", "charge", "energy", "window"})
"""Kinds whose texts go."""
MAX_ROWS = 10_000
"""Of one compaction: what one transaction takes in some milliseconds."""
MICRO = 1_000_000


class Compactor:
    """Goes through the ledger once; begins behind the newest compaction that the ledger has."""

    def __init__(self, ledger: Ledger, settlement: Settlement) -> None:
        self._ledger = ledger
        self._settlement = settlement
        self._next_seq: int | None = None
        self._undropped: Daily | None = None
        """Noted, and its texts may still be there: a compaction breaks off where a disk, or a process, does."""

    async def compact(self, *, before_us: int) -> int:
        """Everything older than that, as far as a state covers it; returns how many texts went. Raises: LedgerError."""
        if self._next_seq is None:
            self._undropped = await asyncio.to_thread(self._newest)
            self._next_seq = 0 if self._undropped is None else self._undropped.to_seq
        await self._drop()
        total = 0
        while (row := await asyncio.to_thread(self._next, self._next_seq, before_us)) is not None:
            self._next_seq = row.to_seq
            if row.num_rows:
                self._settlement.note(row)
                self._undropped = row
                await self._drop()
                total += row.num_rows
        if total:
            logger.info("ledger: %d rows older than %s are compacted", total, _day(before_us))
        return total

    async def _drop(self) -> None:
        """The texts of the newest compaction go, once its row is durable."""
        if (row := self._undropped) is not None:
            await self._settlement.commit()
            drop = partial(self._ledger.drop_bodies, row.from_seq, row.to_seq, kinds=sorted(COMPACTED))
            await self._settlement.journal.run(drop)
            self._undropped = None

    def _newest(self) -> Daily | None:
        for _, body in self._ledger.last_of_kind("daily", before=None, limit=1):
            row = decode(body)
            assert isinstance(row, Daily), row.kind
            return row
        return None

    def _next(self, next_seq: int, before_us: int) -> Daily | None:
        """Sums of the next rows of one day; None where the next one is too young or recovery needs it."""
        limit_seq = self._ledger.state_seq()
        sums: dict[tuple[str, str], int] = {}
        num_rows, day, from_seq, to_seq = 0, "", next_seq, next_seq
        for seq, kind, _, body, _ in self._ledger.stored(next_seq, limit_seq):
            if body is not None:
                row: Row = decode(body)
                if row.at_us >= before_us or (day and _day(row.at_us) != day) or num_rows >= MAX_ROWS:
                    break
                if kind in COMPACTED:
                    if not num_rows:
                        from_seq, day = seq, _day(row.at_us)  # its id: no other compaction can begin there
                    num_rows += 1
                    for account, unit, amount in row.legs:
                        sums[account, unit] = sums.get((account, unit), 0) + amount
            to_seq = seq + 1
        if to_seq == next_seq:
            return None
        legs = [(account, unit, amount) for (account, unit), amount in sorted(sums.items()) if amount]
        return Daily(from_seq=from_seq, to_seq=to_seq, day=day, num_rows=num_rows, legs=legs)


def _day(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // MICRO, UTC).date().isoformat()
