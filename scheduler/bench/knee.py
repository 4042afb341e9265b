"""The knee of a goodput per watt curve: up to which load more load still buys much efficiency.

Called by ``scheduler.bench.curves``. It must never know how the points were measured.

**Definition.** The curve is good tokens per joule over the arrival rate. Its *rising part* reaches from the lowest rate
to the first rate with the highest value; what lies beyond is overload and would only tilt the chord. Both axes of the
rising part are scaled to 0…1. The knee is the point that lies furthest above the straight line between its two ends
(the offline rule of "Kneedle": Satopää, Albrecht, Irwin, Raghavan, ICDCS workshops 2011, without smoothing). It is a
measured point, never one in between. A curve whose furthest point lies less than 0.05 above the line has no knee.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

MIN_DISTANCE_RATIO = 0.05
"""Of the scaled axis; a straight line with a little noise must not get a knee."""


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """The point of the knee; or none, and why."""

    rate_rps: float | None = None
    good_tokens_per_joule: float | None = None
    distance_ratio: float | None = None
    """How far it lies above the chord, as a share of the rise."""
    reason: str = ""
    """Why there is none; empty where there is one."""


def knee(points: Sequence[tuple[float, float]]) -> Knee:
    """The knee of (rate, good tokens per joule). Raises: ValueError when two points have one rate."""
    curve = sorted(points)
    if len({rate for rate, _ in curve}) < len(curve):
        raise ValueError("a curve has one value per rate")
    if len(curve) < 3:
        return Knee(reason=f"{len(curve)} rates have a value; a knee needs three")
    top = max(range(len(curve)), key=lambda index: (curve[index][1], -index))
    if curve[top][1] <= 0:
        return Knee(reason="no rate has a good token")
    if top == 0:
        return Knee(reason=f"the lowest rate, {curve[0][0]:g}/s, is the most efficient: begin the sweep below it")
    if top == 1:
        return Knee(reason=f"no rate lies between the lowest and the most efficient one, {curve[1][0]:g}/s")
    (first_rate, first_value), (last_rate, last_value) = curve[0], curve[top]
    best = Knee(reason=f"up to {last_rate:g}/s the curve is as good as a straight line, or bends upwards")
    for rate, value in curve[1:top]:
        above = (value - first_value) / (last_value - first_value) - (rate - first_rate) / (last_rate - first_rate)
        if above > (best.distance_ratio or MIN_DISTANCE_RATIO):
            best = Knee(rate_rps=rate, good_tokens_per_joule=value, distance_ratio=above)
    return best
