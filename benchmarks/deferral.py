"""Batch work with a day's window, simulated: waiting for the cheap hours against starting at once.

Called by people (``python benchmarks/deferral.py tariff|carbon``) and its test. Engines are simulated; what decides is
the production core. Engines are never parked here: both sides pay the same idle watts for the same days.

tariff   0.30 a kWh, 0.12 from 22 to 06 on the wall clock of Berlin: energy cost; five seeds of the middle load
carbon   the hourly series of four grids, two weeks of each, as the only price: carbon, and its cost
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record
from scheduler.accounting.energy_prices import Period, ZoneEnergy, ZonePrices, prices_of
from scheduler.accounting.energy_series import SeriesRow, read_series
from scheduler.accounting.tariffs import joined, spans_of
from scheduler.core.admission import Limits
from scheduler.core.price_clock import EnergyPrices
from scheduler.core.request import Band
from scheduler.core.scheduler import Scheduler
from scheduler.core.steps import Steps
from scheduler.simulation.core_router import CoreRouter
from scheduler.simulation.fleet import Fleet, FleetWorker
from scheduler.simulation.power import StateJoules
from scheduler.simulation.replay import fleet_of
from scheduler.simulation.traces import MODEL, Arrival
from workers.engines.simulated_options import SimulatedOptions

ZONE = "local"
HOUR_S, DAY_S = 3_600.0, 86_400.0
WINDOW_S = DAY_S
TICK_S = 5.0
NUM_ENGINES = 2
JOBS_PER_DAY = {"light": 2_000, "middle": 6_000, "heavy": 9_000}
"""About 6, 18 and 28 % of what two engines can compute in that time; what waits has 70 % of their cheap hours."""
MAX_OUTPUT_TOKENS = 16_384
SEEDS = {"middle": (1, 2, 3, 4, 5), "light": (1,), "heavy": (1,)}
MONDAY = datetime.fromisoformat("2026-11-02T00:00:00+01:00").timestamp()
DAY_NIGHT = ZoneEnergy(
    per_kwh=0.30,
    periods=(Period(spans=joined(spans_of(["mon-sun"], "22:00-06:00")), per_kwh=0.12),),
    time_zone="Europe/Berlin",
)
CARBON_PRICE_PER_TONNE = 80.0
CARBON = ROOT / ".." / "shared" / "data" / "energy" / "carbon" / "us_ba_hourly_2022_two_weeks.csv"
WEEKS = {"january": "2022-01-10T00:00:00+00:00", "july": "2022-07-11T00:00:00+00:00"}
GRIDS = ("CISO", "ERCO", "NYIS", "PJM")
MAX_COST_RATIO = 0.75


def jobs(*, days: float, per_day: float, seed: int, window_s: float | None) -> list[Arrival]:
    """Long documents and long chains of thought, evenly over the days; lengths and instants are drawn."""
    chance = random.Random(seed)
    every_s = DAY_S / per_day
    arrivals = []
    for number in range(math.floor(days * per_day)):
        prompt_tokens = chance.randint(4_000, 12_000)
        arrivals.append(
            Arrival(
                arrival_s=(number + chance.random()) * every_s,
                prompt_tokens=prompt_tokens,
                output_tokens=chance.randint(8_000, 16_000),
                prompt_tokens_bound=math.ceil(prompt_tokens * chance.uniform(3.5, 5.0)),
                tenant=f"tenant-{chance.randrange(4)}",
                band=Band.FLEX,
                window_s=window_s,
            )
        )
    return arrivals


class Metered(CoreRouter):
    """The core, and the fleet's joules read at given moments."""

    def __init__(self, core: Scheduler, *, moments_s: Sequence[float], prices: EnergyPrices) -> None:
        super().__init__(core, model=MODEL, max_output_tokens=MAX_OUTPUT_TOKENS, progress_period_s=10.0, prices=prices)
        self.read: list[tuple[float, StateJoules]] = []
        self._moments_s = list(reversed(moments_s))

    def tick(self, now_s: float) -> None:
        while self._moments_s and now_s >= self._moments_s[-1]:
            self.read.append((self._moments_s.pop(), self._fleet.joules(now_s)))
        super().tick(now_s)


def simulate(
    workers: Sequence[FleetWorker], arrivals: Sequence[Arrival], price: Steps[float], *, end_s: float
) -> tuple[list[tuple[float, float, float]], dict[str, Any]]:
    """(from, to, joules) of every stretch of equal price up to ``end_s``, and what became of the jobs.

    ``price`` is over the run's time. Engines stay loaded to the end, whenever the last job is done.
    """
    moments_s = sorted({*np.arange(HOUR_S, end_s, HOUR_S).tolist(), *price.between(0.0, end_s)})
    core = Scheduler(models=(MODEL,), limits=Limits(max_wait_s=HOUR_S))
    router = Metered(core, moments_s=moments_s, prices=EnergyPrices(nano_per_joule={ZONE: price}))
    fleet = Fleet(workers, arrivals, router, tick_s=TICK_S)
    results = fleet.run()
    reads = [(0.0, 0.0), *((at_s, joules.total) for at_s, joules in router.read)]
    for at_s in [each for each in (*moments_s, end_s) if each > reads[-1][0]]:
        reads.append((at_s, fleet.joules(at_s).total))
    stretches = [(begin, end, after - before) for (begin, before), (end, after) in pairwise(reads)]
    late_s = results.ended_s - results.arrival_s - WINDOW_S
    waited_s = results.first_token_s - results.arrival_s
    return stretches, {
        "jobs": len(arrivals),
        "deadlines_missed": int((~(late_s <= 0.0)).sum()),
        "refused": int((results.worker < 0).sum()),
        "least_time_left_h": _hours(-late_s, 0.0),
        "waited_h_p50": _hours(waited_s, 0.5),
        "waited_h_max": _hours(waited_s, 1.0),
        "kwh": round(sum(joules for _, _, joules in stretches) / 3.6e6, 3),
        "kwh_of_steps": round(fleet.joules(end_s).steps / 3.6e6, 3),
        "preemptions": int(results.num_preemptions.sum()),
        "wall_s": round(results.wall_s, 1),
    }


def _hours(seconds: NDArray[np.float64], quantile: float) -> float:
    return round(float(np.nanquantile(seconds, quantile)) / HOUR_S, 3) if len(seconds) else 0.0


def total(stretches: Sequence[tuple[float, float, float]], per_joule: Steps[float]) -> float:
    """Σ joules × what one costs, or weighs, at that time."""
    return sum(joules * per_joule.at(begin) for begin, _, joules in stretches)


def series_of(grid: str, week: str, path: Path = CARBON) -> list[SeriesRow]:
    """A week's carbon, read as an operator's file of it would be."""
    begin = datetime.fromisoformat(WEEKS[week])
    lines = ["start_utc,value,unit,zone,kind"]
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            start = datetime.fromisoformat(row["timestamp_utc"].replace("Z", "+00:00"))
            if row["balancing_authority"] == grid and 0 <= (start - begin).total_seconds() < 7 * DAY_S:
                lines.append(f"{row['timestamp_utc']},{row['g_co2_per_kwh']},g/kWh,{ZONE},average")
    return list(read_series(("\n".join(lines) + "\n").encode(), currency="USD"))


def compare(zone: ZonePrices, *, origin_unix_s: float, days: float, seed: int, per_day: float) -> dict[str, Any]:
    """The same jobs at the same prices, once with their window stated and once without."""
    end_s = days * DAY_S + WINDOW_S
    workers = fleet_of((NUM_ENGINES, "h100", SimulatedOptions()))
    price = zone.nano_per_joule.shifted(-origin_unix_s)
    grams = zone.carbon_ug_per_mj.shifted(-origin_unix_s)
    found: dict[str, Any] = {}
    for name, window_s in (("at_once", None), ("deferred", WINDOW_S)):
        arrivals = jobs(days=days, per_day=per_day, seed=seed, window_s=window_s)
        stretches, figures = simulate(workers, arrivals, price, end_s=end_s)
        # 1 µg/mJ is 1 mg/J; nano per joule is 10⁻⁹ a joule.
        found[name] = {
            **figures,
            "cost": round(total(stretches, price) * 1e-9, 4),
            "gco2e": round(total(stretches, grams) * 1e-3, 1),
        }
    before, after = found["at_once"], found["deferred"]
    for name in ("cost", "gco2e", "kwh"):
        found[f"{name}_change_percent"] = round(100 * (after[name] / before[name] - 1), 2) if before[name] else None
    return found


def tariff_case(which: tuple[str, int]) -> dict[str, Any]:
    load, seed = which
    days = 2.0
    zone = prices_of(DAY_NIGHT, [], from_unix_s=MONDAY, to_unix_s=MONDAY + (days + 4) * DAY_S)
    found = compare(zone, origin_unix_s=MONDAY, days=days, seed=seed, per_day=JOBS_PER_DAY[load])
    return {"load": load, "seed": seed, **found}


def carbon_case(which: tuple[str, str]) -> dict[str, Any]:
    grid, week = which
    begin, days = datetime.fromisoformat(WEEKS[week]).timestamp(), 3.0
    zone = prices_of(
        ZoneEnergy(carbon_price_per_tonne=CARBON_PRICE_PER_TONNE),
        series_of(grid, week),
        from_unix_s=begin,
        to_unix_s=begin + 7 * DAY_S,
    )
    return {
        "grid": grid,
        "week": week,
        **compare(zone, origin_unix_s=begin, days=days, seed=1, per_day=JOBS_PER_DAY["light"]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tariff", "carbon"))
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    with ProcessPoolExecutor(given.processes) as pool:
        if given.what == "tariff":
            cases = list(pool.map(tariff_case, [(load, seed) for load, seeds in SEEDS.items() for seed in seeds]))
        else:
            cases = list(pool.map(carbon_case, [(grid, week) for grid in GRIDS for week in WEEKS]))
    missed = sum(case[name]["deadlines_missed"] for case in cases for name in ("at_once", "deferred"))
    changes = [case["cost_change_percent"] for case in cases]
    groups: dict[str, list[float]] = {}
    for case in cases:
        groups.setdefault(case.get("load") or case["grid"], []).append(case["cost_change_percent"])
    values = {
        "fleet": f"{NUM_ENGINES} x H100 / Llama-3.1-8B, simulated, never parked",
        "jobs_per_day": JOBS_PER_DAY,
        "cost_change_percent": {
            name: {
                "mean": round(fmean(each), 2),
                "stdev": round(stdev(each), 2) if len(each) > 1 else None,
                "worst": max(each),
            }
            for name, each in groups.items()
        },
        "deadlines_missed": missed,
        "cases": cases,
    }
    print(record(f"deferral_{given.what}", values, what=WHAT[given.what]).relative_to(ROOT))
    for case in cases:
        words = f"{case['load']} {case['seed']}" if "load" in case else f"{case['grid']} {case['week']}"
        print(
            f"{words}: cost {case['cost_change_percent']} %, carbon {case['gco2e_change_percent']} %, "
            f"kWh {case['kwh_change_percent']} %, missed {case['deferred']['deadlines_missed']}"
        )
    is_good = not missed and (given.what == "carbon" or max(changes) <= 100 * (MAX_COST_RATIO - 1))
    return 0 if is_good else 1


WHAT = {
    "tariff": "simulated: energy cost of batch jobs with a 24 h window, arriving evenly for 2 days, at 0.30 a kWh and "
    "0.12 from 22 to 06 (Europe/Berlin), deferred against started at once; idle watts to the end of the last window on "
    "both sides, no parking, PUE 1",
    "carbon": "simulated: the same with hourly carbon as the only price (80 a tonne), light load, 3 days of each week "
    "and grid of us_ba_hourly_2022_two_weeks.csv (EIA generation, SustainDC's average intensity): carbon and its cost",
}

if __name__ == "__main__":
    sys.exit(main())
