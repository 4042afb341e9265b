"""The fault switches of a simulated engine, set off by the time since it started.

Called by ``workers.engines.simulated`` at each start. It must never know a sequence, a step or who is watching.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from workers.engines.simulated_options import SimulatedOptions
from workers.simulated_counter import SimulatedCounter


class Faulty(Protocol):
    """What can go wrong with an engine and its device."""

    options: SimulatedOptions
    counter: SimulatedCounter

    def hang(self) -> None: ...

    def resume(self) -> None: ...

    def slow(self, ratio: float) -> None: ...

    def die(self, *, mode: str = "engine") -> None: ...


def arm_faults(engine: Faulty, *, clock: Callable[[], float] = time.monotonic) -> list[asyncio.TimerHandle]:
    """Timers of the faults that its options ask for, to be cancelled when it ends."""
    loop = asyncio.get_running_loop()
    return [loop.call_later(after_s, fault) for after_s, fault in _faults(engine, clock) if after_s is not None]


def _faults(engine: Faulty, clock: Callable[[], float]) -> Iterator[tuple[float | None, Callable[[], None]]]:
    options, counter = engine.options, engine.counter
    yield options.hang_after_s, engine.hang
    if options.hang_after_s is not None and options.hang_for_s is not None:
        yield options.hang_after_s + options.hang_for_s, engine.resume
    yield options.die_after_s, lambda: engine.die(mode=options.die_mode)
    yield options.slow_after_s, lambda: engine.slow(options.slow_ratio)
    yield options.meter_lost_after_s, counter.lose
    if options.meter_lost_after_s is not None and options.meter_lost_for_s is not None:
        yield options.meter_lost_after_s + options.meter_lost_for_s, counter.find
    yield options.counter_stuck_after_s, counter.stick
    yield options.counter_reset_after_s, lambda: counter.reset(clock())
