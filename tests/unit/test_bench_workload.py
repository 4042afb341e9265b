"""Plans of a benchmark: arrivals, lengths, and the traces they may come from."""

import json
import statistics
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.bench.workload import (
    BLOCK_TOKENS,
    MAX_BUCKET_S,
    Lengths,
    TraceError,
    TraceRow,
    closed,
    poisson,
    read_trace,
    replay,
)

LENGTHS = Lengths(input_tokens=100, output_tokens=20)
TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:48.0000000,10,0
"""


def azure(folder: Path, text: str = AZURE) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def mooncake(folder: Path, *rows: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


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


# -- traces


def test_an_azure_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    """Times count from the first request; a row with no output counts as one token."""
    rows = read_trace(azure(tmp_path))
    assert [(one.input_tokens, one.output_tokens) for one in rows] == [(374, 44), (10, 1), (396, 109)]
    assert [one.arrival_s for one in rows] == pytest.approx([0, 1.319410, 4.314579], abs=1e-5)


def test_a_mooncake_trace_keeps_its_blocks(tmp_path: Path) -> None:
    """Milliseconds become seconds from the first row, blank lines are skipped, blocks stay."""
    path = mooncake(
        tmp_path,
        {"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]},
        "",
        {"timestamp": 4500, "input_length": 10, "output_length": 6, "hash_ids": [0]},
    )
    assert read_trace(path) == [
        TraceRow(arrival_s=0.0, input_tokens=600, output_tokens=5, blocks=(0, 1)),
        TraceRow(arrival_s=1.5, input_tokens=10, output_tokens=6, blocks=(0,)),
    ]


@pytest.mark.parametrize(
    ("name", "num_rows", "has_blocks"),
    [
        ("azure2023_conv_dev.csv", 15_606, False),
        ("azure2023_code_dev.csv", 7_717, False),
        ("mooncake_synthetic_full.jsonl", 3_993, True),
    ],
)
def test_the_published_traces_are_read_whole(name: str, num_rows: int, has_blocks: bool) -> None:
    """Every row of the published slices is understood."""
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"the trace {name} is not beside this checkout")
    rows = read_trace(path)
    assert len(rows) == num_rows
    assert all(bool(one.blocks) is has_blocks for one in rows)
    if has_blocks:
        assert all(len(one.blocks) == -(-one.input_tokens // BLOCK_TOKENS) for one in rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no request"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,1\n", "GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2: TIMESTAMP 'yesterday'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,one,2\n", "line 2: ContextTokens 'one'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,-1,2\n", "line 2: ContextTokens '-1'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1\n", "line 2: GeneratedTokens None"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
    ],
)
def test_a_broken_azure_trace_names_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    """What cannot be replayed says where."""
    with pytest.raises(TraceError, match=message):
        read_trace(azure(tmp_path, text))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: neither an Azure CSV"),
        ("[1]", "line 2: a JSON object"),
        ('{"input_length": 1, "output_length": 1}', "line 2: timestamp None"),
        ('{"timestamp": true, "input_length": 1, "output_length": 1}', "line 2: timestamp True"),
        ('{"timestamp": 1, "output_length": 1}', "line 2: input_length None"),
        ('{"timestamp": 1, "input_length": 1.5, "output_length": 1}', "line 2: input_length 1.5"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": 3}', "line 2: hash_ids"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}', "line 2: hash_ids"),
    ],
)
def test_a_broken_mooncake_trace_names_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    """What cannot be replayed says where."""
    good = {"timestamp": 0, "input_length": 1, "output_length": 1}
    with pytest.raises(TraceError, match=message):
        read_trace(mooncake(tmp_path, good, line))


def test_a_missing_trace_and_a_binary_one_are_clear_errors(tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(TraceError, match=r"absent\.csv: No such file"):
        read_trace(tmp_path / "absent.csv")
    path = tmp_path / "noise.csv"
    path.write_bytes(b"a,\xff\xfe\n")
    with pytest.raises(TraceError, match="not UTF-8"):
        read_trace(path)


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
