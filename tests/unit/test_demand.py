"""The load of a model: its level, and by how much it rises before another engine could help."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.capacity import Load
from scheduler.core.day_profile import DAY_S
from scheduler.core.demand import BIN_RATIO, PRIOR_RATIO, WINDOW_S, Demand
from tests.core_words import thorough

WEIGHTS = (1e-5, 1e-4)
AHEAD_S = 60.0
REQUEST_S = 1_000 * WEIGHTS[0] + 100 * WEIGHTS[1]
"""Work of one request of a thousand prompt tokens and a hundred output tokens."""


def feed(demand: Demand, rates_per_s: list[float], *, from_s: float = 0.0, unix_s: float | None = None) -> float:
    """So many such requests a second, second by second; when it was over."""
    for number, rate_per_s in enumerate(rates_per_s):
        for _ in range(round(rate_per_s)):
            demand.add(1_000.0, 100.0)
        now_s = from_s + number + 1.0
        wall_s = None if unix_s is None else unix_s + now_s
        demand.advance(now_s, weights=WEIGHTS, ahead_s=AHEAD_S, unix_s=wall_s)
    return from_s + len(rates_per_s)


def test_a_steady_load_is_its_own_level_from_the_first_window_on() -> None:
    demand = Demand(0.0)
    feed(demand, [5.0] * 4)
    assert Load(5.0, 5_000.0, 500.0) == pytest.approx(demand.level)
    assert 5.0 * REQUEST_S == pytest.approx(demand.level_s)
    assert Load(1.0, 1_000.0, 100.0).times(1.0 / REQUEST_S) == pytest.approx(demand.mix)


def test_before_anything_is_known_the_load_may_rise_by_a_prior() -> None:
    demand = Demand(0.0)
    feed(demand, [5.0] * 10)
    assert PRIOR_RATIO <= demand.ratio(0.9) <= PRIOR_RATIO * BIN_RATIO
    assert 5.0 * REQUEST_S * demand.ratio(0.9) == pytest.approx(demand.forecast_s(0.9, ahead_s=AHEAD_S))


def test_a_load_that_stays_steady_is_forecast_as_steady() -> None:
    """Within the width of a bin."""
    demand = Demand(0.0)
    feed(demand, [5.0] * 1_800)
    assert 1.0 <= demand.ratio(0.9) <= BIN_RATIO


def test_bursts_are_expected_as_high_and_as_often_as_they_came() -> None:
    """Three times the load for half a minute, every five minutes: more often than one look in ten it is ahead."""
    demand = Demand(0.0)
    feed(demand, ([3.0] * 270 + [9.0] * 30) * 8)
    assert 2.0 < demand.ratio(0.9) < 3.2
    assert demand.ratio(0.5) < 1.3


def test_what_is_rarer_than_the_quantile_is_not_kept_ready_for() -> None:
    demand = Demand(0.0)
    feed(demand, [3.0] * 3_000 + [9.0] * 30 + [3.0] * 900)
    assert demand.ratio(0.9) < 1.3


def test_a_load_that_falls_is_never_forecast_below_its_level() -> None:
    demand = Demand(0.0)
    feed(demand, [float(rate) for rate in range(200, 0, -1)] * 3)
    assert demand.level_s <= demand.forecast_s(0.01, ahead_s=AHEAD_S)


def test_after_a_minute_of_silence_the_level_is_nothing() -> None:
    """It would fade for ever otherwise, and somebody would be kept awake for it."""
    demand = Demand(0.0)
    now_s = feed(demand, [5.0] * 60 + [0.0] * 58)
    assert demand.level_s > 0.0
    feed(demand, [0.0] * 2, from_s=now_s)
    assert (Load(), 0.0, 0.0) == (demand.level, demand.level_s, demand.forecast_s(0.9, ahead_s=AHEAD_S))
    assert Load(1.0, 1_000.0, 100.0).times(1.0 / REQUEST_S) == pytest.approx(demand.mix)


def test_what_comes_at_this_hour_on_other_days_is_added() -> None:
    """Yesterday's noon was four times its morning."""
    noon_s = 20_000 * DAY_S + 43_200.0
    demand = Demand(0.0)
    end_s = feed(demand, [1.0] * 1_800 + [4.0] * 1_800, unix_s=noon_s - 1_800)
    demand.advance(DAY_S - 1_800.0, weights=WEIGHTS, ahead_s=AHEAD_S, unix_s=noon_s + DAY_S - 3_600)
    now_s = feed(demand, [1.0] * 1_790, from_s=DAY_S - 1_800.0, unix_s=noon_s - 1_800)
    assert end_s < now_s
    without_s = demand.forecast_s(0.9, ahead_s=AHEAD_S)
    with_s = demand.forecast_s(0.9, ahead_s=AHEAD_S, unix_s=noon_s + DAY_S - 10.0)
    assert 4.0 == pytest.approx(with_s / without_s, rel=0.05)


@thorough
@given(st.integers(0, 2**32))
def test_any_load_is_counted_whole_and_its_forecasts_rise_with_the_quantile(seed: int) -> None:
    """However rarely it is looked at: windows close one by one."""
    chance, demand, now_s = random.Random(seed), Demand(0.0), 0.0
    for _ in range(200):
        for _ in range(chance.choice([0, 0, 1, 5, 40])):
            demand.add(chance.uniform(0.0, 9_000.0), chance.uniform(0.0, 900.0))
        now_s += chance.choice([0.1, 1.0, WINDOW_S, 7.0])
        demand.advance(now_s, weights=WEIGHTS, ahead_s=AHEAD_S)
    forecasts_s = [demand.forecast_s(quantile, ahead_s=AHEAD_S) for quantile in (0.0, 0.5, 0.9, 0.99, 0.999)]
    assert sorted(forecasts_s) == forecasts_s
    assert demand.level_s <= forecasts_s[0]
    assert demand.level_s == pytest.approx(
        demand.level.prompt_tokens * WEIGHTS[0] + demand.level.output_tokens * WEIGHTS[1]
    )
