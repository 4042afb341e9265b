"""A fleet of closed-form engines on a virtual clock: thousands of requests a second of wall time.

Called by benchmarks and planning. It must never decide where a request goes: that is the router's, either the
production core (``scheduler.simulation.core_router``) or a baseline. No chance in it: the same arrivals and router give
the same run.

There are no delays here and no faults but lost engines (``scheduler.simulation.driver`` has them all): an order reaches
its engine, and a word the core, at the moment it is given.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from scheduler.simulation.closed_form import ClosedFormEngine, Job
from scheduler.simulation.power import Draw, EngineState, StateClock, StateJoules
from scheduler.simulation.results import Results, unloaded_ttft_s
from scheduler.simulation.traces import MODEL, Arrival
from workers.engines.simulated_options import SimulatedOptions

TICK_S = 0.1
DEFAULT_DRAW = Draw()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetWorker:
    """One engine of the fleet."""

    worker_id: str
    options: SimulatedOptions
    zone: str = "local"
    draw: Draw = DEFAULT_DRAW
    model: str = MODEL
    num_gpus: int = 1


class Loss(NamedTuple):
    """An engine dies, if it is loaded then; it begins to start again at once."""

    at_s: float
    worker: int


class Router(Protocol):
    """Who decides. It answers every call by ``fleet.start``, ``fleet.refuse`` and ``fleet.abort``, and may ``park`` and
    ``wake`` engines whenever it is called."""

    def open(self, fleet: Fleet) -> None:
        """The run begins at 0."""

    def arrive(self, number: int, now_s: float) -> None:
        """Request ``number`` is here."""

    def first_token(self, job: Job, now_s: float) -> None: ...

    def ended(self, job: Job, now_s: float) -> None: ...

    def woken(self, worker: int, now_s: float) -> None:
        """An engine that was told to wake, or that was lost, is loaded."""

    def lost(self, worker: int, jobs: Sequence[Job], now_s: float) -> None:
        """An engine died with these attempts on it: they are to be tried again or refused."""

    def tick(self, now_s: float) -> None:
        """Every tick of the fleet."""


class Watch(Protocol):
    """Who looks on while a run goes; it changes nothing."""

    every_s: float

    def look(self, fleet: Fleet, now_s: float) -> None: ...


class Fleet:
    """One run. ``worker_ids`` index the engines. All of them begin loaded, and pay from 0 to the last answer."""

    def __init__(
        self,
        workers: Sequence[FleetWorker],
        arrivals: Sequence[Arrival],
        router: Router,
        *,
        tick_s: float = TICK_S,
        losses: Sequence[Loss] = (),
        watch: Watch | None = None,
    ) -> None:
        """``tick_s``: how often the router is called by the clock; days need it less often than bursts."""
        self.tick_s = tick_s
        self.workers = tuple(workers)
        assert len({worker.worker_id for worker in workers}) == len(workers), "two engines have one name"
        self.arrivals = arrivals
        self.engines = [ClosedFormEngine(worker.options) for worker in workers]
        self.running: list[dict[str, Job]] = [{} for _ in workers]
        """Attempts that were given to each engine and have not ended."""
        self._router = router
        self._events: list[tuple[float, int]] = []
        """(when, which engine) has a plan that ends; an entry whose time is not the engine's is out of date. Of
        one that starts: its number's complement, when it is loaded. Of one that is lost: its number beyond all."""
        for loss in losses:
            heapq.heappush(self._events, (loss.at_s, len(self.workers) + loss.worker))
        self.clocks = [StateClock() for _ in workers]
        self.num_changes = 0
        """Of any engine's state: what was worked out from the states holds while it stands."""
        self.num_waiting = 0
        """Requests that came and have no first token."""
        self._watch = watch
        self._spent = [(0.0, 0.0)] * len(self.workers)
        """Joules and seconds of steps of the engines that died, by place."""
        self._num_losses = 0
        self._num_open = len(arrivals)
        self._num_attempts = 0
        self._first_token_s = [math.nan] * len(arrivals)
        self._ended_s = [math.nan] * len(arrivals)
        self._worker = [-1] * len(arrivals)
        self._cached = [0] * len(arrivals)
        self._preemptions = [0] * len(arrivals)

    # -- what routers order

    def start(
        self,
        number: int,
        worker: int,
        now_s: float,
        *,
        attempt_id: str = "",
        max_tokens: int = 2**31,
        priority: int = 1,
    ) -> bool:
        """Gives the request to an engine; False where it could never fit there."""
        arrival = self.arrivals[number]
        job = Job(
            number=number,
            attempt_id=attempt_id or str(number),
            prompt_tokens=arrival.prompt_tokens,
            target_tokens=min(arrival.output_tokens, max_tokens),
            priority=priority,
            blocks=arrival.full_blocks,
            worker=worker,
        )
        assert self.clocks[worker].state is EngineState.LOADED, f"{self.workers[worker].worker_id} is not loaded"
        engine = self.engines[worker]
        before_s = engine.ends_s
        if not engine.submit(job, now_s):
            return False
        self._num_attempts += 1
        self.running[worker][job.attempt_id] = job
        if engine.ends_s != before_s:
            heapq.heappush(self._events, (engine.ends_s, worker))
        return True

    def abort(self, worker: int, attempt_id: str, now_s: float) -> None:
        """Ends an attempt; what is unknown or over is left alone."""
        job = self.running[worker].get(attempt_id)
        if job is None:
            return
        engine = self.engines[worker]
        if engine.abort(job, now_s):
            self._end(job, now_s)
        if engine.ends_s < math.inf:
            heapq.heappush(self._events, (engine.ends_s, worker))

    def refuse(self, number: int) -> None:
        """No engine will answer it."""
        self._num_open -= 1
        self.num_waiting -= not self.has_begun(number)

    def has_begun(self, number: int) -> bool:
        """Its client saw a first token."""
        return not math.isnan(self._first_token_s[number])

    def answered(self, job: Job, now_s: float) -> None:
        """The job answered its request."""
        number = job.number
        self._ended_s[number] = now_s
        self._worker[number] = job.worker
        self._cached[number] = job.cached_tokens
        self._preemptions[number] = job.num_preemptions
        self._num_open -= 1

    def park(self, worker: int, now_s: float) -> None:
        """Stops an engine on which nothing runs."""
        assert not self.running[worker], f"{len(self.running[worker])} attempts run on {self.workers[worker].worker_id}"
        assert self.clocks[worker].state is EngineState.LOADED, self.clocks[worker].state
        self._change(worker, EngineState.PARKED, now_s)

    def wake(self, worker: int, now_s: float) -> None:
        """Starts an engine that is parked; the router hears when it is loaded."""
        assert self.clocks[worker].state is EngineState.PARKED, self.clocks[worker].state
        self._begin_start(worker, now_s)

    # -- the loop

    def run(self) -> Results:
        """Every request from its arrival to its end."""
        router, engines, events, arrivals = self._router, self.engines, self._events, self.arrivals
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        router.open(self)
        next_arrival, num_arrivals = 0, len(arrivals)
        arrival_s = arrivals[0].arrival_s if arrivals else math.inf
        tick_s, look_s, num_workers = self.tick_s, 0.0 if self._watch else math.inf, len(self.workers)
        while self._num_open:
            event_s = events[0][0] if events else math.inf
            if arrival_s <= event_s and arrival_s <= tick_s:
                self.num_waiting += 1
                router.arrive(next_arrival, arrival_s)
                next_arrival += 1
                arrival_s = arrivals[next_arrival].arrival_s if next_arrival < num_arrivals else math.inf
            elif event_s <= tick_s:
                worker = heapq.heappop(events)[1]
                if worker < 0:
                    self._change(~worker, EngineState.LOADED, event_s)
                    router.woken(~worker, event_s)
                    continue
                if worker >= num_workers:
                    self._lose(worker - num_workers, event_s)
                    continue
                engine = engines[worker]
                if engine.ends_s == event_s:
                    self._finish_steps(engine, worker, event_s)
            else:
                router.tick(tick_s)
                if tick_s >= look_s - 1e-6 and self._watch is not None:  # ticks are summed
                    self._watch.look(self, tick_s)
                    look_s = tick_s + self._watch.every_s
                tick_s += self.tick_s
        return self._results(time.perf_counter() - began_s, time.process_time() - began_cpu_s)

    def _finish_steps(self, engine: ClosedFormEngine, worker: int, now_s: float) -> None:
        done = engine.finish()
        if engine.ends_s < math.inf:
            heapq.heappush(self._events, (engine.ends_s, worker))
        for job in done.started:
            if job.number >= 0 and self._first_token_s[job.number] != self._first_token_s[job.number]:
                self._first_token_s[job.number] = now_s
                self.num_waiting -= 1
                self._router.first_token(job, now_s)
        for job in done.ended:
            self._end(job, now_s)

    def _end(self, job: Job, now_s: float) -> None:
        del self.running[job.worker][job.attempt_id]
        self._router.ended(job, now_s)

    def _lose(self, worker: int, now_s: float) -> None:
        """What it computed in the step in flight is paid as idle time."""
        if self.clocks[worker].state is not EngineState.LOADED:
            return
        jobs, engine = list(self.running[worker].values()), self.engines[worker]
        joules, busy_s = self._spent[worker]
        self._spent[worker] = (joules + engine.joules, busy_s + engine.busy_s)
        self.running[worker] = {}
        self.engines[worker] = ClosedFormEngine(self.workers[worker].options)
        self._num_losses += 1
        self._begin_start(worker, now_s)
        self._router.lost(worker, jobs, now_s)

    def _change(self, worker: int, state: EngineState, now_s: float) -> None:
        self.clocks[worker].change(state, now_s)
        self.num_changes += 1

    def _begin_start(self, worker: int, now_s: float) -> None:
        self._change(worker, EngineState.STARTING, now_s)
        heapq.heappush(self._events, (now_s + self.workers[worker].draw.start_s, ~worker))

    def joules(self, end_s: float) -> StateJoules:
        """Of all engines from 0 to now, or to a later moment up to which none changes its state. Steps count when they
        are over."""
        total = StateJoules()
        for worker, engine, clock, (joules, busy_s) in zip(
            self.workers, self.engines, self.clocks, self._spent, strict=True
        ):
            total += clock.joules(
                worker.draw, step_joules=joules + engine.joules, busy_s=busy_s + engine.busy_s, end_s=end_s
            )
        return total

    @property
    def loaded_gpus(self) -> int:
        """GPUs whose engine can take requests."""
        pairs = zip(self.workers, self.clocks, strict=True)
        return sum(worker.num_gpus for worker, clock in pairs if clock.state is EngineState.LOADED)

    def _results(self, wall_s: float, cpu_s: float) -> Results:
        end_s = max([0.0, *[ended_s for ended_s in self._ended_s if not math.isnan(ended_s)]])
        end_s = max([end_s, *[clock.since_s for clock in self.clocks]])  # one may have changed after the last answer
        pairs = list(zip(self.workers, self.clocks, strict=True))
        loaded_s = [clock.spent_s(EngineState.LOADED, end_s) for clock in self.clocks]
        return Results(
            arrivals=self.arrivals,
            first_token_s=np.array(self._first_token_s),
            ended_s=np.array(self._ended_s),
            worker=np.array(self._worker),
            cached_tokens=np.array(self._cached),
            num_preemptions=np.array(self._preemptions),
            unloaded_s=_unloaded_s(self.workers, self.arrivals),
            num_attempts=self._num_attempts,
            wall_s=wall_s,
            cpu_s=cpu_s,
            joules=self.joules(end_s),
            busy_s=sum(engine.busy_s + spent[1] for engine, spent in zip(self.engines, self._spent, strict=True)),
            loaded_s=sum(loaded_s),
            loaded_gpu_s=sum(worker.num_gpus * each_s for (worker, _), each_s in zip(pairs, loaded_s, strict=True)),
            span_s=end_s,
            num_wakes=sum(clock.num_wakes for clock in self.clocks) - self._num_losses,
            num_losses=self._num_losses,
        )


def _unloaded_s(workers: Sequence[FleetWorker], arrivals: Sequence[Arrival]) -> NDArray[np.float64]:
    """TTFT of each arrival alone on the fastest engine of its model; infinite where it has none."""
    prompts = np.array([arrival.prompt_tokens for arrival in arrivals], dtype=np.float64)
    models = np.array([arrival.model for arrival in arrivals])
    unloaded = np.full(len(arrivals), np.inf)
    for model, options in {(worker.model, worker.options) for worker in workers}:
        mine = models == model
        unloaded[mine] = np.minimum(unloaded[mine], unloaded_ttft_s(prompts[mine], options))
    return unloaded
