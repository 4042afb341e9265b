"""What an engine of a simulated fleet draws: loaded, starting or parked, from the first moment to the last.

Called by ``scheduler.simulation.fleet``. It must never know who decided a state, or what runs in it. All of it is
simulated: grade D.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class EngineState(IntEnum):
    LOADED = 0
    """It can take requests; steps are paid by the step curve, the time between them by its idle watts."""
    STARTING = 1
    PARKED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Of one engine, all its GPUs together.

    The defaults are one H100 with Llama-3.1-8B, from the same row of ``simulation_constants.csv`` as the step curve of
    ``SimulatedOptions``: idle and parked watts by published anchors, what a start takes is assumed.
    """

    idle_watts: float = 119.0
    """Loaded, between steps."""
    parked_watts: float = 60.0
    """Its GPUs without an engine."""
    start_s: float = 45.0
    start_watts: float = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateJoules:
    """What one engine, or a fleet, took in each state."""

    steps: float = 0.0
    idle: float = 0.0
    starting: float = 0.0
    parked: float = 0.0

    @property
    def total(self) -> float:
        return self.steps + self.idle + self.starting + self.parked

    def __add__(self, other: StateJoules) -> StateJoules:
        return StateJoules(
            steps=self.steps + other.steps,
            idle=self.idle + other.idle,
            starting=self.starting + other.starting,
            parked=self.parked + other.parked,
        )


class StateClock:
    """How long one engine was in each state. Engines begin loaded."""

    def __init__(self) -> None:
        self.state = EngineState.LOADED
        self.num_wakes = 0
        self.since_s = 0.0
        """Of the state that it is in."""
        self._spent_s = [0.0] * len(EngineState)

    def change(self, state: EngineState, now_s: float) -> None:
        """From now on it is in this state."""
        self._spent_s[self.state] += now_s - self.since_s
        self.since_s = now_s
        self.num_wakes += state is EngineState.STARTING
        self.state = state

    def spent_s(self, state: EngineState, end_s: float) -> float:
        """In this state until ``end_s``, which is not before the last change."""
        return self._spent_s[state] + (end_s - self.since_s if state is self.state else 0.0)

    def joules(self, draw: Draw, *, step_joules: float, busy_s: float, end_s: float) -> StateJoules:
        """Of the whole run; ``busy_s`` are the seconds of its steps."""
        loaded_s = self.spent_s(EngineState.LOADED, end_s)
        return StateJoules(
            steps=step_joules,
            idle=draw.idle_watts * max(loaded_s - busy_s, 0.0),
            starting=draw.start_watts * self.spent_s(EngineState.STARTING, end_s),
            parked=draw.parked_watts * self.spent_s(EngineState.PARKED, end_s),
        )
