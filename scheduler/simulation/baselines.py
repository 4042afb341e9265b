"""What others do: route by turns or by the number of requests, and let the engine queue.

Called by benchmarks. It must never know tokens, prefixes or curves: that is what makes these baselines.
"""

from __future__ import annotations

import random

from scheduler.simulation.closed_form import Job
from scheduler.simulation.fleet import Fleet


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
