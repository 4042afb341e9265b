"""Batch work with a window against the same work begun at once, simulated, small; figures: benchmarks/deferral.py."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.deferral import CARBON, DAY_NIGHT, DAY_S, MONDAY, WEEKS, compare, series_of, simulate, total
from scheduler.accounting.energy_prices import ZoneEnergy, prices_of
from scheduler.core.steps import Steps
from scheduler.simulation.replay import fleet_of
from workers.engines.simulated_options import SimulatedOptions


@pytest.fixture(scope="module")
def tariff() -> dict[str, Any]:
    """Half a day of arrivals, from midnight to noon: six hours of night, six of day."""
    zone = prices_of(DAY_NIGHT, [], from_unix_s=MONDAY, to_unix_s=MONDAY + 4 * DAY_S)
    return compare(zone, origin_unix_s=MONDAY, days=0.5, seed=1, per_day=1_000)


def test_waiting_for_the_night_costs_less_and_nobody_is_late(tariff: dict[str, Any]) -> None:
    """Idle watts are paid alike on both sides, and every job is answered within its day."""
    assert tariff["cost_change_percent"] < -5
    for name in ("at_once", "deferred"):
        assert (500, 0, 0) == (tariff[name]["jobs"], tariff[name]["refused"], tariff[name]["deadlines_missed"])


def test_who_states_no_window_begins_at_once(tariff: dict[str, Any]) -> None:
    """And who does waits for the night at the longest: from six in the morning to ten in the evening."""
    assert tariff["at_once"]["waited_h_max"] < 0.1
    assert 10 < tariff["deferred"]["waited_h_max"] < 16.5


def test_at_a_flat_price_both_are_the_same_run() -> None:
    """Nothing is gained, nothing is moved."""
    zone = prices_of(ZoneEnergy(per_kwh=0.2), [], from_unix_s=MONDAY, to_unix_s=MONDAY + 4 * DAY_S)
    found = compare(zone, origin_unix_s=MONDAY, days=0.1, seed=1, per_day=1_000)
    assert (0.0, 0.0) == (found["cost_change_percent"], found["kwh_change_percent"])


def test_a_fleet_that_does_nothing_costs_its_idle_watts() -> None:
    """119 W for a day and a half: by hand."""
    price = Steps.of(2.0, [(DAY_S, 3.0)])
    stretches, figures = simulate(fleet_of((1, "h100", SimulatedOptions())), [], price, end_s=1.5 * DAY_S)
    assert 119 * 1.5 * DAY_S == pytest.approx(sum(joules for _, _, joules in stretches))
    assert 119 * DAY_S * (2.0 + 1.5) == pytest.approx(total(stretches, price))
    assert 119 * 36 / 1e3 == pytest.approx(figures["kwh"], abs=1e-3)


@pytest.mark.skipif(not Path(CARBON).exists(), reason="the carbon series is not part of the repository")
@pytest.mark.parametrize("grid", ["CISO", "PJM"])
def test_work_follows_the_hours_of_least_carbon(grid: str) -> None:
    """An hourly series read as an operator's file: less carbon, nobody late."""
    begin = datetime.fromisoformat(WEEKS["july"]).timestamp()
    zone = prices_of(
        ZoneEnergy(carbon_price_per_tonne=80.0),
        series_of(grid, "july"),
        from_unix_s=begin,
        to_unix_s=begin + 4 * DAY_S,
    )
    found = compare(zone, origin_unix_s=begin, days=0.5, seed=1, per_day=1_000)
    assert found["gco2e_change_percent"] < 0
    assert 0 == found["deferred"]["deadlines_missed"]
