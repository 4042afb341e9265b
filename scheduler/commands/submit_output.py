"""The output files of `jouleway submit`: OpenAI's batch output, a line a job, bound to their input, safe to append to.

Called by ``scheduler.commands.submit`` and its run. It must never ask a server.

A file is bound to its input by the ids of its lines: each begins with the input's digest, so the file needs no
companion that could be lost. A line is one write of whole bytes; the file goes to the disk once a second and at the
end. So a killed process loses nothing that was written, and a power cut at most a second, in which a torn last line is
cut off when the file is opened again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.submit_file import Checked, short_digest
from scheduler.commands.submit_totals import Answer, Totals

ANSWER_LOST = "answer_lost"
"""Error code of a line that ran, and was paid for, but whose text reached nobody."""
MAX_LINE_BYTES = 128 << 20
"""An answer has at most 64 MiB; escapes may make it longer."""
DIGEST_CHARS = 16


class _Response(msgspec.Struct):
    status_code: int
    body: Answer | None = None


class _Error(msgspec.Struct):
    code: str
    message: str = ""


class _Written(msgspec.Struct):
    """What is read of a line of ours."""

    id: str
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Written).decode


@dataclass(slots=True, kw_only=True)
class Found:
    """What earlier runs left: which jobs are finished, and what they took."""

    finished: set[bytes] = field(default_factory=set)
    """``short_digest`` of each custom_id."""
    totals: Totals = field(default_factory=Totals)
    num_done: int = 0
    num_lost: int = 0


def line_id(digest: str, custom_id: str) -> str:
    """The ``id`` of an output line: of this input and this job, the same in every run."""
    own = hashlib.sha256(f"{digest}\0{custom_id}".encode()).hexdigest()
    return f"batch_req_{digest[:DIGEST_CHARS]}{own[:DIGEST_CHARS]}"


def output_line(
    digest: str, custom_id: str, *, response: dict[str, Any] | None, error: dict[str, str] | None = None
) -> bytes:
    """One line; a body in it is raw JSON without line breaks."""
    value = {"id": line_id(digest, custom_id), "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(value) + b"\n"


def look(checked: Checked, output: Path, errors: Path) -> Found:
    """What is there already; changes nothing. Raises: CommandError where a file is not ours or of another input."""
    _check_paths(checked.path, output, errors)
    found = Found()
    for written, _ in _written_lines(output, checked):
        _add(found, written)
    for written, _ in _written_lines(errors, checked):
        if _is_lost(written):
            _add(found, written)
    return found


class Outputs:
    """Both files, open for appending. Use as a context manager; only one run at a time may hold them."""

    def __init__(self, checked: Checked, output: Path, errors: Path) -> None:
        self._checked = checked
        self._paths = (output, errors)
        self._files: list[BinaryIO] = []
        self.found = Found()

    def __enter__(self) -> Outputs:
        """Raises: CommandError. A torn last line is cut off; the errors file keeps only what is not asked again."""
        output, errors = self._paths
        _check_paths(self._checked.path, output, errors)
        try:
            self._files.append(_open_locked(output))
            self.found = look(self._checked, output, errors)
            _repair(self._files[0])
            self._files.append(self._begin_errors(errors))
        except OSError as error:
            self.__exit__()
            raise CommandError(
                f"{error.filename or output}: {error.strerror}", code=ExitCode.USAGE, remedy="give another --output"
            ) from None
        except CommandError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            with suppress(OSError):
                os.fsync(file.fileno())
            file.close()
        self._files.clear()

    def done(self, custom_id: str, response: dict[str, Any]) -> None:
        """A finished job. Raises: CommandError where the disk takes no more."""
        self._append(0, output_line(self._checked.digest, custom_id, response=response))

    def failed(self, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> None:
        """A job without an answer. Raises: CommandError."""
        self._append(1, output_line(self._checked.digest, custom_id, response=response, error=error))

    def sync(self) -> None:
        """To the disk. Blocks: call it on a thread. Raises: OSError."""
        for file in self._files:
            os.fsync(file.fileno())

    def _append(self, which: int, line: bytes) -> None:
        file = self._files[which]
        begin = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):  # unbuffered: a full disk writes a part
                raise OSError(errno.ENOSPC, "the disk is full")
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file.fileno(), begin)
            raise CommandError(
                f"{self._paths[which]}: {error.strerror}",
                code=ExitCode.FAILURE,
                remedy="make room, then run the same command again: finished lines are not asked again",
            ) from None

    def _begin_errors(self, path: Path) -> BinaryIO:
        """Only lines that are never asked again stay: every other one is asked again, and may fail again."""
        beside = path.with_name(f".{path.name}.new")
        with beside.open("wb") as file:
            for written, line in _written_lines(path, self._checked):
                if _is_lost(written):
                    file.write(line)
            file.flush()
            os.fsync(file.fileno())
        kept = _open_locked(beside)
        beside.replace(path)
        return kept


def _check_paths(source: Path, output: Path, errors: Path) -> None:
    names = {"the jobs file": source, "--output": output, "--errors": errors}
    resolved: dict[Path, str] = {}
    for name, path in names.items():
        other = resolved.setdefault(path.resolve(), name)
        if other != name:
            raise CommandError(f"{name} and {other} are the same file: {path}", code=ExitCode.USAGE)
        if name != "the jobs file" and path.exists() and not path.is_file():
            raise CommandError(f"{path}: this is not a regular file", code=ExitCode.USAGE, remedy=f"give {name} a file")
        if not path.parent.is_dir():
            raise CommandError(f"{path.parent}: there is no such directory", code=ExitCode.NOT_FOUND)


def _open_locked(path: Path) -> BinaryIO:
    """Raises: CommandError where another run holds it, OSError."""
    file = path.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CommandError(
            f"{path}: another `jouleway submit` is writing it", code=ExitCode.UNAVAILABLE, remedy="let it end"
        ) from None
    return file


def _repair(file: BinaryIO) -> None:
    """Cuts off what follows the last line break: the write that a crash tore."""
    with open(file.name, "rb") as reading:
        end = position = reading.seek(0, os.SEEK_END)
        while position > 0:
            begin = max(position - (1 << 16), 0)
            reading.seek(begin)
            cut = reading.read(position - begin).rfind(b"\n")
            if cut >= 0:
                position = begin + cut + 1
                break
            position = begin
    if position < end:
        os.truncate(file.name, position)


def _written_lines(path: Path, checked: Checked) -> Iterator[tuple[_Written, bytes]]:
    """Whole lines of a file that may not exist; a torn last one is left out. Raises: CommandError, OSError."""
    if not path.exists():
        return
    expected = line_id(checked.digest, "")[:-DIGEST_CHARS]
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                _check_torn(path, line, expected)
                return
            try:
                written = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise _foreign(path, f"line {number} is no line of batch output") from None
            if not written.id.startswith(expected):
                raise _foreign(path, f"line {number} answers another input than {checked.path}")
            yield written, line


def _check_torn(path: Path, line: bytes, expected: str) -> None:
    """A file without any line break is cut only where it begins as ours does."""
    begin = b'{"id":"%b' % expected.encode()
    if line[: len(begin)] != begin[: len(line)]:
        raise _foreign(path, "its last line is no line of batch output")


def _foreign(path: Path, what: str) -> CommandError:
    return CommandError(
        f"{path}: {what}", code=ExitCode.USAGE, remedy="give another --output (--errors), or move this file away"
    )


def _is_lost(written: _Written) -> bool:
    return written.error is not None and written.error.code == ANSWER_LOST


def _add(found: Found, written: _Written) -> None:
    found.finished.add(short_digest(written.custom_id))
    if _is_lost(written):
        found.num_lost += 1
    else:
        found.num_done += 1
    if written.response is not None:
        found.totals.add(written.response.body)
