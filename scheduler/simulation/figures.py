"""What is told of a simulated run, as plain values with units in their names; and of several seeds, their means.

Called by ``scheduler.study`` and benchmarks. It must never know who reads it. Every figure is simulated: grade D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from scheduler.core.request import JOULES_PER_KWH, Slo
from scheduler.intervals import mean_of
from scheduler.simulation.oracle import Bound
from scheduler.simulation.policies import DEFAULT_PRICE_PER_KWH
from scheduler.simulation.results import Results

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a kilowatt-hour at the meter stands for."""

    price_per_kwh: float = DEFAULT_PRICE_PER_KWH
    """At the hall's door, in any currency; negative where who takes energy is paid."""
    gco2e_per_kwh: float | None = None
    """None: nobody said, and carbon is not told."""
    pue_ratio: float = 1.0
    """kWh at the door for a kWh at the meter."""

    @property
    def price_at_meter(self) -> float:
        return self.price_per_kwh * self.pue_ratio

    def figures(self, joules: float) -> Figures:
        kwh = joules / JOULES_PER_KWH * self.pue_ratio
        gco2e = None if self.gco2e_per_kwh is None else kwh * self.gco2e_per_kwh
        return {"cost": kwh * self.price_per_kwh, "gco2e": gco2e}


def figures_of(results: Results, slo: Slo, footprint: Footprint) -> Figures:
    """Of one run. None stands for what never ended, as the p99 where more than one in a hundred got no answer."""
    good, joules = results.is_good(slo), results.joules
    return {
        "joules_per_good_token": finite(results.joules_per_good_token(slo)),
        "slo_attainment_ratio": float(good.mean()) if len(good) else None,
        "joules_total": joules.total,
        "joules_by_state": {
            "steps": joules.steps,
            "idle": joules.idle,
            "starting": joules.starting,
            "parked": joules.parked,
        },
        "good_tokens": int(results.output_tokens[good].sum()),
        "requests": len(results.arrivals),
        "unanswered": int(np.isnan(results.ended_s).sum()),
        "mean_loaded_gpus": results.loaded_gpu_s / results.span_s if results.span_s else None,
        "wakes": results.num_wakes,
        "engines_lost": results.num_losses,
        "ttft_p50_s": _quantile(results.ttft_s, 0.5),
        "ttft_p99_s": _quantile(results.ttft_s, 0.99),
        "tpot_p50_s": _quantile(results.tpot_s, 0.5),
        "tpot_p99_s": _quantile(results.tpot_s, 0.99),
        "cached_ratio": results.cached_ratio if len(good) else None,
        "simulated_s": results.span_s,
        **footprint.figures(joules.total),
    }


def figures_of_models(results: Results, slo: Slo) -> dict[str, Figures]:
    """By model what belongs to requests; joules are the fleet's."""
    models, good = np.array([arrival.model for arrival in results.arrivals]), results.is_good(slo)
    return {
        str(model): {
            "requests": int((models == model).sum()),
            "slo_attainment_ratio": float(good[models == model].mean()),
            "good_tokens": int(results.output_tokens[good & (models == model)].sum()),
            "ttft_p99_s": _quantile(results.ttft_s[models == model], 0.99),
            "tpot_p99_s": _quantile(results.tpot_s[models == model], 0.99),
        }
        for model in np.unique(models)
    }


def figures_of_bound(bound: Bound, num_requests: int, footprint: Footprint) -> Figures:
    """In the same words; a bound has no latencies and starts nothing."""
    loaded = None if bound.loaded_gpu_s is None or not bound.span_s else bound.loaded_gpu_s / bound.span_s
    unknown = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "joules_by_state", "cached_ratio")
    return {
        "joules_per_good_token": finite(bound.joules_per_good_token),
        "slo_attainment_ratio": 1.0,
        "joules_total": bound.joules,
        "good_tokens": bound.good_tokens,
        "requests": num_requests,
        "unanswered": 0,
        "mean_loaded_gpus": loaded,
        "wakes": 0,
        "engines_lost": 0,
        "simulated_s": bound.span_s,
        **dict.fromkeys(unknown),
        **footprint.figures(bound.joules),
    }


def summary_of(runs: Sequence[Figures]) -> Figures:
    """Mean and 95 % interval of each number over the seeds; None where some seed has none."""
    found: Figures = {}
    for key, value in runs[0].items():
        values = [run[key] for run in runs]
        if isinstance(value, Mapping):
            found[key] = summary_of(values) if all(values) else None
        elif all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
            interval = mean_of([float(each) for each in values])
            found[key] = msgspec.to_builtins(interval)
        elif None in values:
            found[key] = None
    return found


def _quantile(values: NDArray[np.float64], level: float) -> float | None:
    if not len(values):
        return None
    # The higher of two neighbours: between a number and never there is nothing.
    return finite(float(np.quantile(values, level, method="higher" if np.isinf(values).any() else "linear")))


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
