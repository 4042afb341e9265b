"""The production core on virtual time, through faults: what it promises is recomputed from the trace alone."""

from collections import Counter

import pytest

from scheduler.core.actions import Abort, Finish, Reject
from scheduler.simulation.checker import check
from scheduler.simulation.draws import draw_scenario
from scheduler.simulation.driver import simulate
from scheduler.simulation.scenario import Fault
from scheduler.simulation.trace import ClockJumped, Configured, Decided, Event, Restarted

NUM_SEEDS, NUM_PER_TEST = 500, 50


def words(trace: list[Event]) -> Counter[str]:
    """How requests ended: the reason of each Reject, outcome and cause of each Finish; and what befell them."""
    counts: Counter[str] = Counter()
    for event in trace:
        match event:
            case Decided(action=Reject(rejection=rejection)):
                counts[rejection.reason] += 1
            case Decided(action=Finish(outcome=outcome, cause=cause)):
                counts[f"{outcome.value} {cause}".strip()] += 1
            case Decided(action=Abort(reason="preempted")):
                counts["preempted"] += 1
            case Restarted() | ClockJumped():
                counts[type(event).__name__] += 1
            case _:
                pass
    counts["reloads"] = sum(isinstance(event, Configured) for event in trace) - 1 - counts["Restarted"]
    return counts


@pytest.mark.parametrize("first_seed", range(0, NUM_SEEDS, NUM_PER_TEST))
def test_the_core_keeps_its_promises_through_faults(first_seed: int) -> None:
    """Workers die, hang, slow down, move, lie and fall silent; messages come late, twice or never; clients leave at
    every stage; budgets race; rules, clocks and the control plane itself change underneath: no breach."""
    breaches, seen, faults = {}, Counter(), set()
    for seed in range(first_seed, first_seed + NUM_PER_TEST):
        scenario = draw_scenario(seed)
        trace = simulate(scenario)
        seen += words(trace)
        faults |= {fault.fault for fault in scenario.faults}
        if found := check(trace):
            breaches[seed] = found[:5]
    assert {} == breaches, f"seeds and their first breaches: {breaches}"
    # The runs would prove nothing if nothing happened in them.
    assert set(Fault) == faults
    assert seen["completed"] > 2_000
    assert {
        "queue_full", "queue_timeout", "deadline_exceeded", "no_worker", "aborted client_gone",
        "aborted deadline_exceeded", "rate_limit_exceeded", "insufficient_quota", "data_residency_mismatch",
        "preempted", "reloads", "Restarted", "ClockJumped",
    } <= {word for word, num in seen.items() if num}  # fmt: skip
    assert any(word.startswith("failed") for word in seen)


@pytest.mark.parametrize("seed", range(10))
def test_the_same_run_is_the_same_event_by_event(seed: int) -> None:
    """Same state, same request, same placement: two runs of a seed yield equal traces, times and reasons included."""
    assert simulate(draw_scenario(seed)) == simulate(draw_scenario(seed))


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_every_end_is_an_honest_one(seed: int) -> None:
    """Nothing fails where nothing breaks: requests are answered, refused for load or time, or given up by clients."""
    trace = simulate(draw_scenario(seed, has_faults=False))
    assert [] == check(trace)
    honest = {
        "completed", "refused", "queue_full", "queue_timeout", "deadline_exceeded", "deadline_infeasible", "no_worker",
        "aborted client_gone", "aborted deadline_exceeded", "rate_limit_exceeded", "insufficient_quota",
        "data_residency_mismatch", "preempted",
    }  # fmt: skip
    assert {word for word, num in words(trace).items() if num} <= honest
