"""Prices kept up to date while everything runs: a new file, another configuration, a clock that was set."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scheduler.config import Config, load_config
from scheduler.core.price_clock import EnergyPrices
from scheduler.energy_feed import AGAIN_S, EnergyFeed
from tests.price_words import unix_s

CONFIG = """
models: {m: {}}
zones: {hall: {gco2e_per_kwh: 360}}
workers: [{name: w, engine: simulated, model: m, zone: hall}]
tenants: [{name: a}]
generate_keys: true
"""
NOON = unix_s("2026-11-02T12:00:00+00:00")
HOUR = 3_600.0


@dataclass
class Books:
    carbon_ug_per_mj: Mapping[str, float] = field(default_factory=dict)


class Office:
    """A feed on clocks that a test sets."""

    def __init__(self, folder: Path, energy: str = "{folder: feed, zones: {hall: {per_kwh: 0.36}}}") -> None:
        (folder / "feed").mkdir(exist_ok=True)
        self.folder = folder
        self.now_s, self.offset_s = float(NOON), 1_000.0
        self.published: list[EnergyPrices] = []
        self.books = Books()
        self.feed = EnergyFeed(
            self.config(energy),
            on_prices=self.published.append,
            books=self.books,
            clock=lambda: self.now_s - self.offset_s,
            unix_clock=lambda: self.now_s,
        )

    def config(self, energy: str) -> Config:
        (self.folder / "c.yaml").write_text(f"{CONFIG}energy: {energy}\n")
        return load_config(self.folder / "c.yaml")

    def drop(self, name: str, *lines: str) -> None:
        text = "start_utc,value,unit\n" + "".join(f"{line}\n" for line in lines)
        (self.folder / f".{name}").write_text(text)
        (self.folder / f".{name}").replace(self.folder / "feed" / name)

    def look(self, at_s: float | None = None) -> None:
        self.now_s = self.now_s if at_s is None else at_s
        asyncio.run(self.feed.refresh())

    def nano_per_joule(self) -> float:
        return self.published[-1].nano_per_joule["hall"].at(self.now_s)


def test_prices_are_given_out_once_and_then_when_something_changes(tmp_path: Path) -> None:
    """0.36 a kWh are 100 · 10⁻⁹ a joule; a file says 0.72 from one o'clock on, and nothing is restarted."""
    office = Office(tmp_path)
    office.look()
    assert (1, 100.0) == (len(office.published), pytest.approx(office.nano_per_joule()))
    office.look(NOON + 5)
    assert 1 == len(office.published)
    office.drop("prices.csv", "2026-11-02T13:00:00Z,0.72,per kWh")
    office.look(NOON + 10)
    assert 2 == len(office.published)
    steps = office.published[-1].nano_per_joule["hall"]
    assert [100.0, 200.0, 200.0, 100.0] == pytest.approx([steps.at(NOON + HOUR * hour) for hour in (0, 1, 3.9, 4)])


def test_a_bad_file_changes_nothing_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With its name and line."""
    office = Office(tmp_path)
    office.look()
    office.drop("prices.csv", "2026-11-02T12:00:00Z,soon,per kWh")
    with caplog.at_level(logging.WARNING, "jouleway.energy"):
        office.look()
        office.look()
    assert 1 == len(office.published)
    (words,) = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path}/feed/prices.csv: line 2: value" in words


def test_a_series_that_runs_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Held for two hours, then the configured value: each change once."""
    office = Office(tmp_path)
    office.drop("carbon.csv", "2026-11-02T12:00:00Z,720,g/kWh")
    found = []
    with caplog.at_level(logging.INFO, "jouleway.energy"):
        for hour in (0.0, 0.5, 1.0, 1.5, 3.0, 3.5):
            office.look(NOON + HOUR * hour)
            found.append(office.books.carbon_ug_per_mj["hall"])
    assert [0.2, 0.2, 0.2, 0.2, 0.1, 0.1] == pytest.approx(found)
    assert [
        "energy: hall: gCO2e/kWh: from a series",
        "energy: hall: gCO2e/kWh: the series has no value for now, its last one is held for 2 h",
        "energy: hall: gCO2e/kWh: the series has no value for now, the configured one holds",
    ] == [record.getMessage() for record in caplog.records]


def test_the_books_follow_the_hours_carbon(tmp_path: Path) -> None:
    """One truth: the ledger's carbon is that of the zone, or of its series."""
    office = Office(tmp_path, "{folder: feed}")
    office.drop("carbon.csv", "2026-11-02T12:00:00Z,36,g/kWh", "2026-11-02T13:00:00Z,72,g/kWh")
    office.look()
    first = dict(office.books.carbon_ug_per_mj)
    office.look(NOON + HOUR)
    assert ({"hall": 0.01}, {"hall": 0.02}) == (first, office.books.carbon_ug_per_mj)
    assert 1 == len(office.published), "the core was told of that step before"


def test_a_clock_that_was_set_and_a_day_that_is_over_bring_prices_anew(tmp_path: Path) -> None:
    """The core's clock shows other hours then; and periods are worked out three days ahead."""
    office = Office(tmp_path)
    office.look()
    office.offset_s += 3.0
    office.look()
    assert 2 == len(office.published)
    office.look(NOON + AGAIN_S)
    assert 3 == len(office.published)


def test_another_configuration_counts_when_reload_returns(tmp_path: Path) -> None:
    """Its folder is read too."""
    office = Office(tmp_path)
    office.look()
    office.drop("prices.csv", "2026-11-02T12:00:00Z,1.08,per kWh")
    office.feed.reload(office.config("{folder: feed, zones: {hall: {pue: 2}}}"))
    assert 600.0 == pytest.approx(office.nano_per_joule())
    office.feed.reload(office.config("{}"))
    assert (0.0, 0.1) == (office.nano_per_joule(), pytest.approx(office.books.carbon_ug_per_mj["hall"]))


async def test_it_looks_by_itself_until_it_is_stopped(tmp_path: Path) -> None:
    """A look that fails is said, and the next one follows."""
    office = Office(tmp_path, "{folder: feed, refresh_s: 0.1}")
    await office.feed.start()
    assert 1 == len(office.published)
    office.drop("prices.csv", "2026-11-02T12:00:00Z,0.72,per kWh")
    while len(office.published) < 2:
        await asyncio.sleep(0.02)
    await office.feed.stop()
    office.drop("prices.csv", "2026-11-02T12:00:00Z,0.73,per kWh")
    await asyncio.sleep(0.3)
    assert 2 == len(office.published)
