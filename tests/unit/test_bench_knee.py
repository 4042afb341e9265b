"""The knee on curves worked out by hand, and what has none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.bench.knee import MIN_DISTANCE_RATIO, knee

# From (0, 0) to (4, 8): at 1 the chord is a quarter up, the curve 4/8: 0.25 above; at 2 it is 6/8 - 1/2 = 0.25 too.
TIED = [(0.0, 0.0), (1.0, 4.0), (2.0, 6.0), (4.0, 8.0)]


@pytest.mark.parametrize(
    ("points", "rate", "distance"),
    [
        ([(1, 1), (2, 4), (3, 5), (5, 5.5)], 2, 3 / 4.5 - 1 / 4),
        ([(1, 1), (2, 3), (3, 6), (5, 6.5)], 3, 5 / 5.5 - 2 / 4),
        (TIED, 1, 0.25),
        ([(5, 5.5), (1, 1), (3, 5), (2, 4)], 2, 3 / 4.5 - 1 / 4),
    ],
    ids=["concave", "late", "tied: the lower rate", "in any order"],
)
def test_the_point_furthest_above_the_chord(points: list[tuple[float, float]], rate: float, distance: float) -> None:
    """By hand: (value − first) ÷ rise − (rate − first) ÷ span."""
    found = knee(points)
    assert rate == found.rate_rps
    assert distance == pytest.approx(found.distance_ratio)
    assert dict(points)[rate] == found.good_tokens_per_joule
    assert "" == found.reason


def test_what_lies_beyond_the_peak_does_not_move_the_knee() -> None:
    """Overload is not part of the rise, however far the sweep went into it."""
    rise = [(1.0, 1.0), (2.0, 4.0), (3.0, 5.0), (5.0, 5.5)]
    assert knee(rise) == knee([*rise, (6.0, 3.0), (40.0, 0.1)])


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([], "0 rates have a value"),
        ([(1, 1), (2, 2)], "a knee needs three"),
        ([(1, 0), (2, 0), (3, 0)], "no rate has a good token"),
        ([(1, 3), (2, 2), (3, 1)], "the lowest rate, 1/s, is the most efficient"),
        ([(1, 2), (2, 2), (3, 2)], "the lowest rate, 1/s, is the most efficient"),
        ([(1, 1), (2, 3), (3, 1)], "no rate lies between the lowest and the most efficient one, 2/s"),
        ([(1, 1), (2, 2), (3, 3)], "as good as a straight line"),
        ([(1, 1), (2, 2.04), (3, 3)], "as good as a straight line"),
        ([(1, 1), (2, 1.1), (3, 3)], "or bends upwards"),
    ],
)
def test_a_curve_without_a_knee_says_why(points: list[tuple[float, float]], reason: str) -> None:
    """And never names a rate."""
    found = knee(points)
    assert (None, None, None) == (found.rate_rps, found.good_tokens_per_joule, found.distance_ratio)
    assert reason in found.reason


def test_two_values_at_one_rate_are_refused() -> None:
    """Repeats are averaged before."""
    with pytest.raises(ValueError, match="one value per rate"):
        knee([(1, 1), (1, 2), (3, 4)])


values = st.floats(0.01, 100)


@given(st.lists(st.tuples(st.integers(1, 1000), values), min_size=3, unique_by=lambda point: point[0]), values, values)
def test_units_do_not_matter(points: list[tuple[int, float]], per_rate: float, per_value: float) -> None:
    """Requests a minute instead of a second, tokens a watt-hour instead of a joule: the same point; and it is
    a measured one, above the chord, below the peak."""
    found = knee(points)
    scaled = knee([(rate * per_rate, value * per_value) for rate, value in points])
    if found.rate_rps is None or scaled.rate_rps is None:
        return
    assert found.distance_ratio == pytest.approx(scaled.distance_ratio, rel=1e-3, abs=1e-6)
    assert found.distance_ratio is not None
    assert MIN_DISTANCE_RATIO < found.distance_ratio <= 1
    assert (found.rate_rps, found.good_tokens_per_joule) in points
    peak = max(value for _, value in points)
    assert found.rate_rps < min(rate for rate, value in points if value == peak)
