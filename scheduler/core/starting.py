"""A request becomes an attempt: a worker is chosen for it, and its credit is claimed there.

Owned by ``scheduler.core.scheduler``. It must never know why a request was next, or how an attempt ends.
"""

from __future__ import annotations

from typing import Any

from scheduler.core.actions import Abort, Dispatch
from scheduler.core.admission import Admission
from scheduler.core.attempts import PREEMPTED_CAUSE, Attempt, Entry, Stats, dispatch_of, work_of
from scheduler.core.cluster import Cluster, Worker
from scheduler.core.evidence import Decision, EvidenceBook
from scheduler.core.history import what_if_of
from scheduler.core.holds import Holds
from scheduler.core.parking import Parking
from scheduler.core.placement import place
from scheduler.core.preemption import victims
from scheduler.core.prefixes import Prefixes
from scheduler.core.request import Band, Request
from scheduler.core.rules import Rules
from scheduler.core.running import Running
from scheduler.core.score import Work
from scheduler.core.waiting import Turn
from workers.types import WorkerState


class Starter:
    """Places one request at a time, on the cluster as it stands, and remembers why."""

    def __init__(
        self,
        cluster: Cluster,
        admission: Admission,
        running: Running,
        parking: Parking,
        rules: Rules,
        stats: Stats,
    ) -> None:
        self._cluster = cluster
        self._admission = admission
        self._running = running
        self._policy = admission.policy
        self._rules = rules
        self._stats = stats
        self._parking = parking
        self._prefixes = Prefixes()
        self._evidence = EvidenceBook()

    def reload(self, rules: Rules) -> None:
        """Another reserve, other weights of the score from now on."""
        self._rules = rules

    def forget(self, worker: Worker) -> None:
        """The worker is gone, or its engine is stopped, and its KV with it."""
        self._prefixes.forget(worker)

    def hear(self, worker: Worker) -> None:
        """It said how it is: whoever waited for one of its models did not wait in vain, or its KV is gone."""
        if self._cluster.is_ready(worker):
            self._admission.is_served(worker.view.models)
        elif worker.view.state is WorkerState.PARKED:
            self.forget(worker)

    def start(self, turn: Turn, now_s: float) -> Dispatch | None:
        """The order to send it; None where nobody may or can take it, and then nothing changes."""
        entry, request = turn.entry, turn.entry.request
        work = self._work_of(entry)
        decision = self._decide(turn, work, now_s)
        if decision.worker is None:
            self._evidence.keep(request.request_id, decision)
            return None
        # Checked again at each dispatch, retries included: whatever chose the worker, its zone may hold the data.
        assert self._policy.may(request, decision.worker.view.zone), f"{request.request_id} may not run there"
        entry.num_attempts += 1
        attempt = Attempt(
            attempt_id=f"{request.request_id}-{entry.num_attempts}",
            entry=entry,
            worker=decision.worker,
            started_s=now_s,
            last_sign_s=now_s,
            prompt_tokens=work.prompt_tokens,
            expected_tokens=work.output_tokens * work.num_sequences,
            cached_tokens=decision.cached_tokens,
            is_aged=turn.is_aged,
        )
        entry.attempt = attempt
        entry.tries.append(attempt)
        entry.end_wait(now_s)
        self._running.start(attempt)
        self._parking.placed(request, is_crowded=decision.is_crowded)
        decision.worker.prompts.add(now_s, max(work.prompt_tokens - decision.cached_tokens, 0))
        self._prefixes.add(decision.worker, request, work.prompt_tokens)
        self._evidence.drop(request.request_id)
        self._evidence.keep(attempt.attempt_id, decision)
        self._admission.left_queue(request.band, now_s)
        self._stats.dispatched += 1
        return dispatch_of(attempt, decision.reason)

    def decide(self, entry: Entry, now_s: float) -> Decision:
        """Where it would go now; nothing changes."""
        return self._decide(Turn(entry), self._work_of(entry), now_s)

    def what_if(self, request: Request, holds: Holds, now_s: float) -> dict[str, Any]:
        """What would become of a request; nothing changes."""
        entry = Entry(request=request, place=0, waits_since_s=now_s)
        rejection = self._admission.refusal(request, now_s) or holds.check(entry)
        decision = self.decide(entry, now_s)
        if rejection is None and decision.worker is None:
            rejection = self._admission.no_room(request, now_s)
        num_ahead = self._admission.num_ahead(request.band)
        return what_if_of(entry, rejection=rejection, num_ahead=num_ahead, decision=decision.explain())

    def explain(self, key: str) -> dict[str, Any] | None:
        """The decision of an attempt, or the last one in vain of a request that waits; None where it is too old."""
        return self._evidence.explain(key)

    def preempt(self, entry: Entry, now_s: float) -> list[Abort]:
        """Ends batch-class attempts to make room for it; their requests are taken from them, to wait again.

        What they executed is the operator's; their credit is owned until they have ended.
        """
        attempts = victims(
            self._cluster,
            entry,
            self._work_of(entry),
            running=self._running,
            policy=self._policy,
            room_ratio=self._room_ratio(entry.request),
        )
        for attempt in attempts:
            attempt.give_way(now_s)
        self._stats.preempted += len(attempts)
        return [self._running.abort(attempt, PREEMPTED_CAUSE, now_s) for attempt in attempts]

    def _room_ratio(self, request: Request) -> float:
        """The part of a worker's credit that its band may take."""
        return 1.0 if request.band == Band.PRIORITY else 1.0 - self._rules.reserve_ratio

    def _work_of(self, entry: Entry) -> Work:
        """What it brings, as expected now."""
        request, estimates = entry.request, self._admission.estimates_of(entry.request.model)
        output_tokens = min(estimates.output_tokens(request), entry.granted_tokens * request.num_sequences)
        return work_of(request, prompt_tokens=estimates.prompt_tokens(request), output_tokens=output_tokens)

    def _decide(self, turn: Turn, work: Work, now_s: float) -> Decision:
        request = turn.entry.request
        return place(
            self._cluster,
            request,
            work,
            policy=self._policy,
            prefixes=self._prefixes,
            now_s=now_s,
            avoid=turn.entry.avoid,
            room_ratio=1.0 if turn.is_aged else self._room_ratio(request),
            closed_to=turn.closed_to,
            rules=self._rules.placement,
            promised_from_s=turn.entry.promised_from_s,
        )
