"""What a worker says of its engine's cost: a step in seconds and joules, and what parking and starting it take.

Part of the values that cross the boundary (``workers.types``). It must never know who fitted or published them.
"""

from __future__ import annotations

import math

import msgspec


class PowerStates(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to park an engine and to start it again, all its GPUs together; learned, or from the catalogue."""

    parked_watts: float
    start_s: float
    """Until it is ready again."""
    start_watts: float
    """On average while it starts."""
    source: str = "prior"


class StepCurves(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's own fitted step curves, for placement: time_s = t[0] + t[1]·prefill + t[2]·decode + t[3]·context."""

    time_s: tuple[float, float, float, float]
    energy_joules: tuple[float, float, float, float]
    idle_watts: float
    source: str = "prior"
    batch_range: tuple[float, float] = (0.0, math.inf)
    """Sequences of a step between which it was measured; a step of fewer or more is extrapolated."""

    def is_extrapolated(self, num_sequences: float) -> bool:
        """Whether a step of so many was never measured."""
        return not self.batch_range[0] <= num_sequences <= self.batch_range[1]
