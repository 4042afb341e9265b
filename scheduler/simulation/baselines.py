"""What others do: route by turns or by the number of requests, let the engine queue, and scale by the arrival rate.

Called by benchmarks. It must never know tokens, prefixes or curves: that is what makes these baselines.
"""

from __future__ import annotations

import math
import random
from collections import deque

from scheduler.simulation.closed_form import Job
from scheduler.simulation.fleet import Fleet
from scheduler.simulation.power import EngineState


class Baseline:
    """Sends every request at once; a subclass chooses where."""

    def open(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._num_open = [0] * len(fleet.workers)
        """Requests that run or wait at each engine."""

    def choose(self, number: int) -> int:
        raise NotImplementedError

    def arrive(self, number: int, now_s: float) -> None:
        worker = self.choose(number)
        self._num_open[worker] += 1
        if not self._fleet.start(number, worker, now_s):
            self._num_open[worker] -= 1
            self._fleet.refuse(number)

    def first_token(self, job: Job, now_s: float) -> None:
        return

    def ended(self, job: Job, now_s: float) -> None:
        self._num_open[job.worker] -= 1
        self._fleet.answered(job, now_s)

    def woken(self, worker: int, now_s: float) -> None:
        return

    def tick(self, now_s: float) -> None:
        return


class RoundRobin(Baseline):
    """By turns."""

    def choose(self, number: int) -> int:
        return number % len(self._num_open)


class LeastRequests(Baseline):
    """Whoever has fewest requests; the first of equals."""

    def choose(self, number: int) -> int:
        return self._num_open.index(min(self._num_open))


class PowerOfTwo(Baseline):
    """The less loaded, in requests, of two drawn at random."""

    def __init__(self, *, seed: int) -> None:
        self._chance = random.Random(f"power-of-two-{seed}")

    def choose(self, number: int) -> int:
        one, other = self._chance.sample(range(len(self._num_open)), 2) if len(self._num_open) > 1 else (0, 0)
        return one if self._num_open[one] <= self._num_open[other] else other


AUTOSCALE_EVERY_S = 10.0
AUTOSCALE_MEMORY_S = 60.0
AUTOSCALE_DOWN_S = 300.0


class Autoscale(LeastRequests):
    """Replicas by the arrival rate, as cluster autoscalers do: every 10 s it wants the mean rate of the last minute ÷ a
    share of what one engine takes by turns. Up at once; down when it has wanted fewer for 300 s.

    Who goes down gets nothing new, and is parked when it is empty; who is wanted again before that goes on.
    """

    def __init__(self, *, target_ratio: float, limit_per_engine_per_s: float) -> None:
        """``target_ratio``: how full an engine may be. The limit is the round-robin limit ÷ engines."""
        assert 0 < target_ratio <= 1, target_ratio
        assert limit_per_engine_per_s > 0, limit_per_engine_per_s
        self._per_engine_per_s = target_ratio * limit_per_engine_per_s
        self._arrivals_s: deque[float] = deque()
        self._next_s = AUTOSCALE_EVERY_S
        self._fewer_since_s: float | None = None

    def open(self, fleet: Fleet) -> None:
        super().open(fleet)
        self._is_wanted = [True] * len(fleet.workers)

    def choose(self, number: int) -> int:
        loaded = [worker for worker in self._loaded() if self._is_wanted[worker]] or self._loaded()
        return min(loaded, key=self._num_open.__getitem__)

    def arrive(self, number: int, now_s: float) -> None:
        self._arrivals_s.append(now_s)
        super().arrive(number, now_s)

    def tick(self, now_s: float) -> None:
        if now_s >= self._next_s - 1e-6:  # ticks are summed
            self._next_s += AUTOSCALE_EVERY_S
            self._scale(now_s)
        for worker in self._loaded():
            if not self._is_wanted[worker] and not self._num_open[worker]:
                self._fleet.park(worker, now_s)

    def _scale(self, now_s: float) -> None:
        while self._arrivals_s and self._arrivals_s[0] < now_s - AUTOSCALE_MEMORY_S:
            self._arrivals_s.popleft()
        rate_per_s = len(self._arrivals_s) / min(now_s, AUTOSCALE_MEMORY_S)
        num_wanted, size = sum(self._is_wanted), len(self._is_wanted)
        desired = min(max(math.ceil(rate_per_s / self._per_engine_per_s - 1e-9), 1), size)
        if desired >= num_wanted:
            self._fewer_since_s = None
            if desired > num_wanted:
                self._want(desired, now_s)
        elif self._fewer_since_s is None:
            self._fewer_since_s = now_s
        elif now_s - self._fewer_since_s >= AUTOSCALE_DOWN_S - 1e-6:
            self._want(desired, now_s)
            self._fewer_since_s = None

    def _want(self, desired: int, now_s: float) -> None:
        """The first ones; those that are loaded or starting before those that are parked."""
        clocks = self._fleet.clocks
        order = sorted(range(len(clocks)), key=lambda worker: (clocks[worker].state is EngineState.PARKED, worker))
        for place, worker in enumerate(order):
            self._is_wanted[worker] = place < desired
            if place < desired and clocks[worker].state is EngineState.PARKED:
                self._fleet.wake(worker, now_s)

    def _loaded(self) -> list[int]:
        return [worker for worker, clock in enumerate(self._fleet.clocks) if clock.state is EngineState.LOADED]
