"""Slack of what runs: the formulas by hand, summaries that agree with the exact sums, places that are reused."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.slack import NO_SUMMARY, UNDERWAY, Burden, Pace, Promise, Promises
from scheduler.core.table import HORIZON_TOKENS, STEP_PROMPT_TOKENS
from tests.core_words import thorough

IDLE = Pace(step_s=0.01, prefill_s=1e-4, backlog_tokens=0.0)


def decoding(due_s: float, left_tokens: float = HORIZON_TOKENS, value: float = 1.0, token_s: float = 0.05) -> Promise:
    return Promise(UNDERWAY, due_s, left_tokens, value, token_s)


def promises_of(*each: Promise) -> Promises:
    promises = Promises()
    for number, promise in enumerate(each):
        promises.put(f"a{number}", promise)
    return promises


def slack_by_hand(promise: Promise, pace: Pace, now_s: float) -> float:
    """The definition: due minus expected, at the token that is looked at."""
    near = min(promise.left_tokens, HORIZON_TOKENS)
    due_s = promise.due_s - (promise.left_tokens - near) * promise.token_s
    prompts_s = pace.prefill_s * min(pace.backlog_tokens, near * STEP_PROMPT_TOKENS)
    return due_s - (now_s + prompts_s + near * pace.step_s)


def lateness_by_hand(each: list[Promise], pace: Pace, burden: Burden, now_s: float) -> float:
    """One request at a time: what it is late after the newcomer beyond what it was before."""
    total = 0.0
    for promise in each:
        if math.isinf(promise.due_s):
            continue
        near = min(promise.left_tokens, HORIZON_TOKENS)
        room_tokens = max(near * STEP_PROMPT_TOKENS - pace.backlog_tokens, 0.0)
        delay_s = pace.prefill_s * min(burden.prefill_tokens, room_tokens) + min(near, burden.steps) * burden.step_s
        before_s = -slack_by_hand(promise, pace, now_s)
        total += promise.value_nano_per_s * (max(before_s + delay_s, 0.0) - max(before_s, 0.0))
    return total


def test_what_a_newcomer_breaks_is_summed_over_everybody() -> None:
    """One with slack enough, one with half of it, one that is late already and pays in full."""
    promises = promises_of(decoding(10.0), decoding(0.29, value=2.0), decoding(0.01, value=3.0))
    burden = Burden(prefill_tokens=1000, steps=0, step_s=0.0)  # 0.1 s
    assert promises.lateness_nano(IDLE, burden, 0.0) == pytest.approx(2.0 * 0.05 + 3.0 * 0.1)


def test_a_request_that_ends_before_the_newcomer_s_prompt_is_not_delayed_by_it() -> None:
    """Prompts that are there already take its last steps."""
    promises = promises_of(decoding(0.0, left_tokens=2))
    busy = IDLE._replace(backlog_tokens=2 * STEP_PROMPT_TOKENS)
    assert 0.0 == promises.lateness_nano(busy, Burden(10_000, 0, 0.0), 0.0)
    assert 0.0 < promises.lateness_nano(IDLE, Burden(10_000, 0, 0.0), 0.0)


def test_tokens_of_the_newcomer_stretch_only_the_steps_they_share() -> None:
    """The fewer of both."""
    promises = promises_of(decoding(0.0, left_tokens=6))
    assert promises.lateness_nano(IDLE, Burden(0, 4, 0.5), 0.0) == pytest.approx(2.0)
    assert promises.lateness_nano(IDLE, Burden(0, 80, 0.5), 0.0) == pytest.approx(3.0)


def test_a_long_answer_must_keep_its_pace_even_if_it_ended_soon() -> None:
    """A thousand tokens are expected and all their slack lies ahead: so far it is 10 ms behind."""
    begun = decoding(0.05 * 1000 - 0.01, left_tokens=1000)
    slow = IDLE._replace(step_s=0.05)
    assert promises_of(begun).lateness_nano(slow, Burden(1000, 0, 0.0), 0.0) == pytest.approx(0.1)
    assert promises_of(begun).lateness_nano(IDLE, Burden(1000, 0, 0.0), 0.0) == 0.0


def test_tokens_that_came_leave_the_due_of_the_rest() -> None:
    """As if it had been promised anew with fewer to come."""
    promises = promises_of(decoding(1.0, left_tokens=100))
    promises.put_out("a0", 30)
    assert promises_of(decoding(1.0, left_tokens=70)).summary(IDLE, 0.0) == promises.summary(IDLE, 0.0)
    promises.put_out("a0", 1000)
    assert promises_of(decoding(1.0, left_tokens=0)).summary(IDLE, 0.0) == promises.summary(IDLE, 0.0)


def test_the_summary_names_the_least_slack_that_is_left_and_what_is_late() -> None:
    """Steps of 10 ms: one has a second of slack, one more than that, one is late."""
    promises = promises_of(decoding(1.24, value=5.0), decoding(1.7, 5, value=7.0), decoding(0.01, value=9.0))
    reach_s = 24 * STEP_PROMPT_TOKENS * IDLE.prefill_s
    assert promises.summary(IDLE, 0.0) == pytest.approx((1.0, 24.0, 5.0, reach_s, 9.0))
    assert promises_of(Promise(rank=1)).summary(IDLE, 0.0) == NO_SUMMARY


def test_whoever_waits_for_a_first_token_has_no_slack_yet() -> None:
    """It counts from the moment it decodes, and no more once it is over."""
    promises = promises_of(Promise(rank=1))
    assert (0, 1) == (len(promises), promises.rank("a0"))
    promises.put("a0", decoding(1.0))
    assert (1, UNDERWAY) == (len(promises), promises.rank("a0"))
    promises.put("a0", Promise(rank=2))
    assert 0 == len(promises)
    promises.put("a0", decoding(1.0))
    promises.drop("a0")
    assert promises.summary(IDLE, 0.0) == NO_SUMMARY


@thorough
@given(st.integers(0, 2**32))
def test_any_history_leaves_exactly_those_that_run(seed: int) -> None:
    """Whatever came and went, sums and summary are those of the definition over who is there."""
    chance = random.Random(seed)
    promises, there = Promises(), dict[str, Promise]()
    for _ in range(80):
        name = f"a{chance.randrange(30)}"
        if name in there and chance.random() < 0.4:
            promises.drop(name)
            del there[name]
        else:
            is_waiting = chance.random() < 0.2
            there[name] = (
                Promise(chance.randrange(3))
                if is_waiting
                else decoding(chance.uniform(0, 9), chance.randrange(200), chance.choice([1.0, 4.0]))
            )
            promises.put(name, there[name])
    pace = Pace(0.01, 1e-4, chance.choice([0.0, 500.0, 5_000.0]))
    burden = Burden(chance.randrange(9000), chance.randrange(300), 1e-3)
    now_s, each = chance.uniform(0, 1), list(there.values())
    assert promises.lateness_nano(pace, burden, now_s) == pytest.approx(lateness_by_hand(each, pace, burden, now_s))
    assert len(promises) == sum(promise.due_s < math.inf for promise in each)
    found = promises.summary(pace, now_s)
    running = [promise for promise in each if promise.due_s < math.inf]
    slacks_s = [slack_by_hand(promise, pace, now_s) for promise in running]
    kept_s = [
        slack_s
        for promise, slack_s in zip(running, slacks_s, strict=True)
        if slack_s >= 0 and min(promise.left_tokens, HORIZON_TOKENS) * STEP_PROMPT_TOKENS > pace.backlog_tokens
    ]
    late = [promise.value_nano_per_s for promise, slack_s in zip(running, slacks_s, strict=True) if slack_s < 0]
    assert (found.least_s, found.late_nano_per_s) == pytest.approx((min(kept_s, default=math.inf), sum(late)))
