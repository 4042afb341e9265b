"""Usage and outcomes as the ledger's database keeps them: sums by minute, and which outcome of a subject is the latest.

Called by ``scheduler.accounting.usage_log``; with ``ledger.py`` the home of SQLAlchemy. It must never know a caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from scheduler.accounting.ledger_reader import OUTCOMES, USAGE, Reader
from scheduler.accounting.usage import AMOUNTS, Key, UsageRow
from scheduler.accounting.usage_book import GROUPS, SUMS


def find_usage(
    reader: Reader,
    *,
    from_us: int,
    to_us: int,
    width_us: int | None,
    by: tuple[str, ...],
    where: Mapping[str, frozenset[str]],
    limit: int,
    after: Key | None,
) -> list[UsageRow]:
    """As ``UsageSource.usage`` has it, of what is flushed. Raises: LedgerError."""
    minute = USAGE.c.minute_us
    bucket: Any = sa.literal(0) if width_us is None else minute - minute % width_us
    key = (bucket.label("bucket_us"), *(USAGE.c[name] for name in by), USAGE.c.currency)
    sums = [sa.func.sum(USAGE.c[name]).label(name) for name in AMOUNTS]
    ask = sa.select(*key, *sums).where(minute >= from_us, minute < to_us)
    for name, values in where.items():
        ask = ask.where(USAGE.c[name].in_(sorted(values)))
    groups = [bucket, *key[1:]] if width_us is not None else list(key[1:])
    if after is not None:
        ask = ask.where(sa.tuple_(bucket, *key[1:]) > sa.tuple_(*(sa.literal(part) for part in after)))
    ask = ask.group_by(*groups).order_by(*groups).limit(limit)
    with reader.reading() as connection:
        found = connection.execute(ask).mappings().all()
    return [_row(dict(row), by) for row in found]


def _row(found: dict[str, Any], by: tuple[str, ...]) -> UsageRow:
    groups = {name: found[name] for name in by}
    amounts: dict[str, Any] = {name: int(found[name] or 0) for name in AMOUNTS}
    return UsageRow(bucket_us=int(found["bucket_us"]), currency=found["currency"], **groups, **amounts)


def last_minute_of_task(reader: Reader, tenant: str, task: str) -> dict[str, Any] | None:
    """The newest sums of a task's minutes."""
    is_its = sa.and_(USAGE.c.tenant == tenant, USAGE.c.task == task)
    columns = [USAGE.c.minute_us, *(USAGE.c[name] for name in (*GROUPS, *SUMS))]
    ask = sa.select(*columns).where(is_its).order_by(USAGE.c.minute_us.desc()).limit(1)
    with reader.reading() as connection:
        row = connection.execute(ask).mappings().first()
    return None if row is None else dict(row)


def latest_outcome_id(reader: Reader, subject: str) -> str | None:
    """Of what was judged, the id of the outcome that counts."""
    ask = sa.select(OUTCOMES.c.outcome_id).where(OUTCOMES.c.subject == subject)
    ask = ask.order_by(OUTCOMES.c.number.desc()).limit(1)
    with reader.reading() as connection:
        return connection.execute(ask).scalar()
