"""Curves from points worked out by hand: means, knee, the largest rate within the SLO, sums over all rates."""

from typing import Any

import pytest

from scheduler.bench.curves import curve_of, idle_watts, largest_rate_within_slo
from scheduler.bench.sweep_report import Row
from scheduler.intervals import Interval
from tests.sweep_words import measured, sweep_of, variant, void

RATES = (1.0, 2.0, 3.0, 5.0)
SWEEP = sweep_of(variant("a"), variant("b"), rates=RATES, repeats=2)
RISE = dict(zip(RATES, (1.0, 4.0, 5.0, 5.5), strict=True))


def row(rate: float, good_ratio: float | None, *, usable: int = 1, steady: int = 1) -> Row:
    ratio = None if good_ratio is None else Interval(mean=good_ratio, low=None, high=None, num=1)
    return Row(rate_rps=rate, num_measured=usable, num_usable=usable, num_steady=steady, good_ratio=ratio)


def test_a_curve_is_the_mean_of_its_repeats() -> None:
    """And of no other setting's."""
    points = [
        measured(SWEEP, "a", 1.0, 0, per_joule=0.4, steady=80.0, tokens_per_s=32),
        measured(SWEEP, "a", 1.0, 1, per_joule=0.6, steady=60.0, tokens_per_s=36),
        measured(SWEEP, "b", 1.0, 0, per_joule=9.0),
    ]
    first, *others = curve_of("a", points, SWEEP).rows
    assert (2, 2, 2) == (first.num_measured, first.num_usable, first.num_steady)
    found = [first.good_tokens_per_joule, first.steady_watts, first.good_tokens_per_s, first.idle_watts]
    assert [0.5, 70, 34, 41] == [pytest.approx(value.mean) for value in found if value]
    assert first.good_tokens_per_joule is not None
    assert first.good_tokens_per_joule.low == pytest.approx(0.5 - 12.706 * 0.1)
    assert [2.0, 3.0, 5.0] == [other.rate_rps for other in others]
    assert all(other.good_tokens_per_joule is None and other.num_measured == 0 for other in others)


def test_a_run_that_may_not_be_quoted_is_counted_and_left_out() -> None:
    """Its idle watts are as good as any."""
    points = [
        measured(SWEEP, "a", 1.0, 0, per_joule=0.4, idle=(40.0, 40.0)),
        void(measured(SWEEP, "a", 1.0, 1, per_joule=9.0, idle=(60.0, 60.0))),
    ]
    first = curve_of("a", points, SWEEP).rows[0]
    assert (2, 1) == (first.num_measured, first.num_usable)
    assert first.good_tokens_per_joule is not None
    assert first.idle_watts is not None
    assert (0.4, 50) == (first.good_tokens_per_joule.mean, first.idle_watts.mean)


def test_overload_stands_on_the_curve_and_is_no_steady_state() -> None:
    """A drift alone voids a run's latencies, not the fact that it is past the limit."""
    points = [measured(SWEEP, "a", 1.0, 0), void(measured(SWEEP, "a", 1.0, 1), "drift")]
    first = curve_of("a", points, SWEEP).rows[0]
    assert (2, 2, 1) == (first.num_measured, first.num_usable, first.num_steady)


def test_the_knee_is_that_of_the_means_and_of_each_repeat() -> None:
    """So that a reader sees how far it can be trusted."""
    late = dict(zip(RATES, (1.0, 2.0, 5.0, 5.5), strict=True))
    points = [measured(SWEEP, "a", rate, 0, per_joule=RISE[rate]) for rate in RATES]
    points += [measured(SWEEP, "a", rate, 1, per_joule=late[rate]) for rate in RATES]
    curve = curve_of("a", points, SWEEP)
    # means 1, 3, 5, 5.5: at 2 it lies 2/4.5 - 1/4 = 0.194 above the chord, at 3 it is 4/4.5 - 2/4 = 0.389
    assert 3.0 == curve.knee.rate_rps
    assert 4 / 4.5 - 2 / 4 == pytest.approx(curve.knee.distance_ratio)
    assert (2.0, 3.0) == curve.knee_rates_of_repeats


def test_without_watts_there_is_no_curve_and_no_knee() -> None:
    """Nor a sum; the rest is there."""
    points = [measured(SWEEP, "a", rate, per_joule=None, steady=None, idle=(None, None)) for rate in RATES]
    curve = curve_of("a", points, SWEEP)
    assert "0 rates have a value" in curve.knee.reason
    assert (None, None) == (curve.overall_good_tokens_per_joule, curve.idle_watts_ratio)
    assert [40, 40, 40, 40] == [each.good_tokens_per_s.mean for each in curve.rows if each.good_tokens_per_s]


def test_the_sum_over_all_rates_is_specpowers() -> None:
    """(10 + 20 + 30 + 40) tokens/s over (60 + 70 + 80 + 90) W and 41 W of active idle."""
    points = [
        measured(SWEEP, "a", rate, tokens_per_s=10.0 * number, steady=50.0 + 10 * number)
        for number, rate in enumerate(RATES, 1)
    ]
    curve = curve_of("a", points, SWEEP)
    assert 100 / (300 + 41) == pytest.approx(curve.overall_good_tokens_per_joule)
    assert 41 / 90 == pytest.approx(curve.idle_watts_ratio)
    assert curve_of("a", points[:3], SWEEP).overall_good_tokens_per_joule is None


@pytest.mark.parametrize(
    ("rows", "largest"),
    [
        ([row(1, 1.0), row(2, 0.99), row(3, 0.98)], 2),
        ([row(1, 1.0), row(2, 0.5), row(3, 1.0)], 1),
        ([row(1, 0.9)], None),
        ([row(1, 1.0), row(2, 1.0, steady=0), row(3, 1.0)], 1),
        ([row(1, 1.0), row(2, None, usable=0, steady=0), row(3, 1.0)], 1),
        ([row(1, None, usable=0, steady=0)], None),
        ([], None),
    ],
    ids=["until it misses", "no luck beyond a miss", "never", "not steady", "void", "nothing", "no rate"],
)
def test_the_largest_rate_within_the_slo(rows: list[Row], largest: float | None) -> None:
    """As at every lower rate: one lucky run beyond a miss is none."""
    assert largest == largest_rate_within_slo(rows, 0.99)


@pytest.mark.parametrize(("idle", "expected"), [((1.0, 3.0), [1.0, 3.0]), ((None, 3.0), [3.0]), ((None, None), [])])
def test_idle_watts_are_those_that_were_measured(idle: Any, expected: list[float]) -> None:
    """Before, after, or neither."""
    assert expected == idle_watts(measured(SWEEP, idle=idle))
