"""Two settings side by side: the ratio of each pair of neighbours in time, and what it shows.

Called by ``scheduler.bench.sweep``. It must never know HTTP, a clock or a terminal.

A pair is the same rate, repeat, arrivals and lengths under both settings, measured one after the other: where a sweep
was cut between the two, or a setting added later, the pair is void, for the machine may have changed. Only pairs of
two runs that ``scheduler.bench.verdict`` calls valid count. "Better" and "worse" are said where the 95 % interval of
the pairs' ratio leaves 1 out; else no difference is shown, which does not say that there is none.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

from scheduler.bench.sweep_plan import Sweep
from scheduler.bench.sweep_report import Comparison, Measured, Ratio
from scheduler.intervals import Interval, ratio_of

MIN_PAIRS = 3
"""Below this many valid pairs nothing is said."""
MAX_GAP_POINTS = 2.0
"""Two settings are neighbours where their starts lie at most twice a turn of all settings apart,"""
MAX_WAIT_S = 60.0
"""and so much more."""

MEASURES: dict[str, tuple[bool, Callable[[Measured], float | None]]] = {
    "good_tokens_per_joule": (True, lambda point: point.good_tokens_per_joule),
    "good_tokens_per_s": (True, lambda point: point.good_tokens_per_s),
    "steady_watts": (False, lambda point: point.steady.watts if point.steady else None),
    "ttft_p50_s": (False, lambda point: point.report.ttft.p50_s if point.report.ttft else None),
    "tpot_p50_s": (False, lambda point: point.report.tpot.p50_s if point.report.tpot else None),
}
"""Name -> whether more of it is better, and its value at a point."""


def compare(first: str, second: str, points: Sequence[Measured], sweep: Sweep) -> Comparison:
    """Second against first, measure by measure: over all rates (``rate_rps`` None), then rate by rate."""
    by_place = {(point.setting, point.rate_rps, point.repeat): point for point in points}
    pairs = [
        (one, other)
        for rate in sweep.rates
        for repeat in range(sweep.repeats)
        if (one := by_place.get((first, rate, repeat))) and (other := by_place.get((second, rate, repeat)))
    ]
    # Drains and waits for metering windows come on top of what a point takes at least.
    max_gap_s = MAX_GAP_POINTS * len(sweep.variants) * sweep.seconds_at_least() / sweep.size() + MAX_WAIT_S
    rates: list[float | None] = [None, *sweep.rates] if len(sweep.rates) > 1 else list(sweep.rates)
    return Comparison(
        first=first,
        second=second,
        ratios=tuple(
            _ratio(measure, rate, [pair for pair in pairs if rate in (None, pair[0].rate_rps)], max_gap_s)
            for measure in MEASURES
            for rate in rates
        ),
    )


def is_pair(one: Measured, other: Measured, *, max_gap_s: float) -> bool:
    """Whether both may be quoted and lie so near each other in time that one machine measured both."""
    starts = [datetime.datetime.fromisoformat(point.report.started_utc) for point in (one, other)]
    is_near = abs((starts[1] - starts[0]).total_seconds()) <= max_gap_s
    return is_near and one.report.verdict.valid and other.report.verdict.valid


def _ratio(measure: str, rate_rps: float | None, pairs: Sequence[tuple[Measured, Measured]], max_gap_s: float) -> Ratio:
    is_more_better, value_of = MEASURES[measure]
    values = []
    for one, other in pairs:
        if is_pair(one, other, max_gap_s=max_gap_s):
            first, second = value_of(one), value_of(other)
            if first and second:
                values.append((first, second))
    ratio = ratio_of(values)
    return Ratio(
        measure=measure,
        rate_rps=rate_rps,
        ratio=ratio,
        num_void=len(pairs) - len(values),
        verdict=verdict(ratio, is_more_better=is_more_better),
    )


def verdict(ratio: Interval | None, *, is_more_better: bool) -> str:
    """What a ratio second ÷ first shows of the second."""
    num = 0 if ratio is None else ratio.num
    if ratio is None or ratio.low is None or ratio.high is None or num < MIN_PAIRS:
        return f"nothing: {num} of the {MIN_PAIRS} valid pairs that it takes"
    if ratio.low <= 1 <= ratio.high:
        return "no difference shown"
    return "better" if (ratio.low > 1) is is_more_better else "worse"
