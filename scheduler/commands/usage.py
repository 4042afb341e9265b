"""`jouleway usage`: who used which tokens, GPU-seconds, joules, carbon and money, on the screen or as a file.

Called by ``scheduler.cli_accounts``. It must never compute an amount: the control plane sums, the view writes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from scheduler.accounting.outcomes import value_of
from scheduler.accounting.usage import UsageRow
from scheduler.commands import usage_view
from scheduler.commands.control_plane import Listener, own_listener, read_words, send
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.instants import month_start_unix_s, unix_s
from scheduler.commands.output import print_json
from scheduler.commands.usage_parquet import write_parquet

PATH = "/v1/jouleway/usage"
PAGE_ROWS = 10_000
MAX_ROWS = 200_000
"""That one command holds; more belong to several exports."""


class Form(StrEnum):
    """How it is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command line asks for."""

    by: str = "tenant,model"
    """Empty: one row over everything."""
    from_text: str | None = None
    """None: the first of this month."""
    to_text: str | None = None
    """None: now."""
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By word of ``by``, the values that count; none: all."""
    has_value: bool = False
    form: Form | None = None
    """None: what the name of ``output`` says, else a table."""
    output: Path | None = None
    url: str | None = None
    config: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """All pages of an answer."""

    from_unix_s: int
    to_unix_s: int
    by: list[str]
    rows: list[UsageRow]


def run(wishes: Wishes, *, clock: Callable[[], float] = time.time) -> ExitCode:
    """Ask, write. Raises: CommandError."""
    form = form_of(wishes)
    usage = collect(own_listener(wishes.config, wishes.url), _question(wishes, clock()))
    if form is Form.TABLE:
        usage_view.show(
            usage.rows, usage.by, from_unix_s=usage.from_unix_s, to_unix_s=usage.to_unix_s, has_value=wishes.has_value
        )
    elif form is Form.JSON and wishes.output is None:
        print_json(_document(usage, has_value=wishes.has_value))
    else:
        _export(usage, form, wishes)
    return ExitCode.OK


def form_of(wishes: Wishes) -> Form:
    """How to write it. Raises: CommandError where that form and that place do not go together."""
    suffix = "" if wishes.output is None else wishes.output.suffix.removeprefix(".").lower()
    form = wishes.form
    if form is None:
        form = Form(suffix) if suffix in (Form.CSV, Form.JSON, Form.PARQUET) else Form.TABLE
    if form is Form.TABLE and wishes.output is not None:
        raise CommandError("a table is for the screen", code=ExitCode.USAGE, remedy="--format csv, json or parquet")
    if form is Form.PARQUET and wishes.output is None:
        raise CommandError("Parquet is no text", code=ExitCode.USAGE, remedy="name a file: --output usage.parquet")
    return form


def _question(wishes: Wishes, now_unix_s: float) -> list[tuple[str, str]]:
    start = month_start_unix_s(now_unix_s) if wishes.from_text is None else unix_s(wishes.from_text, option="--from")
    words = [("from", str(start)), ("limit", str(PAGE_ROWS))]
    if wishes.by:
        words.append(("by", wishes.by))
    if wishes.to_text is not None:
        words.append(("to", str(unix_s(wishes.to_text, option="--to"))))
    return words + [(name, value) for name, values in wishes.filters.items() for value in values]


def collect(listener: Listener, question: list[tuple[str, str]]) -> Usage:
    """Every page. Raises: CommandError, also where there are more than ``MAX_ROWS``."""
    rows: list[UsageRow] = []
    page: list[tuple[str, str]] = []
    while True:
        path = f"{PATH}?{urlencode(question + page)}"
        told = read_words(listener, PATH, asyncio.run(send(listener, path)))
        rows += msgspec.convert(told["rows"], list[UsageRow])
        if not told["has_more"]:
            return Usage(from_unix_s=told["from_unix_s"], to_unix_s=told["to_unix_s"], by=told["by"], rows=rows)
        if len(rows) >= MAX_ROWS:
            raise CommandError(
                f"there are more than {MAX_ROWS:,} rows",
                code=ExitCode.USAGE,
                remedy="ask for less at a time: --from and --to, or fewer words in --by",
            )
        page = [("page", told["next_page"])]


def _document(usage: Usage, *, has_value: bool) -> dict[str, Any]:
    rows: list[dict[str, Any]] = msgspec.to_builtins(usage.rows)
    if has_value:
        for row, told in zip(usage.rows, rows, strict=True):
            told["value"] = msgspec.to_builtins(value_of(row))
    return {"from_unix_s": usage.from_unix_s, "to_unix_s": usage.to_unix_s, "by": usage.by, "rows": rows}


def _export(usage: Usage, form: Form, wishes: Wishes) -> None:
    """To standard output, or to a file that is there whole or not at all."""
    shown = usage_view.columns(usage.by, has_value=wishes.has_value)
    if wishes.output is None:
        usage_view.write_csv(sys.stdout, usage.rows, shown)
        return
    beside = wishes.output.with_name(f".{wishes.output.name}.{os.getpid()}")
    try:
        if form is Form.PARQUET:
            write_parquet(beside, usage.rows, shown)
        else:
            with beside.open("w", encoding="utf-8", newline="") as file:
                if form is Form.CSV:
                    usage_view.write_csv(file, usage.rows, shown)
                else:
                    json.dump(_document(usage, has_value=wishes.has_value), file, indent=2, ensure_ascii=False)
                    file.write("\n")
        beside.replace(wishes.output)
    except OSError as error:
        raise CommandError(f"{wishes.output}: {error.strerror or error}", code=ExitCode.FAILURE) from None
    finally:
        beside.unlink(missing_ok=True)
