"""The one state machine: what happened comes in with the time it happened, what to do comes out.

Called by the dispatcher (real clock), the simulation (virtual clock) and the fault tests. It must never do I/O, read a
clock or draw a random number: the same calls in the same order yield the same actions.

A request is queued, or tried on one worker at a time, or ending. Everything that ends it goes through ``_finish`` or
``_reject``; everything that ends an attempt goes through ``_close``, which releases its credit and settles it, once.
Whatever a call frees is given away at its end, when all that the call sends back to the queue is there: best band
first, then who came first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scheduler.core.actions import Abort, Action, Reject, Rejection, Tokens
from scheduler.core.admission import Admission, Limits
from scheduler.core.attempts import (
    BUSY_CAUSE,
    NOT_UP_CAUSES,
    PREEMPTED_CAUSE,
    Attempt,
    Entry,
    Fate,
    Stats,
    ending_of,
    fate_of,
    settle_of,
)
from scheduler.core.cluster import Cluster, WorkerView
from scheduler.core.data_policy import DataPolicy
from scheduler.core.deferral import Deferral
from scheduler.core.fairness import Fairness
from scheduler.core.holds import Holds
from scheduler.core.lives import Lives
from scheduler.core.parking import Parking
from scheduler.core.price_clock import EnergyPrices, PriceClock
from scheduler.core.queue import Queue
from scheduler.core.request import Request, is_late
from scheduler.core.rules import Rules
from scheduler.core.running import Running
from scheduler.core.starting import Starter
from scheduler.core.waiting import Waiting
from workers.types import Outcome, Progress, UsageRecord


class Scheduler:
    """Requests, workers and time in; actions out, to be carried out in order. Not thread-safe."""

    def __init__(self, *, models: Iterable[str] = (), limits: Limits | None = None, rules: Rules | None = None) -> None:
        self.limits = limits or Limits()
        self.rules = rules or Rules()
        self.cluster = Cluster()
        self.fairness = Fairness(self.rules.weights, self.rules.work)
        self.queue = Queue(self.limits.queue, self.fairness)
        self.stats = Stats()
        self._policy = DataPolicy(self.rules.zones, self.rules.model_zones)
        self.admission = Admission(self.cluster, self.queue, self.limits, self._policy, models=models)
        self._running = Running(self.cluster, self.fairness, self.limits)
        self.parking = Parking(self.cluster, self.rules.parking)
        self._starter = Starter(self.cluster, self.admission, self._running, self.parking, self.rules, self.stats)
        self.deferral = Deferral(self.cluster, self.admission, self._policy, self.limits, self.rules)
        self._waiting = Waiting.of(self.queue, self.deferral, self.limits, self.rules)
        self.holds = Holds(self.rules)
        self._clock = PriceClock(self.cluster, self._starter, self.holds)
        self._lives = Lives(self._waiting, self.holds, self.stats)
        self._entries = self._lives.open
        self._now_s = 0.0

    # -- requests

    def submit(self, request: Request, now_s: float) -> list[Action]:
        """A new request: started, queued or refused."""
        now_s = self._advance(now_s)
        entry = self._lives.begin(request, now_s)
        if (rejection := self.admission.refusal(request, now_s) or self.holds.hold(entry)) is not None:
            return [self._reject(request.request_id, rejection)]
        if self._waiting.defer(entry, now_s):
            return []
        self.parking.arrived(request, self.admission.estimates_of(request.model), now_s)
        turn = self._waiting.turn_of_newcomer(entry, now_s)
        dispatch = None if turn is None else self._starter.start(turn, now_s)
        actions: list[Action] = []
        if dispatch is None:
            actions += [self._reject(*shed) for shed in self.admission.shed_for(request, now_s)]
            if (rejection := self.admission.no_room(request, now_s)) is not None:
                return [*actions, self._reject(request.request_id, rejection)]
        if dispatch is not None:
            return [dispatch]
        self._wait(entry, "queued", now_s)
        if turn is not None:
            self._waiting.did_not_fit(request)
        aborts = [] if turn is None else self._starter.preempt(entry, now_s)
        actions += [*aborts, *self._place_waiting(now_s)]
        self._wait_again(aborts, now_s)
        return actions

    def cancel(self, request_id: str, reason: str, now_s: float, *, by_client: bool = True) -> list[Action]:
        """Nobody wants the answer any more; a request that is over or ending is left alone."""
        now_s = self._advance(now_s)
        return self._cancel(request_id, reason, now_s, by_client=by_client) + self._place_waiting(now_s)

    def reload(self, rules: Rules, now_s: float) -> list[Action]:
        """Other rules from now on; what runs goes on as it was admitted."""
        rules = self.rules = self._clock.applied(rules, now_s := self._advance(now_s))
        self.holds.reload(rules)
        self.fairness.reload(rules.weights, rules.work)
        self._policy.reload(rules.zones, rules.model_zones)
        self._starter.reload(rules)
        self.parking.reload(rules.parking)
        self._waiting.reload(ageing_s=rules.ageing_s, ageing_every=rules.ageing_every)
        self.deferral.reload(rules.deferral, now_s)
        self._waiting.freed(self.queue.models)
        waiting = [self._entries[request_id].request for request_id in self._waiting.request_ids()]
        refused = [self._reject(*each) for each in self.admission.misplaced_of(waiting)]
        return [*refused, *self._place_waiting(now_s)]

    def set_energy_prices(self, prices: EnergyPrices, now_s: float) -> list[Action]:
        """What energy costs from now on, known changes included; whoever waits for a cheaper hour is planned anew."""
        self._clock.set(prices)
        now_s = self._advance(now_s)
        self.deferral.set_prices(prices.nano_per_joule, now_s)
        self._release(now_s)
        return self._place_waiting(now_s)

    def drain(self, now_s: float) -> list[Action]:
        """From now on nothing new: who waits is refused, who runs may end."""
        self._advance(now_s)
        self.admission.is_draining = True
        return [self._reject(each, self.admission.shutting_down()) for each in self._waiting.request_ids()]

    def on_ledger(self, is_writable: bool) -> None:
        """Where nothing can be booked nothing may start; who waits goes on waiting."""
        self.admission.is_ledger_writable = is_writable

    def abort_all(self, reason: str, now_s: float) -> list[Action]:
        """Ends whatever is still open."""
        now_s, open_ids = self._advance(now_s), list(self._entries)
        return [action for each in open_ids for action in self._cancel(each, reason, now_s, by_client=False)]

    # -- workers

    def on_worker_report(self, view: WorkerView, now_s: float) -> list[Action]:
        """A worker said how it is."""
        now_s = self._advance(now_s)
        known = self.cluster.workers.get(view.worker_id)
        was_ready = known is not None and self.cluster.is_ready(known)
        worker = self.cluster.update(view, now_s)
        self._policy.see(view.models, view.zone)
        self.holds.hear(view)
        self.admission.models.update(view.models)
        self._waiting.freed(view.models)
        self._starter.hear(worker)
        actions = [
            action
            for each in self._running.uncalled(worker, now_s)
            for action in self._give_up(each, "call_lost", now_s)
        ]
        if was_ready and not actions:
            return []  # there may be more room than before: the next tick looks
        return actions + self._place_waiting(now_s)

    def on_worker_lost(self, worker_id: str, cause: str, now_s: float) -> list[Action]:
        """The worker is gone, and with it everything that ran there."""
        now_s = self._advance(now_s)
        return self._lose_worker(worker_id, cause, now_s) + self._place_waiting(now_s)

    # -- attempts

    def on_progress(self, items: Iterable[Progress], now_s: float) -> None:
        """Tokens computed so far: credit is trued up. What that frees is placed at the next tick or event."""
        now_s, worker = self._advance(now_s), None
        for progress in items:
            attempt = self._running.get(progress.attempt_id)
            if attempt is None:
                continue
            if self._running.advance(attempt, progress, now_s):
                self.admission.observe_prompt(attempt.entry.request, progress.prompt_tokens)
                self.holds.counted(attempt)
            if attempt.worker is not worker:
                worker = attempt.worker
                self._waiting.freed(worker.view.models)

    def on_first_byte(self, attempt_id: str, now_s: float) -> None:
        """The client was given a byte: from here on this attempt answers or nobody does."""
        attempt = self._running.get(attempt_id)
        if attempt is not None:
            self._running.note_first_byte(attempt, self._advance(now_s))

    def on_ended(self, attempt_id: str, outcome: Outcome, cause: str, now_s: float) -> list[Action]:
        """The bytes ended. A failed attempt is tried elsewhere at once; its usage, and any Finish, follow."""
        now_s = self._advance(now_s)
        attempt = self._running.get(attempt_id)
        if attempt is None or attempt.outcome is not None:
            return []
        self._running.note_end(attempt, outcome, cause, now_s)
        if self._fate(attempt) is Fate.END:
            return []
        return self._requeue(attempt, now_s) + self._place_waiting(now_s)

    def on_finished(self, usage: UsageRecord, now_s: float) -> list[Action]:
        """Both endings are here: the attempt is settled with what the worker counted."""
        now_s = self._advance(now_s)
        attempt = self._running.get(usage.attempt_id)
        if attempt is None:
            return []
        self._running.note_end(attempt, usage.outcome, usage.cause, now_s)
        if usage.outcome is Outcome.COMPLETED and usage.output_tokens:
            self.admission.observe_end(attempt.entry.request, usage)
        return self._close(attempt, attempt.counted(usage), is_exact=True, now_s=now_s) + self._place_waiting(now_s)

    # -- time

    def tick(self, now_s: float) -> list[Action]:
        """What is due by the clock alone: deadlines, waits without end, silence, endings that never came."""
        now_s = self._advance(now_s)
        actions: list[Action] = []
        self._release(now_s)
        self.cluster.hold_silent(now_s, self.limits.silent_s)
        for worker_id in self.cluster.unheard(now_s, self.limits.lost_s):
            actions += self._lose_worker(worker_id, "silent", now_s)
        for request_id in self._lives.due(now_s):
            actions += self._expire(request_id, now_s)
        for entry in self._waiting.overdue(now_s):
            actions.append(self._reject(entry.request.request_id, self.admission.timed_out(entry.request, now_s)))
        for request, rejection in self.admission.unserved(now_s):
            actions.append(self._reject(request.request_id, rejection))
        for attempt in self._running.silent(now_s):
            actions += self._give_up(attempt, "no_sign", now_s)
        for attempt in self._running.unsettled(now_s):
            actions += self._lose(attempt, "usage_missing", now_s)
        actions += self._place_waiting(now_s)
        return actions + self.parking.tick(self.queue.models, self.rules.placement, now_s)

    # -- what drivers ask

    def retry_after_s(self, band: int) -> int:
        """Seconds after which a refused request of this band may find room, from the measured drain rate."""
        return self.admission.retry_after_s(band, self._now_s)

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """The life of a request as plain values; None where it was never seen, or too long ago."""
        return self._lives.story(request_id, self._starter.explain)

    def what_if(self, request: Request, now_s: float) -> dict[str, Any]:
        """What would become of this request now; nothing changes."""
        return self._starter.what_if(request, self.holds, self._advance(now_s))

    def knows(self, attempt_id: str) -> bool:
        """Whether the attempt is not settled yet."""
        return self._running.get(attempt_id) is not None

    def answers(self, attempt_id: str) -> bool:
        """Whether what this attempt says goes to its client: no answer begins after its request was cancelled."""
        attempt = self._running.get(attempt_id)
        return attempt is not None and attempt.is_answering and not attempt.entry.cancel_reason

    @property
    def num_running(self) -> int:
        """Attempts that own credit."""
        return len(self._running)

    @property
    def num_open(self) -> int:
        """Requests that have no answer yet."""
        return len(self._entries)

    # -- inside: ending a request

    def _cancel(self, request_id: str, reason: str, now_s: float, *, by_client: bool) -> list[Action]:
        entry = self._entries.get(request_id)
        if entry is None or entry.cancel_reason or (entry.attempt is not None and entry.attempt.outcome is not None):
            return []
        entry.cancel_reason, entry.is_cancelled_by_client = reason, by_client
        if entry.attempt is not None:
            return [self._running.abort(entry.attempt, reason, now_s)]
        self._waiting.remove(request_id)
        return [self._lives.finish(entry, None, Outcome.ABORTED, reason, now_s)]

    def _expire(self, request_id: str, now_s: float) -> list[Action]:
        """A deadline passed: who waits is refused, who runs is aborted."""
        entry = self._entries.get(request_id)
        if entry is None:
            return []
        if entry.attempt is not None:
            return self._cancel(request_id, "deadline_exceeded", now_s, by_client=False)
        return [self._reject(request_id, self.admission.expired(entry.request, now_s))]

    def _reject(self, request_id: str, rejection: Rejection) -> Reject:
        return self._lives.reject(request_id, rejection, self._now_s)

    # -- inside: starting

    def _release(self, now_s: float) -> None:
        """Whoever's cheaper hour has come waits for a worker from now on: for parking it arrives now."""
        for request in self._waiting.release(now_s):
            self.parking.arrived(request, self.admission.estimates_of(request.model), now_s)

    def _wait(self, entry: Entry, cause: str, now_s: float) -> None:
        """Into the queue, at its place."""
        entry.begin_wait(cause, now_s)
        self._waiting.push(entry)

    def _wait_again(self, aborts: list[Abort], now_s: float) -> None:
        """Who made room goes back to its own place, its attempts owing their usage."""
        for abort in aborts:
            attempt = self._running.get(abort.attempt_id)
            assert attempt is not None, f"{abort.attempt_id} is aborted and does not run"
            self._wait(attempt.entry, PREEMPTED_CAUSE, now_s)

    def _place_waiting(self, now_s: float) -> list[Action]:
        """Starts whoever may start now and fits; whose deadline has passed since the last tick is refused instead."""
        actions: list[Action] = []
        aborts: list[Abort] = []
        for turn in self._waiting.candidates(now_s) if self.admission.is_ledger_writable else ():
            entry, request = turn.entry, turn.entry.request
            if is_late(request, now_s):
                actions.append(self._reject(request.request_id, self.admission.expired(request, now_s)))
            elif (dispatch := self._starter.start(turn, now_s)) is not None:
                self._waiting.remove(request.request_id)
                actions.append(dispatch)
            else:
                made_room = self._starter.preempt(entry, now_s)
                actions += made_room
                aborts += made_room
        self._wait_again(aborts, now_s)
        return actions

    # -- inside: ending an attempt

    def _give_up(self, attempt: Attempt, cause: str, now_s: float) -> list[Action]:
        """Its worker lives but says nothing of it."""
        return [self._running.abort(attempt, cause, now_s), *self._lose(attempt, cause, now_s)]

    def _lose(self, attempt: Attempt, cause: str, now_s: float) -> list[Action]:
        """No usage record of this attempt will come: settled by its last progress."""
        if attempt.outcome is None:
            attempt.outcome = Outcome.FAILED
        attempt.cause = attempt.cause or cause
        return self._close(attempt, attempt.executed(), is_exact=False, now_s=now_s)

    def _lose_worker(self, worker_id: str, cause: str, now_s: float) -> list[Action]:
        worker = self.cluster.workers.get(worker_id)
        if worker is None:
            return []
        self.stats.lost_workers += 1
        self.cluster.hold(worker)
        actions = [action for attempt in self._running.on(worker) for action in self._lose(attempt, cause, now_s)]
        self._starter.forget(worker)
        self.cluster.remove(worker_id)
        self.holds.forget(worker_id)
        return actions

    def _fate(self, attempt: Attempt) -> Fate:
        if self.admission.is_draining or not attempt.is_repeatable:
            return Fate.END
        has_other = self.cluster.has_ready(attempt.entry.request.model, other_than=attempt.worker)
        return fate_of(attempt, self.limits.max_retries, self.limits.max_bounces, has_other=has_other)

    def _requeue(self, attempt: Attempt, now_s: float) -> list[Action]:
        """Back to its old place, unless it is too late; the attempt stays, owing its usage."""
        entry, request = attempt.entry, attempt.entry.request
        entry.attempt = None
        if is_late(request, now_s):
            return [self._reject(request.request_id, self.admission.expired(request, now_s))]
        if attempt.cause == BUSY_CAUSE or attempt.cause in NOT_UP_CAUSES:
            entry.num_bounces += attempt.cause == BUSY_CAUSE
            self.stats.bounced += 1
        else:
            entry.num_losses += 1
            entry.avoid |= {attempt.worker.life}
            entry.waits_since_s = now_s
            self.stats.retried += 1
        self._wait(entry, attempt.cause, now_s)
        return []

    def _close(self, attempt: Attempt, tokens: Tokens, *, is_exact: bool, now_s: float) -> list[Action]:
        """The only end of an attempt: credit released, settled, and its request finished or sent on its way again."""
        outcome = attempt.outcome
        assert outcome is not None
        self._running.forget(attempt, tokens)
        self._waiting.freed(attempt.worker.view.models)
        attempt.ended_s = now_s
        attempt.settled = settle_of(attempt, outcome, tokens, is_exact=is_exact)
        self.holds.settled(attempt)
        actions: list[Action] = [attempt.settled]
        if self._fate(attempt) is not Fate.END:
            return actions + self._requeue(attempt, now_s)
        if attempt.is_answering:
            actions.append(self._lives.finish(attempt.entry, attempt.attempt_id, *ending_of(attempt, outcome), now_s))
        return actions

    def _advance(self, now_s: float) -> float:
        """Time never goes back, whatever the driver's clock does."""
        self._now_s = max(self._now_s, now_s)
        if self._now_s >= self._clock.next_s:
            self.rules = self._clock.step(self.rules, self._now_s)
        return self._now_s
