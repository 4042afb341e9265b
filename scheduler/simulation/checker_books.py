"""The checker's own books: who waits, what runs where, under which rules, from what was said and decided alone.

Kept by ``scheduler.simulation.checker``, read by its judges. It must never judge, nor read the core's state.

What waits, by this account: a request from its submission, or from the end of an attempt that did not answer it (or
from the order to end it so that a higher band has room), to its next dispatch or its end. Which attempts did not answer
is known from the whole trace: all but the last, and the last too if the request ended without naming it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scheduler.core.actions import Abort, Action, Dispatch, Finish, Reject, Settle, Tokens
from scheduler.core.admission import Limits
from scheduler.core.request import DataClass, Request
from scheduler.core.rules import Rules
from scheduler.simulation.trace import (
    ClockJumped,
    Configured,
    Counted,
    Decided,
    Ended,
    Event,
    FirstByte,
    Lost,
    Posted,
    Reported,
    Restarted,
    Submitted,
)
from workers.types import Outcome

BUSY_CAUSE = "worker_busy"
PREEMPTED = "preempted"
CLIENT_GONE = "client_gone"


@dataclass(slots=True, eq=False)
class Asked:
    """One request."""

    request: Request
    place: int
    submitted_s: float
    """By its own word where that is earlier."""
    waits_since_s: float | None = None
    """None while an attempt may answer it, and once it is over."""
    num_ends: int = 0
    num_attempts: int = 0
    num_preemptions: int = 0
    has_first_byte: bool = False
    failed_on: set[int] = field(default_factory=set)
    """Lives of workers."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One try of it."""

    attempt_id: str
    asked: Asked
    worker_id: str
    life: int
    zone: str
    number: int
    is_answer: bool
    """Whether its request's end names it."""
    outcome: Outcome | None = None
    """The first word on how its bytes ended."""
    has_stopped: bool = False
    """It will not answer: it ended, was settled, or had to make room."""
    has_first_byte: bool = False
    is_preempted: bool = False
    is_aborted: bool = False
    is_cancelled: bool = False
    """Aborted because its client went away."""
    usage: Tokens | None = None
    """What its worker counted."""
    settle: Settle | None = None
    num_settles: int = 0
    is_posted: bool = False


@dataclass(slots=True, eq=False)
class Site:
    """One life of a worker, as it was last heard of."""

    life: int
    is_ready: bool
    models: tuple[str, ...]
    max_running: int
    max_sequences: int
    zone: str
    heard_s: float
    running: dict[str, Attempt] = field(default_factory=dict)


LineOf = tuple[int, str, DataClass, frozenset[str] | None]


def line_of(request: Request) -> LineOf:
    """One band of those whom the same workers may take."""
    return int(request.band), request.model, request.data_class, request.zones


class Judge(Protocol):
    """Recomputes one promise. It sees every event before the books take it."""

    def see(self, event: Event) -> None: ...


class Books:
    """Everything that was said and decided so far. ``breaches`` is filled by judges."""

    def __init__(self, trace: Sequence[Event]) -> None:
        self.limits = Limits()
        self.rules = Rules()
        self.now_s = 0.0
        self.jump_s = (float("-inf"), 0.0)
        """When the core's clock last jumped ahead, and by how much."""
        self.asked: dict[str, Asked] = {}
        self.waiting: dict[str, Asked] = {}
        """Those of ``asked`` that wait."""
        self.crowd: dict[tuple[LineOf, str], list[int]] = {}
        """By line and tenant: how many wait, and how often somebody came where nobody waited."""
        self.attempts: dict[str, Attempt] = {}
        self.sites: dict[str, Site] = {}
        self.zones: dict[str, set[str]] = {}
        """Where each model was ever seen by this control plane."""
        self.breaches: list[str] = []
        self.answers = _answers(trace)
        self.verdicts = _verdicts(trace)
        self.caps: dict[str, int] = {}
        """Of every request that is ever sent: the most that a sequence may put out."""
        self.executed: dict[str, Tokens] = {}
        """By attempt: what it came to in the end."""
        for event in trace:
            match event:
                case Decided(action=Dispatch(request_id=request_id, max_output_tokens=tokens)):
                    self.caps.setdefault(request_id, tokens)
                case Decided(action=Settle(attempt_id=attempt_id, tokens=executed)):
                    self.executed.setdefault(attempt_id, executed)
                case _:
                    pass
        self._num_lives = 0
        self._gave_way: list[Attempt] = []
        """Made room because of the event before: their requests wait from the next one on."""

    def expect(self, is_kept: bool, breach: str) -> None:
        """A breach is a line with the time of the event that shows it."""
        if not is_kept:
            self.breaches.append(f"{self.now_s:.3f} s: {breach}")

    def may_run(self, request: Request, zone: str) -> bool:
        """Whether the rules let this request's data into the zone."""
        is_allowed = request.zones is None or zone in request.zones
        return is_allowed and self.rules.zones.get(zone, DataClass.GENERAL) >= request.data_class

    # -- taking

    def take(self, event: Event) -> None:
        """After every judge has seen it."""
        if self._gave_way and not isinstance(event, Decided):
            for attempt in self._gave_way:
                self._stop_answering(attempt)
            self._gave_way.clear()
        match event:
            case Configured(rules=rules, limits=limits):
                self.rules, self.limits = rules, limits
            case Restarted():
                for books in (self.asked, self.waiting, self.crowd, self.attempts, self.sites, self.zones):
                    books.clear()
            case ClockJumped(at_s=at_s, by_s=by_s):
                self.jump_s = (at_s, by_s)
            case Submitted(request=request):
                asked = Asked(request, len(self.asked), min(request.arrival_s, event.at_s))
                self.asked[request.request_id] = asked
                self._wait(asked)
            case Reported():
                self._hear(event)
            case Lost(worker_id=worker_id):
                self.sites.pop(worker_id, None)
            case FirstByte(attempt_id=attempt_id):
                attempt = self.attempts[attempt_id]
                attempt.has_first_byte = attempt.asked.has_first_byte = True
            case Ended():
                self._end(event)
            case Posted(attempt_id=attempt_id):
                if attempt_id in self.attempts:
                    self.attempts[attempt_id].is_posted = True
            case Decided(action=action):
                self._decide(action)
            case Counted():
                pass

    def _hear(self, said: Reported) -> None:
        known = self.sites.get(said.worker_id)
        if known is None:
            self._num_lives += 1
        self.sites[said.worker_id] = Site(
            self._num_lives if known is None else known.life,
            said.is_ready,
            said.models,
            said.max_running,
            said.max_sequences,
            said.zone,
            said.at_s,
            {} if known is None else known.running,
        )
        for model in said.models:
            self.zones.setdefault(model, set()).add(said.zone)

    def _end(self, said: Ended) -> None:
        attempt = self.attempts.get(said.attempt_id)
        if attempt is None or attempt.num_settles:
            return
        attempt.usage = attempt.usage or said.tokens
        if attempt.outcome is None:
            attempt.outcome = said.outcome
            if said.cause == BUSY_CAUSE and (site := self.sites.get(attempt.worker_id)) is not None:
                site.is_ready = False
            elif said.outcome is Outcome.FAILED:
                attempt.asked.failed_on.add(attempt.life)
        self._stop_answering(attempt)

    def _stop_answering(self, attempt: Attempt) -> None:
        """Its request waits again, if this attempt did not answer it."""
        asked = attempt.asked
        is_latest = attempt.number == asked.num_attempts
        if not attempt.has_stopped and not attempt.is_answer and is_latest and not asked.num_ends:
            self._wait(asked)
        attempt.has_stopped = True

    def _wait(self, asked: Asked) -> None:
        request = asked.request
        asked.waits_since_s = self.now_s
        self.waiting[request.request_id] = asked
        crowd = self.crowd.setdefault((line_of(request), request.tenant), [0, 0])
        crowd[1] += not crowd[0]
        crowd[0] += 1

    def _wait_no_more(self, asked: Asked) -> None:
        asked.waits_since_s = None
        if self.waiting.pop(asked.request.request_id, None) is not None:
            self.crowd[line_of(asked.request), asked.request.tenant][0] -= 1

    def _decide(self, action: Action) -> None:
        match action:
            case Dispatch():
                self._dispatch(action)
            case Settle(attempt_id=attempt_id):
                attempt = self.attempts.get(attempt_id)
                if attempt is not None:
                    attempt.settle = attempt.settle or action
                    attempt.num_settles += 1
                    self._stop_answering(attempt)
                    if (site := self.sites.get(attempt.worker_id)) is not None:
                        site.running.pop(attempt_id, None)
            case Abort(attempt_id=attempt_id, reason=reason):
                attempt = self.attempts.get(attempt_id)
                if attempt is not None:
                    attempt.is_aborted = True
                    attempt.is_cancelled |= reason == CLIENT_GONE
                    if reason == PREEMPTED:
                        attempt.is_preempted, attempt.is_answer = True, False
                        attempt.asked.num_preemptions += 1
                        self._gave_way.append(attempt)
            case Reject(request_id=request_id) | Finish(request_id=request_id):
                if (asked := self.asked.get(request_id)) is not None:
                    asked.num_ends += 1
                    self._wait_no_more(asked)

    def _dispatch(self, dispatch: Dispatch) -> None:
        asked = self.asked.get(dispatch.request_id)
        if asked is None:
            return
        asked.num_attempts += 1
        self._wait_no_more(asked)
        site, attempt_id = self.sites.get(dispatch.worker_id), dispatch.attempt_id
        attempt = self.attempts[attempt_id] = Attempt(
            attempt_id,
            asked,
            dispatch.worker_id,
            0 if site is None else site.life,
            "" if site is None else site.zone,
            asked.num_attempts,
            attempt_id in self.answers,
        )
        if site is not None:
            site.running[attempt_id] = attempt


def _answers(trace: Sequence[Event]) -> frozenset[str]:
    """Attempts that answered their request: its end names them, or it was cut off before they were settled."""
    answers: dict[str, str] = {}
    for event in trace:
        match event:
            case Decided(action=Dispatch(request_id=request_id, attempt_id=attempt_id)):
                answers[request_id] = attempt_id
            case Decided(action=Settle(request_id=request_id, attempt_id=attempt_id)):
                if answers.get(request_id) == attempt_id:
                    answers[request_id] = ""
            case Decided(action=Finish(request_id=request_id, attempt_id=attempt_id)):
                answers[request_id] = attempt_id or ""
            case Decided(action=Reject(request_id=request_id)):
                answers[request_id] = ""
            case _:
                pass
    return frozenset(answers.values())


def _verdicts(trace: Sequence[Event]) -> dict[str, Reject]:
    """Requests that were refused by the very event that submitted them."""
    verdicts = {}
    submitted = ""
    for event in trace:
        match event:
            case Submitted(request=request):
                submitted = request.request_id
            case Decided(action=Reject(request_id=request_id) as reject) if request_id == submitted:
                verdicts[request_id] = reject
            case Decided():
                pass
            case _:
                submitted = ""
    return verdicts
