"""Recomputes from a trace alone whether the core kept its promises; every breach is a line.

Called by tests. It must never read the core's state: it keeps its own books from what was said and decided.

What waits, by its own account: a request from its submission, or from the end of an attempt that did not answer it, to
its next dispatch or its end. Which attempts did not answer is known from the whole trace: all but the last, and the
last too if the request ended without naming it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scheduler.core.actions import Abort, Dispatch, Finish, Payer, Reject, Settle
from scheduler.core.admission import Limits
from scheduler.core.request import Request
from scheduler.simulation.trace import (
    Decided,
    Ended,
    Event,
    FirstByte,
    Lost,
    Reported,
    Stopped,
    Submitted,
)
from workers.types import Outcome

SLACK_S = 0.25
"""Clocks of the core are ticks."""

BUSY_CAUSE = "worker_busy"


@dataclass(slots=True)
class _Attempt:
    request_id: str
    worker_id: str
    number: int
    is_answer: bool
    """Whether its request's end names it."""
    has_ended: bool = False
    has_first_byte: bool = False
    num_settles: int = 0


@dataclass(slots=True)
class _Asked:
    request: Request
    place: int
    waits_since_s: float | None
    num_ends: int = 0
    num_attempts: int = 0
    has_first_byte: bool = False


@dataclass(slots=True)
class _Worker:
    is_ready: bool
    models: tuple[str, ...]
    max_running: int
    heard_s: float
    running: set[str] = field(default_factory=set)


def check(trace: Sequence[Event], limits: Limits) -> list[str]:
    """Every breach, in order; empty if there is none. The trace ends with ``Stopped``."""
    return _Checker(trace, limits).run()


class _Checker:
    def __init__(self, trace: Sequence[Event], limits: Limits) -> None:
        self._trace = trace
        self._limits = limits
        self._answers = {
            event.action.attempt_id
            for event in trace
            if isinstance(event, Decided) and isinstance(event.action, Finish) and event.action.attempt_id
        }
        self._asked: dict[str, _Asked] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._workers: dict[str, _Worker] = {}
        self._breaches: list[str] = []
        self._now_s = 0.0

    def run(self) -> list[str]:
        for event in self._trace:
            self._expect(event.at_s >= self._now_s, "time went back")
            self._now_s = event.at_s
            match event:
                case Submitted(request=request):
                    self._asked[request.request_id] = _Asked(request, len(self._asked), event.at_s)
                case Reported():
                    self._hear(event)
                case Lost(worker_id=worker_id):
                    self._workers.pop(worker_id, None)
                case FirstByte(attempt_id=attempt_id):
                    self._show(attempt_id)
                case Ended():
                    self._end(event)
                case Decided(action=Dispatch() as dispatch):
                    self._dispatch(dispatch)
                case Decided(action=Settle() as settle):
                    self._settle(settle)
                case Decided(action=Abort(attempt_id=attempt_id)):
                    self._expect(not self._is_settled(attempt_id), f"{attempt_id}: aborted after its settlement")
                case Decided(action=Reject(request_id=request_id)):
                    self._finish(request_id, None)
                case Decided(action=Finish(request_id=request_id, attempt_id=attempt_id)):
                    self._finish(request_id, attempt_id)
                case Stopped():
                    self._stop(event)
        self._expect(bool(self._trace) and isinstance(self._trace[-1], Stopped), "the trace has no end")
        return self._breaches

    def _expect(self, is_kept: bool, breach: str) -> None:
        if not is_kept:
            self._breaches.append(f"{self._now_s:.3f} s: {breach}")

    # -- what was said

    def _hear(self, said: Reported) -> None:
        known = self._workers.get(said.worker_id)
        running = known.running if known is not None else set()
        self._workers[said.worker_id] = _Worker(said.is_ready, said.models, said.max_running, said.at_s, running)

    def _show(self, attempt_id: str) -> None:
        attempt = self._attempts[attempt_id]
        asked = self._asked[attempt.request_id]
        attempt.has_first_byte = asked.has_first_byte = True
        self._expect(not attempt.num_settles, f"{attempt_id}: bytes after its settlement")

    def _end(self, said: Ended) -> None:
        attempt = self._attempts.get(said.attempt_id)
        if attempt is None or attempt.num_settles:
            return
        if said.cause == BUSY_CAUSE and not attempt.has_ended and attempt.worker_id in self._workers:
            self._workers[attempt.worker_id].is_ready = False
        self._stop_answering(attempt)

    def _stop_answering(self, attempt: _Attempt) -> None:
        """Its request waits again, if this attempt did not answer it."""
        asked = self._asked[attempt.request_id]
        is_latest = attempt.number == asked.num_attempts
        if not attempt.has_ended and not attempt.is_answer and is_latest and not asked.num_ends:
            asked.waits_since_s = self._now_s
        attempt.has_ended = True

    # -- what was decided

    def _dispatch(self, dispatch: Dispatch) -> None:
        asked = self._asked[dispatch.request_id]
        request, attempt_id = asked.request, dispatch.attempt_id
        self._expect(attempt_id not in self._attempts, f"{attempt_id}: sent twice")
        self._expect(not asked.num_ends, f"{attempt_id}: sent after its request's end")
        self._expect(not asked.has_first_byte, f"{attempt_id}: a second try after the first byte")
        self._expect(asked.waits_since_s is not None, f"{attempt_id}: sent while another attempt may answer")
        self._expect(
            request.deadline_s is None or self._now_s < request.deadline_s, f"{attempt_id}: sent after its deadline"
        )
        self._expect(
            dispatch.max_output_tokens == request.max_output_tokens and dispatch.priority == request.band,
            f"{attempt_id}: wrong cap or priority",
        )
        asked.num_attempts += 1
        limits = self._limits
        self._expect(
            asked.num_attempts <= 1 + limits.max_retries + limits.max_bounces, f"{attempt_id}: one try too many"
        )
        self._wait_ended(asked, attempt_id)
        self._expect_order(asked)
        self._expect_room(dispatch, request)
        asked.waits_since_s = None
        self._attempts[attempt_id] = _Attempt(
            dispatch.request_id, dispatch.worker_id, asked.num_attempts, attempt_id in self._answers
        )

    def _expect_order(self, chosen: _Asked) -> None:
        """Strict bands, then who came first, among those that wait for the same model."""
        rank = (chosen.request.band, chosen.place)
        for other in self._asked.values():
            waits = other.waits_since_s is not None and other is not chosen
            if waits and other.request.model == chosen.request.model and (other.request.band, other.place) < rank:
                self._expect(False, f"{chosen.request.request_id}: overtook {other.request.request_id}")
                return

    def _expect_room(self, dispatch: Dispatch, request: Request) -> None:
        """Filters that no score overrides."""
        worker, attempt_id = self._workers.get(dispatch.worker_id), dispatch.attempt_id
        if worker is None:
            self._expect(False, f"{attempt_id}: sent to {dispatch.worker_id}, which is not there")
            return
        self._expect(worker.is_ready, f"{attempt_id}: sent to {dispatch.worker_id}, which is not ready")
        self._expect(request.model in worker.models, f"{attempt_id}: sent where its model is not served")
        self._expect(len(worker.running) < worker.max_running, f"{attempt_id}: sent to a full worker")
        self._expect(
            self._now_s - worker.heard_s <= self._limits.silent_s + SLACK_S, f"{attempt_id}: sent to a silent worker"
        )
        worker.running.add(attempt_id)

    def _settle(self, settle: Settle) -> None:
        attempt, attempt_id = self._attempts.get(settle.attempt_id), settle.attempt_id
        if attempt is None:
            self._expect(False, f"{attempt_id}: settled but never sent")
            return
        attempt.num_settles += 1
        self._expect(attempt.num_settles == 1, f"{attempt_id}: settled twice")
        self._stop_answering(attempt)
        asked = self._asked[attempt.request_id]
        most_tokens = asked.request.max_output_tokens * asked.request.num_sequences
        self._expect(settle.tokens.output_tokens <= most_tokens, f"{attempt_id}: more output than its cap")
        is_owed = attempt.has_first_byte or settle.outcome in (Outcome.COMPLETED, Outcome.REFUSED)
        self._expect(settle.payer is Payer.REQUEST or not is_owed, f"{attempt_id}: the operator pays an answer")
        in_vain = not attempt.is_answer and not is_owed
        self._expect(settle.payer is Payer.OPERATOR or not in_vain, f"{attempt_id}: the request pays what was in vain")
        if (worker := self._workers.get(attempt.worker_id)) is not None:
            worker.running.discard(attempt_id)

    def _finish(self, request_id: str, attempt_id: str | None) -> None:
        asked = self._asked.get(request_id)
        if asked is None:
            self._expect(False, f"{request_id}: ended but never submitted")
            return
        asked.num_ends += 1
        self._expect(asked.num_ends == 1, f"{request_id}: ended twice")
        if attempt_id is not None:
            self._expect(self._is_settled(attempt_id), f"{request_id}: ended before {attempt_id} was settled")
        self._wait_ended(asked, request_id)
        asked.waits_since_s = None

    def _wait_ended(self, asked: _Asked, name: str) -> None:
        since_s = asked.waits_since_s
        is_bounded = since_s is None or self._now_s - since_s <= self._limits.max_wait_s + SLACK_S
        self._expect(is_bounded, f"{name}: waited too long")

    # -- the end

    def _stop(self, end: Stopped) -> None:
        self._expect((end.num_open, end.num_running) == (0, 0), "something is still open")
        owned = {worker_id: tokens for worker_id, tokens in end.credit_tokens.items() if any(tokens)}
        self._expect(not owned, f"credit is still owned: {owned}")
        self._expect_all((name for name, asked in self._asked.items() if not asked.num_ends), "never ended")
        unsettled = (name for name, attempt in self._attempts.items() if not attempt.num_settles)
        self._expect_all(unsettled, "never settled")

    def _expect_all(self, names: Iterable[str], breach: str) -> None:
        for name in names:
            self._expect(False, f"{name}: {breach}")

    def _is_settled(self, attempt_id: str) -> bool:
        attempt = self._attempts.get(attempt_id)
        return attempt is not None and attempt.num_settles > 0
