"""Policies by name: the production core, what others do, and what each of them is told of the fleet beforehand.

Called by ``scheduler.simulation.replay``, the commands and benchmarks. It must never know how a policy decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.core.parking import DEFAULT_PARKING, ParkingRules
from scheduler.core.request import DEFAULT_SLO, JOULES_PER_KWH, Slo
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.core.score import PlacementRules
from scheduler.simulation.baselines import (
    Autoscale,
    Baseline,
    ByModel,
    LeastRequests,
    PowerOfTwo,
    Prefix,
    RaceToIdle,
    RoundRobin,
)
from scheduler.simulation.core_router import CoreRouter
from scheduler.simulation.fleet import FleetWorker, Router

DEFAULT_PRICE_PER_KWH = 0.15

POLICIES = ("jouleway", "jouleway-noparking", "round-robin", "least-requests", "power-of-two", "prefix", "race-to-idle")
"""Beside these, ``autoscale-X`` for any whole percentage."""
ORACLE = "oracle"
"""No policy: a bound, see ``scheduler.simulation.oracle``."""
AUTOSCALE = re.compile(r"autoscale-([1-9]\d?|100)")


class UnknownPolicy(ValueError):
    """No policy has that name; the words list those that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a policy is told."""

    workers: Sequence[FleetWorker]
    slo: Slo = DEFAULT_SLO
    seed: int = 0
    limits_per_s: Mapping[str, float] = field(default_factory=dict)
    """By model: the round-robin limit of its engines, which autoscaling goes by."""
    price_per_kwh: float = DEFAULT_PRICE_PER_KWH
    """Of energy at the meter, the hall's part included; what the core weighs joules by."""

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(worker.model for worker in self.workers))


def check(name: str) -> None:
    """Raises: UnknownPolicy."""
    if name not in (*POLICIES, ORACLE) and AUTOSCALE.fullmatch(name) is None:
        known = ", ".join((*POLICIES, "autoscale-X with X from 1 to 100 %", ORACLE))
        raise UnknownPolicy(f"policy {name!r} is unknown; known: {known}")


def router_of(name: str, setting: Setting) -> Router:
    """A new router; the oracle has none. Raises: UnknownPolicy."""
    check(name)
    if name.startswith("jouleway"):
        rules = core_rules(setting, is_parking=name == "jouleway")
        return CoreRouter(Scheduler(models=setting.models, rules=rules), slo=setting.slo)
    return ByModel({model: _baseline(name, setting, model) for model in setting.models})


def core_rules(setting: Setting, *, is_parking: bool) -> Rules:
    """The core's own defaults, with a price of energy and with or without leave to park."""
    nano_per_joule = setting.price_per_kwh * 1e9 / JOULES_PER_KWH
    zones = {worker.zone for worker in setting.workers}
    return Rules(
        placement=PlacementRules(nano_per_joule=dict.fromkeys(zones, nano_per_joule)),
        parking=DEFAULT_PARKING if is_parking else ParkingRules(default_warm=len(setting.workers)),
    )


def _baseline(name: str, setting: Setting, model: str) -> Baseline:
    if (scaled := AUTOSCALE.fullmatch(name)) is not None:
        num_engines = sum(worker.model == model for worker in setting.workers)
        limit_per_s = setting.limits_per_s[model] / num_engines
        return Autoscale(target_ratio=int(scaled[1]) / 100, limit_per_engine_per_s=limit_per_s)
    kinds: dict[str, Callable[[], Baseline]] = {
        "round-robin": RoundRobin,
        "least-requests": LeastRequests,
        "power-of-two": lambda: PowerOfTwo(seed=setting.seed),
        "prefix": Prefix,
        "race-to-idle": RaceToIdle,
    }
    return kinds[name]()
