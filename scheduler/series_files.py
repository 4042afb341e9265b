"""Files of prices and carbon intensities, and a folder where new ones appear: read again when they change.

Owned by ``scheduler.energy_feed``. It must never ask a network, and never let a file that is wrong, half written or too
large take away what was known: the last good lines of each file stay until better ones are there.

A file is taken whole or not at all. Whoever writes one into the folder writes it under another name (beginning with a
dot, or not ending in ``.csv``) and renames it; a last line without an end is refused, for its value may be cut.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scheduler.accounting.energy_series import SeriesError, SeriesRow, read_series, signals_of

MAX_FILE_BYTES = 8 << 20
MAX_FILES = 256
MAX_ROWS = 500_000
"""Of all files together."""

Signature = tuple[int, int, int]
"""Of a file as it was read: inode, size, time of its last change in ns."""


@dataclass(slots=True)
class _File:
    """What is known of one file."""

    signature: Signature | None = None
    """None: to be read at the next look."""
    rows: tuple[SeriesRow, ...] = ()
    """Of the last reading that was good."""
    problem: str = ""
    """Why the newest reading was not; empty where it was."""


class SeriesFiles:
    """``look`` as often as wanted, in a thread; ``rows_of`` in between."""

    def __init__(self, files: Sequence[Path], folder: Path | None, *, currency: str, zones: Iterable[str]) -> None:
        """``zones``: all that a line may name."""
        self._named = tuple(files)
        self._folder = folder
        self._currency = currency
        self._zones = frozenset(zones)
        self._files: dict[Path, _File] = {}
        """In the order in which they count."""
        self._folder_problem = ""

    def look(self) -> bool:
        """Reads what is new; whether any value may have changed."""
        known, self._files = self._files, {path: self._files.get(path, _File()) for path in self._paths()}
        is_changed = any(file.rows for path, file in known.items() if path not in self._files)
        for path, file in self._files.items():
            try:
                is_changed |= self._read(path, file)
            except FileNotFoundError:
                file.signature, file.problem = None, "there is no such file"
            except OSError as error:
                file.signature, file.problem = None, f"cannot be read: {error.strerror}"
            except SeriesError as error:
                file.problem = str(error)
        return is_changed

    @property
    def problems(self) -> list[str]:
        """One line for each file that is not as it should be, and what holds instead."""
        found = [f"{self._folder}: {self._folder_problem}"] if self._folder_problem else []
        for path, file in self._files.items():
            if file.problem:
                rest = "its last good lines stay in force" if file.rows else "nothing of it is used"
                found.append(f"{path}: {file.problem}; {rest}")
        return found

    def rows_of(self, zone: str) -> list[SeriesRow]:
        """Lines that hold for a zone, those that count most last: what names it counts before what names none."""
        every = [row for file in self._files.values() for row in file.rows]
        return [row for row in every if not row.zone] + [row for row in every if row.zone == zone]

    # -- inside

    def _paths(self) -> list[Path]:
        """Those that are configured, then those in the folder by name."""
        self._folder_problem = ""
        if self._folder is None:
            return list(self._named)
        try:
            names = sorted(name for name in os.listdir(self._folder) if name.endswith(".csv") and name[0] != ".")
        except OSError as error:
            self._folder_problem = f"cannot be listed: {error.strerror}; what was read of it stays in force"
            return list(dict.fromkeys((*self._named, *self._files)))
        if len(names) > MAX_FILES:
            self._folder_problem = (
                f"{len(names):,} files, of which the last {MAX_FILES} by name are read: remove old ones"
            )
        return [*self._named, *(self._folder / name for name in names[-MAX_FILES:])]

    def _read(self, path: Path, file: _File) -> bool:
        """Whether its lines are others now. Raises: OSError, SeriesError; its lines stay then."""
        before = _signature(path.stat())
        if before == file.signature:
            return False
        with path.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SeriesError("this is not a regular file")
            data = opened.read(MAX_FILE_BYTES + 1)
            after = _signature(os.fstat(opened.fileno()))
        if after != before:
            file.problem = "it was changed while it was read; it is read again"
            return False
        file.signature = before
        if len(data) > MAX_FILE_BYTES:
            raise SeriesError(f"more than {MAX_FILE_BYTES:,} bytes: split it by time")
        rows = read_series(data, currency=self._currency)
        self._check(rows, [each for each in self._files.values() if each is not file])
        is_changed = rows != file.rows
        file.rows, file.problem = rows, ""
        return is_changed

    def _check(self, rows: Sequence[SeriesRow], others: Sequence[_File]) -> None:
        """Raises: SeriesError where the lines cannot stand beside those of other files."""
        for row in rows:
            if row.zone and row.zone not in self._zones:
                raise SeriesError(
                    f"line {row.line}: zone: there is no zone {row.zone!r} ({', '.join(sorted(self._zones))})"
                )
        every = [*rows, *(row for other in others for row in other.rows)]
        if len(every) > MAX_ROWS:
            raise SeriesError(f"with it there are {len(every):,} lines, more than {MAX_ROWS:,}: remove old files")
        for zone in sorted(self._zones):
            signals = signals_of(row for row in every if row.zone in ("", zone))
            if len(signals) > 1:
                raise SeriesError(f"average and marginal carbon of zone {zone} cannot be mixed: keep one of them")


def _signature(status: os.stat_result) -> Signature:
    return status.st_ino, status.st_size, status.st_mtime_ns
