"""What a joule costs: by hand, on the wall clock of a night in which it is changed, and below 0."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.energy_prices import Period, ZoneEnergy, nano_per_joule, prices_of, tariff_of
from scheduler.accounting.energy_series import SeriesRow, Source
from scheduler.accounting.tariffs import joined, minute_of_week, spans_of, zone_of
from tests.core_words import thorough
from tests.price_words import unix_s

BERLIN = "Europe/Berlin"
HOUR = 3_600


def night(hours: str = "22:00-06:00", days: tuple[str, ...] = ("mon-sun",), per_kwh: float = 0.12) -> Period:
    return Period(spans=joined(spans_of(days, hours)), per_kwh=per_kwh)


def berlin(*periods: Period, **values: float) -> ZoneEnergy:
    return ZoneEnergy(per_kwh=0.30, periods=periods, time_zone=BERLIN, **values)


@pytest.mark.parametrize(
    ("per_kwh", "grams", "carbon_price", "pue", "expected"),
    [
        (0.15, 0.0, 0.0, 1.0, 41.6667),
        (0.15, 0.0, 0.0, 1.2, 50.0),
        (0.0, 400.0, 90.0, 1.0, 10.0),
        (0.15, 400.0, 90.0, 1.2, 62.0),
        (-0.05, 400.0, 90.0, 1.0, -3.8889),
        (0.0, 400.0, 0.0, 1.0, 0.0),
    ],
)
def test_a_joule_by_hand(per_kwh: float, grams: float, carbon_price: float, pue: float, expected: float) -> None:
    """0.15 a kWh are 41.7 · 10⁻⁹ a joule; 400 g at 90 a tonne are 0.036 a kWh; the hall takes its part of both."""
    found = nano_per_joule(per_kwh=per_kwh, gco2e_per_kwh=grams, carbon_price_per_tonne=carbon_price, pue=pue)
    assert expected == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize(
    ("at", "per_kwh"),
    [
        ("2026-11-02T21:59:59+01:00", 0.30),
        ("2026-11-02T22:00:00+01:00", 0.12),
        ("2026-11-03T05:59:59+01:00", 0.12),
        ("2026-11-03T06:00:00+01:00", 0.30),
    ],
)
def test_a_period_begins_and_ends_on_the_wall_clock(at: str, per_kwh: float) -> None:
    """To the second, in the zone's own time."""
    steps = tariff_of(berlin(night()), unix_s("2026-11-01T00:00:00+00:00"), unix_s("2026-11-05T00:00:00+00:00"))
    assert per_kwh == steps.at(unix_s(at))


@pytest.mark.parametrize(("day", "num_hours"), [("2026-03-28", 7), ("2026-10-24", 9), ("2026-06-01", 8)])
def test_a_night_in_which_clocks_change_is_shorter_or_longer(day: str, num_hours: int) -> None:
    """22 to 06 has seven hours in March and nine in October."""
    noon = unix_s(f"{day}T12:00:00+00:00")
    steps = tariff_of(berlin(night()), noon, noon + 24 * HOUR)
    assert num_hours == sum(steps.at(noon + HOUR * hour + 1) == 0.12 for hour in range(24))


@thorough
@given(
    st.sampled_from(["2026-03-28", "2026-10-24", "2026-07-01", "2026-12-30"]),
    st.sampled_from([BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"]),
    st.lists(st.sampled_from(["22:00-06:00", "02:30-02:45", "01:15-03:05", "00:00-24:00", "13:37-13:38"]), max_size=3),
    st.integers(0, 3 * 24 * 60),
)
def test_the_steps_are_the_tariff_of_every_minute(day: str, zone: str, hours: list[str], minute: int) -> None:
    """Whatever the zone does to its clock in those days; the first period that holds counts."""
    periods = tuple(night(span, per_kwh=float(number)) for number, span in enumerate(hours))
    start = unix_s(f"{day}T00:00:00+00:00")
    steps = tariff_of(ZoneEnergy(per_kwh=9.0, periods=periods, time_zone=zone), start, start + 4 * 24 * HOUR)
    at = start + 60 * minute
    local = minute_of_week(at, zone_of(zone))
    expected = [each.per_kwh for each in periods if any(begin <= local < end for begin, end in each.spans)] + [9.0]
    assert expected[0] == steps.at(at)


def test_a_series_counts_before_the_configuration_and_carbon_has_its_own() -> None:
    """Where a value of either is missing, the configured one is what is left."""
    rows = [SeriesRow(0, 0.5, False, "", False, "", 2), SeriesRow(HOUR, 360.0, True, "", True, "", 3)]
    zone = ZoneEnergy(per_kwh=0.1, gco2e_per_kwh=720.0, carbon_price_per_tonne=100.0)
    prices = prices_of(zone, rows, from_unix_s=0.0, to_unix_s=24.0 * HOUR)
    assert (Source(0.5, "series"), Source(720.0, "configured")) == (prices.tariff.at(10), prices.carbon.at(10))
    assert Source(360.0, "estimated") == prices.carbon.at(HOUR)
    assert (0.2, 0.1) == (prices.carbon_ug_per_mj.at(10), prices.carbon_ug_per_mj.at(HOUR))
    by_hand = [(0.5 + 0.072) / 0.0036, (0.5 + 0.036) / 0.0036, (0.1 + 0.072) / 0.0036]
    assert by_hand == pytest.approx([prices.nano_per_joule.at(HOUR * hour) for hour in (0, 1, 10)])


def test_nothing_configured_costs_nothing_for_ever() -> None:
    """And is known to change never."""
    prices = prices_of(ZoneEnergy(), [], from_unix_s=0.0, to_unix_s=1e6)
    assert (0.0, True) == (prices.nano_per_joule.at(0), prices.nano_per_joule.is_flat)
