"""What the core decides: the values its driver carries out, in order.

Returned by ``scheduler.core.scheduler``, carried out by the dispatcher and the simulation. It must never know a link,
a stream or an account.

For one request: any number of Dispatch, then exactly one Reject (no attempt answered it) or Finish. For one attempt:
exactly one Settle, before the Finish it leads to; that of an attempt which no longer answers may come later.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from workers.types import Outcome


class Payer(StrEnum):
    """Who pays for what an attempt executed."""

    REQUEST = "request"
    OPERATOR = "operator"
    """Repeated and failed attempts of which the client saw no byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a request got no answer of an engine. ``reason`` is the word in response, metric and log."""

    reason: str
    status: int
    retry_after_s: int | None = None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What an attempt executed and is billed for: each prompt once (cached tokens included), and what was generated."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Send the request to the worker as this attempt."""

    request_id: str
    attempt_id: str
    worker_id: str
    max_output_tokens: int
    priority: int
    reason: str


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


Action = Dispatch | Abort | Settle | Reject | Finish
