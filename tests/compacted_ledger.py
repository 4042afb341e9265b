"""A ledger of which old texts went, as a compaction leaves it, wherever it ended.

Used by tests of verify (``from tests.compacted_ledger import compact``).
"""

from __future__ import annotations

from collections.abc import Callable

from scheduler.accounting.compaction import COMPACTED
from scheduler.accounting.rows import Daily, Row
from tests.ledger_words import SEED, execute, rewrite

KINDS = ", ".join(f"'{kind}'" for kind in sorted(COMPACTED))


def add(rows: list[Row], row: Row) -> None:
    row.seq, row.at_us = len(rows), rows[-1].at_us
    rows.append(row)


def compact(url: str, *cuts: int, wrong: Callable[[list[Row]], None] = lambda rows: None) -> None:
    """Texts go up to each of the cuts, after whoever has the key added a row of his own."""

    def change(rows: list[Row]) -> None:
        sums: list[Daily] = []
        for start, end in zip((0, *cuts), cuts, strict=False):
            old = [row for row in rows[start:end] if row.kind in COMPACTED]
            net: dict[tuple[str, str], int] = {}
            for account, unit, amount in (leg for row in old for leg in row.legs):
                net[account, unit] = net.get((account, unit), 0) + amount
            legs = [(account, unit, amount) for (account, unit), amount in sorted(net.items()) if amount]
            if old:
                day = "2026-11-27"
                sums.append(Daily(from_seq=old[0].seq, to_seq=old[-1].seq + 1, day=day, num_rows=len(old), legs=legs))
        wrong(rows)
        for each in sums:
            add(rows, each)

    rewrite(url, change, seed=SEED)
    execute(url, f"UPDATE rows SET body = NULL WHERE seq < {cuts[-1]} AND kind IN ({KINDS})")
