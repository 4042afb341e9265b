"""What is simulated: workers, load and faults, all drawn from one seed.

Called by ``scheduler.simulation.driver`` and by tests. It must never know the core's decisions: what is drawn here is
fixed before the first of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.core.admission import Limits
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Request
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAt:
    """One fault of one worker."""

    at_s: float
    worker_id: str
    fault: Fault
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """One simulated worker."""

    worker_id: str
    models: tuple[str, ...]
    max_running: int
    options: SimulatedOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request and what its client and its text will do."""

    request: Request
    prompt_tokens: int
    """What the engine will count; at most the request's bound."""
    output_tokens: int
    """What each sequence would put out if nothing capped it."""
    is_streaming: bool
    cancel_after_s: float | None


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
    faults: tuple[FaultAt, ...] = ()
    messages: Messages = field(default_factory=Messages)
    limits: Limits = SHORT_LIMITS


def draw_scenario(seed: int, *, num_requests: int = 200, has_faults: bool = True) -> Scenario:
    """Two models (a worker serves one or both), three bands, four tenants, bursts that overload one to four workers."""
    chance = random.Random(f"scenario-{seed}")
    workers = tuple(_draw_worker(chance, number) for number in range(chance.choice([1, 2, 3, 4])))
    now_s, rate_per_s, arrivals = 0.0, 20.0, []
    for number in range(num_requests):
        if number % 20 == 0:
            rate_per_s = chance.choice([3.0, 20.0, 300.0])
        now_s += chance.expovariate(rate_per_s)
        arrivals.append(_draw_arrival(chance, number, now_s))
    if not has_faults:
        return Scenario(seed=seed, workers=workers, arrivals=tuple(arrivals))
    faults = [
        FaultAt(
            at_s=chance.uniform(0.0, now_s),
            worker_id=chance.choice(workers).worker_id,
            fault=chance.choice(list(Fault)),
            for_s=chance.choice([0.5, 5.0, 25.0]),
        )
        for _ in range(chance.randrange(1, 9))
    ]
    messages = Messages(
        late_ratio=chance.choice([0.0, 0.05]),
        twice_ratio=chance.choice([0.0, 0.1]),
        lost_ratio=chance.choice([0.0, 0.03]),
    )
    ordered = tuple(sorted(faults, key=lambda fault: (fault.at_s, fault.worker_id)))
    return Scenario(seed=seed, workers=workers, arrivals=tuple(arrivals), faults=ordered, messages=messages)


def _draw_worker(chance: random.Random, number: int) -> WorkerSetup:
    options = SimulatedOptions(
        time_t0_s=chance.choice([0.01, 0.03]),
        kv_tokens=chance.choice([3_000, 20_000]),
        max_sequences=chance.choice([4, 32]),
        max_batched_tokens=512,
        prefix_caching=False,
    )
    models = chance.choice([("x",), ("y",), ("x", "y")]) if number else ("x", "y")
    return WorkerSetup(worker_id=f"w{number}", models=models, max_running=chance.choice([1, 4, 16]), options=options)


def _draw_arrival(chance: random.Random, number: int, now_s: float) -> Arrival:
    prompt_tokens = chance.choice([5, 60, 700])
    request = Request(
        request_id=f"req-{number:05}",
        tenant=f"t{chance.randrange(4)}",
        model=chance.choice(["x", "y"]),
        band=chance.choice([0, 1, 1, 2, 2]),
        prompt_tokens_bound=prompt_tokens * chance.choice([1, 4]),
        max_output_tokens=chance.choice([1, 20, 200, 2000]),
        num_sequences=chance.choice([1, 1, 1, 2]),
        arrival_s=now_s,
        deadline_s=now_s + chance.choice([0.5, 5.0, 30.0]) if chance.random() < 0.2 else None,
        body_bytes=prompt_tokens * 4,
    )
    return Arrival(
        request=request,
        prompt_tokens=prompt_tokens,
        output_tokens=chance.choice([1, 15, 120, 1500]),
        is_streaming=chance.random() < 0.7,
        cancel_after_s=chance.choice([0.0, 0.2, 2.0]) if chance.random() < 0.12 else None,
    )
