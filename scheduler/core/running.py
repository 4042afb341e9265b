"""What runs: every attempt from its start to its one settlement, the credit that it owns, and when it is too quiet.

Owned by ``scheduler.core.scheduler``. It must never know a queue or why an attempt was started.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from scheduler.core.actions import Abort, Tokens
from scheduler.core.admission import Limits
from scheduler.core.attempts import BUSY_CAUSE, Attempt
from scheduler.core.cluster import Cluster, Worker
from scheduler.core.deadlines import Deadlines
from scheduler.core.fairness import Fairness
from workers.types import Outcome, Progress


class Running:
    """Attempts that own credit. Each is started once and forgotten once."""

    def __init__(self, cluster: Cluster, fairness: Fairness, limits: Limits) -> None:
        self._cluster = cluster
        self._fairness = fairness
        self._limits = limits
        self._attempts: dict[str, Attempt] = {}
        self._ending: dict[str, float] = {}
        """Attempts that ended or were aborted and owe their usage, by when they began to; in that order."""
        self._batch: dict[str, dict[str, Attempt]] = {}
        """By worker: attempts that may have to make room, the latest last; of workers the one that got one last."""
        self._signs = Deadlines()
        """When a running attempt may have been silent for too long."""

    def __len__(self) -> int:
        return len(self._attempts)

    def get(self, attempt_id: str) -> Attempt | None:
        """None where it is unknown or settled."""
        return self._attempts.get(attempt_id)

    def on(self, worker: Worker) -> list[Attempt]:
        """Everything that runs on a worker, in the order it was sent."""
        return [self._attempts[attempt_id] for attempt_id in worker.claims]

    def is_ending(self, attempt: Attempt) -> bool:
        """Whether it ended or was aborted, and owes its usage."""
        return attempt.attempt_id in self._ending

    # -- on its way

    def start(self, attempt: Attempt) -> None:
        """Claims its credit, and charges its tenant a turn."""
        self._attempts[attempt.attempt_id] = attempt
        self._fairness.start(
            attempt.attempt_id,
            attempt.entry.request,
            prompt_tokens=attempt.prompt_tokens,
            cached_tokens=attempt.cached_tokens,
            output_tokens=attempt.expected_tokens,
        )
        self._cluster.claim(attempt.worker, attempt.attempt_id, attempt.claim(), attempt.promise())
        if attempt.is_preemptable:
            of_worker = self._batch.pop(attempt.worker.worker_id, {})
            of_worker[attempt.attempt_id] = attempt
            self._batch[attempt.worker.worker_id] = of_worker
        due_s = attempt.started_s + self._limits.sign_timeout_s
        self._signs.push(due_s, attempt.attempt_id, is_open=self._attempts.keys())

    def advance(self, attempt: Attempt, progress: Progress, now_s: float) -> bool:
        """Trues its credit and its turn up; True where this is the first that is heard of it."""
        attempt.last_sign_s, is_first = now_s, not attempt.has_progress
        num_new = attempt.advance_decoding(progress)
        if num_new is None:
            attempt.advance(progress, now_s)
            self._cluster.change(attempt.worker, attempt.attempt_id, attempt.claim(), attempt.promise())
        else:
            num_sequences = attempt.entry.request.num_sequences
            self._cluster.put_out(attempt.worker, attempt.attempt_id, num_new, num_sequences=num_sequences)
        self._fairness.true_up(
            attempt.attempt_id,
            prompt_tokens=attempt.prompt_tokens,
            cached_tokens=attempt.cached_tokens,
            output_tokens=attempt.output_tokens,
        )
        return is_first

    def note_first_byte(self, attempt: Attempt, now_s: float) -> None:
        """Its client was given a byte: it makes room for nobody any more."""
        attempt.has_first_byte = True
        attempt.first_byte_s = attempt.last_sign_s = now_s
        self._leave_batch(attempt)

    def note_end(self, attempt: Attempt, outcome: Outcome, cause: str, now_s: float) -> None:
        """How its bytes ended; the first word counts. From here on it owes its usage."""
        if attempt.outcome is None:
            attempt.outcome, attempt.cause = outcome, cause
            if cause == BUSY_CAUSE:
                self._cluster.hold(attempt.worker)
        self._ending.setdefault(attempt.attempt_id, now_s)

    def abort(self, attempt: Attempt, reason: str, now_s: float) -> Abort:
        """The order to end it; it owes its usage from here on."""
        self._ending.setdefault(attempt.attempt_id, now_s)
        self._leave_batch(attempt)
        return Abort(attempt_id=attempt.attempt_id, worker_id=attempt.worker.worker_id, reason=reason)

    def forget(self, attempt: Attempt, tokens: Tokens) -> None:
        """Releases its credit: it is settled now, having executed this."""
        del self._attempts[attempt.attempt_id]
        self._leave_batch(attempt)
        self._ending.pop(attempt.attempt_id, None)
        self._cluster.release(attempt.worker, attempt.attempt_id)
        self._fairness.close(
            attempt.attempt_id,
            input_tokens=tokens.input_tokens,
            cached_tokens=tokens.cached_tokens,
            output_tokens=tokens.output_tokens,
        )

    def _leave_batch(self, attempt: Attempt) -> None:
        of_worker = self._batch.get(attempt.worker.worker_id)
        if of_worker is not None and of_worker.pop(attempt.attempt_id, None) is not None and not of_worker:
            del self._batch[attempt.worker.worker_id]

    # -- who may make room, and who does

    @property
    def has_batch(self) -> bool:
        """Whether anybody may have to make room."""
        return bool(self._batch)

    def batch(self, model: str) -> Iterator[tuple[Worker, list[Attempt]]]:
        """Workers of a model with attempts that may have to make room; of both the latest first."""
        for worker_id in reversed(self._batch):
            attempts = list(reversed(self._batch[worker_id].values()))
            if model in attempts[0].worker.view.models:
                yield attempts[0].worker, [attempt for attempt in attempts if attempt.is_preemptable]

    def ending_on(self, model: str, *, most: int) -> dict[str, list[Attempt]]:
        """The last ``most`` attempts that end, by worker of the model: their credit will be free."""
        found: dict[str, list[Attempt]] = {}
        for attempt_id in islice(reversed(self._ending), most):
            attempt = self._attempts[attempt_id]
            if model in attempt.worker.view.models:
                found.setdefault(attempt.worker.worker_id, []).append(attempt)
        return found

    # -- too quiet; the caller ends each before it asks for the next

    def unsettled(self, now_s: float) -> Iterator[Attempt]:
        """Those of which the usage never came."""
        while self._ending:
            attempt_id, since_s = next(iter(self._ending.items()))
            if since_s > now_s - self._limits.final_timeout_s:
                return  # those behind it began later
            yield self._attempts[attempt_id]

    def silent(self, now_s: float) -> Iterator[Attempt]:
        """Those without a sign for too long, whatever their workers say."""
        for attempt_id in self._signs.due(now_s):
            attempt = self._attempts.get(attempt_id)
            if attempt is None or attempt_id in self._ending:
                continue
            due_s = attempt.last_sign_s + self._limits.sign_timeout_s
            if due_s <= now_s:
                yield attempt
            else:
                self._signs.push(due_s, attempt_id, is_open=self._attempts.keys())

    def uncalled(self, worker: Worker, now_s: float) -> Iterator[Attempt]:
        """Those that an idle worker does not know of: their calls were lost on the way."""
        before_s = now_s - self._limits.call_lost_s
        if worker.idle_since_s is None or worker.idle_since_s > before_s:
            return
        for attempt in self.on(worker):
            if attempt.last_sign_s <= before_s and not self.is_ending(attempt):
                yield attempt
