"""Rows on the local disk while the database is away: fsynced, so durable; then delivered, once and in order.

Called by ``scheduler.accounting.journal`` in place of a ledger on a server, in one thread at a time. Bounded: when it
is full nothing more is taken, and nothing new is served. It must never know what a row means.

Each line is a row's text behind its CRC-32, so that a line torn by a crash is known; a torn line was never durable for
anybody. What the ledger already has (a commit whose answer was lost) is not delivered again: rows have their numbers.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerLost
from scheduler.accounting.journal import State
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.rows import Row, decode, encode

logger = logging.getLogger("jouleway.ledger")

MAX_ROWS = 500_000
MAX_BYTES = 512 << 20
DELIVER_ROWS = 5_000
"""In one transaction."""
RETRY_S = 1.0


class Spool:
    """A ledger that may be away for a while."""

    def __init__(
        self,
        ledger: Ledger,
        path: Path,
        *,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Delivers what an earlier process left behind. Raises: LedgerError, OSError."""
        self._ledger = ledger
        self._path = path
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._clock = clock
        self._retry_at_s = 0.0
        kept, num_bytes = read(path)
        self._compare(kept)
        self._rows = [row for row in kept if row.seq >= ledger.size]
        self._file = path.open("ab")
        self._file.truncate(num_bytes)
        path.chmod(0o600)
        if self._rows:
            if self._rows[0].seq > ledger.size:
                raise LedgerBroken(
                    f"{path} begins with row {self._rows[0].seq}, the ledger ends with {ledger.size}: rows are missing"
                )
            logger.warning("ledger: %d rows that were kept in %s are delivered", len(self._rows), path)
            self._deliver()

    def _compare(self, kept: list[Row]) -> None:
        """What the ledger has under the numbers of kept rows must be these. Raises: LedgerBroken."""
        for row in kept:
            if row.seq >= self._ledger.size:
                return
            stored = next(self._ledger.stored(row.seq, row.seq + 1))
            if stored[3] != encode(row).decode():
                raise LedgerBroken(
                    f"{self._path} keeps a row {row.seq} that was durable here, the ledger has another one: a second "
                    "control plane wrote it meanwhile; remedy: keep the file, it is the only copy of these rows, book "
                    "what it holds by hand, and move it away"
                )

    @property
    def num_rows(self) -> int:
        """That wait for the database."""
        return len(self._rows)

    def write(self, rows: list[Row], state: State | None) -> bool:
        """As ``Ledger.write``; while the database is away rows are kept here, and a state is not taken.

        Raises: LedgerError where there is no room here either, LedgerLost.
        """
        if self._rows or self._clock() < self._retry_at_s:
            self._keep(rows)
            if self._clock() >= self._retry_at_s:
                self._try_to_deliver()
            return False
        try:
            return self._ledger.write(rows, state)
        except LedgerLost:
            raise
        except LedgerError as error:
            logger.error("ledger: %s; rows are kept in %s meanwhile", error, self._path)
            self._retry_at_s = self._clock() + RETRY_S
            self._keep(rows)
            return False

    def close(self) -> None:
        """What still waits is delivered at the next start."""
        self._file.close()

    def _keep(self, rows: list[Row]) -> None:
        data = b"".join(_line(row) for row in rows)
        size = self._file.tell()
        if len(self._rows) + len(rows) > self._max_rows or size + len(data) > self._max_bytes:
            raise LedgerError(
                f"the database is away and {self._path} is full ({len(self._rows)} rows, {size} bytes; "
                f"limits {self._max_rows} and {self._max_bytes})"
            )
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._restore(size)
            raise LedgerError(f"{self._path} cannot be written: {error.strerror}") from None
        self._rows += rows

    def _restore(self, size: int) -> None:
        """After a write that failed: the file as it was, by a new handle: what the old one knows is not relied on."""
        self._file.close()
        os.truncate(self._path, size)
        self._file = self._path.open("ab")

    def _try_to_deliver(self) -> None:
        try:
            self._deliver()
        except LedgerLost:
            raise
        except LedgerError as error:
            self._retry_at_s = self._clock() + RETRY_S
            logger.warning("ledger: still away (%s), %d rows are kept", error, len(self._rows))

    def _deliver(self) -> None:
        total = len(self._rows)
        while self._rows:
            self._ledger.write(self._rows[:DELIVER_ROWS], None)
            del self._rows[:DELIVER_ROWS]
        self._file.truncate(0)
        self._file.seek(0)
        os.fsync(self._file.fileno())
        logger.info("ledger: back, %d kept rows are delivered", total)


def read(path: Path) -> tuple[list[Row], int]:
    """Whole rows of a spool's file and their bytes, up to a line that a crash tore.

    Raises: LedgerBroken where more than the last line cannot be read.
    """
    rows: list[Row] = []
    num_bytes, torn_at = 0, None
    if not path.exists():
        return rows, 0
    with path.open("rb") as file:
        for line in file:
            checksum, _, body = line.removesuffix(b"\n").partition(b" ")
            if torn_at is not None:
                raise LedgerBroken(
                    f"{path} was changed: its line at byte {torn_at} cannot be read, and is not the last"
                )
            if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
                torn_at = num_bytes
                continue
            rows.append(decode(body))
            num_bytes += len(line)
    return rows, num_bytes


def _line(row: Row) -> bytes:
    body = encode(row)
    return b"%08x %b\n" % (zlib.crc32(body), body)
