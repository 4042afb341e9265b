"""What a person sees of a sweep: a line before each point, and at the end tables, knees, joules and comparisons.

Called by ``scheduler.bench.sweep_command``. It must never compute a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scheduler.bench.pairs import MEASURES
from scheduler.bench.screen import console
from scheduler.bench.screen import progress as progress_of_run

if TYPE_CHECKING:
    from scheduler.bench.drive import Tally
    from scheduler.bench.sweep_plan import Point, Sweep
    from scheduler.bench.sweep_report import Comparison, Curve, Document, Measured
    from scheduler.bench.watts import Watts
    from scheduler.intervals import Interval

GRADE_WORDS = {"D": "modelled or simulated, no device was read", "C": "sampled power, or shared with other processes"}


@contextmanager
def progress(point: Point, place: int, total: int) -> Iterator[tuple[Callable[[str], None], Callable[[Tally], None]]]:
    """The callbacks of one point, drawn on standard error under a line that says which it is."""
    words = f"[{place + 1}/{total}] {point.variant.name} at {point.rate_rps:g}/s, repeat {point.repeat + 1}"
    console(to_stderr=True).print(Text(words, style="bold"))
    with progress_of_run(point.load.warmup_s + point.load.duration_s) as callbacks:
        yield callbacks


def show_plan(sweep: Sweep, *, num_had: int) -> None:
    """What will be measured and for how long, one line a point: `--dry-run`."""
    screen = console(to_stderr=False)
    for place, point in enumerate(sweep.points()):
        screen.print(Text(f"{place + 1:>4}  repeat {point.repeat + 1}  {point.rate_rps:>8g}/s  {point.variant.name}"))
    seconds = sweep.seconds_at_least() * (sweep.size() - num_had) / sweep.size()
    screen.print(Text(f"{sweep.size()} points, {num_had} of them measured; at least {seconds / 60:.1f} min to go"))


def show(document: Document, *, to_stderr: bool) -> None:
    """Every curve with its knee, where the joules went, the comparisons, and what is missing."""
    screen = console(to_stderr=to_stderr)
    for curve in document.curves:
        own = [point for point in document.points if point.setting == curve.setting]
        screen.print(Text(_title(curve, own), style="bold"))
        screen.print(_curve(curve))
        for line in _sayings(curve, document):
            screen.print(Text(line))
        screen.print(Text("joules of each point (all it took, warm-up and waits included)", style="dim"))
        screen.print(_balance(own))
        _missing(screen, own)
    for comparison in document.comparisons:
        screen.print(Text(f"{comparison.second} ÷ {comparison.first}, pair by pair", style="bold"))
        screen.print(_comparison(comparison))
    state = "complete" if document.is_complete else "INCOMPLETE: the same command with the same --json goes on"
    screen.print(Text(f"{len(document.points)} of {document.num_planned} points · {state}"))


def _title(curve: Curve, points: list[Measured]) -> str:
    if not points:
        return f"{curve.setting} · nothing measured yet"
    report = points[0].report
    grades = {point.steady.grade for point in points if point.steady is not None and point.steady.grade}
    grade = max(grades, default="")
    words = f" · watts of grade {grade}" if grade else ""
    words += f" ({GRADE_WORDS[grade]})" if grade in GRADE_WORDS else ""
    return f"{curve.setting} · {report.target['model']} at {report.target['base_url']}{words}"


def _curve(curve: Curve) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rate/s", "good tokens/s", "good", "watts", "idle W", "good tokens/J", "TTFT p50", "TPOT p50", "runs"):
        table.add_column(name, justify="right")
    for row in curve.rows:
        runs = f"{row.num_usable}/{row.num_measured}"
        table.add_row(
            f"{row.rate_rps:g}",
            spread(row.good_tokens_per_s),
            "–" if row.good_ratio is None else f"{row.good_ratio.mean:.1%}",
            spread(row.steady_watts),
            "–" if row.idle_watts is None else f"{row.idle_watts.mean:.4g}",
            spread(row.good_tokens_per_joule),
            *("–" if value is None else f"{value.mean * 1000:,.0f} ms" for value in (row.ttft_p50_s, row.tpot_p50_s)),
            runs + ("" if row.num_steady == row.num_usable else " not steady"),
        )
    return table


def spread(value: Interval | None) -> str:
    """A mean with half of its interval; alone where there is none."""
    if value is None:
        return "–"
    if value.high is None:
        return f"{value.mean:.4g}"
    return f"{value.mean:.4g} ± {value.high - value.mean:.2g}"


def _sayings(curve: Curve, document: Document) -> Iterator[str]:
    knee = curve.knee
    if knee.rate_rps is None:
        yield f"knee        none: {knee.reason}"
    else:
        repeats = ", ".join("none" if rate is None else f"{rate:g}" for rate in curve.knee_rates_of_repeats)
        yield (
            f"knee        {knee.rate_rps:g}/s at {knee.good_tokens_per_joule:.4g} good tokens/J, "
            f"{knee.distance_ratio:.2f} of the rise above the chord; by repeat: {repeats}"
        )
    options = document.options
    targets = [
        f"{name} ≤ {options[f'slo_{name}_s']:g} s" for name in ("ttft", "tpot", "e2e") if options[f"slo_{name}_s"]
    ]
    if targets:
        slo = f"{options['attainment_ratio']:.4g} of requests with {', '.join(targets)}"
        rate = curve.largest_rate_within_slo_rps
        yield f"SLO         {'no rate keeps it' if rate is None else f'largest rate {rate:g}/s'} ({slo})"
    else:
        yield "SLO         none given (--slo-ttft-s, --slo-tpot-s, --slo-e2e-s): every completed request is good"
    if curve.overall_good_tokens_per_joule is not None:
        yield f"overall     {curve.overall_good_tokens_per_joule:.4g} good tokens/J over all rates and active idle"
    if curve.idle_watts_ratio is not None:
        yield f"idle        {curve.idle_watts_ratio:.0%} of the most watts of any rate"


def _balance(points: list[Measured]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    names = ("requests", "idle", "overhead", "unattributed", "in flight", "= sum", "counter", "difference")
    for name in ("rate/s", "repeat", *names, "idle W before", "after"):
        table.add_column(name, justify="right")
    for point in sorted(points, key=lambda each: (each.rate_rps, each.repeat)):
        table.add_row(
            f"{point.rate_rps:g}",
            str(point.repeat + 1),
            *_accounts(point),
            _watts(point.idle_before),
            _watts(point.idle_after),
        )
    return table


def _accounts(point: Measured) -> list[str]:
    energy = point.report.energy
    if energy is None:
        return ["–"] * 8
    parts = [
        energy.requests_joules, energy.idle_joules, energy.overhead_joules, energy.unattributed_joules,
        energy.in_flight_joules,
    ]  # fmt: skip
    known = [part for part in parts if part is not None]
    whole = sum(known) if len(known) == len(parts) else None
    return [
        "–" if value is None else f"{value + 0.0:.4g}"
        for value in (*parts, whole, energy.meter_joules, energy.difference_joules)
    ]


def _watts(span: Watts | None) -> str:
    return "–" if span is None or span.watts is None else f"{span.watts:.4g}"


def _missing(screen: Console, points: list[Measured]) -> None:
    """Each sentence once, with how many points it holds for; then what the verdicts say."""
    sentences: dict[str, int] = {}
    for point in points:
        said = {f"· {note}" for note in point.missing}
        said |= {f"✗ {each.reason}: {each.message}" for each in point.report.verdict.findings if each.voids}
        for sentence in said:
            sentences[sentence] = sentences.get(sentence, 0) + 1
    for sentence, num in sentences.items():
        style = "red" if sentence.startswith("✗") else "dim"
        screen.print(Text(f"  {sentence} ({num} of {len(points)} points)", style=style))


def _comparison(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("measure", "rate/s", "ratio", "95 % interval", "pairs", "void", f"{comparison.second} is"):
        table.add_column(name, justify="left" if name in ("measure", f"{comparison.second} is") else "right")
    for each in comparison.ratios:
        ratio = each.ratio
        if each.rate_rps is not None and len(comparison.ratios) > len(MEASURES) and (ratio is None or ratio.num < 2):
            continue  # one pair of one rate has no interval; it is in the JSON
        bounds = "–" if ratio is None or ratio.low is None else f"{ratio.low:.3f} … {ratio.high:.3f}"
        table.add_row(
            each.measure,
            "all" if each.rate_rps is None else f"{each.rate_rps:g}",
            "–" if ratio is None else f"{ratio.mean:.3f}",
            bounds,
            str(0 if ratio is None else ratio.num),
            str(each.num_void),
            each.verdict,
        )
    return table
