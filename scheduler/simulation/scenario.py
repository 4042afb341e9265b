"""What is simulated: workers, load, rules and faults, fixed before the core's first decision.

Made by ``scheduler.simulation.draws`` and tests, run by ``scheduler.simulation.driver``. It must never know what the
core decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.core.admission import Limits
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Request
from scheduler.core.rules import Rules
from workers.engines.simulated_options import SimulatedOptions

SHORT_LIMITS = Limits(
    queue=QueueLimits(max_requests=40),
    max_wait_s=40.0,
    no_worker_timeout_s=15.0,
    silent_s=3.0,
    lost_s=12.0,
    final_timeout_s=10.0,
    call_lost_s=10.0,
    sign_timeout_s=30.0,
)
"""Every bound is met within a minute of virtual time."""


class Fault(StrEnum):
    """What can happen to a worker."""

    DIES = "dies"
    """At once and with all it had; it is back later, empty."""
    HANGS = "hangs"
    """No step; its watchdog fails what runs after a while."""
    SLOWS = "slows"
    """Every step takes eight times as long."""
    SILENT = "silent"
    """Nothing it says arrives, nothing it is told arrives."""
    BUSY = "busy"
    """It refuses every call although it looks free."""
    LIES = "lies"
    """It reports loads that it does not have and curves that no engine can have."""
    MOVES = "moves"
    """It dies, and is back in another zone under the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAt:
    """One fault of one worker."""

    at_s: float
    worker_id: str
    fault: Fault
    for_s: float
    zone: str = "local"
    """Where it is back, if it moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """Operators change the rules."""

    at_s: float
    rules: Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockJump:
    """The clocks that the control plane reads are suddenly off by so much more."""

    at_s: float
    monotonic_s: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The control plane is killed, and another one begins at once over the same workers."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """One simulated worker."""

    worker_id: str
    models: tuple[str, ...]
    max_running: int
    options: SimulatedOptions
    zone: str = "local"


class Stage(StrEnum):
    """How far a request has come when its client goes away."""

    SENT = "sent"
    """It was just sent to a worker."""
    SPEAKS = "speaks"
    """Its first byte was just shown."""
    ENDED = "ended"
    """Its bytes just ended; the worker has not counted them yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request and what its client and its text will do."""

    request: Request
    """Its times are those of a clock that never jumps: the driver sets them as the control plane's clocks stand."""
    prompt_tokens: int
    """What the engine will count; at most the request's bound."""
    output_tokens: int
    """What each sequence would put out if nothing capped it."""
    is_streaming: bool
    cancel_after_s: float | None = None
    cancel_on: Stage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """How badly messages travel, each in probabilities."""

    delay_s: float = 0.002
    late_ratio: float = 0.0
    late_s: float = 3.0
    twice_ratio: float = 0.0
    lost_ratio: float = 0.0
    """Of calls and aborts; what a worker says is never lost, only late (it is kept until acknowledged)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A run; ``seed`` draws the messages' fates."""

    seed: int
    workers: tuple[WorkerSetup, ...]
    arrivals: tuple[Arrival, ...]
    rules: Rules = field(default_factory=Rules)
    start_unix_s: float = 1_795_996_800.0
    """Wall time at 0."""
    faults: tuple[FaultAt, ...] = ()
    reloads: tuple[Reload, ...] = ()
    jumps: tuple[ClockJump, ...] = ()
    restarts: tuple[Restart, ...] = ()
    messages: Messages = field(default_factory=Messages)
    limits: Limits = SHORT_LIMITS
