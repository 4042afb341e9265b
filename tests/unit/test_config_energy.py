"""What an operator writes of energy becomes prices by zone; what is wrong is named by its place."""

from pathlib import Path

import pytest

from scheduler.accounting.energy_prices import Period, ZoneEnergy, prices_of
from scheduler.accounting.tariffs import joined, spans_of
from scheduler.config import Config, ConfigError, load_config
from scheduler.config_energy import zone_energies
from scheduler.policies import rules_of, zone_names
from tests.price_words import unix_s

BASE = """
models: {m: {}}
zones: {hall-a: {gco2e_per_kwh: 381}}
workers: [{name: w, engine: simulated, model: m, zone: hall-a}, {name: v, engine: simulated, model: m, zone: hall-b}]
tenants: [{name: a}]
generate_keys: true
"""
NIGHTS = """
energy:
  carbon_price_per_tonne: 80
  series: [prices.csv, sub/carbon.csv]
  folder: feed
  zones:
    hall-a:
      per_kwh: 0.30
      time_zone: Europe/Berlin
      periods: [{hours: "22:00-06:00", per_kwh: 0.12}, {days: [sun], per_kwh: -0.01}]
      pue: 1.25
    hall-b: {carbon_price_per_tonne: 0}
"""


def load(folder: Path, text: str = NIGHTS) -> Config:
    (folder / "c.yaml").write_text(BASE + text)
    return load_config(folder / "c.yaml")


def energies(config: Config) -> dict[str, ZoneEnergy]:
    return zone_energies(config.energy, config.zones, zone_names(config))


def test_zones_become_plain_values(tmp_path: Path) -> None:
    """The carbon of a zone is said once, where the ledger's is; a price below 0 is one."""
    config = load(tmp_path)
    night = Period(spans=joined(spans_of(["mon-sun"], "22:00-06:00")), per_kwh=0.12)
    sunday = Period(spans=joined(spans_of(["sun"])), per_kwh=-0.01)
    assert {
        "hall-a": ZoneEnergy(
            per_kwh=0.30,
            periods=(night, sunday),
            time_zone="Europe/Berlin",
            pue=1.25,
            gco2e_per_kwh=381.0,
            carbon_price_per_tonne=80.0,
        ),
        "hall-b": ZoneEnergy(),
    } == energies(config)


def test_a_joule_of_the_configuration_by_hand(tmp_path: Path) -> None:
    """(0.12 + 80 · 381 / 10⁶) · 1.25 / 3.6 MJ at two in the night of Berlin; 47.9 · 10⁻⁹ at its Sunday noon less."""
    zone = energies(load(tmp_path))["hall-a"]
    noon = unix_s("2026-11-06T12:00:00+01:00")
    prices = prices_of(zone, [], from_unix_s=noon, to_unix_s=noon + 3 * 86_400).nano_per_joule
    by_hand = [(price + 80 * 381e-6) * 1.25 / 3.6e-3 for price in (0.30, 0.12, -0.01)]
    assert by_hand == pytest.approx([prices.at(noon), prices.at(noon + 14 * 3_600), prices.at(noon + 48 * 3_600)])


def test_paths_begin_at_the_files_own_folder(tmp_path: Path) -> None:
    """As all others."""
    energy = load(tmp_path).energy
    assert ((tmp_path / "prices.csv", tmp_path / "sub" / "carbon.csv"), tmp_path / "feed") == (
        energy.series,
        energy.folder,
    )


def test_nothing_configured_is_no_price(tmp_path: Path) -> None:
    """The zone's carbon counts for the ledger, and costs nothing."""
    found = energies(load(tmp_path, ""))
    assert {"hall-a": ZoneEnergy(gco2e_per_kwh=381.0), "hall-b": ZoneEnergy()} == found


def test_margins_reach_the_core(tmp_path: Path) -> None:
    """In its own words."""
    config = load(tmp_path, "energy: {deferral: {margin_s: 60, margin_ratio: 3, capacity_ratio: 0.5}}\n")
    deferral = rules_of(config).deferral
    assert (60.0, 3.0, 0.5) == (deferral.margin_s, deferral.margin_ratio, deferral.capacity_ratio)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{zones: {hall-c: {}}}", "energy.zones.hall-c: there is no such zone (hall-a, hall-b)"),
        ("{zones: {hall-a: {per_kwh: 2000}}}", "energy.zones.hall-a.per_kwh"),
        ("{zones: {hall-a: {pue: 0.9}}}", "energy.zones.hall-a.pue"),
        ("{zones: {hall-a: {time_zone: Berlin}}}", "no time zone 'Berlin' is known here"),
        ("{zones: {hall-a: {gco2e_per_kwh: 3}}}", "energy.zones.hall-a.gco2e_per_kwh: unknown key"),
        ("{zones: {hall-a: {periods: [{hours: night, per_kwh: 1}]}}}", "hours are written"),
        ("{zones: {hall-a: {periods: [{hours: '22:00-06:00'}]}}}", "periods[0].per_kwh: is missing"),
        ("{series: [a.csv, a.csv]}", "series: a file is named twice"),
        ("{carbon_price_per_tonne: -1}", "energy.carbon_price_per_tonne"),
        ("{deferral: {margin_ratio: 0.5}}", "energy.deferral.margin_ratio"),
        ("{refresh_s: 0}", "energy.refresh_s"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(tmp_path: Path, section: str, words: str) -> None:
    """With what belongs there."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"energy: {section}\n")
    assert words in str(caught.value)
