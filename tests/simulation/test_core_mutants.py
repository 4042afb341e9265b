"""The checker bites: each deliberately wrong core is told from the right one by its trace."""

import dataclasses
import random

import pytest

from scheduler.core.actions import Action, Dispatch, Finish, Settle, Tokens
from scheduler.core.admission import Limits
from scheduler.core.attempts import Attempt, Entry, Fate
from scheduler.core.cluster import Worker, WorkerView
from scheduler.core.request import Request
from scheduler.core.scheduler import Scheduler
from scheduler.core.waiting import Turn
from scheduler.simulation.checker import check
from scheduler.simulation.draws import draw_scenario
from scheduler.simulation.driver import simulate
from workers.types import Outcome, UsageRecord, WorkerState

MAX_SEEDS = 80


class KeepsCreditOnCancel(Scheduler):
    def _close(self, attempt: Attempt, tokens: Tokens, *, is_exact: bool, now_s: float) -> list[Action]:
        claim = attempt.worker.claims[attempt.attempt_id]
        actions = super()._close(attempt, tokens, is_exact=is_exact, now_s=now_s)
        if attempt.entry.cancel_reason:
            self.cluster._add(attempt.worker.column, claim, 1)
        return actions


class SettlesTwice(Scheduler):
    """Forgets that a usage record is replayed."""

    def on_finished(self, usage: UsageRecord, now_s: float) -> list[Action]:
        actions = super().on_finished(usage, now_s)
        return [*actions, *(each for each in actions[:1] if isinstance(each, Settle) and usage.cause)]


class NeverSettlesTheSuperseded(Scheduler):
    def _close(self, attempt: Attempt, tokens: Tokens, *, is_exact: bool, now_s: float) -> list[Action]:
        is_answering = attempt.is_answering
        actions = super()._close(attempt, tokens, is_exact=is_exact, now_s=now_s)
        return actions if is_answering else actions[1:]


class LetsClientsPayForVainWork(Scheduler):
    def _close(self, attempt: Attempt, tokens: Tokens, *, is_exact: bool, now_s: float) -> list[Action]:
        if attempt.cause == "stalled":
            attempt.has_first_byte = True
        return super()._close(attempt, tokens, is_exact=is_exact, now_s=now_s)


class InvertsPriority(Scheduler):
    def __init__(self, **values: object) -> None:
        super().__init__(**values)  # type: ignore[arg-type]
        queue = self.queue

        def head(model: str) -> Request | None:
            waiting = [queue._waiting[name] for name in queue._waiting if queue._waiting[name].model == model]
            return max(waiting, key=lambda each: each.band, default=None)

        queue.head = head  # type: ignore[method-assign]


class ServesTheLastFirst(Scheduler):
    def submit(self, request: Request, now_s: float) -> list[Action]:
        self._num_places -= 2
        return super().submit(request, now_s)


class RetriesAfterTheFirstByte(Scheduler):
    def _fate(self, attempt: Attempt) -> Fate:
        has_first_byte, attempt.has_first_byte = attempt.has_first_byte, False
        fate = super()._fate(attempt)
        attempt.has_first_byte = has_first_byte
        return fate


class RetriesForEver(Scheduler):
    def _fate(self, attempt: Attempt) -> Fate:
        attempt.entry.num_losses = attempt.entry.num_bounces = 0
        return super()._fate(attempt)


class PlacesOnHeldWorkers(Scheduler):
    """Forgets what a busy worker said."""

    def __init__(self, **values: object) -> None:
        super().__init__(**values)  # type: ignore[arg-type]
        self.cluster.hold = lambda worker: None  # type: ignore[method-assign]


class PlacesOnSickWorkers(Scheduler):
    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        return super().on_worker_report(dataclasses.replace(view, state=WorkerState.READY), now_s)


class PlacesOnSilentWorkers(Scheduler):
    def __init__(self, **values: object) -> None:
        super().__init__(**values)  # type: ignore[arg-type]
        self.cluster.hold_silent = lambda now_s, silent_s: None  # type: ignore[method-assign]


class PlacesBeyondRoom(Scheduler):
    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        return super().on_worker_report(dataclasses.replace(view, max_running=view.max_running + 1), now_s)


class IgnoresModels(Scheduler):
    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        return super().on_worker_report(dataclasses.replace(view, models=("x", "y")), now_s)


class ForgetsDeadlines(Scheduler):
    def submit(self, request: Request, now_s: float) -> list[Action]:
        return super().submit(dataclasses.replace(request, deadline_s=None), now_s)


class LiftsCaps(Scheduler):
    def _start(self, entry: Entry, now_s: float, turn: Turn | None = None) -> Dispatch | None:
        dispatch = super()._start(entry, now_s, turn)
        return dispatch and dataclasses.replace(dispatch, max_output_tokens=dispatch.max_output_tokens + 1)


class SwallowsAnEnd(Scheduler):
    """A client that left while it waited is never told: whoever accounts for it waits for ever."""

    def cancel(self, request_id: str, reason: str, now_s: float, *, by_client: bool = True) -> list[Action]:
        actions = super().cancel(request_id, reason, now_s, by_client=by_client)
        return [each for each in actions if not (isinstance(each, Finish) and each.outcome is Outcome.ABORTED)]


class EndsBeforeItSettles(Scheduler):
    def on_finished(self, usage: UsageRecord, now_s: float) -> list[Action]:
        actions = super().on_finished(usage, now_s)
        return [*actions[1:2], *actions[:1], *actions[2:]]


class Patient(Scheduler):
    """Some bound is missing."""

    changes: dict[str, float]

    def __init__(self, *, limits: Limits, **values: object) -> None:
        super().__init__(limits=dataclasses.replace(limits, **self.changes), **values)  # type: ignore[arg-type]


class WaitsForEver(Patient):
    changes = {"max_wait_s": 1e9}


class MissesNoCall(Patient):
    changes = {"call_lost_s": 1e9, "sign_timeout_s": 1e9}


class MissesNoUsage(Patient):
    changes = {"final_timeout_s": 1e9}


class PlacesByChance(Scheduler):
    """The same state, another placement."""

    def _start(self, entry: Entry, now_s: float, turn: Turn | None = None) -> Dispatch | None:
        held: list[Worker] = [worker for worker in self.cluster.workers.values() if self.cluster.is_ready(worker)]
        unlucky = random.SystemRandom().choice(held) if len(held) > 1 else None
        if unlucky is not None:
            self.cluster.hold(unlucky)
        dispatch = super()._start(entry, now_s, turn)
        if unlucky is not None:
            self.cluster.table[0, unlucky.column] = 1.0
        return dispatch


MUTANTS: dict[type[Scheduler], str] = {
    KeepsCreditOnCancel: "credit is still owned",
    SettlesTwice: "settled twice",
    NeverSettlesTheSuperseded: "never settled",
    LetsClientsPayForVainWork: "pays what was in vain",
    InvertsPriority: "overtook",
    ServesTheLastFirst: "overtook",
    RetriesAfterTheFirstByte: "after the first byte",
    RetriesForEver: "one try too many",
    PlacesOnHeldWorkers: "not ready",
    PlacesOnSickWorkers: "not ready",
    PlacesOnSilentWorkers: "silent worker",
    PlacesBeyondRoom: "full worker",
    IgnoresModels: "not served",
    ForgetsDeadlines: "after its deadline",
    LiftsCaps: "wrong cap",
    SwallowsAnEnd: "never ended",
    EndsBeforeItSettles: "before",
    WaitsForEver: "waited too long",
    MissesNoCall: "still open",
    MissesNoUsage: "still open",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_wrong_core_is_found_out(mutant: type[Scheduler]) -> None:
    """For the right reason, within eighty seeds, none of which accuses the right core."""
    found: list[str] = []
    for seed in range(MAX_SEEDS):
        scenario = draw_scenario(seed)
        found = check(simulate(scenario, core=mutant))
        if found:
            break
    assert found, f"{mutant.__name__} was not found out by {MAX_SEEDS} seeds"
    assert any(MUTANTS[mutant] in breach for breach in found), found[:5]
    assert [] == check(simulate(scenario))


def test_chance_in_placement_is_found_out() -> None:
    """Two runs of one seed differ."""
    traces = [simulate(draw_scenario(seed), core=PlacesByChance) for seed in (2, 4) for _ in range(2)]
    assert traces[0] != traces[1] or traces[2] != traces[3]
