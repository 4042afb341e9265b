"""A simulated engine that jumps from change to change of its batch: same rules and times as the step by step engine.

Called by ``scheduler.simulation.fleet`` with virtual time. It must never know the core, a router or a tenant.

It schedules as ``workers.engines.simulated_core`` does (decodes first, then prefill in chunks within the step's budget,
then newcomers by (priority, arrival) while they fit; preemption and recomputation where KV runs out), and a test holds
the two against each other. What differs is the cost: all decoding sequences share one step counter, and a heap holds
the step at which each ends. While the batch does not change, k steps of n sequences with C tokens of context take

    k·(t0 + t2·n) + t3·(k·C + n·k·(k−1)/2)

seconds, and as many joules with the e's. So a run of decode steps costs O(1), a change of the batch O(log n).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from workers.engines.simulated_cache import PrefixCache
from workers.engines.simulated_options import SimulatedOptions

NEVER_S = math.inf


class Stage(IntEnum):
    WAITING = 0
    PREFILLING = 1
    DECODING = 2
    CLOSED = 3


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One sequence; the engine owns everything below the blank line."""

    number: int
    attempt_id: str
    prompt_tokens: int
    target_tokens: int
    """Output tokens after which it ends by itself; at least 1."""
    priority: int = 0
    blocks: tuple[int, ...] = ()
    """One per full block of the prompt, each covering everything before it."""
    worker: int = 0

    stage: Stage = Stage.WAITING
    arrival: int = 0
    computed_tokens: int = 0
    """Positions with KV; while it decodes, as of the step at which it joined."""
    high_water: int = 0
    generated_tokens: int = 0
    """While it decodes, as of the step at which it joined."""
    joined_step: int = 0
    end_step: int = 0
    cached_tokens: int = 0
    num_shared_blocks: int = 0
    num_preemptions: int = 0
    is_aborted: bool = False

    @property
    def known_tokens(self) -> int:
        """Tokens whose KV is needed before the next output."""
        return self.prompt_tokens + self.generated_tokens


@dataclass(slots=True)
class _Plan:
    """Steps in flight: one with prompts in it, or ``num_steps`` of the same decoding sequences."""

    started_s: float
    num_steps: int
    num_decoding: int
    context_tokens: int
    """Read in the first step."""
    chunks: list[tuple[Job, int, int]]
    """(whose, positions, of which are outputs known before a preemption)."""
    prefill_tokens: int
    num_outputs: int
    """Positions of which one step makes an output."""


class Done(NamedTuple):
    """What changed at the end of a plan."""

    started: list[Job]
    """Have their whole prompt: the first token, or the next one after a preemption."""
    ended: list[Job]


class ClosedFormEngine:
    """One engine. ``submit`` and ``abort`` at any time; ``finish`` at ``ends_s``, never later."""

    def __init__(self, options: SimulatedOptions) -> None:
        assert options.fixed_step_s is None, "a fixed step has no curve to sum"
        self.options = options
        self.joules = 0.0
        """Of all finished steps, by the affine curve: no hidden energy, no noise, no idle."""
        self.busy_s = 0.0
        self.num_steps = 0
        self.ends_s = NEVER_S
        """When the plan in flight is over."""
        self._cache = PrefixCache(capacity_tokens=options.kv_tokens, block_tokens=options.block_tokens)
        self._waiting: list[tuple[int, int, Job]] = []
        self._num_waiting = 0
        self._prefilling: list[Job] = []
        self._ends: list[tuple[int, int, Job]] = []
        """(step at which it ends, when it joined, who); those that left otherwise are passed over."""
        self._num_decoding = 0
        self._step = 0
        """Decode steps so far."""
        self._context_base = 0
        """Σ over decoding sequences of (positions when it joined − step when it joined)."""
        self._plan: _Plan | None = None
        self._blocked: tuple[Job, int] | None = None
        self._num_arrivals = 0
        self._num_joined = 0
        self._has_aborts = False

    # -- what is in it

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + self._num_decoding

    @property
    def num_waiting(self) -> int:
        return self._num_waiting

    @property
    def kv_used_tokens(self) -> int:
        """KV that running sequences hold, as of the last change of the batch."""
        return self._cache.used_tokens

    def output_tokens(self, job: Job, now_s: float) -> int:
        """Output tokens of a job at this moment, steps in flight included as far as they are over."""
        if job.stage is not Stage.DECODING:
            return job.generated_tokens
        steps = self._step - job.joined_step
        if (plan := self._plan) is not None and plan.num_steps > 1:
            steps += min(max(self._steps_begun(plan, now_s) - 1, 0), plan.num_steps)
        return job.generated_tokens + steps

    # -- in and out

    def submit(self, job: Job, now_s: float) -> bool:
        """A newcomer, considered from the next step on. False where it could never fit."""
        total_tokens = job.prompt_tokens + job.target_tokens
        if total_tokens > min(self.options.kv_tokens, self.options.max_model_len):
            return False
        self._num_arrivals += 1
        job.arrival = self._num_arrivals
        self._enqueue(job)
        if self._plan is None:
            self._begin(now_s)
        elif self._first_waiting() is job:
            self._cut(now_s)  # nobody before it waits in vain
        return True

    def abort(self, job: Job, now_s: float) -> bool:
        """Ends a job; True if it is closed at once, False if the step in flight still computes it."""
        if job.stage is Stage.CLOSED:
            return True
        job.is_aborted = True
        plan = self._plan
        if plan is not None and (job.stage is Stage.DECODING or any(chunk[0] is job for chunk in plan.chunks)):
            self._has_aborts = True
            self._cut(now_s)
            return False
        self._leave(job)
        job.stage = Stage.CLOSED
        if plan is None:
            self._begin(now_s)
        else:
            self._cut(now_s)  # whoever waited behind it may fit now
        return True

    def finish(self) -> Done:
        """Books the plan that ends at ``ends_s`` and begins the next."""
        plan, ended_s = self._plan, self.ends_s
        assert plan is not None, "there is no step in flight"
        self._plan = None
        self.num_steps += plan.num_steps
        self._pay(plan, ended_s)
        started, ended = list[Job](), list[Job]()
        if plan.num_decoding:
            self._cache.take(plan.num_decoding * plan.num_steps)
            self._step += plan.num_steps
            ends = self._ends
            while ends and ends[0][0] <= self._step:
                end_step, _, job = heapq.heappop(ends)
                if job.stage is Stage.DECODING and job.end_step == end_step:
                    job.end_step = -1  # an older entry of the same step names it twice
                    ended.append(job)
        for job, num_tokens, _ in plan.chunks:
            if self._book(job, num_tokens):
                started.append(job)
        if started:
            self._prefilling = [job for job in self._prefilling if job.stage is Stage.PREFILLING]
            ended += [job for job in started if job.generated_tokens >= job.target_tokens]
        if self._has_aborts:
            self._has_aborts = False
            computed = (*self._decoding(), *self._prefilling)
            ended += [job for job in computed if job.is_aborted and job not in ended]
        for job in ended:
            self._leave(job)  # after the step's tokens were taken: what is cached gives way to them
            job.stage = Stage.CLOSED
        self._begin(ended_s)
        return Done(started, ended)

    # -- inside: what runs

    def _begin(self, now_s: float) -> None:
        """Plans what runs from ``now_s`` on."""
        plan = self._schedule(now_s)
        self._plan = plan
        self.ends_s = now_s + self._duration_s(plan, plan.num_steps) if plan is not None else NEVER_S

    def _schedule(self, now_s: float) -> _Plan | None:
        has_preempted, num_decoding = self._make_room(), self._num_decoding
        context_tokens = self._context_base + num_decoding * self._step
        chunks: list[tuple[Job, int, int]] = []
        if self._prefilling or (self._num_waiting and not has_preempted):
            budget = self.options.max_batched_tokens - num_decoding
            room = self._cache.free_tokens - num_decoding
            for job in self._prefilling:
                num_tokens = min(job.known_tokens - job.computed_tokens, budget, room)
                if num_tokens > 0:
                    chunks.append(_chunk(job, num_tokens))
                    budget -= num_tokens
                    room -= num_tokens
            if not has_preempted:
                self._admit(chunks, budget, room)
        if chunks:
            known_outputs = sum(chunk[2] for chunk in chunks)
            prefill_tokens = sum(chunk[1] for chunk in chunks) - known_outputs
            context_tokens += sum(job.computed_tokens for job, _, _ in chunks)
            return _Plan(now_s, 1, num_decoding, context_tokens, chunks, prefill_tokens, num_decoding + known_outputs)
        if not num_decoding:
            return None
        ends = self._ends
        while ends[0][2].stage is not Stage.DECODING or ends[0][2].end_step != ends[0][0]:
            heapq.heappop(ends)
        num_steps = max(min(ends[0][0] - self._step, self._cache.free_tokens // num_decoding), 1)
        if has_preempted:
            num_steps = 1  # the next step looks at newcomers again
        return _Plan(now_s, num_steps, num_decoding, context_tokens, chunks, 0, num_decoding)

    def _admit(self, chunks: list[tuple[Job, int, int]], budget: int, room: int) -> None:
        """Newcomers by (priority, arrival) while there is budget, a place, and room for their whole prompt."""
        cache, block_tokens = self._cache, self.options.block_tokens
        while budget > 0 and self.num_running < self.options.max_sequences:
            job = self._first_waiting()
            if job is None:
                return
            if self._blocked is not None and self._blocked[0] is job and room <= self._blocked[1]:
                return
            hit_tokens = claimed_tokens = num_blocks = 0
            if job.blocks and self.options.prefix_caching:
                num_blocks = cache.match(job.blocks[: (job.known_tokens - 1) // block_tokens])
                hit_tokens = num_blocks * block_tokens
                claimed_tokens = cache.idle_tokens(job.blocks[:num_blocks])
            if job.known_tokens - hit_tokens + claimed_tokens > room:
                self._blocked = (job, room)
                return
            self._blocked = None
            heapq.heappop(self._waiting)
            self._num_waiting -= 1
            if num_blocks:
                cache.acquire(job.blocks[:num_blocks])
            room -= claimed_tokens
            job.num_shared_blocks = num_blocks
            job.computed_tokens = hit_tokens
            job.cached_tokens += max(hit_tokens - job.high_water, 0)
            job.stage = Stage.PREFILLING
            self._prefilling.append(job)
            num_tokens = min(job.known_tokens - hit_tokens, budget)
            chunks.append(_chunk(job, num_tokens))
            budget -= num_tokens
            room -= num_tokens

    def _cut(self, now_s: float) -> None:
        """Shortens the plan to the steps that began before ``now_s``."""
        plan = self._plan
        if plan is not None and plan.num_steps > 1 and now_s < self.ends_s:
            plan.num_steps = min(max(self._steps_begun(plan, now_s), 1), plan.num_steps)
            self.ends_s = plan.started_s + self._duration_s(plan, plan.num_steps)

    # -- inside: what a plan takes

    def _duration_s(self, plan: _Plan, num_steps: int) -> float:
        of = self.options
        step_s = of.time_t0_s + of.time_decode_s * plan.num_outputs + of.time_prefill_s * plan.prefill_tokens
        return num_steps * step_s + of.time_context_s * _context_sum(plan, num_steps)

    def _steps_begun(self, plan: _Plan, now_s: float) -> int:
        """How many steps of a run of decodes began before ``now_s``: the inverse of its duration, rounded up."""
        options, num_decoding = self.options, plan.num_decoding
        elapsed_s = now_s - plan.started_s
        growth_s = options.time_context_s * num_decoding / 2
        first_s = options.time_t0_s + options.time_decode_s * num_decoding
        first_s += options.time_context_s * plan.context_tokens - growth_s
        if growth_s > 0.0:
            steps = (math.sqrt(first_s * first_s + 4.0 * growth_s * max(elapsed_s, 0.0)) - first_s) / (2.0 * growth_s)
        else:
            steps = elapsed_s / first_s
        return math.ceil(steps - 1e-9)

    def _pay(self, plan: _Plan, ended_s: float) -> None:
        """Joules by the affine curve."""
        self.busy_s += ended_s - plan.started_s
        options, num_steps = self.options, plan.num_steps
        self.joules += num_steps * (options.energy_e0_joules + options.energy_decode_joules * plan.num_outputs)
        self.joules += options.energy_prefill_joules * plan.prefill_tokens
        self.joules += options.energy_context_joules * _context_sum(plan, num_steps)

    # -- inside: a job's way

    def _book(self, job: Job, num_tokens: int) -> bool:
        """A chunk was computed; a job that has all its KV puts out a token and decodes from now on: True."""
        self._cache.take(num_tokens)
        job.computed_tokens += num_tokens
        job.high_water = max(job.high_water, job.computed_tokens)
        if job.computed_tokens < job.known_tokens:
            return False
        if job.blocks and self.options.prefix_caching:
            self._cache.share(job.blocks, first=job.num_shared_blocks)
            job.num_shared_blocks = len(job.blocks)
        job.generated_tokens += 1
        job.stage = Stage.DECODING
        job.joined_step = self._step
        job.end_step = self._step + job.target_tokens - job.generated_tokens
        self._num_decoding += 1
        self._context_base += job.computed_tokens - self._step
        if job.generated_tokens < job.target_tokens:
            self._num_joined += 1
            heapq.heappush(self._ends, (job.end_step, self._num_joined, job))
        return True

    def _leave(self, job: Job) -> None:
        """Takes a job out of wherever it is, brings its counts up to date and frees its KV."""
        if job.stage is Stage.WAITING:
            self._num_waiting -= 1
            return
        if job.stage is Stage.DECODING:
            self._num_decoding -= 1
            self._context_base -= job.computed_tokens - job.joined_step
            steps = self._step - job.joined_step
            job.generated_tokens += steps
            job.computed_tokens += steps
            job.joined_step = self._step
        else:
            self._prefilling = [each for each in self._prefilling if each is not job]
        self._cache.give(job.computed_tokens - job.num_shared_blocks * self.options.block_tokens)
        if job.num_shared_blocks:
            self._cache.release(job.blocks[: job.num_shared_blocks])
            job.num_shared_blocks = 0

    def _make_room(self) -> bool:
        """Preempts the worst until every decoding job has room for one more token; True if one had to go."""
        has_preempted = False
        while self._cache.free_tokens < self._num_decoding:
            job = max((*self._decoding(), *self._prefilling), key=lambda job: (job.priority, job.arrival))
            self._leave(job)
            job.high_water = max(job.high_water, job.computed_tokens)
            job.computed_tokens = 0
            job.end_step = -1
            job.num_preemptions += 1
            self._enqueue(job)
            has_preempted = True
        return has_preempted

    def _decoding(self) -> list[Job]:
        """In the order in which they joined; a preemption may have left an older entry."""
        entries = sorted((joined, job) for end_step, joined, job in self._ends if end_step == job.end_step)
        return list(dict.fromkeys(job for _, job in entries if job.stage is Stage.DECODING))

    def _first_waiting(self) -> Job | None:
        while self._waiting and self._waiting[0][2].stage is not Stage.WAITING:
            heapq.heappop(self._waiting)
        return self._waiting[0][2] if self._waiting else None

    def _enqueue(self, job: Job) -> None:
        job.stage = Stage.WAITING
        heapq.heappush(self._waiting, (job.priority, job.arrival, job))
        self._num_waiting += 1


def _chunk(job: Job, num_tokens: int) -> tuple[Job, int, int]:
    """Positions from where the job stands on; those beyond its prompt that were never computed are outputs."""
    end = job.computed_tokens + num_tokens
    return job, num_tokens, max(end - max(job.computed_tokens, job.high_water, job.prompt_tokens), 0)


def _context_sum(plan: _Plan, num_steps: int) -> float:
    """Σ over the steps of the context that each reads."""
    return num_steps * plan.context_tokens + plan.num_decoding * num_steps * (num_steps - 1) / 2
