"""Questions to a fleet: its limit by turns, policies by name, and the bound on prefix hits."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.request import DEFAULT_SLO
from scheduler.simulation.policies import POLICIES
from scheduler.simulation.replay import (
    LIMIT_GOOD_RATIO,
    fleet_of,
    pooled_cached_ratio,
    round_robin_limit_per_s,
    run,
)
from scheduler.simulation.traces import Arrival, scaled
from scheduler.trace_files import TraceRow
from tests.core_words import thorough
from workers.engines.simulated_options import SimulatedOptions

OPTIONS = SimulatedOptions(time_t0_s=0.02, time_prefill_s=1e-3, max_sequences=8)
"""Slow, so that a few requests a second are much."""


def rows(num: int = 60) -> list[TraceRow]:
    chance = random.Random(1)
    return [
        TraceRow(arrival_s=number * 1.0, input_tokens=chance.randint(50, 400), output_tokens=chance.randint(1, 40))
        for number in range(num)
    ]


def prompt(*blocks: int, tokens: int | None = None) -> Arrival:
    """Blocks of ten tokens, and one token more."""
    return Arrival(
        arrival_s=0.0, prompt_tokens=tokens or 10 * len(blocks) + 1, output_tokens=1, prompt_tokens_bound=100,
        blocks=blocks, full_blocks=blocks,
    )  # fmt: skip


def test_a_fleet_has_as_many_workers_as_said() -> None:
    """Ids differ and say the kind; order is kept."""
    fleet = fleet_of((2, "one", OPTIONS), (1, "other", SimulatedOptions()))
    assert [worker.worker_id for worker in fleet] == ["one-000", "one-001", "other-000"]
    assert [worker.options is OPTIONS for worker in fleet] == [True, True, False]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_answers_everybody(policy: str) -> None:
    """By its name alone."""
    found = run(policy, fleet_of((2, "w", OPTIONS)), scaled(rows(), rate_per_s=0.5, seed=1), seed=1)
    assert (found.worker >= 0).all()


def test_the_limit_is_where_round_robin_stops_being_good() -> None:
    """At the limit it is good, well above it is not, and twice the fleet takes about twice as much or more."""
    fleet = fleet_of((1, "w", OPTIONS))
    limit_per_s = round_robin_limit_per_s(fleet, rows())

    def good_ratio(rate_per_s: float) -> float:
        return float(
            run("round-robin", fleet, scaled(rows(), rate_per_s=rate_per_s, seed=0)).is_good(DEFAULT_SLO).mean()
        )

    assert good_ratio(limit_per_s) >= LIMIT_GOOD_RATIO
    assert good_ratio(1.5 * limit_per_s) < LIMIT_GOOD_RATIO
    assert round_robin_limit_per_s(fleet_of((2, "w", OPTIONS)), rows()) > 1.6 * limit_per_s


def test_a_fleet_that_is_never_good_has_no_limit() -> None:
    """Its steps alone are longer than the target for a token."""
    slow = SimulatedOptions(time_t0_s=0.06)
    assert round_robin_limit_per_s(fleet_of((1, "w", slow)), rows()) == 0.0


def test_pooled_hits_by_hand() -> None:
    """The second prompt shares two of its three blocks, the third all of them."""
    arrivals = [prompt(1, 2, 3), prompt(1, 2, 4), prompt(1, 2, 3)]
    assert pooled_cached_ratio(arrivals, kv_tokens=None, block_tokens=10) == pytest.approx(50 / 93)


def test_the_least_recently_used_block_goes_last_block_first() -> None:
    """Room for three blocks: of the first prompt its end goes, of the second all stay."""
    arrivals = [prompt(1, 2), prompt(3, 4), prompt(1, 2), prompt(9)]
    assert pooled_cached_ratio(arrivals, kv_tokens=30, block_tokens=10) == pytest.approx(10 / 74)


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token() -> None:
    """Ten tokens in one block: the second time nothing but its last block is computed."""
    arrivals = [prompt(1, 2, tokens=20), prompt(1, 2, tokens=20)]
    assert pooled_cached_ratio(arrivals, kv_tokens=None, block_tokens=10) == pytest.approx(10 / 40)


@thorough
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), min_size=1, max_size=20))
def test_more_room_never_has_fewer_hits(drawn: list[list[int]]) -> None:
    """Least recently used has no anomaly; unbounded is the most."""
    chained = [tuple(hash(tuple(blocks[: end + 1])) for end in range(len(blocks))) for blocks in drawn]
    arrivals = [prompt(*blocks) for blocks in chained]
    ratios = [pooled_cached_ratio(arrivals, kv_tokens=room, block_tokens=10) for room in (0, 20, 50, 100, None)]
    assert ratios == sorted(ratios)
    assert ratios[0] == 0.0
