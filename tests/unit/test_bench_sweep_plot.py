"""The picture of a sweep: drawn for whatever was measured, however little."""

from pathlib import Path

import pytest

from scheduler.bench import sweep_plot
from scheduler.bench.client import TargetError
from scheduler.bench.sweep import document_of
from scheduler.bench.sweep_plan import Sweep
from scheduler.bench.sweep_plot import MAX_CURVES, draw_sweep
from scheduler.bench.sweep_report import Measured
from tests.sweep_words import measured, sweep_of, variant, void

BOTH = sweep_of(variant("a"), variant("b"), repeats=2)
MANY = sweep_of(*(variant(name) for name in "abcdefgh"), rates=(1.0,))


def full(sweep: Sweep) -> list[Measured]:
    return [
        measured(
            sweep, point.variant.name, point.rate_rps, point.repeat,
            per_joule=5 - 4 / point.rate_rps - point.repeat / 9,
            steady=60 + 10 * point.rate_rps + point.repeat,
        )
        for point in sweep.points()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sweep", "points"),
    [
        (BOTH, full(BOTH)),
        (BOTH, full(BOTH)[:3]),
        (BOTH, []),
        (BOTH, [void(point) for point in full(BOTH)]),
        (BOTH, [measured(BOTH, "a", rate, per_joule=None, steady=None, idle=(None, None)) for rate in (1.0, 2.0)]),
        (MANY, full(MANY)),
    ],
    ids=["full", "cut", "empty", "void", "no meter", "many"],
)
def test_a_picture_is_drawn(tmp_path: Path, sweep: Sweep, points: list[Measured]) -> None:
    """A PNG of one size."""
    path = tmp_path / "s.png"
    draw_sweep(document_of(sweep, points), path)
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert (1320, 836) == (int.from_bytes(head[16:20]), int.from_bytes(head[20:24]))


def test_the_title_says_how_much_there_is_and_what_the_watts_are() -> None:
    """Modelled watts are named so in the picture too: pictures travel alone."""
    title = sweep_plot._title(document_of(BOTH, full(BOTH)))
    assert "a, b\n12 of 12 points · watts of grade D (modelled or simulated) · bars: 95 % over repeats" == title
    assert "3 of 12 points · INCOMPLETE" in sweep_plot._title(document_of(BOTH, full(BOTH)[:3]))
    bare = [measured(BOTH, "a", steady=None)]
    assert "no meter: no watts" in sweep_plot._title(document_of(BOTH, bare))
    assert f"and {8 - MAX_CURVES} more, not drawn" in sweep_plot._title(document_of(MANY, full(MANY)))
    assert "one repeat: no interval" in sweep_plot._title(document_of(MANY, full(MANY)))


def test_a_path_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """The command shows the figures all the same."""
    with pytest.raises(OSError):
        draw_sweep(document_of(BOTH, full(BOTH)), tmp_path / "absent" / "s.png")


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is an extra."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(TargetError, match=r"pip install 'jouleway\[bench\]'"):
        draw_sweep(document_of(BOTH, full(BOTH)), tmp_path / "s.png")
