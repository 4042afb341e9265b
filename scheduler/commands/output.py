"""Data to standard output, everything else to standard error.

Called by the commands. It must never know what the data means. rich obeys NO_COLOR and drops colour where the stream
is not a terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 140
"""Columns where there is no terminal: wide enough that tables do not wrap in a log."""


MAX_WIDTH = 10_000
"""Of a table that is not cut."""


def console(*, to_stderr: bool = False) -> Console:
    """A console on either stream, made when used so that tests may replace the streams."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def print_json(value: object) -> None:
    """One JSON document, indented, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric_from: int = 1,
    is_whole: bool = False,
) -> None:
    """A table on standard output; columns from ``numeric_from`` on are aligned right. ``is_whole``: no cell is cut,
    however narrow the screen; half of a figure is a wrong one.
    """
    table = Table(title=Text(title, style="bold"), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index >= numeric_from else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text.from_ansi(cell) for cell in row))
    screen = console()
    if is_whole:
        natural = screen.measure(table, options=screen.options.update(max_width=MAX_WIDTH)).maximum
        screen.width = max(screen.width, natural)
    screen.print(table)


def print_lines(lines: Sequence[str], *, to_stderr: bool = False) -> None:
    """Plain lines on standard output, never taken for markup; beside a JSON document on standard error."""
    for line in lines:
        console(to_stderr=to_stderr).print(Text(line))


class Progress:
    """Progress lines on standard error, each with the seconds since the command began."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, started_s: float | None = None) -> None:
        self._clock = clock
        self._started_s = clock() if started_s is None else started_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self._started_s

    def __call__(self, text: str) -> None:
        """Say one line."""
        sys.stderr.write(f"[{self.elapsed_s:6.1f} s] {text}\n")
        sys.stderr.flush()
