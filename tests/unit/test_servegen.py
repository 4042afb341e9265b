"""ServeGen's clients: rates and shapes by window, lengths by their tables, and files that are none."""

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from scheduler.servegen import read_servegen
from scheduler.trace_files import TraceError, TraceRow

TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"


def client(
    windows: list[tuple[float, float]], *, pattern: str = "Gamma", shape: float = 1.0, prompt: int = 10, answer: int = 5
) -> dict[str, object]:
    return {
        "arrivals": [[start_s, rate_per_s, 1.0, pattern, shape, 0.1] for start_s, rate_per_s in windows],
        "lengths": [
            {
                "window_start_s": start_s, "input_tokens_q": [prompt * factor, prompt * factor + 2],
                "output_tokens_q": [0, 2 * answer],
            }
            for start_s, factor in ((0, 1), (21_600, 10))
        ],
    }  # fmt: skip


def written(folder: Path, *clients: dict[str, object], **changes: object) -> Path:
    path = folder / "clients.json"
    path.write_text(json.dumps({"arrival_window_s": 600, "clients": clients, **changes}))
    return path


def test_rates_are_scaled_together(tmp_path: Path) -> None:
    """Three asks of four are the second client's, and all of the second window's double."""
    path = written(
        tmp_path, client([(0, 100.0), (600, 200.0)], prompt=10), client([(0, 300.0), (600, 600.0)], prompt=1_000)
    )
    rows = read_servegen(path, rate_per_s=6.0, seed=1, begin_s=0.0, seconds=1_200.0)
    assert 7_200 == pytest.approx(len(rows), rel=0.05)
    assert 3.0 == pytest.approx(
        sum(row.input_tokens > 500 for row in rows) / sum(row.input_tokens < 500 for row in rows), rel=0.15
    )
    assert 2.0 == pytest.approx(
        sum(row.arrival_s >= 600 for row in rows) / sum(row.arrival_s < 600 for row in rows), rel=0.1
    )


def test_rows_are_in_order_within_their_slice(tmp_path: Path) -> None:
    """Windows outside it have no row; times count from its beginning."""
    path = written(tmp_path, client([(0, 5.0), (600, 5.0), (1_200, 5.0)]))
    rows = read_servegen(path, rate_per_s=2.0, seed=1, begin_s=300.0, seconds=600.0)
    assert sorted(rows, key=lambda row: row.arrival_s) == rows
    assert 0.0 <= rows[0].arrival_s
    assert rows[-1].arrival_s < 600.0
    assert 1_200 == pytest.approx(len(rows), rel=0.15)


def test_lengths_are_those_of_the_hour(tmp_path: Path) -> None:
    """From the last table that begins by then; a length of nothing is one token."""
    path = written(tmp_path, client([(0, 5.0), (21_600, 5.0)]))
    early = read_servegen(path, rate_per_s=5.0, seed=1, begin_s=0.0, seconds=600.0)
    late = read_servegen(path, rate_per_s=5.0, seed=1, begin_s=21_600.0, seconds=600.0)
    assert {10, 11, 12} == {row.input_tokens for row in early}
    assert {100, 101, 102} == {row.input_tokens for row in late}
    assert 1 == min(row.output_tokens for row in early)
    assert 5.0 == pytest.approx(statistics.fmean(row.output_tokens for row in early), rel=0.1)


def variation(rows: list[TraceRow]) -> float:
    gaps = [later.arrival_s - earlier.arrival_s for earlier, later in pairwise(rows)]
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


@pytest.mark.parametrize(
    ("pattern", "shape", "cv"), [("Gamma", 1.0, 1.0), ("Gamma", 0.25, 2.0), ("Weibull", 0.5, 2.236)]
)
def test_gaps_keep_their_shape(tmp_path: Path, pattern: str, shape: float, cv: float) -> None:
    """Whatever the rate is scaled to."""
    path = written(tmp_path, client([(0, 100.0)], pattern=pattern, shape=shape))
    rows = read_servegen(path, rate_per_s=20.0, seed=3, begin_s=0.0, seconds=600.0)
    assert cv == pytest.approx(variation(rows), rel=0.1)
    assert 12_000 == pytest.approx(len(rows), rel=0.1)


def test_one_seed_is_one_trace(tmp_path: Path) -> None:
    path = written(tmp_path, client([(0, 5.0)]))
    one, same, other = (
        read_servegen(path, rate_per_s=1.0, seed=seed, begin_s=0.0, seconds=600.0) for seed in (1, 1, 2)
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clients": 3}, "no ServeGen file"),
        ({"arrival_window_s": "x"}, "no ServeGen file"),
        ({"clients": []}, "nobody asks anything from 0 s on"),
        ({"clients": [client([(0, 0.0)])]}, "nobody asks anything"),
        ({"clients": [client([(0, 1.0)], pattern="Pareto")]}, "arrival pattern 'Pareto'"),
        ({"clients": [{"arrivals": [[0, 1.0, 1.0, "Gamma", 1.0, 1.0]]}]}, r"no ServeGen file \(KeyError: 'lengths'\)"),
    ],
)
def test_a_file_that_is_none_says_so(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        read_servegen(written(tmp_path, **changes), rate_per_s=1.0, seed=1, begin_s=0.0, seconds=600.0)


def test_a_missing_file_and_too_low_a_rate_are_said(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"absent\.json: No such file"):
        read_servegen(tmp_path / "absent.json", rate_per_s=1.0, seed=1)
    with pytest.raises(TraceError, match=r"at 1e-09 requests/s nobody asked anything"):
        read_servegen(written(tmp_path, client([(0, 5.0)])), rate_per_s=1e-9, seed=1, begin_s=0.0, seconds=600.0)


@pytest.mark.parametrize("name", ["m-small_day2", "m-large_day2", "deepseek-r1_day0"])
def test_the_published_files_are_read(name: str) -> None:
    """At the rate that was asked for, within what their bursts make of it."""
    path = TRACES / f"servegen_{name}_dev.json"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    rows = read_servegen(path, rate_per_s=6.0, seed=1)
    assert 6.0 * 2_700 == pytest.approx(len(rows), rel=0.15)
