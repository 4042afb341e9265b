"""How much energy, GPU-time and carbon a request may take at most, with 99 % confidence: what its budgets hold.

Called by ``scheduler.core.scheduler``. Joules depend on strangers in the batch, so no bound is
sure; what exceeds it is the operator's (design §6). It must never know a budget.

Alone on the most expensive worker of its model a request would take

    prompt · e_prefill + steps · (e0 + e_decode · sequences + e_context · context)

by the worker's own curves, and the same with its time curve for GPU-time. In a batch it takes a share of that. The
learned part is the 99th percentile of measured over alone; until enough was measured it counts as 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from scheduler.core.cluster import WorkerView
from scheduler.core.request import Request

QUANTILE_RATIO = 0.99
MIN_SAMPLES = 200
HALF_LIFE_SAMPLES = 2_000
BUCKET_RATIO = 1.1
LEAST_RATIO = 2.0**-10
NUM_BUCKETS = 160
"""Buckets of measured / alone, each 1.1 × the one before: from a thousandth to about 4,000."""

MAX_COEFFICIENT = 1e6
"""Joules or seconds: no engine needs so much for a step or a token."""


class EnergyBound(NamedTuple):
    """Integer mJ, GPU-µs and µg CO₂e."""

    energy_mj: int = 0
    gpu_us: int = 0
    carbon_ug: int = 0


class RatioQuantile:
    """A running high quantile of ratios; forgets slowly, costs the same for ever."""

    def __init__(self) -> None:
        self._weights = [0.0] * NUM_BUCKETS
        self._num_samples = 0
        self.ratio = 1.0

    def add(self, ratio: float) -> None:
        """One more measured ratio; the quantile is looked up anew every 20th time."""
        bucket = math.ceil(math.log(max(ratio, LEAST_RATIO) / LEAST_RATIO, BUCKET_RATIO) - 1e-9)
        self._weights[min(bucket, NUM_BUCKETS - 1)] += 1.0
        self._num_samples += 1
        if self._num_samples % HALF_LIFE_SAMPLES == 0:
            self._weights = [weight / 2 for weight in self._weights]
        if self._num_samples >= MIN_SAMPLES and self._num_samples % 20 == 0:
            self.ratio = self._upper_edge()

    def _upper_edge(self) -> float:
        wanted, seen = QUANTILE_RATIO * sum(self._weights), 0.0
        for bucket, weight in enumerate(self._weights):
            seen += weight
            if seen >= wanted:
                return LEAST_RATIO * BUCKET_RATIO**bucket
        return LEAST_RATIO * BUCKET_RATIO ** (NUM_BUCKETS - 1)


NOTHING_MEASURED = RatioQuantile(), RatioQuantile()


class _Alone(NamedTuple):
    """Per prompt token, per step, per sequence and step, per token of context and step: (mJ, GPU-µs) each."""

    prefill: tuple[float, float]
    step: tuple[float, float]
    decode: tuple[float, float]
    context: tuple[float, float]

    def of(self, *, prompt_tokens: int, output_tokens: int, num_sequences: int) -> tuple[float, float]:
        """Alone on the worker; ``output_tokens`` of each sequence."""
        context_tokens, steps = num_sequences * (prompt_tokens + output_tokens / 2), max(output_tokens, 1)
        prefill, step, decode, context = self
        return (
            prompt_tokens * prefill[0] + steps * (step[0] + num_sequences * decode[0] + context_tokens * context[0]),
            prompt_tokens * prefill[1] + steps * (step[1] + num_sequences * decode[1] + context_tokens * context[1]),
        )


def _alone_on(view: WorkerView) -> _Alone | None:
    """None where it reported no curves, or such as no engine has: one NaN would stop every admission."""
    if view.curves is None:
        return None
    energy, time_s, gpus = view.curves.energy_joules, view.curves.time_s, view.num_gpus
    if not all(0.0 <= coefficient <= MAX_COEFFICIENT for coefficient in (*energy, *time_s)):
        return None
    pairs = [(1e3 * joules, 1e6 * seconds * gpus) for joules, seconds in zip(energy, time_s, strict=True)]
    return _Alone(step=pairs[0], prefill=pairs[1], decode=pairs[2], context=pairs[3])


class EnergyBounds:
    """Learns from workers' curves and from what was measured. One per core."""

    def __init__(self, *, carbon_ug_per_mj: Mapping[str, float] | None = None) -> None:
        """``carbon_ug_per_mj`` by zone; a zone that is not named has 0. (1 gCO₂e/kWh = 1/3600 µg/mJ.)"""
        self.reload(carbon_ug_per_mj or {})
        self._views: dict[str, WorkerView] = {}
        self._worst: dict[str, _Alone | None] = {}
        self._ratios: dict[str, tuple[RatioQuantile, RatioQuantile]] = {}

    def reload(self, carbon_ug_per_mj: Mapping[str, float]) -> None:
        """Other carbon intensities from now on."""
        self._carbon_ug_per_mj = dict(carbon_ug_per_mj)
        self._most_ug_per_mj = max(self._carbon_ug_per_mj.values(), default=0.0)

    def hear(self, view: WorkerView) -> None:
        """A worker's curves, whenever it reports them."""
        known = self._views.get(view.worker_id)
        self._views[view.worker_id] = view
        if known is None or known.curves != view.curves or known.models != view.models:
            self._worst.clear()

    def forget(self, worker_id: str) -> None:
        """The worker is gone."""
        if self._views.pop(worker_id, None) is not None:
            self._worst.clear()

    def bound(self, request: Request, *, prompt_tokens: int, output_tokens: int) -> EnergyBound:
        """What it takes at most; ``output_tokens`` of each sequence. All 0 while no worker's curves are known."""
        worst = self._worst_of(request.model)
        if worst is None:
            return EnergyBound()
        alone = worst.of(prompt_tokens=prompt_tokens, output_tokens=output_tokens, num_sequences=request.num_sequences)
        energy_ratio, gpu_ratio = self._ratios.get(request.model, NOTHING_MEASURED)
        energy_mj = math.ceil(alone[0] * energy_ratio.ratio)
        return EnergyBound(
            energy_mj, math.ceil(alone[1] * gpu_ratio.ratio), math.ceil(energy_mj * self._most_ug_per_mj)
        )

    def observe(self, request: Request, *, prompt_tokens: int, output_tokens: int, energy_mj: int, gpu_us: int) -> None:
        """What an attempt really took; ``output_tokens`` of all its sequences."""
        worst = self._worst_of(request.model)
        if worst is None or not prompt_tokens:
            return
        alone = worst.of(
            prompt_tokens=prompt_tokens,
            output_tokens=-(-output_tokens // request.num_sequences),
            num_sequences=request.num_sequences,
        )
        ratios = self._ratios.setdefault(request.model, (RatioQuantile(), RatioQuantile()))
        for ratio, took, cost in zip(ratios, (energy_mj, gpu_us), alone, strict=True):
            if cost > 0:
                ratio.add(took / cost)

    def carbon_ug(self, zone: str, energy_mj: int) -> int:
        """Carbon of energy used in a zone."""
        return math.ceil(energy_mj * self._carbon_ug_per_mj.get(zone, 0.0))

    def _worst_of(self, model: str) -> _Alone | None:
        """The most expensive worker of a model, term by term."""
        if model not in self._worst:
            costs = [_alone_on(view) for view in self._views.values() if model in view.models]
            known = [cost for cost in costs if cost is not None]
            self._worst[model] = (
                _Alone(*((max(c[0] for c in term), max(c[1] for c in term)) for term in zip(*known, strict=True)))
                if known
                else None
            )
        return self._worst[model]
