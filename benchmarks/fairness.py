"""The service gap and the shares of tenants that all have work waiting, against the bound of ``docs/scheduling.md``.

Called by people and tests (``python benchmarks/fairness.py``). The production core on two simulated H100 with an 8B.

heavy_prompts  32 k prompts against 500-token ones, equal weights
long_writers   the same limit declared by all; one writes 12 times as much as the others
weights        equal requests, weights 1 : 2 : 4

Every tenant has far more waiting than is served. Service is what engines computed, in catalogue GPU-seconds over the
weight, read every tenth of a second; a run ends when each tenant had a hundred bounds of it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record
from scheduler.core.admission import Limits
from scheduler.core.fairness import DEFAULT_WORK
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Band, Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.simulation.closed_form import Job
from scheduler.simulation.core_router import CoreRouter
from scheduler.simulation.fleet import Fleet
from scheduler.simulation.replay import fleet_of
from scheduler.simulation.traces import MODEL, Arrival
from workers.engines.simulated_options import SimulatedOptions

ENGINE = SimulatedOptions(max_sequences=8, max_model_len=65_536)
"""Few at once: the bound grows with what is in flight, and so does the time to serve a hundred of them."""
NUM_WORKERS = 2
NUM_BOUNDS = 100
MAX_SHARE_ERROR_RATIO = 0.02
SPREAD = (0.5, 1.5)
PILOT_GPU_S = 100.0
"""Of each tenant, in the run that finds out how large the bound is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """What one tenant asks for. Lengths are drawn evenly from half to one and a half of these."""

    prompt_tokens: int = 500
    output_tokens: int = 100
    limit_tokens: int = 400
    weight: float = 1.0


Case = dict[str, Tenant]

CASES: dict[str, Case] = {
    "heavy_prompts": {
        "heavy": Tenant(prompt_tokens=32_000, output_tokens=100),
        "light-0": Tenant(),
        "light-1": Tenant(),
        "light-2": Tenant(),
    },
    "long_writers": {
        "writer": Tenant(output_tokens=600, limit_tokens=1_000),
        "short-0": Tenant(output_tokens=50, limit_tokens=1_000),
        "short-1": Tenant(output_tokens=50, limit_tokens=1_000),
    },
    "weights": {"one": Tenant(), "two": Tenant(weight=2.0), "four": Tenant(weight=4.0)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of one run. Service is in catalogue GPU-seconds over weight."""

    bound_gpu_s: float
    """Largest over the pairs: 2 · (largest charge + the larger credit in flight of the two)."""
    num_bounds: float
    """Least service of a tenant over the bound."""
    worst_gap_gpu_s: float
    worst_gap_ratio: float
    """Over each pair's own bound."""
    worst_share_error_ratio: float
    shares: dict[str, float]
    num_requests: dict[str, int]
    virtual_s: float


class Done(Exception):
    """Some tenant has nothing waiting any more."""


class Watch(CoreRouter):
    """The production core; notes what each tenant is served while all of them wait."""

    def __init__(self, case: Case) -> None:
        limits = Limits(queue=QueueLimits(max_requests=10**7, max_total_requests=10**7), max_wait_s=1e9)
        rules = Rules(weights={tenant: each.weight for tenant, each in case.items()})
        super().__init__(Scheduler(models=(MODEL,), limits=limits, rules=rules), model=MODEL)
        self._case = case
        self._ended_gpu_s: dict[str, float] = dict.fromkeys(case, 0.0)
        self._first_gpu_s: dict[str, float] = {}
        """When all of them had been started once."""
        self._served_gpu_s: dict[str, float] = {}
        self._gaps: dict[tuple[str, str], tuple[float, float]] = {}
        self._largest_gpu_s = 0.0
        self._credit_gpu_s = dict.fromkeys(case, 0.0)
        self._num_ended: Counter[str] = Counter()
        self._virtual_s = 0.0

    def _request(self, number: int, arrival: Arrival) -> Request:
        request = super()._request(number, arrival)
        return dataclasses.replace(request, max_output_tokens=self._case[arrival.tenant].limit_tokens)

    def _tenant(self, job: Job) -> str:
        return self._fleet.arrivals[job.number].tenant

    def ended(self, job: Job, now_s: float) -> None:
        """Its service is counted at once: all of it was computed."""
        tenant = self._tenant(job)
        self._ended_gpu_s[tenant] += self._weighed(tenant, job.prompt_tokens, job.generated_tokens)
        self._num_ended[tenant] += 1
        super().ended(job, now_s)

    def tick(self, now_s: float) -> None:
        """Reads what was served so far."""
        super().tick(now_s)
        waiting = dict(self.core.fairness.waiting(Band.DEFAULT))
        if len(waiting) < len(self._case):
            raise Done
        served, credit = dict(self._ended_gpu_s), dict.fromkeys(self._case, 0.0)
        for running in self._fleet.running:
            for job in running.values():
                tenant, seen = self._tenant(job), self._progress(job, now_s)
                served[tenant] += self._weighed(tenant, seen.computed_prompt_tokens, seen.output_tokens)
                most_gpu_s = self._weighed(tenant, job.prompt_tokens, self._case[tenant].limit_tokens)
                credit[tenant] += most_gpu_s
                self._largest_gpu_s = max(self._largest_gpu_s, most_gpu_s)
        self._credit_gpu_s = {tenant: max(credit[tenant], most) for tenant, most in self._credit_gpu_s.items()}
        self._served_gpu_s, self._virtual_s = served, now_s
        if not self._first_gpu_s and all(served.values()):
            self._first_gpu_s = served
        for one, other in combinations(self._case, 2) if self._first_gpu_s else ():
            gap = served[one] - served[other]
            low, high = self._gaps.get((one, other), (gap, gap))
            self._gaps[one, other] = min(low, gap), max(high, gap)

    def _weighed(self, tenant: str, prompt_tokens: int, output_tokens: int) -> float:
        gpu_s = DEFAULT_WORK.gpu_seconds(prompt_tokens=prompt_tokens, cached_tokens=0, output_tokens=output_tokens)
        return gpu_s / self._case[tenant].weight

    def found(self) -> Found:
        """The figures of the run."""
        weights = {tenant: each.weight for tenant, each in self._case.items()}
        served = {each: self._served_gpu_s[each] - self._first_gpu_s[each] for each in weights}
        all_gpu_s = sum(served[each] * weights[each] for each in weights)
        shares = {each: served[each] * weights[each] / all_gpu_s for each in weights}
        bounds = {
            pair: 2 * (self._largest_gpu_s + max(self._credit_gpu_s[each] for each in pair)) for pair in self._gaps
        }
        gaps = {pair: high - low for pair, (low, high) in self._gaps.items()}
        return Found(
            bound_gpu_s=max(bounds.values()),
            num_bounds=min(served.values()) / max(bounds.values()),
            worst_gap_gpu_s=max(gaps.values()),
            worst_gap_ratio=max(gaps[pair] / bounds[pair] for pair in gaps),
            worst_share_error_ratio=max(
                abs(shares[each] * sum(weights.values()) / weights[each] - 1) for each in weights
            ),
            shares=shares,
            num_requests=dict(self._num_ended),
            virtual_s=self._virtual_s,
        )


def arrivals(case: Case, seed: int, each_gpu_s: float) -> list[Arrival]:
    """So much work of every tenant, over its weight, all at once, in an order that is drawn."""
    chance = np.random.default_rng(seed)
    found = []
    for tenant, asks in case.items():
        left_gpu_s = each_gpu_s * asks.weight
        while left_gpu_s > 0:
            prompt_tokens = round(asks.prompt_tokens * chance.uniform(*SPREAD))
            output_tokens = min(round(asks.output_tokens * chance.uniform(*SPREAD)), asks.limit_tokens)
            left_gpu_s -= DEFAULT_WORK.gpu_seconds(
                prompt_tokens=prompt_tokens, cached_tokens=0, output_tokens=output_tokens
            )
            found.append(
                Arrival(
                    arrival_s=0.0,
                    prompt_tokens=prompt_tokens,
                    output_tokens=output_tokens,
                    prompt_tokens_bound=prompt_tokens,
                    tenant=tenant,
                )
            )
    return [found[index] for index in chance.permutation(len(found)).tolist()]


def measure(case: Case, *, seed: int, num_bounds: float) -> Found:
    """A short run says how large the bound is, a second one goes on for so many of it."""
    pilot = run(case, seed, PILOT_GPU_S)
    return run(case, seed, pilot.bound_gpu_s * (num_bounds + 3))


def run(case: Case, seed: int, each_gpu_s: float) -> Found:
    """Until the first tenant has nothing waiting."""
    watch = Watch(case)
    with contextlib.suppress(Done):
        Fleet(fleet_of((NUM_WORKERS, "h100", ENGINE)), arrivals(case, seed, each_gpu_s), watch).run()
    return watch.found()


def main() -> int:
    """Measure, record, and fail when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bounds", type=float, default=NUM_BOUNDS, help="how many of its bound each tenant is served")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--name", default="fairness")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, object]]] = {}
    is_kept = True
    for name, case in CASES.items():
        found[name] = []
        for seed in arguments.seeds:
            one = measure(case, seed=seed, num_bounds=arguments.bounds)
            print(name, seed, one)
            found[name].append({"seed": seed, **rounded(dataclasses.asdict(one))})
            is_kept &= one.worst_gap_ratio <= 1.0 and one.worst_share_error_ratio <= MAX_SHARE_ERROR_RATIO
            is_kept &= one.num_bounds >= arguments.bounds
    path = record(
        arguments.name,
        {"pass": is_kept, "max_share_error_ratio": MAX_SHARE_ERROR_RATIO, "cases": found},
        what=f"simulated: the production core on {NUM_WORKERS} H100 / Llama-3.1-8B, {ENGINE.max_sequences} sequences "
        "each, every tenant with work waiting all the time; service in catalogue GPU-seconds over weight, bound = 2 x "
        "(largest charge + the larger credit in flight of a pair, both as if written to the limit)",
    )
    print(path.relative_to(ROOT))
    return 0 if is_kept else 1


def rounded(values: dict[str, object]) -> dict[str, object]:
    """Six decimals are enough."""
    return {
        name: rounded(value) if isinstance(value, dict) else round(value, 6) if isinstance(value, float) else value
        for name, value in values.items()
    }


if __name__ == "__main__":
    sys.exit(main())
