"""Arrivals from a trace's rows: the rate is raised, the clock is not touched, and prefixes are shared as traced."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.simulation.traces import BYTES_PER_TOKEN, JITTER_S, NEIGHBOURS, Arrival, first, scaled, span_s
from scheduler.trace_files import TraceRow
from tests.core_words import thorough


def rows(num: int = 500, *, gap_s: float = 2.0, blocks: bool = False) -> list[TraceRow]:
    """Row i comes at i gaps, with i + 1 prompt tokens (or its blocks' worth) and i + 2 output tokens."""
    return [
        TraceRow(
            arrival_s=number * gap_s,
            input_tokens=1_000 if blocks else number + 1,
            output_tokens=number + 2,
            blocks=(number % 3, 100 + number % 5) if blocks else (),
        )
        for number in range(num)
    ]


def times_s(arrivals: Sequence[Arrival]) -> list[float]:
    return [arrival.arrival_s for arrival in arrivals]


@pytest.mark.parametrize("rate_per_s", [0.1, 0.5, 7.0])
def test_the_rate_is_as_asked(rate_per_s: float) -> None:
    """Within four standard deviations of a Poisson count, over the trace's own time."""
    arrivals = scaled(rows(), rate_per_s=rate_per_s, seed=1)
    expected = rate_per_s * 1_000
    assert abs(len(arrivals) - expected) <= 4 * expected**0.5
    assert max(times_s(arrivals)) <= 998.0 + JITTER_S


def test_time_is_not_compressed() -> None:
    """Bursts stay where they were: a silent minute is as silent at twenty times the rate."""
    burst = [TraceRow(arrival_s=at_s, input_tokens=10, output_tokens=10) for at_s in (0.0, 0.1, 0.2, 60.0, 60.1)]
    arrivals = scaled(burst, rate_per_s=20.0, seed=3)
    assert len(arrivals) > 1_000
    assert not [at_s for at_s in times_s(arrivals) if 0.2 + JITTER_S < at_s < 60.0]


def test_arrivals_are_in_order_and_one_seed_gives_one_list() -> None:
    """The same seed, the same arrivals; another seed, others."""
    one, same, other = (scaled(rows(), rate_per_s=3.0, seed=seed) for seed in (1, 1, 2))
    assert sorted(times_s(one)) == times_s(one)
    assert one == same
    assert one != other


@thorough
@given(st.integers(0, 1_000))
def test_lengths_come_from_neighbours_and_prompts_stay_below_their_bounds(seed: int) -> None:
    """A row's copies have lengths of rows at most 100 away, prompt and output of the same one."""
    for arrival in scaled(rows(300), rate_per_s=0.5, seed=seed):
        number = arrival.prompt_tokens - 1
        assert arrival.output_tokens == number + 2
        latest, earliest = arrival.arrival_s / 2.0, (arrival.arrival_s - JITTER_S) / 2.0
        assert earliest - NEIGHBOURS - 1 <= number <= latest + NEIGHBOURS + 1
        ratio = arrival.prompt_tokens_bound / arrival.prompt_tokens
        assert BYTES_PER_TOKEN[0] <= ratio <= BYTES_PER_TOKEN[1] + 1


def test_copies_of_the_world_share_nothing_and_each_shares_as_traced() -> None:
    """Of one row no two copies have a block in common; of two rows only copies in one world have, and one tenant."""
    arrivals = scaled(rows(blocks=True), rate_per_s=2.0, seed=5, num_tenants=3)
    by_output: dict[int, list[Arrival]] = {}
    owners: dict[int, str] = {}
    for arrival in arrivals:
        number = arrival.output_tokens - 2
        assert [block % 2**32 for block in arrival.blocks] == [number % 3, 100 + number % 5]
        by_output.setdefault(number, []).append(arrival)
        for block in arrival.blocks:
            assert owners.setdefault(block, arrival.tenant) == arrival.tenant
    for copies in by_output.values():
        blocks = [block for arrival in copies for block in arrival.blocks]
        assert len(set(blocks)) == len(blocks)
    # The first world has a copy of every row that has any: rows of equal blocks share them.
    assert len({arrival.blocks for arrival in arrivals if arrival.blocks[0] < 2**32}) == 15


def test_only_full_blocks_can_be_cached() -> None:
    """A prompt of 1,000 tokens has one full block of 512."""
    arrival = scaled(rows(blocks=True), rate_per_s=1.0, seed=5)[0]
    assert (len(arrival.blocks), arrival.full_blocks) == (2, arrival.blocks[:1])


def test_a_short_trace_is_repeated_whole_and_shares_no_block_with_its_repetition() -> None:
    """Twenty seconds become a minute: three rounds."""
    arrivals = scaled(rows(10, blocks=True), rate_per_s=4.0, seed=2, min_s=55.0)
    assert 40.0 <= max(times_s(arrivals)) <= 60.0 + JITTER_S
    early = {block for arrival in arrivals if arrival.arrival_s < 20.0 for block in arrival.blocks}
    late = {block for arrival in arrivals if arrival.arrival_s >= 20.0 + JITTER_S for block in arrival.blocks}
    assert early
    assert late
    assert not early & late


def test_tenants_without_blocks_are_drawn_evenly() -> None:
    """No public trace names tenants."""
    tenants = [arrival.tenant for arrival in scaled(rows(), rate_per_s=8.0, seed=1, num_tenants=4)]
    shares = [tenants.count(name) / len(tenants) for name in sorted(set(tenants))]
    assert len(shares) == 4
    assert np.allclose(shares, 0.25, atol=0.03)


def test_span_and_beginning() -> None:
    """The mean rate counts the last row's gap, so that repeating a trace keeps it."""
    assert span_s(rows(10)) == pytest.approx(20.0)
    assert span_s(rows(1)) == 1.0
    assert [row.arrival_s for row in first(rows(10), 6.0)] == [0.0, 2.0, 4.0]


def test_empty_lengths_become_one_token() -> None:
    """A trace may say 0 where an engine cannot."""
    (row,) = [TraceRow(arrival_s=0.0, input_tokens=0, output_tokens=0)]
    arrivals = scaled([row], rate_per_s=5.0, seed=1)
    assert {(arrival.prompt_tokens, arrival.output_tokens) for arrival in arrivals} == {(1, 1)}
