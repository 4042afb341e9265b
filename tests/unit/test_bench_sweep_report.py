"""The document: read back as written, its keys, and which file may be gone on with."""

import json
from pathlib import Path

import msgspec
import pytest

from scheduler.bench.client import Target
from scheduler.bench.session import EnergySource
from scheduler.bench.sweep import document_of
from scheduler.bench.sweep_plan import Sweep
from scheduler.bench.sweep_report import Document, ResumeError, measured_before, options_of, text_of, write
from scheduler.bench.workload import Lengths
from tests.sweep_words import measured, sweep_of, variant, void

SWEEP = sweep_of(variant("a"), variant("b"), repeats=2)
POINTS = (measured(SWEEP, "a", 1.0), void(measured(SWEEP, "b", 2.0, 1), "drift"))


def test_a_document_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Every point, every figure."""
    path = tmp_path / "s.json"
    document = document_of(SWEEP, POINTS)
    write(document, path)
    assert document == msgspec.json.decode(path.read_bytes(), type=Document)
    assert POINTS == measured_before(path, SWEEP)
    assert [path] == list(tmp_path.iterdir())


def test_the_keys_are_the_documented_ones() -> None:
    """Those that docs/operations.md names; somebody's script reads them."""
    guide = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    section = guide.split("### An energy sweep", 1)[1].split("\n### ", 1)[0]
    document = json.loads(text_of(document_of(SWEEP, POINTS)))
    assert "jouleway-sweep/1" == document["schema"]
    assert (False, 12) == (document["complete"], document["num_planned"])
    parts = (
        document, document["options"], document["points"][0], document["points"][0]["steady"], document["curves"][0],
        document["curves"][0]["rows"][0], document["curves"][0]["knee"], document["comparisons"][0],
        document["comparisons"][0]["ratios"][0],
    )  # fmt: skip
    assert [] == [key for part in parts for key in part if f"`{key}`" not in section]


def test_a_point_knows_what_it_is() -> None:
    """Overload has no steady state and stays usable; what measured the client does not."""
    point, overloaded = POINTS
    assert ("a", 1.0, 0, True, True) == (
        point.setting, point.rate_rps, point.repeat, point.steady_state, point.usable
    )  # fmt: skip
    assert (False, True) == (overloaded.steady_state, overloaded.usable)
    bound = void(point, "client_bound")
    assert (True, False) == (bound.steady_state, bound.usable)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ((), True),
        (("drift",), True),
        (("drift", "too_short_for_requests"), True),
        (("too_short_for_requests",), False),
        (("drift", "client_bound"), False),
        (("too_few_requests",), False),
    ],
)
def test_overload_alone_is_no_reason_to_leave_a_point_out(reasons: tuple[str, ...], expected: bool) -> None:
    """Requests as long as the run are overload only where the queue grew too."""
    assert expected is measured(SWEEP, reasons=reasons).usable


def test_no_key_is_in_the_document() -> None:
    """Neither the server's nor the admin listener's."""
    secret = variant(
        target=Target(base_url="http://one", api_key="sk-secret"),
        source=EnergySource(metrics_url="http://m", admin_key="ak-secret"),
    )
    sweep = sweep_of(secret)
    text = text_of(document_of(sweep, [measured(sweep)]))
    assert "secret" not in text
    assert "secret" not in str(options_of(sweep))


# -- going on


def test_no_file_is_a_beginning(tmp_path: Path) -> None:
    """And so is the file of a sweep of which nothing was measured."""
    assert () == measured_before(tmp_path / "absent.json", SWEEP)
    write(document_of(SWEEP, ()), tmp_path / "s.json")
    assert () == measured_before(tmp_path / "s.json", SWEEP)


@pytest.mark.parametrize(
    "grown",
    [
        sweep_of(variant("a"), variant("b"), repeats=5),
        sweep_of(variant("a"), variant("b"), rates=(0.5, 1.0, 2.0, 4.0, 8.0), repeats=2),
        sweep_of(variant("a"), variant("b"), variant("c"), repeats=2),
        sweep_of(variant("a"), variant("b"), repeats=2, order="ascending"),
    ],
    ids=["repeats", "rates", "a setting", "another order"],
)
def test_a_sweep_may_grow(tmp_path: Path, grown: Sweep) -> None:
    """What is measured stays measured."""
    write(document_of(SWEEP, POINTS), tmp_path / "s.json")
    assert POINTS == measured_before(tmp_path / "s.json", grown)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (sweep_of(variant("a"), variant("b"), repeats=2, duration_s=30.0), r"duration_s 60\.0 \(now 30\.0\)"),
        (sweep_of(variant("a"), variant("b"), repeats=2, seed=7), r"seed 0 \(now 7\)"),
        (
            sweep_of(variant("a"), variant("b"), rates=(2.0, 4.0), repeats=2),
            "a at 1/s, repeat 1, which this sweep does",
        ),
        (sweep_of(variant("a"), rates=(1.0, 2.0), repeats=2), "b at 2/s, repeat 2, which this sweep does not ask for"),
        (
            sweep_of(variant("a", lengths=Lengths(input_tokens=9, output_tokens=4)), variant("b"), repeats=2),
            r"input_tokens 20 \(now 9\)",
        ),
        (sweep_of(variant("a", url="http://two"), variant("b"), repeats=2), r"base_url http://one \(now http://two\)"),
    ],
)
def test_another_sweeps_file_is_refused_with_the_difference(tmp_path: Path, other: Sweep, message: str) -> None:
    """And not touched: a night of measuring may be in it."""
    path = tmp_path / "s.json"
    write(document_of(SWEEP, POINTS), path)
    kept = path.read_bytes()
    with pytest.raises(ResumeError, match=message) as refused:
        measured_before(path, other)
    assert str(path) in str(refused.value)
    assert kept == path.read_bytes()


@pytest.mark.parametrize(
    "text", ["", "[]", "not json", '{"schema": "jouleway-bench/1"}', '{"schema": "jouleway-sweep/1", "points": 3}']
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, text: str) -> None:
    """Somebody's other file is not overwritten."""
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(ResumeError, match="no sweep that can be gone on with"):
        measured_before(path, SWEEP)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    """A later version's keys may mean something else."""
    path = tmp_path / "s.json"
    path.write_text(text_of(document_of(SWEEP, POINTS)).replace("jouleway-sweep/1", "jouleway-sweep/2"))
    with pytest.raises(ResumeError, match="jouleway-sweep/2 document, not jouleway-sweep/1"):
        measured_before(path, SWEEP)
