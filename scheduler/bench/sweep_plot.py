"""Draws a sweep as a PNG: goodput per watt with its knee, watts, goodput, latency, each over the arrival rate.

Called by ``scheduler.bench.sweep_command``. It must never compute a figure that the document does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler.bench.plot import BAD, GOOD, INK, LINE, MUTED, dress, log_axis, new_figure
from scheduler.bench.sweep_report import Curve, Document, Row
from scheduler.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (GOOD, LINE, BAD, "#8a5fb5", "#c98a1b", MUTED)
MAX_CURVES = len(COLOURS)


def draw_sweep(document: Document, path: Path) -> None:
    """Write the picture of a sweep. Raises: TargetError when matplotlib is missing, OSError on a bad path.

    The first six settings are drawn; the title says how many there are.
    """
    figure = new_figure()
    panels = figure.subplots(2, 2)
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.065, top=0.87, wspace=0.2, hspace=0.32)
    for curve, colour in zip(document.curves, COLOURS, strict=False):
        _line(panels[0][0], curve, colour, lambda row: row.good_tokens_per_joule)
        _marks(panels[0][0], curve, colour)
        _line(panels[0][1], curve, colour, lambda row: row.steady_watts)
        _line(panels[0][1], curve, colour, lambda row: row.idle_watts, style=":", name=f"{curve.setting}, idle")
        _line(panels[1][0], curve, colour, lambda row: row.good_tokens_per_s)
        _line(panels[1][1], curve, colour, lambda row: row.ttft_p50_s, name=f"{curve.setting} TTFT p50")
        _line(panels[1][1], curve, colour, lambda row: row.tpot_p50_s, style="--", name=f"{curve.setting} TPOT p50")
    rate = "offered requests/s"
    dress(
        panels[0][0], "Goodput per watt (idle included) · ◆ knee · │ largest rate within the SLO", rate, "good tokens/J"
    )
    dress(panels[0][1], "Mean watts of the steady window, and idle", rate, "W")
    dress(panels[1][0], "Goodput", rate, "good output tokens/s")
    dress(panels[1][1], "Latency, median", rate, "seconds (log)")
    if _has(document, lambda row: row.ttft_p50_s):
        panels[1][1].set_yscale("log")
        log_axis(panels[1][1].yaxis, *panels[1][1].get_ylim())
    for panel in panels.flat:
        if panel is not panels[1][1]:
            panel.set_ylim(bottom=0)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="best")
    figure.suptitle(_title(document), fontsize=11, color=INK, x=0.012, y=0.985, ha="left")
    figure.savefig(path, format="png")


def _title(document: Document) -> str:
    grades = sorted({point.steady.grade for point in document.points if point.steady and point.steady.grade})
    meter = f"watts of grade {', '.join(grades)}" if grades else "no meter: no watts"
    if "D" in grades:
        meter += " (modelled or simulated)"
    settings = ", ".join(curve.setting for curve in document.curves[:MAX_CURVES])
    if len(document.curves) > MAX_CURVES:
        settings += f" and {len(document.curves) - MAX_CURVES} more, not drawn"
    state = "" if document.is_complete else " · INCOMPLETE"
    bars = "bars: 95 % over repeats" if document.options["repeats"] > 1 else "one repeat: no interval"
    return f"{settings}\n{len(document.points)} of {document.num_planned} points{state} · {meter} · {bars}"


def _line(
    panel: Axes,
    curve: Curve,
    colour: str,
    value_of: Callable[[Row], Interval | None],
    *,
    style: str = "-",
    name: str | None = None,
) -> None:
    """Means over the rates, with the interval of the repeats; rates that are not steady as hollow points."""
    known = [(row, value) for row in curve.rows if (value := value_of(row)) is not None]
    if not known:
        return
    panel.plot(
        [row.rate_rps for row, _ in known], [value.mean for _, value in known], style, color=colour, linewidth=1.4,
        label=name or curve.setting,
    )  # fmt: skip
    for row, value in known:
        steady = row.num_steady == row.num_usable
        panel.plot(
            [row.rate_rps],
            [value.mean],
            "o",
            color=colour,
            markersize=4.5,
            markerfacecolor=colour if steady else "white",
        )
        if value.low is not None and value.high is not None:
            panel.plot([row.rate_rps] * 2, [value.low, value.high], color=colour, linewidth=1, alpha=0.6)


def _marks(panel: Axes, curve: Curve, colour: str) -> None:
    if curve.knee.rate_rps is not None and curve.knee.good_tokens_per_joule is not None:
        panel.plot(
            [curve.knee.rate_rps], [curve.knee.good_tokens_per_joule], "D", color=colour, markersize=10, alpha=0.55
        )
    void = [row.rate_rps for row in curve.rows if row.num_measured and not row.num_usable]
    if void:
        panel.plot(void, [0] * len(void), "x", color=colour, label=f"{curve.setting}: may not be quoted", clip_on=False)
    if curve.largest_rate_within_slo_rps is not None:
        panel.axvline(curve.largest_rate_within_slo_rps, color=colour, linestyle="--", linewidth=1, alpha=0.7)


def _has(document: Document, value_of: Callable[[Row], Interval | None]) -> bool:
    return any(value_of(row) is not None for curve in document.curves for row in curve.rows)
