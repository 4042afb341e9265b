"""Request traces as they are published: Azure's CSV and Mooncake's JSON lines, read and checked.

Called by ``scheduler.bench.workload``, the commands and benchmarks. It must never know what is done with the rows.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

MAX_TRACE_ROWS = 5_000_000
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A trace file cannot be replayed; the message names the file, the line and the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One arrival of a trace, its time counted from the first row."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_trace(path: Path, *, must_be_in_order: bool = False) -> list[TraceRow]:
    """The rows of an Azure CSV (``TIMESTAMP,ContextTokens,GeneratedTokens``) or a Mooncake JSONL file, by time.

    Raises: TraceError when the file is missing, empty, in another format or too long, or goes back in time where it
    ``must_be_in_order``, naming the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline()
            file.seek(0)
            rows = list(_azure(path, file) if "," in first and not first.startswith("{") else _mooncake(path, file))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if not rows:
        raise TraceError(f"{path}: no request in it")
    if must_be_in_order:
        _check_order(path, rows)
    rows.sort(key=lambda row: row.arrival_s)
    origin_s = rows[0].arrival_s
    return [dataclasses.replace(row, arrival_s=row.arrival_s - origin_s) for row in rows]


def _check_order(path: Path, rows: Sequence[TraceRow]) -> None:
    for number, (before, row) in enumerate(pairwise(rows), start=2):
        if row.arrival_s < before.arrival_s:
            raise TraceError(
                f"{path}: request {number} arrives {before.arrival_s - row.arrival_s:g} s before the one above it; sort"
                " the file by time"
            )


def _azure(path: Path, lines: Iterator[str] | Sequence[str]) -> Iterator[TraceRow]:
    reader = csv.DictReader(lines)
    missing = [column for column in AZURE_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise TraceError(f"{path}: line 1: column {missing[0]!r} is missing (has {', '.join(reader.fieldnames or ())})")
    for row in reader:
        number = reader.line_num
        _check_size(path, number)
        try:
            moment = datetime.datetime.fromisoformat(row["TIMESTAMP"]).replace(tzinfo=datetime.UTC)
        except (ValueError, TypeError) as error:
            raise TraceError(f"{path}: line {number}: TIMESTAMP {row['TIMESTAMP']!r} is no ISO 8601 time") from error
        yield TraceRow(
            arrival_s=moment.timestamp(),
            input_tokens=_count(path, number, "ContextTokens", row["ContextTokens"]),
            output_tokens=_count(path, number, "GeneratedTokens", row["GeneratedTokens"]),
        )


def _mooncake(path: Path, lines: Iterator[str] | Sequence[str]) -> Iterator[TraceRow]:
    for number, line in enumerate(lines, start=1):
        _check_size(path, number)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TraceError(
                f"{path}: line {number}: neither an Azure CSV ({','.join(AZURE_COLUMNS)}) nor JSON lines"
            ) from error
        if not isinstance(row, dict):
            raise TraceError(f"{path}: line {number}: a JSON object is expected")
        stamp = row.get("timestamp")
        if isinstance(stamp, bool) or not isinstance(stamp, int | float):
            raise TraceError(f"{path}: line {number}: timestamp {stamp!r} is no number of milliseconds")
        if not 0 <= stamp < math.inf:
            raise TraceError(f"{path}: line {number}: timestamp {stamp!r} is not 0 or later")
        blocks = row.get("hash_ids", [])
        if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
            raise TraceError(f"{path}: line {number}: hash_ids must be a list of integers")
        yield TraceRow(
            arrival_s=stamp / 1000,
            input_tokens=_count(path, number, "input_length", row.get("input_length")),
            output_tokens=_count(path, number, "output_length", row.get("output_length")),
            blocks=tuple(blocks),
        )


def _count(path: Path, number: int, field: str, value: object) -> int:
    """A token count of a trace, at least 1 (a trace may say 0 where a server cannot)."""
    try:
        count = int(value) if isinstance(value, str | int) else None
    except ValueError:
        count = None
    if count is None or count < 0:
        raise TraceError(f"{path}: line {number}: {field} {value!r} is no token count")
    return max(1, count)


def _check_size(path: Path, number: int) -> None:
    if number > MAX_TRACE_ROWS:
        raise TraceError(f"{path}: more than {MAX_TRACE_ROWS} lines; cut the file")
