"""What energy costs by zone, kept up to date while everything runs: configuration, files and the clock in, prices out.

Owned by ``scheduler.service``. It must never decide anything about a request, nor ask a network for a price: who has
one writes a file.

Prices are given out whole, with every change that is known, so that the core steps by itself. They are given out anew
when a file or the configuration changed, when the wall clock was set, and once a day.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from scheduler.accounting.energy_prices import ZoneEnergy, ZonePrices, prices_of
from scheduler.accounting.energy_series import HOLD_S, LONGEST_INTERVAL_S
from scheduler.config import Config
from scheduler.config_energy import zone_energies
from scheduler.core.price_clock import EnergyPrices
from scheduler.policies import zone_names
from scheduler.series_files import SeriesFiles

logger = logging.getLogger("jouleway.energy")

AHEAD_S = 3 * 86_400.0
"""How far prices are worked out; what is planned looks two days ahead."""
AGAIN_S = 86_400.0
MAX_DRIFT_S = 1.0
"""By so much the two clocks may drift apart before prices are put right."""


class Books(Protocol):
    """Where joules become carbon; ``Settlement`` is one."""

    carbon_ug_per_mj: Mapping[str, float]
    """By zone."""


class EnergyFeed:
    """``start`` once, ``reload`` on another configuration, ``stop`` at the end."""

    def __init__(
        self,
        config: Config,
        *,
        on_prices: Callable[[EnergyPrices], None],
        books: Books,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """``on_prices`` hears of prices over unix time; ``books`` book with the intensities of this moment."""
        self._on_prices = on_prices
        self._books = books
        self._clock = clock
        self._unix_clock = unix_clock
        self._task: asyncio.Task[None] | None = None
        self._said: dict[str, str] = {}
        self._problems: list[str] = []
        self._read_config(config)

    def _read_config(self, config: Config) -> None:
        energy, names = config.energy, zone_names(config)
        self._refresh_s = energy.refresh_s
        self._zones: dict[str, ZoneEnergy] = zone_energies(energy, config.zones, names)
        self._files = SeriesFiles(energy.series, energy.folder, currency=config.currency, zones=names)
        self._prices: dict[str, ZonePrices] = {}
        self._made_s = self._offset_s = float("-inf")

    async def start(self) -> None:
        """The first prices are given out when it returns."""
        await self.refresh()
        self._task = asyncio.create_task(self._run(), name="energy")

    async def stop(self) -> None:
        """It hears of nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def reload(self, config: Config) -> None:
        """The configuration was read again: its files are read and prices given out before it returns."""
        self._read_config(config)
        self._files.look()
        self._give_out()

    async def refresh(self) -> None:
        """Looks at files and clocks; what changed is given out."""
        files = self._files
        is_changed = await asyncio.to_thread(files.look)
        if files is not self._files:
            return  # another configuration came meanwhile
        now_s = self._unix_clock()
        has_drifted = abs(now_s - self._clock() - self._offset_s) > MAX_DRIFT_S
        if is_changed or has_drifted or now_s - self._made_s >= AGAIN_S:
            self._give_out()
        self._tell_now()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self.refresh()
            except Exception:
                logger.exception("energy prices could not be brought up to date; they are looked at again")

    def _give_out(self) -> None:
        now_s = self._unix_clock()
        self._made_s, self._offset_s = now_s, now_s - self._clock()
        self._prices = {name: self._prices_of(name, zone, now_s) for name, zone in self._zones.items()}
        self._on_prices(
            EnergyPrices(
                nano_per_joule={name: prices.nano_per_joule for name, prices in self._prices.items()},
                carbon_ug_per_mj={name: prices.carbon_ug_per_mj for name, prices in self._prices.items()},
            )
        )
        self._tell_now()

    def _prices_of(self, name: str, zone: ZoneEnergy, now_s: float) -> ZonePrices:
        first_s, last_s = now_s - HOLD_S - LONGEST_INTERVAL_S, now_s + AHEAD_S
        rows = [row for row in self._files.rows_of(name) if first_s <= row.start_unix_s <= last_s]
        return prices_of(zone, rows, from_unix_s=first_s, to_unix_s=last_s)

    def _tell_now(self) -> None:
        """The carbon of this moment, where it changed; and in the log, what is wrong and where prices are from."""
        now_s = self._unix_clock()
        self._books.carbon_ug_per_mj = {
            name: prices.carbon_ug_per_mj.at(now_s) for name, prices in self._prices.items()
        }
        problems = self._files.problems
        for words in problems:
            if words not in self._problems:
                logger.warning("energy: %s", words)
        self._problems = problems
        for name, prices in self._prices.items():
            tariff, grams = prices.tariff.at(now_s), prices.carbon.at(now_s)
            self._say(f"{name}: price of a kWh", tariff.source)
            self._say(f"{name}: gCO2e/kWh", grams.source)

    def _say(self, what: str, source: str) -> None:
        """Where a value is from, when that changes; loudly where a series has run out."""
        before, self._said[what] = self._said.get(what, "configured"), source
        if before == source:
            return
        if source == "held":
            logger.warning("energy: %s: the series has no value for now, its last one is held for 2 h", what)
        elif source == "configured":
            logger.warning("energy: %s: the series has no value for now, the configured one holds", what)
        elif source == "mean":
            logger.warning("energy: %s: the series has no value for now and none is configured, its mean holds", what)
        else:
            logger.info("energy: %s: from a series%s", what, " (estimated)" if source == "estimated" else "")
