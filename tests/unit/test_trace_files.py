"""Traces as they are published: read whole, in order of time, and what cannot be read says where."""

import json
from pathlib import Path

import pytest

from scheduler.bench.workload import BLOCK_TOKENS
from scheduler.trace_files import TraceError, TraceRow, read_trace

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


@pytest.mark.parametrize("stamp", [-1, -0.5, "NaN", "Infinity"])
def test_a_time_before_the_start_is_none(tmp_path: Path, stamp: object) -> None:
    """Nor is one that never comes."""
    with pytest.raises(TraceError, match=r"line 1: timestamp .* is not 0 or later"):
        read_trace(mooncake(tmp_path, f'{{"timestamp": {stamp}, "input_length": 1, "output_length": 1}}'))


def test_a_trace_that_goes_back_in_time_is_refused_where_order_matters(tmp_path: Path) -> None:
    """Which request, by how much, and what to do."""
    path = azure(tmp_path)
    with pytest.raises(TraceError, match=r"request 3 arrives 2\.9951\d* s before the one above it; sort"):
        read_trace(path, must_be_in_order=True)
    in_order = azure(tmp_path, AZURE.replace("18:15:48", "18:15:52"))
    assert read_trace(in_order, must_be_in_order=True) == read_trace(in_order)
