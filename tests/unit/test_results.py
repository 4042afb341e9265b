"""Figures of a simulated run, on rows worked out by hand."""

import math

import numpy as np
import pytest

from scheduler.core.request import Slo
from scheduler.simulation.power import StateJoules
from scheduler.simulation.results import Results, unloaded_ttft_s
from scheduler.simulation.traces import Arrival
from workers.engines.simulated_options import SimulatedOptions

SLO = Slo(ttft_s=1.0, ttft_ratio=3.0, tpot_s=0.05)


def arrival(at_s: float, *, prompt: int = 100, output: int = 11, tenant: str = "a") -> Arrival:
    return Arrival(
        arrival_s=at_s, prompt_tokens=prompt, output_tokens=output, prompt_tokens_bound=4 * prompt, tenant=tenant
    )


def results(**changes: object) -> Results:
    """Four requests: good; late by TTFT; slow by TPOT; refused."""
    values: dict[str, object] = {
        "arrivals": [arrival(0.0), arrival(1.0), arrival(2.0, tenant="b"), arrival(3.0)],
        "first_token_s": np.array([0.5, 2.5, 2.1, math.nan]),
        "ended_s": np.array([1.0, 2.6, 3.1, math.nan]),
        "worker": np.array([0, 1, 0, -1]),
        "cached_tokens": np.array([50, 0, 0, 0]),
        "num_preemptions": np.array([0, 0, 0, 0]),
        "unloaded_s": np.array([0.1, 0.1, 0.1, 0.1]),
        "num_attempts": 3,
        "wall_s": 0.1,
        "cpu_s": 0.1,
        "joules": StateJoules(steps=5.0, idle=3.0, starting=2.0, parked=1.0),
        "busy_s": 1.0,
        "loaded_s": 4.0,
        "loaded_gpu_s": 8.0,
        "span_s": 3.1,
        "num_wakes": 0,
        **changes,
    }
    return Results(**values)  # type: ignore[arg-type]


def test_times_of_each_request() -> None:
    """From its arrival; a refused one never got anything."""
    assert results().ttft_s.tolist() == pytest.approx([0.5, 1.5, 0.1, math.inf])
    assert results().e2e_s.tolist() == pytest.approx([1.0, 1.6, 1.1, math.inf])
    assert results().tpot_s.tolist()[:3] == pytest.approx([0.05, 0.01, 0.1])


def test_a_request_is_good_within_both_targets() -> None:
    """The refused one is offered, so it is not good."""
    assert results().is_good(Slo(ttft_s=1.0, ttft_ratio=3.0, tpot_s=0.0501)).tolist() == [True, False, False, False]


def test_everything_that_was_drawn_is_paid_by_good_tokens() -> None:
    """11 J over the 11 tokens of the one good request; without any there is no price low enough."""
    assert 1.0 == results().joules_per_good_token(Slo(ttft_s=1.0, ttft_ratio=3.0, tpot_s=0.0501))
    assert math.inf == results(first_token_s=np.full(4, math.nan)).joules_per_good_token(SLO)


def test_a_long_prompt_may_take_three_times_what_it_takes_alone() -> None:
    """1.5 s are late for a prompt of 0.1 s, not for one of 0.6 s."""
    assert results(unloaded_s=np.full(4, 0.6)).is_good(SLO).tolist()[1]


def test_one_output_token_has_no_time_between_tokens() -> None:
    """Nothing divides by zero."""
    one = results(arrivals=[arrival(0.0, output=1)] * 4, ended_s=np.array([0.5, 2.5, 2.1, math.nan]))
    assert one.tpot_s.tolist()[:3] == [0.0, 0.0, 0.0]


def test_rows_of_the_run() -> None:
    """What was asked stands beside what became of it."""
    found = results()
    assert found.tenants.tolist() == ["a", "a", "b", "a"]
    assert found.prompt_tokens.tolist() == [100] * 4
    assert found.output_tokens.tolist() == [11] * 4
    assert found.arrival_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert found.cached_ratio == 0.125


@pytest.mark.parametrize(("prompt_tokens", "expected_s"), [(100, 1.1), (200, 1.2), (250, 2.27), (500, 3.56)])
def test_unloaded_time_counts_every_chunk(prompt_tokens: int, expected_s: float) -> None:
    """Chunks of 200: the second reads the first, the third both; a step is a second, a prompt token a millisecond."""
    options = SimulatedOptions(
        time_t0_s=1.0, time_prefill_s=1e-3, time_context_s=1e-4, max_batched_tokens=200, prefix_caching=False
    )
    found = unloaded_ttft_s(np.array([float(prompt_tokens)]), options)
    assert found[0] == pytest.approx(expected_s)
