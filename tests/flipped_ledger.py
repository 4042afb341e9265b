"""A ledger's file in memory, one byte of it changed at a time: what verify says to it.

Used by ``tests/unit/test_verify.py`` (a sample) and ``tests/soak/test_tamper.py`` (every byte).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from scheduler.accounting import ledger_reader
from scheduler.accounting.checkpoints import PublicKey
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.verify import Fault, verify


class Flips:
    """``found(place, mask)`` for bytes of one file; enter ``flipping`` first."""

    def __init__(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            # Logs beside it cannot be in memory; what is in the file is the same.
            connection.execute("PRAGMA journal_mode=DELETE")
        self.data = path.read_bytes()
        with closing(Reader(sqlite_url(path))) as reader:
            self._rows = list(reader.stored())
            self._key = PublicKey.parse(reader.head()["public_key"])
        self._flipped = self.data
        self._engine = sa.create_engine("sqlite://", creator=self._connect, poolclass=StaticPool)

    @contextmanager
    def flipping(self) -> Iterator[None]:
        """Readers read what is in memory."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger_reader, "make_engine", lambda url, **_: self._engine)
            yield
        self._engine.dispose()

    def found(self, place: int, mask: int) -> bool:
        """Whether verify finds this change. AssertionError where it does not, and a row is another one than before."""
        flipped = bytearray(self.data)
        flipped[place] ^= mask
        self._flipped = bytes(flipped)
        self._engine.dispose()
        try:
            with closing(Reader("in memory")) as reader:
                verify(reader, key=self._key)
                rows = list(reader.stored())
        except (Fault, LedgerError):
            return True
        assert self._rows == rows, f"byte {place} changed by {mask:#x} changes a row, and nobody says so"
        return False

    def missed(self, places: range) -> tuple[int, list[str]]:
        """How many changes of these bytes were found, and what verify did not say, or not in its own words."""
        num_found, missed = 0, []
        with self.flipping():
            for place in places:
                try:
                    num_found += self.found(place, 0xFF if place & 1 else 1 << place // 2 % 8)
                except Exception as error:  # also what is not verify's word is a miss
                    missed.append(f"byte {place}: {type(error).__name__}: {error}")
        return num_found, missed

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.deserialize(self._flipped)
        return connection


def missed_of(path: Path, places: range) -> tuple[int, list[str]]:
    """For a process of its own."""
    return Flips(path).missed(places)
