"""What every ``UsageSource`` must answer: the same as ``MemoryUsage`` over the same rows of minutes, page by page.

Used by tests of whatever keeps rows (``from tests.usage_contract import check_source``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from scheduler.accounting.usage import (
    DAY_US,
    GROUPS,
    HOUR_US,
    MINUTE_US,
    Key,
    MemoryUsage,
    UsageRow,
    UsageSource,
    key_of,
)

WIDTHS = (None, MINUTE_US, 15 * MINUTE_US, HOUR_US, DAY_US)


def check_source(source: UsageSource, rows: Sequence[UsageRow], *, num_questions: int = 200, seed: int = 0) -> None:
    """Asks ``num_questions`` questions at random, about what the rows have and what they have not; asserts."""
    expected, generator = MemoryUsage(rows), random.Random(seed)
    moments = sorted({row.bucket_us for row in rows} | {0})
    for _ in range(num_questions):
        from_us, to_us = sorted(generator.choice(moments) + generator.choice((-1, 0, 1, MINUTE_US)) for _ in range(2))
        by = tuple(generator.sample(GROUPS, generator.randint(0, len(GROUPS))))
        width_us, limit = generator.choice(WIDTHS), generator.choice((1, 3, 1_000))
        where = {
            name: frozenset(generator.choice([getattr(row, name) for row in rows] + ["none"]) for _ in range(2))
            for name in generator.sample(GROUPS, generator.randint(0, 2))
        }
        after: Key | None = None
        while True:
            asked = f"from {from_us} to {to_us} width {width_us} by {by} where {where} limit {limit} after {after}"
            told, right = (
                each.usage(
                    from_us=from_us, to_us=to_us, width_us=width_us, by=by, where=where, limit=limit, after=after
                )
                for each in (source, expected)
            )
            assert right == told, asked
            if len(told) < limit:
                break
            after = key_of(told[-1], by)
