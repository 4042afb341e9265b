"""The section about energy: what it costs by zone and time, where series of that lie, and what may wait for it.

Called by ``scheduler.config``, which reads the file, by ``scheduler.policies`` and ``scheduler.energy_feed``. It must
never read a file or an environment variable; a time zone's name is looked up in the system's database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from scheduler.accounting.energy_prices import Period, ZoneEnergy
from scheduler.accounting.energy_series import MAX_PRICE_PER_KWH
from scheduler.accounting.tariffs import joined, spans_of, zone_of
from scheduler.config_prices import SpanConfig
from scheduler.config_sections import MAX_PUE, Name, Section
from scheduler.config_tenants import ZoneConfig

PerKwh = Annotated[float, Field(ge=-MAX_PRICE_PER_KWH, le=MAX_PRICE_PER_KWH)]
CarbonPrice = Annotated[float, Field(ge=0, le=1_000_000)]


class PeriodConfig(SpanConfig):
    """Some hours of some days, and what a kWh costs in them."""

    per_kwh: PerKwh
    """Currency units; below 0 where who takes energy is paid for it."""


class ZoneEnergyConfig(Section):
    """One zone. Its carbon is ``zones.NAME.gco2e_per_kwh``, where no series says otherwise."""

    per_kwh: PerKwh = 0.0
    """Currency units, outside of the periods and where a series has nothing."""
    time_zone: str = "UTC"
    """Of the periods."""
    periods: tuple[PeriodConfig, ...] = ()
    """The first that holds counts."""
    pue: Annotated[float, Field(ge=1, le=float(MAX_PUE))] = 1.0
    """kWh at the hall's door for a kWh at the meters of engines."""
    carbon_price_per_tonne: CarbonPrice | None = None
    """None = that of the section."""

    @field_validator("time_zone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        zone_of(name)
        return name


class DeferralConfig(Section):
    """How batch-class work with a stated deadline waits for cheaper hours."""

    margin_s: Annotated[float, Field(ge=0, le=86_400)] = 1800.0
    """Before its deadline, beside the time that it takes: for the queue, and for what nobody foresees."""
    margin_ratio: Annotated[float, Field(ge=1, le=100)] = 2.0
    """So many times the time that it is expected to take at most."""
    capacity_ratio: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Part of what engines can compute that is planned for work that waited; the rest is for what comes meanwhile."""


class EnergyConfig(Section):
    """What energy costs. Nothing here: it has no price, and nothing waits for one."""

    carbon_price_per_tonne: CarbonPrice = 0.0
    """Currency units a tonne of CO₂e."""
    zones: dict[Name, ZoneEnergyConfig] = {}
    series: tuple[Path, ...] = ()
    """CSV files of prices and carbon intensities; of two that say the same hour the later one counts."""
    folder: Path | None = None
    """A folder whose ``*.csv`` are read likewise, in the order of their names and after ``series``; it is watched."""
    refresh_s: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    """How often files and folder are looked at."""
    deferral: DeferralConfig = DeferralConfig()

    @model_validator(mode="after")
    def _check(self) -> EnergyConfig:
        if len(set(self.series)) < len(self.series):
            raise ValueError("series: a file is named twice")
        return self

    def problem(self, known: Iterable[str]) -> str | None:
        """A zone of it that no worker could have, in words; ``known`` are all zones."""
        names = sorted(known)
        for name in self.zones:
            if name not in names:
                known_zones = ", ".join(names)
                return (
                    f"energy.zones.{name}: there is no such zone ({known_zones}); name it in zones, or give it a worker"
                )
        return None


def zone_energies(energy: EnergyConfig, zones: Mapping[str, ZoneConfig], names: Iterable[str]) -> dict[str, ZoneEnergy]:
    """Of each of the names, as plain values."""
    found = {}
    for name in sorted(names):
        zone, place = energy.zones.get(name, ZoneEnergyConfig()), zones.get(name, ZoneConfig())
        carbon_price = zone.carbon_price_per_tonne
        found[name] = ZoneEnergy(
            per_kwh=zone.per_kwh,
            periods=tuple(
                Period(spans=joined(spans_of(period.days, period.hours)), per_kwh=period.per_kwh)
                for period in zone.periods
            ),
            time_zone=zone.time_zone,
            pue=zone.pue,
            gco2e_per_kwh=place.gco2e_per_kwh,
            carbon_price_per_tonne=energy.carbon_price_per_tonne if carbon_price is None else carbon_price,
        )
    return found
