"""What happened in a simulated run, as seen from outside the core, in order.

Written by ``scheduler.simulation.driver``, read by ``scheduler.simulation.checker``. It must never know how the core
decides.

``at_s`` is the time the core was told, never less than before: a clock that jumps back stands still here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.actions import Action
from scheduler.core.admission import Limits
from scheduler.core.request import DataClass, Request
from workers.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One budget: at most ``limit`` of ``measure`` in ``window``, by one level. Words are those of a configuration."""

    level: tuple[str, str]
    """Its kind (tenant, project, key, task) and its name."""
    measure: str
    limit: int
    window: str = ""
    """``1m``, ``calendar day``, ``total``; empty where the measure is what is open now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What operators set and may change while everything runs."""

    rules: tuple[Rule, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    """By tenant; 1 where nothing is said."""
    zones: Mapping[str, DataClass] = field(default_factory=dict)
    """What each zone may hold; general data where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """The core begins, or goes on, under these rules."""

    at_s: float
    control: Control
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """The control plane died; another began, with nothing but what was settled. Whoever was open is over."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """The core was told what the meter found for an attempt."""

    at_s: float
    attempt_id: str
    energy_mj: int
    gpu_us: int
    carbon_ug: int


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
    held: tuple[int, ...] = ()
    """On all budgets together, by measure."""
    used: Mapping[Rule, int] = field(default_factory=dict)
    """Of each budget in the window of ``unix_s``."""
    unix_s: float = 0.0


Event = (
    Configured | Restarted | Submitted | Cancelled | Reported | Lost | Counted | FirstByte | Ended | Posted | Decided
    | Stopped
)  # fmt: skip
