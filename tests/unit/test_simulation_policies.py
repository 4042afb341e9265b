"""Policies by name: each drives a fleet, is told what it needs and no more, and an unknown one is refused in words."""

import numpy as np
import pytest

from scheduler.core.request import DEFAULT_SLO
from scheduler.simulation.baselines import Autoscale, ByModel
from scheduler.simulation.core_router import CoreRouter
from scheduler.simulation.policies import POLICIES, Setting, UnknownPolicy, check, core_rules, router_of
from scheduler.simulation.replay import simulate
from tests.fleet_words import steady, workers


@pytest.mark.parametrize("policy", [*POLICIES, "autoscale-50", "autoscale-7"])
def test_every_policy_answers_everybody(policy: str) -> None:
    """By its name alone, with two models."""
    fleet = [*workers(2, model="a"), *workers(2, first=2, model="b")]
    both = [steady(60, 0.1), steady(60, 0.1)]
    for stream, model in zip(both, "ab", strict=True):
        stream[:] = [type(each)(**{**_fields(each), "model": model}) for each in stream]
    arrivals = sorted([*both[0], *both[1]], key=lambda each: each.arrival_s)
    found = simulate(policy, Setting(workers=fleet, limits_per_s={"a": 20.0, "b": 20.0}), arrivals)
    assert not np.isnan(found.ended_s).any()
    models = np.array([each.model for each in arrivals])
    assert {0, 1} >= set(found.worker[models == "a"].tolist())
    assert {2, 3} >= set(found.worker[models == "b"].tolist())


def _fields(arrival: object) -> dict[str, object]:
    return {name: getattr(arrival, name) for name in type(arrival).__slots__}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["", "robin", "autoscale-", "autoscale-0", "autoscale-101", "Jouleway"])
def test_an_unknown_policy_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UnknownPolicy, match=r"known: jouleway, jouleway-noparking, round-robin.*oracle"):
        check(name)


def test_the_oracle_is_known_and_routes_nothing() -> None:
    check("oracle")
    with pytest.raises(KeyError):
        router_of("oracle", Setting(workers=workers(1)))


def test_the_core_weighs_joules_by_the_price_at_the_meter() -> None:
    """0.15 a kWh are 41.67 · 10⁻⁹ a joule, in every zone of the fleet; the objective is the requests'."""
    fleet = [*workers(1, zone="a"), *workers(1, zone="b")]
    rules = core_rules(Setting(workers=fleet), is_parking=True)
    assert {"a": 41.67, "b": 41.67} == {
        zone: pytest.approx(price, abs=0.005) for zone, price in rules.placement.nano_per_joule.items()
    }
    strict = DEFAULT_SLO._replace(tpot_s=0.025)
    router = router_of("jouleway", Setting(workers=fleet, slo=strict))
    assert isinstance(router, CoreRouter)
    assert strict == router._slo


def test_autoscaling_goes_by_its_own_models_limit_for_each_engine() -> None:
    """Seven tenths of 30 a second over three engines are seven an engine."""
    fleet = [*workers(3, model="a"), *workers(1, model="b")]
    router = router_of("autoscale-70", Setting(workers=fleet, limits_per_s={"a": 30.0, "b": 4.0}))
    assert isinstance(router, ByModel)
    parts = [part for part in router._parts.values() if isinstance(part, Autoscale)]
    assert [7.0, 2.8] == pytest.approx([part._per_engine_per_s for part in parts])


def test_the_one_that_draws_draws_by_the_seed() -> None:
    fleet, arrivals = workers(4), steady(200, 0.01)
    one, same, other = (
        simulate("power-of-two", Setting(workers=fleet, seed=seed), arrivals).worker.tolist() for seed in (1, 1, 2)
    )
    assert one == same != other
