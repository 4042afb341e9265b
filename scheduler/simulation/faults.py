"""Seeded losses of engines: when which one dies.

Called by the commands and benchmarks, given to ``scheduler.simulation.fleet``. It must never know what ran there.
"""

from __future__ import annotations

import random

from scheduler.simulation.fleet import Loss


def losses(num: int, *, num_workers: int, span_s: float, seed: int) -> list[Loss]:
    """So many, evenly at random over the span and over the engines, in order of time. One that falls on an engine which
    is parked or starts just then is none."""
    assert num_workers > 0, num_workers
    chance = random.Random(f"losses-{seed}")
    return sorted(Loss(chance.uniform(0.0, span_s), chance.randrange(num_workers)) for _ in range(num))
