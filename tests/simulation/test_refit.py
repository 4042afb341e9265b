"""Points that were not fitted are predicted within their bounds; what is refitted is found again where it is known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.refit import (
    HELD_OUT,
    ITL_BOUND,
    JOULES_BOUND,
    Refit,
    Run,
    by_formula,
    by_simulator,
    lengths_of,
    measure,
    refit,
    runs_of,
)

ENERGY = Path(__file__).resolve().parents[3] / "shared" / "data" / "energy"
measured = pytest.mark.skipif(not ENERGY.exists(), reason="the ML.ENERGY runs are not here")
TRUTH = Refit(e0_joules=3.0, e1_joules=0.07, t0_s=0.006, t1_s=8e-5, prompt_s=0.005)


def run(sequences: int, of: Refit = TRUTH) -> Run:
    """A run as the formulas say it."""
    blank = Run(
        max_num_seqs=sequences, sequences=sequences, output_tokens=400.0, joules_per_token=1.0, itl_p50_s=1.0,
        tokens_per_s=1.0,
    )  # fmt: skip
    said = by_formula(of, blank)
    return replace(
        blank, joules_per_token=said.joules_per_token, itl_p50_s=said.itl_p50_s, tokens_per_s=said.tokens_per_s
    )


@measured
@pytest.mark.parametrize("seed", [0, 7])
def test_points_that_were_not_fitted_are_predicted(seed: int) -> None:
    """J/token within 5 % on average and ITL p50 within 10 % each, by formula and by the simulated engine."""
    found = measure(ENERGY, seed=seed)["held_out"]
    assert {"formula", "simulator"} == set(found)
    for errors in found.values():
        assert JOULES_BOUND >= errors["joules_mape_ratio"] > 0
        assert ITL_BOUND >= errors["itl_p50_worst_ratio"] > 0


@measured
def test_what_is_held_out_is_there_and_is_not_fitted() -> None:
    """By configured ``max_num_seqs``; of each model two of its points, and no coefficient hears of them."""
    for (model, num_gpus), left_out in HELD_OUT.items():
        runs = runs_of(ENERGY, model, num_gpus)
        assert 11 <= len(runs) == len({run.max_num_seqs for run in runs})
        assert set(left_out) < {run.max_num_seqs for run in runs}
    found = measure(ENERGY)["models"].values()
    assert [(64, 256), (128, 512)] == [
        tuple(point["max_num_seqs"] for point in model["points"] if point["is_held_out"]) for model in found
    ]
    kept = [run for run in runs if run.max_num_seqs not in left_out]
    assert refit(kept) == Refit(**list(found)[-1]["refit"])
    assert refit(kept) != refit(runs)


@measured
def test_lengths_have_the_mean_that_was_measured() -> None:
    """And the spread of the histogram: chat's answers are anything from a few tokens on."""
    lengths = lengths_of(ENERGY, "meta-llama/Llama-3.1-8B-Instruct", mean_tokens=400.0, count=5_000, seed=1)
    assert pytest.approx(400.0, rel=0.01) == sum(lengths) / len(lengths)
    assert min(lengths) < 50
    assert max(lengths) > 1_000


def test_a_curve_is_found_again() -> None:
    """From points that follow it exactly."""
    found = refit([run(sequences) for sequences in (8, 16, 32, 128, 512)])
    for name in Refit.__slots__:
        assert pytest.approx(getattr(TRUTH, name), rel=1e-6) == getattr(found, name), name


def test_a_measured_step_shorter_than_its_decode_has_no_prompt() -> None:
    """Noise may not make prompts run backwards."""
    runs = [replace(run(sequences, replace(TRUTH, prompt_s=0.0)), tokens_per_s=2e4) for sequences in (8, 64)]
    assert 0.0 == refit(runs).prompt_s


@pytest.mark.parametrize("places", [1, 8, 50])
def test_without_prompts_the_simulated_engine_is_the_formula(places: int) -> None:
    """Fixed lengths, all places full: worked by hand, (e0 + e1·b) / b and t0 + t1·b."""
    of = replace(TRUTH, prompt_s=0.0)
    found = by_simulator(of, places=places, lengths=[100] * (10 * places))
    assert pytest.approx(of.t0_s + of.t1_s * places, rel=1e-9) == found.itl_p50_s
    assert pytest.approx((of.e0_joules + of.e1_joules * places) / places, rel=0.01) == found.joules_per_token
    assert pytest.approx(places / (of.t0_s + of.t1_s * places), rel=0.02) == found.tokens_per_s


def test_prompts_slow_the_simulated_engine_as_the_formula_says() -> None:
    """Half of a step's time is prompts here: throughput agrees; the median step holds part of them."""
    of = replace(TRUTH, prompt_s=0.05)
    lengths = [100 + place % 100 for place in range(50 * 30)]
    found = by_simulator(of, places=50, lengths=lengths)
    said = by_formula(of, replace(run(50), output_tokens=sum(lengths) / len(lengths)))
    assert pytest.approx(said.tokens_per_s, rel=0.05) == found.tokens_per_s
    assert said.itl_p50_s <= found.itl_p50_s < said.itl_p50_s + of.prompt_s


def test_a_recorded_result_holds_its_bounds() -> None:
    """What is written is what was measured: five seeds, each within the bounds."""
    recorded = json.loads((Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "refit.json").read_text())
    seeds = recorded["values"]["held_out_by_seed"]
    assert 5 == len(seeds)
    for each in (errors for seed in seeds for errors in seed.values()):
        assert JOULES_BOUND >= each["joules_mape_ratio"]
        assert ITL_BOUND >= each["itl_p50_worst_ratio"]
