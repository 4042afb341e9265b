"""What a person sees of a benchmark: a progress bar while it runs, a table of figures and the verdict at its end.

Called by ``scheduler.bench.command``. It must never compute a figure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from scheduler.bench.drive import Tally
    from scheduler.bench.report import Energy, Quantiles, Report

PLAIN_WIDTH = 120
REDRAW_S = 0.2
PLAIN_LINE_S = 5.0
"""Without a terminal the progress is one line this often."""


def console(*, to_stderr: bool) -> Console:
    """A console on either stream, made when used; obeys NO_COLOR."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False)


@contextmanager
def progress(total_s: float) -> Iterator[tuple[Callable[[str], None], Callable[[Tally], None]]]:
    """Two callbacks, for the state in words and for the tally of requests; drawn on standard error."""
    screen = console(to_stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[tally]}"),
    )  # fmt: skip
    with Progress(*columns, console=screen, auto_refresh=False, disable=not screen.is_terminal) as bar:
        task = bar.add_task("starting", total=total_s, tally="")
        last_s = -PLAIN_LINE_S

        def is_due(period_s: float) -> bool:
            nonlocal last_s
            if time.monotonic() - last_s < period_s:
                return False
            last_s = time.monotonic()
            return True

        def on_state(state: str) -> None:
            bar.update(task, description=state, refresh=True)
            if not screen.is_terminal:
                screen.print(state)

        def on_change(tally: Tally) -> None:
            if not is_due(REDRAW_S if screen.is_terminal else PLAIN_LINE_S):
                return
            words = f"{tally.num_sent} sent, {tally.num_open} open, {tally.num_failed} failed"
            state = "draining" if tally.now_s > total_s else "running"
            bar.update(task, completed=min(tally.now_s, total_s), description=state, tally=words, refresh=True)
            if not screen.is_terminal:
                screen.print(f"{state} {tally.now_s:.0f}/{total_s:.0f} s: {words}")

        yield on_state, on_change


def show(report: Report, *, to_stderr: bool) -> None:
    """The figures and the verdict of a run."""
    screen = console(to_stderr=to_stderr)
    target = f"{report.target['model']} at {report.target['base_url']} ({report.target['endpoint']})"
    screen.print(Text(f"{target} · {report.workload['summary']} · {report.duration_s:g} s", style="bold"))
    screen.print(_latencies(report))
    for name, value in _lines(report):
        screen.print(Text(f"{name:<12}{value}"))
    mark, style = ("valid", "green") if report.verdict.valid else ("INVALID: do not quote these figures", "bold red")
    screen.print(Text(f"{'verdict':<12}{mark}", style=style))
    for finding in report.verdict.findings:
        sign = "✗" if finding.voids else "·"
        screen.print(Text(f"  {sign} {finding.reason}: {finding.message}", style="red" if finding.voids else "dim"))


def _latencies(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ms", justify="left")
    for name in ("mean", "p50", "p90", "p95", "p99", "max", "samples"):
        table.add_column(name, justify="right")
    rows = (("TTFT", report.ttft), ("TPOT", report.tpot), ("ITL", report.itl), ("E2E", report.e2e))
    for name, row in rows:
        if row is not None:
            table.add_row(name, *_cells(row))
    return table


def _cells(row: Quantiles) -> list[str]:
    values = (row.mean_s, row.p50_s, row.p90_s, row.p95_s, row.p99_s, row.max_s)
    return ["–" if value is None else f"{value * 1000:,.1f}" for value in values] + [f"{row.num:,}"]


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    requests, tokens, rates = report.requests, report.tokens, report.rates
    yield "requests", f"{requests.measured} measured, {requests.completed} completed, {requests.failed} failed"
    yield "tokens", f"{tokens.input:,} in ({tokens.cached:,} cached), {tokens.output:,} out"
    yield (
        "rates",
        (
            f"{rates.output_tokens_per_s:,.1f} output tokens/s, {rates.requests_completed_per_s:,.2f} requests/s, "
            f"{rates.num_open_mean:,.1f} open on average"
        ),
    )
    if report.goodput is not None:
        good = report.goodput
        yield (
            "goodput",
            (
                f"{good.good_ratio:.1%} of requests kept the SLO: {good.good_requests_per_s:,.2f} requests/s, "
                f"{good.good_output_tokens_per_s:,.1f} output tokens/s"
            ),
        )
    if report.energy is not None:
        yield "energy", _energy(report.energy)


def _energy(figures: Energy) -> str:
    parts = [figures.source + (f", grade {figures.grade}" if figures.grade else "")]
    pairs = (
        (figures.tokens_per_joule, "tokens/J of requests"),
        (figures.good_tokens_per_joule, "good tokens/J of requests"),
        (figures.tokens_per_meter_joule, "tokens/J of the meter (idle included)"),
        (figures.good_tokens_per_meter_joule, "good tokens/J of the meter"),
    )
    parts += [f"{value:.4g} {name}" for value, name in pairs if value is not None]
    if figures.difference_joules is not None:
        parts.append(f"meter − accounts = {figures.difference_joules:g} J")
    return "; ".join(parts + list(figures.notes))
