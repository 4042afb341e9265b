"""Continuous batching without a GPU: which sequences run in a step, how long it takes, what it burns.

Called by ``workers.engines.simulated`` on the real clock and by the simulation on virtual time. Pure: time comes in as
an argument, randomness from a seed. It must never know HTTP, text, asyncio or a meter.

It schedules as vLLM V1 does: running sequences first, one token for each that decodes, then prefill in chunks within
the step's token budget, then newcomers by (priority, arrival). When KV room runs out the worst running sequence is
preempted, loses its KV and computes it again. Full blocks of prompts stay cached until their room is needed.

``begin`` plans, ``finish`` books; between them the step is in flight, and what is aborted meanwhile still pays for it.
A plan may hold many equal decode steps at once (``max_steps``): nothing can change until one ends or room runs out, so
virtual time jumps there; ``cut`` shortens such a plan when somebody arrives. Decoding sequences share one step counter,
so that a step costs no work per sequence.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.engines.simulated_cache import PrefixCache
from workers.engines.simulated_energy import TrueEnergy
from workers.engines.simulated_options import SimulatedOptions
from workers.engines.simulated_plan import Chunk, Finished, Plan, SequenceState, SimulatedSequence


@dataclass(slots=True)
class _Batch:
    """The decoding sequences, and how many steps they have taken together since they were last written back."""

    members: list[SimulatedSequence] = field(default_factory=list)
    num_steps: int = 0
    payers: tuple[str | None, ...] = ()
    context_tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sum_context: int = 0
    min_remaining: int = 0
    is_stale: bool = False

    def write_back(self) -> None:
        """Gives every member the steps taken together; needed before membership changes."""
        steps = self.num_steps
        if steps:
            for sequence in self.members:
                sequence.num_generated += steps
                sequence.num_computed += steps
                sequence.scheduled_tokens += steps
            self.num_steps = 0
        self.is_stale = True

    def refresh(self) -> None:
        """Rebuilds the shared columns after a change of membership."""
        if self.is_stale:
            members = self.members
            self.payers = tuple([sequence.payer for sequence in members])
            self.context_tokens = np.array([sequence.num_computed for sequence in members], dtype=np.int64)
            self.sum_context = int(self.context_tokens.sum())
            self.min_remaining = min((s.target_tokens - s.num_generated for s in members), default=0)
            self.is_stale = False


class SimulatedCore:
    """One engine's scheduler and device. Not thread-safe; ``begin`` and ``finish`` alternate."""

    def __init__(self, options: SimulatedOptions, *, seed: int = 0) -> None:
        self.options = options
        self.energy = TrueEnergy.draw(options, seed=seed)
        self.slow_ratio = 1.0
        """Multiplies every step's time (a throttled device)."""
        self.num_steps = 0
        self._noise = random.Random(f"noise-{seed}")
        self._cache = PrefixCache(capacity_tokens=options.kv_tokens, block_tokens=options.block_tokens)
        self._waiting: list[tuple[int, int, SimulatedSequence]] = []
        self._num_waiting = 0
        self._prefilling: list[SimulatedSequence] = []
        self._batch = _Batch()
        self._plan: Plan | None = None
        self._blocked: tuple[SimulatedSequence, int] | None = None
        self._num_arrivals = 0
        self._num_aborted_in_flight = 0

    # -- what is in it

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._batch.members)

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def kv_used_tokens(self) -> int:
        """KV that running sequences hold; what is only cached can be dropped at any time."""
        return self._cache.used_tokens

    @property
    def plan(self) -> Plan | None:
        """The steps in flight."""
        return self._plan

    def num_generated(self, sequence: SimulatedSequence) -> int:
        """Output tokens up to the last finished step."""
        is_decoding = sequence.state is SequenceState.DECODING
        return sequence.num_generated + (self._batch.num_steps if is_decoding else 0)

    # -- in and out

    def submit(self, sequence: SimulatedSequence) -> None:
        """A newcomer; it can run from the next ``begin`` on.

        Raises: ValueError where it could never fit: the caller checks lengths before.
        """
        if sequence.target_tokens < 0 or sequence.prompt_tokens < 1:
            raise ValueError("a sequence has at least one prompt token, and outputs or none")
        total_tokens = sequence.prompt_tokens + sequence.target_tokens
        if total_tokens > min(self.options.kv_tokens, self.options.max_model_len):
            raise ValueError(f"{total_tokens} tokens never fit this engine")
        self._num_arrivals += 1
        sequence.arrival = self._num_arrivals
        self._enqueue(sequence)

    def abort(self, sequence: SimulatedSequence) -> bool:
        """Ends a sequence; True if it is closed at once, False if the step in flight still computes it."""
        if sequence.state is SequenceState.CLOSED:
            return True
        sequence.is_aborted = True
        plan = self._plan
        if plan is not None and (sequence in plan.decoding or any(c.sequence is sequence for c in plan.chunks)):
            self._num_aborted_in_flight += 1
            return False
        self._drop([sequence])
        return True

    # -- one step, or many equal ones

    def begin(self, now_s: float, *, max_steps: int = 1) -> Plan | None:
        """Plans what runs from ``now_s`` on, at most ``max_steps`` equal steps; None when there is nothing to run."""
        assert self._plan is None, "the step in flight was not finished"
        chunks = self._schedule()
        batch = self._batch
        batch.refresh()
        if not chunks and not batch.members:
            return None
        num_decoding = len(batch.members)
        num_steps = 1
        if max_steps > 1 and not chunks:
            room_steps = self._cache.free_tokens // num_decoding
            num_steps = max(min(max_steps, batch.min_remaining - batch.num_steps, room_steps), 1)
        duration_s, joules = self._cost(chunks, num_steps)
        payers = batch.payers
        if chunks:
            payers = (*(chunk.sequence.payer for chunk in chunks), *payers)
        context = batch.context_tokens
        self._plan = Plan(
            step=self.num_steps,
            started_s=now_s,
            ended_s=now_s + duration_s,
            num_steps=num_steps,
            joules=joules,
            chunks=chunks,
            decoding=batch.members,
            payers=payers,
            context_tokens=context + batch.num_steps if batch.num_steps else context,
        )
        return self._plan

    def cut(self, now_s: float) -> Plan:
        """Shortens the plan to the steps that began before ``now_s``: somebody arrived, or left."""
        plan = self._plan
        assert plan is not None, "there is no step in flight"
        if plan.num_steps > 1 and now_s < plan.ended_s:
            step_s = (plan.ended_s - plan.started_s) / plan.num_steps
            num_steps = min(max(math.ceil((now_s - plan.started_s) / step_s), 1), plan.num_steps)
            ratio = num_steps / plan.num_steps
            plan.ended_s = plan.started_s + num_steps * step_s
            plan.joules *= ratio
            plan.num_steps = num_steps
        return plan

    def finish(self) -> Finished:
        """Books the plan: tokens computed, outputs produced, sequences ended."""
        plan = self._plan
        assert plan is not None, "there is no step in flight"
        self._plan = None
        batch = self._batch
        self.num_steps += plan.num_steps
        closed: list[SimulatedSequence] = []
        if plan.decoding:
            self._cache.take(len(plan.decoding) * plan.num_steps)
            batch.num_steps += plan.num_steps
            if batch.num_steps >= batch.min_remaining:
                batch.write_back()
                closed += [s for s in plan.decoding if s.num_generated >= s.target_tokens]
        started = [chunk.sequence for chunk in plan.chunks if self._book(chunk)]
        closed += [s for s in started if s.num_generated >= s.target_tokens]
        if self._num_aborted_in_flight:
            self._num_aborted_in_flight = 0
            in_plan = (*plan.decoding, *(chunk.sequence for chunk in plan.chunks))
            closed += [s for s in in_plan if s.is_aborted and s not in closed]
        if started:
            batch.write_back()
            batch.members = [*batch.members, *started]
            self._prefilling = [s for s in self._prefilling if s.state is SequenceState.PREFILLING]
        if closed:
            self._drop(closed)
        return Finished(plan=plan, started_decoding=started, closed=closed)

    def _book(self, chunk: Chunk) -> bool:
        """A chunk was computed; True if its sequence has all its KV and put out a token."""
        sequence = chunk.sequence
        self._cache.take(chunk.num_tokens)
        sequence.num_computed += chunk.num_tokens
        sequence.scheduled_tokens += chunk.num_tokens
        sequence.recomputed_tokens += chunk.num_recomputed
        sequence.high_water = max(sequence.high_water, sequence.num_computed)
        if sequence.num_computed < sequence.num_known:
            # What was computed of an unfinished prompt; once it is whole, the prompt itself says it.
            sequence.computed_prompt_tokens += chunk.num_tokens - chunk.num_recomputed - chunk.num_decode
            return False
        sequence.computed_prompt_tokens = sequence.prompt_tokens - sequence.cached_tokens
        if self.options.prefix_caching:
            self._cache.share(sequence.block_hashes, first=sequence.num_shared_blocks)
            sequence.num_shared_blocks = len(sequence.block_hashes)
        if sequence.target_tokens:
            sequence.num_generated += 1
        sequence.state = SequenceState.DECODING
        return True

    # -- who runs

    def _schedule(self) -> list[Chunk]:
        """Decodes keep their place, then prefill within budget and room; returns the step's chunks."""
        has_preempted = self._make_room()
        num_decoding = len(self._batch.members)
        budget = self.options.max_batched_tokens - num_decoding
        room = self._cache.free_tokens - num_decoding
        chunks: list[Chunk] = []
        # At most one prompt is half computed: it takes the whole budget, or the whole room, before a newcomer may.
        for sequence in self._prefilling:
            num_tokens = min(sequence.num_known - sequence.num_computed, budget, room)
            if num_tokens > 0:
                chunks.append(_chunk(sequence, num_tokens))
                budget -= num_tokens
                room -= num_tokens
        if not has_preempted:
            self._admit(chunks, budget, room)
        return chunks

    def _admit(self, chunks: list[Chunk], budget: int, room: int) -> None:
        """Newcomers by (priority, arrival) while there is budget, a place, and room for their whole prompt."""
        cache = self._cache
        while self._waiting and budget > 0 and self.num_running < self.options.max_sequences:
            sequence = self._waiting[0][2]
            if sequence.state is not SequenceState.WAITING:
                heapq.heappop(self._waiting)
                continue
            if self._blocked is not None and self._blocked[0] is sequence and room <= self._blocked[1]:
                return  # nothing was freed since it did not fit
            hashes = sequence.block_hashes if self.options.prefix_caching else ()
            max_blocks = (sequence.num_known - 1) // self.options.block_tokens
            num_blocks = cache.match(hashes[:max_blocks])
            hit_tokens = num_blocks * self.options.block_tokens
            claimed_tokens = cache.idle_tokens(hashes[:num_blocks])
            if sequence.num_known - hit_tokens + claimed_tokens > room:
                self._blocked = (sequence, room)
                return
            self._blocked = None
            heapq.heappop(self._waiting)
            self._num_waiting -= 1
            cache.acquire(hashes[:num_blocks])
            room -= claimed_tokens
            sequence.num_shared_blocks = num_blocks
            sequence.num_computed = hit_tokens
            # Positions that somebody else computed since: they are neither scheduled here nor repeated.
            sequence.cached_tokens += max(hit_tokens - sequence.high_water, 0)
            sequence.state = SequenceState.PREFILLING
            self._prefilling = [*self._prefilling, sequence]
            num_tokens = min(sequence.num_known - hit_tokens, budget)
            chunks.append(_chunk(sequence, num_tokens))
            budget -= num_tokens
            room -= num_tokens

    def _make_room(self) -> bool:
        """Preempts the worst until every decoding sequence has room for one more token; True if one had to go."""
        has_preempted = False
        while self._cache.free_tokens < len(self._batch.members):
            self._preempt(max((*self._batch.members, *self._prefilling), key=_rank))
            has_preempted = True
        return has_preempted

    def _preempt(self, sequence: SimulatedSequence) -> None:
        """It loses its KV and its place, and computes again what it had."""
        self._leave([sequence])
        sequence.high_water = max(sequence.high_water, sequence.num_computed)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        self._enqueue(sequence)

    def _enqueue(self, sequence: SimulatedSequence) -> None:
        sequence.state = SequenceState.WAITING
        heapq.heappush(self._waiting, (sequence.priority, sequence.arrival, sequence))
        self._num_waiting += 1

    def _drop(self, sequences: list[SimulatedSequence]) -> None:
        """They are over: their KV is free, their cached blocks may be evicted."""
        self._leave(sequences)
        for sequence in sequences:
            sequence.state = SequenceState.CLOSED

    def _leave(self, sequences: list[SimulatedSequence]) -> None:
        """Takes sequences out of wherever they are and frees their KV."""
        gone = set(map(id, sequences))
        if any(s.state is SequenceState.DECODING for s in sequences):
            self._batch.write_back()
            self._batch.members = [s for s in self._batch.members if id(s) not in gone]
        if any(s.state is SequenceState.PREFILLING for s in sequences):
            self._prefilling = [s for s in self._prefilling if id(s) not in gone]
        for sequence in sequences:
            if sequence.state is SequenceState.WAITING:
                self._num_waiting -= 1
                continue
            shared_tokens = sequence.num_shared_blocks * self.options.block_tokens
            self._cache.give(sequence.num_computed - shared_tokens)
            self._cache.release(sequence.block_hashes[: sequence.num_shared_blocks])
            sequence.num_shared_blocks = 0

    # -- what it costs

    def _cost(self, chunks: list[Chunk], num_steps: int) -> tuple[float, float]:
        """(seconds, joules) of the planned steps; of several at once, with their mean context."""
        options, batch = self.options, self._batch
        num_decoding = len(batch.members)
        context = batch.sum_context + num_decoding * (batch.num_steps + (num_steps - 1) / 2)
        prefill, decode, pairs = 0, num_decoding, 0.0
        for chunk in chunks:
            num_prefill = chunk.num_tokens - chunk.num_decode
            prefill += num_prefill
            decode += chunk.num_decode
            context += chunk.start
            pairs += num_prefill * (chunk.start + num_prefill / 2)
        step_s = options.fixed_step_s
        if step_s is None:
            step_s = options.time_t0_s + options.time_decode_s * decode + options.time_prefill_s * prefill
            step_s += options.time_context_s * context
        joules = self.energy.sums_joules(
            prefill_tokens=prefill, decode_tokens=decode, context_tokens=context, pairs=pairs
        )
        noise_ratio = options.energy_noise_ratio
        if noise_ratio:
            # The mean of k steps' noise is √k times smaller.
            joules *= max(1 + self._noise.gauss(0.0, noise_ratio) / math.sqrt(num_steps), 0.1)
        return step_s * num_steps * self.slow_ratio, joules * num_steps


def _rank(sequence: SimulatedSequence) -> tuple[int, int]:
    """Lower runs first and is preempted last."""
    return sequence.priority, sequence.arrival


def _chunk(sequence: SimulatedSequence, num_tokens: int) -> Chunk:
    start = sequence.num_computed
    end = start + num_tokens
    return Chunk(
        sequence=sequence,
        start=start,
        num_tokens=num_tokens,
        num_recomputed=max(min(end, sequence.high_water) - start, 0),
        num_decode=max(end - max(start, sequence.high_water, sequence.prompt_tokens), 0),
    )
