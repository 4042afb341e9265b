"""Plans of a benchmark: arrivals, lengths, and traces that are replayed."""

import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.bench.workload import (
    MAX_BUCKET_S,
    Lengths,
    TraceError,
    TraceRow,
    closed,
    poisson,
    replay,
)

LENGTHS = Lengths(input_tokens=100, output_tokens=20)


def row(arrival_s: float, *, input_tokens: int = 600, output_tokens: int = 7, blocks: tuple[int, ...] = ()) -> TraceRow:
    return TraceRow(arrival_s=arrival_s, input_tokens=input_tokens, output_tokens=output_tokens, blocks=blocks)


# -- lengths


@given(
    mean=st.integers(1, 5_000), spread=st.floats(0, 1), seed=st.integers(0, 100),
)  # fmt: skip
def test_lengths_stay_within_their_spread(mean: int, spread: float, seed: int) -> None:
    """A drawn length lies within mean × (1 ± spread) and is at least one token."""
    import random

    lengths = Lengths(input_tokens=mean, output_tokens=mean, spread_ratio=spread)
    for value in lengths.draw(random.Random(seed)):
        assert value >= 1
        assert mean * (1 - spread) - 1 <= value <= mean * (1 + spread) + 1


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "spread"), [(0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.1), (1, 1, -0.1)]
)
def test_impossible_lengths_are_refused(input_tokens: int, output_tokens: int, spread: float) -> None:
    """No prompt, no output or a spread beyond the mean is an error."""
    with pytest.raises(ValueError, match=r"at least 1|between 0 and 1"):
        Lengths(input_tokens=input_tokens, output_tokens=output_tokens, spread_ratio=spread)


# -- open loop


def test_poisson_has_the_rate_and_the_spread_of_a_poisson_process() -> None:
    """Over many arrivals the mean gap is 1 / rate, and its coefficient of variation is 1."""
    plan = poisson(rate_rps=50, duration_s=200, lengths=LENGTHS, seed=1)
    gaps = [later.due_s - earlier.due_s for earlier, later in pairwise(plan) if later.due_s and earlier.due_s]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1, rel=0.05)


def test_burstier_arrivals_keep_the_rate_and_raise_the_variation() -> None:
    """cv 3 gives the same rate with three times the variation of the gaps."""
    plan = poisson(rate_rps=50, duration_s=400, lengths=LENGTHS, seed=2, cv=3)
    gaps = [later.due_s - earlier.due_s for earlier, later in pairwise(plan) if later.due_s and earlier.due_s]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(3, rel=0.15)


@given(seed=st.integers(0, 1000), rate=st.floats(0.5, 30), cv=st.floats(0.3, 3))
def test_an_open_plan_is_in_order_inside_its_span_and_repeatable(seed: int, rate: float, cv: float) -> None:
    """Due times rise within [0, duration); the same seed gives the same plan."""
    plan = poisson(rate_rps=rate, duration_s=5, lengths=LENGTHS, seed=seed, cv=cv)
    due = [planned.due_s for planned in plan]
    assert due == sorted(due)
    assert all(0 <= value < 5 for value in due)
    assert [planned.index for planned in plan] == list(range(len(plan)))
    assert plan == poisson(rate_rps=rate, duration_s=5, lengths=LENGTHS, seed=seed, cv=cv)


def test_another_seed_is_another_plan() -> None:
    """Arrivals depend on the seed."""
    one, two = (poisson(rate_rps=5, duration_s=10, lengths=LENGTHS, seed=seed) for seed in (1, 2))
    assert [planned.due_s for planned in one] != [planned.due_s for planned in two]


def test_the_rate_does_not_change_the_lengths() -> None:
    """Arrivals and lengths draw from streams of their own, so that one can be varied alone."""
    lengths = Lengths(input_tokens=100, output_tokens=20, spread_ratio=0.5)
    slow = poisson(rate_rps=5, duration_s=10, lengths=lengths, seed=3)
    fast = poisson(rate_rps=10, duration_s=10, lengths=lengths, seed=3)
    assert [one.input_tokens for one in slow] == [one.input_tokens for one in fast[: len(slow)]]


@pytest.mark.parametrize(
    ("rate", "duration", "cv"), [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1), (float("nan"), 1, 1)]
)
def test_an_impossible_rate_is_refused(rate: float, duration: float, cv: float) -> None:
    """Rate, duration and variation must be positive numbers."""
    with pytest.raises(ValueError, match="must be positive"):
        poisson(rate_rps=rate, duration_s=duration, lengths=LENGTHS, seed=0, cv=cv)


def test_a_closed_plan_never_ends_and_has_no_due_times() -> None:
    """The client takes as many as it has slots for."""
    first = list(islice(closed(lengths=LENGTHS, seed=0), 1000))
    assert [planned.index for planned in first] == list(range(1000))
    assert {planned.due_s for planned in first} == {None}


# -- replay


def test_replay_scales_time_and_starts_where_told() -> None:
    """speed 2 halves the gaps; skip leaves out what came before, in trace time."""
    rows = [row(0), row(10), row(14), row(30)]
    plan, num_cut = replay(rows, duration_s=10, seed=0, speed=2, skip_s=8)
    assert [planned.due_s for planned in plan] == [1, 3]
    assert num_cut == 0


def test_rows_of_one_timestamp_are_spread_until_the_next_one() -> None:
    """A trace bucketed to 3 s is not replayed as bursts every 3 s."""
    rows = [row(0)] * 50 + [row(2)] * 50 + [row(100)] * 50
    plan, _ = replay(rows, duration_s=200, seed=0)
    due = [planned.due_s or 0.0 for planned in plan]
    assert due == sorted(due)
    assert all(0 <= value < 2 for value in due[:50])
    assert all(2 <= value < 2 + MAX_BUCKET_S for value in due[50:100])
    assert len(set(due)) == 150


def test_a_single_row_keeps_its_moment() -> None:
    """Only rows that share a timestamp are moved."""
    plan, _ = replay([row(0), row(1.25), row(7)], duration_s=10, seed=0)
    assert [planned.due_s for planned in plan] == [0, 1.25, 7]


def test_lengths_beyond_the_limits_are_cut_and_counted() -> None:
    """Prompts and outputs are cut to what the server can take, their blocks with them."""
    rows = [
        row(0, input_tokens=2000, output_tokens=5, blocks=(1, 2, 3, 4)),
        row(1, input_tokens=10, output_tokens=90, blocks=(1,)),
    ]
    plan, num_cut = replay(rows, duration_s=5, seed=0, max_input_tokens=600, max_output_tokens=50)
    assert [(one.input_tokens, one.output_tokens, one.blocks) for one in plan] == [(600, 5, (1, 2)), (10, 50, (1,))]
    assert num_cut == 2


@given(
    arrivals=st.lists(st.integers(0, 40), min_size=1, max_size=60), speed=st.floats(0.25, 8), seed=st.integers(0, 50),
)  # fmt: skip
def test_replay_keeps_every_request_in_order(arrivals: list[int], speed: float, seed: int) -> None:
    """No request of the span is lost, none comes before its trace time, and the order of time holds."""
    rows = [row(value) for value in sorted(arrivals)]
    plan, _ = replay(rows, duration_s=1000, seed=seed, speed=speed)
    due = [planned.due_s or 0.0 for planned in plan]
    assert len(plan) == len(rows)
    assert due == sorted(due)
    assert all(moment * speed >= one.arrival_s - 1e-6 for moment, one in zip(due, rows, strict=True))
    assert plan == replay(rows, duration_s=1000, seed=seed, speed=speed)[0]


def test_an_empty_replay_is_an_error() -> None:
    """A span in which nothing falls due would measure nothing."""
    with pytest.raises(TraceError, match="between 50 s and 60 s"):
        replay([row(0), row(1)], duration_s=10, seed=0, skip_s=50)


@pytest.mark.parametrize(("speed", "duration", "skip"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_an_impossible_replay_is_refused(speed: float, duration: float, skip: float) -> None:
    """Speed and duration are positive, the skip is not negative."""
    with pytest.raises(ValueError, match="must be positive"):
        replay([row(0)], duration_s=duration, seed=0, speed=speed, skip_s=skip)
