"""A ledger into an empty database, row by row: from SQLite to PostgreSQL, or back. Its id, key and signatures stay.

Called by `jouleway ledger copy`; with ``ledger.py`` the home of SQLAlchemy. Both sides are locked meanwhile. It must
never change the source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from scheduler.accounting.errors import LedgerError
from scheduler.accounting.ledger import WriterLock, migrate
from scheduler.accounting.ledger_reader import (
    CHECKPOINTS,
    LEDGER,
    NODES,
    OUTCOMES,
    ROWS,
    STATES,
    USAGE,
    Reader,
    make_engine,
    shown_url,
    words_of,
)

BATCH_ROWS = 5_000
TABLES = (ROWS, NODES, CHECKPOINTS, STATES, USAGE, OUTCOMES, LEDGER)
"""The head last: a copy that broke off has none, and is no ledger."""


def copy_ledger(source_url: str, target_url: str, *, on_progress: Callable[[int, int], None]) -> int:
    """Returns its rows. Raises: LedgerMissing, LedgerInUse, LedgerError; what was begun in the target is to be dropped
    then.
    """
    Reader(source_url).close()  # a lock would make the file that a mistyped name does not find
    source, target = make_engine(source_url, is_read_only=False), make_engine(target_url, is_read_only=False)
    locks: list[WriterLock] = []
    try:
        locks.append(WriterLock(source))
        locks.append(WriterLock(target))
        migrate(target)
        with source.connect() as reading, target.begin() as writing:
            if any(writing.execute(sa.select(sa.func.count()).select_from(table)).scalar() for table in TABLES):
                raise LedgerError(f"{shown_url(target.url)} is not empty; remedy: name a new database")
            size = reading.execute(sa.select(LEDGER.c.size)).scalar()
            if size is None:
                raise LedgerError(f"{shown_url(source.url)} has no head: it is no ledger")
            done = 0
            for table in TABLES:
                found = reading.execution_options(yield_per=BATCH_ROWS).execute(sa.select(table))
                for part in found.mappings().partitions():
                    values: list[dict[str, Any]] = [dict(row) for row in part]
                    writing.execute(sa.insert(table), values)
                    done += len(values) if table is ROWS else 0
                    on_progress(done, size)
            return int(size)
    except SQLAlchemyError as error:
        raise LedgerError(f"the copy broke off: {words_of(error)}") from None
    finally:
        for lock in locks:
            lock.release()
        source.dispose()
        target.dispose()
