"""Where the workers are: their lives, their steps, their faults, and how messages to and from them travel.

Called by ``scheduler.simulation.driver``, which hears what arrives. It must never know the core or what a message means
to it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Protocol

from scheduler.core.actions import Abort, Dispatch
from scheduler.core.cluster import WorkerView
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.scenario import Arrival, Fault, FaultAt, Scenario, WorkerSetup
from scheduler.simulation.worker import MAX_STEPS, STALL_TIMEOUT_S, SimulatedWorker, Word
from workers.types import WorkerState

STATUS_PERIOD_S = 1.0
PROGRESS_PERIOD_S = 0.25
NOTICE_S = 0.3
"""From a worker's death to the word of it."""


class Ears(Protocol):
    """Whoever hears what arrives from the site."""

    def hear(self, worker: SimulatedWorker, word: Word) -> None: ...

    def hear_report(self, view: WorkerView) -> None: ...

    def hear_loss(self, worker: SimulatedWorker) -> None: ...


class Site:
    """All workers of a scenario. What is sent here arrives late, twice or never, as the scenario says."""

    def __init__(self, scenario: Scenario, time: Agenda, ears: Ears) -> None:
        self.workers: dict[str, SimulatedWorker] = {}
        """Those that live."""
        self._scenario = scenario
        self._time = time
        self._ears = ears
        self._chance = random.Random(f"messages-{scenario.seed}")
        self._silent_until_s: dict[str, float] = {}
        self._num_lives = 0
        self._epoch = 0

    def open(self) -> None:
        """The workers start, their faults will come."""
        for setup in self._scenario.workers:
            self._start(setup)
        for fault in self._scenario.faults:
            self._time.at(fault.at_s, lambda fault=fault: self._break(fault))  # type: ignore[misc]

    def fence(self) -> None:
        """Another control plane connects: reports on their way to the one before are nobody's."""
        self._epoch += 1
        for worker in self.workers.values():
            self._report(worker, is_periodic=False)

    def lives(self, worker: SimulatedWorker) -> bool:
        """Whether it is still there; a later life of the same name is another worker."""
        return self.workers.get(worker.setup.worker_id) is worker

    # -- what it is told

    def send_call(self, dispatch: Dispatch, arrival: Arrival) -> None:
        """An order to run a request: arrives at whatever lives under that id then."""

        def arrive(worker: SimulatedWorker) -> None:
            worker.call(
                dispatch.attempt_id, arrival, max_output_tokens=dispatch.max_output_tokens, priority=dispatch.priority
            )

        self._send_order(dispatch.worker_id, arrive)

    def send_abort(self, abort: Abort) -> None:
        """An order to end an attempt."""
        self._send_order(abort.worker_id, lambda worker: worker.abort(abort.attempt_id, abort.reason))

    def _send_order(self, worker_id: str, what: Callable[[SimulatedWorker], None]) -> None:
        for delay_s in self._fates(worker_id, may_be_lost=True):
            self._time.after(delay_s, lambda: self._arrive(worker_id, what))

    def _arrive(self, worker_id: str, what: Callable[[SimulatedWorker], None]) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None:
            self._interrupt(worker)
            what(worker)
            self._deliver(worker)
            self._run_steps(worker)

    def _fates(self, worker_id: str, *, may_be_lost: bool = False) -> list[float]:
        """Delays of the copies of one message that arrive; none where it is lost."""
        messages, chance = self._scenario.messages, self._chance
        silent_s = max(self._silent_until_s.get(worker_id, 0.0) - self._time.now_s, 0.0)
        if may_be_lost and (chance.random() < messages.lost_ratio or silent_s):
            return []
        delays = []
        for _ in range(2 if chance.random() < messages.twice_ratio else 1):
            is_late = chance.random() < messages.late_ratio
            delays.append(silent_s + messages.delay_s + (chance.uniform(0.0, messages.late_s) if is_late else 0.0))
        return delays

    # -- what workers do

    def _start(self, setup: WorkerSetup) -> None:
        self._num_lives += 1
        worker = SimulatedWorker(setup, life=self._num_lives, seed=self._scenario.seed + self._num_lives)
        self.workers[setup.worker_id] = worker
        self._report(worker)
        self._time.after(PROGRESS_PERIOD_S, lambda: self._tell_progress(worker))

    def _interrupt(self, worker: SimulatedWorker) -> None:
        """Somebody comes or goes: equal steps that were taken together end with the one in flight."""
        if worker.engine.plan is not None:
            plan = worker.engine.cut(self._time.now_s)
            self._time.at(plan.ended_s, lambda: self._finish_steps(worker, plan.step, plan.num_steps))

    def _run_steps(self, worker: SimulatedWorker) -> None:
        if worker.engine.plan is None and worker.hangs_since_s is None:
            plan = worker.engine.begin(self._time.now_s, max_steps=MAX_STEPS)
            if plan is not None:
                self._time.at(plan.ended_s, lambda: self._finish_steps(worker, plan.step, plan.num_steps))

    def _finish_steps(self, worker: SimulatedWorker, step: int, num_steps: int) -> None:
        """The end of a plan, unless it was cut, has ended, or its worker hangs or is gone."""
        plan = worker.engine.plan
        is_due = plan is not None and (plan.step, plan.num_steps) == (step, num_steps)
        if is_due and worker.hangs_since_s is None and self.lives(worker):
            worker.finish_steps()
            self._deliver(worker)
            self._run_steps(worker)

    def _break(self, fault: FaultAt) -> None:
        worker = self.workers.get(fault.worker_id)
        if worker is None:
            return
        if fault.fault in (Fault.DIES, Fault.MOVES):
            self._kill(worker, fault)
        elif fault.fault is Fault.SILENT:
            self._silent_until_s[fault.worker_id] = self._time.now_s + fault.for_s
        elif fault.fault is Fault.SLOWS:
            worker.engine.slow_ratio = 8.0
            self._time.after(fault.for_s, lambda: setattr(worker.engine, "slow_ratio", 1.0))
        elif fault.fault in (Fault.BUSY, Fault.LIES):
            switch = "is_busy" if fault.fault is Fault.BUSY else "is_lying"
            setattr(worker, switch, True)
            self._time.after(fault.for_s, lambda: setattr(worker, switch, False))
        elif worker.hangs_since_s is None:
            worker.hangs_since_s = self._time.now_s
            self._time.after(STALL_TIMEOUT_S, lambda: self._watch(worker))
            self._time.after(fault.for_s, lambda: self._wake(worker))

    def _kill(self, worker: SimulatedWorker, fault: FaultAt) -> None:
        """It is back empty, some time after the word of its death."""
        setup = worker.setup
        if fault.fault is Fault.MOVES:
            setup = dataclasses.replace(setup, zone=fault.zone)
        del self.workers[fault.worker_id]
        self._time.after(NOTICE_S, lambda: self._ears.hear_loss(worker))
        self._time.after(NOTICE_S + fault.for_s, lambda: self._start(setup))

    def _watch(self, worker: SimulatedWorker) -> None:
        if worker.hangs_since_s is not None and self.lives(worker):
            worker.stall()
            self._deliver(worker)
            self._report(worker, is_periodic=False)

    def _wake(self, worker: SimulatedWorker) -> None:
        worker.hangs_since_s = None
        worker.state = WorkerState.READY
        if not self.lives(worker):
            return
        if worker.engine.plan is not None:
            worker.finish_steps()
        self._deliver(worker)
        self._report(worker, is_periodic=False)
        self._run_steps(worker)

    # -- what workers say

    def _report(self, worker: SimulatedWorker, *, is_periodic: bool = True) -> None:
        if not self.lives(worker):
            return
        view, epoch = worker.view(), self._epoch
        for delay_s in self._fates(worker.setup.worker_id):
            self._time.after(delay_s, lambda: self._hear_report(worker, view, epoch))
        if is_periodic:
            self._time.after(STATUS_PERIOD_S, lambda: self._report(worker))

    def _tell_progress(self, worker: SimulatedWorker) -> None:
        if self.lives(worker):
            if items := worker.progress():
                self._send(worker, items)
            self._time.after(PROGRESS_PERIOD_S, lambda: self._tell_progress(worker))

    def _deliver(self, worker: SimulatedWorker) -> None:
        for word in worker.take_words():
            self._send(worker, word)

    def _send(self, worker: SimulatedWorker, word: Word) -> None:
        for delay_s in self._fates(worker.setup.worker_id):
            self._time.after(delay_s, lambda: self._ears.hear(worker, word))

    def _hear_report(self, worker: SimulatedWorker, view: WorkerView, epoch: int) -> None:
        if self.lives(worker) and epoch == self._epoch:
            self._ears.hear_report(view)
