"""The driver: how orders and words travel, what goes wrong with workers, clocks and the control plane itself."""

from collections import Counter

import pytest

from scheduler.core.actions import Dispatch, Finish, Payer, Reject, Settle
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.rules import Rules
from scheduler.simulation.checker import check
from scheduler.simulation.driver import Simulation, simulate
from scheduler.simulation.scenario import ClockJump, Fault, FaultAt, Messages, Reload, Restart, Stage
from scheduler.simulation.site import NOTICE_S
from scheduler.simulation.trace import (
    Cancelled,
    ClockJumped,
    Configured,
    Counted,
    Ended,
    FirstByte,
    Lost,
    Posted,
    Reported,
    Restarted,
    Stopped,
    Submitted,
)
from tests.simulated_words import arrival, of, scenario
from workers.types import Outcome


def test_a_quiet_run_is_answered_and_ends_idle() -> None:
    """Ten requests on two workers, no fault: ten answers, ten settlements, nothing owned at the end."""
    arrivals = [arrival(f"r{number}", arrival_s=number * 0.01) for number in range(10)]
    trace = simulate(scenario(*arrivals))
    assert {Outcome.COMPLETED: 10} == Counter(finish.outcome for finish in of(trace, Finish))
    assert 10 == len(of(trace, Settle)) == len(of(trace, FirstByte))
    assert {"v", "w"} == {dispatch.worker_id for dispatch in of(trace, Dispatch)}
    assert [] == check(trace)
    stopped = trace[-1]
    assert isinstance(stopped, Stopped)
    assert {"v": (0,) * 5, "w": (0,) * 5} == stopped.credit_tokens


def test_a_dead_worker_s_request_is_answered_by_the_other() -> None:
    """Word of the death takes a moment; then it is tried once more."""
    faults = (FaultAt(at_s=0.02, worker_id="v", fault=Fault.DIES, for_s=5.0),)
    trace = simulate(scenario(arrival("a", is_streaming=False, output=50), faults=faults))
    (lost,) = of(trace, Lost)
    assert 0.02 + NOTICE_S == pytest.approx(lost.at_s)
    assert ["v", "w"] == [dispatch.worker_id for dispatch in of(trace, Dispatch)]
    assert [Payer.OPERATOR, Payer.REQUEST] == [settle.payer for settle in of(trace, Settle)]


def test_what_the_client_saw_begin_is_not_tried_again() -> None:
    """The same death after the first byte ends the request."""
    faults = (FaultAt(at_s=0.1, worker_id="v", fault=Fault.DIES, for_s=5.0),)
    trace = simulate(scenario(arrival("a", output=50), faults=faults))
    assert 1 == len(of(trace, Dispatch))
    (finish,) = of(trace, Finish)
    assert (Outcome.FAILED, "worker_lost") == (finish.outcome, finish.cause)


def test_a_hung_worker_is_noticed_by_its_watchdog() -> None:
    """Its request goes on elsewhere, and the worker is ready again when it wakes."""
    faults = (FaultAt(at_s=0.005, worker_id="v", fault=Fault.HANGS, for_s=8.0),)
    trace = simulate(scenario(arrival("a", is_streaming=False), faults=faults))
    assert "stalled" in {ended.cause for ended in of(trace, Ended)}
    assert ["v", "w"] == [dispatch.worker_id for dispatch in of(trace, Dispatch)]
    states = [report.is_ready for report in of(trace, Reported) if report.worker_id == "v"]
    assert [True, False, True] == [state for at, state in enumerate(states) if not at or state != states[at - 1]]


def test_a_lost_call_is_made_again() -> None:
    """Nobody waits for ever for a message that did not arrive; where all are lost the request fails."""
    trace = simulate(scenario(arrival("a"), messages=Messages(lost_ratio=1.0)))
    assert 2 == len(of(trace, Dispatch))
    assert ["call_lost"] == [finish.cause for finish in of(trace, Finish)]


def test_messages_that_come_twice_change_nothing() -> None:
    """Ends are heard twice, and nothing is settled twice."""
    doubled = scenario(arrival("a"), messages=Messages(twice_ratio=1.0))
    trace = simulate(doubled)
    assert 3 <= len(of(trace, Ended)), "the run stops when all is settled"
    assert (1, 1) == (len(of(trace, Settle)), len(of(trace, Finish)))
    assert [] == check(trace)


def test_a_silent_worker_is_given_up_and_its_words_arrive_late() -> None:
    """Twenty seconds of silence are too long; what it says afterwards is nobody's any more."""
    faults = (FaultAt(at_s=0.0, worker_id="v", fault=Fault.SILENT, for_s=20.0),)
    run = Simulation(scenario(arrival("a", arrival_s=0.5), arrival("b", arrival_s=10.0), faults=faults))
    trace = run.run()
    assert all(dispatch.worker_id == "w" for dispatch in of(trace, Dispatch) if dispatch.request_id == "b")
    assert [] == check(trace)


def test_what_was_settled_is_booked_once() -> None:
    """A window later; at once for what a dead worker cannot say any more."""
    faults = (FaultAt(at_s=0.02, worker_id="v", fault=Fault.DIES, for_s=5.0),)
    trace = simulate(scenario(arrival("a", is_streaming=False, output=50), faults=faults))
    posted = {event.attempt_id: event for event in of(trace, Posted)}
    settled = {
        event.action.attempt_id: event.at_s
        for event in trace
        if hasattr(event, "action") and isinstance(event.action, Settle)
    }
    assert ["a-1", "a-2"] == [event.attempt_id for event in of(trace, Posted)]
    assert [0.0, 1.0] == [pytest.approx(posted[each].at_s - settled[each]) for each in posted]
    assert posted["a-2"].energy_mj > 0


def test_prompts_are_counted_once() -> None:
    """By the first progress of each attempt."""
    trace = simulate(scenario(arrival("a", output=60), messages=Messages(twice_ratio=1.0)))
    assert [("a-1", 10)] == [(event.attempt_id, event.prompt_tokens) for event in of(trace, Counted)]


@pytest.mark.parametrize("stage", list(Stage))
def test_clients_go_at_every_stage(stage: Stage) -> None:
    """Just after it was sent, just after its first byte, just before it was counted."""
    trace = simulate(scenario(arrival("a", output=20, cancel_on=stage)))
    assert [] == check(trace)
    if stage is not Stage.ENDED:  # there it comes too late, the answer was whole
        assert [(Outcome.ABORTED, "client_gone")] == [(each.outcome, each.cause) for each in of(trace, Finish)]
        assert (stage is Stage.SPEAKS) == bool(of(trace, FirstByte))
    assert 1 == len(of(trace, Cancelled))


def test_a_worker_moves() -> None:
    """It is back in another zone under the same name."""
    faults = (FaultAt(at_s=0.5, worker_id="v", fault=Fault.MOVES, for_s=1.0, zone="far"),)
    trace = simulate(scenario(arrival("a", arrival_s=3.0), faults=faults))
    assert ["local", "far"] == list(dict.fromkeys(each.zone for each in of(trace, Reported) if each.worker_id == "v"))


def test_rules_are_reloaded() -> None:
    """From then on no more is admitted than they let."""
    closed = Rules(budgets={Level("tenant", "t"): (Budget(Measure.TOKENS, 0, Window.parse("total")),)})
    arrivals = (arrival("a"), arrival("b", arrival_s=2.0))
    trace = simulate(scenario(*arrivals, reloads=(Reload(at_s=1.0, rules=closed),)))
    assert [Rules(), closed] == [event.rules for event in of(trace, Configured)]
    assert ["insufficient_quota"] == [reject.rejection.reason for reject in of(trace, Reject)]
    assert [] == check(trace)


def test_a_restart_cuts_clients_off_and_orphans_are_aborted() -> None:
    """The new control plane knows nothing of them; what they say is nobody's."""
    arrivals = (arrival("a", output=50), arrival("b", arrival_s=1.0))
    run = Simulation(scenario(*arrivals, restarts=(Restart(at_s=0.1),)))
    trace = run.run()
    assert 1 == len(of(trace, Restarted))
    assert ["b"] == [finish.request_id for finish in of(trace, Finish)]
    assert ["aborted"] == [event.outcome for event in of(trace, Ended) if event.attempt_id == "a-1" and event.has_usage]
    assert [] == check(trace)


def test_clocks_jump_and_requests_are_stamped_by_them() -> None:
    """Ahead the core is told at once; back it is told the same again. Deadlines are kept by the clock that jumped."""
    jumps = (ClockJump(at_s=1.0, monotonic_s=5.0, wall_s=100.0), ClockJump(at_s=3.0, monotonic_s=-2.0))
    arrivals = (arrival("a", arrival_s=2.0, deadline_s=12.0), arrival("b", arrival_s=3.5))
    trace = simulate(scenario(*arrivals, jumps=jumps, start_unix_s=1_000.0))
    assert [5.0] == [pytest.approx(event.by_s) for event in of(trace, ClockJumped)]
    a, b = (event.request for event in of(trace, Submitted))
    assert (7.0, 17.0, 1_102.0) == (a.arrival_s, a.deadline_s, a.arrival_unix_s)
    assert (6.5, 8.0) == (b.arrival_s, pytest.approx(of(trace, Submitted)[1].at_s, abs=0.11))
    assert [] == check(trace)


def test_the_end_says_how_every_budget_stands() -> None:
    """Of each level that some request had above it."""
    level = Level("tenant", "t")
    rules = Rules(budgets={level: (Budget(Measure.OUTPUT_TOKENS, 100, Window.parse("total")),)})
    stopped = simulate(scenario(arrival("a", output=5), rules=rules))[-1]
    assert isinstance(stopped, Stopped)
    (state,) = stopped.budgets
    assert (level, 5, 0, 0) == (state.level, state.used, state.held, sum(stopped.held.values()))


def test_a_liar_is_believed_no_longer_than_it_lies() -> None:
    """Requests wait for it, and nothing is lost."""
    faults = tuple(FaultAt(at_s=0.0, worker_id=name, fault=Fault.LIES, for_s=5.0) for name in "vw")
    trace = simulate(scenario(arrival("a", arrival_s=3.0), faults=faults))
    assert ["a"] == [finish.request_id for finish in of(trace, Finish)]
    assert [] == check(trace)
