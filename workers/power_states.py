"""What it takes to park this engine and to start it again: a prior by its kind, then what was seen.

Called by ``workers.worker``. It must never know a clock, an engine's name or why it is parked.

The first start says how long one takes, but it also loads what a later start finds in memory: the first wake replaces
it. From then on each wake counts as much as all before it, so that a machine that changed is believed soon.
"""

from __future__ import annotations

from workers.metering import watts_between
from workers.step_curves import PowerStates
from workers.types import WorkerSpec
from workers.windows import MeterReading

GPU_PRIOR = PowerStates(parked_watts=60.0, start_s=45.0, start_watts=200.0)
"""Of one GPU, an H100 with an 8B model: ``simulation_constants.csv``, where the start is assumed."""

CPU_START_S = 40.0
"""vLLM's CPU build with a small model on two cores."""

NEWEST_RATIO = 0.5
MIN_PARKED_S = 1.0
"""Counters tick: a shorter look says nothing about watts."""

PRIOR, FIRST_START, MEASURED = "prior", "first start", "measured"
"""Sources: nothing was seen, only the first start, a wake."""


def prior_of(spec: WorkerSpec) -> PowerStates:
    """Before anything was seen. A simulated engine stands for GPUs; a CPU engine, once parked, draws nothing."""
    if not spec.num_gpus and spec.engine != "simulated":
        start_watts = spec.num_cpus * spec.meter.watts_per_cpu_second
        return PowerStates(parked_watts=0.0, start_s=CPU_START_S, start_watts=start_watts)
    num_gpus = max(spec.num_gpus, 1)
    return PowerStates(
        parked_watts=GPU_PRIOR.parked_watts * num_gpus,
        start_s=GPU_PRIOR.start_s,
        start_watts=GPU_PRIOR.start_watts * num_gpus,
    )


class PowerBook:
    """One engine's. Readings are of its own meter; None where that could not be read."""

    def __init__(self, prior: PowerStates) -> None:
        self._parked_watts = prior.parked_watts
        self._start_s = prior.start_s
        self._start_watts = prior.start_watts
        self._source = prior.source
        self._are_start_watts_seen = False
        self._are_parked_watts_seen = False

    def states(self) -> PowerStates:
        """As known now."""
        return PowerStates(
            parked_watts=self._parked_watts,
            start_s=self._start_s,
            start_watts=self._start_watts,
            source=self._source,
        )

    def started_first(self, start_s: float) -> None:
        """It came up for the first time, unmetered: its meter was opened after it."""
        if self._source == PRIOR:
            self._start_s, self._source = start_s, FIRST_START

    def woke(self, start_s: float, before: MeterReading | None, after: MeterReading | None) -> None:
        """It was started again, between two readings."""
        self._start_s = _newer(self._start_s, start_s, is_first=self._source != MEASURED)
        self._source = MEASURED
        if (watts := watts_between(before, after)) is not None:
            self._start_watts = _newer(self._start_watts, watts, is_first=not self._are_start_watts_seen)
            self._are_start_watts_seen = True

    def rested(self, before: MeterReading | None, after: MeterReading | None) -> None:
        """It was parked between two readings."""
        if before is not None and after is not None and after.at_s - before.at_s < MIN_PARKED_S:
            return
        if (watts := watts_between(before, after)) is not None:
            self._parked_watts = _newer(self._parked_watts, watts, is_first=not self._are_parked_watts_seen)
            self._are_parked_watts_seen = True


def _newer(known: float, seen: float, *, is_first: bool) -> float:
    return seen if is_first else known + NEWEST_RATIO * (seen - known)
