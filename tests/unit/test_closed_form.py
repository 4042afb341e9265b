"""The engine that jumps yields what the engine that steps yields: same times, tokens, hits, preemptions and joules."""

import heapq
import math
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.simulation.closed_form import NEVER_S, ClosedFormEngine, Job, Stage
from tests.core_words import thorough
from workers.engines.simulated_core import SimulatedCore
from workers.engines.simulated_options import SimulatedOptions
from workers.engines.simulated_plan import SequenceState, SimulatedSequence

AFFINE = {
    "energy_spread_ratio": 0.0, "energy_noise_ratio": 0.0, "energy_exponent": 1.0, "energy_attention_joules": 0.0,
}  # fmt: skip
PUBLISHED = SimulatedOptions(**AFFINE)
"""The published constants, without what the closed form leaves out."""

TIGHT = SimulatedOptions(
    **AFFINE, time_context_s=2e-7, kv_tokens=1_200, max_sequences=6, max_batched_tokens=128, block_tokens=16
)
"""So little KV, so few places and so small chunks that everything gets into the way of everything."""

ROOMY = SimulatedOptions(**AFFINE, time_context_s=1e-8, max_sequences=64)


@dataclass(frozen=True)
class Ask:
    at_s: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 1
    blocks: tuple[int, ...] = ()
    abort_after_s: float | None = None


@dataclass(frozen=True)
class Told:
    """What became of one request."""

    first_token_s: float
    ended_s: float
    output_tokens: int
    cached_tokens: int
    num_preemptions: int


@dataclass(frozen=True)
class Run:
    told: list[Told]
    num_steps: int
    busy_s: float
    joules: float


def closed_form(options: SimulatedOptions, asks: list[Ask]) -> Run:
    """By jumps."""
    engine = ClosedFormEngine(options)
    jobs = [
        Job(
            number=number, attempt_id=str(number), prompt_tokens=ask.prompt_tokens, target_tokens=ask.output_tokens,
            priority=ask.priority, blocks=ask.blocks,
        )
        for number, ask in enumerate(asks)
    ]  # fmt: skip
    events = orders(asks)
    first_s, ended_s = [math.nan] * len(asks), [math.nan] * len(asks)
    while events or engine.ends_s < NEVER_S:
        if events and events[0][0] <= engine.ends_s:
            at_s, number, is_abort = heapq.heappop(events)
            if not is_abort:
                assert engine.submit(jobs[number], at_s)
            elif jobs[number].stage is not Stage.CLOSED and engine.abort(jobs[number], at_s):
                ended_s[number] = at_s
            continue
        now_s = engine.ends_s
        done = engine.finish()
        for job in done.started:
            if math.isnan(first_s[job.number]):
                first_s[job.number] = now_s
        for job in done.ended:
            ended_s[job.number] = now_s
    assert (engine.num_running, engine.num_waiting, engine.kv_used_tokens) == (0, 0, 0)
    return Run(
        [
            Told(first_s[job.number], ended_s[job.number], job.generated_tokens, job.cached_tokens, job.num_preemptions)
            for job in jobs
        ],
        engine.num_steps,
        engine.busy_s,
        engine.joules,
    )


def step_by_step(options: SimulatedOptions, asks: list[Ask]) -> Run:
    """By single steps, with the engine that workers simulate."""
    core = SimulatedCore(options)
    sequences = [
        SimulatedSequence(
            sequence_id=str(number), payer=None, prompt_tokens=ask.prompt_tokens, target_tokens=ask.output_tokens,
            priority=ask.priority, block_hashes=ask.blocks,
        )
        for number, ask in enumerate(asks)
    ]  # fmt: skip
    events = orders(asks)
    first_s, ended_s = [math.nan] * len(asks), [math.nan] * len(asks)
    busy_s = joules = 0.0
    while events or core.plan is not None:
        plan = core.plan
        if plan is None or (events and events[0][0] <= plan.ended_s):
            at_s, number, is_abort = heapq.heappop(events)
            if not is_abort:
                core.submit(sequences[number])
            elif sequences[number].state is not SequenceState.CLOSED and core.abort(sequences[number]):
                ended_s[number] = at_s
            if plan is None:
                core.begin(at_s)
            continue
        busy_s += plan.ended_s - plan.started_s
        joules += plan.joules
        done = core.finish()
        for sequence in done.started_decoding:
            number = int(sequence.sequence_id)
            if math.isnan(first_s[number]):
                first_s[number] = plan.ended_s
        for sequence in done.closed:
            ended_s[int(sequence.sequence_id)] = plan.ended_s
        core.begin(plan.ended_s)
    return Run(
        [
            Told(first_s[number], ended_s[number], each.num_generated, each.cached_tokens, each.num_preemptions)
            for number, each in enumerate(sequences)
        ],
        core.num_steps,
        busy_s,
        joules,
    )


def orders(asks: list[Ask]) -> list[tuple[float, int, bool]]:
    """(when, whose, whether it is an abort), as a heap."""
    found = [(ask.at_s, number, False) for number, ask in enumerate(asks)]
    found += [
        (ask.at_s + ask.abort_after_s, number, True) for number, ask in enumerate(asks) if ask.abort_after_s is not None
    ]
    heapq.heapify(found)
    return found


def assert_equal(options: SimulatedOptions, asks: list[Ask]) -> Run:
    """Both ways agree to the token and, in times and joules, far closer than 1 %."""
    jumped, stepped = closed_form(options, asks), step_by_step(options, asks)
    assert stepped.num_steps == jumped.num_steps
    assert jumped.busy_s == pytest.approx(stepped.busy_s, rel=1e-9)
    assert jumped.joules == pytest.approx(stepped.joules, rel=1e-9)
    for one, other in zip(jumped.told, stepped.told, strict=True):
        assert other.output_tokens == one.output_tokens
        assert other.cached_tokens == one.cached_tokens
        assert other.num_preemptions == one.num_preemptions
        assert one.first_token_s == pytest.approx(other.first_token_s, rel=1e-9, nan_ok=True)
        assert one.ended_s == pytest.approx(other.ended_s, rel=1e-9, nan_ok=True)
    return jumped


def blocks_of(group: int, branch: int, prompt_tokens: int, block_tokens: int = 16) -> tuple[int, ...]:
    """Full blocks of a prompt: its first half is its group's, the rest its branch's."""
    num_blocks = prompt_tokens // block_tokens
    return tuple(group * 1_000 + index + (100 * branch if index >= 3 else 0) for index in range(num_blocks))


@st.composite
def asks(draw: st.DrawFn) -> list[Ask]:
    """Requests that fit the tight engine, in order of arrival, no two at the same moment."""
    found, at_s = [], 0.0
    for _ in range(draw(st.integers(1, 25))):
        at_s += draw(st.floats(1e-4, 0.4))
        prompt_tokens = draw(st.integers(1, 500))
        group, branch = draw(st.integers(0, 2)), draw(st.integers(0, 3))
        found.append(
            Ask(
                at_s=at_s,
                prompt_tokens=prompt_tokens,
                output_tokens=draw(st.integers(1, 300)),
                priority=draw(st.integers(0, 2)),
                blocks=blocks_of(group, branch, prompt_tokens) if draw(st.booleans()) else (),
                abort_after_s=draw(st.none() | st.floats(1e-3, 2.0)),
            )
        )
    return found


@thorough
@given(asks())
def test_jumps_equal_steps_where_everything_is_tight(drawn: list[Ask]) -> None:
    """Chunks, priorities, preemption, recomputation, shared prefixes, eviction and aborts, at random."""
    assert_equal(TIGHT, drawn)


@thorough
@given(asks())
def test_jumps_equal_steps_where_there_is_room(drawn: list[Ask]) -> None:
    """The same requests on an engine that takes them all at once."""
    assert_equal(ROOMY, drawn)


def test_the_tight_engine_is_tight() -> None:
    """The property above is about something: this many requests preempt, share and are aborted."""
    chance = random.Random(4)
    drawn = [
        Ask(
            at_s=0.05 * number + chance.random() / 100, prompt_tokens=200, output_tokens=chance.randint(100, 300),
            blocks=blocks_of(number % 2, 0, 200), abort_after_s=0.3 if number % 7 == 6 else None,
        )
        for number in range(40)
    ]  # fmt: skip
    told = assert_equal(TIGHT, drawn).told
    assert sum(each.num_preemptions for each in told) > 5
    assert sum(each.cached_tokens for each in told) > 1_000
    assert sum(math.isnan(each.first_token_s) for each in told) > 0


def test_a_newcomer_is_not_hidden_by_one_that_left_before_it() -> None:
    """Who was aborted while it waited first in line does not keep who comes after it from the next step."""
    drawn = [
        Ask(at_s=0.0, prompt_tokens=900, output_tokens=200),
        Ask(at_s=0.5, prompt_tokens=400, output_tokens=10, abort_after_s=0.1),
        Ask(at_s=0.7, prompt_tokens=10, output_tokens=10),
    ]
    told = assert_equal(TIGHT, drawn).told
    assert math.isnan(told[1].first_token_s)
    assert told[2].first_token_s < 0.75


def test_an_abort_after_a_preemption_ends_a_request_once() -> None:
    """A preempted request has two entries among those that end; aborted, it frees its KV once."""
    drawn = [
        Ask(at_s=0.0, prompt_tokens=500, output_tokens=200, priority=0),
        Ask(at_s=0.2, prompt_tokens=500, output_tokens=290, priority=2, abort_after_s=2.0),
    ]
    told = assert_equal(TIGHT, drawn).told
    assert told[1].num_preemptions > 0
    assert told[1].output_tokens < 290


def test_a_busy_published_engine_equals_its_steps() -> None:
    """Two minutes of chat on the published curve, hundreds at once, with two outputs of one token."""
    chance = random.Random(7)
    drawn = [
        Ask(
            at_s=number * 0.06 + chance.random() * 0.05,
            prompt_tokens=max(int(chance.expovariate(1 / 1_000)), 1),
            output_tokens=1 if number in (3, 50) else max(int(chance.expovariate(1 / 200)), 1),
        )
        for number in range(2_000)
    ]
    run = assert_equal(PUBLISHED, drawn)
    assert run.num_steps > 4_000


def test_a_request_that_never_fits_is_refused() -> None:
    """By the engine, before it is in it."""
    engine = ClosedFormEngine(TIGHT)
    assert not engine.submit(Job(number=0, attempt_id="a", prompt_tokens=1_000, target_tokens=201), 0.0)
    assert (engine.num_waiting, engine.ends_s) == (0, NEVER_S)


def test_tokens_so_far_count_the_steps_that_are_over() -> None:
    """In the middle of a jump the outputs are those of the steps that ended."""
    engine = ClosedFormEngine(PUBLISHED)
    job = Job(number=0, attempt_id="a", prompt_tokens=100, target_tokens=1_000)
    engine.submit(job, 0.0)
    assert engine.output_tokens(job, 0.0) == 0
    started_s = engine.ends_s
    engine.finish()
    step_s = PUBLISHED.time_t0_s + PUBLISHED.time_decode_s
    assert engine.output_tokens(job, started_s + 9.5 * step_s) == 10
    assert engine.ends_s == pytest.approx(started_s + 999 * step_s)


def test_aborting_twice_or_late_changes_nothing() -> None:
    """A job that is over is over."""
    engine = ClosedFormEngine(PUBLISHED)
    job = Job(number=0, attempt_id="a", prompt_tokens=100, target_tokens=10)
    engine.submit(job, 0.0)
    engine.finish()
    assert not engine.abort(job, engine.ends_s - 0.06)
    assert engine.finish().ended == [job]
    assert engine.abort(job, 1.0)
    assert (job.is_aborted, engine.ends_s, engine.num_running) == (True, NEVER_S, 0)
    assert job.generated_tokens < 10
