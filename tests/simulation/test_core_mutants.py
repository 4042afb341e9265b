"""The checker bites: each deliberately wrong core is told from the right one by its trace."""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from scheduler.core import budgets, fairness, placement
from scheduler.core.actions import Abort, Action, Dispatch, Finish, Payer, Rejection, Settle, Tokens
from scheduler.core.admission import Admission, Limits
from scheduler.core.attempts import Attempt, Entry, Fate
from scheduler.core.budgets import Budgets
from scheduler.core.cluster import Cluster, Row, WorkerView
from scheduler.core.data_policy import DataPolicy
from scheduler.core.fairness import Fairness
from scheduler.core.holds import Holds
from scheduler.core.queue import Line, Queue
from scheduler.core.request import Band, Request
from scheduler.core.rules import Rules
from scheduler.core.running import Running
from scheduler.core.scheduler import Scheduler
from scheduler.core.starting import Starter
from scheduler.core.waiting import Turn
from scheduler.simulation.checker import check
from scheduler.simulation.draws import Kind, draw_scenario
from scheduler.simulation.driver import simulate
from workers.types import Outcome, UsageRecord, WorkerState

MAX_SEEDS = 25


def nothing(*args: Any, **values: Any) -> None:
    """Does not do it."""


def how_many_there_are(table: Any, codes: Any, *args: Any) -> int:
    """Everybody has room."""
    return int((codes == 0).sum())


def the_beginning(*args: Any) -> int:
    """Nothing that has happened since counts."""
    return 0


# -- lives and settlements


class KeepsCreditOnCancel(Scheduler):
    """Credit of what its client broke off stays claimed."""

    def _close(self, attempt: Attempt, tokens: Tokens, **how: Any) -> list[Action]:
        actions = super()._close(attempt, tokens, **how)
        if attempt.entry.cancel_reason:
            attempt.worker.owned[Row.KV - Row.ATTEMPTS] += attempt.prompt_tokens
        return actions


class LeaksCreditOnRetry(Scheduler):
    """Credit of what failed and is tried again stays claimed."""

    def _close(self, attempt: Attempt, tokens: Tokens, **how: Any) -> list[Action]:
        actions = super()._close(attempt, tokens, **how)
        if not attempt.is_answering:
            attempt.worker.owned[Row.KV - Row.ATTEMPTS] += attempt.prompt_tokens
        return actions


class SettlesTwice(Scheduler):
    """Forgets that a usage record is replayed."""

    def on_finished(self, usage: UsageRecord, now_s: float) -> list[Action]:
        actions = super().on_finished(usage, now_s)
        return [*actions, *(each for each in actions[:1] if isinstance(each, Settle) and usage.cause)]


class NeverSettlesTheSuperseded(Scheduler):
    """Who is not waited for any more is not settled either."""

    def _close(self, attempt: Attempt, tokens: Tokens, **how: Any) -> list[Action]:
        is_answering = attempt.is_answering
        actions = super()._close(attempt, tokens, **how)
        return actions if is_answering else actions[1:]


class LetsClientsPayForVainWork(Scheduler):
    """What stalled is charged to the request."""

    def on_finished(self, usage: UsageRecord, now_s: float) -> list[Action]:
        actions = super().on_finished(usage, now_s)
        return [
            dataclasses.replace(each, payer=Payer.REQUEST)
            if isinstance(each, Settle) and each.cause in ("stalled", "preempted")
            else each
            for each in actions
        ]


class AppliesLateReports(Scheduler):
    """What an earlier attempt still says is taken for the word of the one that was sent after it."""

    def on_finished(self, usage: UsageRecord, now_s: float) -> list[Action]:
        known = self._running.get(usage.attempt_id)
        if known is not None and not known.is_answering and known.entry.attempt is not None:
            usage = msgspec.structs.replace(usage, attempt_id=known.entry.attempt.attempt_id)
        return super().on_finished(usage, now_s)


class RetriesAfterTheFirstByte(Scheduler):
    """The client sees the beginning of two answers."""

    def _fate(self, attempt: Attempt) -> Fate:
        has_first_byte, attempt.has_first_byte = attempt.has_first_byte, False
        fate = super()._fate(attempt)
        attempt.has_first_byte = has_first_byte
        return fate


class RetriesForEver(Scheduler):
    """Losses are not counted."""

    def _fate(self, attempt: Attempt) -> Fate:
        attempt.entry.num_losses = attempt.entry.num_bounces = 0
        return super()._fate(attempt)


class SwallowsAnEnd(Scheduler):
    """A client that left while it waited is never told: whoever accounts for it waits for ever."""

    def cancel(self, request_id: str, reason: str, now_s: float, *, by_client: bool = True) -> list[Action]:
        actions = super().cancel(request_id, reason, now_s, by_client=by_client)
        return [each for each in actions if not (isinstance(each, Finish) and each.outcome is Outcome.ABORTED)]


class EndsBeforeItSettles(Scheduler):
    """The client is told first."""

    def on_finished(self, usage: UsageRecord, now_s: float) -> list[Action]:
        actions = super().on_finished(usage, now_s)
        return [*actions[1:2], *actions[:1], *actions[2:]]


class ForgetsDeadlines(Scheduler):
    """Who is late is started all the same."""

    def submit(self, request: Request, now_s: float) -> list[Action]:
        return super().submit(dataclasses.replace(request, deadline_s=None), now_s)


class Patient(Scheduler):
    """Some bound is missing."""

    changes: dict[str, float]

    def __init__(self, *, limits: Limits, **values: Any) -> None:
        super().__init__(limits=dataclasses.replace(limits, **self.changes), **values)  # type: ignore[arg-type]


class WaitsForEver(Patient):
    changes = {"max_wait_s": 1e9}


class MissesNoCall(Patient):
    changes = {"call_lost_s": 1e9, "sign_timeout_s": 1e9}


class MissesNoUsage(Patient):
    changes = {"final_timeout_s": 1e9}


# -- places


class PlacesOnSickWorkers(Scheduler):
    """Believes that every worker is ready."""

    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        return super().on_worker_report(dataclasses.replace(view, state=WorkerState.READY), now_s)


class PlacesBeyondRoom(Scheduler):
    """One more than fit."""

    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        return super().on_worker_report(dataclasses.replace(view, max_running=view.max_running + 1), now_s)


class PlacesBeyondSequences(Scheduler):
    """Twice as many as the engine runs at once."""

    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        return super().on_worker_report(dataclasses.replace(view, max_sequences=2 * view.max_sequences), now_s)


def all_of_it(self: Starter, request: Request) -> float:
    """Every band may take the whole room."""
    return 1.0


class IgnoresModels(Scheduler):
    """Any worker will do."""

    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        return super().on_worker_report(dataclasses.replace(view, models=("x", "y")), now_s)


class TrustsTheFirstZone(Scheduler):
    """A worker that comes back elsewhere is taken for the one that it was."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._zones: dict[str, str] = {}

    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        zone = self._zones.setdefault(view.worker_id, view.zone)
        return super().on_worker_report(dataclasses.replace(view, zone=zone), now_s)


def everywhere_on_retry(self: Starter, turn: Turn, *args: Any) -> Any:
    """Residency was checked at the first start: that is enough."""
    policy, entry = self._policy, turn.entry
    if entry.num_attempts:
        self._policy = DataPolicy({zone: max(policy._zones.values(), default=0) for zone in self._cluster.zones})
        entry.request, asked = dataclasses.replace(entry.request, zones=None), entry.request
    try:
        return DECIDE(self, turn, *args)
    finally:
        if entry.num_attempts:
            entry.request = asked
            self._policy = policy
            self._policy.may = lambda request, zone: True  # type: ignore[method-assign]


DECIDE = Starter._decide


def is_particular(self: DataPolicy, request: Request) -> bool:
    """Who names zones is refused."""
    return request.zones is not None


def shed_the_best(self: Queue, request: Request) -> str | None:
    """Who waits in the best band has to leave first."""
    others = [each for each in self._waiting.values() if each.tenant != request.tenant]
    return None if self.has_room(request) or not others else min(others, key=lambda each: each.band).request_id


# -- order


class InvertsPriorityAfterPreemption(Scheduler):
    """Who made room for a higher band goes before it from then on."""

    def _wait(self, entry: Entry, cause: str, now_s: float) -> None:
        super()._wait(entry, cause, now_s)
        if cause == "preempted":
            self._waiting.reload(ageing_s=0.0, ageing_every=2)


class ServesTheLastFirst(Scheduler):
    """A tenant's own requests in the wrong order."""

    def submit(self, request: Request, now_s: float) -> list[Action]:
        self._lives._num_places -= 2
        return super().submit(request, now_s)


def worst_first(self: Line) -> list[int]:
    """The worst band of a line is the next."""
    return BANDS_OF(self)[::-1]


def is_any_batch_work(self: Attempt) -> bool:
    """Whoever saw a byte, it may have to make room."""
    entry = self.entry
    is_batch = entry.request.band == Band.FLEX and entry.num_preemptions < 3 and not entry.cancel_reason
    return is_batch and self.outcome is None and self.is_answering


def keep_among_batch(self: Running, attempt: Attempt, now_s: float) -> None:
    """Its client was given a byte, and nobody minds."""
    attempt.has_first_byte = True


BANDS_OF = Line.bands.fget


def is_any_work(self: Attempt) -> bool:
    """Interactive work has to make room as well."""
    return self.outcome is None and self.is_repeatable


class EmptiesEveryWorker(Scheduler):
    """For one that waits, everybody makes room everywhere."""

    def _place_waiting(self, now_s: float) -> list[Action]:
        actions = super()._place_waiting(now_s)
        if any(isinstance(each, Abort) and each.reason == "preempted" for each in actions):
            for worker, attempts in list(self._running.batch("x")):
                for attempt in attempts:
                    attempt.give_way(now_s)
                    actions.append(self._running.abort(attempt, "preempted", now_s))
                    self._wait(attempt.entry, "preempted", now_s)
                assert worker is not None
        return actions


# -- budgets


class _CapLifter(Starter):
    def start(self, turn: Turn, now_s: float) -> Dispatch | None:
        dispatch = super().start(turn, now_s)
        return dispatch and dataclasses.replace(dispatch, max_output_tokens=dispatch.max_output_tokens + 1)


class LiftsCaps(Scheduler):
    """The engine may put out one token more than is held."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._starter.__class__ = _CapLifter


class _CapIgnorer(Starter):
    def start(self, turn: Turn, now_s: float) -> Dispatch | None:
        dispatch = super().start(turn, now_s)
        return dispatch and dataclasses.replace(dispatch, max_output_tokens=turn.entry.request.max_output_tokens)


class AppliesNoCap(Scheduler):
    """What is held is not what is told to the engine."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._starter.__class__ = _CapIgnorer


class ForgetsReloads(Scheduler):
    """Limits stay as they were at the start."""

    def reload(self, rules: Rules, now_s: float) -> list[Action]:
        ours = self.rules
        return super().reload(dataclasses.replace(rules, budgets=ours.budgets, task_budgets=ours.task_budgets), now_s)


def end_unless_cancelled(self: Holds, entry: Entry) -> None:
    """The hold of what was cancelled stays."""
    if not entry.cancel_reason:
        END(self, entry)


def accounts_of_one_level(self: Budgets, request: Request, at_us: int) -> Any:
    """Only the first level is asked."""
    above = ABOVE(self, request, at_us)
    return above.of(tuple(each for each in above.accounts if each.level == above.accounts[0].level))


def charge_twice(self: Budgets, request_id: str, attempt_id: str, tokens: Tokens, money_nano: int) -> None:
    """Once by the end of the bytes, once by the usage."""
    CHARGE(self, request_id, attempt_id, tokens, money_nano)
    CHARGE(self, request_id, f"{attempt_id} again", tokens, money_nano)


def post_all(self: Budgets, attempt_id: str, amounts: Any, *, money_nano: int = 0) -> Any:
    """The request pays energy beyond its hold."""
    hold = self._unposted.get(attempt_id)
    if hold is not None:
        more = [0, 0, 0, 0, *amounts, 0, 0]
        missing = [max(each - held, 0) for each, held in zip(more, hold.held, strict=True)]
        for account, slot in hold.hard + hold.soft:
            account.add(slot, held=account.read(missing))
        hold.held = [each + lacks for each, lacks in zip(hold.held, missing, strict=True)]
    return POST(self, attempt_id, amounts, money_nano=money_nano)


def refuse_in_few_words(shorts: Any, at_us: int) -> Rejection:
    """Too many requests: which, and why, is nobody's affair."""
    return dataclasses.replace(REFUSAL(shorts, at_us), shortage=None)


END, ABOVE, CHARGE, POST, REFUSAL = Holds.end, Budgets._above, Budgets.charge, Budgets.post, budgets.refusal

# -- shares


def close_as_expected(self: Fairness, attempt_id: str, **tokens: int) -> None:
    """What was expected at the start is what is charged for ever."""
    charge = self._charges.get(attempt_id)
    if charge is not None:
        prompt_tokens, cached_tokens, output_tokens = charge.tokens
        CLOSE(self, attempt_id, input_tokens=prompt_tokens, cached_tokens=cached_tokens, output_tokens=output_tokens)


def reload_without_weights(self: Fairness, weights: Any, work: Any = None) -> None:
    """All tenants are alike."""
    RELOAD(self, {}, work)


RELOAD, CLOSE = Fairness.reload, Fairness.close


class Mutant(NamedTuple):
    """One bug: a wrong core, or a patch of one of its parts; how the checker has to name it; what presses on it."""

    name: str
    breach: str
    kind: Kind | None
    core: type[Scheduler] = Scheduler
    patches: tuple[tuple[Any, str, Any], ...] = ()
    """Of a class or module: the name, and what it is instead."""


def of(core: type[Scheduler], breach: str, kind: Kind | None = None) -> Mutant:
    return Mutant(core.__name__, breach, kind, core)


def patched(name: str, breach: str, kind: Kind | None, *patches: tuple[Any, str, Any]) -> Mutant:
    return Mutant(name, breach, kind, patches=patches)


MUTANTS = [
    of(KeepsCreditOnCancel, "credit is still owned"),
    of(LeaksCreditOnRetry, "credit is still owned"),
    of(SettlesTwice, "settled twice"),
    of(NeverSettlesTheSuperseded, "never settled"),
    of(LetsClientsPayForVainWork, "request pays what the operator owes"),
    of(AppliesLateReports, "its worker counted None"),
    of(RetriesAfterTheFirstByte, "first byte"),
    of(RetriesForEver, "one try too many"),
    of(SwallowsAnEnd, "never ended"),
    of(EndsBeforeItSettles, "before"),
    of(ForgetsDeadlines, "after its deadline"),
    of(WaitsForEver, "waited too long"),
    of(MissesNoCall, "still open"),
    of(MissesNoUsage, "still open"),
    patched("ForgetsPostings", "budgets still hold", Kind.BUDGETS, (Holds, "book_energy", nothing)),
    # places
    of(PlacesOnSickWorkers, "not ready"),
    of(PlacesBeyondRoom, "full worker"),
    of(PlacesBeyondSequences, "without room for its sequences"),
    patched("TakesTheReserve", "kept for the first band", Kind.FLOOD, (Starter, "_room_ratio", all_of_it)),
    of(IgnoresModels, "not served"),
    patched("PlacesOnBusyWorkers", "not ready", None, (Cluster, "hold", nothing)),
    patched("PlacesOnSilentWorkers", "silent worker", Kind.ZONES, (Cluster, "hold_silent", nothing)),
    patched("LetsTheScoreOverrideRoom", "full worker", None, (placement, "without_room", how_many_there_are)),
    patched("ChecksNoResidencyOnRetry", "data may not go", Kind.ZONES, (Starter, "_decide", everywhere_on_retry)),
    of(TrustsTheFirstZone, "data may not go", Kind.ZONES),
    patched("QueuesWhatMayRunNowhere", "no zone may hold", Kind.ZONES, (Admission, "misplaced", nothing)),
    patched("RefusesWhatMayRun", "a worker may run it", Kind.ZONES, (DataPolicy, "mismatch", is_particular)),
    patched("QueuesWithoutBound", "a queue that is full", Kind.FLOOD, (Admission, "no_room", nothing)),
    patched("ShedsTheBest", "shed before lower bands", Kind.FLOOD, (Queue, "shed_for", shed_the_best)),
    # order
    patched("InvertsBands", "overtook", Kind.FLOOD, (Line, "bands", property(worst_first))),
    of(InvertsPriorityAfterPreemption, "overtook", Kind.FLOOD),
    of(ServesTheLastFirst, "overtook"),
    of(EmptiesEveryWorker, "make room", Kind.FLOOD),
    patched("PreemptsAnyBand", "no batch work", Kind.FLOOD, (Attempt, "is_preemptable", property(is_any_work))),
    patched(
        "PreemptsWhatSpeaks", "room after its first byte", Kind.FLOOD,
        (Running, "note_first_byte", keep_among_batch), (Attempt, "is_preemptable", property(is_any_batch_work)),
    ),
    # budgets
    of(LiftsCaps, "may put out"),
    of(AppliesNoCap, "may put out", Kind.BUDGETS),
    of(ForgetsReloads, "a budget", Kind.BUDGETS),
    patched("KeepsHoldsOnCancel", "budgets still hold", Kind.BUDGETS, (Holds, "end", end_unless_cancelled)),
    patched("AsksOneLevel", "a budget does not cover it", Kind.BUDGETS, (Budgets, "_above", accounts_of_one_level)),
    patched("ChargesTwice", "has used", Kind.BUDGETS, (Budgets, "charge", charge_twice)),
    patched("NeverTrims", "covers it", Kind.BUDGETS, (Holds, "counted", nothing)),
    patched("OverspendsEnergy", "has used", Kind.BUDGETS, (Budgets, "post", post_all)),
    patched("NeverForgetsWindows", "were left, not", Kind.BUDGETS, (budgets, "_at_us", the_beginning)),
    patched("RefusesInFewWords", "without saying which", Kind.BUDGETS, (budgets, "refusal", refuse_in_few_words)),
    # shares
    patched("LiftsNobody", "apart", Kind.FAIR, (fairness._BandAccounts, "level", the_beginning)),
    patched("IgnoresWeights", "apart", Kind.FAIR, (Fairness, "reload", reload_without_weights)),
    patched(
        "HidesLongAnswers", "apart", Kind.FAIR,
        (Fairness, "true_up", nothing), (Fairness, "close", close_as_expected),
    ),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_core_is_found_out(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the right reason, within a few seeds, of which the one that shows it does not accuse the right core."""
    found: list[str] = []
    with monkeypatch.context() as patched:
        for part, name, value in mutant.patches:
            patched.setattr(part, name, value)
        for scenario in scenarios(mutant.kind):
            found += check(simulate(scenario, core=mutant.core))
            if any(mutant.breach in breach for breach in found):
                break
        else:
            pytest.fail(f"{mutant.name} was not found out by {MAX_SEEDS} seeds, but for {found[:5]}")
    assert [] == check(simulate(scenario))


def scenarios(kind: Kind | None) -> Iterator[Any]:
    return (draw_scenario(seed, kind=kind) for seed in range(MAX_SEEDS))


class _Gambler(Starter):
    def start(self, turn: Turn, now_s: float) -> Dispatch | None:
        ready = [worker for worker in self._cluster.workers.values() if self._cluster.is_ready(worker)]
        unlucky = random.SystemRandom().choice(ready) if len(ready) > 1 else None
        if unlucky is not None:
            self._cluster.hold(unlucky)
        dispatch = super().start(turn, now_s)
        if unlucky is not None:
            self._cluster.table[0, unlucky.column] = 1.0
        return dispatch


class PlacesByChance(Scheduler):
    """The same state, another placement."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._starter.__class__ = _Gambler


def test_chance_in_placement_is_found_out() -> None:
    """Two runs of one seed differ."""
    traces = [simulate(draw_scenario(seed), core=PlacesByChance) for seed in (5, 10) for _ in range(2)]
    assert traces[0] != traces[1] or traces[2] != traces[3]
