"""Measures attribution against brute-force Shapley of a hidden true energy function that is not the fitted one.

Called by people (``python benchmarks/attribution_truth.py --json``) and, in short, by ``tests/simulation``. It must
never tell the model under test a coefficient, nor what kind of device it is: the model sees step records and a
quantised counter, nothing else.

A small continuous-batching engine (chunked prefill, changing load) runs on a hidden device: affine or curved cost with
a context term, a quadratic attention term and noise, each coefficient drawn from ± 30 % by seed. After a stretch of
learning, mixed steps of 8-12 sequences with a chunk of 128 tokens or more are charged to one payer per sequence and
step, through ``Attribution``, and compared with the exact Shapley value of the hidden cost of that step. Simulated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import record
from workers.attribution import Attribution, WindowSplit
from workers.engine_model import EngineModel
from workers.shapley import exact_shapley
from workers.steps import StepRecord

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SPREAD_RATIO = 0.3
WINDOW_S = 5.0
MIN_PLAYERS, MAX_PLAYERS = 8, 12
MIN_CHUNK_TOKENS = 128
MEDIAN_BOUND, P95_BOUND = 0.05, 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Hidden truth: E = e0 + pivot·(W/pivot)^exponent + saturating part, W_i with context and p·(c + p/2) terms.

    Source of the centres: ML.ENERGY v3 step fits (chat, H100): Llama-3.1-8B; Qwen3-30B-A3B; Llama-4-Scout. The
    prefill weight is a third of a decode's, as in ``simulation_constants.csv``; context and attention are assumptions.
    """

    e0_joules: float
    decode_joules: float
    prefill_joules: float
    context_joules: float
    attention_joules: float
    exponent: float
    pivot_joules: float
    experts_joules: float = 0.0
    """Saturating part: experts_joules · (1 − exp(−tokens / experts_tokens)): weights streamed as experts are hit."""
    experts_tokens: float = 1.0
    time_base_s: float = 6.7e-3
    time_decode_s: float = 8.95e-5
    time_prefill_s: float = 3.25e-5
    time_context_s: float = 2e-8
    idle_watts: float = 119.0
    noise_ratio: float = 0.02

    def drawn(self, rng: np.random.Generator, spread_ratio: float = SPREAD_RATIO) -> Device:
        """The device of one seed: every coefficient from 1 ± ``spread_ratio``, the exponent within ± 0.05."""
        factor = dict(
            zip(COEFFICIENTS, rng.uniform(1 - spread_ratio, 1 + spread_ratio, len(COEFFICIENTS)), strict=True)
        )
        values = {name: getattr(self, name) * factor[name] for name in COEFFICIENTS}
        exponent = min(max(self.exponent + rng.uniform(-0.05, 0.05), 0.3), 1.0)
        fixed = {name: getattr(self, name) for name in ("pivot_joules", "experts_tokens", "noise_ratio")}
        return Device(exponent=exponent, **values, **fixed)

    def weights(self, prefill: Ints, decode: Ints, context: Ints) -> Floats:
        """W of each sequence, joules."""
        linear = self.prefill_joules * prefill + self.decode_joules * decode + self.context_joules * context
        return np.asarray(linear + self.attention_joules * prefill * (context + prefill / 2))

    def joules(self, weights: Floats, tokens: Floats) -> Floats:
        """E of steps whose weights and tokens sum to these, without noise."""
        bend = self.pivot_joules * (weights / self.pivot_joules) ** self.exponent
        experts = self.experts_joules * -np.expm1(-tokens / self.experts_tokens)
        return np.asarray(self.e0_joules + bend + experts)

    def seconds(self, prefill: Ints, decode: Ints, context: Ints) -> float:
        """Duration of a step."""
        sums = float(prefill.sum()), float(decode.sum()), float(context.sum())
        return self.time_base_s + float(np.dot((self.time_prefill_s, self.time_decode_s, self.time_context_s), sums))

    def shapley(self, prefill: Ints, decode: Ints, context: Ints) -> Floats:
        """Exact Shapley value of every sequence, by all subsets, without noise."""
        members = np.arange(2 ** len(prefill))[:, None] >> np.arange(len(prefill)) & 1
        costs = self.joules(members @ self.weights(prefill, decode, context), members @ (prefill + decode))
        costs[0] = 0.0
        return exact_shapley(costs)


COEFFICIENTS = (
    "e0_joules", "decode_joules", "prefill_joules", "context_joules", "attention_joules", "experts_joules",
    "time_base_s", "time_decode_s", "time_prefill_s", "time_context_s", "idle_watts",
)  # fmt: skip

DEVICES = {
    "dense": Device(
        e0_joules=3.16, decode_joules=0.0665, prefill_joules=0.0216, context_joules=2e-5, attention_joules=1e-7,
        exponent=0.98, pivot_joules=4.0,
    ),
    "moe-30b-a3b": Device(
        e0_joules=0.5, decode_joules=0.232, prefill_joules=0.0753, context_joules=7e-5, attention_joules=3e-7,
        exponent=0.5, pivot_joules=13.9, time_base_s=4e-3, time_decode_s=2.5e-4, time_prefill_s=3e-5,
    ),
    "moe-scout": Device(
        e0_joules=15.1, decode_joules=0.82, prefill_joules=0.27, context_joules=2e-4, attention_joules=1e-6,
        exponent=0.5, pivot_joules=49.0, time_base_s=24e-3, time_decode_s=3e-4, time_prefill_s=5e-5, idle_watts=476.0,
    ),
    "moe-experts": Device(
        e0_joules=3.0, decode_joules=0.06, prefill_joules=0.02, context_joules=2e-5, attention_joules=1e-7,
        exponent=1.0, pivot_joules=1.0, experts_joules=14.0, experts_tokens=24.0, time_base_s=5e-3,
    ),
}  # fmt: skip
"""moe-experts is outside the fitted family: an affine part plus experts that saturate with the tokens of a step."""

GATED = ("dense", "moe-30b-a3b", "moe-scout")


@dataclass(slots=True)
class Sequence:
    name: str
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int = 0
    generated_tokens: int = 0


@dataclass(slots=True)
class SmallEngine:
    """Continuous batching with chunked prefill: decodes first, then prompt chunks up to the token budget."""

    rng: np.random.Generator
    max_sequences: int = 48
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    num_arrived: int = 0

    def arrive(self) -> None:
        """One request: log-normal prompt and output lengths, some long."""
        prompt = int(np.clip(self.rng.lognormal(6.0, 0.9), 8, 8_000))
        output = int(np.clip(self.rng.lognormal(4.6, 0.8), 2, 800))
        self.waiting.append(Sequence(f"r{self.num_arrived}", prompt, output))
        self.num_arrived += 1

    def plan(self, budget_tokens: int) -> list[tuple[Sequence, int, int, int]]:
        """Rows of the next step: (sequence, prefill, decode, context) tokens."""
        while self.waiting and len(self.running) < self.max_sequences:
            self.running.append(self.waiting.pop(0))
        rows = []
        for sequence in self.running:
            left = sequence.prompt_tokens - sequence.computed_tokens
            if left <= 0:
                rows.append((sequence, 0, 1, sequence.computed_tokens))
            elif budget_tokens > 0:
                chunk = min(left, budget_tokens)
                budget_tokens -= chunk
                rows.append((sequence, chunk, 0, sequence.computed_tokens))
        return rows

    def done(self, rows: list[tuple[Sequence, int, int, int]]) -> None:
        """The step ran."""
        for sequence, prefill, decode, _ in rows:
            sequence.computed_tokens += prefill + decode
            sequence.generated_tokens += sequence.computed_tokens >= sequence.prompt_tokens
        self.running = [each for each in self.running if each.generated_tokens < each.output_tokens]


@dataclass(slots=True)
class Counter:
    """Integrates energy; shows it only as of its last tick, every ``refresh_s`` (20-100 ms, drawn)."""

    refresh_s: float
    idle_watts: float
    times_s: list[float] = field(default_factory=lambda: [0.0])
    joules: list[float] = field(default_factory=lambda: [0.0])

    def add(self, until_s: float, joules: float) -> None:
        """``joules`` are drawn evenly up to ``until_s``."""
        self.times_s.append(until_s)
        self.joules.append(self.joules[-1] + joules)

    def read_mj(self, at_s: float) -> int:
        """What is shown at ``at_s``."""
        tick_s = np.floor(at_s / self.refresh_s) * self.refresh_s
        return int(float(np.interp(tick_s, self.times_s, self.joules)) * 1000)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RanStep:
    """A step and its hidden cost."""

    record: StepRecord
    noise: float
    joules: float

    @property
    def is_mixed(self) -> bool:
        """A mixed step as judged: 8-12 sequences, a chunk of at least 128 tokens, and a decode."""
        is_sized = MIN_PLAYERS <= len(self.record.payers) <= MAX_PLAYERS
        return (
            is_sized
            and int(self.record.prefill_tokens.max()) >= MIN_CHUNK_TOKENS
            and int(self.record.decode_tokens.max()) > 0
        )


def steps(device: Device, rng: np.random.Generator, counter: Counter, until_s: float) -> Iterator[RanStep]:
    """Runs the engine under a load that changes every few seconds; drives the counter."""
    engine = SmallEngine(rng)
    now_s, next_arrival_s, next_change_s, rate, limit = 0.0, 0.0, 0.0, 1.0, 12
    number = 0
    while now_s < until_s:
        if now_s >= next_change_s:
            next_change_s = now_s + rng.uniform(2.0, 12.0)
            rate = float(rng.choice((0.3, 1.5, 4.0, 8.0, 16.0)))
            limit = int(rng.choice((4, 10, 12, 12, 24, 48)))
            budget = int(rng.choice((256, 512, 1024, 2048)))
            engine.max_sequences = limit
        while next_arrival_s <= now_s:
            engine.arrive()
            next_arrival_s += rng.exponential(1 / rate)
            engine.waiting = engine.waiting[: 4 * limit]
        rows = engine.plan(budget)
        if not rows:
            gap_s = min(max(next_arrival_s, now_s + 1e-4), next_change_s + 1e-4) - now_s
            now_s += gap_s
            counter.add(now_s, device.idle_watts * gap_s)
            continue
        prefill, decode, context = (np.array([row[column] for row in rows], dtype=np.int64) for column in (1, 2, 3))
        duration_s = device.seconds(prefill, decode, context) * (1 + 0.02 * abs(rng.normal()))
        noise = 1 + device.noise_ratio * rng.normal()
        weights = device.weights(prefill, decode, context)
        joules = noise * float(
            device.joules(weights.sum(keepdims=True), np.array([float((prefill + decode).sum())]))[0]
        )
        record = StepRecord(
            step=number, started_s=now_s, ended_s=now_s + duration_s, payers=tuple(row[0].name for row in rows),
            prefill_tokens=prefill, decode_tokens=decode, context_tokens=context,
            recomputed_tokens=np.zeros(len(rows), dtype=np.int64),
        )  # fmt: skip
        engine.done(rows)
        number += 1
        now_s += duration_s
        counter.add(now_s, joules)
        host_s = 1e-4 * rng.uniform(1, 4)  # the host between two steps
        now_s += host_s
        counter.add(now_s, device.idle_watts * host_s)
        yield RanStep(record=record, noise=noise, joules=joules)


@dataclass(slots=True)
class Errors:
    """Relative errors per request and mixed step, by method."""

    by_method: dict[str, list[float]] = field(default_factory=dict)
    num_steps: int = 0
    predicted_mj: int = 0
    busy_mj: int = 0
    """Predicted and measured step energy of all windows after learning."""

    def add(self, method: str, charged: Floats, true: Floats) -> None:
        self.by_method.setdefault(method, []).extend((np.abs(charged - true) / true).tolist())

    def figures(self, method: str) -> dict[str, float | bool]:
        """Median, p95 and worst error, and whether they pass the gate."""
        errors = np.array(self.by_method[method])
        median, p95 = float(np.median(errors)), float(np.percentile(errors, 95))
        return {
            "median_error": round(median, 4),
            "p95_error": round(p95, 4),
            "max_error": round(float(errors.max()), 4),
            "passes": median <= MEDIAN_BOUND and p95 <= P95_BOUND,
        }


def run(
    device: Device, *, seed: int, learn_windows: int = 60, num_judged: int = 200,
) -> Errors:  # fmt: skip
    """One seed: learns from windows, then judges at least ``num_judged`` mixed steps."""
    rng = np.random.default_rng(seed)
    hidden = device.drawn(rng)
    counter = Counter(refresh_s=float(rng.uniform(0.02, 0.1)), idle_watts=hidden.idle_watts)
    methods = {
        policy: Attribution(model=EngineModel(), num_gpus=1, policy=policy)
        for policy in ("shapley", "tokens", "solo-capped")
    }
    found = Errors()
    judged: list[RanStep] = []
    edge_s, edge_mj, num_windows = WINDOW_S, 0, 0
    for step in steps(hidden, rng, counter, until_s=WINDOW_S * (learn_windows + 2_000)):
        while step.record.started_s >= edge_s:
            meter_mj = counter.read_mj(edge_s) - edge_mj
            edge_mj += meter_mj
            for method, attribution in methods.items():
                split = attribution.close_window(started_s=edge_s - WINDOW_S, ended_s=edge_s, meter_mj=meter_mj)
                if method == "shapley" and num_windows >= learn_windows:
                    found.predicted_mj += split.predicted_mj
                    found.busy_mj += meter_mj - split.idle_mj
                _judge(found, method, split, judged, hidden)
            _judge_equal(found, judged, hidden)
            found.num_steps += len(judged)
            judged = []
            num_windows += 1
            edge_s += WINDOW_S
        if found.num_steps >= num_judged:
            return found
        record = step.record
        if num_windows >= learn_windows and step.is_mixed and record.ended_s < edge_s and len(judged) < 16:
            record = _alone(record)
            judged.append(RanStep(record=record, noise=step.noise, joules=step.joules))
        for attribution in methods.values():
            attribution.add_step(record)
    return found


def _alone(record: StepRecord) -> StepRecord:
    """The same step with a payer per sequence *and step*, so that its charges can be read one by one."""
    return StepRecord(
        step=record.step, started_s=record.started_s, ended_s=record.ended_s,
        payers=tuple(f"{payer}/{record.step}" for payer in record.payers),
        prefill_tokens=record.prefill_tokens, decode_tokens=record.decode_tokens,
        context_tokens=record.context_tokens, recomputed_tokens=record.recomputed_tokens,
    )  # fmt: skip


def _true(step: RanStep, hidden: Device) -> Floats:
    record = step.record
    return step.noise * hidden.shapley(record.prefill_tokens, record.decode_tokens, record.context_tokens)


def _judge(found: Errors, method: str, split: WindowSplit, judged: list[RanStep], hidden: Device) -> None:
    for step in judged:
        charged = np.array([split.shares[str(payer)][0] / 1000 for payer in step.record.payers])
        found.add(method, charged, _true(step, hidden))


def _judge_equal(found: Errors, judged: list[RanStep], hidden: Device) -> None:
    """Equal split of what the step truly cost: not even a perfect meter saves it."""
    for step in judged:
        true = _true(step, hidden)
        found.add("equal", np.full(len(true), step.joules / len(true)), true)


def measure(names: tuple[str, ...], seeds: range, *, learn_windows: int, num_judged: int) -> dict[str, dict[str, Any]]:
    """Figures of every device over all seeds."""
    result: dict[str, dict[str, Any]] = {}
    for name in names:
        pooled = Errors()
        by_seed = []
        for seed in seeds:
            found = run(DEVICES[name], seed=seed, learn_windows=learn_windows, num_judged=num_judged)
            for method, errors in found.by_method.items():
                pooled.by_method.setdefault(method, []).extend(errors)
            pooled.num_steps += found.num_steps
            by_seed.append(
                {
                    "seed": seed,
                    "num_steps": found.num_steps,
                    **found.figures("shapley"),
                    "predicted_over_measured": round(found.predicted_mj / found.busy_mj, 4),
                }
            )
        result[name] = {
            "num_steps": pooled.num_steps,
            **{method: pooled.figures(method) for method in ("shapley", "tokens", "equal", "solo-capped")},
            "shapley_by_seed": by_seed,
        }
    return result


def main(arguments: list[str] | None = None) -> int:
    """Prints the figures; exit code 1 when a gate that is claimed does not hold."""
    parser = argparse.ArgumentParser(description="Attribution against brute-force Shapley of a hidden function.")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/attribution_truth.json")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="mixed steps judged per seed")
    parser.add_argument("--learn-windows", type=int, default=60)
    parser.add_argument("--device", choices=sorted(DEVICES), action="append")
    given = parser.parse_args(arguments)
    names = tuple(given.device or DEVICES)
    values = measure(names, range(given.seeds), learn_windows=given.learn_windows, num_judged=given.steps)
    print(json.dumps(values, indent=None if given.json else 2))
    if given.record:
        record(
            "attribution_truth",
            {"bounds": {"median_error": MEDIAN_BOUND, "p95_error": P95_BOUND}, "gated": GATED, **values},
            what="Simulated: error per request and mixed step against brute-force Shapley of a hidden cost function "
            "(context, attention, curvature, noise; coefficients ± 30 % by seed), fitted online from 5 s windows of a "
            "counter quantised at 20-100 ms. moe-experts lies outside the fitted family and is not gated.",
        )
    return 0 if all(holds(values[name]) for name in names if name in GATED) else 1


def holds(figures: Mapping[str, Any]) -> bool:
    """The claim of one device: Shapley passes the gate, token share and equal split fail it."""
    return figures["shapley"]["passes"] and not figures["tokens"]["passes"] and not figures["equal"]["passes"]


if __name__ == "__main__":
    sys.exit(main())
