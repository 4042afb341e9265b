"""The production core as the router of a simulated fleet: it is told what its dispatcher would be told.

Called by ``scheduler.simulation.replay`` and benchmarks. It must never decide anything itself. Reports come as rarely
as the core tolerates, progress at one period; engines say their published curves and watts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler.core.actions import Abort, Action, Dispatch, Finish, Park, Reject, Wake
from scheduler.core.cluster import WorkerView
from scheduler.core.price_clock import EnergyPrices
from scheduler.core.request import DEFAULT_SLO, Request, Slo
from scheduler.core.scheduler import Scheduler
from scheduler.simulation.closed_form import Job, Stage
from scheduler.simulation.fleet import DEFAULT_DRAW, Fleet
from scheduler.simulation.power import Draw, EngineState
from scheduler.simulation.traces import Arrival
from workers.engines.simulated_options import SimulatedOptions
from workers.step_curves import PowerStates, StepCurves
from workers.types import Outcome, Progress, UsageRecord, WorkerState

PROGRESS_PERIOD_S = 0.25
STATUS_PERIOD_S = 5.0
"""Half of what the core calls silent."""

STATES = {
    EngineState.LOADED: WorkerState.READY,
    EngineState.STARTING: WorkerState.STARTING,
    EngineState.PARKED: WorkerState.PARKED,
}
"""As workers say it."""

PUBLISHED = "published constants"
"""Source of a simulated engine's curve and watts."""


class CoreRouter:
    """The production core, told what its dispatcher would be told."""

    def __init__(
        self,
        core: Scheduler,
        *,
        model: str | None = None,
        slo: Slo = DEFAULT_SLO,
        max_output_tokens: int = 4096,
        progress_period_s: float = PROGRESS_PERIOD_S,
        prices: EnergyPrices | None = None,
    ) -> None:
        """``model``: of all engines and requests; None = each says its own. ``max_output_tokens`` is what clients ask
        for; where an answer is longer, they all ask for the longest. ``prices``: what energy costs, over the run's
        time; None = nothing."""
        self.core = core
        self._prices = prices
        self._model = model
        self._slo = slo
        self._max_output_tokens = max_output_tokens
        self._progress_period_s = progress_period_s
        self._progress_ticks = self._status_ticks = 1
        self._num_ticks = 0
        self._requests: list[Request] = []
        self._numbers: dict[str, int] = {}
        self._indices: dict[str, int] = {}
        self._workers: dict[str, int] = {}
        """Of attempts in flight, by attempt id: which engine."""

    def open(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._progress_ticks = max(round(self._progress_period_s / fleet.tick_s), 1)
        self._status_ticks = max(round(STATUS_PERIOD_S / fleet.tick_s), 1)
        self._max_output_tokens = max([self._max_output_tokens, *[each.output_tokens for each in fleet.arrivals]])
        self._indices = {worker.worker_id: index for index, worker in enumerate(fleet.workers)}
        self._requests = [self._request(number, arrival) for number, arrival in enumerate(fleet.arrivals)]
        self._numbers = {request.request_id: number for number, request in enumerate(self._requests)}
        self._report(0.0)
        if self._prices is not None:
            self._apply(self.core.set_energy_prices(self._prices, 0.0), 0.0)

    def _request(self, number: int, arrival: Arrival) -> Request:
        return Request(
            request_id=f"req-{number:08}",
            tenant=arrival.tenant,
            model=self._model or arrival.model,
            band=arrival.band,
            prompt_tokens_bound=arrival.prompt_tokens_bound,
            max_output_tokens=self._max_output_tokens,
            arrival_s=arrival.arrival_s,
            deadline_s=None if arrival.window_s is None else arrival.arrival_s + arrival.window_s,
            is_deferrable=arrival.window_s is not None,
            body_bytes=arrival.prompt_tokens_bound,
            slo=self._slo,
            prefix_blocks=arrival.blocks,
        )

    def arrive(self, number: int, now_s: float) -> None:
        self._apply(self.core.submit(self._requests[number], now_s), now_s)

    def first_token(self, job: Job, now_s: float) -> None:
        self.core.on_progress((self._progress(job, now_s),), now_s)
        self.core.on_first_byte(job.attempt_id, now_s)

    def ended(self, job: Job, now_s: float) -> None:
        outcome = Outcome.ABORTED if job.is_aborted else Outcome.COMPLETED
        if not job.is_aborted and self.core.answers(job.attempt_id):
            self._fleet.answered(job, now_s)
        usage = UsageRecord(
            attempt_id=job.attempt_id,
            outcome=outcome,
            input_tokens=job.prompt_tokens,
            cached_tokens=job.cached_tokens,
            output_tokens=job.generated_tokens,
        )
        self._apply(self.core.on_finished(usage, now_s), now_s)

    def woken(self, worker: int, now_s: float) -> None:
        self._report_one(worker, now_s)

    def lost(self, worker: int, jobs: Sequence[Job], now_s: float) -> None:
        self._apply(self.core.on_worker_lost(self._fleet.workers[worker].worker_id, "worker_lost", now_s), now_s)
        self._report_one(worker, now_s)

    def tick(self, now_s: float) -> None:
        self._num_ticks += 1
        if self._num_ticks % self._status_ticks == 0:
            self._report(now_s)
        if self._num_ticks % self._progress_ticks == 0:
            for running in self._fleet.running:
                if running:
                    self.core.on_progress([self._progress(job, now_s) for job in running.values()], now_s)
        self._apply(self.core.tick(now_s), now_s)

    def _progress(self, job: Job, now_s: float) -> Progress:
        if job.stage is Stage.DECODING:
            return Progress(
                job.attempt_id,
                job.prompt_tokens,
                job.cached_tokens,
                job.prompt_tokens - job.cached_tokens,
                self._fleet.engines[job.worker].output_tokens(job, now_s),
            )
        is_prefilling = job.stage is Stage.PREFILLING
        known_tokens = job.computed_tokens if is_prefilling else job.prompt_tokens
        if job.stage is Stage.WAITING:
            known_tokens = job.cached_tokens
        return Progress(
            job.attempt_id,
            job.prompt_tokens,
            job.cached_tokens,
            max(min(known_tokens, job.prompt_tokens) - job.cached_tokens, 0),
            self._fleet.engines[job.worker].output_tokens(job, now_s),
        )

    def _report(self, now_s: float) -> None:
        for index in range(len(self._fleet.workers)):
            self._report_one(index, now_s)

    def _report_one(self, index: int, now_s: float) -> None:
        worker, engine = self._fleet.workers[index], self._fleet.engines[index]
        options, draw = worker.options, worker.draw
        view = WorkerView(
            worker_id=worker.worker_id,
            state=STATES[self._fleet.clocks[index].state],
            models=(self._model or worker.model,),
            zone=worker.zone,
            num_gpus=worker.num_gpus,
            kv_tokens=options.kv_tokens,
            max_sequences=options.max_sequences,
            max_running=options.max_sequences,
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            kv_used_tokens=engine.kv_used_tokens,
            curves=curves_of(options, draw),
            power_states=PowerStates(
                parked_watts=draw.parked_watts, start_s=draw.start_s, start_watts=draw.start_watts, source=PUBLISHED
            ),
        )
        self._apply(self.core.on_worker_report(view, now_s), now_s)

    def _apply(self, actions: Iterable[Action], now_s: float) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self._start(action, now_s)
            elif isinstance(action, Abort):
                self._fleet.abort(self._indices[action.worker_id], action.attempt_id, now_s)
            elif isinstance(action, Reject) or (isinstance(action, Finish) and action.outcome is not Outcome.COMPLETED):
                self._fleet.refuse(self._numbers[action.request_id])
            elif isinstance(action, Park):
                self._fleet.park(self._indices[action.worker_id], now_s)
                self._report_one(self._indices[action.worker_id], now_s)
            elif isinstance(action, Wake):
                self._fleet.wake(self._indices[action.worker_id], now_s)
                self._report_one(self._indices[action.worker_id], now_s)

    def _start(self, order: Dispatch, now_s: float) -> None:
        is_taken = self._fleet.start(
            self._numbers[order.request_id],
            self._indices[order.worker_id],
            now_s,
            attempt_id=order.attempt_id,
            max_tokens=order.max_output_tokens,
            priority=order.priority,
        )
        if not is_taken:  # longer than the engine's context: it answers with a status
            usage = UsageRecord(attempt_id=order.attempt_id, outcome=Outcome.REFUSED)
            self._apply(self.core.on_finished(usage, now_s), now_s)


def curves_of(options: SimulatedOptions, draw: Draw = DEFAULT_DRAW) -> StepCurves:
    """The curve an engine of these options follows, as its worker would have fitted it."""
    return StepCurves(
        time_s=(options.time_t0_s, options.time_prefill_s, options.time_decode_s, options.time_context_s),
        energy_joules=(
            options.energy_e0_joules,
            options.energy_prefill_joules,
            options.energy_decode_joules,
            options.energy_context_joules,
        ),
        idle_watts=draw.idle_watts,
        source=PUBLISHED,
    )
