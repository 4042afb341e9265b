"""Made-up traces have the statistics that they are made from, and one seed gives one trace."""

import statistics
from itertools import pairwise

import pytest

from scheduler.simulation.replay import pooled_cached_tokens
from scheduler.simulation.traces import Arrival, span_s
from scheduler.trace_files import TraceRow
from scheduler.workloads import BLOCK_TOKENS, SECONDS, WORKLOADS, SingleRequests


@pytest.fixture(scope="module")
def rows() -> dict[str, list[TraceRow]]:
    return {name: workload.rows(seed=1) for name, workload in WORKLOADS.items()}


@pytest.mark.parametrize("name", WORKLOADS)
def test_rows_are_in_order_from_zero_and_last_as_long_as_said(rows: dict[str, list[TraceRow]], name: str) -> None:
    """Long enough not to be repeated."""
    times_s = [row.arrival_s for row in rows[name]]
    assert 0.0 == times_s[0]
    assert sorted(times_s) == times_s
    assert SECONDS >= times_s[-1] > 2_400.0
    assert all(row.input_tokens >= 1 and row.output_tokens >= 1 for row in rows[name])


@pytest.mark.parametrize("name", ["chat", "code"])
def test_single_requests_have_the_published_rate_lengths_and_burstiness(
    rows: dict[str, list[TraceRow]], name: str
) -> None:
    """Means are cut by the longest, medians are not."""
    workload = WORKLOADS[name]
    assert isinstance(workload, SingleRequests)
    assert workload.rate_per_s == pytest.approx(len(rows[name]) / span_s(rows[name]), rel=0.01)
    for lengths, tokens in (
        (workload.prompt, [row.input_tokens for row in rows[name]]),
        (workload.answer, [row.output_tokens for row in rows[name]]),
    ):
        assert lengths.median == pytest.approx(statistics.median(tokens), rel=0.05)
        assert lengths.mean == pytest.approx(statistics.fmean(tokens), rel=0.1)
        assert max(tokens) <= lengths.most
    gaps = [later.arrival_s - earlier.arrival_s for earlier, later in pairwise(rows[name])]
    assert workload.cv == pytest.approx(statistics.pstdev(gaps) / statistics.fmean(gaps), rel=0.25)


def test_agents_repeat_what_was_said(rows: dict[str, list[TraceRow]]) -> None:
    """Nine of ten prompt tokens were there before; 131 come in for each that goes out."""
    agents = rows["agents"]
    assert all(len(row.blocks) == -(-row.input_tokens // BLOCK_TOKENS) for row in agents)
    arrivals = [
        Arrival(
            arrival_s=row.arrival_s, prompt_tokens=row.input_tokens, output_tokens=row.output_tokens,
            prompt_tokens_bound=row.input_tokens, blocks=row.blocks,
            full_blocks=row.blocks[: row.input_tokens // BLOCK_TOKENS],
        )
        for row in agents
    ]  # fmt: skip
    cached = sum(pooled_cached_tokens(arrivals, kv_tokens=None, block_tokens=BLOCK_TOKENS))
    total = sum(row.input_tokens for row in agents)
    assert 0.90 <= cached / total <= 0.97
    assert 131.0 == pytest.approx(total / sum(row.output_tokens for row in agents), rel=0.1)


def test_a_session_never_answers_before_it_was_asked(rows: dict[str, list[TraceRow]]) -> None:
    """Turns of one session, told by their first block, come after the answer before them."""
    sessions: dict[int, list[TraceRow]] = {}
    for row in rows["agents"]:
        sessions.setdefault(row.blocks[0], []).append(row)
    turns = [pair for session in sessions.values() for pair in pairwise(session)]
    assert len(turns) > 1_000
    assert all(later.arrival_s - earlier.arrival_s >= 0.02 * earlier.output_tokens for earlier, later in turns)
    assert all(later.input_tokens >= earlier.input_tokens + earlier.output_tokens for earlier, later in turns)


@pytest.mark.parametrize("name", WORKLOADS)
def test_one_seed_is_one_trace(rows: dict[str, list[TraceRow]], name: str) -> None:
    assert rows[name] == WORKLOADS[name].rows(seed=1)
    assert rows[name] != WORKLOADS[name].rows(seed=2)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_names_its_source(name: str) -> None:
    assert len(WORKLOADS[name].source) > 40
