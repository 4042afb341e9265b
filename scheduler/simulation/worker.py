"""A worker on virtual time: the simulated engine's batching core, and what a real worker would say of it.

Called by ``scheduler.simulation.driver``, which carries its words to the core. It must never know the core, a queue or
a message's fate. Its meter is a plain one: the joules of a step are split evenly over its rows, for the core is told
what an attempt took, not how that was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.core.attempts import BUSY_CAUSE
from scheduler.core.cluster import WorkerView
from scheduler.simulation.scenario import Arrival, WorkerSetup
from workers.engines.simulated_core import SimulatedCore
from workers.engines.simulated_plan import Plan, SimulatedSequence
from workers.step_curves import StepCurves
from workers.types import Outcome, Progress, UsageRecord, WorkerState

MAX_STEPS = 32
"""Equal steps that are taken at once while nothing happens."""

STALL_TIMEOUT_S = 4.0
"""The worker's own watchdog."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """The first bytes of an attempt are on their way to the client."""

    attempt_id: str


@dataclass(frozen=True, slots=True)
class End:
    """The bytes of an attempt are over."""

    attempt_id: str
    outcome: Outcome
    cause: str


class Took(NamedTuple):
    """What the steps of an attempt have taken so far."""

    energy_mj: float = 0.0
    gpu_us: float = 0.0


Word = Bytes | End | UsageRecord | tuple[Progress, ...]

NO_CURVE = StepCurves(time_s=(math.nan, -1.0, math.inf, 0.0), energy_joules=(0.0, 0.0, 0.0, 0.0), idle_watts=0.0)


@dataclass(slots=True, eq=False)
class _Running:
    arrival: Arrival
    sequences: list[SimulatedSequence]
    failure: tuple[Outcome, str] | None = None
    has_spoken: bool = False
    told: tuple[int, ...] = field(default=())


class SimulatedWorker:
    """One life of one worker; another life is another object. Words pile up until they are taken."""

    def __init__(self, setup: WorkerSetup, *, life: int, seed: int) -> None:
        self.setup = setup
        self.life = life
        self.engine = SimulatedCore(setup.options, seed=seed)
        self.state = WorkerState.READY
        self.is_busy = False
        """Refuses every call."""
        self.is_lying = False
        self.took: dict[str, Took] = {}
        """By attempt, until it is taken."""
        self.hangs_since_s: float | None = None
        self._running: dict[str, _Running] = {}
        self._words: list[Word] = []

    # -- what it is told

    def call(self, attempt_id: str, arrival: Arrival, *, max_output_tokens: int, priority: int) -> None:
        """Runs the request, or refuses it; a repeated call changes nothing."""
        if attempt_id in self._running:
            return
        refusal = BUSY_CAUSE if self.is_busy or len(self._running) >= self.setup.max_running else ""
        if self.state is not WorkerState.READY:
            refusal = f"worker_{self.state.value}"
        if refusal:
            self._close(attempt_id, _Running(arrival, []), (Outcome.FAILED, refusal))
            return
        sequences = [
            SimulatedSequence(
                sequence_id=f"{attempt_id}/{index}",
                payer=attempt_id,
                prompt_tokens=arrival.prompt_tokens,
                target_tokens=min(arrival.output_tokens, max_output_tokens),
                priority=priority,
                block_hashes=_block_hashes(arrival, self.setup.options.block_tokens),
            )
            for index in range(arrival.request.num_sequences)
        ]
        running = _Running(arrival, sequences)
        try:
            for sequence in sequences:
                self.engine.submit(sequence)
        except ValueError:  # longer than the engine's context: the first sequence says so, none runs
            self._close(attempt_id, _Running(arrival, []), (Outcome.REFUSED, ""))
            return
        self._running[attempt_id] = running

    def abort(self, attempt_id: str, reason: str) -> None:
        """Ends an attempt; one that is unknown or over is left alone."""
        if (running := self._running.get(attempt_id)) is not None:
            self._break_off(attempt_id, running, (Outcome.ABORTED, reason))

    def stall(self) -> None:
        """Its watchdog: what runs has failed."""
        self.state = WorkerState.SICK
        for attempt_id, running in list(self._running.items()):
            self._break_off(attempt_id, running, (Outcome.FAILED, "stalled"))

    def _break_off(self, attempt_id: str, running: _Running, failure: tuple[Outcome, str]) -> None:
        running.failure = running.failure or failure
        for sequence in running.sequences:
            self.engine.abort(sequence)
        if self.hangs_since_s is not None or all(sequence.is_closed for sequence in running.sequences):
            self._close(attempt_id, running, running.failure)

    # -- what it does

    def finish_steps(self) -> None:
        """Books the steps in flight: first tokens, ends."""
        done = self.engine.finish()
        self._meter(done.plan)
        for sequence in done.started_decoding:
            running = self._running.get(str(sequence.payer))
            if running is not None and running.arrival.is_streaming and not running.has_spoken:
                running.has_spoken = True
                self._words.append(Bytes(str(sequence.payer)))
        for sequence in done.closed:
            attempt_id = str(sequence.payer)
            running = self._running.get(attempt_id)
            if running is not None and all(each.is_closed for each in running.sequences):
                self._close(attempt_id, running, running.failure or (Outcome.COMPLETED, ""))

    def _meter(self, plan: Plan) -> None:
        payers = [payer for payer in plan.payers if payer is not None]
        for payer in payers:
            before = self.took.get(payer, Took())
            self.took[payer] = Took(
                before.energy_mj + 1e3 * plan.joules / len(payers),
                before.gpu_us + 1e6 * (plan.ended_s - plan.started_s) / len(payers),
            )

    def _close(self, attempt_id: str, running: _Running, ending: tuple[Outcome, str]) -> None:
        """Both endings."""
        outcome, cause = ending
        self._running.pop(attempt_id, None)
        self._words.append(End(attempt_id, outcome, cause))
        records = [sequence.usage() for sequence in running.sequences]
        self._words.append(
            UsageRecord(
                attempt_id=attempt_id,
                outcome=outcome,
                cause=cause,
                sequences=tuple(records),
                input_tokens=records[0].prompt_tokens if records else 0,
                cached_tokens=records[0].cached_tokens if records else 0,
                output_tokens=sum(record.generated_tokens for record in records),
            )
        )

    # -- what it says

    def take_words(self) -> list[Word]:
        """Everything since the last call, in order."""
        words, self._words = self._words, []
        return words

    def progress(self) -> tuple[Progress, ...]:
        """Tokens of attempts that moved since the last call."""
        moved = []
        for attempt_id, running in self._running.items():
            now = (
                running.arrival.prompt_tokens,
                max((sequence.cached_tokens for sequence in running.sequences), default=0),
                sum(sequence.computed_prompt_tokens for sequence in running.sequences),
                sum(self.engine.num_generated(sequence) for sequence in running.sequences),
            )
            if now != running.told and (now[2] or now[3]):
                running.told = now
                moved.append(Progress(attempt_id, *now))
        return tuple(moved)

    def attempt_ids(self) -> list[str]:
        """Everything that runs, in the order it came."""
        return list(self._running)

    def view(self) -> WorkerView:
        """What its status says; a liar's is well formed and wrong."""
        options, engine = self.setup.options, self.engine
        time_s = (options.time_t0_s, options.time_prefill_s, options.time_decode_s, options.time_context_s)
        energy = (
            options.energy_e0_joules, options.energy_prefill_joules, options.energy_decode_joules,
            options.energy_context_joules,
        )  # fmt: skip
        is_idle = not engine.num_running
        return WorkerView(
            worker_id=self.setup.worker_id,
            state=self.state,
            models=self.setup.models,
            zone=self.setup.zone,
            kv_tokens=options.kv_tokens,
            max_sequences=options.max_sequences,
            max_running=self.setup.max_running,
            num_running=1_000 * is_idle if self.is_lying else engine.num_running,
            num_waiting=0 if self.is_lying else engine.num_waiting,
            kv_used_tokens=10**9 * is_idle if self.is_lying else engine.kv_used_tokens,
            curves=NO_CURVE if self.is_lying else StepCurves(time_s=time_s, energy_joules=energy, idle_watts=0.0),
        )


def _block_hashes(arrival: Arrival, block_tokens: int) -> tuple[int, ...]:
    """The engine's blocks of a prompt, cut from the parts that the core knows of it."""
    parts = arrival.request.prefix_blocks
    if not parts:
        return ()
    ends = range(block_tokens, arrival.prompt_tokens + 1, block_tokens)
    return tuple(hash((parts[(end - 1) * len(parts) // arrival.prompt_tokens], end)) for end in ends)
