"""The ledger's database: rows and their tree in one transaction, one writer at a time; SQLite, or PostgreSQL by URL.

Called by ``scheduler.accounting.journal`` (write, in a thread); reading is ``scheduler.accounting.ledger_reader``'s. It
must never know what a row means, and it changes no row that is written.

Only one control plane writes: a lock is held as long as the ledger is open (SQLite: a lock file; PostgreSQL: an
advisory lock), and every transaction names the epoch that this opening was given, so that one which lost its lock
without knowing cannot commit any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import sqlalchemy as sa
from alembic import command as alembic_command
from alembic.config import Config as AlembicConfig
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from scheduler.accounting.checkpoints import Signer
from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerInUse, LedgerLost, LedgerRefused
from scheduler.accounting.journal import State
from scheduler.accounting.ledger_reader import (
    CHECKPOINTS,
    LEDGER,
    MIGRATIONS,
    OUTCOMES,
    ROWS,
    STATES,
    USAGE,
    Reader,
    known_versions,
    make_engine,
    shown_url,
    version_of,
    words_of,
)
from scheduler.accounting.merkle import Tree, leaf_hash
from scheduler.accounting.rows import Row, encode
from scheduler.accounting.usage_book import GROUPS, SUMS

CHECKPOINT_ROWS = 10_000
"""Rows between checkpoints that are kept; the newest is always there."""


class Ledger(Reader):
    """The one writer. Whoever gave up waiting for a ``write`` may call the next one; reading is as with ``Reader``."""

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
        engine = make_engine(url, is_read_only=False)
        self._lock = WriterLock(engine)
        # In the driver's own words: a library's would be half of what a small commit costs, and a tenth of each row.
        self._advance = _driver_sql("UPDATE ledger SET size = ?, note = ? WHERE epoch = ? AND size = ?", engine)
        self._add_rows = _driver_sql("INSERT INTO rows (seq, kind, row_id, body, leaf) VALUES (?, ?, ?, ?, ?)", engine)
        self._add_nodes = _driver_sql("INSERT INTO nodes (level, place, hash) VALUES (?, ?, ?)", engine)
        try:
            migrate(engine)
            super().__init__(url, is_read_only=False)
            self._on_checkpoint = on_checkpoint
            self._one_at_a_time = Lock()
            self._is_sure = True
            """False after a write that failed: what is stored is looked at before the next one."""
            try:
                self._take_over(seed, new_ledger_id)
            except BaseException:
                self._engine.dispose()
                raise
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
        try:
            self._tree = Tree.of(size, self.hashes)
            is_sound = self.signer.public_key.verify(self.head()["note"])[1:] == (size, self._tree.root())
        except ValueError:  # a hash is missing, or the note is none
            is_sound = False
        if not is_sound:
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
        """Rows that are stored already, by a try that failed or was given up, are passed over.

        Raises: LedgerError (try again), LedgerLost (never again), LedgerRefused (a fault of ours).
        """
        with self._one_at_a_time:
            if not self._is_sure:
                self._find_written(rows)
                self._lock.keep()
            elif state is not None:
                self._lock.keep()
            rows = [row for row in rows if row.seq >= self._tree.size]
            try:
                return self._write(rows, state)
            except LedgerRefused as error:
                raise LedgerRefused(
                    f"{error}; {self._doubled(rows)}; this is a fault of ours; remedy: restart, workers say again what "
                    "was not booked"
                ) from None

    def _write(self, rows: list[Row], state: State | None) -> bool:
        tree, bodies = self._tree.copy(), [encode(row) for row in rows]
        leaves = [leaf_hash(body) for body in bodies]
        nodes = tree.extend(leaves)
        stored = [
            (row.seq, row.kind, row.row_id, body.decode(), leaf)
            for row, body, leaf in zip(rows, bodies, leaves, strict=True)
        ]
        outcomes = [row.indexed for row in rows if row.indexed is not None]
        note = self.signer.sign(tree.size, tree.root())
        is_kept = state is not None or tree.size - self._checkpoint_size >= CHECKPOINT_ROWS
        self._is_sure = False
        with self._writing() as connection:
            mine = (tree.size, note, self.epoch, self._tree.size)
            if connection.exec_driver_sql(self._advance, mine).rowcount != 1:
                raise LedgerLost(
                    f"another control plane has taken over {self.url}: nothing of ours is written any more"
                )
            if stored:
                connection.exec_driver_sql(self._add_rows, stored)
            if nodes:
                connection.exec_driver_sql(self._add_nodes, nodes)
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

    def _doubled(self, rows: list[Row]) -> str:
        """Which of them is there already, in words."""
        seen: set[tuple[str, str]] = set()
        for row in rows:
            key = (row.kind, row.row_id)
            if key in seen or self.find(*key) is not None:
                return f"row {row.seq} ({row.kind} {row.row_id}) is booked already"
            seen.add(key)
        return f"rows {rows[0].seq} to {rows[-1].seq}" if rows else "a state"

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

    def _find_written(self, rows: list[Row]) -> None:
        """After a commit of which the outcome is unknown: whether these rows are stored."""
        head = self.head()
        if head["epoch"] != self.epoch:
            raise LedgerLost(f"another control plane has taken over {self.url}: nothing of ours is written any more")
        tree, rows = self._tree.copy(), [row for row in rows if row.seq >= self._tree.size]
        if not 0 <= head["size"] - tree.size <= len(rows):
            raise LedgerLost(f"{self.url} has {head['size']} rows where {tree.size} were written")
        for row in rows[: head["size"] - tree.size]:
            tree.append(leaf_hash(encode(row)))
        if tree.size > self._tree.size and self.signer.public_key.verify(head["note"]).root != tree.root():
            raise LedgerLost(f"{self.url} has other rows than were written")
        with self.reading() as connection:
            kept = connection.execute(sa.select(sa.func.max(CHECKPOINTS.c.size))).scalar()
        self._tree, self._checkpoint_size, self._is_sure = tree, max(kept or 0, self._checkpoint_size), True

    def drop_bodies(self, from_seq: int, to_seq: int, *, kinds: list[str]) -> None:
        """The texts of rows that a compaction has summed up go; their leaves stay. Raises: LedgerError."""
        is_old = sa.and_(ROWS.c.seq >= from_seq, ROWS.c.seq < to_seq, ROWS.c.kind.in_(kinds), ROWS.c.body.is_not(None))
        with self._one_at_a_time, self._writing() as connection:
            mine = connection.execute(sa.select(LEDGER.c.epoch)).scalar()
            if mine != self.epoch:
                raise LedgerLost(
                    f"another control plane has taken over {self.url}: nothing of ours is written any more"
                )
            connection.execute(sa.update(ROWS).where(is_old).values(body=None))

    def close(self) -> None:
        super().close()
        self._lock.release()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DataError, IntegrityError) as error:
            raise LedgerRefused(f"{self.url} does not take what was to be written: {words_of(error)}") from None
        except SQLAlchemyError as error:
            self._engine.dispose()  # what a connection knows after an error is not relied on
            raise LedgerError(f"{self.url} could not be written: {words_of(error)}") from None


def _driver_sql(text: str, engine: sa.Engine) -> str:
    """With the marks that this database's driver knows."""
    return text if engine.dialect.name == "sqlite" else text.replace("?", "%s")


class WriterLock:
    """Held while the ledger is open; the system lets go of it when the process dies."""

    def __init__(self, engine: sa.Engine) -> None:
        self._file: Any = None
        self._connection: sa.Connection | None = None
        if engine.dialect.name == "sqlite":
            self._lock_file(Path(str(engine.url.database)))
        else:
            self._lock_server(engine)

    def keep(self) -> None:
        """The server's lock went with its connection where that broke: it is taken again, now or at the next call.

        Where somebody else has it, it may be our own connection that the server has not missed yet; a control plane
        that took over is known by its epoch.
        """
        if self._connection is None:
            return
        try:
            self._connection.execute(sa.select(1))
            self._connection.commit()
        except SQLAlchemyError:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.close()
            with contextlib.suppress(LedgerError):
                self._lock_server(self._connection.engine)

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
            raise LedgerError(f"{shown_url(engine.url)}: {words_of(error)}") from None
        if not is_ours:
            self._connection.close()
            where = shown_url(engine.url)
            raise LedgerInUse(f"{where} is written by another control plane; remedy: stop that one first")

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._connection is not None:
            self._connection.close()


def migrate(engine: sa.Engine) -> None:
    """To the newest version known here. Raises: LedgerError, also for a database of a newer one."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.connect() as connection:
            if version_of(connection) == known_versions()[0]:
                return
            config.attributes["connection"] = connection
            alembic_command.upgrade(config, "head")
            connection.commit()
    except SQLAlchemyError as error:
        raise LedgerError(f"{shown_url(engine.url)}: {words_of(error)}") from None
