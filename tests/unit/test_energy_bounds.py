"""Energy budgets hold what a request may take: alone on the worst worker first, then what was measured."""

import dataclasses
import math

import msgspec
import pytest

from scheduler.core.cluster import WorkerView
from scheduler.core.energy_bounds import MIN_SAMPLES, EnergyBound, EnergyBounds, RatioQuantile
from tests.core_words import request, view
from workers.step_curves import StepCurves

CHEAP = StepCurves(time_s=(0.01, 1e-4, 1e-3, 0.0), energy_joules=(2.0, 0.01, 0.1, 0.0), idle_watts=50.0)
DEAR = StepCurves(time_s=(0.02, 1e-4, 1e-3, 0.0), energy_joules=(4.0, 0.02, 0.1, 0.0), idle_watts=50.0)


def worker(name: str, curves: StepCurves | None, **values: object) -> WorkerView:
    return dataclasses.replace(view(name), curves=curves, **values)  # type: ignore[arg-type]


def test_without_curves_nothing_is_held() -> None:
    """Nobody knows anything yet; what it takes is the operator's."""
    bounds = EnergyBounds()
    bounds.hear(worker("a", None))
    assert EnergyBound() == bounds.bound(request(), prompt_tokens=100, output_tokens=10)


@pytest.mark.parametrize("coefficient", [math.nan, math.inf, -1.0, 1e300])
def test_curves_that_no_engine_has_are_ignored(coefficient: float) -> None:
    """One worker's NaN must not stop every admission."""
    bounds = EnergyBounds()
    for kind in ("time_s", "energy_joules"):
        wrong = msgspec.structs.replace(DEAR, **{kind: (coefficient, 0.0, 0.0, 0.0)})
        bounds.hear(worker("b", wrong))
        assert EnergyBound() == bounds.bound(request(), prompt_tokens=100, output_tokens=10)
    bounds.hear(worker("a", CHEAP))
    assert 100 * 10 + 10 * 2100 == bounds.bound(request(), prompt_tokens=100, output_tokens=10).energy_mj


def test_a_bound_is_the_request_alone_on_the_worst_worker() -> None:
    """100 prompt tokens at 20 mJ and 10 steps of 4.1 J; GPU-time by its time curve."""
    bounds = EnergyBounds()
    for each in (worker("a", CHEAP), worker("b", DEAR)):
        bounds.hear(each)
    expected = EnergyBound(100 * 20 + 10 * 4100, 100 * 100 + 10 * 21_000, 0)
    assert expected == bounds.bound(request(), prompt_tokens=100, output_tokens=10)
    bounds.forget("b")
    assert 100 * 10 + 10 * 2100 == bounds.bound(request(), prompt_tokens=100, output_tokens=10).energy_mj


def test_gpus_of_one_engine_all_count_in_gpu_time() -> None:
    """Step seconds × GPUs."""
    bounds = EnergyBounds()
    bounds.hear(worker("a", CHEAP, num_gpus=4))
    assert 4 * (100 * 100 + 10 * 11_000) == bounds.bound(request(), prompt_tokens=100, output_tokens=10).gpu_us


def test_another_models_workers_do_not_count() -> None:
    """Their curves say nothing of this one."""
    bounds = EnergyBounds()
    bounds.hear(worker("a", CHEAP, models=("other",)))
    assert EnergyBound() == bounds.bound(request(), prompt_tokens=1, output_tokens=1)


def test_what_was_measured_tightens_the_bound() -> None:
    """In a batch a request takes a part of what it would take alone."""
    bounds = EnergyBounds()
    bounds.hear(worker("a", CHEAP))
    alone = bounds.bound(request(), prompt_tokens=100, output_tokens=10)
    for _ in range(MIN_SAMPLES):
        bounds.observe(
            request(), prompt_tokens=100, output_tokens=10, energy_mj=alone.energy_mj // 5, gpu_us=alone.gpu_us // 5
        )
    bound = bounds.bound(request(), prompt_tokens=100, output_tokens=10)
    assert alone.energy_mj * 0.2 <= bound.energy_mj <= alone.energy_mj * 0.2 * 1.11


def test_the_quantile_covers_99_of_100() -> None:
    """One in two hundred above it does not move it; one in twenty does."""
    rare, often = RatioQuantile(), RatioQuantile()
    for number in range(1_000):
        rare.add(3.0 if number % 200 == 0 else 0.5)
        often.add(3.0 if number % 20 == 0 else 0.5)
    assert 0.5 <= rare.ratio <= 0.56
    assert 3.0 <= often.ratio <= 3.31


def test_carbon_is_held_at_the_dirtiest_zone_and_counted_where_it_ran() -> None:
    """The worker is not known when the hold is made."""
    bounds = EnergyBounds(carbon_ug_per_mj={"coal": 0.25, "wind": 0.01})
    bounds.hear(worker("a", CHEAP))
    bound = bounds.bound(request(), prompt_tokens=0, output_tokens=10)
    assert bound.energy_mj / 4 == pytest.approx(bound.carbon_ug, abs=1)
    assert (10, 250, 0) == (bounds.carbon_ug("wind", 1000), bounds.carbon_ug("coal", 1000), bounds.carbon_ug("x", 9))
