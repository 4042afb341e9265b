"""Rules that change by time alone: what holds now, when it changes next, and who is told."""

from dataclasses import replace
from math import inf

from scheduler.core.actions import Dispatch
from scheduler.core.price_clock import EnergyPrices
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.core.score import PlacementRules
from scheduler.core.steps import Steps
from tests.core_words import MODEL, of_kind, request, view
from tests.core_words import curves as times
from workers.step_curves import StepCurves

DAY = EnergyPrices(
    nano_per_joule={"a": Steps.of(80.0, [(100.0, 30.0), (300.0, 80.0)]), "b": Steps.of(50.0, [(200.0, 0.0)])},
    carbon_ug_per_mj={"a": Steps.of(0.1, [(150.0, 0.2)])},
)


def core_with(prices: EnergyPrices | None = DAY) -> Scheduler:
    core = Scheduler(models=(MODEL,))
    if prices is not None:
        core.set_energy_prices(prices, 0.0)
    return core


def now(core: Scheduler) -> tuple[dict[str, float], dict[str, float]]:
    return dict(core.rules.placement.nano_per_joule), dict(core.rules.carbon_ug_per_mj)


def test_rules_follow_the_clock_without_being_told() -> None:
    """Whatever call comes first after a step finds the new prices; a zone at 0 is left out."""
    core = core_with()
    assert ({"a": 80.0, "b": 50.0}, {"a": 0.1}) == now(core)
    found = []
    for at_s in (99.9, 100.0, 150.0, 250.0, 300.0):
        core.tick(at_s)
        found.append(now(core))
    assert [
        ({"a": 80.0, "b": 50.0}, {"a": 0.1}),
        ({"a": 30.0, "b": 50.0}, {"a": 0.1}),
        ({"a": 30.0, "b": 50.0}, {"a": 0.2}),
        ({"a": 30.0}, {"a": 0.2}),
        ({"a": 80.0}, {"a": 0.2}),
    ] == found


def test_nothing_changes_for_who_configures_nothing() -> None:
    """Rules stay the very same object."""
    core, rules = Scheduler(rules=Rules()), Rules(placement=PlacementRules(nano_per_joule={"a": 1.0}))
    core.reload(rules, 1.0)
    core.tick(2.0)
    assert core.rules is rules


def test_a_reload_keeps_the_prices_of_now() -> None:
    """Budgets are read from one file and tariffs from another."""
    core = core_with()
    core.reload(replace(Rules(), reserve_ratio=0.2), 120.0)
    assert (0.2, {"a": 30.0, "b": 50.0}) == (core.rules.reserve_ratio, now(core)[0])


def test_a_price_step_shows_in_the_next_decision() -> None:
    """Two halls: the work goes where a joule is cheap at that moment."""
    curves = StepCurves(time_s=times().time_s, energy_joules=(3.0, 0.02, 0.07, 0.0), idle_watts=0.0)
    prices = EnergyPrices(nano_per_joule={"a": Steps.of(1e6, [(10.0, 9e6)]), "b": Steps.always(3e6)})
    core = core_with(prices)
    for name in ("a", "b"):
        core.on_worker_report(view(f"w-{name}", zone=name, curves=curves), 0.0)
    before = of_kind(core.submit(request("r1"), 9.9), Dispatch)
    core.cancel("r1", "client_gone", 9.9)
    after = of_kind(core.submit(request("r2"), 10.0), Dispatch)
    assert ["w-a", "w-b"] == [each.worker_id for each in (*before, *after)]


def test_prices_that_never_change_are_asked_for_once() -> None:
    """The next step is never."""
    core = core_with(EnergyPrices(nano_per_joule={"a": Steps.always(1.0)}))
    assert inf == core._clock.next_s
    assert {"a": 1.0} == now(core)[0]
