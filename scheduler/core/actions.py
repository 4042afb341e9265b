"""What the core decides: the values its driver carries out, in order.

Returned by ``scheduler.core.scheduler``, carried out by the dispatcher and the simulation. It must never know a link,
a stream or an account.

For one request: any number of Dispatch, then exactly one Reject (no attempt answered it) or Finish. For one attempt:
exactly one Settle, before the Finish it leads to; that of an attempt which no longer answers may come later.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.request import SpecialTokens
from workers.types import Outcome


class Payer(StrEnum):
    """Who pays for what an attempt executed."""

    REQUEST = "request"
    OPERATOR = "operator"
    """Repeated and failed attempts of which the client saw no byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Which budget refused: its level, what it counts, its window, and how it stands."""

    level: str
    """``tenant acme``, ``project acme/search``, ``key key-0123456789``, ``task acme/nightly``."""
    measure: str
    """Word of ``budgets.Measure``."""
    window: str
    """As it is written in the configuration: ``1h``, ``calendar day``, ``total``…"""
    limit: int
    left: int
    needed: int
    resets_unix_s: float | None = None
    """When enough of it is free again, at the earliest; None = never by time alone."""
    fits_prompt_tokens: int | None = None
    """A prompt of at most so many tokens would have been admitted: worth counting the real one. None: no prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a request got no answer of an engine. ``reason`` is the word in response, metric and log."""

    reason: str
    status: int
    retry_after_s: int | None = None
    should_retry: bool | None = None
    """What the client's library is told; None = it may decide by the status."""
    message: str
    shortage: Shortage | None = None
    """Set where a budget refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What an attempt executed and is billed for: each prompt once (cached tokens included), and what was generated."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    special: SpecialTokens | None = None
    """Those among them that may have a price of their own; None where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Send the request to the worker as this attempt."""

    request_id: str
    attempt_id: str
    worker_id: str
    max_output_tokens: int
    """Of one sequence: what the hold covers."""
    priority: int
    reason: str
    """The decision in one line; the terms are kept by the core for ``explain``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Tell the worker to end the attempt; its ending is reported as any other."""

    attempt_id: str
    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Charge the attempt, once. ``is_exact`` False: the worker could not say, this is its last progress."""

    request_id: str
    attempt_id: str
    worker_id: str
    payer: Payer
    outcome: Outcome
    cause: str
    tokens: Tokens
    cost_nano: int = 0
    """Money by the rates pinned at admission, in 10⁻⁹ units; what the operator pays costs nobody."""
    plus_nano: int = 0
    """Of that money: for energy and GPU-time as they are estimated; corrected once when they are measured."""
    most_plus_nano: int | None = None
    """The most that they may cost it, measured or not; None: nothing was held for it."""
    is_exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """The request ends without an attempt that answers it."""

    request_id: str
    rejection: Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The request is over. ``attempt_id`` None: it was cancelled before any attempt could answer."""

    request_id: str
    attempt_id: str | None
    outcome: Outcome
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Park:
    """Stop the worker's engine; nothing runs there."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Start the engine of a worker that is parked."""

    worker_id: str
    reason: str


Action = Dispatch | Abort | Settle | Reject | Finish | Park | Wake
