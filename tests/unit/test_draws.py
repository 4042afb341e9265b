"""What is drawn follows from the seed alone, and presses on every promise."""

from scheduler.core.budget_accounts import Measure
from scheduler.core.request import DataClass
from scheduler.simulation.draws import KINDS, Kind, draw_scenario
from scheduler.simulation.scenario import Fault, Messages, Stage


def test_a_seed_is_a_scenario() -> None:
    """The same one draws the same, another another; without faults messages travel well."""
    assert draw_scenario(7) == draw_scenario(7)
    assert draw_scenario(7) != draw_scenario(8)
    clean = draw_scenario(5, has_faults=False)
    assert ((), (), (), (), Messages()) == (clean.faults, clean.reloads, clean.jumps, clean.restarts, clean.messages)
    assert draw_scenario(5).arrivals == clean.arrivals


def test_kinds_take_turns() -> None:
    """Five seeds in a row are one of each."""
    scenarios = [draw_scenario(seed, num_requests=10) for seed in range(5)]
    assert [draw_scenario(seed, num_requests=10, kind=kind) for seed, kind in enumerate(KINDS)] == scenarios


def test_every_model_is_served_and_every_kind_of_request_comes() -> None:
    """Over a few seeds: bands, deadlines, cancels at every stage, several sequences, both models, every fault."""
    scenarios = [draw_scenario(seed) for seed in range(60)]
    arrivals = [each for drawn in scenarios for each in drawn.arrivals]
    assert all({"x", "y"} == {model for one in drawn.workers for model in one.models} for drawn in scenarios)
    assert {0, 1, 2} == {each.request.band for each in arrivals}
    assert {1, 2} == {each.request.num_sequences for each in arrivals}
    assert set(DataClass) == {each.request.data_class for each in arrivals}
    assert {None, *Stage} == {each.cancel_on for each in arrivals}
    assert set(Fault) == {fault.fault for drawn in scenarios for fault in drawn.faults}
    assert all(each.prompt_tokens <= each.request.prompt_tokens_bound for each in arrivals)
    assert 0 < sum(each.cancel_after_s is not None for each in arrivals) < len(arrivals) / 4
    assert all(any(getattr(drawn, what) for drawn in scenarios) for what in ("reloads", "jumps", "restarts"))


def test_every_measure_is_budgeted_on_every_level() -> None:
    """Where budgets are pressed on, and never where shares are measured."""
    rules = [draw_scenario(seed, num_requests=1, kind=Kind.BUDGETS).rules for seed in range(60)]
    levels = {level.kind for each in rules for level in each.budgets}
    budgets = [budget for each in rules for of_level in each.budgets.values() for budget in of_level]
    assert ({"tenant", "project", "key"}, True) == (levels, any(each.task_budgets for each in rules))
    assert set(Measure) == {budget.measure for budget in budgets}
    fair = draw_scenario(2, num_requests=1, kind=Kind.FAIR).rules
    assert ({}, {}) == (fair.budgets, fair.task_budgets)
