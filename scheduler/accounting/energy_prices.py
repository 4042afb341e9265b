"""What a joule costs when, by zone: tariff, carbon and its price, and what the hall takes beside the meter.

Made from the configuration and from series by ``scheduler.energy_feed`` and by planning; given to the core as plain
values over time. Pure. It must never read a file or ask a clock.

    nano per joule = (tariff per kWh + carbon price per tonne · g/kWh ÷ 10⁶) · PUE · 10⁹ ÷ 3.6·10⁶

at the meter of an engine. A tariff below 0 is one that pays for what is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

from scheduler.accounting.energy_series import SeriesRow, Source, filled
from scheduler.accounting.tariffs import DAY_MINUTES, Span, minute_of_week, zone_of
from scheduler.core.request import JOULES_PER_KWH
from scheduler.core.steps import Steps, combined

NANO = 10**9
GRAMS_PER_TONNE = 1_000_000
GRAMS_PER_KWH_OF_A_UG_PER_MJ = 3_600
"""1 gCO₂e/kWh is 10⁶ µg per 3.6 · 10⁹ mJ."""
HALF_HOUR_S = 1_800


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What a kWh costs in some minutes of the week."""

    spans: tuple[Span, ...]
    per_kwh: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneEnergy:
    """What is configured of one zone, before any series. All 0: its energy has no price."""

    per_kwh: float = 0.0
    """Outside of all periods, and where a series has nothing."""
    periods: tuple[Period, ...] = ()
    """The first that holds counts."""
    time_zone: str = "UTC"
    pue: float = 1.0
    gco2e_per_kwh: float = 0.0
    """A year's mean, say; where a series has nothing."""
    carbon_price_per_tonne: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ZonePrices:
    """One zone over unix time."""

    nano_per_joule: Steps[float]
    carbon_ug_per_mj: Steps[float]
    tariff: Steps[Source]
    """Currency units a kWh, and where they are from."""
    carbon: Steps[Source]
    """gCO₂e/kWh, likewise."""


def nano_per_joule(*, per_kwh: float, gco2e_per_kwh: float, carbon_price_per_tonne: float, pue: float) -> float:
    """10⁻⁹ currency units for a joule at the meter."""
    at_the_door = per_kwh + carbon_price_per_tonne * gco2e_per_kwh / GRAMS_PER_TONNE
    return at_the_door * pue * NANO / JOULES_PER_KWH


def prices_of(zone: ZoneEnergy, rows: Iterable[SeriesRow], *, from_unix_s: float, to_unix_s: float) -> ZonePrices:
    """One zone's prices; outside of the two moments its periods stay as they are at the nearer one. ``rows`` are of
    this zone, those that count most last."""
    rows = tuple(rows)
    tariff = filled([row for row in rows if not row.is_carbon], tariff_of(zone, from_unix_s, to_unix_s))
    carbon = filled([row for row in rows if row.is_carbon], Steps.always(zone.gco2e_per_kwh))

    def price(per_kwh: Source, grams: Source) -> float:
        return nano_per_joule(
            per_kwh=per_kwh.value,
            gco2e_per_kwh=grams.value,
            carbon_price_per_tonne=zone.carbon_price_per_tonne,
            pue=zone.pue,
        )

    return ZonePrices(
        nano_per_joule=combined(price, tariff, carbon),
        carbon_ug_per_mj=carbon.map(lambda grams: grams.value / GRAMS_PER_KWH_OF_A_UG_PER_MJ),
        tariff=tariff,
        carbon=carbon,
    )


def tariff_of(zone: ZoneEnergy, from_unix_s: float, to_unix_s: float) -> Steps[float]:
    """The configured tariff between two moments, changes where a period begins or ends on the wall clock."""
    if not zone.periods:
        return Steps.always(zone.per_kwh)
    where = zone_of(zone.time_zone)
    edges = {edge % DAY_MINUTES for period in zone.periods for span in period.spans for edge in span}
    moments = {
        moment_s for moment_s in _moments(edges, where, from_unix_s, to_unix_s) if from_unix_s < moment_s <= to_unix_s
    }
    return Steps.of(
        _per_kwh(zone, from_unix_s, where), ((at_s, _per_kwh(zone, at_s, where)) for at_s in sorted(moments))
    )


def _per_kwh(zone: ZoneEnergy, at_unix_s: float, where: tzinfo) -> float:
    minute = minute_of_week(at_unix_s, where)
    for period in zone.periods:
        if any(begin <= minute < end for begin, end in period.spans):
            return period.per_kwh
    return zone.per_kwh


def _moments(edges: Iterable[int], where: tzinfo, from_unix_s: float, to_unix_s: float) -> Iterable[float]:
    """Every moment at which a clock shows one of these minutes of a day, and every half hour: there clocks change."""
    half_hours = range(math.floor(from_unix_s / HALF_HOUR_S), math.ceil(to_unix_s / HALF_HOUR_S) + 1)
    yield from (float(number * HALF_HOUR_S) for number in half_hours)
    day = datetime.fromtimestamp(from_unix_s, where).date() - timedelta(days=1)
    last = datetime.fromtimestamp(to_unix_s, where).date() + timedelta(days=1)
    while day <= last:
        for edge in edges:
            yield from _instants(day, edge, where)
        day += timedelta(days=1)


def _instants(day: date, minute: int, where: tzinfo) -> Iterable[float]:
    """Both of them where the clock shows it twice."""
    local = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=where)
    return (local.astimezone(UTC).timestamp(), local.replace(fold=1).astimezone(UTC).timestamp())
