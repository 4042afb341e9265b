"""What others do: route by turns, by the number of requests or by prefixes, let the engine queue, scale by the rate.

Called by ``scheduler.simulation.policies``. It must never know lengths of answers or curves: that is what makes these
baselines.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

from scheduler.simulation.closed_form import Job
from scheduler.simulation.fleet import Fleet
from scheduler.simulation.power import EngineState


class Baseline:
    """Sends every request at once to an engine that is loaded; a subclass chooses which. Where none is, it waits for
    the first. What a lost engine had not begun to answer is tried again, the rest is lost."""

    pool: tuple[int, ...] = ()
    """The engines that it may use; all where nothing is said."""

    def open(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.pool = self.pool or tuple(range(len(fleet.workers)))
        self._num_open = [0] * len(fleet.workers)
        """Requests that run or wait at each engine."""
        self._held: deque[int] = deque()
        self._known: tuple[int, list[int]] = (-1, [])
        """Who was loaded at how many changes."""

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        """Which of the loaded engines, of which there are some, gets it."""
        raise NotImplementedError

    def arrive(self, number: int, now_s: float) -> None:
        loaded = self._loaded()
        if not loaded:
            self._held.append(number)
            return
        worker = self.choose(number, loaded)
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
        while self._held:
            self.arrive(self._held.popleft(), now_s)

    def lost(self, worker: int, jobs: Sequence[Job], now_s: float) -> None:
        self._num_open[worker] = 0
        for job in jobs:
            if self._fleet.has_begun(job.number):
                self._fleet.refuse(job.number)
            else:
                self.arrive(job.number, now_s)

    def tick(self, now_s: float) -> None:
        return

    def _loaded(self) -> list[int]:
        num_changes, clocks = self._fleet.num_changes, self._fleet.clocks
        if self._known[0] != num_changes:
            self._known = (num_changes, [each for each in self.pool if clocks[each].state is EngineState.LOADED])
        return self._known[1]


class ByModel:
    """One baseline for each model, over its own engines."""

    def __init__(self, parts: Mapping[str, Baseline]) -> None:
        self._parts = parts

    def open(self, fleet: Fleet) -> None:
        self._fleet = fleet
        for model, part in self._parts.items():
            part.pool = tuple(number for number, worker in enumerate(fleet.workers) if worker.model == model)
            part.open(fleet)

    def arrive(self, number: int, now_s: float) -> None:
        self._parts[self._fleet.arrivals[number].model].arrive(number, now_s)

    def first_token(self, job: Job, now_s: float) -> None:
        self._part(job.worker).first_token(job, now_s)

    def ended(self, job: Job, now_s: float) -> None:
        self._part(job.worker).ended(job, now_s)

    def woken(self, worker: int, now_s: float) -> None:
        self._part(worker).woken(worker, now_s)

    def lost(self, worker: int, jobs: Sequence[Job], now_s: float) -> None:
        self._part(worker).lost(worker, jobs, now_s)

    def tick(self, now_s: float) -> None:
        for part in self._parts.values():
            part.tick(now_s)

    def _part(self, worker: int) -> Baseline:
        return self._parts[self._fleet.workers[worker].model]


class RoundRobin(Baseline):
    """By turns."""

    _num_chosen = 0

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        self._num_chosen += 1
        return loaded[(self._num_chosen - 1) % len(loaded)]


class LeastRequests(Baseline):
    """Whoever has fewest requests; the first of equals."""

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        return min(loaded, key=self._num_open.__getitem__)


class PowerOfTwo(Baseline):
    """The less loaded, in requests, of two drawn at random."""

    def __init__(self, *, seed: int) -> None:
        self._chance = random.Random(f"power-of-two-{seed}")

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        one, other = self._chance.sample(loaded, 2) if len(loaded) > 1 else (loaded[0], loaded[0])
        return one if self._num_open[one] <= self._num_open[other] else other


PREFIX_LEAST_RATIO = 0.3
PREFIX_IMBALANCE_REQUESTS = 64
PREFIX_IMBALANCE_RATIO = 1.5
"""When a prefix is worth following and when engines are out of balance: defaults of SGLang's cache-aware router."""


class Prefix(LeastRequests):
    """To the engine that was sent most of the prompt's beginning, as cache-aware routers do: unless that is little, or
    the engines are out of balance; then to whoever has fewest requests.

    It remembers of each engine as many blocks as have room there, those longest unused going first.
    """

    def open(self, fleet: Fleet) -> None:
        super().open(fleet)
        self._sent: list[OrderedDict[int, None]] = [OrderedDict() for _ in fleet.workers]
        self._room = [worker.options.kv_tokens // worker.options.block_tokens for worker in fleet.workers]

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        blocks = self._fleet.arrivals[number].full_blocks
        worker = super().choose(number, loaded)
        if blocks:
            if not self._is_out_of_balance(loaded):
                hits, _, best = max((self._num_hits(each, blocks), -self._num_open[each], each) for each in loaded)
                worker = best if hits > PREFIX_LEAST_RATIO * len(blocks) else worker
            self._remember(worker, blocks)
        return worker

    def lost(self, worker: int, jobs: Sequence[Job], now_s: float) -> None:
        self._sent[worker].clear()
        super().lost(worker, jobs, now_s)

    def _is_out_of_balance(self, loaded: Sequence[int]) -> bool:
        counts = [self._num_open[worker] for worker in loaded]
        most, fewest = max(counts), min(counts)
        return most - fewest > PREFIX_IMBALANCE_REQUESTS and most > PREFIX_IMBALANCE_RATIO * fewest

    def _num_hits(self, worker: int, blocks: Sequence[int]) -> int:
        sent = self._sent[worker]
        return next((place for place, block in enumerate(blocks) if block not in sent), len(blocks))

    def _remember(self, worker: int, blocks: Sequence[int]) -> None:
        sent = self._sent[worker]
        for block in reversed(blocks):  # a prompt's first blocks serve more prompts: they go last
            sent[block] = None
            sent.move_to_end(block)
        while len(sent) > self._room[worker]:
            sent.popitem(last=False)


class RaceToIdle(Baseline):
    """Fills one engine up to all its sequences before it uses the next; parks whoever is empty at once, as long as
    another has room. Where all that are loaded are full, one more is woken, and whoever has fewest requests takes it
    meanwhile."""

    _wants_more = False

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        for worker in loaded:
            if self._has_room(worker):
                return worker
        self._wants_more = True
        return min(loaded, key=self._num_open.__getitem__)

    def tick(self, now_s: float) -> None:
        clocks = self._fleet.clocks
        states = [clocks[worker].state for worker in self.pool]
        if self._wants_more and EngineState.STARTING not in states and EngineState.PARKED in states:
            self._fleet.wake(self.pool[states.index(EngineState.PARKED)], now_s)
        self._wants_more = False
        roomy = [worker for worker in self._loaded() if self._has_room(worker)]
        for worker in roomy[1:]:
            if not self._num_open[worker]:
                self._fleet.park(worker, now_s)

    def _has_room(self, worker: int) -> bool:
        return self._num_open[worker] < self._fleet.workers[worker].options.max_sequences


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
        self._is_wanted = dict.fromkeys(self.pool, True)

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        return super().choose(number, [worker for worker in loaded if self._is_wanted[worker]] or loaded)

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
        num_wanted, size = sum(self._is_wanted.values()), len(self.pool)
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
        order = sorted(self.pool, key=lambda worker: (clocks[worker].state is EngineState.PARKED, worker))
        for place, worker in enumerate(order):
            self._is_wanted[worker] = place < desired
            if place < desired and clocks[worker].state is EngineState.PARKED:
                self._fleet.wake(worker, now_s)
