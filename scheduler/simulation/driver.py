"""The core's second driver: virtual time, simulated workers, messages that come late, twice or never.

Called by tests and, later, by planning. It must never decide anything that the core decides; every random choice comes
from the scenario's seed, so that a run is the same each time.

The driver stands where dispatcher, connection and settlement stand in production and follows their rules: bytes go to a
client only while the core says that their attempt answers; what a worker said before it was lost may arrive after it,
except its reports, which its connection fences off; what an attempt took is booked once, after its settlement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from scheduler.core.actions import Abort, Action, Dispatch, Finish, Reject, Settle, Tokens
from scheduler.core.cluster import WorkerView
from scheduler.core.request import Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.scenario import Arrival, ClockJump, Scenario, Stage
from scheduler.simulation.site import Site
from scheduler.simulation.trace import (
    Cancelled,
    ClockJumped,
    Configured,
    Counted,
    Decided,
    Ended,
    Event,
    FirstByte,
    Lost,
    Posted,
    Reported,
    Restarted,
    Stopped,
    Submitted,
    Ticked,
)
from scheduler.simulation.worker import Bytes, End, SimulatedWorker, Took, Word
from workers.types import Outcome, UsageRecord, WorkerState

TICK_S = 0.1
WINDOW_S = 1.0
"""From the end of an attempt to the booking of what it took."""
MAX_AFTER_S = 600.0
"""After the last arrival and fault everything has ended by then, or the run stops as it is."""


class Simulation:
    """One run of one scenario. ``core`` may be a wrong one: a test of the checker."""

    def __init__(self, scenario: Scenario, *, core: type[Scheduler] = Scheduler) -> None:
        self.scenario = scenario
        self.trace: list[Event] = []
        self._time = Agenda(start_unix_s=scenario.start_unix_s)
        self._core_type = core
        self._rules = scenario.rules
        self._arrivals = {arrival.request.request_id: arrival for arrival in scenario.arrivals}
        self._open: set[str] = set()
        self._sent_bytes: set[str] = set()
        self._counted: set[str] = set()
        self._ran_on: dict[str, SimulatedWorker | None] = {}
        """By attempt: the life that it was sent to."""
        self._unbooked: dict[str, SimulatedWorker | None] = {}
        """Settled attempts whose window is still open."""
        self._site = Site(scenario, self._time, self)
        self.core = self._begin()

    def run(self) -> list[Event]:
        """Everything that happened, to the end."""
        scenario, time = self.scenario, self._time
        self._site.open()
        for arrival in scenario.arrivals:
            time.at(arrival.request.arrival_s, lambda arrival=arrival: self._submit(arrival))  # type: ignore[misc]
        for reload in scenario.reloads:
            time.at(reload.at_s, lambda reload=reload: self._reload(reload.rules))  # type: ignore[misc]
        for jump in scenario.jumps:
            time.at(jump.at_s, lambda jump=jump: self._jump(jump))  # type: ignore[misc]
        for restart in scenario.restarts:
            time.at(restart.at_s, self._restart)
        last_s = max([time.last_s, *(fault.at_s + fault.for_s for fault in scenario.faults)])
        time.at(TICK_S, self._tick)
        while time.now_s < last_s + MAX_AFTER_S:
            is_idle = not (self.core.num_open or self.core.num_running or self._unbooked)
            if time.now_s > last_s and is_idle:
                break
            time.step()
        self._note_stop()
        return self.trace

    def _note_stop(self) -> None:
        core, credits = self.core, self.core.cluster.credit
        states = {
            (state.level, state.measure, state.window): state
            for asked in self._one_of_each_level()
            for state in core.holds.budgets.states(asked)
        }
        self._note(
            Stopped(
                at_s=self._time.told_s,
                num_open=core.num_open,
                num_running=core.num_running,
                credit_tokens={worker_id: tuple(credits(worker_id)) for worker_id in sorted(core.cluster.workers)},
                num_holds=core.holds.budgets.num_holds,
                held=core.holds.budgets.held_total(),
                budgets=tuple(states.values()),
                unix_s=self._time.unix_s,
            )
        )

    def _one_of_each_level(self) -> Iterable[Request]:
        """A request of now for each combination of levels that there was."""
        requests = {
            (request.tenant, request.project, request.key_id, request.task): request
            for request in (arrival.request for arrival in self.scenario.arrivals)
        }
        return [dataclasses.replace(request, arrival_unix_s=self._time.unix_s) for request in requests.values()]

    # -- the control plane and its clocks

    def _begin(self) -> Scheduler:
        """A control plane that knows nothing but its configuration."""
        models = sorted({model for setup in self.scenario.workers for model in setup.models})
        self._note_rules()
        return self._core_type(models=models, limits=self.scenario.limits, rules=self._rules)

    def _restart(self) -> None:
        """Clients are cut off; workers go on with what the new one must have aborted."""
        self._note(Restarted(at_s=self._time.told_s))
        self._open.clear()
        self.core = self._begin()
        self._site.fence()
        for worker in self._site.workers.values():
            for attempt_id in worker.attempt_ids():
                self._abort_orphan(worker, attempt_id)

    def _reload(self, rules: Rules) -> None:
        self._rules = rules
        self._note_rules()
        self._apply(self.core.reload(rules, self._time.told_s))

    def _note_rules(self) -> None:
        self._note(Configured(at_s=self._time.told_s, rules=self._rules, limits=self.scenario.limits))

    def _jump(self, jump: ClockJump) -> None:
        by_s = self._time.jump(monotonic_s=jump.monotonic_s, wall_s=jump.wall_s)
        if by_s:
            self._note(ClockJumped(at_s=self._time.told_s, by_s=by_s))

    def _note(self, event: Event) -> None:
        self.trace.append(event)

    def _tick(self) -> None:
        actions = self.core.tick(self._time.told_s)
        if actions:
            self._note(Ticked(at_s=self._time.told_s))
        self._apply(actions)
        self._time.after(TICK_S, self._tick)

    # -- clients

    def _submit(self, arrival: Arrival) -> None:
        time, planned = self._time, arrival.request
        deadline_s = planned.deadline_s
        request = dataclasses.replace(
            planned,
            arrival_s=time.monotonic_s,
            arrival_unix_s=time.unix_s,
            deadline_s=None if deadline_s is None else time.monotonic_s + deadline_s - planned.arrival_s,
        )
        self._open.add(request.request_id)
        self._note(Submitted(at_s=time.told_s, request=request))
        self._apply(self.core.submit(request, time.told_s))
        if arrival.cancel_after_s is not None:
            time.after(arrival.cancel_after_s, lambda: self._cancel(request.request_id))

    def _cancel(self, request_id: str) -> None:
        if request_id in self._open:
            self._note(Cancelled(at_s=self._time.told_s, request_id=request_id))
            self._apply(self.core.cancel(request_id, "client_gone", self._time.told_s))

    def _leaves_on(self, attempt_id: str, stage: Stage) -> bool:
        """Whether its client goes away just now."""
        return self._arrivals[_request_of(attempt_id)].cancel_on is stage

    def _reached(self, attempt_id: str, stage: Stage) -> None:
        """What is decided now is carried out first."""
        if self._leaves_on(attempt_id, stage):
            self._time.after(0.0, lambda: self._cancel(_request_of(attempt_id)))

    # -- what the core decides

    def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._note(Decided(at_s=self._time.told_s, action=action))
            if isinstance(action, Dispatch):
                self._ran_on[action.attempt_id] = self._site.workers.get(action.worker_id)
                self._site.send_call(action, self._arrivals[action.request_id])
                self._reached(action.attempt_id, Stage.SENT)
            elif isinstance(action, Abort):
                self._site.send_abort(action)
            elif isinstance(action, Settle):
                self._settle(action)
            elif isinstance(action, Reject | Finish):
                self._open.discard(action.request_id)

    # -- what attempts took

    def _settle(self, settle: Settle) -> None:
        """A window later its energy is booked; at once where no posting will come."""
        attempt_id = settle.attempt_id
        worker = self._ran_on.get(attempt_id)
        self._unbooked[attempt_id] = worker
        is_open = settle.is_exact and worker is not None and self._site.lives(worker)
        self._time.after(WINDOW_S if is_open else 0.0, lambda: self._book(attempt_id))

    def _book(self, attempt_id: str) -> None:
        if attempt_id not in self._unbooked:
            return
        worker = self._unbooked.pop(attempt_id)
        took = Took() if worker is None else worker.took.pop(attempt_id, Took())
        energy_mj, gpu_us = round(took.energy_mj), round(took.gpu_us)
        self._note(Posted(at_s=self._time.told_s, attempt_id=attempt_id, energy_mj=energy_mj, gpu_us=gpu_us))
        self.core.holds.book_energy(attempt_id, energy_mj=energy_mj, gpu_us=gpu_us)

    # -- what workers say

    def hear_report(self, view: WorkerView) -> None:
        self._note(
            Reported(
                at_s=self._time.told_s,
                worker_id=view.worker_id,
                is_ready=view.state is WorkerState.READY,
                models=view.models,
                max_running=view.max_running,
                max_sequences=view.max_sequences,
                zone=view.zone,
            )
        )
        self._apply(self.core.on_worker_report(view, self._time.told_s))

    def hear_loss(self, worker: SimulatedWorker) -> None:
        """The word of its death; what its meter had not said yet never comes."""
        worker_id = worker.setup.worker_id
        self._note(Lost(at_s=self._time.told_s, worker_id=worker_id))
        self._apply(self.core.on_worker_lost(worker_id, "worker_lost", self._time.told_s))
        for attempt_id in [name for name, ran_on in self._unbooked.items() if ran_on is worker]:
            self._book(attempt_id)

    def hear(self, worker: SimulatedWorker, word: Word) -> None:
        now_s = self._time.told_s
        if isinstance(word, Bytes):
            if not self.core.knows(word.attempt_id):
                self._abort_orphan(worker, word.attempt_id)
            self._show_byte(word.attempt_id)
        elif isinstance(word, End):
            if word.outcome in (Outcome.COMPLETED, Outcome.REFUSED):
                self._show_byte(word.attempt_id)
            self._note_end(word)
            self._apply(self.core.on_ended(word.attempt_id, word.outcome, word.cause, now_s))
            if self._leaves_on(word.attempt_id, Stage.ENDED):
                self._cancel(_request_of(word.attempt_id))
        elif isinstance(word, UsageRecord):
            self._note_end(word)
            self._apply(self.core.on_finished(word, now_s))
        else:
            for progress in word:
                if progress.attempt_id not in self._counted and self.core.knows(progress.attempt_id):
                    self._counted.add(progress.attempt_id)
                    self._note(
                        Counted(at_s=now_s, attempt_id=progress.attempt_id, prompt_tokens=progress.prompt_tokens)
                    )
            self.core.on_progress(word, now_s)

    def _note_end(self, word: End | UsageRecord) -> None:
        tokens = None
        if isinstance(word, UsageRecord):
            tokens = Tokens(
                input_tokens=word.input_tokens, cached_tokens=word.cached_tokens, output_tokens=word.output_tokens
            )
        self._note(
            Ended(
                at_s=self._time.told_s,
                attempt_id=word.attempt_id,
                outcome=word.outcome,
                cause=word.cause,
                has_usage=tokens is not None,
                tokens=tokens,
            )
        )

    def _show_byte(self, attempt_id: str) -> None:
        """Bytes of an attempt that answers leave for its client."""
        if attempt_id not in self._sent_bytes and self.core.answers(attempt_id):
            self._sent_bytes.add(attempt_id)
            self._note(FirstByte(at_s=self._time.told_s, attempt_id=attempt_id))
            self.core.on_first_byte(attempt_id, self._time.told_s)
            self._reached(attempt_id, Stage.SPEAKS)

    def _abort_orphan(self, worker: SimulatedWorker, attempt_id: str) -> None:
        """A worker speaks for an attempt that nobody here knows: it is told to end it."""
        self._site.send_abort(Abort(attempt_id=attempt_id, worker_id=worker.setup.worker_id, reason="orphaned"))


def _request_of(attempt_id: str) -> str:
    return attempt_id.rpartition("-")[0]


def simulate(scenario: Scenario, *, core: type[Scheduler] = Scheduler) -> list[Event]:
    """The trace of one run."""
    return Simulation(scenario, core=core).run()
