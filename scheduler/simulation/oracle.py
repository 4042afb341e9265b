"""The fewest engines that could do, with the future known: a bound on joules that no policy can be expected to reach.

Called by the commands and benchmarks. It must never know a router or a policy: it is none, nothing is placed here.

Time is cut into slots of 10 s; the work of a request belongs to the slot that it arrives in. In a slot with P prompt
tokens that no cache could have had and D output tokens after the first ones, each engine steps without a pause and as
rarely as the objective lets it, once in T = ``tpot_s``, since a sequence gets one token a step. Of a second of an
engine of kind k, ``1 − t0 / T`` is left for tokens; so n_k engine-seconds of each kind take, beyond parked watts,

    Σ n_k · (e0 / T − parked) + e1 · D_k + e_prefill · P_k    where    n_k · (1 − t0 / T) = t1 · D_k + t_prefill · P_k

joules, and the bound is the least of that over all ways to divide P and D among the kinds, no kind beyond its engines.
Where less than one engine would do, one is loaded all the same; it steps without a pause while anybody is there, who
stays at least as long as an empty engine would take.

Engines are counted in parts, a third of an engine is one for a third of the slot; waking takes nothing; every token
offered counts as good; neither KV room nor places are short; work beyond all engines moves into the next slot. Whole
engines would be no bound: a policy may let a wave pass within its objective that they could not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.request import Slo
from scheduler.simulation.fleet import FleetWorker
from scheduler.simulation.power import Draw
from scheduler.simulation.replay import pooled_cached_tokens
from scheduler.simulation.traces import Arrival
from workers.engines.simulated_options import SimulatedOptions

SLOT_S = 10.0
Floats = NDArray[np.float64]


class NoEngineMeets(ValueError):
    """The objective asks for tokens faster than the emptiest step of any engine; the words say by how much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Of one run's arrivals."""

    joules: float
    good_tokens: int
    """All that were offered."""
    loaded_gpu_s: float | None
    """None where engines are unlike: the least joules are known, not who takes them."""
    span_s: float

    @property
    def joules_per_good_token(self) -> float:
        return self.joules / self.good_tokens if self.good_tokens else math.inf


class _Kind(NamedTuple):
    """Engines that are alike; seconds and joules of the curve's parts."""

    options: SimulatedOptions
    draw: Draw
    num_gpus: int

    def left_ratio(self, tpot_s: float) -> float:
        """Of its time, for tokens."""
        return 1.0 - self.options.time_t0_s / tpot_s

    def work_s(self, prompt: Floats | float, output: Floats | float) -> Any:
        return self.options.time_prefill_s * prompt + self.options.time_decode_s * output

    def token_joules(self, prompt: float, output: float) -> float:
        return self.options.energy_prefill_joules * prompt + self.options.energy_decode_joules * output

    def costs(self, tpot_s: float) -> tuple[float, float]:
        """Joules of a prompt and of an output token beyond parked watts, its share of the steps included."""
        beyond = self.options.energy_e0_joules / tpot_s - self.draw.parked_watts
        per_s = beyond / self.left_ratio(tpot_s)
        of = self.options
        return (
            of.energy_prefill_joules + of.time_prefill_s * per_s,
            of.energy_decode_joules + of.time_decode_s * per_s,
        )

    def alone_joules(self, prompt: float, output: float, present_s: float) -> float:
        """One such engine with all the work of a slot, beyond parked watts; somebody is there for ``present_s``."""
        num_steps = max(present_s - self.work_s(prompt, output), 0.0) / self.options.time_t0_s
        steps = num_steps * self.options.energy_e0_joules + self.token_joules(prompt, output)
        return float(steps + (SLOT_S - present_s) * self.draw.idle_watts - SLOT_S * self.draw.parked_watts)


def check(workers: Sequence[FleetWorker], slo: Slo) -> None:
    """Raises: NoEngineMeets where a model has no engine fast enough for the objective."""
    for model in dict.fromkeys(worker.model for worker in workers):
        mine = [worker for worker in workers if worker.model == model]
        fastest = min(mine, key=lambda worker: _emptiest_step_s(worker.options))
        step_s = _emptiest_step_s(fastest.options)
        if step_s > slo.tpot_s:
            raise NoEngineMeets(
                f"no engine of {model} makes a token in {1e3 * slo.tpot_s:g} ms: the fastest ({fastest.worker_id})"
                f" takes {1e3 * step_s:.2f} ms for one sequence alone, {1e3 * (step_s - slo.tpot_s):.2f} ms more"
            )


def _emptiest_step_s(options: SimulatedOptions) -> float:
    return options.time_t0_s + options.time_decode_s


def bound(workers: Sequence[FleetWorker], arrivals: Sequence[Arrival], slo: Slo, *, block_tokens: int = 512) -> Bound:
    """What all models together take at least, until the last arrival. ``block_tokens``: of the prompts' blocks.

    Raises: NoEngineMeets.
    """
    check(workers, slo)
    span_s = max([0.0, *[arrival.arrival_s for arrival in arrivals]])
    joules, loaded_gpu_s = span_s * sum(worker.draw.parked_watts for worker in workers), 0.0
    for model in dict.fromkeys(worker.model for worker in workers):
        mine = [worker for worker in workers if worker.model == model]
        kinds = Counter(_Kind(worker.options, worker.draw, worker.num_gpus) for worker in mine)
        usable = {kind: num for kind, num in kinds.items() if _emptiest_step_s(kind.options) <= slo.tpot_s}
        offered = _offered([arrival for arrival in arrivals if arrival.model == model], usable, block_tokens)
        slots = _levelled(usable, offered, slo.tpot_s)
        joules += float(_least_joules(usable, slots, slo.tpot_s).sum())
        loaded_gpu_s += _loaded_gpu_s(usable, slots, slo.tpot_s)
    return Bound(
        joules=joules,
        good_tokens=sum(arrival.output_tokens for arrival in arrivals),
        loaded_gpu_s=None if math.isnan(loaded_gpu_s) else loaded_gpu_s,
        span_s=span_s,
    )


def _loaded_gpu_s(kinds: dict[_Kind, int], slots: Floats, tpot_s: float) -> float:
    """Not a number where kinds are unlike."""
    if len(kinds) > 1:
        return math.nan
    (kind,) = kinds
    engine_s = kind.work_s(slots[:, 0], slots[:, 1]) / kind.left_ratio(tpot_s)
    return kind.num_gpus * float(np.maximum(engine_s, np.where(slots[:, 2] > 0, SLOT_S, 0.0)).sum())


def _offered(arrivals: Sequence[Arrival], kinds: Iterable[_Kind], block_tokens: int) -> Floats:
    """Prompt and output tokens to be computed and seconds in which somebody is there, shape (num_slots, 3); the last
    slot counts as full."""
    last_s = max([0.0, *[arrival.arrival_s for arrival in arrivals]])
    offered = np.zeros((math.floor(last_s / SLOT_S) + 1, 3))
    cached = pooled_cached_tokens(arrivals, kv_tokens=None, block_tokens=block_tokens)
    step_s = min(_emptiest_step_s(kind.options) for kind in kinds)
    covered_s = 0.0
    for arrival, hit_tokens in zip(arrivals, cached, strict=True):
        slot = int(arrival.arrival_s / SLOT_S)
        offered[slot, :2] += (arrival.prompt_tokens - hit_tokens, arrival.output_tokens - 1)
        from_s = max(arrival.arrival_s, covered_s)
        covered_s = max(covered_s, min(arrival.arrival_s + arrival.output_tokens * step_s, last_s))
        while from_s < covered_s:
            to_s = min(covered_s, (int(from_s / SLOT_S) + 1) * SLOT_S)
            offered[int(from_s / SLOT_S), 2] += to_s - from_s
            from_s = to_s
    return offered


def _levelled(kinds: dict[_Kind, int], offered: Floats, tpot_s: float) -> Floats:
    """The same where no slot has more work than all engines can do in it; its end may lie later."""
    slots, left = list[Floats](), np.zeros(2)
    for slot in offered:
        done_ratio, left = _share_done(kinds, left + slot[:2], tpot_s), left + slot[:2]
        slots.append(np.append(done_ratio * left, slot[2]))
        left = (1.0 - done_ratio) * left
    while left.sum() > 1e-6:
        done_ratio = _share_done(kinds, left, tpot_s)
        slots.append(np.append(done_ratio * left, 0.0))
        left = (1.0 - done_ratio) * left
    return np.array(slots)


def _share_done(kinds: dict[_Kind, int], work: Floats, tpot_s: float) -> float:
    """Of the work of a slot, where each kind gets of both sorts of tokens alike."""
    shares = (num * SLOT_S * kind.left_ratio(tpot_s) / max(kind.work_s(*work), 1e-12) for kind, num in kinds.items())
    return float(min(sum(shares), 1.0))


def _least_joules(kinds: dict[_Kind, int], slots: Floats, tpot_s: float) -> Floats:
    """Of each slot, beyond parked watts. Division among the kinds is a linear program; its dual has two unknowns, what
    a prompt and what an output token may cost, and its best corner is looked up: every corner is a bound."""
    corners = _corners([(kind, *kind.costs(tpot_s)) for kind in kinds])
    shadow = np.zeros(len(corners))
    for kind, num in kinds.items():
        prompt_cost, output_cost = kind.costs(tpot_s)
        over = (
            (corners[:, 0] - prompt_cost) / kind.options.time_prefill_s,
            (corners[:, 1] - output_cost) / kind.options.time_decode_s,
        )
        shadow += num * SLOT_S * kind.left_ratio(tpot_s) * np.maximum(np.maximum(*over), 0.0)
    divided = (slots[:, :2] @ corners.T - shadow).max(axis=1)
    alone = np.array([min(kind.alone_joules(*each) for kind in kinds) for each in slots])
    return np.where(slots[:, 2] > 0, np.maximum(divided, alone), divided)


def _corners(priced: Sequence[tuple[_Kind, float, float]]) -> Floats:
    """Where two of the lines cross at which the dual bends, shape (num_corners, 2)."""
    lines: list[tuple[float, float, float]] = []
    for kind, prompt_cost, output_cost in priced:
        prefill_s, decode_s = kind.options.time_prefill_s, kind.options.time_decode_s
        lines += [(1.0, 0.0, prompt_cost), (0.0, 1.0, output_cost)]
        lines.append((decode_s, -prefill_s, decode_s * prompt_cost - prefill_s * output_cost))
    found = []
    for (a, b, c), (d, e, f) in combinations(lines, 2):
        if abs(det := a * e - b * d) > 1e-15:
            found.append(((c * e - b * f) / det, (a * f - c * d) / det))
    return np.array(found)
