"""The jobs file of `jouleway submit`: one request a line, checked whole before anything is asked, never held in memory.

Called by ``scheduler.commands.submit``. It must never ask a server, and no message of it repeats what a line holds
beside its custom_id, model and url.
"""

from __future__ import annotations

import hashlib
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scheduler.commands.exits import CommandError, ExitCode

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses")
"""What a line may ask: the routes that answer one body with one body."""
MAX_LINE_BYTES = 16 << 20
MAX_LINES = 1_000_000
MAX_ID_CHARS = 256
MAX_MODELS = 64
MAX_FAULTS_SHOWN = 10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

REMEDY = 'each line is {"custom_id": "…", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "…", …}}'


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's batch input."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    """What is read of a body; the server checks the rest."""

    model: Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
    stream: bool | None = None
    service_tier: msgspec.Raw | UnsetType = UNSET


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_body = msgspec.json.Decoder(_Body).decode


class Fault(Exception):
    """A line that cannot be asked, in words."""


@dataclass(frozen=True, slots=True)
class Job:
    """One line."""

    number: int
    """Counted from 1, as editors do."""
    custom_id: str
    url: str
    model: str
    body: bytes
    has_tier: bool


@dataclass(slots=True, kw_only=True)
class Checked:
    """A file of which every line can be asked."""

    path: Path
    digest: str
    """SHA-256 of its bytes, in hex: what output files are bound to."""
    num_jobs: int = 0
    num_bytes: int = 0
    models: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)


def short_digest(custom_id: str) -> bytes:
    """Stands for a custom_id in memory: 16 bytes, whatever its length."""
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


def check(path: Path, *, allow_mixed_models: bool = False) -> Checked:
    """Reads the whole file once. Raises: CommandError, which names the file, the first faulty lines and the remedy."""
    faults: list[str] = []
    num_faults = 0
    hasher = hashlib.sha256()
    checked = Checked(path=path, digest="")
    first_lines: dict[bytes, int] = {}
    with _open(path) as file:
        for number, line in _lines(file, hasher):
            try:
                job = _checked_job(number, line, checked, first_lines, allow_mixed_models=allow_mixed_models)
                if job is not None:
                    _count(checked, job)
            except Fault as fault:
                num_faults += 1
                if num_faults <= MAX_FAULTS_SHOWN:
                    faults.append(f"line {number}: {fault}")
            checked.num_bytes += len(line)
            if checked.num_jobs > MAX_LINES:
                raise _unusable(path, f"more than {MAX_LINES:,} lines", remedy="split the file")
            if len(line) > MAX_LINE_BYTES:
                break  # where the next line begins is not known without reading on
    checked.digest = hasher.hexdigest()
    if num_faults:
        more = [f"… and {num_faults - len(faults):,} more"] if num_faults > len(faults) else []
        raise _unusable(path, "\n  ".join([f"{num_faults:,} of its lines cannot be asked", *faults, *more]))
    if not checked.num_jobs:
        raise _unusable(path, "the file holds no line")
    return checked


def jobs(checked: Checked) -> Iterator[Job]:
    """Every line again, in order. Raises: CommandError at its end, or earlier, where the file was changed meanwhile."""
    hasher = hashlib.sha256()
    with _open(checked.path) as file:
        for number, line in _lines(file, hasher):
            try:
                job = _job(number, line)
            except Fault:
                raise _changed(checked.path) from None
            if job is not None:
                yield job
    if hasher.hexdigest() != checked.digest:
        raise _changed(checked.path)


def _open(path: Path) -> BinaryIO:
    """Raises: CommandError."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise CommandError(
            f"{path}: there is no such file", code=ExitCode.NOT_FOUND, remedy="give the path of a jobs file"
        ) from None
    except IsADirectoryError:
        raise _unusable(path, "this is a directory", remedy="give one file; run `jouleway submit` for each") from None
    except OSError as error:
        raise _unusable(path, error.strerror or type(error).__name__, remedy="check its permissions") from None
    if not stat.S_ISREG(path.stat().st_mode):
        file.close()
        raise _unusable(path, "this is not a regular file: it is read twice", remedy="write it to a file first")
    return file


def _lines(file: BinaryIO, hasher: hashlib._Hash) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line; one that is too long is cut off just beyond the limit."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        hasher.update(line)
        number += 1
        yield number, line


def _checked_job(
    number: int, line: bytes, checked: Checked, first_lines: dict[bytes, int], *, allow_mixed_models: bool
) -> Job | None:
    """The line as a job, held against the lines before it. Raises: Fault."""
    job = _job(number, line)
    if job is None:
        return None
    first = first_lines.setdefault(short_digest(job.custom_id), number)
    if first != number:
        raise Fault(f"custom_id {job.custom_id!r} is that of line {first} too: results are found by it")
    if not allow_mixed_models and checked.models and job.model not in checked.models:
        first_model = next(iter(checked.models))
        raise Fault(f"model {job.model!r}, but {first_model!r} before: give --allow-mixed-models, or a file a model")
    if job.model not in checked.models and len(checked.models) >= MAX_MODELS:
        raise Fault(f"more than {MAX_MODELS} models in one file")
    return job


def _count(checked: Checked, job: Job) -> None:
    checked.num_jobs += 1
    checked.models[job.model] += 1
    checked.routes[job.url] += 1


def _job(number: int, line: bytes) -> Job | None:
    """None for a blank line. Raises: Fault."""
    if len(line) > MAX_LINE_BYTES:
        raise Fault(f"longer than {MAX_LINE_BYTES:,} bytes; is each request on a line of its own?")
    if line.startswith(BYTE_ORDER_MARK):
        raise Fault("begins with a byte order mark: save the file as UTF-8 without one")
    if not line.strip():
        return None
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Fault(f"byte {error.start + 1} is not UTF-8") from None
    try:
        fields = _decode_line(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Fault(_in_words(error)) from None
    if fields.method != "POST":
        raise Fault("method: only POST")
    if fields.url not in ROUTES:
        raise Fault(f"url {fields.url[:80]!r} is none of {', '.join(ROUTES)}")
    body = bytes(fields.body)
    try:
        read = _decode_body(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Fault(f"body: {_in_words(error)}") from None
    if read.stream:
        raise Fault("body.stream: a line has one whole answer; leave it out")
    return Job(
        number=number,
        custom_id=fields.custom_id,
        url=fields.url,
        model=read.model,
        body=body,
        has_tier=read.service_tier is not UNSET,
    )


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = str(error)
    return text if isinstance(error, msgspec.ValidationError) else f"not JSON ({text.removeprefix('JSON is ')})"


def _unusable(path: Path, what: str, *, remedy: str = REMEDY) -> CommandError:
    return CommandError(f"{path}: {what}", code=ExitCode.USAGE, remedy=remedy)


def _changed(path: Path) -> CommandError:
    return CommandError(
        f"{path}: the file was changed while its lines were asked",
        code=ExitCode.USAGE,
        remedy="what is written is valid for the lines as they were; a changed file needs an output file of its own",
    )
