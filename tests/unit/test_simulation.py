"""The simulation's parts: what is drawn, what a simulated worker says, how messages travel, what the checker reads."""

import dataclasses
from collections import Counter

import pytest

from scheduler.core.actions import Dispatch, Finish, Payer, Reject, Rejection, Settle, Tokens
from scheduler.core.admission import Limits
from scheduler.simulation.checker import check
from scheduler.simulation.draws import draw_scenario
from scheduler.simulation.driver import NOTICE_S, Simulation, simulate
from scheduler.simulation.scenario import (
    Arrival,
    Fault,
    FaultAt,
    Messages,
    Scenario,
    WorkerSetup,
)
from scheduler.simulation.trace import Decided, Ended, Event, FirstByte, Lost, Reported, Stopped, Submitted
from scheduler.simulation.worker import Bytes, End, SimulatedWorker
from tests.core_words import MODEL, request
from workers.engines.simulated_options import SimulatedOptions
from workers.types import Outcome, UsageRecord, WorkerState

OPTIONS = SimulatedOptions(fixed_step_s=0.01, kv_tokens=2_000, max_sequences=8, prefix_caching=False)


def setup(worker_id: str = "w", *, max_running: int = 4) -> WorkerSetup:
    return WorkerSetup(worker_id=worker_id, models=(MODEL,), max_running=max_running, options=OPTIONS)


def arrival(name: str = "a", *, output: int = 5, is_streaming: bool = True, **values: object) -> Arrival:
    return Arrival(
        request=request(name, **values), prompt_tokens=10, output_tokens=output, is_streaming=is_streaming,
        cancel_after_s=None,
    )  # fmt: skip


def scenario(*arrivals: Arrival, faults: tuple[FaultAt, ...] = (), **values: object) -> Scenario:
    return Scenario(seed=1, workers=(setup("v"), setup("w")), arrivals=arrivals, faults=faults, **values)  # type: ignore[arg-type]


def call(worker: SimulatedWorker, attempt_id: str = "a-1", *, max_output_tokens: int = 50, **values: object) -> None:
    worker.call(attempt_id, arrival(**values), max_output_tokens=max_output_tokens, priority=1)  # type: ignore[arg-type]


def run_dry(worker: SimulatedWorker) -> list[object]:
    """Steps until nothing runs; everything it said."""
    words: list[object] = [*worker.take_words()]
    while worker.engine.begin(0.0, max_steps=4) is not None:
        worker.finish_steps()
        words += worker.take_words()
    return words


# -- what is drawn


def test_a_seed_is_a_scenario() -> None:
    """The same one draws the same, another another; without faults messages travel well."""
    assert draw_scenario(7) == draw_scenario(7)
    assert draw_scenario(7) != draw_scenario(8)
    clean = draw_scenario(7, has_faults=False)
    assert ((), Messages()) == (clean.faults, clean.messages)
    assert draw_scenario(7).arrivals == clean.arrivals


def test_every_model_is_served_and_every_kind_of_request_comes() -> None:
    """Over a few seeds: bands, deadlines, cancels, several sequences, both models, every fault."""
    scenarios = [draw_scenario(seed) for seed in range(12)]
    arrivals = [each for drawn in scenarios for each in drawn.arrivals]
    assert all({"x", "y"} == {model for one in drawn.workers for model in one.models} for drawn in scenarios)
    assert {0, 1, 2} == {each.request.band for each in arrivals}
    assert {1, 2} == {each.request.num_sequences for each in arrivals}
    assert set(Fault) == {fault.fault for drawn in scenarios for fault in drawn.faults}
    assert all(each.prompt_tokens <= each.request.prompt_tokens_bound for each in arrivals)
    assert 0 < sum(each.cancel_after_s is not None for each in arrivals) < len(arrivals) / 4


# -- a simulated worker


def test_a_streaming_answer_is_bytes_end_and_usage() -> None:
    """Capped by what the core allowed; the usage is the engine's own count."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker, output=5, max_output_tokens=3)
    first, end, usage = run_dry(worker)
    assert (Bytes("a-1"), End("a-1", Outcome.COMPLETED, "")) == (first, end)
    assert isinstance(usage, UsageRecord)
    assert (10, 3) == (usage.input_tokens, usage.output_tokens)
    assert [0] == [sequence.token_difference for sequence in usage.sequences]


def test_a_whole_answer_has_no_bytes_before_its_end() -> None:
    """So a lost worker is tried again up to the last moment."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker, is_streaming=False)
    assert [End, UsageRecord] == [type(word) for word in run_dry(worker)]


def test_all_sequences_end_before_their_attempt() -> None:
    """Two choices: one prompt billed, all outputs counted."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker, num_sequences=2)
    usage = run_dry(worker)[-1]
    assert isinstance(usage, UsageRecord)
    assert (10, 10, 2) == (usage.input_tokens, usage.output_tokens, len(usage.sequences))


@pytest.mark.parametrize("why", ["busy", "full", "sick", "too long"])
def test_a_refusal_is_both_endings_at_once(why: str) -> None:
    """And says its cause in a real worker's words."""
    worker = SimulatedWorker(setup(max_running=1), life=1, seed=0)
    values: dict[str, object] = {}
    if why == "busy":
        worker.is_busy = True
    elif why == "full":
        call(worker, "b-1")
    elif why == "sick":
        worker.state = WorkerState.SICK
    else:
        values = {"output": 10_000, "max_output_tokens": 10_000}
    call(worker, **values)  # type: ignore[arg-type]
    end, usage = worker.take_words()
    expected = {
        "busy": (Outcome.FAILED, "worker_busy"), "full": (Outcome.FAILED, "worker_busy"),
        "sick": (Outcome.FAILED, "worker_sick"), "too long": (Outcome.REFUSED, ""),
    }[why]  # fmt: skip
    assert isinstance(end, End)
    assert isinstance(usage, UsageRecord)
    assert expected == (end.outcome, end.cause) == (usage.outcome, usage.cause)


def test_a_repeated_call_and_a_stranger_s_abort_change_nothing() -> None:
    """Messages come twice, and late."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker)
    call(worker)
    worker.abort("nobody-1", "client_gone")
    assert [Bytes, End, UsageRecord] == [type(word) for word in run_dry(worker)]


def test_an_abort_ends_with_the_step_in_flight() -> None:
    """What it computed is counted."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker)
    worker.engine.begin(0.0)
    worker.abort("a-1", "client_gone")
    assert [] == worker.take_words()
    worker.finish_steps()
    end, usage = [word for word in worker.take_words() if not isinstance(word, Bytes)]
    assert End("a-1", Outcome.ABORTED, "client_gone") == end
    assert isinstance(usage, UsageRecord)
    assert (1, 0) == (usage.output_tokens, worker.engine.num_running)


def test_a_stalled_worker_fails_what_runs_and_says_it_is_sick() -> None:
    """Its watchdog does not wait for the engine."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker)
    worker.engine.begin(0.0)
    worker.hangs_since_s = 0.0
    worker.stall()
    assert End("a-1", Outcome.FAILED, "stalled") == worker.take_words()[0]
    assert WorkerState.SICK is worker.view().state


def test_progress_is_told_once() -> None:
    """Only of what moved; the view says the rest."""
    worker = SimulatedWorker(setup(), life=1, seed=0)
    call(worker)
    assert () == worker.progress()
    worker.engine.begin(0.0)
    worker.finish_steps()
    (progress,) = worker.progress()
    assert ("a-1", 10, 0, 10, 1) == (
        progress.attempt_id, progress.prompt_tokens, progress.cached_tokens, progress.computed_prompt_tokens,
        progress.output_tokens,
    )  # fmt: skip
    assert () == worker.progress()
    view = worker.view()
    assert (1, 0, 4, 2_000) == (view.num_running, view.num_waiting, view.max_running, view.kv_tokens)


# -- the driver


def of(trace: list[Event], kind: type) -> list:
    """Events of a kind, or decisions of one."""
    return [
        event.action if isinstance(event, Decided) and isinstance(event.action, kind) else event
        for event in trace
        if isinstance(event, kind) or (isinstance(event, Decided) and isinstance(event.action, kind))
    ]


def test_a_quiet_run_is_answered_and_ends_idle() -> None:
    """Ten requests on two workers, no fault: ten answers, ten settlements, nothing owned at the end."""
    arrivals = [arrival(f"r{number}", arrival_s=number * 0.01) for number in range(10)]
    trace = simulate(scenario(*arrivals))
    assert {Outcome.COMPLETED: 10} == Counter(finish.outcome for finish in of(trace, Finish))
    assert 10 == len(of(trace, Settle)) == len(of(trace, FirstByte))
    assert {"v", "w"} == {dispatch.worker_id for dispatch in of(trace, Dispatch)}
    assert [] == check(trace, scenario().limits)
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
    assert [] == check(trace, doubled.limits)


def test_a_silent_worker_is_given_up_and_its_words_arrive_late() -> None:
    """Twenty seconds of silence are too long; what it says afterwards is nobody's any more."""
    faults = (FaultAt(at_s=0.0, worker_id="v", fault=Fault.SILENT, for_s=20.0),)
    run = Simulation(scenario(arrival("a", arrival_s=0.5), arrival("b", arrival_s=10.0), faults=faults))
    trace = run.run()
    assert all(dispatch.worker_id == "w" for dispatch in of(trace, Dispatch) if dispatch.request_id == "b")
    assert [] == check(trace, run.scenario.limits)


# -- the checker's own books

CALL = Dispatch(request_id="a", attempt_id="a-1", worker_id="w", max_output_tokens=50, priority=1, reason="")
SETTLE = Settle(
    request_id="a", attempt_id="a-1", worker_id="w", payer=Payer.REQUEST, outcome=Outcome.COMPLETED, cause="",
    tokens=Tokens(output_tokens=5),
)  # fmt: skip
FINISH = Finish(request_id="a", attempt_id="a-1", outcome=Outcome.COMPLETED, cause="")
READY = Reported(at_s=0.0, worker_id="w", is_ready=True, models=(MODEL,), max_running=4)
ASKED = Submitted(at_s=0.0, request=request("a"))
STOPPED = Stopped(at_s=9.0, num_open=0, num_running=0, credit_tokens={"w": (0,)})
REJECT = Reject(request_id="a", rejection=Rejection(reason="no", status=503, message="no"))


def decided(action: object, at_s: float = 1.0) -> Decided:
    return Decided(at_s=at_s, action=action)  # type: ignore[arg-type]


GOOD: list[Event] = [READY, ASKED, decided(CALL), decided(SETTLE), decided(FINISH), STOPPED]


def test_a_good_trace_has_no_breach() -> None:
    """The shortest life there is."""
    assert [] == check(GOOD, Limits())


@pytest.mark.parametrize(
    ("trace", "breach"),
    [
        ([*GOOD[1:], STOPPED], "is not there"),
        (GOOD[:-1], "no end"),
        ([READY, ASKED, decided(CALL), decided(SETTLE), STOPPED], "never ended"),
        ([READY, ASKED, decided(CALL), decided(FINISH), STOPPED], "before a-1 was settled"),
        ([*GOOD[:5], decided(REJECT), STOPPED], "ended twice"),
        ([*GOOD[:4], decided(SETTLE), *GOOD[4:]], "settled twice"),
        ([*GOOD[:3], decided(CALL), *GOOD[3:]], "sent twice"),
        ([*GOOD[:-1], decided(CALL), STOPPED], "sent after its request's end"),
        ([READY, decided(REJECT), STOPPED], "never submitted"),
        ([READY, ASKED, decided(SETTLE), decided(REJECT), STOPPED], "never sent"),
        ([*GOOD[:2], decided(CALL, 700.0), *GOOD[3:]], "waited too long"),
        ([*GOOD[:2], decided(CALL, 700.0), *GOOD[3:]], "time went back"),
        ([*GOOD[:-1], dataclasses.replace(STOPPED, num_open=1)], "still open"),
        ([*GOOD[:-1], dataclasses.replace(STOPPED, credit_tokens={"w": (0, 1)})], "still owned"),
        ([dataclasses.replace(READY, is_ready=False), *GOOD[1:]], "not ready"),
        ([dataclasses.replace(READY, models=()), *GOOD[1:]], "not served"),
        ([dataclasses.replace(READY, max_running=0), *GOOD[1:]], "full worker"),
        ([*GOOD[:2], decided(CALL, 20.0)], "silent worker"),
        ([*GOOD[:2], decided(dataclasses.replace(CALL, max_output_tokens=51))], "wrong cap"),
        ([*GOOD[:3], decided(dataclasses.replace(SETTLE, tokens=Tokens(output_tokens=51)))], "more output"),
        ([*GOOD[:3], decided(dataclasses.replace(SETTLE, payer=Payer.OPERATOR))], "operator pays"),
        ([*GOOD[:5], FirstByte(at_s=1.0, attempt_id="a-1")], "bytes after"),
        ([READY, Submitted(at_s=0.0, request=request("z", band=0)), *GOOD[1:3]], "overtook z"),
        ([READY, Submitted(at_s=0.0, request=request("a", deadline_s=0.5)), *GOOD[2:]], "after its deadline"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_breach_is_named(trace: list[Event], breach: str) -> None:
    """A trace that is wrong in one place."""
    assert any(breach in line for line in check(trace, Limits())), check(trace, Limits())


def test_a_second_try_is_judged_by_the_first_byte() -> None:
    """Before it a failed attempt may be followed by another, after it not."""
    failed = dataclasses.replace(SETTLE, outcome=Outcome.FAILED, cause="stalled", payer=Payer.OPERATOR)
    again = dataclasses.replace(CALL, attempt_id="a-2")
    ended = [
        decided(again), decided(dataclasses.replace(SETTLE, attempt_id="a-2")),
        decided(dataclasses.replace(FINISH, attempt_id="a-2")), STOPPED,
    ]  # fmt: skip
    assert [] == check([*GOOD[:3], decided(failed), *ended], Limits())
    seen = [*GOOD[:3], FirstByte(at_s=1.0, attempt_id="a-1"), decided(failed), *ended]
    assert any("after the first byte" in line for line in check(seen, Limits()))
