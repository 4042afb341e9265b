"""The simulator against measured points that its curve was not fitted to: Llama-3.1 on H100, chat, vLLM 0.11.1.

Called by people (``python benchmarks/refit.py``) and by ``tests/simulation/test_refit.py``. It reads the ML.ENERGY
Benchmark's runs and lengths (``--folder``) and writes neither anywhere; what it refits lives as long as it runs.

Of each model every point is fitted but two, held out by their configured ``max_num_seqs``; b is the concurrency that
was measured (``avg_batch_size``), as in the published fits. By least squares on relative errors:

    step energy     b · J/token      = e0 + e1·b          prefill inside, as in the published fits
    decode step     ITL p50          = t0 + t1·b
    prefill         b ÷ throughput   = t0 + t1·b + (seconds of one prompt) · b ÷ mean output length

So a point is predicted in two ways: by these formulas, and by the simulated engine itself (closed form) that is given
so many requests that b always run, with output lengths drawn from the published histogram and scaled to the run's mean.
There the median step of a full engine holds prompts too, which the formula for the ITL leaves out. Lengths of prompts
are not published: they are drawn exponentially, an assumption, and only the seconds of their mean are fitted.
The steady window is the benchmark's own: from when all places have a first token until places begin to stay empty.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record
from scheduler.simulation.closed_form import NEVER_S, ClosedFormEngine, Job
from workers.engines.simulated_options import SimulatedOptions

RUNS, LENGTHS = "mlenergy_v3_llm_runs.csv", "mlenergy_v3_output_length_histograms.json"
TASK, GPU = "lm-arena-chat", "H100"
HELD_OUT = {
    ("meta-llama/Llama-3.1-8B-Instruct", 1): (64, 256),
    ("meta-llama/Llama-3.1-70B-Instruct", 4): (128, 512),
}
"""By model and GPUs: the ``max_num_seqs`` that are not fitted."""
JOULES_BOUND, ITL_BOUND = 0.05, 0.10
PROMPT_TOKENS = 100
"""Mean of simulated prompts. Only their seconds are fitted, so that another number changes next to nothing."""
ROUNDS = 12
"""Requests a place."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured run in its steady state."""

    max_num_seqs: int
    sequences: float
    output_tokens: float
    """Mean of a request."""
    joules_per_token: float
    itl_p50_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    e0_joules: float
    e1_joules: float
    t0_s: float
    t1_s: float
    prompt_s: float
    """Of one whole prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    joules_per_token: float
    itl_p50_s: float
    tokens_per_s: float


def runs_of(folder: Path, model: str, num_gpus: int) -> list[Run]:
    """In the order of ``max_num_seqs``."""
    with (folder / RUNS).open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["task"], row["gpu_model"], row["model_id"], row["num_gpus"]) == (TASK, GPU, model, str(num_gpus))
        ]
    runs = [
        Run(
            max_num_seqs=int(row["max_num_seqs"]),
            sequences=float(row["avg_batch_size"]),
            output_tokens=float(row["avg_output_len"]),
            joules_per_token=float(row["energy_per_token_joules"]),
            itl_p50_s=float(row["median_itl_ms"]) / 1e3,
            tokens_per_s=float(row["output_throughput_tokens_per_sec"]),
        )
        for row in rows
    ]
    return sorted(runs, key=lambda run: run.max_num_seqs)


def refit(runs: list[Run]) -> Refit:
    """By least squares on relative errors."""
    sequences = np.array([run.sequences for run in runs])
    energy = _affine(sequences, np.array([run.joules_per_token for run in runs]) * sequences)
    decode = _affine(sequences, np.array([run.itl_p50_s for run in runs]))
    step_s = sequences / np.array([run.tokens_per_s for run in runs])
    prompts = sequences / np.array([run.output_tokens for run in runs])
    weights, rest = prompts / step_s, (step_s - decode[0] - decode[1] * sequences) / step_s
    return Refit(
        e0_joules=energy[0],
        e1_joules=energy[1],
        t0_s=decode[0],
        t1_s=decode[1],
        prompt_s=max(float(weights @ rest / (weights @ weights)), 0.0),
    )


def _affine(x: Floats, y: Floats) -> tuple[float, float]:
    base, slope = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(x)), rcond=None)[0]
    return float(base), float(slope)


def by_formula(of: Refit, run: Run) -> Predicted:
    """At the measured concurrency."""
    decode_s = of.t0_s + of.t1_s * run.sequences
    step_s = decode_s + of.prompt_s * run.sequences / run.output_tokens
    return Predicted(
        joules_per_token=(of.e0_joules + of.e1_joules * run.sequences) / run.sequences,
        itl_p50_s=decode_s,
        tokens_per_s=run.sequences / step_s,
    )


def lengths_of(folder: Path, model: str, *, mean_tokens: float, count: int, seed: int) -> list[int]:
    """Output lengths by the published histogram, even inside a bin, scaled to a mean."""
    known = json.loads((folder / LENGTHS).read_text())
    found = next(each for each in known if (each["model_id"], each["task"]) == (model, TASK))
    counts, edges = np.array(found["counts"], dtype=float), np.array(found["bin_edges"])
    chance = np.random.default_rng(seed)
    bins = chance.choice(len(counts), size=count, p=counts / counts.sum())
    lengths = chance.uniform(edges[bins], edges[bins + 1])
    return [max(round(length), 1) for length in lengths * mean_tokens / lengths.mean()]


def by_simulator(of: Refit, *, places: int, lengths: list[int], seed: int = 0) -> Predicted:
    """A full engine: all requests are there from the start, ``places`` run at a time."""
    options = SimulatedOptions(
        time_t0_s=of.t0_s,
        time_decode_s=of.t1_s,
        time_prefill_s=of.prompt_s / PROMPT_TOKENS,
        energy_e0_joules=of.e0_joules,
        energy_decode_joules=of.e1_joules,
        energy_prefill_joules=of.e1_joules / PROMPT_TOKENS,  # it makes the first token
        energy_context_joules=0.0,
        kv_tokens=10**9,
        max_sequences=places,
        prefix_caching=False,
    )
    engine = ClosedFormEngine(options)
    prompts = np.random.default_rng(seed).exponential(PROMPT_TOKENS, size=len(lengths))
    jobs = [
        Job(number=number, attempt_id=str(number), prompt_tokens=max(round(prompt), 1), target_tokens=length)
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]
    for job in jobs:
        engine.submit(job, 0.0)
    return _steady(engine, jobs, places=places)


def _steady(engine: ClosedFormEngine, jobs: list[Job], *, places: int) -> Predicted:
    begun: tuple[float, float, int] | None = None
    end = (0.0, 0.0, 0)
    step_s, weights = list[float](), list[int]()
    num_started = num_ended = 0
    while engine.ends_s < NEVER_S and num_ended < len(jobs) - places:
        num_running, num_steps, busy_s = engine.num_running, engine.num_steps, engine.busy_s
        now_s = engine.ends_s
        done = engine.finish()
        num_started, num_ended = num_started + len(done.started), num_ended + len(done.ended)
        if begun is not None:
            steps = engine.num_steps - num_steps
            step_s.append((engine.busy_s - busy_s) / steps)
            weights.append(steps * num_running)
        end = (now_s, engine.joules, sum(engine.output_tokens(job, now_s) for job in jobs) if begun is None else 0)
        if begun is None and num_started >= places:
            begun = end
    assert begun is not None, "too few requests for a steady window"
    tokens = sum(engine.output_tokens(job, end[0]) for job in jobs) - begun[2]
    order = np.argsort(step_s)
    shares = np.cumsum(np.array(weights)[order])
    middle = order[int(np.searchsorted(shares, shares[-1] / 2))]
    return Predicted(
        joules_per_token=(end[1] - begun[1]) / tokens,
        itl_p50_s=step_s[middle],
        tokens_per_s=tokens / (end[0] - begun[0]),
    )


def measure(folder: Path, *, seed: int = 0) -> dict[str, object]:
    """Every point of both models, measured and predicted, and the errors of those held out."""
    models: dict[str, object] = {}
    held: dict[str, list[tuple[float, float, float]]] = {"formula": [], "simulator": []}
    for (model, num_gpus), left_out in HELD_OUT.items():
        runs = runs_of(folder, model, num_gpus)
        of = refit([run for run in runs if run.max_num_seqs not in left_out])
        points = []
        for run in runs:
            places = round(run.sequences)  # the largest runs were bounded by KV room
            count = ROUNDS * places
            lengths = lengths_of(folder, model, mean_tokens=run.output_tokens, count=count, seed=seed)
            is_held_out = run.max_num_seqs in left_out
            point: dict[str, object] = {
                "max_num_seqs": run.max_num_seqs,
                "is_held_out": is_held_out,
                "measured": _told(run),
            }
            simulated = by_simulator(of, places=places, lengths=lengths, seed=seed)
            for name, predicted in (("formula", by_formula(of, run)), ("simulator", simulated)):
                errors = _errors(predicted, run)
                point[name] = _told(predicted)
                point[f"{name}_error_ratios"] = dict(zip(("joules", "itl_p50", "throughput"), errors, strict=True))
                if is_held_out:
                    held[name].append(errors)
            points.append(point)
        models[f"{model}, {num_gpus} × {GPU}"] = {
            "refit": {name: getattr(of, name) for name in Refit.__slots__},
            "points": points,
        }
    return {
        "seed": seed,
        "held_out": {name: _summary(errors) for name, errors in held.items()},
        "bounds": {"joules_mape_ratio": JOULES_BOUND, "itl_p50_error_ratio": ITL_BOUND},
        "models": models,
    }


def _summary(errors: list[tuple[float, float, float]]) -> dict[str, float]:
    sizes = np.abs(np.array(errors))
    return {
        "joules_mape_ratio": round(float(sizes[:, 0].mean()), 4),
        "joules_worst_ratio": round(float(sizes[:, 0].max()), 4),
        "itl_p50_mape_ratio": round(float(sizes[:, 1].mean()), 4),
        "itl_p50_worst_ratio": round(float(sizes[:, 1].max()), 4),
        "throughput_worst_ratio": round(float(sizes[:, 2].max()), 4),
    }


def _errors(predicted: Predicted, run: Run) -> tuple[float, float, float]:
    return (
        round(predicted.joules_per_token / run.joules_per_token - 1, 4),
        round(predicted.itl_p50_s / run.itl_p50_s - 1, 4),
        round(predicted.tokens_per_s / run.tokens_per_s - 1, 4),
    )


def _told(of: Run | Predicted) -> dict[str, float]:
    return {
        "joules_per_token": round(of.joules_per_token, 5),
        "itl_p50_ms": round(of.itl_p50_s * 1e3, 3),
        "tokens_per_s": round(of.tokens_per_s, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(os.environ.get("JOULEWAY_ENERGY_DATA", "../shared/data/energy"))
    parser.add_argument("--folder", type=Path, default=default, help="where the ML.ENERGY runs and lengths lie")
    parser.add_argument("--seeds", type=int, default=5, help="of lengths; the points of the first are written whole")
    given = parser.parse_args()
    runs = [measure(given.folder, seed=seed) for seed in range(given.seeds)]
    values = {**runs[0], "held_out_by_seed": [run["held_out"] for run in runs]}
    path = record(
        "refit",
        values,
        what=(
            "The closed-form simulator and its formulas against points of the ML.ENERGY Benchmark (v3, chat, H100) that"
            " were held out of the fit by max_num_seqs: 64, 256 (8B) and 128, 512 (70B). Predictions are simulated."
        ),
    )
    print(json.dumps(values["held_out_by_seed"], indent=2))
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
