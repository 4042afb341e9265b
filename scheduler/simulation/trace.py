"""What happened in a simulated run, as seen from outside the core, in order.

Written by ``scheduler.simulation.driver``, read by ``scheduler.simulation.checker``. It must never know how the core
decides.

``at_s`` is the time the core was told, never less than before: a clock that jumps back stands still here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.actions import Action, Tokens
from scheduler.core.admission import Limits
from scheduler.core.budget_accounts import BudgetState, Measure
from scheduler.core.request import Request
from scheduler.core.rules import Rules
from workers.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """The core begins, or goes on, under these rules."""

    at_s: float
    rules: Rules
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """The control plane died; another began and knows nothing. Whoever was open is over."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockJumped:
    """The core was told nothing yet: its clock is suddenly ahead by so much."""

    at_s: float
    by_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """Time alone made the core decide."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    at_s: float
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The client went away."""

    at_s: float
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """The core was told how a worker is."""

    at_s: float
    worker_id: str
    is_ready: bool
    models: tuple[str, ...]
    max_running: int
    max_sequences: int
    zone: str = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The core was told that a worker is gone."""

    at_s: float
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The core was told, for the first time, how many tokens the prompt of an attempt really has."""

    at_s: float
    attempt_id: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstByte:
    """The client was given a byte of this attempt."""

    at_s: float
    attempt_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The core was told that an attempt's bytes, or the attempt itself (``has_usage``), ended."""

    at_s: float
    attempt_id: str
    outcome: Outcome
    cause: str
    has_usage: bool
    tokens: Tokens | None = None
    """What the worker counted, with its usage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """The core was told what was booked for an attempt."""

    at_s: float
    attempt_id: str
    energy_mj: int
    gpu_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The core decided, because of the event before."""

    at_s: float
    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The end of the run: what is still open and owned then, and what each budget says of itself."""

    at_s: float
    num_open: int
    num_running: int
    credit_tokens: Mapping[str, tuple[int, ...]]
    """By worker: everything that is owned there."""
    num_holds: int = 0
    """Requests that hold something of a budget."""
    held: Mapping[Measure, int] = field(default_factory=dict)
    """On all budgets together."""
    budgets: tuple[BudgetState, ...] = ()
    """Of every level that a request of this run had above it, at ``unix_s``."""
    unix_s: float = 0.0


Event = (
    Configured | Restarted | ClockJumped | Ticked | Submitted | Cancelled | Reported | Lost | Counted | FirstByte
    | Ended | Posted | Decided | Stopped
)  # fmt: skip
