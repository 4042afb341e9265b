"""The ledger's database: rows and their tree in one transaction, one writer at a time; SQLite, or PostgreSQL by URL.

Called by ``scheduler.accounting.journal`` (write, in a thread) and by whoever reads. The only home of SQLAlchemy and
Alembic beside ``migrations/``. It must never know what a row means, and it changes no row that is written.

Only one control plane writes: a lock is held as long as the ledger is open (SQLite: a lock file; PostgreSQL: an
advisory lock), and every transaction names the epoch that this opening was given, so that one which lost its lock
without knowing cannot commit any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command as alembic_command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from scheduler.accounting.checkpoints import Signer
from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerInUse, LedgerLost
from scheduler.accounting.journal import State
from scheduler.accounting.merkle import Tree, leaf_hash
from scheduler.accounting.rows import Row, encode
from scheduler.accounting.usage_book import GROUPS, SUMS

logger = logging.getLogger("jouleway.ledger")

MIGRATIONS = Path(__file__).parent / "migrations"
READ_ROWS = 2_000
"""Fetched at a time."""
BUSY_MS = 10_000
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_MS}", "cache_size=-32768")
CHECKPOINT_ROWS = 10_000
"""Rows between checkpoints that are kept; the newest is always there."""

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
    return f"sqlite:///{path}"


class Reader:
    """Reads a ledger; changes nothing, needs no lock, sees what is committed."""

    def __init__(self, url: str, *, is_read_only: bool = True) -> None:
        """Raises: LedgerError where there is no ledger of a version known here."""
        self._engine = _engine(url, is_read_only=is_read_only)
        self.url = self._engine.url.render_as_string(hide_password=True)
        with self.reading() as connection:
            self._check_version(connection)

    def head(self) -> dict[str, Any]:
        """ledger_id, origin, public_key, epoch, size, note (the newest checkpoint)."""
        with self.reading() as connection:
            found = connection.execute(sa.select(LEDGER)).mappings().first()
        if found is None:
            raise LedgerBroken(f"{self.url} has no head: it was never finished, or was changed from outside")
        return dict(found)

    def stored(self, from_seq: int = 0, to_seq: int | None = None) -> Iterator[Stored]:
        """Rows as they are stored, in order; a bounded number of them in memory."""
        while to_seq is None or from_seq < to_seq:
            ask = sa.select(ROWS).where(ROWS.c.seq >= from_seq).order_by(ROWS.c.seq).limit(READ_ROWS)
            if to_seq is not None:
                ask = ask.where(ROWS.c.seq < to_seq)
            with self.reading() as connection:
                found = connection.execute(ask).all()
            yield from (tuple(row) for row in found)  # type: ignore[misc]
            if len(found) < READ_ROWS:
                return
            from_seq = found[-1].seq + 1

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
        return None if row is None else tuple(row)  # type: ignore[return-value]

    def of_request(self, request_id: str) -> list[Stored]:
        """Every row of a request and its attempts, in order."""
        is_attempt = sa.and_(ROWS.c.row_id > f"{request_id}-", ROWS.c.row_id < f"{request_id}.")
        ask = sa.select(ROWS).where(sa.or_(ROWS.c.row_id == request_id, is_attempt)).order_by(ROWS.c.seq).limit(1_000)
        with self.reading() as connection:
            return [tuple(row) for row in connection.execute(ask)]  # type: ignore[misc]

    def of_kind(self, kind: str) -> Iterator[tuple[int, str]]:
        """(seq, text) of all rows of a kind that has an index (``change``), in order."""
        after = -1
        while True:
            ask = sa.select(ROWS.c.seq, ROWS.c.body).where(_is_of(kind), ROWS.c.seq > after)
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
            yield from (tuple(row) for row in found)  # type: ignore[misc]
            if len(found) < READ_ROWS:
                return
            after = found[-1].size

    def duplicate(self) -> tuple[str, str] | None:
        """A (kind, row_id) that is there twice; the index forbids it, unless somebody took the index away."""
        key = (ROWS.c.row_id, ROWS.c.kind)
        ask = sa.select(*key).group_by(*key).having(sa.func.count() > 1).limit(1)
        with self.reading() as connection:
            row = connection.execute(ask).first()
        return None if row is None else (row.kind, row.row_id)

    def state(self) -> tuple[int, bytes] | None:
        """The newest state: what the rows before its seq come to."""
        with self.reading() as connection:
            row = connection.execute(sa.select(STATES).order_by(STATES.c.seq.desc()).limit(1)).first()
        return None if row is None else (row.seq, row.data)

    def close(self) -> None:
        self._engine.dispose()

    def _check_version(self, connection: sa.Connection) -> None:
        if not sa.inspect(connection).has_table("alembic_version"):
            raise LedgerError(f"{self.url} is no ledger of Jouleway")
        version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        known = [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]
        if version not in known:
            raise LedgerError(
                f"{self.url} is of a newer version ({version}; known here: {known[0]}); remedy: update jouleway"
            )

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise LedgerError(f"{self._engine.url.render_as_string(hide_password=True)}: {_words(error)}") from None


def _is_of(kind: str) -> Any:
    """Written out, so that a partial index is found."""
    return ROWS.c.kind == sa.literal_column(f"'{kind}'")


class Ledger(Reader):
    """The one writer. ``write`` is called from one thread at a time; reading is as with ``Reader``."""

    def __init__(
        self,
        url: str,
        *,
        seed: bytes,
        new_ledger_id: Callable[[], str] = lambda: os.urandom(8).hex(),
        on_checkpoint: Callable[[int, str], None] = lambda size, note: None,
    ) -> None:
        """Makes or migrates the database and takes it over. ``seed``: of the signing key. ``on_checkpoint`` hears of
        each one that is durable. Raises: LedgerInUse, LedgerError.
        """
        engine = _engine(url, is_read_only=False)
        self._lock = _Lock(engine)
        try:
            _migrate(engine)
            super().__init__(url, is_read_only=False)
            self._on_checkpoint = on_checkpoint
            self._is_sure = True
            """False after a write that failed: what is stored is looked at before the next one."""
            self._take_over(seed, new_ledger_id)
        except BaseException:
            self._lock.release()
            raise
        finally:
            engine.dispose()

    def _take_over(self, seed: bytes, new_ledger_id: Callable[[], str]) -> None:
        with self._writing() as connection:
            head = connection.execute(sa.select(LEDGER)).first()
            if head is None:
                ledger_id = new_ledger_id()
                self.signer = Signer(f"jouleway/{ledger_id}", seed)
                values = {
                    "one": 1,
                    "ledger_id": ledger_id,
                    "origin": self.signer.public_key.name,
                    "public_key": str(self.signer.public_key),
                    "epoch": 1,
                    "size": 0,
                    "note": self.signer.sign(0, Tree().root()),
                }
                connection.execute(sa.insert(LEDGER), values)
                self.epoch, size = 1, 0
            else:
                self.signer = Signer(head.origin, seed)
                if str(self.signer.public_key) != head.public_key:
                    raise LedgerError(
                        f"{self.url} is signed by another key ({head.public_key}); remedy: put that key's file back"
                    )
                connection.execute(sa.update(LEDGER).values(epoch=LEDGER.c.epoch + 1))
                self.epoch, size = head.epoch + 1, head.size
        self._tree = Tree.of(size, self.hashes)
        if size and self.signer.public_key.verify(self.head()["note"]).root != self._tree.root():
            raise LedgerBroken(f"{self.url} was changed from outside; remedy: jouleway ledger verify, restore a backup")
        self._checkpoint_size = size

    @property
    def is_on_server(self) -> bool:
        """Whether it may be away for a while."""
        return self._engine.dialect.name != "sqlite"

    @property
    def size(self) -> int:
        """Rows that are durable."""
        return self._tree.size

    def write(self, rows: list[Row], state: State | None) -> bool:
        """Raises: LedgerError (try again), LedgerLost (never again)."""
        if not self._is_sure:
            rows = rows[self._find_written(rows) :]
        tree, row_values, node_values = self._tree.copy(), [], []
        for row in rows:
            body = encode(row)
            leaf = leaf_hash(body)
            for level, place, node in tree.append(leaf):
                node_values.append({"level": level, "place": place, "hash": node})
            row_values.append(
                {"seq": row.seq, "kind": row.kind, "row_id": row.row_id, "body": body.decode(), "leaf": leaf}
            )
        outcomes = [row.indexed for row in rows if row.indexed is not None]
        note = self.signer.sign(tree.size, tree.root())
        is_kept = state is not None or tree.size - self._checkpoint_size >= CHECKPOINT_ROWS
        self._is_sure = False
        with self._writing() as connection:
            mine = sa.and_(LEDGER.c.epoch == self.epoch, LEDGER.c.size == self._tree.size)
            if connection.execute(sa.update(LEDGER).where(mine).values(size=tree.size, note=note)).rowcount != 1:
                raise LedgerLost(
                    f"another control plane has taken over {self.url}: nothing of ours is written any more"
                )
            if row_values:
                connection.execute(sa.insert(ROWS), row_values)
            if node_values:
                connection.execute(sa.insert(NODES), node_values)
            if outcomes:
                connection.execute(sa.insert(OUTCOMES), outcomes)
            if is_kept and tree.size > self._checkpoint_size:
                connection.execute(sa.insert(CHECKPOINTS), {"size": tree.size, "note": note})
            if state is not None:
                self._write_state(connection, state)
        self._tree, self._is_sure = tree, True
        if is_kept:
            self._checkpoint_size = tree.size
            self._on_checkpoint(tree.size, note)
        return state is not None

    def _write_state(self, connection: sa.Connection, state: State) -> None:
        before = connection.execute(sa.select(sa.func.max(STATES.c.seq))).scalar()
        connection.execute(sa.delete(STATES))
        connection.execute(sa.insert(STATES), {"seq": state.seq, "data": state.data})
        # A try of which nobody knew the outcome may have been written after all.
        usage = [each for seq, rows in state.usage if before is None or seq > before for each in rows]
        if usage:
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            names = ("minute_us", *GROUPS, *SUMS)
            values = [dict(zip(names, each, strict=True)) for each in usage]
            insert: Any = dialect.insert(USAGE)
            sums = {name: USAGE.c[name] + insert.excluded[name] for name in SUMS}
            connection.execute(insert.on_conflict_do_update(index_elements=["minute_us", *GROUPS], set_=sums), values)

    def _find_written(self, rows: list[Row]) -> int:
        """After a commit of which the outcome is unknown: how many of the rows are stored."""
        head = self.head()
        if head["epoch"] != self.epoch:
            raise LedgerLost(f"another control plane has taken over {self.url}: nothing of ours is written any more")
        tree = self._tree.copy()
        num_written = head["size"] - tree.size
        if not 0 <= num_written <= len(rows):
            raise LedgerLost(f"{self.url} has {head['size']} rows where {tree.size} were written")
        for row in rows[:num_written]:
            tree.append(leaf_hash(encode(row)))
        if num_written and self.signer.public_key.verify(head["note"]).root != tree.root():
            raise LedgerLost(f"{self.url} has other rows than were written")
        self._tree = tree
        return num_written

    def close(self) -> None:
        super().close()
        self._lock.release()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            self._engine.dispose()  # what a connection knows after an error is not relied on
            raise LedgerError(f"{self.url} could not be written: {_words(error)}") from None


class _Lock:
    """Held while the ledger is open; the system lets go of it when the process dies."""

    def __init__(self, engine: sa.Engine) -> None:
        self._file: Any = None
        self._connection: sa.Connection | None = None
        if engine.dialect.name == "sqlite":
            self._lock_file(Path(str(engine.url.database)))
        else:
            self._lock_server(engine)

    def _lock_file(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # readable by its owner only, from the first byte
            self._file = path.with_name(path.name + ".lock").open("a")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise LedgerInUse(f"{path} is written by another control plane; remedy: stop that one first") from None
        except OSError as error:
            raise LedgerError(f"{path} cannot be written: {error.strerror}") from None

    def _lock_server(self, engine: sa.Engine) -> None:
        key = int.from_bytes(hashlib.sha256(b"jouleway ledger").digest()[:8], "big", signed=True)
        try:
            self._connection = engine.connect()
            self._connection.detach()  # to be closed for good, and the lock with it
            is_ours = self._connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar()
            self._connection.commit()
        except SQLAlchemyError as error:
            raise LedgerError(f"{engine.url.render_as_string(hide_password=True)}: {_words(error)}") from None
        if not is_ours:
            self._connection.close()
            where = engine.url.render_as_string(hide_password=True)
            raise LedgerInUse(f"{where} is written by another control plane; remedy: stop that one first")

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._connection is not None:
            self._connection.close()


def _engine(url: str, *, is_read_only: bool) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except SQLAlchemyError:
        raise LedgerError("the ledger's URL cannot be read; remedy: sqlite:////PATH or postgresql://…") from None
    if parsed.get_backend_name() == "postgresql":
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=2,
            connect_args={"connect_timeout": 5, "tcp_user_timeout": 10_000, "options": "-c statement_timeout=60000"},
        )
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        raise LedgerError(f"a ledger is sqlite:////PATH or postgresql://…, not {parsed.get_backend_name()}")
    path = Path(parsed.database)
    if is_read_only:
        if not path.is_file():
            raise LedgerError(f"{path}: there is no such file")
        # A copy on a read-only medium has no room for WAL's shared memory.
        mode = "mode=ro" if os.access(path.parent, os.W_OK) else "immutable=1"
        parsed = sa.make_url(f"sqlite:///file:{path}?{mode}&uri=true")
        return sa.create_engine(parsed, poolclass=NullPool)
    engine = sa.create_engine(parsed)

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _migrate(engine: sa.Engine) -> None:
    """To the newest version known here. Raises: LedgerError, also for a database of a newer one."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.connect() as connection:
            if sa.inspect(connection).has_table("alembic_version"):
                version = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
                known = [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]
                if version not in known:
                    raise LedgerError(
                        f"the ledger is of a newer version ({version}; known here: {known[0]}); remedy: update jouleway"
                    )
                if version == known[0]:
                    return
            config.attributes["connection"] = connection
            alembic_command.upgrade(config, "head")
            connection.commit()
    except SQLAlchemyError as error:
        raise LedgerError(f"{engine.url.render_as_string(hide_password=True)}: {_words(error)}") from None


def _words(error: SQLAlchemyError) -> str:
    """What the database said, without the statement and its values."""
    return str(getattr(error, "orig", None) or type(error).__name__).splitlines()[0]
