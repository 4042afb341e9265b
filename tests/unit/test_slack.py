"""Slack of what runs: the formulas by hand, summaries that agree with the exact sums, places that are reused."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.slack import (
    NO_SUMMARY,
    STEP_PROMPT_TOKENS,
    UNDERWAY,
    Burden,
    Pace,
    Promise,
    Promises,
)
from tests.core_words import thorough

IDLE = Pace(step_s=0.01, prefill_s=1e-4, backlog_tokens=0.0)


def decoding(due_s: float, left_tokens: float = 100.0, value: float = 1.0) -> Promise:
    return Promise(UNDERWAY, due_s, left_tokens, value)


def promises_of(*each: Promise) -> Promises:
    promises = Promises()
    for number, promise in enumerate(each):
        promises.put(f"a{number}", promise)
    return promises


def lateness_by_hand(each: list[Promise], pace: Pace, burden: Burden, now_s: float) -> float:
    """The definition, one request at a time: what it is late after the newcomer beyond what it was before."""
    total = 0.0
    for promise in each:
        if math.isinf(promise.due_s):
            continue
        reach = promise.left_tokens * STEP_PROMPT_TOKENS
        ends_s = now_s + pace.prefill_s * min(pace.backlog_tokens, reach) + promise.left_tokens * pace.step_s
        delay_s = pace.prefill_s * min(burden.prefill_tokens, max(reach - pace.backlog_tokens, 0.0))
        delay_s += min(promise.left_tokens, burden.steps) * burden.step_s
        before_s, after_s = max(ends_s - promise.due_s, 0.0), max(ends_s + delay_s - promise.due_s, 0.0)
        total += promise.value_nano_per_s * (after_s - before_s)
    return total


def test_what_a_newcomer_breaks_is_summed_over_everybody() -> None:
    """One with slack enough, one with half of it, one that is late already and pays in full."""
    promises = promises_of(decoding(10.0), decoding(1.05, value=2.0), decoding(0.5, value=3.0))
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
    promises = promises_of(decoding(0.0, left_tokens=30))
    assert promises.lateness_nano(IDLE, Burden(0, 20, 0.5), 0.0) == pytest.approx(10.0)
    assert promises.lateness_nano(IDLE, Burden(0, 80, 0.5), 0.0) == pytest.approx(15.0)


def test_the_summary_names_the_least_slack_that_is_left_and_what_is_late() -> None:
    """A second before the due time of 100 tokens at 10 ms."""
    promises = promises_of(decoding(2.0, value=5.0), decoding(1.7, 50, value=7.0), decoding(0.3, value=9.0))
    assert promises.summary(IDLE, 0.0) == pytest.approx((1.0, 100.0, 5.0, 9.0))
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
    """Whatever came and went, the sums are those of the definition over who is there, and a summary never exceeds its
    worst: a worker that it lets pass breaks nothing of whoever it names."""
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
                else decoding(chance.uniform(0, 3), chance.randrange(200), chance.choice([1.0, 4.0]))
            )
            promises.put(name, there[name])
    pace = Pace(0.01, 1e-4, chance.choice([0.0, 500.0, 50_000.0]))
    burden = Burden(chance.randrange(9000), chance.randrange(300), 1e-3)
    now_s, each = chance.uniform(0, 1), list(there.values())
    assert promises.lateness_nano(pace, burden, now_s) == pytest.approx(lateness_by_hand(each, pace, burden, now_s))
    assert len(promises) == sum(promise.due_s < math.inf for promise in each)
    found = promises.summary(pace, now_s)
    slack_s = [
        promise.due_s - now_s - promise.left_tokens * pace.step_s
        - pace.prefill_s * min(pace.backlog_tokens, promise.left_tokens * STEP_PROMPT_TOKENS)
        for promise in each
        if promise.due_s < math.inf
    ]  # fmt: skip
    assert found.least_s >= min((slack for slack in slack_s if slack >= 0), default=math.inf) - 1e-9
    late = [promise.value_nano_per_s for promise, slack in zip(
        [promise for promise in each if promise.due_s < math.inf], slack_s, strict=True) if slack < 0]  # fmt: skip
    assert found.late_nano_per_s == pytest.approx(sum(late))
