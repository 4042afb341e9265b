"""Reads a ledger's database: SQLite, or PostgreSQL by URL; how a connection is made, what the tables are called.

Called by whoever verifies, recovers or reports; ``scheduler.accounting.ledger`` writes. These two files are the only
home of SQLAlchemy beside ``migrations/``. It must never change anything, nor know what a row means.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy.exc import SQLAlchemyError

from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerMissing
from scheduler.accounting.usage_book import GROUPS, SUMS

MIGRATIONS = Path(__file__).parent / "migrations"
READ_ROWS = 2_048
"""Fetched at a time: whole tiles of the tree."""
FIRST_SEQ = -(1 << 63)
"""No row can be before it."""
BUSY_MS = 10_000
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_MS}", "cache_size=-32768")

SERVER_ARGUMENTS = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "options": "-c statement_timeout=60000"}
"""A server that does not answer is taken as away, so that rows are kept elsewhere and nobody waits for ever."""

LEDGER = sa.table("ledger", *map(sa.column, ("one", "ledger_id", "origin", "public_key", "epoch", "size", "note")))
ROWS = sa.table("rows", *map(sa.column, ("seq", "kind", "row_id", "body", "leaf")))
NODES = sa.table("nodes", *map(sa.column, ("level", "place", "hash")))
CHECKPOINTS = sa.table("checkpoints", *map(sa.column, ("size", "note")))
OUTCOMES = sa.table("outcomes", *map(sa.column, ("subject", "number", "outcome_id")))
STATES = sa.table("states", *map(sa.column, ("seq", "data")))
USAGE = sa.table("usage", *map(sa.column, ("minute_us", *GROUPS, *SUMS)))

Stored = tuple[int, str, str, str | None, bytes]
"""seq, kind, row_id, body, leaf."""


def sqlite_url(path: Path) -> str:
    """Of a ledger in a file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string()


class Reader:
    """Reads a ledger; changes nothing, needs no lock, sees what is committed."""

    def __init__(self, url: str, *, is_read_only: bool = True) -> None:
        """Raises: LedgerMissing without such a file, LedgerError where it is no ledger of a version known here."""
        self._engine = make_engine(url, is_read_only=is_read_only)
        self.url = shown_url(self._engine.url)
        try:
            with self.reading() as connection:
                if version_of(connection) is None:
                    raise LedgerError(f"{self.url} is no ledger of Jouleway")
        except BaseException:
            self._engine.dispose()
            raise

    def head(self) -> dict[str, Any]:
        """ledger_id, origin, public_key, epoch, size, note (the newest checkpoint)."""
        with self.reading() as connection:
            found = connection.execute(sa.select(LEDGER)).mappings().first()
        if found is None:
            raise LedgerBroken(f"{self.url} has no head: it was never finished, or was changed from outside")
        return dict(found)

    def stored(self, from_seq: int = 0, to_seq: int | None = None) -> Iterator[Stored]:
        """Rows as they are stored, in order; a bounded number of them in memory."""
        for rows in self.batches(from_seq, to_seq):
            yield from rows

    def batches(self, from_seq: int = 0, to_seq: int | None = None) -> Iterator[list[Stored]]:
        """The same, so many at a time as are fetched."""
        while to_seq is None or from_seq < to_seq:
            ask = sa.select(ROWS).where(ROWS.c.seq >= from_seq).order_by(ROWS.c.seq).limit(READ_ROWS)
            if to_seq is not None:
                ask = ask.where(ROWS.c.seq < to_seq)
            with self.reading() as connection:
                # The driver's own tuples: a library's row around each would cost more than its hash.
                found = cast("list[Stored]", connection.execute(ask).cursor.fetchall())
            yield found
            if len(found) < READ_ROWS:
                return
            from_seq = found[-1][0] + 1

    def hashes(self, level: int, start: int, count: int) -> list[bytes]:
        """Stored hashes of the tree, as ``merkle`` asks for them."""
        ask = sa.select(NODES.c.hash).where(NODES.c.level == level, NODES.c.place.between(start, start + count - 1))
        ask = ask.order_by(NODES.c.place)
        if not level:
            ask = sa.select(ROWS.c.leaf).where(ROWS.c.seq.between(start, start + count - 1)).order_by(ROWS.c.seq)
        with self.reading() as connection:
            return list(connection.execute(ask).scalars())

    def find(self, kind: str, row_id: str) -> Stored | None:
        """One row by its kind and id."""
        with self.reading() as connection:
            row = connection.execute(sa.select(ROWS).where(ROWS.c.row_id == row_id, ROWS.c.kind == kind)).first()
        return None if row is None else tuple(row)

    def of_request(self, request_id: str) -> list[Stored]:
        """Every row of a request and its attempts, in order."""
        is_attempt = sa.and_(ROWS.c.row_id > f"{request_id}-", ROWS.c.row_id < f"{request_id}.")
        ask = sa.select(ROWS).where(sa.or_(ROWS.c.row_id == request_id, is_attempt)).order_by(ROWS.c.seq).limit(1_000)
        with self.reading() as connection:
            return [tuple(row) for row in connection.execute(ask)]

    def of_kind(self, kind: str, *, without: str = "") -> Iterator[tuple[int, str]]:
        """(seq, text) of all rows of a kind that has an index (``change``, ``daily``), in order. ``without``: those
        whose id begins so, where that has an index (``dny-``).
        """
        after = -1
        while True:
            ask = sa.select(ROWS.c.seq, ROWS.c.body).where(_is_of(kind), ROWS.c.seq > after)
            if without:
                ask = ask.where(_begins_otherwise(without))
            with self.reading() as connection:
                found = connection.execute(ask.order_by(ROWS.c.seq).limit(READ_ROWS)).all()
            yield from ((row.seq, row.body) for row in found if row.body is not None)
            if len(found) < READ_ROWS:
                return
            after = found[-1].seq

    def last_of_kind(self, kind: str, *, before: int | None, limit: int) -> list[tuple[int, str]]:
        """The newest of them below a seq, the newest first."""
        ask = sa.select(ROWS.c.seq, ROWS.c.body).where(_is_of(kind), ROWS.c.body.is_not(None))
        if before is not None:
            ask = ask.where(ROWS.c.seq < before)
        with self.reading() as connection:
            return [(row.seq, row.body) for row in connection.execute(ask.order_by(ROWS.c.seq.desc()).limit(limit))]

    def checkpoints(self) -> Iterator[tuple[int, str]]:
        """Kept ones (size, note), the smallest first."""
        after = -1
        while True:
            ask = sa.select(CHECKPOINTS).where(CHECKPOINTS.c.size > after).order_by(CHECKPOINTS.c.size).limit(READ_ROWS)
            with self.reading() as connection:
                found = connection.execute(ask).all()
            yield from (tuple(row) for row in found)
            if len(found) < READ_ROWS:
                return
            after = found[-1].size

    def duplicate(self) -> tuple[str, str] | None:
        """A (kind, row_id) that is there twice; the index forbids it, unless somebody took the index away, or has left
        rows out of it: so SQLite, whose file brings its indexes along, reads the rows themselves.
        """
        key: tuple[sa.ColumnElement[Any], ...] = (sa.column("row_id"), sa.column("kind"))
        rows = sa.text("rows NOT INDEXED") if self._engine.dialect.name == "sqlite" else ROWS
        ask = sa.select(*key).select_from(rows).group_by(*key).having(sa.func.count() > 1).limit(1)
        with self.reading() as connection:
            row = connection.execute(ask).first()
        return None if row is None else (row.kind, row.row_id)

    def state(self) -> tuple[int, bytes] | None:
        """The newest state: what the rows before its seq come to."""
        with self.reading() as connection:
            row = connection.execute(sa.select(STATES).order_by(STATES.c.seq.desc()).limit(1)).first()
        return None if row is None else (row.seq, row.data)

    def state_seq(self) -> int:
        """Rows before it are summed up by the newest state; 0 where there is none."""
        with self.reading() as connection:
            return connection.execute(sa.select(sa.func.max(STATES.c.seq))).scalar() or 0

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error, UnicodeError) as error:
            raise LedgerError(f"{shown_url(self._engine.url)}: {words_of(error)}") from None


def _is_of(kind: str) -> Any:
    """Written out, so that a partial index is found."""
    return ROWS.c.kind == sa.literal_column(f"'{kind}'")


def _begins_otherwise(prefix: str) -> Any:
    """Written out like the index."""
    return sa.literal_column(f"substr(row_id, 1, {len(prefix)}) <> '{prefix}'")


def make_engine(url: str, *, is_read_only: bool) -> sa.Engine:
    """Raises: LedgerError where there can be no ledger."""
    try:
        parsed = sa.make_url(url)
    except SQLAlchemyError:
        raise LedgerError("the ledger's URL cannot be read; remedy: sqlite:////PATH or postgresql://…") from None
    if parsed.get_backend_name() == "postgresql":
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=2, connect_args=SERVER_ARGUMENTS
        )
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        raise LedgerError(f"a ledger is sqlite:////PATH or postgresql://…, not {shown_url(parsed)}")
    path = Path(str(parsed.database))
    if is_read_only:
        if not path.is_file():
            raise LedgerMissing(f"{path}: there is no such file")
        # A copy on a read-only medium has no room for WAL's shared memory.
        mode = {"mode": "ro"} if os.access(path.parent, os.W_OK) else {"immutable": "1"}
        parsed = sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query={**mode, "uri": "true"})
        return sa.create_engine(parsed, pool_size=1)
    engine = sa.create_engine(parsed)

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    return engine


def version_of(connection: sa.Connection) -> str | None:
    """Of the tables; None where there are none. Raises: LedgerError where it is newer than what is known here."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    known = known_versions()
    if version not in known:
        raise LedgerError(
            f"{shown_url(connection.engine.url)} is of a newer version ({version}; known here: {known[0]}); "
            "remedy: update jouleway"
        )
    return str(version)


@cache
def known_versions() -> tuple[str, ...]:
    """The newest first."""
    return tuple(script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions())


def shown_url(url: str | sa.URL) -> str:
    """Without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "a URL that cannot be read"


def words_of(error: Exception) -> str:
    """What the database said, without the statement and its values."""
    if isinstance(error, SQLAlchemyError):
        return str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
    return str(error).splitlines()[0]
