"""Simulated batching: what runs in a step, what it costs, and that every token is counted once."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engines.simulated_cache import PrefixCache
from workers.engines.simulated_core import SimulatedCore
from workers.engines.simulated_energy import TrueEnergy
from workers.engines.simulated_options import SimulatedOptions, parse_options
from workers.engines.simulated_plan import Finished, SequenceState, SimulatedSequence
from workers.errors import EngineStartError
from workers.steps import StepRecord

PUBLISHED = SimulatedOptions(
    energy_spread_ratio=0.0, energy_noise_ratio=0.0, energy_exponent=1.0, energy_context_joules=0.0,
    energy_attention_joules=0.0,
)  # fmt: skip
"""The published constants and nothing hidden."""


def options(**changes: object) -> SimulatedOptions:
    return parse_options({"fixed_step_s": 0.01, "energy_noise_ratio": 0.0, **changes})


def sequence(name: str = "a", *, prompt: int = 10, target: int = 5, **values: object) -> SimulatedSequence:
    return SimulatedSequence(
        sequence_id=name, payer=name, prompt_tokens=prompt, target_tokens=target, **values  # type: ignore[arg-type]
    )  # fmt: skip


def submitted(core: SimulatedCore, *sequences: SimulatedSequence) -> None:
    for each in sequences:
        core.submit(each)


def run(core: SimulatedCore, *, max_steps: int = 1, until_s: float = 1e9) -> tuple[list[StepRecord], list[Finished]]:
    """Steps until there is nothing to run."""
    now_s, records, finished = 0.0, [], []
    while now_s < until_s and (plan := core.begin(now_s, max_steps=max_steps)) is not None:
        now_s = plan.ended_s
        done = core.finish()
        records += done.records()
        finished.append(done)
    return records, finished


def scheduled(records: list[StepRecord]) -> int:
    return int(sum((r.prefill_tokens + r.decode_tokens + r.recomputed_tokens).sum() for r in records))


# -- one sequence


def test_one_sequence_prefills_then_decodes() -> None:
    """The first output comes out of the prefill; each later one costs a decode step."""
    core, one = SimulatedCore(options()), sequence(prompt=10, target=4)
    core.submit(one)
    records, finished = run(core)
    assert [list(record.prefill_tokens) for record in records] == [[10], [0], [0], [0]]
    assert [list(record.decode_tokens) for record in records] == [[0], [1], [1], [1]]
    assert [list(record.context_tokens) for record in records] == [[0], [10], [11], [12]]
    assert [len(done.closed) for done in finished] == [0, 0, 0, 1]
    assert (one.num_generated, one.is_closed, one.usage().token_difference) == (4, True, 0)


def test_no_output_token_ends_with_the_prefill() -> None:
    """Embeddings: a long one in chunks, its KV is free afterwards."""
    core, one = SimulatedCore(options(max_batched_tokens=8)), sequence(prompt=20, target=0)
    core.submit(one)
    records, finished = run(core)
    assert ([8, 8, 4], 0) == ([int(record.prefill_tokens.sum()) for record in records], one.num_generated)
    assert (one.is_closed, core.num_running, core.kv_used_tokens) == (True, 0, 0)
    assert (20, 0) == (one.usage().computed_prompt_tokens, one.usage().token_difference)
    assert [one] == finished[-1].closed


def test_one_output_token_needs_only_the_prefill() -> None:
    """Classification traffic: many requests end with their first token."""
    core, one = SimulatedCore(options()), sequence(target=1)
    core.submit(one)
    records, _ = run(core)
    assert (len(records), one.num_generated, core.num_running) == (1, 1, 0)


def test_long_prompt_is_cut_into_chunks() -> None:
    """Never more prompt tokens in a step than the budget; the context of a chunk is what was computed before."""
    core, one = SimulatedCore(options(max_batched_tokens=100)), sequence(prompt=250, target=1)
    core.submit(one)
    records, _ = run(core)
    assert [int(record.prefill_tokens.sum()) for record in records] == [100, 100, 50]
    assert [int(record.context_tokens.sum()) for record in records] == [0, 100, 200]


def test_decodes_come_first_in_the_budget() -> None:
    """A long prompt must not hold up those that already answer."""
    core = SimulatedCore(options(max_batched_tokens=64))
    short, long = sequence("short", prompt=10, target=50), sequence("long", prompt=200, target=1)
    core.submit(short)
    core.begin(0.0)
    core.finish()
    core.submit(long)
    plan = core.begin(0.01)
    assert plan is not None
    assert ([chunk.num_tokens for chunk in plan.chunks], len(plan.decoding)) == ([63], 1)


def test_empty_engine_plans_nothing() -> None:
    """No step without work."""
    assert SimulatedCore(options()).begin(0.0) is None


@pytest.mark.parametrize(("prompt", "target"), [(0, 5), (5, -1), (90, 11)])
def test_impossible_sequence_is_refused(prompt: int, target: int) -> None:
    """What can never fit must not wait for ever."""
    with pytest.raises(ValueError, match="token"):
        SimulatedCore(options(kv_tokens=100)).submit(sequence(prompt=prompt, target=target))


# -- many sequences


def test_batch_is_continuous() -> None:
    """A newcomer joins the next step; one that ends leaves at once."""
    core = SimulatedCore(options())
    submitted(core, sequence("a", target=3), sequence("b", target=6))
    records, _ = run(core)
    assert [record.payers for record in records] == [("a", "b")] * 3 + [("b",)] * 3


def test_max_sequences_bounds_the_batch() -> None:
    """The rest waits, and is counted as waiting."""
    core = SimulatedCore(options(max_sequences=2))
    submitted(core, *[sequence(name) for name in "abc"])
    core.begin(0.0)
    assert (core.num_running, core.num_waiting) == (2, 1)


def test_priority_then_arrival_decides_who_runs() -> None:
    """Lower runs first, as in vLLM."""
    core = SimulatedCore(options(max_sequences=1))
    submitted(core, sequence("late", priority=5), sequence("first", priority=1), sequence("second", priority=1))
    _, finished = run(core)
    closed = [each.sequence_id for done in finished for each in done.closed]
    assert closed == ["first", "second", "late"]


def test_preemption_takes_the_worst_and_counts_what_it_repeats() -> None:
    """KV for 60 tokens, two sequences that want 40 each: one computes its tokens twice, nobody is charged for it."""
    core = SimulatedCore(options(kv_tokens=60, block_tokens=4, max_model_len=60))
    good, bad = sequence("good", prompt=10, target=30), sequence("bad", prompt=10, target=30, priority=1)
    submitted(core, good, bad)
    records, _ = run(core)
    assert (good.num_preemptions, bad.num_preemptions > 0) == (0, True)
    assert bad.recomputed_tokens > 0
    assert (good.num_generated, bad.num_generated) == (30, 30)
    assert [each.usage().token_difference for each in (good, bad)] == [0, 0]
    assert scheduled(records) == good.scheduled_tokens + bad.scheduled_tokens
    assert core.kv_used_tokens == 0


def test_recomputed_tokens_stand_apart_in_the_record() -> None:
    """The step after a preemption: repeated positions, and the one output token never computed before."""
    core = SimulatedCore(options(kv_tokens=60, block_tokens=4, max_model_len=60))
    submitted(core, sequence("good", prompt=10, target=30), sequence("bad", prompt=10, target=30, priority=1))
    records, _ = run(core)
    repeated = [record for record in records if record.recomputed_tokens.sum()]
    assert len(repeated) == 1
    row = int(np.argmax(repeated[0].recomputed_tokens))
    assert repeated[0].payers[row] == "bad"
    assert (int(repeated[0].prefill_tokens[row]), int(repeated[0].decode_tokens[row])) == (0, 1)


def test_long_prompts_cannot_lock_each_other_out() -> None:
    """Room for one of two: the second starts when the first has ended, instead of both waiting half computed."""
    core = SimulatedCore(options(kv_tokens=100, max_batched_tokens=30, max_model_len=100, prefix_caching=False))
    first, second = sequence("first", prompt=80, target=5), sequence("second", prompt=80, target=5)
    submitted(core, first, second)
    run(core)
    assert (first.is_closed, second.is_closed) == (True, True)
    assert (first.recomputed_tokens, second.recomputed_tokens) == (0, 0)


# -- prefix cache


def test_cached_prefix_is_not_computed_again() -> None:
    """The second prompt with the same blocks computes only the rest."""
    core = SimulatedCore(options(block_tokens=4))
    hashes = (1, 2, 3)
    submitted(core, sequence("first", prompt=14, target=1, block_hashes=hashes))
    run(core)
    second = sequence("second", prompt=14, target=1, block_hashes=hashes)
    core.submit(second)
    records, _ = run(core)
    assert (second.cached_tokens, int(records[0].prefill_tokens[0])) == (12, 2)
    assert second.usage().token_difference == 0


def test_whole_prompt_in_the_cache_still_computes_its_last_block() -> None:
    """The first output needs at least one computed position."""
    core = SimulatedCore(options(block_tokens=4))
    for name in ("first", "second"):
        one = sequence(name, prompt=12, target=1, block_hashes=(1, 2, 3))
        core.submit(one)
        run(core)
    assert one.cached_tokens == 8


def test_cached_blocks_give_way_to_running_sequences() -> None:
    """Room is never refused because of what is only remembered."""
    core = SimulatedCore(options(kv_tokens=64, block_tokens=4, max_model_len=64))
    core.submit(sequence("old", prompt=40, target=1, block_hashes=tuple(range(10))))
    run(core)
    new = sequence("new", prompt=50, target=10, block_hashes=tuple(range(100, 112)))
    core.submit(new)
    run(core)
    assert (new.is_closed, new.num_preemptions) == (True, 0)


def test_prefix_caching_can_be_switched_off() -> None:
    """Two equal prompts cost the same."""
    core = SimulatedCore(options(block_tokens=4, prefix_caching=False))
    for name in ("first", "second"):
        one = sequence(name, prompt=14, target=1, block_hashes=(1, 2, 3))
        core.submit(one)
        run(core)
    assert one.cached_tokens == 0


def test_cache_evicts_the_least_recently_released_block() -> None:
    """First the tail of what was released first: heads serve more prompts."""
    cache = PrefixCache(capacity_tokens=16, block_tokens=4)
    for hashes in ((1, 2), (3, 4)):
        cache.take(8)
        cache.share(hashes, first=0)
        cache.release(hashes)
    cache.take(4)
    assert [cache.match((1,)), cache.match((2,)), cache.match((3, 4))] == [1, 0, 2]


# -- aborts


def test_abort_of_a_waiting_sequence_is_immediate() -> None:
    """It never ran: nothing was scheduled."""
    core, one = SimulatedCore(options()), sequence()
    core.submit(one)
    assert core.abort(one) is True
    assert (core.begin(0.0), one.usage().finish_reason, one.scheduled_tokens) == (None, "abort", 0)


def test_abort_in_flight_is_charged_for_the_step_it_is_in() -> None:
    """As in vLLM: what was scheduled is computed, and somebody pays for it."""
    core, one = SimulatedCore(options()), sequence(prompt=10, target=100)
    core.submit(one)
    core.begin(0.0)
    assert core.abort(one) is False
    finished = core.finish()
    assert (finished.closed, finished.records()[0].payers) == ([one], ("a",))
    assert (core.num_running, core.kv_used_tokens, one.usage().token_difference) == (0, 0, 0)


def test_abort_between_chunks_counts_what_was_computed() -> None:
    """An unfinished prompt: its computed part, and no output."""
    core, one = SimulatedCore(options(max_batched_tokens=4)), sequence(prompt=10, target=5)
    core.submit(one)
    core.begin(0.0)
    core.finish()
    assert core.abort(one) is True
    usage = one.usage()
    assert (usage.computed_prompt_tokens, usage.generated_tokens, usage.token_difference) == (4, 0, 0)


def test_second_abort_changes_nothing() -> None:
    """Client and operator may both want it."""
    core, one = SimulatedCore(options()), sequence()
    core.submit(one)
    core.abort(one)
    assert (core.abort(one), core.num_waiting) == (True, 0)


# -- cost


def test_published_constants_give_the_published_step() -> None:
    """H100, Llama-3.1-8B, 64 decodes: 12.4 ms and 7.4 J, the affine fit of the ML.ENERGY runs."""
    core = SimulatedCore(PUBLISHED)
    submitted(core, *[sequence(str(index), prompt=1, target=50) for index in range(64)])
    core.begin(0.0)
    core.finish()
    plan = core.begin(1.0)
    assert plan is not None
    assert plan.ended_s - plan.started_s == pytest.approx(0.006672 + 64 * 0.0000894604)
    assert plan.joules == pytest.approx(3.16232 + 64 * 0.0665024)


@pytest.mark.parametrize(("batch", "watts", "tokens_per_s"), [(64, 610, 5_147), (128, 669, 7_037), (256, 691, 9_010)])
def test_simulated_engine_meets_the_measured_points(batch: int, watts: float, tokens_per_s: float) -> None:
    """Regression points of energy-anchors §3.3: power and throughput of the real board, within 5 %."""
    core = SimulatedCore(PUBLISHED)
    submitted(core, *[sequence(str(index), prompt=1, target=400) for index in range(batch)])
    core.begin(0.0)
    core.finish()
    plan = core.begin(0.0, max_steps=300)
    assert plan is not None
    assert plan.joules / plan.ended_s == pytest.approx(watts, rel=0.05)
    assert batch * plan.num_steps / plan.ended_s == pytest.approx(tokens_per_s, rel=0.05)


def test_slow_device_takes_longer_for_the_same_energy() -> None:
    """The fault switch stretches time."""
    plans = []
    for ratio in (1.0, 4.0):
        core = SimulatedCore(options())
        core.slow_ratio = ratio
        core.submit(sequence())
        plan = core.begin(0.0)
        assert plan is not None
        plans.append(plan)
    assert plans[1].ended_s == pytest.approx(4 * plans[0].ended_s)
    assert plans[1].joules == plans[0].joules


def test_hidden_device_differs_by_seed_and_within_its_spread() -> None:
    """Each seed is another board of the same kind; the same seed is the same board."""
    drawn = [TrueEnergy.draw(SimulatedOptions(), seed=seed) for seed in range(20)]
    ratios = [device.e0_joules / SimulatedOptions().energy_e0_joules for device in drawn]
    assert (min(ratios) >= 0.7, max(ratios) <= 1.3, len(set(ratios))) == (True, True, 20)
    assert drawn[3] == TrueEnergy.draw(SimulatedOptions(), seed=3)


def test_energy_of_sums_is_energy_of_rows() -> None:
    """The core adds up once per step what tests ask row by row."""
    device = TrueEnergy.draw(SimulatedOptions(), seed=1)
    prefill, decode, context = [512, 0, 0], [0, 1, 1], [100, 900, 50]
    pairs = 512 * (100 + 256)
    assert device.step_joules(prefill, decode, context) == pytest.approx(
        device.sums_joules(prefill_tokens=512, decode_tokens=2, context_tokens=1_050, pairs=pairs)
    )
    assert device.step_joules([], [], []) == 0.0


def test_curved_device_is_concave() -> None:
    """A mixture of experts: the second half of a batch costs less than the first."""
    device = TrueEnergy.draw(SimulatedOptions(energy_exponent=0.5), seed=0)

    def cost(num_sequences: int) -> float:
        return device.step_joules([0] * num_sequences, [1] * num_sequences, [0] * num_sequences)

    assert cost(64) - cost(32) < cost(32) - device.e0_joules


# -- virtual time


def test_jump_holds_what_single_steps_hold() -> None:
    """Many equal steps at once: same records, same time; energy within the curvature of the context term."""
    one_by_one, jumping = SimulatedCore(options()), SimulatedCore(options())
    for core in (one_by_one, jumping):
        submitted(core, sequence("a", prompt=30, target=100), sequence("b", prompt=50, target=40))
    single, single_done = run(one_by_one)
    jumped, jumped_done = run(jumping, max_steps=1_000)
    assert len(jumped_done) < 5 < len(single_done)
    assert [record.step for record in single] == [record.step for record in jumped]
    for left, right in zip(single, jumped, strict=True):
        assert left.payers == right.payers
        assert list(left.context_tokens) == list(right.context_tokens)
        assert left.ended_s == pytest.approx(right.ended_s)
    joules = [sum(done.plan.joules for done in finished) for finished in (single_done, jumped_done)]
    assert joules[0] == pytest.approx(joules[1], rel=1e-6)


def test_cut_ends_a_jump_with_the_step_that_runs() -> None:
    """Somebody arrives in the fifth of many steps: five are done, the newcomer joins the sixth."""
    core = SimulatedCore(options())
    core.submit(sequence("a", prompt=10, target=500))
    core.begin(0.0)
    core.finish()
    planned = core.begin(0.01, max_steps=1_000)
    assert planned is not None
    before_joules, num_planned = planned.joules, planned.num_steps
    plan = core.cut(0.055)
    core.submit(sequence("b", prompt=10, target=5))
    core.finish()
    assert (plan.num_steps, plan.ended_s) == (5, pytest.approx(0.06))
    assert plan.joules == pytest.approx(before_joules * 5 / num_planned)
    following = core.begin(plan.ended_s)
    assert following is not None
    assert following.payers == ("b", "a")


def test_jump_stops_where_room_runs_out() -> None:
    """KV is taken step by step: a jump must not promise what a step could not keep."""
    core = SimulatedCore(options(kv_tokens=100, max_model_len=100, prefix_caching=False))
    submitted(core, sequence("a", prompt=10, target=60), sequence("b", prompt=10, target=60))
    records, _ = run(core, max_steps=1_000)
    assert scheduled(records) > 2 * (10 + 59)  # one was preempted
    assert core.kv_used_tokens == 0


# -- properties


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kv_tokens=st.sampled_from([160, 400, 5_000]),
    max_batched_tokens=st.sampled_from([16, 64, 2_048]),
    max_steps=st.sampled_from([1, 64]),
)
def test_every_token_is_counted_once(seed: int, kv_tokens: int, max_batched_tokens: int, max_steps: int) -> None:
    """Random arrivals, aborts, shared prefixes, little room: identity exact, records complete, all room given back."""
    stream = random.Random(seed)
    core = SimulatedCore(
        options(kv_tokens=kv_tokens, max_model_len=kv_tokens, max_batched_tokens=max_batched_tokens,
                block_tokens=8, max_sequences=6),
        seed=seed,
    )  # fmt: skip
    sequences: list[SimulatedSequence] = []
    recorded: dict[str, int] = {}
    now_s, closed = 0.0, []
    for turn in range(2_000):
        while len(sequences) < 25 and stream.random() < 0.3:
            prompt = stream.randint(1, 90)
            family = stream.randint(0, 2)
            hashes = tuple(1_000 * family + block for block in range(prompt // 8))
            one = sequence(str(len(sequences)), prompt=prompt, target=stream.randint(1, 60), block_hashes=hashes,
                           priority=stream.randint(0, 2))  # fmt: skip
            sequences.append(one)
            core.submit(one)
        plan = core.begin(now_s, max_steps=max_steps)
        if sequences and stream.random() < 0.05 and core.abort(victim := stream.choice(sequences)):
            closed += [victim] if victim not in closed else []
        if plan is None:
            if len(sequences) == 25:
                break
            continue
        if stream.random() < 0.3:
            core.cut(now_s + stream.random() * (plan.ended_s - now_s))
        now_s = plan.ended_s
        finished = core.finish()
        closed += finished.closed
        for record in finished.records():
            tokens = record.prefill_tokens + record.decode_tokens + record.recomputed_tokens
            assert (len(record.payers), int(tokens.min()) >= 1) == (len(tokens), True)
            for payer, count in zip(record.payers, tokens, strict=True):
                recorded[str(payer)] = recorded.get(str(payer), 0) + int(count)
        assert turn < 1_999, "the engine is stuck"
    assert sorted(each.sequence_id for each in closed) == sorted(each.sequence_id for each in sequences)
    for one in sequences:
        usage = one.usage()
        assert usage.token_difference == 0
        assert recorded.get(one.sequence_id, 0) == usage.scheduled_tokens
        assert one.is_aborted or usage.generated_tokens == one.target_tokens
        assert one.is_aborted or usage.cached_tokens + usage.computed_prompt_tokens == usage.prompt_tokens
        assert one.state is SequenceState.CLOSED
    assert (core.kv_used_tokens, core.num_running, core.num_waiting) == (0, 0, 0)


def test_same_seed_same_run() -> None:
    """Deterministic: the noise, too."""
    runs = []
    for _ in range(2):
        core = SimulatedCore(SimulatedOptions(), seed=7)
        submitted(core, *[sequence(str(index), prompt=20 * index + 1, target=9 + index) for index in range(10)])
        runs.append([done.plan.joules for done in run(core)[1]])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 10


# -- options


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("kv_token", 5, "engine_args.kv_token is not an option"),
        ("kv_tokens", 0, "engine_args.kv_tokens must be above 0"),
        ("kv_tokens", 1.5, "engine_args.kv_tokens must be int"),
        ("idle_watts", "119 W", "engine_args.idle_watts must be float"),
        ("idle_watts", float("nan"), "engine_args.idle_watts must be float"),
        ("time_t0_s", -1.0, "engine_args.time_t0_s must be float"),
        ("prefix_caching", 1, "engine_args.prefix_caching must be bool"),
        ("die_mode", "loud", "engine_args.die_mode must be"),
        ("energy_spread_ratio", 1.0, "engine_args.energy_spread_ratio must be in"),
        ("fixed_step_s", 0.0, "engine_args.fixed_step_s must be above 0"),
        ("max_sequences", None, "engine_args.max_sequences must be int"),
    ],
)
def test_wrong_option_is_named(argument: str, value: float | str | None, message: str) -> None:
    """The key is in the message; no value is replaced by a default."""
    with pytest.raises(EngineStartError, match=message):
        parse_options({argument: value})


def test_whole_float_passes_for_a_count_and_none_for_never() -> None:
    """YAML writes 1e3 as a float."""
    parsed = parse_options({"kv_tokens": 1e3, "hang_after_s": None, "prefix_caching": False})
    assert (parsed.kv_tokens, parsed.hang_after_s, parsed.prefix_caching) == (1_000, None, False)
