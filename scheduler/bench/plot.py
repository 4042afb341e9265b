"""Draws one run as a PNG: latency distributions, the course of the run, and where the joules went.

Called by ``scheduler.bench.command``; the only file that opens matplotlib, when it is used (``sweep_plot`` draws on
it). It must never compute a figure that the report does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scheduler.bench.client import Exchange, TargetError
from scheduler.bench.drive import Run
from scheduler.bench.report import Energy, Report, Slo, open_requests

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, GOOD, BAD, MUTED, LINE = "#1d2733", "#1b7f5c", "#c2412d", "#8a94a0", "#2f6db3"
MAX_POINTS = 5_000
"""Most requests that are drawn as dots; more are thinned evenly."""


def draw(report: Report, run: Run, path: Path) -> None:
    """Write the picture of a run to ``path``. Raises: TargetError when matplotlib is missing, OSError on a bad path."""
    figure = new_figure()
    panels = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.065, top=0.87, wspace=0.3, hspace=0.32)
    slo = report.goodput.slo if report.goodput else None
    completed = [seen for seen in run.measured if seen.reason is None]
    _distribution(panels[0][0], completed, slo)
    _course(panels[0][1], run, slo)
    _load(panels[1][0], report, run)
    if report.energy is not None and report.energy.idle_joules is not None:
        _accounts(panels[1][1], report.energy)
    else:
        _quantiles(panels[1][1], report)
    figure.suptitle(_title(report), fontsize=11, color=INK, x=0.012, y=0.985, ha="left")
    figure.savefig(path, format="png")


def new_figure() -> Figure:
    """An empty figure of the size of all our pictures, drawn without a screen. Raises: TargetError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TargetError("matplotlib is missing: pip install 'jouleway[bench]'") from error
    figure = Figure(figsize=(12, 7.6), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(report: Report) -> str:
    tokens = f"{report.rates.output_tokens_per_s:.1f} output tokens/s"
    good = f" · goodput {report.goodput.good_ratio:.0%}" if report.goodput else ""
    state = (
        "valid run"
        if report.verdict.valid
        else "INVALID: "
        + ", ".join(dict.fromkeys(finding.reason for finding in report.verdict.findings if finding.voids))
    )
    workload = report.workload.get("summary", "")
    where = f"{report.target.get('model', '')} at {report.target.get('base_url', '')}"
    return f"{where} · {workload}\n{tokens}{good} · {state}"


def dress(panel: Axes, title: str, x: str, y: str) -> None:
    """Title, names of the axes, a quiet grid."""
    panel.set_title(title, fontsize=10, loc="left", color=INK)
    panel.set_xlabel(x, fontsize=9)
    panel.set_ylabel(y, fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(True, color="#e6e9ed", linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 of each decade, in plain numbers; where that is too many, at the decades alone."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    wide = high > 300 * low
    axis.set_major_locator(LogLocator(base=10, subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _distribution(panel: Axes, completed: Sequence[Exchange], slo: Slo | None) -> None:
    """Share of requests at or below a latency, for TTFT, TPOT and E2E."""
    curves = (
        ("TTFT", [seen.ttft_s for seen in completed], LINE, slo.ttft_s if slo else None),
        ("TPOT", [seen.tpot_s for seen in completed], GOOD, slo.tpot_s if slo else None),
        ("E2E", [seen.e2e_s for seen in completed], MUTED, slo.e2e_s if slo else None),
    )
    for name, values, colour, target_s in curves:
        known = np.sort([value for value in values if value is not None and value > 0])
        if known.size:
            panel.step(known, np.arange(1, known.size + 1) / known.size, where="post", color=colour, label=name)
        if target_s is not None:
            panel.axvline(target_s, color=colour, linestyle="--", linewidth=1, label=f"{name} target {target_s:g} s")
    panel.set_xscale("log")
    log_axis(panel.xaxis, *panel.get_xlim())
    panel.set_ylim(0, 1.01)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
    dress(panel, "Latency from the scheduled send", "seconds (log)", "share of requests at or below")


def _course(panel: Axes, run: Run, slo: Slo | None) -> None:
    """TTFT of each request over its due time; failed ones at the bottom edge."""
    seen = run.measured[:: max(1, len(run.measured) // MAX_POINTS)]
    keep = slo or Slo()
    ended = [(one.due_s, ttft_s, keep.is_kept(one)) for one in seen if (ttft_s := one.ttft_s) and not one.reason]
    for name, colour, kept in (("kept the SLO" if slo else "completed", GOOD, True), ("missed it", BAD, False)):
        points = [(due_s, ttft_s) for due_s, ttft_s, is_kept in ended if is_kept is kept]
        if points:
            x, y = zip(*points, strict=True)
            panel.scatter(x, y, s=9, color=colour, alpha=0.65, linewidths=0, label=name)
    failed = [one.due_s for one in seen if one.reason is not None]
    panel.set_ylim(0, 1.15 * max([ttft_s for _, ttft_s, _ in ended] + [slo.ttft_s or 0.0 if slo else 0.0, 1e-3]))
    if failed:
        panel.plot(failed, [0] * len(failed), "x", color=BAD, label="failed", clip_on=False)
    if slo and slo.ttft_s is not None:
        panel.axhline(slo.ttft_s, color=LINE, linestyle="--", linewidth=1, label=f"TTFT target {slo.ttft_s:g} s")
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
    dress(panel, "TTFT over the run", "due at (s)", "TTFT (s)")


def _load(panel: Axes, report: Report, run: Run) -> None:
    """Requests open and output tokens a second over the measured span."""
    start_s, end_s = run.warmup_s, run.warmup_s + run.duration_s
    counts = open_requests(run, num_points=200)
    moments = np.linspace(start_s, end_s, 200, endpoint=False)
    panel.fill_between(moments, counts, step="post", color=MUTED, alpha=0.25, linewidth=0)
    panel.step(moments, counts, where="post", color=MUTED, linewidth=1, label="open requests")
    panel.set_ylim(bottom=0)
    edges = np.linspace(start_s, end_s, max(2, min(61, int(run.duration_s) + 1)))
    tokens = np.zeros(edges.size - 1)
    for seen in run.exchanges:
        if seen.token_s:
            weight = max(seen.output_tokens, len(seen.token_s)) / len(seen.token_s)
            tokens += np.histogram(seen.token_s, bins=edges)[0] * weight
    beside = panel.twinx()
    beside.stairs(tokens / np.diff(edges), edges, color=LINE, linewidth=1.3)
    beside.set_ylim(bottom=0)
    beside.set_ylabel("output tokens/s (line)", fontsize=9, color=LINE)
    beside.tick_params(labelsize=8, colors=LINE)
    beside.spines["top"].set_visible(False)
    dress(panel, f"Load: {report.rates.num_open_mean:.1f} open on average", "time (s)", "open requests (area)")


def _accounts(panel: Axes, figures: Energy) -> None:
    """Where the joules went."""
    names = ("requests", "idle", "overhead", "unattributed", "in_flight")
    values = [getattr(figures, f"{name}_joules") for name in names]
    known = [(name.replace("_", " "), value) for name, value in zip(names, values, strict=True) if value is not None]
    labels, joules = [name for name, _ in known], [value for _, value in known]
    bars = panel.barh(labels, joules, height=0.55, color=[GOOD if name == "requests" else MUTED for name in labels])
    panel.bar_label(bars, labels=[f" {value:.4g} J" for value in joules], fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.18)
    dress(panel, f"Energy · {_energy_title(figures)}", "joules", "")
    panel.grid(False, axis="y")


def _energy_title(figures: Energy) -> str:
    parts = [f"{figures.source}, grade {figures.grade}" if figures.grade else figures.source]
    if figures.tokens_per_joule is not None:
        parts.append(f"{figures.tokens_per_joule:.3g} tokens/J of requests")
    if figures.good_tokens_per_meter_joule is not None:
        parts.append(f"{figures.good_tokens_per_meter_joule:.3g} good tokens/J of the meter")
    return parts[0] + "\n" + " · ".join(parts[1:])


def _quantiles(panel: Axes, report: Report) -> None:
    """Quantiles side by side, where there are no accounts of joules to show."""
    names = [name for name in ("ttft", "tpot", "itl", "e2e") if getattr(report, name) is not None]
    rows = [getattr(report, name) for name in names]
    width = 0.27
    for offset, (field, colour) in enumerate((("p50_s", GOOD), ("p95_s", LINE), ("p99_s", BAD))):
        heights = [getattr(row, field) or float("nan") for row in rows]
        panel.bar(np.arange(len(rows)) + (offset - 1) * width, heights, width, color=colour, label=field[:3])
    panel.set_xticks(range(len(rows)), [name.upper() for name in names])
    if rows:
        panel.set_yscale("log")
        log_axis(panel.yaxis, *panel.get_ylim())
        panel.legend(fontsize=8, frameon=False)
    joules = "" if report.energy is None else f" · energy by {_energy_title(report.energy)}"
    dress(panel, f"Quantiles{joules}", "", "seconds (log)")
