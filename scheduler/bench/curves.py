"""Turns the points of a sweep into curves: means over repeats, the knee, the largest rate within the SLO.

Called by ``scheduler.bench.sweep``. It must never know HTTP, a clock or a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from scheduler.bench.knee import Knee, knee
from scheduler.bench.report import Quantiles
from scheduler.bench.sweep_plan import Sweep
from scheduler.bench.sweep_report import Curve, Measured, Row
from scheduler.bench.watts import Watts
from scheduler.intervals import Interval, mean_of


def curve_of(setting: str, points: Sequence[Measured], sweep: Sweep) -> Curve:
    """The curve of one setting from whatever points of it are measured so far."""
    own = [point for point in points if point.setting == setting]
    rows = tuple(_row(rate, [point for point in own if point.rate_rps == rate]) for rate in sweep.rates)
    return Curve(
        setting=setting,
        rows=rows,
        knee=knee([(row.rate_rps, value.mean) for row in rows if (value := row.good_tokens_per_joule) is not None]),
        knee_rates_of_repeats=tuple(
            _knee_of([point for point in own if point.repeat == repeat]).rate_rps for repeat in range(sweep.repeats)
        ),
        largest_rate_within_slo_rps=largest_rate_within_slo(rows, sweep.attainment_ratio),
        overall_good_tokens_per_joule=_overall(rows),
        idle_watts_ratio=_idle_ratio(rows),
    )


def largest_rate_within_slo(rows: Sequence[Row], attainment_ratio: float) -> float | None:
    """The last of the rates, from the lowest on, that all kept it: steady, usable, enough good requests."""
    largest = None
    for row in rows:
        is_kept = row.good_ratio is not None and row.good_ratio.mean >= attainment_ratio
        if not is_kept or row.num_steady < row.num_usable:
            break
        largest = row.rate_rps
    return largest


def idle_watts(point: Measured) -> list[float]:
    """Idle watts before and after a point, whichever were measured."""
    return [span.watts for span in (point.idle_before, point.idle_after) if span is not None and span.watts is not None]


def _knee_of(points: Iterable[Measured]) -> Knee:
    usable = [(point.rate_rps, point.good_tokens_per_joule) for point in points if point.usable]
    return knee([(rate, value) for rate, value in usable if value is not None])


def _row(rate_rps: float, points: Sequence[Measured]) -> Row:
    usable = [point for point in points if point.usable]

    def mean(value_of: Callable[[Measured], float | None]) -> Interval | None:
        return mean_of([value for point in usable if (value := value_of(point)) is not None])

    return Row(
        rate_rps=rate_rps,
        num_measured=len(points),
        num_usable=len(usable),
        num_steady=sum(point.steady_state for point in usable),
        good_tokens_per_s=mean(lambda point: point.good_tokens_per_s),
        good_ratio=mean(lambda point: point.report.goodput.good_ratio if point.report.goodput else None),
        steady_watts=mean(lambda point: _watts(point.steady)),
        good_tokens_per_joule=mean(lambda point: point.good_tokens_per_joule),
        # Of every point: watts with nothing to do are as true beside a run that may not be quoted.
        idle_watts=mean_of([watts for point in points for watts in idle_watts(point)]),
        ttft_p50_s=mean(lambda point: _p50(point.report.ttft)),
        ttft_p99_s=mean(lambda point: point.report.ttft.p99_s if point.report.ttft else None),
        tpot_p50_s=mean(lambda point: _p50(point.report.tpot)),
        e2e_p50_s=mean(lambda point: _p50(point.report.e2e)),
    )


def _watts(span: Watts | None) -> float | None:
    return None if span is None else span.watts


def _p50(quantiles: Quantiles | None) -> float | None:
    return None if quantiles is None else quantiles.p50_s


def _overall(rows: Sequence[Row]) -> float | None:
    """None where a rate or the idle watts are missing: a sum over other rates is another figure."""
    tokens_per_s, watts, idle = 0.0, 0.0, _idle(rows)
    for row in rows:
        if row.good_tokens_per_s is None or row.steady_watts is None:
            return None
        tokens_per_s += row.good_tokens_per_s.mean
        watts += row.steady_watts.mean
    return None if idle is None or watts + idle <= 0 else tokens_per_s / (watts + idle)


def _idle(rows: Sequence[Row]) -> float | None:
    known = [row.idle_watts for row in rows if row.idle_watts is not None]
    total = sum(each.num for each in known)
    return sum(each.mean * each.num for each in known) / total if total else None


def _idle_ratio(rows: Sequence[Row]) -> float | None:
    idle, most = _idle(rows), max((row.steady_watts.mean for row in rows if row.steady_watts), default=0.0)
    return idle / most if idle is not None and most > 0 else None
