"""The core's second driver: virtual time, simulated workers, messages that come late, twice or never.

Called by tests and, later, by planning. It must never decide anything that the core decides; every random choice comes
from the scenario's seed, so that a run is the same each time.

A heap of (time, number, what) is the whole clock. The driver stands where dispatcher and connection stand in production
and follows their rules: bytes go to a client only while the core says that their attempt answers; what a worker said
before it was lost may arrive after it, except its reports, which its connection fences off.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable

from scheduler.core.actions import Abort, Action, Dispatch, Finish, Reject
from scheduler.core.cluster import WorkerView
from scheduler.core.scheduler import Scheduler
from scheduler.simulation.scenario import Arrival, Fault, FaultAt, Scenario, WorkerSetup
from scheduler.simulation.trace import Cancelled, Decided, Ended, Event, FirstByte, Lost, Reported, Stopped, Submitted
from scheduler.simulation.worker import MAX_STEPS, STALL_TIMEOUT_S, Bytes, End, SimulatedWorker, Word
from workers.types import Outcome, UsageRecord, WorkerState

TICK_S = 0.1
STATUS_PERIOD_S = 1.0
PROGRESS_PERIOD_S = 0.25
NOTICE_S = 0.3
"""From a worker's death to the word of it."""
MAX_AFTER_S = 600.0
"""After the last arrival and fault everything has ended by then, or the run stops as it is."""


class Simulation:
    """One run of one scenario. ``core`` may be a wrong one: a test of the checker."""

    def __init__(self, scenario: Scenario, *, core: type[Scheduler] = Scheduler) -> None:
        self.scenario = scenario
        models = sorted({model for setup in scenario.workers for model in setup.models})
        self.core = core(models=models, limits=scenario.limits)
        self.trace: list[Event] = []
        self._chance = random.Random(f"messages-{scenario.seed}")
        self._now_s = 0.0
        self._num_events = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._arrivals = {arrival.request.request_id: arrival for arrival in scenario.arrivals}
        self._open: set[str] = set()
        self._sent_bytes: set[str] = set()
        self._workers: dict[str, SimulatedWorker] = {}
        self._silent_until_s: dict[str, float] = {}
        self._num_lives = 0

    def run(self) -> list[Event]:
        """Everything that happened, to the end."""
        for setup in self.scenario.workers:
            self._start(setup)
        for arrival in self.scenario.arrivals:
            self._at(arrival.request.arrival_s, lambda arrival=arrival: self._submit(arrival))  # type: ignore[misc]
        for fault in self.scenario.faults:
            self._at(fault.at_s, lambda fault=fault: self._break(fault))  # type: ignore[misc]
        self._at(TICK_S, self._tick)
        last_s = max([arrival.request.arrival_s for arrival in self.scenario.arrivals], default=0.0)
        last_s = max([last_s, *(fault.at_s + fault.for_s for fault in self.scenario.faults)])
        while self._now_s < last_s + MAX_AFTER_S:
            if self._now_s > last_s and not self.core.num_open and not self.core.num_running:
                break
            self._now_s, _, what = heapq.heappop(self._events)
            what()
        workers = sorted(self.core.cluster.workers)
        self._note(
            Stopped(
                at_s=self._now_s,
                num_open=self.core.num_open,
                num_running=self.core.num_running,
                credit_tokens={worker_id: tuple(self.core.cluster.credit(worker_id)) for worker_id in workers},
            )
        )
        return self.trace

    # -- time

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (at_s, self._num_events, what))

    def _note(self, event: Event) -> None:
        self.trace.append(event)

    def _tick(self) -> None:
        self._apply(self.core.tick(self._now_s))
        self._at(self._now_s + TICK_S, self._tick)

    # -- clients

    def _submit(self, arrival: Arrival) -> None:
        request = arrival.request
        self._open.add(request.request_id)
        self._note(Submitted(at_s=self._now_s, request=request))
        self._apply(self.core.submit(request, self._now_s))
        if arrival.cancel_after_s is not None:
            self._at(self._now_s + arrival.cancel_after_s, lambda: self._cancel(request.request_id))

    def _cancel(self, request_id: str) -> None:
        if request_id in self._open:
            self._note(Cancelled(at_s=self._now_s, request_id=request_id))
            self._apply(self.core.cancel(request_id, "client_gone", self._now_s))

    # -- what the core decides

    def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._note(Decided(at_s=self._now_s, action=action))
            if isinstance(action, Dispatch | Abort):
                for delay_s in self._fates(action.worker_id, may_be_lost=True):
                    self._at(self._now_s + delay_s, lambda action=action: self._tell(action))  # type: ignore[misc]
            elif isinstance(action, Reject | Finish):
                self._open.discard(action.request_id)

    def _tell(self, action: Dispatch | Abort) -> None:
        """An order arrives at whatever lives under that id then."""
        worker = self._workers.get(action.worker_id)
        if worker is None:
            return
        self._interrupt(worker)
        if isinstance(action, Abort):
            worker.abort(action.attempt_id, action.reason)
        else:
            worker.call(
                action.attempt_id,
                self._arrivals[action.request_id],
                max_output_tokens=action.max_output_tokens,
                priority=action.priority,
            )
        self._deliver(worker)
        self._run_steps(worker)

    def _fates(self, worker_id: str, *, may_be_lost: bool = False) -> list[float]:
        """Delays of the copies of one message that arrive; none where it is lost."""
        messages, chance = self.scenario.messages, self._chance
        if may_be_lost and (
            chance.random() < messages.lost_ratio or self._now_s < self._silent_until_s.get(worker_id, 0.0)
        ):
            return []
        wait_s = max(self._silent_until_s.get(worker_id, 0.0) - self._now_s, 0.0)
        delays = []
        for _ in range(2 if chance.random() < messages.twice_ratio else 1):
            is_late = chance.random() < messages.late_ratio
            delays.append(wait_s + messages.delay_s + (chance.uniform(0.0, messages.late_s) if is_late else 0.0))
        return delays

    # -- what workers do

    def _start(self, setup: WorkerSetup) -> None:
        self._num_lives += 1
        worker = SimulatedWorker(setup, life=self._num_lives, seed=self.scenario.seed + self._num_lives)
        self._workers[setup.worker_id] = worker
        self._report(worker)
        self._at(self._now_s + PROGRESS_PERIOD_S, lambda: self._tell_progress(worker))

    def _lives(self, worker: SimulatedWorker) -> bool:
        return self._workers.get(worker.setup.worker_id) is worker

    def _interrupt(self, worker: SimulatedWorker) -> None:
        """Somebody comes or goes: equal steps that were taken together end with the one in flight."""
        if worker.engine.plan is not None:
            plan = worker.engine.cut(self._now_s)
            self._at(plan.ended_s, lambda: self._finish_steps(worker, plan.step, plan.num_steps))

    def _run_steps(self, worker: SimulatedWorker) -> None:
        if worker.engine.plan is None and worker.hangs_since_s is None:
            plan = worker.engine.begin(self._now_s, max_steps=MAX_STEPS)
            if plan is not None:
                self._at(plan.ended_s, lambda: self._finish_steps(worker, plan.step, plan.num_steps))

    def _finish_steps(self, worker: SimulatedWorker, step: int, num_steps: int) -> None:
        """The end of a plan, unless it was cut, has ended, or its worker hangs or is gone."""
        plan = worker.engine.plan
        is_due = plan is not None and (plan.step, plan.num_steps) == (step, num_steps)
        if is_due and worker.hangs_since_s is None and self._lives(worker):
            worker.finish_steps()
            self._deliver(worker)
            self._run_steps(worker)

    def _break(self, fault: FaultAt) -> None:
        worker = self._workers.get(fault.worker_id)
        until_s = self._now_s + fault.for_s
        if worker is None:
            return
        if fault.fault is Fault.DIES:
            del self._workers[fault.worker_id]
            self._at(self._now_s + NOTICE_S, lambda: self._lose(fault.worker_id))
            self._at(until_s + NOTICE_S, lambda: self._start(worker.setup))
        elif fault.fault is Fault.SILENT:
            self._silent_until_s[fault.worker_id] = until_s
        elif fault.fault is Fault.SLOWS:
            worker.engine.slow_ratio = 8.0
            self._at(until_s, lambda: setattr(worker.engine, "slow_ratio", 1.0))
        elif fault.fault is Fault.BUSY:
            worker.is_busy = True
            self._at(until_s, lambda: setattr(worker, "is_busy", False))
        elif worker.hangs_since_s is None:
            worker.hangs_since_s = self._now_s
            self._at(self._now_s + STALL_TIMEOUT_S, lambda: self._watch(worker))
            self._at(until_s, lambda: self._wake(worker))

    def _watch(self, worker: SimulatedWorker) -> None:
        if worker.hangs_since_s is not None and self._lives(worker):
            worker.stall()
            self._deliver(worker)
            self._report(worker, is_periodic=False)

    def _wake(self, worker: SimulatedWorker) -> None:
        worker.hangs_since_s = None
        worker.state = WorkerState.READY
        if not self._lives(worker):
            return
        if worker.engine.plan is not None:
            worker.finish_steps()
        self._deliver(worker)
        self._report(worker, is_periodic=False)
        self._run_steps(worker)

    def _lose(self, worker_id: str) -> None:
        self._note(Lost(at_s=self._now_s, worker_id=worker_id))
        self._apply(self.core.on_worker_lost(worker_id, "worker_lost", self._now_s))

    # -- what workers say

    def _report(self, worker: SimulatedWorker, *, is_periodic: bool = True) -> None:
        if not self._lives(worker):
            return
        view = worker.view()
        for delay_s in self._fates(worker.setup.worker_id):
            self._at(self._now_s + delay_s, lambda: self._hear_report(worker, view))
        if is_periodic:
            self._at(self._now_s + STATUS_PERIOD_S, lambda: self._report(worker))

    def _hear_report(self, worker: SimulatedWorker, view: WorkerView) -> None:
        if self._lives(worker):
            self._note(
                Reported(
                    at_s=self._now_s,
                    worker_id=view.worker_id,
                    is_ready=view.state is WorkerState.READY,
                    models=view.models,
                    max_running=view.max_running,
                )
            )
            self._apply(self.core.on_worker_report(view, self._now_s))

    def _tell_progress(self, worker: SimulatedWorker) -> None:
        if self._lives(worker):
            if items := worker.progress():
                self._send(worker, items)
            self._at(self._now_s + PROGRESS_PERIOD_S, lambda: self._tell_progress(worker))

    def _deliver(self, worker: SimulatedWorker) -> None:
        for word in worker.take_words():
            self._send(worker, word)

    def _send(self, worker: SimulatedWorker, word: Word) -> None:
        for delay_s in self._fates(worker.setup.worker_id):
            self._at(self._now_s + delay_s, lambda: self._hear(word))

    def _hear(self, word: Word) -> None:
        if isinstance(word, Bytes):
            self._show_byte(word.attempt_id)
        elif isinstance(word, End):
            if word.outcome in (Outcome.COMPLETED, Outcome.REFUSED):
                self._show_byte(word.attempt_id)
            self._note_end(word.attempt_id, word.outcome, word.cause, has_usage=False)
            self._apply(self.core.on_ended(word.attempt_id, word.outcome, word.cause, self._now_s))
        elif isinstance(word, UsageRecord):
            self._note_end(word.attempt_id, word.outcome, word.cause, has_usage=True)
            self._apply(self.core.on_finished(word, self._now_s))
        else:
            self.core.on_progress(word, self._now_s)

    def _note_end(self, attempt_id: str, outcome: Outcome, cause: str, *, has_usage: bool) -> None:
        self._note(Ended(at_s=self._now_s, attempt_id=attempt_id, outcome=outcome, cause=cause, has_usage=has_usage))

    def _show_byte(self, attempt_id: str) -> None:
        """Bytes of an attempt that answers leave for its client."""
        if attempt_id not in self._sent_bytes and self.core.answers(attempt_id):
            self._sent_bytes.add(attempt_id)
            self._note(FirstByte(at_s=self._now_s, attempt_id=attempt_id))
            self.core.on_first_byte(attempt_id, self._now_s)


def simulate(scenario: Scenario, *, core: type[Scheduler] = Scheduler) -> list[Event]:
    """The trace of one run."""
    return Simulation(scenario, core=core).run()
