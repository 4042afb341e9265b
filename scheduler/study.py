"""A simulation as it is asked for: models with their traces and GPUs, at shares of their limits, under any policy.

The face of the simulator for the commands (``simulate``, ``replay``, ``plan``) and benchmarks. It must never print, nor
know an option's name. Everything that comes out is simulated: grade D.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from scheduler.catalogue import Catalogue
from scheduler.core.request import DEFAULT_SLO, Slo
from scheduler.fleet_spec import parse, with_blocks, workers_of
from scheduler.limit_cache import Limit, limit_of
from scheduler.simulation import oracle
from scheduler.simulation.faults import losses
from scheduler.simulation.figures import Figures, Footprint, figures_of, figures_of_bound, figures_of_models
from scheduler.simulation.fleet import FleetWorker, Watch
from scheduler.simulation.policies import ORACLE, Setting, check
from scheduler.simulation.replay import simulate
from scheduler.simulation.traces import Arrival, TraceRow, scaled

BLOCK_TOKENS = 512
"""Prompt tokens that one block of a trace stands for."""
MIN_S = 2_400.0
"""A slice is repeated until it is so long."""


class StudyError(ValueError):
    """What is asked for cannot be simulated; the words say why and what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One model of a study: who asks how much of which GPUs. Either ``load`` or ``rate_per_s``."""

    model: str
    fleet: str
    """As people write it, ``h100x8``."""
    rows: Sequence[TraceRow]
    load: float | None = None
    """Share of the round-robin limit."""
    rate_per_s: float | None = None
    """Mean of the whole slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Checked, with its engines and rates. One value for every policy and seed; goes to other processes."""

    parts: Sequence[Part]
    """Models as the catalogue spells them."""
    workers: Sequence[FleetWorker]
    limits: Mapping[str, Limit]
    """By model; empty where nobody needs one."""
    rates_per_s: Mapping[str, float]
    curves: Mapping[str, Figures]
    """By engine: what its curve stands on, and between how many sequences it was measured."""
    slo: Slo = DEFAULT_SLO
    footprint: Footprint = field(default_factory=Footprint)
    until_s: float = math.inf
    """Nothing arrives after it; what did is answered."""
    num_losses: int = 0
    min_s: float = MIN_S

    def arrivals(self, seed: int) -> list[Arrival]:
        """Of all models, in order of time."""
        streams = [
            scaled(
                part.rows,
                rate_per_s=self.rates_per_s[part.model],
                seed=seed,
                min_s=self.min_s,
                block_tokens=BLOCK_TOKENS,
                model=part.model,
            )
            for part in self.parts
        ]
        merged = heapq.merge(*streams, key=lambda arrival: arrival.arrival_s)
        return [arrival for arrival in merged if arrival.arrival_s < self.until_s]

    def run(
        self, policy: str, seed: int, *, arrivals: Sequence[Arrival] | None = None, watch: Watch | None = None
    ) -> Figures:
        """One policy and seed; ``arrivals`` where the caller has them already. Raises: UnknownPolicy, StudyError."""
        check(policy)
        arrivals = self.arrivals(seed) if arrivals is None else arrivals
        if not arrivals:
            raise StudyError(
                f"nobody asks anything: {sum(self.rates_per_s.values()):g} requests/s until {self.until_s:g} s with"
                f" seed {seed} make no arrival; raise the rate, or simulate longer"
            )
        if policy == ORACLE:
            least = oracle.bound(self.workers, arrivals, self.slo, block_tokens=BLOCK_TOKENS)
            figures = figures_of_bound(least, len(arrivals), self.footprint)
        else:
            found = simulate(
                policy,
                self.setting(seed),
                arrivals,
                losses=losses(self.num_losses, num_workers=len(self.workers), span_s=arrivals[-1].arrival_s, seed=seed),
                watch=watch,
            )
            figures = figures_of(found, self.slo, self.footprint)
            if len(self.parts) > 1:
                figures["models"] = figures_of_models(found, self.slo)
        return {"policy": policy, "seed": seed, **figures}

    def setting(self, seed: int) -> Setting:
        """What a policy is told."""
        return Setting(
            workers=self.workers,
            slo=self.slo,
            seed=seed,
            limits_per_s={model: limit.per_s for model, limit in self.limits.items()},
            price_per_kwh=self.footprint.price_at_meter,
        )

    def described(self) -> Figures:
        """What was simulated, for whoever reads the figures; one value where there is one model, else by model."""
        by_model = {
            part.model: {
                "fleet": part.fleet,
                "load": part.load,
                "rate_requests_per_s": self.rates_per_s[part.model],
                "round_robin_limit_requests_per_s": self._limit_per_s(part.model),
            }
            for part in self.parts
        }
        only = by_model[self.parts[0].model] if len(self.parts) == 1 else {}
        return {
            "simulated": True,
            "model": " + ".join(by_model),
            "fleet": " + ".join(part.fleet for part in self.parts),
            "gpus": sum(worker.num_gpus for worker in self.workers),
            "engines": len(self.workers),
            **({key: only[key] for key in only if key != "fleet"} or {"by_model": by_model}),
            "slo": {"ttft_s": self.slo.ttft_s, "ttft_ratio": self.slo.ttft_ratio, "tpot_s": self.slo.tpot_s},
            "price_per_kwh": self.footprint.price_per_kwh,
            "gco2e_per_kwh": self.footprint.gco2e_per_kwh,
            "pue_ratio": self.footprint.pue_ratio,
            "curves": dict(self.curves),
            "versions": {name: _version(name) for name in ("jouleway", "numpy", "numba")},
        }

    def _limit_per_s(self, model: str) -> float | None:
        return self.limits[model].per_s if model in self.limits else None


def prepare(
    parts: Sequence[Part],
    catalogue: Catalogue,
    *,
    slo: Slo = DEFAULT_SLO,
    footprint: Footprint | None = None,
    policies: Iterable[str] = (),
    until_s: float = math.inf,
    num_losses: int = 0,
    find_limit: Callable[[Sequence[FleetWorker], Sequence[TraceRow], Slo], Limit] = limit_of,
) -> Study:
    """Engines, limits and rates of what is asked for. The limit is looked for even where a rate is given: a figure
    without it says little. ``find_limit`` may take minutes.

    Raises: StudyError, FleetError, NoEngineMeets, UnknownPolicy.
    """
    for policy in policies:
        check(policy)
    named, workers = list[Part](), list[FleetWorker]()
    for part in parts:
        mine = workers_of(catalogue, part.fleet, part.model, first_number=len(workers))
        if any(row.blocks for row in part.rows):
            mine = with_blocks(mine, BLOCK_TOKENS)
        if any(each.model == mine[0].model for each in named):
            raise StudyError(f"model {mine[0].model} is named twice; one line a model, with all its GPUs")
        named.append(
            Part(
                model=mine[0].model, fleet=part.fleet, rows=part.rows, load=part.load, rate_per_s=part.rate_per_s
            )
        )  # fmt: skip
        workers += mine
    oracle.check(workers, slo)
    limits = {
        part.model: find_limit([worker for worker in workers if worker.model == part.model], part.rows, slo)
        for part in named
    }
    return Study(
        parts=named,
        workers=workers,
        limits=limits,
        rates_per_s={part.model: _rate_per_s(part, limits[part.model]) for part in named},
        curves=_curves(named, catalogue),
        slo=slo,
        footprint=footprint or Footprint(),
        until_s=until_s,
        num_losses=num_losses,
    )


def _curves(parts: Sequence[Part], catalogue: Catalogue) -> dict[str, Figures]:
    kinds = [catalogue.engine(gpu, part.model) for part in parts for gpu, _ in parse(part.fleet)]
    return {
        f"{kind.model} on {kind.gpus_per_engine} × {kind.gpu}": {
            "basis": kind.basis,
            "measured_sequences": list(kind.batch_range),
        }
        for kind in kinds
    }


def _rate_per_s(part: Part, limit: Limit) -> float:
    if part.rate_per_s is not None:
        return part.rate_per_s
    if part.load is None:
        raise StudyError(f"neither a load nor a rate is given for {part.model}")
    if limit.per_s == 0:
        raise StudyError(
            f"round robin over {part.fleet} never has 99 % good requests of {part.model} on this trace, so that a load"
            " has no meaning; give a rate, more GPUs or a longer objective"
        )
    return part.load * limit.per_s


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
