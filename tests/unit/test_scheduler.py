"""The state machine: every request ends once, every attempt is settled once, on every path, and nothing stays owned."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.actions import Abort, Action, Dispatch, Finish, Payer, Reject, Settle
from scheduler.core.admission import Limits
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Rates
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from tests.core_words import MODEL, assert_idle, curves, kinds, of_kind, progress, request, thorough, usage, view
from workers.step_curves import StepCurves
from workers.types import Outcome, WorkerState


def a_core(*workers: str, max_running: int = 4, **limits: object) -> Scheduler:
    """A core with ready workers."""
    core = Scheduler(models=[MODEL], limits=Limits(**limits))  # type: ignore[arg-type]
    for worker_id in workers:
        core.on_worker_report(view(worker_id, max_running=max_running), 0.0)
    return core


def submit(core: Scheduler, *names: str, now_s: float = 0.0, **values: object) -> list[Action]:
    return [action for name in names for action in core.submit(request(name, arrival_s=now_s, **values), now_s)]


def started(actions: list[Action]) -> list[str]:
    """Attempts that were sent, in order."""
    return [dispatch.attempt_id for dispatch in of_kind(actions, Dispatch)]


def complete(core: Scheduler, attempt_id: str, now_s: float = 0.0) -> list[Action]:
    """The worker says everything there is to say of a good answer."""
    core.on_first_byte(attempt_id, now_s)
    return [
        *core.on_ended(attempt_id, Outcome.COMPLETED, "", now_s),
        *core.on_finished(usage(attempt_id), now_s),
    ]


def test_lines_of_several_zones_wait_for_the_first_worker() -> None:
    """There is no zone yet: nobody is kept from any."""
    core = a_core()
    assert [] == submit(core, "a", "b", zones=frozenset({"east"})) + submit(core, "c")
    assert ["a-1", "b-1", "c-1"] == started(core.on_worker_report(view("w", zone="east"), 1.0))


# -- parked engines


@pytest.mark.parametrize("cause", ["worker_parked", "worker_starting"])
def test_who_meets_a_parked_worker_goes_elsewhere_or_waits(cause: str) -> None:
    """However often: nothing ran, so nothing is lost, and the request keeps its place and its age."""
    core = a_core("w-0")
    submit(core, "a")
    for number in range(1, 8):
        core.on_worker_report(view("w-0", state=WorkerState.PARKED), float(number))
        assert [] == started(core.on_ended(f"a-{number}", Outcome.FAILED, cause, float(number)))
        core.on_finished(usage(f"a-{number}", Outcome.FAILED, cause, input_tokens=0, output_tokens=0), float(number))
        assert 1 == len(core.queue)
        assert [f"a-{number + 1}"] == started(core.on_worker_report(view("w-0"), number + 0.5))
    assert (7, 0) == (core.stats.bounced, core.stats.retried)
    assert ["Settle", "Finish"] == kinds(complete(core, "a-8", 9.0))
    assert_idle(core)


def test_who_waits_for_a_parked_worker_is_not_refused_for_want_of_one() -> None:
    """It waits for a wake, up to its own limits; after that it is refused as whoever waits too long."""
    core = a_core(no_worker_timeout_s=60.0, max_wait_s=300.0, lost_s=1e9)
    core.on_worker_report(view("w-0", state=WorkerState.PARKED), 0.0)
    submit(core, "a")
    for now_s in range(0, 300, 10):
        core.on_worker_report(view("w-0", state=WorkerState.PARKED), float(now_s))
        assert [] == of_kind(core.tick(float(now_s)), Reject)
    (rejected,) = of_kind(core.tick(301.0), Reject)
    assert "queue_timeout" == rejected.rejection.reason


def test_what_a_parked_engine_had_cached_is_forgotten() -> None:
    """Its KV went with it: nobody is sent there for a prefix that is gone."""
    core = a_core("w-0")
    blocks = tuple(range(1, 7))
    submit(core, "a", prefix_blocks=blocks)
    complete(core, "a-1")
    (known,) = of_kind(submit(core, "b", now_s=1.0, prefix_blocks=blocks), Dispatch)
    assert ", 0 of" not in known.reason
    complete(core, "b-1", 1.0)
    core.on_worker_report(view("w-0", state=WorkerState.PARKED), 2.0)
    core.on_worker_report(view("w-0", state=WorkerState.STARTING), 3.0)
    core.on_worker_report(view("w-0"), 4.0)
    (anew,) = of_kind(submit(core, "c", now_s=5.0, prefix_blocks=blocks), Dispatch)
    assert ", 0 of" in anew.reason


def test_a_parked_worker_is_lost_like_any_other_when_it_falls_silent() -> None:
    """Its worker goes on speaking while its engine is stopped."""
    core = a_core(lost_s=60.0)
    core.on_worker_report(view("w-0", state=WorkerState.PARKED), 0.0)
    core.tick(59.0)
    assert ["w-0"] == list(core.cluster.workers)
    core.tick(61.0)
    assert [] == list(core.cluster.workers)


# -- budgets

TENANT = Level("tenant", "t")


def a_core_with_budget(limit: int, measure: Measure = Measure.TOKENS) -> Scheduler:
    """One worker; tenant ``t`` may use so much in an hour."""
    budgets = {TENANT: (Budget(measure, limit, Window.parse("1h")),)}
    core = Scheduler(models=[MODEL], rules=Rules(budgets=budgets))
    core.on_worker_report(view("w"), 0.0)
    return core


def held(core: Scheduler) -> int:
    return sum(core.holds.budgets.held_total().values())


def test_whom_no_budget_covers_is_refused_and_holds_nothing() -> None:
    """150 tokens each, 300 are there: the third is refused, with the budget that refused it."""
    core = a_core_with_budget(300)
    assert ["a-1", "b-1"] == started(submit(core, "a", "b"))
    (reject,) = submit(core, "c")
    assert isinstance(reject, Reject)
    assert (429, "rate_limit_exceeded") == (reject.rejection.status, reject.rejection.reason)
    assert reject.rejection.shortage is not None
    assert ("tenant t", 300, 0) == (
        reject.rejection.shortage.level, reject.rejection.shortage.limit, reject.rejection.shortage.left,
    )  # fmt: skip
    complete(core, "a-1")
    complete(core, "b-1")
    assert 0 == held(core)
    (state,) = core.holds.budgets.states(request("d"))
    assert 2 * 15 == state.used


def test_the_engine_may_put_out_what_the_hold_covers() -> None:
    """20 of 120 tokens are left for the answer."""
    (dispatch,) = of_kind(submit(a_core_with_budget(120), "a"), Dispatch)
    assert 20 == dispatch.max_output_tokens


@pytest.mark.parametrize("end", ["cancel", "abort", "late", "drain"])
def test_whoever_never_started_gives_its_hold_back(end: str) -> None:
    """On every way out of the queue, or past it."""
    core = a_core_with_budget(10_000)
    core.on_worker_lost("w", "gone", 0.0)
    submit(core, "a", deadline_s=5.0)
    assert 150 == held(core)
    {
        "cancel": lambda: core.cancel("a", "client_gone", 1.0),
        "abort": lambda: core.abort_all("shutting_down", 1.0),
        "late": lambda: core.tick(6.0),
        "drain": lambda: core.drain(1.0),
    }[end]()
    assert (0, 0) == (core.num_open, held(core))
    (state,) = core.holds.budgets.states(request("b"))
    assert 0 == state.used


def test_a_retry_holds_once_and_charges_once() -> None:
    """The first worker dies; the operator pays what it did, the budget pays the answer."""
    core = a_core_with_budget(10_000)
    submit(core, "a")
    core.on_progress([progress("a-1", prompt=80, output=3)], 0.5)
    core.on_worker_report(view("v"), 1.0)
    assert ["a-2"] == started(core.on_worker_lost("w", "gone", 2.0))
    assert 80 + 50 == held(core)
    complete(core, "a-2", 3.0)
    (state,) = core.holds.budgets.states(request("b"))
    assert (0, 15) == (held(core), state.used)


def test_energy_is_settled_when_it_is_booked_and_told_by_the_story() -> None:
    """The request is over long before its window closes."""
    core = a_core_with_budget(10**9, Measure.ENERGY_MJ)
    known = StepCurves(time_s=(0.01, 1e-4, 1e-3, 0.0), energy_joules=(1.0, 0.01, 0.1, 0.0), idle_watts=0.0)
    core.on_worker_report(view("w", curves=known), 0.0)
    submit(core, "a")
    complete(core, "a-1")
    assert held(core) > 0
    core.holds.book_energy("a-1", energy_mj=321, gpu_us=5)
    assert 0 == held(core)
    story = core.explain("a")
    assert story is not None
    assert [("energy_mj", 321)] == [(each["measure"], each["settled"]) for each in story["budgets"]]


# -- the plain life


def test_a_request_is_sent_answered_settled_and_finished() -> None:
    """In this order, with what the worker counted."""
    core = a_core("w")
    (dispatch,) = submit(core, "a", max_output_tokens=7, band=0)
    assert isinstance(dispatch, Dispatch)
    assert ("a-1", "w", 7, 0) == (
        dispatch.attempt_id, dispatch.worker_id, dispatch.max_output_tokens, dispatch.priority,
    )  # fmt: skip
    assert core.knows("a-1")
    assert core.answers("a-1")
    settle, finish = complete(core, "a-1")
    assert isinstance(settle, Settle)
    assert isinstance(finish, Finish)
    assert (Payer.REQUEST, 10, 5, True) == (
        settle.payer, settle.tokens.input_tokens, settle.tokens.output_tokens, settle.is_exact,
    )  # fmt: skip
    assert ("a-1", Outcome.COMPLETED, "") == (finish.attempt_id, finish.outcome, finish.cause)
    assert not core.knows("a-1")
    assert_idle(core)


def test_a_settlement_costs_what_the_rates_say() -> None:
    """Of the tokens that the worker counted, at the rates of the admission; the operator's attempts cost nobody."""
    rates = Rates(input_nano=2_000_000, cached_nano=1_000_000, output_nano=10_000_000)
    core = a_core("w")
    submit(core, "a", rates=rates)
    (settle,) = of_kind(core.on_finished(usage("a-1", input_tokens=10, cached_tokens=4, output_tokens=5), 1.0), Settle)
    assert 6 * 2 + 4 * 1 + 5 * 10 == settle.cost_nano
    submit(core, "b", rates=rates)
    (settle,) = of_kind(core.on_finished(usage("b-1", Outcome.FAILED, "engine_error"), 1.0), Settle)
    assert (Payer.OPERATOR, 0) == (settle.payer, settle.cost_nano)


def test_usage_alone_ends_an_attempt() -> None:
    """Two channels have no order between them; the late other end changes nothing."""
    core = a_core("w")
    submit(core, "a")
    assert ["Settle", "Finish"] == kinds(core.on_finished(usage("a-1"), 1.0))
    assert [] == core.on_ended("a-1", Outcome.COMPLETED, "", 2.0)
    assert_idle(core)


def test_nothing_that_is_said_twice_counts_twice() -> None:
    """Replayed records, repeated ends, progress and bytes of strangers."""
    core = a_core("w")
    submit(core, "a")
    core.on_ended("a-1", Outcome.COMPLETED, "", 1.0)
    assert [] == core.on_ended("a-1", Outcome.FAILED, "stalled", 1.0)
    assert ["Settle", "Finish"] == kinds(core.on_finished(usage("a-1"), 1.0))
    assert [] == core.on_finished(usage("a-1"), 1.0)
    core.on_progress([progress("a-1"), progress("stranger-1")], 1.0)
    core.on_first_byte("a-1", 1.0)
    assert [] == core.cancel("a", "client_gone", 1.0)
    assert [] == core.on_worker_lost("stranger", "worker_lost", 1.0)
    assert_idle(core)


def test_a_full_worker_lets_wait_and_the_next_end_starts_the_next() -> None:
    """In order of arrival."""
    core = a_core("w", max_running=1)
    assert ["a-1"] == started(submit(core, "a", "b", "c"))
    assert ["b-1"] == started(complete(core, "a-1"))
    assert ["c-1"] == started(complete(core, "b-1"))
    complete(core, "c-1")
    assert_idle(core)


def test_a_request_waits_for_its_first_worker() -> None:
    """A report that makes a worker ready starts who waits."""
    core = a_core()
    assert [] == submit(core, "a")
    core.on_worker_report(view(state=WorkerState.STARTING), 1.0)
    assert ["a-1"] == started(core.on_worker_report(view(), 2.0))


def test_time_never_goes_back() -> None:
    """A driver's clock that does is not believed."""
    core = a_core("w")
    core.tick(8.0)
    (reject,) = submit(core, "a", now_s=0.0, deadline_s=5.0)
    assert isinstance(reject, Reject)
    assert "deadline_exceeded" == reject.rejection.reason


# -- order


def test_bands_are_strict_and_nobody_of_a_model_overtakes() -> None:
    """A small flex request does not pass a big one in front of it, nor a priority one behind it."""
    core = a_core("w", max_running=2)
    submit(core, "x", "y")
    submit(core, "flex", band=2)
    submit(core, "default", band=1)
    submit(core, "big", band=0, prompt_tokens_bound=9_990)
    assert [] == complete(core, "x-1")[2:], "nobody passes the big one, whose KV does not fit yet"
    assert ["big-1"] == started(complete(core, "y-1"))
    assert ["default-1"] == started(complete(core, "big-1"))[:1]


def test_a_newcomer_of_a_better_band_is_tried_although_the_line_is_stuck() -> None:
    """Another head is another question; who stood there before is tried again behind it."""
    core = a_core("w")
    submit(core, "a")
    submit(core, "big", prompt_tokens_bound=9_990)
    assert ["small-1"] == started(submit(core, "small", band=0))
    assert [] == submit(core, "small-too")


def test_a_lost_worker_s_requests_come_back_best_band_first() -> None:
    """Whatever order they were sent in: all are back in line before the first is sent again."""
    core = a_core("a")
    submit(core, "flex", band=2)
    submit(core, "default")
    submit(core, "priority", band=0)
    core.on_worker_report(view("b", max_running=2, curves=curves(t0_s=9.0)), 0.0)
    actions = core.on_worker_lost("a", "worker_lost", 1.0)
    assert ["priority-2", "default-2"] == started(actions)
    assert ["Settle"] * 3 + ["Dispatch"] * 2 == kinds(actions)


def test_a_shared_worker_goes_to_the_best_band_of_all_models() -> None:
    """A long flex line for one model does not hold up a priority request for another."""
    core = Scheduler(models=["x", "y"])
    core.on_worker_report(view(models=("x", "y"), max_running=1), 0.0)
    for name, model, band in [("a", "x", 2), ("b", "x", 2), ("c", "y", 0)]:
        core.submit(request(name, model=model, band=band), 0.0)
    assert ["c-1"] == started(core.on_finished(usage("a-1"), 1.0))


def test_who_stood_behind_a_head_that_gave_up_is_tried_at_once() -> None:
    """Cancelled or past its deadline: the small one behind the big one fits."""
    for give_up in (
        lambda core: core.cancel("big", "client_gone", 5.0),
        lambda core: core.tick(5.0),
    ):
        core = a_core("w")
        submit(core, "a")
        submit(core, "big", prompt_tokens_bound=9_990, deadline_s=5.0)
        submit(core, "small")
        assert ["small-1"] == started(give_up(core))


# -- refusals and waits


def test_a_full_band_refuses_and_keeps_nothing_of_it() -> None:
    """503 with Retry-After; a worker with room takes it without asking the queue."""
    core = a_core(queue=QueueLimits(max_requests=1))
    submit(core, "a")
    (reject,) = submit(core, "b")
    assert isinstance(reject, Reject)
    assert "queue_full" == reject.rejection.reason
    assert 1 == core.num_open
    assert core.retry_after_s(1) >= 1


def test_nobody_waits_for_ever() -> None:
    """Not for room, not for a worker that does not come."""
    core = a_core("w", max_running=1, max_wait_s=100.0, no_worker_timeout_s=20.0, lost_s=1e9, silent_s=1e9)
    submit(core, "runs", "waits")
    assert [] == core.tick(99.0)
    (reject,) = core.tick(100.0)
    assert isinstance(reject, Reject)
    assert ("waits", "queue_timeout") == (reject.request_id, reject.rejection.reason)
    empty = a_core(no_worker_timeout_s=20.0)
    submit(empty, "a")
    empty.tick(0.05)
    (reject,) = empty.tick(20.05)
    assert isinstance(reject, Reject)
    assert "no_worker" == reject.rejection.reason
    assert_idle(empty)


def test_a_request_that_ran_long_before_its_worker_was_lost_may_wait_again() -> None:
    """An hour in an engine is no hour in the queue."""
    core = a_core("v", "w", max_running=1, max_wait_s=600.0, sign_timeout_s=1e9, lost_s=1e9)
    submit(core, "a", "b")
    core.on_worker_report(view("w", max_running=1, num_running=1), 3600.0)
    assert ["Settle"] == kinds(core.on_worker_lost("v", "worker_lost", 3600.0))
    assert [] == core.tick(3600.1)
    assert ["a-2"] == started(complete(core, "b-1", 3601.0))


def test_a_deadline_ends_who_waits_and_aborts_who_runs() -> None:
    """504 for the one; the operator pays for what the other had computed."""
    core = a_core("w", max_running=1)
    submit(core, "runs", "waits", deadline_s=5.0)
    core.on_progress([progress("runs-1", prompt=100, computed=100, output=3)], 1.0)
    assert [] == core.tick(4.9)
    abort, reject = core.tick(5.0)
    assert isinstance(abort, Abort)
    assert isinstance(reject, Reject)
    assert ("runs-1", "deadline_exceeded") == (abort.attempt_id, abort.reason)
    assert "deadline_exceeded" == reject.rejection.reason
    settle, finish = core.on_finished(usage("runs-1", Outcome.ABORTED, "deadline_exceeded"), 5.1)
    assert isinstance(settle, Settle)
    assert isinstance(finish, Finish)
    assert (Payer.OPERATOR, Outcome.ABORTED, "deadline_exceeded") == (settle.payer, finish.outcome, finish.cause)
    assert_idle(core)


def test_nobody_is_sent_after_its_deadline() -> None:
    """Between two ticks room may come too late; and a worker may be lost too late for a retry."""
    core = a_core("w", max_running=1)
    submit(core, "a")
    submit(core, "b", deadline_s=5.0)
    assert ["Settle", "Finish", "Reject"] == kinds(complete(core, "a-1", 5.01))
    submit(core, "c", deadline_s=9.0, now_s=6.0)
    core.on_worker_report(view("v"), 6.0)
    assert ["Settle", "Reject"] == kinds(core.on_worker_lost("w", "worker_lost", 9.5))
    assert_idle(core)


def test_an_ended_attempt_whose_deadline_passed_is_not_tried_again_later() -> None:
    """Its deadline found it ending; its usage comes when another worker is there."""
    core = a_core("a")
    submit(core, "a", deadline_s=5.0)
    core.on_ended("a-1", Outcome.FAILED, "engine_error:X", 4.0)
    assert [] == core.tick(5.0)
    core.on_worker_report(view("b"), 5.5)
    assert ["Settle", "Reject"] == kinds(core.on_finished(usage("a-1", Outcome.FAILED, "engine_error:X"), 6.0))
    assert_idle(core)


# -- cancelled at every stage


def test_cancelled_while_it_waits() -> None:
    """No attempt answered it, none is settled."""
    core = a_core("w", max_running=1)
    submit(core, "a", "b")
    (finish,) = core.cancel("b", "client_gone", 1.0)
    assert isinstance(finish, Finish)
    assert (None, Outcome.ABORTED, "client_gone") == (finish.attempt_id, finish.outcome, finish.cause)
    assert [] == core.cancel("b", "client_gone", 1.0)


@pytest.mark.parametrize("has_first_byte", [False, True])
def test_cancelled_while_it_runs(has_first_byte: bool) -> None:
    """One abort; the client pays for what it broke off."""
    core = a_core("w")
    submit(core, "a")
    if has_first_byte:
        core.on_first_byte("a-1", 1.0)
    assert ["Abort"] == kinds(core.cancel("a", "client_gone", 1.0))
    assert [] == core.cancel("a", "slow_reader", 1.0)
    assert [] == core.on_ended("a-1", Outcome.ABORTED, "client_gone", 1.1)
    settle, finish = core.on_finished(usage("a-1", Outcome.ABORTED, "client_gone"), 1.2)
    assert isinstance(settle, Settle)
    assert isinstance(finish, Finish)
    assert (Payer.REQUEST, Outcome.ABORTED, "client_gone") == (settle.payer, finish.outcome, finish.cause)
    assert_idle(core)


def test_cancelled_while_it_ends() -> None:
    """Too late: the answer was whole."""
    core = a_core("w")
    submit(core, "a")
    core.on_ended("a-1", Outcome.COMPLETED, "", 1.0)
    assert [] == core.cancel("a", "client_gone", 1.0)
    (_, finish) = core.on_finished(usage("a-1"), 1.1)
    assert isinstance(finish, Finish)
    assert finish.outcome is Outcome.COMPLETED


def test_cancelled_while_it_waits_for_its_second_try() -> None:
    """Over at once; what the first try owes is settled when it comes, on the operator."""
    core = a_core("a", max_running=1)
    submit(core, "a")
    core.on_ended("a-1", Outcome.FAILED, "stalled", 1.0)
    core.cluster.hold(core.cluster.workers["a"])
    assert ["Finish"] == kinds(core.cancel("a", "client_gone", 1.0))
    (settle,) = core.on_finished(usage("a-1", Outcome.FAILED, "stalled"), 2.0)
    assert isinstance(settle, Settle)
    assert settle.payer is Payer.OPERATOR
    assert_idle(core)


def test_an_abort_that_is_never_obeyed_ends_by_the_clock() -> None:
    """Settled by its last progress, marked as not exact, and its credit comes back."""
    core = a_core("w", final_timeout_s=30.0, lost_s=1e9, silent_s=1e9)
    submit(core, "a")
    core.on_progress([progress("a-1", prompt=40, computed=40, output=7)], 0.5)
    core.cancel("a", "client_gone", 1.0)
    assert [] == core.tick(30.9)
    settle, finish = core.tick(31.0)
    assert isinstance(settle, Settle)
    assert isinstance(finish, Finish)
    assert (40, 7, False) == (settle.tokens.input_tokens, settle.tokens.output_tokens, settle.is_exact)
    assert Outcome.ABORTED is finish.outcome
    assert_idle(core)


def test_usage_that_never_comes_ends_by_the_clock() -> None:
    """The client had its whole answer, and is told so."""
    core = a_core("w", final_timeout_s=30.0, lost_s=1e9, silent_s=1e9)
    submit(core, "a")
    core.on_ended("a-1", Outcome.COMPLETED, "", 1.0)
    settle, finish = core.tick(31.0)
    assert isinstance(settle, Settle)
    assert isinstance(finish, Finish)
    assert ("usage_missing", Outcome.COMPLETED, "") == (settle.cause, finish.outcome, finish.cause)


# -- workers that go and come


def test_a_lost_worker_s_request_is_tried_once_elsewhere() -> None:
    """Before its first byte; the operator pays for the first try."""
    core = a_core("a", "b")
    submit(core, "x")
    settle, dispatch = core.on_worker_lost("a", "worker_lost", 1.0)
    assert isinstance(settle, Settle)
    assert isinstance(dispatch, Dispatch)
    assert (Payer.OPERATOR, "x-2", "b") == (settle.payer, dispatch.attempt_id, dispatch.worker_id)
    core.on_worker_report(view("c"), 1.0)
    settle, finish = core.on_worker_lost("b", "worker_lost", 2.0)
    assert isinstance(finish, Finish)
    assert (Outcome.FAILED, "worker_lost") == (finish.outcome, finish.cause)
    assert_idle(core)


def test_never_a_second_try_after_the_first_byte() -> None:
    """The client saw half an answer: it is told, and pays for what it saw."""
    core = a_core("a", "b")
    submit(core, "x")
    core.on_progress([progress("x-1", output=3)], 0.5)
    core.on_first_byte("x-1", 0.5)
    settle, finish = core.on_worker_lost("a", "worker_lost", 1.0)
    assert isinstance(settle, Settle)
    assert isinstance(finish, Finish)
    assert (Payer.REQUEST, 3, Outcome.FAILED) == (settle.payer, settle.tokens.output_tokens, finish.outcome)


def test_a_worker_that_is_back_under_its_id_is_another_life() -> None:
    """It may get the request it lost; what it says of attempts of its former life is a stranger's."""
    core = a_core("w")
    submit(core, "a")
    assert ["Settle"] == kinds(core.on_worker_lost("w", "worker_lost", 1.0))
    assert ["a-2"] == started(core.on_worker_report(view(), 2.0))
    assert [] == core.on_finished(usage("a-1"), 2.1)
    assert ["Settle", "Finish"] == kinds(complete(core, "a-2", 3.0))
    assert_idle(core)


def test_a_silent_worker_gets_nothing_and_then_is_lost() -> None:
    """Ten seconds, a minute; a report in between makes it ready again."""
    core = a_core("w", silent_s=10.0, lost_s=60.0)
    submit(core, "a")
    core.tick(10.1)
    assert [] == submit(core, "b", now_s=10.2)
    assert ["b-1"] == started(core.on_worker_report(view(), 11.0))
    actions = core.tick(71.1)
    assert ["Settle", "Settle"] == kinds(actions)
    assert {"silent"} == {settle.cause for settle in of_kind(actions, Settle)}
    assert [] == list(core.cluster.workers)


def test_a_call_that_an_idle_worker_never_got_is_made_elsewhere() -> None:
    """It reports that nothing runs there: the call was lost."""
    core = a_core("a", "b", call_lost_s=60.0)
    submit(core, "x")
    for now_s in (1.0, 30.0, 59.0):
        assert [] == core.on_worker_report(view("a"), now_s)
    actions = core.on_worker_report(view("a"), 61.0)
    assert ["Abort", "Settle", "Dispatch"] == kinds(actions)
    assert ["b"] == [dispatch.worker_id for dispatch in of_kind(actions, Dispatch)]


def test_a_call_that_a_busy_worker_never_got_is_missed_too() -> None:
    """Nobody waits for ever behind others that run well; one that shows signs is left alone."""
    core = a_core("a", "b", sign_timeout_s=600.0, lost_s=1e9, silent_s=1e9)
    submit(core, "lost", "b", "fine")
    for now_s in (100.0, 300.0, 500.0):
        core.on_worker_report(view("a", num_running=1), now_s)
        core.on_progress([progress("b-1"), progress("fine-1")], now_s)
    assert [] == core.tick(599.0)
    actions = core.tick(600.0)
    assert ["Abort", "Settle", "Dispatch"] == kinds(actions)
    assert {"no_sign"} == {settle.cause for settle in of_kind(actions, Settle)}
    assert ["lost-2"] == started(actions)
    assert [] == core.tick(1099.0)


def test_a_busy_worker_is_held_until_its_next_report() -> None:
    """Whichever of its two words comes first: the next try goes elsewhere, or waits."""
    for say in (
        lambda core: core.on_ended("a-1", Outcome.FAILED, "worker_busy", 1.0),
        lambda core: core.on_finished(usage("a-1", Outcome.FAILED, "worker_busy"), 1.0),
    ):
        core = a_core("w")
        submit(core, "a")
        assert [] == started(say(core))
        assert [] == submit(core, "b")
        assert ["a-2", "b-1"] == started(core.on_worker_report(view(), 2.0))


def test_a_worker_that_is_always_busy_ends_the_request_after_three_bounces() -> None:
    """Somebody who waits gets an answer."""
    core = a_core("w")
    submit(core, "a")
    for number in (1, 2, 3):
        core.on_ended(f"a-{number}", Outcome.FAILED, "worker_busy", float(number))
        core.on_finished(usage(f"a-{number}", Outcome.FAILED, "worker_busy"), float(number))
        assert [f"a-{number + 1}"] == started(core.on_worker_report(view(), number + 0.5))
    actions = core.on_finished(usage("a-4", Outcome.FAILED, "worker_busy"), 4.0)
    assert ["Settle", "Finish"] == kinds(actions)
    assert (3, 0) == (core.stats.bounced, core.stats.retried)


def test_a_worker_that_stops_hands_its_requests_on() -> None:
    """An abort that nobody here ordered is its failure, not the client's wish."""
    core = a_core("a", "b")
    submit(core, "x")
    core.on_worker_report(view("a", state=WorkerState.DRAINING), 1.0)
    assert ["x-2"] == started(core.on_ended("x-1", Outcome.ABORTED, "worker_stopped", 1.1))
    assert not core.answers("x-1")
    assert core.knows("x-1")


def test_progress_makes_room_at_the_next_tick() -> None:
    """For every model that the worker serves."""
    core = Scheduler(models=["x", "y"])
    core.on_worker_report(view(models=("x", "y"), kv_tokens=1000), 0.0)
    core.submit(request("a", model="x", prompt_tokens_bound=900), 0.0)
    core.submit(request("b", model="y", prompt_tokens_bound=200), 0.0)
    assert [] == core.tick(1.0)
    core.on_progress([progress("a-1", prompt=50)], 1.1)
    assert ["b-1"] == started(core.tick(1.2))


# -- the end


def test_drain_refuses_who_waits_and_lets_who_runs_end() -> None:
    """Nothing new, no second try."""
    core = a_core("a", "b", max_running=1)
    submit(core, "x", "y", "z")
    (reject,) = core.drain(1.0)
    assert isinstance(reject, Reject)
    assert ("z", "shutting_down") == (reject.request_id, reject.rejection.reason)
    assert ["Reject"] == kinds(submit(core, "new"))
    assert ["Settle", "Finish"] == kinds(complete(core, "x-1", 2.0))
    assert ["Settle", "Finish"] == kinds(core.on_worker_lost("b", "worker_lost", 3.0))
    assert_idle(core)


def test_abort_all_ends_everything_and_starts_nothing() -> None:
    """Who waits is finished, who runs is aborted."""
    core = a_core("w", max_running=1)
    submit(core, "a", "b", "c")
    actions = core.abort_all("shutting_down", 1.0)
    assert ["Abort", "Finish", "Finish"] == kinds(actions)
    assert ["Settle", "Finish"] == kinds(core.on_worker_lost("w", "shutting_down", 2.0))
    assert_idle(core)


def test_a_request_id_is_used_once() -> None:
    """They are made here; a second one is our own mistake."""
    core = a_core("w")
    submit(core, "a")
    with pytest.raises(AssertionError, match="submitted twice"):
        submit(core, "a")


def test_decisions_are_counted() -> None:
    """Metrics read what was decided."""
    core = a_core("a", "b")
    submit(core, "x", "y")
    submit(core, "z", model="other")
    complete(core, "x-1")
    core.on_worker_lost(core._running._attempts["y-1"].worker.worker_id, "worker_lost", 1.0)
    stats = core.stats
    assert (3, 3, 1, 1) == (stats.submitted, stats.dispatched, stats.retried, stats.lost_workers)
    assert ({"model_not_found": 1}, {"completed": 1}) == (stats.rejected, stats.finished)
    assert {MODEL} == core.admission.models


# -- anything, in any order


def run_at_random(seed: int, num_steps: int = 150) -> tuple[Scheduler, list[Action]]:
    """Calls of every kind in any order, repeated and late ones included; then everything is brought to an end."""
    chance, now_s = random.Random(seed), 0.0
    core = Scheduler(models=["x", "y"], limits=Limits(queue=QueueLimits(max_requests=6), max_wait_s=40.0))
    actions: list[Action] = []
    sent: list[str] = []

    def any_attempt() -> str:
        return chance.choice(sent) if sent else "nobody-1"

    def report() -> list[Action]:
        models = chance.choice([("x",), ("y",), ("x", "y")])
        state = chance.choice([WorkerState.READY, WorkerState.READY, WorkerState.SICK])
        name = f"w{chance.randrange(3)}"
        return core.on_worker_report(view(name, models=models, state=state, kv_tokens=900), now_s)

    def new() -> list[Action]:
        number = core.stats.submitted
        return core.submit(
            request(
                f"r{number}", model=chance.choice("xy"), band=chance.randrange(3), arrival_s=now_s,
                prompt_tokens_bound=chance.randrange(1, 600), num_sequences=chance.randrange(1, 3),
                deadline_s=now_s + chance.uniform(1, 30) if chance.random() < 0.3 else None,
            ),
            now_s,
        )  # fmt: skip

    outcomes = [(Outcome.COMPLETED, ""), (Outcome.FAILED, "worker_busy"), (Outcome.FAILED, "stalled")]
    outcomes += [(Outcome.ABORTED, "worker_stopped"), (Outcome.REFUSED, ""), (Outcome.FAILED, "engine_error:X")]
    steps: list[Callable[[], list[Action]]] = [
        new, new, new, report, report,
        lambda: core.cancel(f"r{chance.randrange(core.stats.submitted + 1)}", "client_gone", now_s),
        lambda: core.on_ended(any_attempt(), *chance.choice(outcomes), now_s),
        lambda: core.on_finished(usage(any_attempt(), *chance.choice(outcomes)), now_s),
        lambda: core.on_finished(usage(any_attempt()), now_s),
        lambda: core.on_first_byte(any_attempt(), now_s) or [],
        lambda: core.on_progress([progress(any_attempt(), output=chance.randrange(60))], now_s) or [],
        lambda: core.on_worker_lost(f"w{chance.randrange(3)}", "worker_lost", now_s),
        lambda: core.tick(now_s),
    ]  # fmt: skip
    for _ in range(num_steps):
        now_s += chance.choice([0.0, 0.01, 1.0])
        new_actions = chance.choice(steps)()
        sent += started(new_actions)
        actions += new_actions
    for wait_s in (61.0, 700.0, 61.0):
        now_s += wait_s
        actions += core.tick(now_s)
    return core, actions


@thorough
@given(st.integers(0, 2**32))
def test_whatever_happens_everything_ends_once(seed: int) -> None:
    """One Reject or Finish a request, one Settle an attempt and before its Finish, no credit left, no line left."""
    core, actions = run_at_random(seed)
    ends = Counter(action.request_id for action in actions if isinstance(action, Reject | Finish))
    assert {f"r{number}": 1 for number in range(core.stats.submitted)} == ends
    dispatched = [dispatch.attempt_id for dispatch in of_kind(actions, Dispatch)]
    settled = [settle.attempt_id for settle in of_kind(actions, Settle)]
    assert sorted(dispatched) == sorted(settled)
    assert len(set(dispatched)) == len(dispatched)
    position = {settle.attempt_id: at for at, settle in enumerate(actions) if isinstance(settle, Settle)}
    for at, action in enumerate(actions):
        assert not isinstance(action, Finish) or action.attempt_id is None or position[action.attempt_id] < at
    assert_idle(core)
    assert not core._running._attempts
    assert not core._running._ending


@thorough
@given(st.integers(0, 2**32))
def test_the_same_calls_yield_the_same_actions(seed: int) -> None:
    """No clock, no chance, no order of a set."""
    assert run_at_random(seed)[1] == run_at_random(seed)[1]


def test_turns_are_charged_where_they_are_asked_for() -> None:
    """One set of counters: who has just run a long prompt waits behind who has not."""
    core = a_core("w", max_running=1)
    submit(core, "running", tenant="heavy", prompt_tokens_bound=5000)
    submit(core, "a", tenant="heavy")
    submit(core, "b", tenant="light")
    assert ["b-1"] == started(core.on_finished(usage("running-1", input_tokens=5000), 1.0))


def test_no_answer_begins_after_its_deadline() -> None:
    """What the engine says while it is being aborted opens no answer that could not be ended well."""
    core = a_core("w")
    submit(core, "a", deadline_s=5.0)
    assert core.answers("a-1")
    assert ["Abort"] == kinds(core.tick(5.0))
    assert not core.answers("a-1")


def test_the_first_of_its_model_takes_no_room_that_a_better_band_waits_for() -> None:
    """Both models share the worker: coming first to an empty line is no way around whoever waits in another."""
    core = Scheduler(models=["x", "y"], rules=Rules(reserve_ratio=0.0))
    core.on_worker_report(view("w", models=("x", "y"), max_sequences=4, max_running=9), 0.0)
    assert ["a-1"] == started(submit(core, "a", model="x", num_sequences=3))
    assert [] == submit(core, "head", model="x", num_sequences=2, band=0)
    assert [] == submit(core, "small", model="y", band=2)
    assert ["head-1", "small-1"] == started(core.on_finished(usage("a-1"), 1.0))


def test_the_first_that_fits_nowhere_has_room_made_for_it_at_once() -> None:
    """One look at the workers; who made room waits again, at its own place."""
    core = a_core("w", max_running=1)
    submit(core, "batch", band=2)
    (abort,) = submit(core, "urgent", band=0)
    assert isinstance(abort, Abort)
    assert ("batch-1", "preempted") == (abort.attempt_id, abort.reason)
    assert ["urgent-1"] == started(core.on_finished(usage("batch-1", Outcome.ABORTED, "preempted"), 1.0))
    assert ["batch-2"] == started(complete(core, "urgent-1", 2.0))
