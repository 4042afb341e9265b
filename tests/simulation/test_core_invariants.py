"""The production core on virtual time, through faults: what it promises is recomputed from the trace alone."""

from collections import Counter

import pytest

from scheduler.core.actions import Finish, Reject
from scheduler.simulation.checker import check
from scheduler.simulation.draws import draw_scenario
from scheduler.simulation.driver import simulate
from scheduler.simulation.scenario import Fault
from scheduler.simulation.trace import Decided, Event

NUM_SEEDS, NUM_PER_TEST = 120, 60


def words(trace: list[Event]) -> Counter[str]:
    """How requests ended: the reason of each Reject, outcome and cause of each Finish."""
    counts: Counter[str] = Counter()
    for event in trace:
        match event:
            case Decided(action=Reject(rejection=rejection)):
                counts[rejection.reason] += 1
            case Decided(action=Finish(outcome=outcome, cause=cause)):
                counts[f"{outcome.value} {cause}".strip()] += 1
    return counts


@pytest.mark.parametrize("first_seed", range(0, NUM_SEEDS, NUM_PER_TEST))
def test_the_core_keeps_its_promises_through_faults(first_seed: int) -> None:
    """Dead, hung, slow, silent and busy workers; messages late, twice, lost; clients that leave: no breach."""
    breaches, seen, faults = {}, Counter(), set()
    for seed in range(first_seed, first_seed + NUM_PER_TEST):
        scenario = draw_scenario(seed)
        trace = simulate(scenario)
        seen += words(trace)
        faults |= {fault.fault for fault in scenario.faults}
        if found := check(trace, scenario.limits):
            breaches[seed] = found[:5]
    assert {} == breaches, f"seeds and their first breaches: {breaches}"
    # The runs would prove nothing if nothing happened in them.
    assert set(Fault) == faults
    assert seen["completed"] > 1_000
    assert {
        "queue_full", "queue_timeout", "deadline_exceeded", "no_worker", "aborted client_gone",
        "aborted deadline_exceeded",
    } <= set(seen)  # fmt: skip
    assert any(word.startswith("failed") for word in seen)


@pytest.mark.parametrize("seed", range(10))
def test_the_same_run_is_the_same_event_by_event(seed: int) -> None:
    """Same state, same request, same placement: two runs of a seed yield equal traces, times and reasons included."""
    assert simulate(draw_scenario(seed)) == simulate(draw_scenario(seed))


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_every_end_is_an_honest_one(seed: int) -> None:
    """Nothing fails where nothing breaks: requests are answered, refused for load or time, or given up by clients."""
    scenario = draw_scenario(seed, has_faults=False)
    trace = simulate(scenario)
    assert [] == check(trace, scenario.limits)
    honest = {
        "completed", "refused", "queue_full", "queue_timeout", "deadline_exceeded", "deadline_infeasible", "no_worker",
        "aborted client_gone", "aborted deadline_exceeded",
    }  # fmt: skip
    assert set(words(trace)) <= honest
