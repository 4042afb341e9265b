"""The mutable records of the core: a request on its way, and each try of it on a worker.

Owned and changed by ``scheduler.core.scheduler`` alone. It must never know a queue's order or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from scheduler.core.actions import Dispatch, Payer, Settle, Tokens
from scheduler.core.budget_holds import Hold
from scheduler.core.cluster import Claim, Worker
from scheduler.core.price_plan import Postponed
from scheduler.core.request import Band, Request, SpecialTokens
from scheduler.core.score import Work
from scheduler.core.slack import UNDERWAY, Promise
from workers.types import Outcome, Progress, UsageRecord

MAX_PREEMPTIONS = 3
"""Of one request: no flood of a higher band can keep it from ever ending."""

PREEMPTED_CAUSE = "preempted"


class Wait(NamedTuple):
    """One stay in the queue. ``to_s`` None: it still waits. ``cause``: queued, preempted, or why its attempt failed."""

    from_s: float
    to_s: float | None
    cause: str


class Ending(NamedTuple):
    """How a request ended: an outcome, or ``rejected``; and the word for it."""

    outcome: str
    cause: str
    at_s: float


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """One request between its submission and its Reject or Finish."""

    request: Request
    place: int
    waits_since_s: float
    """When it began to wait: at its arrival, then whenever a worker that ran it was lost or failed."""
    attempt: Attempt | None = None
    """The attempt that may answer it; None while it waits."""
    num_attempts: int = 0
    num_losses: int = 0
    num_bounces: int = 0
    """Attempts that the worker refused because it was full."""
    num_preemptions: int = 0
    """Attempts that had to make room for a higher band."""
    avoid: frozenset[int] = frozenset()
    """Lives of the workers where it failed."""
    cancel_reason: str = ""
    is_cancelled_by_client: bool = False
    ages_since_s: float = field(init=False)
    """Since when a lower band's turn draws near: it loses a worker, not its age."""
    granted_tokens: int = field(init=False)
    """Output of one sequence that its hold covers: the cap that the engine gets."""
    waits: list[Wait] = field(default_factory=list)
    """Every time it stood in the queue; bounded by its tries."""
    tries: list[Attempt] = field(default_factory=list)
    end: Ending | None = None
    """Set once it is over."""
    postponed: Postponed | None = None
    """For which cheaper hour it waits, or waited; None: it began to wait for a worker at once."""
    promised_from_s: float = field(init=False)
    """Its first token is due so long after this as its objective says: its arrival, or the hour it waited for."""
    hold: Hold | None = None
    """Of the budgets above it; None where there are none, or it was refused."""

    def __post_init__(self) -> None:
        self.granted_tokens = self.request.max_output_tokens
        self.ages_since_s = self.waits_since_s
        self.promised_from_s = self.request.arrival_s

    def begin_wait(self, cause: str, now_s: float) -> None:
        """It stands in the queue from now on."""
        self.waits.append(Wait(now_s, None, cause))

    def end_wait(self, now_s: float) -> None:
        """It left the queue."""
        if self.waits and self.waits[-1].to_s is None:
            self.waits[-1] = self.waits[-1]._replace(to_s=now_s)


@dataclass(slots=True, kw_only=True, eq=False)
class Attempt:
    """One try on one worker. It outlives its request's interest in it until its usage is known."""

    attempt_id: str
    entry: Entry
    worker: Worker
    zone: str = field(init=False)
    """Of its worker, when it started."""
    started_s: float
    prompt_tokens: int
    """Expected first, then as the engine counted it."""
    expected_tokens: int
    """Output of all sequences; doubles whenever it is reached."""
    last_sign_s: float
    cached_tokens: int = 0
    """Expected first, then as the engine found them."""
    computed_prompt_tokens: int = 0
    output_tokens: int = 0
    energy_mj: int = 0
    """As its worker estimated it when it ended; 0 where it could not say any more."""
    gpu_us: int = 0
    """The same of its GPU-time."""
    has_progress: bool = False
    has_first_byte: bool = False
    outcome: Outcome | None = None
    """Set when its ASGI side ended."""
    cause: str = ""
    first_token_s: float | None = None
    """When it was first heard to have put out a token."""
    first_byte_s: float | None = None
    ended_s: float | None = None
    settled: Settle | None = None
    is_aged: bool = False
    """It was started before better bands because of its age."""

    def __post_init__(self) -> None:
        self.zone = self.worker.view.zone

    @property
    def is_answering(self) -> bool:
        """Whether what it says goes to its client."""
        return self.entry.attempt is self

    @property
    def is_repeatable(self) -> bool:
        """Whether its request may be tried again if it fails: somebody still waits for it and saw no byte of it."""
        is_answered = self.outcome in (Outcome.COMPLETED, Outcome.REFUSED) or self.has_first_byte
        return self.is_answering and not is_answered and not self.entry.cancel_reason

    @property
    def is_preemptable(self) -> bool:
        """Batch-class work of which nobody saw a byte may make room, a bounded number of times: then it stays.

        Not where its age put it before those who would take its room.
        """
        entry = self.entry
        is_batch = entry.request.band == Band.FLEX and entry.num_preemptions < MAX_PREEMPTIONS
        return is_batch and not self.is_aged and self.outcome is None and self.is_repeatable

    def give_way(self, now_s: float) -> None:
        """Its request is taken from it, to be tried again; what it executed was in vain."""
        entry, self.cause = self.entry, PREEMPTED_CAUSE
        entry.attempt = None
        entry.num_preemptions += 1
        entry.waits_since_s = now_s

    @property
    def max_tokens(self) -> int:
        """The most it can put out."""
        return self.entry.granted_tokens * self.entry.request.num_sequences

    def claim(self) -> Claim:
        """The credit it owns as things stand: what is left of the prompt and what is expected of the output."""
        known_tokens = min(self.cached_tokens + self.computed_prompt_tokens, self.prompt_tokens)
        return Claim(
            sequences=self.entry.request.num_sequences,
            prefill_tokens=self.prompt_tokens - known_tokens,
            decode_tokens=max(self.expected_tokens - self.output_tokens, 0),
            context_tokens=known_tokens + self.output_tokens,
            kv_tokens=self.prompt_tokens + self.expected_tokens,
        )

    def promise(self) -> Promise:
        """What its worker owes it: whose prompt goes first until its first token, when its last one is due after it."""
        request = self.entry.request
        if self.first_token_s is None:
            return Promise(rank=UNDERWAY if self.computed_prompt_tokens else request.band)
        per_sequence = self.expected_tokens / request.num_sequences
        return Promise(
            rank=UNDERWAY,
            due_s=self.first_token_s + request.slo.tpot_s * max(per_sequence - 1, 0.0),
            left_tokens=max(per_sequence - self.output_tokens / request.num_sequences, 0.0),
            value_nano_per_s=request.slo.value_nano_per_s,
            token_s=request.slo.tpot_s,
        )

    def advance(self, progress: Progress, now_s: float) -> None:
        """The worker counted; numbers are cumulative, so a late or repeated message cannot take anything back."""
        self.prompt_tokens = max(progress.prompt_tokens, self.prompt_tokens if self.has_progress else 1)
        if not self.has_progress:
            self.cached_tokens = 0  # what was expected gives way to what is
            self.has_progress = True
        self.cached_tokens = max(self.cached_tokens, progress.cached_tokens)
        self.computed_prompt_tokens = max(self.computed_prompt_tokens, progress.computed_prompt_tokens)
        self.output_tokens = max(self.output_tokens, progress.output_tokens)
        if self.output_tokens and self.first_token_s is None:
            self.first_token_s = now_s
        if self.output_tokens >= self.expected_tokens:
            self.expected_tokens = max(min(2 * self.output_tokens, self.max_tokens), self.output_tokens)

    def advance_decoding(self, progress: Progress) -> int | None:
        """The new output tokens where nothing else is new and no expectation changes: most of what is ever heard.

        None where it takes ``advance``; then nothing has changed.
        """
        output_tokens = progress.output_tokens
        if (
            self.first_token_s is None
            or not self.output_tokens <= output_tokens < self.expected_tokens
            or progress.prompt_tokens > self.prompt_tokens
            or progress.cached_tokens > self.cached_tokens
            or progress.computed_prompt_tokens > self.computed_prompt_tokens
        ):
            return None
        num_new, self.output_tokens = output_tokens - self.output_tokens, output_tokens
        return num_new

    def counted(self, usage: UsageRecord) -> Tokens:
        """What its worker counted; its estimate of the energy is kept for the charge."""
        self.energy_mj, self.gpu_us = usage.provisional_mj, usage.provisional_gpu_us
        return tokens_of(usage)

    def executed(self) -> Tokens:
        """What is known to have been computed; for an attempt of which no usage record will come."""
        if not self.has_progress:
            return Tokens()
        cached_tokens = min(self.cached_tokens, self.prompt_tokens)
        input_tokens = min(cached_tokens + self.computed_prompt_tokens, self.prompt_tokens)
        return Tokens(input_tokens=input_tokens, cached_tokens=cached_tokens, output_tokens=self.output_tokens)

    def payer(self, outcome: Outcome) -> Payer:
        """The request pays what it was given, and what its own client broke off; work in vain is the operator's, and so
        is a question that only counts.
        """
        if self.entry.request.is_counting:
            return Payer.OPERATOR
        if self.has_first_byte:
            return Payer.REQUEST
        if not self.is_answering:
            return Payer.OPERATOR  # even one that completed after its request was taken from it
        if self.entry.cancel_reason:  # no answer begins after that, whatever the engine still said
            return Payer.REQUEST if self.entry.is_cancelled_by_client else Payer.OPERATOR
        return Payer.REQUEST if outcome in (Outcome.COMPLETED, Outcome.REFUSED) else Payer.OPERATOR


def tokens_of(usage: UsageRecord) -> Tokens:
    """What the worker counted."""
    return Tokens(
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        special=SpecialTokens.of(
            usage.input_tokens - usage.cached_tokens,
            reasoning=usage.reasoning_tokens,
            image=usage.image_tokens,
            audio=usage.audio_tokens,
        ),
    )


def cost_of(request: Request, tokens: Tokens) -> int:
    """Money for tokens in 10⁻⁹ units, at the rates that were pinned at its admission."""
    return request.rates.cost_nano(
        input_tokens=tokens.input_tokens,
        cached_tokens=tokens.cached_tokens,
        output_tokens=tokens.output_tokens,
        special=tokens.special,
    )


def settle_of(attempt: Attempt, outcome: Outcome, tokens: Tokens, *, is_exact: bool) -> Settle:
    """The one settlement of an attempt that is over."""
    request, payer = attempt.entry.request, attempt.payer(outcome)
    cost_nano, plus_nano, most_plus_nano = 0, 0, None
    if payer is Payer.REQUEST:
        cost_nano = cost_of(request, tokens)
        if request.rates.plus is not None:
            hold = attempt.entry.hold
            most_plus_nano = None if hold is None else hold.plus_nano
            plus_nano = request.rates.cost_plus_nano(
                energy_mj=attempt.energy_mj, gpu_us=attempt.gpu_us, most_nano=most_plus_nano
            )
    return Settle(
        request_id=request.request_id,
        attempt_id=attempt.attempt_id,
        worker_id=attempt.worker.worker_id,
        payer=payer,
        outcome=outcome,
        cause=attempt.cause,
        tokens=tokens,
        cost_nano=cost_nano + plus_nano,
        plus_nano=plus_nano,
        most_plus_nano=most_plus_nano,
        is_exact=is_exact,
    )


def ending_of(attempt: Attempt, outcome: Outcome) -> tuple[Outcome, str]:
    """How the request of an attempt that answered it ends, and why."""
    if attempt.entry.cancel_reason:
        return Outcome.ABORTED, attempt.entry.cancel_reason
    if outcome in (Outcome.COMPLETED, Outcome.REFUSED):
        return outcome, ""
    # An abort nobody here ordered is the worker's failure, not the client's wish.
    return Outcome.FAILED, attempt.cause or "engine_error"


def dispatch_of(attempt: Attempt, reason: str) -> Dispatch:
    """The order to send it; ``reason`` says what its worker was chosen from."""
    return Dispatch(
        request_id=attempt.entry.request.request_id,
        attempt_id=attempt.attempt_id,
        worker_id=attempt.worker.worker_id,
        max_output_tokens=attempt.entry.granted_tokens,
        priority=attempt.entry.request.band,
        reason=reason,
    )


def work_of(request: Request, *, prompt_tokens: int, output_tokens: int) -> Work:
    """The work a request brings, from what is expected of it (``output_tokens`` of all its sequences)."""
    per_sequence = -(-output_tokens // request.num_sequences)
    return Work(prompt_tokens=prompt_tokens, output_tokens=per_sequence, num_sequences=request.num_sequences)


class Fate(StrEnum):
    """What becomes of a request whose attempt ended without a word to the client."""

    RETRY = "retry"
    BOUNCE = "bounce"
    END = "end"


BUSY_CAUSE = "worker_busy"

NOT_UP_CAUSES = frozenset({"worker_parked", "worker_starting"})
"""Its engine was stopped, or not up again, when the call came. The worker says its state before it refuses, so that no
request meets the same one twice."""

WORKER_CAUSES = frozenset({"stalled", "engine_dead", "orphaned", "call_lost", "no_sign", "silent"})
"""With everything that begins with ``worker_``: the worker is to blame, not the request."""


def is_workers_fault(cause: str) -> bool:
    return cause in WORKER_CAUSES or cause.startswith("worker_")


def fate_of(attempt: Attempt, max_retries: int, max_bounces: int, *, has_other: bool) -> Fate:
    """Whether its request is tried again: only if this attempt was to answer it and the client saw no byte.

    Where the worker is to blame the request may wait for another; an error of the engine itself is worth a second try
    only where another worker is there to make it (``has_other``).
    """
    entry = attempt.entry
    if not attempt.is_repeatable:
        return Fate.END
    if attempt.cause in NOT_UP_CAUSES:
        return Fate.BOUNCE
    if attempt.cause == BUSY_CAUSE:
        return Fate.BOUNCE if entry.num_bounces < max_bounces else Fate.END
    if entry.num_losses >= max_retries:
        return Fate.END
    return Fate.RETRY if is_workers_fault(attempt.cause) or has_other else Fate.END


@dataclass(slots=True, kw_only=True)
class Stats:
    """What the core decided so far, for metrics. Keys are words of the code: their number is bounded."""

    submitted: int = 0
    dispatched: int = 0
    retried: int = 0
    bounced: int = 0
    preempted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """By reason."""
    finished: dict[str, int] = field(default_factory=dict)
    """By outcome."""
    lost_workers: int = 0
