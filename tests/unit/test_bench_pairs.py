"""Two settings side by side: what counts as a pair, the ratio by hand, and what it shows."""

import pytest

from scheduler.bench.pairs import MEASURES, compare, is_pair, verdict
from scheduler.bench.sweep_report import Measured, Ratio
from scheduler.intervals import Interval
from tests.sweep_words import measured, sweep_of, variant, void

SWEEP = sweep_of(variant("a"), variant("b"), rates=(1.0, 2.0), repeats=3)
PLACES = [(rate, repeat) for rate in (1.0, 2.0) for repeat in range(3)]


def both(rate: float, repeat: int, first: float, second: float) -> list[Measured]:
    return [
        measured(SWEEP, "a", rate, repeat, per_joule=first, steady=100.0),
        measured(SWEEP, "b", rate, repeat, per_joule=second, steady=90.0),
    ]


def of(points: list[Measured], measure: str = "good_tokens_per_joule", rate: float | None = None) -> Ratio:
    found = compare("a", "b", points, SWEEP)
    assert ("a", "b") == (found.first, found.second)
    (ratio,) = [each for each in found.ratios if (each.measure, each.rate_rps) == (measure, rate)]
    return ratio


def test_a_better_setting_is_called_better_by_every_measure_that_shows_it() -> None:
    """Twice the tokens per joule is more; nine tenths of the watts is less, and less is better."""
    points = [point for place in PLACES for point in both(*place, 0.5, 1.0)]
    ratio = of(points)
    assert ratio.ratio == Interval(mean=2.0, low=2.0, high=2.0, num=6)
    assert ("better", 0) == (ratio.verdict, ratio.num_void)
    assert "better" == of(points, "steady_watts").verdict
    assert "no difference shown" == of(points, "good_tokens_per_s").verdict
    at_one = of(points, rate=1.0).ratio
    assert at_one is not None
    assert 3 == at_one.num


def test_every_measure_is_told_over_all_and_for_each_rate() -> None:
    """None is left out because it is dull."""
    found = [(each.measure, each.rate_rps) for each in compare("a", "b", [], SWEEP).ratios]
    assert [(measure, rate) for measure in MEASURES for rate in (None, 1.0, 2.0)] == found
    single = sweep_of(variant("a"), variant("b"), rates=(1.0,))
    assert [1.0] * len(MEASURES) == [each.rate_rps for each in compare("a", "b", [], single).ratios]


def test_a_void_run_voids_its_pair() -> None:
    """A drift too: a ratio is only as steady as its sides."""
    points = [point for place in PLACES for point in both(*place, 0.5, 1.0)]
    points[0] = void(points[0], "client_bound")
    points[3] = void(points[3], "drift")
    ratio = of(points)
    assert ratio.ratio is not None
    assert (4, 2) == (ratio.ratio.num, ratio.num_void)


def test_what_was_not_measured_on_one_side_has_no_ratio() -> None:
    """A bare server without a meter is compared by what both have."""
    points = [point for place in PLACES for point in both(*place, 0.5, 1.0)]
    bare = [
        point if point.setting == "a" else measured(
            SWEEP, "b", point.rate_rps, point.repeat, per_joule=None, steady=None
        )
        for point in points
    ]  # fmt: skip
    ratio = of(bare)
    assert (None, 6, "nothing: 0 of the 3 valid pairs that it takes") == (ratio.ratio, ratio.num_void, ratio.verdict)
    assert "no difference shown" == of(bare, "good_tokens_per_s").verdict


def test_half_a_pair_is_none() -> None:
    """While the sweep runs."""
    ratio = of(both(1.0, 0, 0.5, 1.0)[:1])
    assert (None, 0) == (ratio.ratio, ratio.num_void)


@pytest.mark.parametrize(("clock", "expected"), [("00:00:59", True), ("00:05:00", True), ("01:00:00", False)])
def test_a_pair_is_measured_one_after_the_other(clock: str, expected: bool) -> None:
    """An hour later, after a cut, it is another machine."""
    one = measured(SWEEP, "a")
    other = measured(SWEEP, "b", started_utc=f"2026-01-01T{clock}+00:00")
    assert expected is is_pair(one, other, max_gap_s=400)
    assert expected is is_pair(other, one, max_gap_s=400)


def test_a_cut_between_two_settings_is_seen_in_the_comparison() -> None:
    """A turn of this sweep takes at least four minutes; two of them and one more are the most."""
    late = measured(SWEEP, "b", started_utc="2026-01-01T01:00:00+00:00")
    assert 1 == of([measured(SWEEP, "a"), late]).num_void
    soon = measured(SWEEP, "b", started_utc="2026-01-01T00:08:00+00:00")
    assert 0 == of([measured(SWEEP, "a"), soon]).num_void


def interval(low: float, high: float, *, num: int = 5) -> Interval:
    return Interval(mean=(low * high) ** 0.5, low=low, high=high, num=num)


@pytest.mark.parametrize(
    ("ratio", "more", "less"),
    [
        (interval(1.01, 1.2), "better", "worse"),
        (interval(0.8, 0.99), "worse", "better"),
        (interval(0.9, 1.1), "no difference shown", "no difference shown"),
        (interval(1.0, 1.1), "no difference shown", "no difference shown"),
        (interval(1.5, 1.6, num=2), "nothing: 2 of the 3 valid pairs that it takes", "nothing: 2 of the 3"),
        (Interval(mean=3, low=None, high=None, num=1), "nothing: 1 of", "nothing: 1 of"),
        (None, "nothing: 0 of", "nothing: 0 of"),
    ],
)
def test_the_verdict_needs_an_interval_without_one(ratio: Interval | None, more: str, less: str) -> None:
    """And at least three pairs, whatever two of them say."""
    assert verdict(ratio, is_more_better=True).startswith(more)
    assert verdict(ratio, is_more_better=False).startswith(less)
