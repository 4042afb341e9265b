"""Figures of runs, by hand: units, nothing infinite, cost and carbon at the hall's door, and means over seeds."""

import json
import math

import numpy as np
import pytest

from scheduler.core.request import Slo
from scheduler.simulation.figures import Footprint, figures_of, figures_of_bound, figures_of_models, summary_of
from scheduler.simulation.oracle import Bound
from scheduler.simulation.power import StateJoules
from scheduler.simulation.results import Results
from tests.fleet_words import arrival

SLO = Slo(ttft_s=1.0, ttft_ratio=3.0, tpot_s=0.0501)
FREE = Footprint(price_per_kwh=0.0)


def results(**changes: object) -> Results:
    """Two good requests, one late, one that was never answered; four GPUs of which three were loaded."""
    values: dict[str, object] = {
        "arrivals": [
            arrival(0.0, output=11),
            arrival(1.0, output=21),
            arrival(2.0, model="b"),
            arrival(3.0, model="b"),
        ],
        "first_token_s": np.array([0.5, 1.25, 4.0, math.nan]),
        "ended_s": np.array([1.0, 1.75, 4.19, math.nan]),
        "worker": np.array([0, 1, 0, -1]),
        "cached_tokens": np.array([50, 0, 0, 0]),
        "num_preemptions": np.zeros(4, dtype=np.int64),
        "unloaded_s": np.full(4, 0.1),
        "num_attempts": 4,
        "wall_s": 0.1,
        "cpu_s": 0.1,
        "joules": StateJoules(steps=3.0e6, idle=0.3e6, starting=0.2e6, parked=0.1e6),
        "busy_s": 1.0,
        "loaded_s": 7.5,
        "loaded_gpu_s": 15.0,
        "span_s": 5.0,
        "num_wakes": 2,
        "num_losses": 1,
        **changes,
    }
    return Results(**values)  # type: ignore[arg-type]


def test_a_run_by_hand() -> None:
    """3.6 MJ over the 32 tokens of the two good ones; three GPUs on average."""
    found = figures_of(results(), SLO, Footprint(price_per_kwh=0.2, gco2e_per_kwh=400.0, pue_ratio=1.5))
    expected = {
        "joules_per_good_token": 3.6e6 / 32,
        "slo_attainment_ratio": 0.5,
        "joules_total": 3.6e6,
        "good_tokens": 32,
        "requests": 4,
        "unanswered": 1,
        "mean_loaded_gpus": 3.0,
        "wakes": 2,
        "engines_lost": 1,
        "simulated_s": 5.0,
        "cost": 0.3,
        "gco2e": 600.0,
        "cached_ratio": 0.125,
    }
    assert expected == {key: pytest.approx(found[key]) for key in expected}
    assert 3.6e6 == pytest.approx(sum(found["joules_by_state"].values()))


def test_what_never_ended_is_no_number() -> None:
    """One in four has no first token: the p99 is none, the median is one; the document is JSON."""
    found = figures_of(results(), SLO, FREE)
    assert (None, None) == (found["ttft_p99_s"], found["tpot_p99_s"])
    assert 2.0 == found["ttft_p50_s"]
    assert found["gco2e"] is None
    json.dumps(found, allow_nan=False)


def test_nothing_good_has_no_price_a_token() -> None:
    strict = SLO._replace(ttft_s=0.1, ttft_ratio=1.0)
    assert figures_of(results(), strict, FREE)["joules_per_good_token"] is None


def test_requests_are_told_by_model() -> None:
    """Joules are the fleet's: they are not divided."""
    found = figures_of_models(results(), SLO)
    assert {"simulated": (2, 1.0, 32), "b": (2, 0.0, 0)} == {
        model: (each["requests"], each["slo_attainment_ratio"], each["good_tokens"]) for model, each in found.items()
    }


def test_a_bound_speaks_the_same_words() -> None:
    """Every key of a run, without latencies."""
    bound = Bound(joules=1e6, good_tokens=100, loaded_gpu_s=20.0, span_s=10.0)
    found = figures_of_bound(bound, 7, FREE)
    assert figures_of(results(), SLO, FREE).keys() == found.keys()
    assert (1e4, 2.0, 7, None) == tuple(
        found[key] for key in ("joules_per_good_token", "mean_loaded_gpus", "requests", "ttft_p99_s")
    )
    unlike = figures_of_bound(Bound(joules=1.0, good_tokens=0, loaded_gpu_s=None, span_s=10.0), 0, FREE)
    assert (None, None) == (unlike["mean_loaded_gpus"], unlike["joules_per_good_token"])


def test_energy_may_cost_less_than_nothing() -> None:
    """Who takes it is paid."""
    assert -0.05 == pytest.approx(Footprint(price_per_kwh=-0.05).figures(3.6e6)["cost"])


def test_seeds_become_a_mean_and_its_interval() -> None:
    """Student's t for three: 4.303 standard deviations of the mean; what some seed lacks has no mean."""
    runs = [
        {"joules": value, "late": late, "policy": "p", "by": {"idle": value}}
        for value, late in ((1.0, 1), (2.0, 2), (3.0, None))
    ]
    found = summary_of(runs)
    half = 4.303 / math.sqrt(3)
    assert {"mean": 2.0, "low": 2 - half, "high": 2 + half, "num": 3} == pytest.approx(found["joules"])
    assert found["late"] is None
    assert 2.0 == found["by"]["idle"]["mean"]
    assert "policy" not in found


def test_one_seed_has_no_interval() -> None:
    assert {"mean": 1.0, "low": None, "high": None, "num": 1} == summary_of([{"joules": 1.0}])["joules"]
