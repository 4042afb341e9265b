"""What happened in a simulated run, as seen from outside the core, in order.

Written by ``scheduler.simulation.driver``, read by ``scheduler.simulation.checker``. It must never know how the core
decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.core.actions import Action
from scheduler.core.request import Request
from workers.types import Outcome


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The core was told that a worker is gone."""

    at_s: float
    worker_id: str


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
class Decided:
    """The core decided, because of the event before."""

    at_s: float
    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The end of the run: what is still open and owned then."""

    at_s: float
    num_open: int
    num_running: int
    credit_tokens: Mapping[str, tuple[int, ...]]
    """By worker: everything that is owned there."""


Event = Submitted | Cancelled | Reported | Lost | FirstByte | Ended | Decided | Stopped
