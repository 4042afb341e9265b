"""Means and ratios of a few repeats with their 95 % interval.

Called by whoever repeats: benchmarks and simulations. It must never know what was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t for a two-sided 95 % interval by degrees of freedom, from 1; beyond 30 the last one, on the safe side."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A mean of ``num`` values and its 95 % interval; below two values it has no bounds."""

    mean: float
    low: float | None
    high: float | None
    num: int


def mean_of(values: Sequence[float]) -> Interval | None:
    """The mean with Student's interval; None without a value."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, low=None, high=None, num=len(values))
    t = T_95[min(len(values) - 1, len(T_95)) - 1]
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half, num=len(values))


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """Second ÷ first of each pair: their geometric mean, its interval taken of the logarithms, so that A ÷ B and
    B ÷ A say the same. Pairs with a value that is not positive have no ratio and are left out."""
    logs = mean_of([math.log(second / first) for first, second in pairs if first > 0 and second > 0])
    if logs is None:
        return None
    low, high = (None if bound is None else math.exp(bound) for bound in (logs.low, logs.high))
    return Interval(mean=math.exp(logs.mean), low=low, high=high, num=logs.num)
