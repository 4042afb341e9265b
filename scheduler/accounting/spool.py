"""Rows on the local disk while the database is away: fsynced, so durable; then delivered, once and in order.

Called by ``scheduler.accounting.journal`` in place of a ledger on a server, in one thread at a time. Bounded: when it
is full nothing more is taken, and nothing new is served. It must never know what a row means.

Each line is a row's text behind its CRC-32, so that a line torn by a crash is known; a torn line was never durable for
anybody. What the ledger already has (a commit whose answer was lost) is not delivered again: rows have their numbers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerLost, LedgerRefused
from scheduler.accounting.journal import State
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.merkle import leaf_hash
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
        self._num_in_doubt = 0
        """Rows of a commit whose outcome is not known: they are asked for together."""
        kept, self._num_bytes = read(path)
        self._compare(kept)
        self._rows = [row for row in kept if row.seq >= ledger.size]
        if self._rows and self._rows[0].seq > ledger.size:
            raise LedgerBroken(
                f"{path} begins with row {self._rows[0].seq}, the ledger ends with {ledger.size}: rows are missing"
            )
        if not self._rows:
            self._num_bytes = 0  # all of it is in the ledger: what is kept from now on does not follow it
        self._file = path.open("ab")
        path.chmod(0o600)
        self._is_torn = True
        """Behind ``_num_bytes`` may be more: of a write that failed, or that a crash tore."""
        try:
            self._cut()
            sync_folder(path.parent)
            if self._rows:
                logger.warning("ledger: %d rows that were kept in %s are delivered", len(self._rows), path)
                self._deliver()
        except BaseException:
            self._file.close()
            raise

    def _compare(self, kept: list[Row]) -> None:
        """What the ledger has under the numbers of kept rows must be these. Raises: LedgerBroken."""
        for row in kept:
            if row.seq >= self._ledger.size:
                return
            if self._ledger.hashes(0, row.seq, 1) != [leaf_hash(encode(row))]:  # stays when its text is compacted
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
        if self._rows and self._clock() >= self._retry_at_s:
            self._try_to_deliver()  # first, or a spool that is full would stay so
        if self._rows or self._clock() < self._retry_at_s:
            self._keep(rows)
            return False
        try:
            return self._ledger.write(rows, state)
        except (LedgerLost, LedgerRefused):  # the server is there: what it refuses today it refuses tomorrow
            raise
        except LedgerError as error:
            logger.error("ledger: %s; rows are kept in %s meanwhile", error, self._path)
            self._retry_at_s = self._clock() + RETRY_S
            self._keep(rows)
            self._num_in_doubt = len(rows)
            return False

    def close(self) -> None:
        """What still waits is delivered at the next start."""
        self._file.close()

    def _keep(self, rows: list[Row]) -> None:
        data = b"".join(_line(row) for row in rows)
        if len(self._rows) + len(rows) > self._max_rows or self._num_bytes + len(data) > self._max_bytes:
            raise LedgerError(
                f"the database is away and {self._path} is full ({len(self._rows)} rows, {self._num_bytes} bytes; "
                f"limits {self._max_rows} and {self._max_bytes})"
            )
        try:
            if self._is_torn:
                self._cut()
            self._is_torn = True
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # else before the next write
                self._cut()
            raise LedgerError(f"{self._path} cannot be written: {error.strerror}") from None
        self._is_torn = False
        self._num_bytes += len(data)
        self._rows += rows

    def _cut(self) -> None:
        """The file as it is known to be, by a new handle: what one knows after an error is not relied on."""
        with contextlib.suppress(OSError):  # it tries once more to write what could not be written
            self._file.close()
        self._file = self._path.open("ab")
        self._file.truncate(self._num_bytes)
        os.fsync(self._file.fileno())
        self._is_torn = False

    def _try_to_deliver(self) -> None:
        try:
            self._deliver()
        except (LedgerLost, LedgerRefused):
            raise
        except LedgerError as error:
            self._retry_at_s = self._clock() + RETRY_S
            logger.warning("ledger: still away (%s), %d rows are kept", error, len(self._rows))

    def _deliver(self) -> None:
        total = len(self._rows)
        while self._rows:
            num_rows = max(DELIVER_ROWS, self._num_in_doubt)
            self._ledger.write(self._rows[:num_rows], None)
            del self._rows[:num_rows]
            self._num_in_doubt = 0
        self._num_bytes, self._is_torn = 0, True
        with contextlib.suppress(OSError):  # rows that are stored already are passed over, whoever reads them again
            self._cut()
        logger.info("ledger: back, %d kept rows are delivered", total)


def read(path: Path) -> tuple[list[Row], int]:
    """Whole rows of a spool's file and their bytes, up to a line that a crash tore.

    Raises: LedgerBroken where more than the last line cannot be read, or a row is missing.
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
            try:
                rows.append(decode(body))
            except msgspec.DecodeError:
                raise LedgerBroken(f"{path}: its line at byte {num_bytes} is no row known here") from None
            num_bytes += len(line)
            if rows[-1].seq != rows[0].seq + len(rows) - 1:
                raise LedgerBroken(f"{path} was changed: row {rows[-1].seq} does not follow row {rows[-2].seq}")
    return rows, num_bytes


def sync_folder(folder: Path) -> None:
    """A new file's name is durable only with its folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(row: Row) -> bytes:
    body = encode(row)
    return b"%08x %b\n" % (zlib.crc32(body), body)
