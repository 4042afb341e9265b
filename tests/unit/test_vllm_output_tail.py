"""What an engine prints is passed on whole, and its last lines are kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.engines.vllm_output_tail import MAX_LINE_CHARACTERS, MAX_LINES, OutputTail


@pytest.fixture
def tail(capfd: pytest.CaptureFixture[str]) -> Iterator[OutputTail]:
    """Restored whatever happens; a test redirects by itself, for pytest changes the streams before its call."""
    tail = OutputTail()
    yield tail
    tail.restore()


def test_lines_of_process_and_children_are_kept_and_passed_on(
    tail: OutputTail, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both streams, without colours; in order, onward to where they went before."""
    tail.redirect()
    os.write(1, b"\x1b[31mfirst\x1b[0m\n")
    subprocess.run([sys.executable, "-c", "import sys; print('second', file=sys.stderr)"], check=True)
    os.write(2, b"third without an end")
    tail.restore()
    tail.join(5.0)
    assert ("first", "second", "third without an end") == tail.last_lines
    assert "\x1b[31mfirst\x1b[0m\nsecond\nthird without an end" in capfd.readouterr().err


def test_only_the_last_lines_are_kept(tail: OutputTail, capfd: pytest.CaptureFixture[str]) -> None:
    """Bounded in number and length; nothing of it is lost onward."""
    tail.redirect()
    for number in range(MAX_LINES + 20):
        os.write(1, b"line %d %s\n" % (number, b"x" * 2 * MAX_LINE_CHARACTERS))
    tail.restore()
    tail.join(5.0)
    assert MAX_LINES == len(tail.last_lines)
    assert tail.last_lines[-1].startswith(f"line {MAX_LINES + 19} ")
    assert MAX_LINE_CHARACTERS == max(map(len, tail.last_lines))
    assert MAX_LINES + 20 == capfd.readouterr().err.count("line ")


def test_a_child_prints_through_the_tail_after_the_start(tail: OutputTail, tmp_path: Path) -> None:
    """The parent's streams are its own again; the child's last words are still heard."""
    tail.redirect()
    go = tmp_path / "go"
    code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.005)\nprint('last words')"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        tail.restore()
        os.write(2, b"the parent speaks\n")
        go.touch()
        assert 0 == child.wait(10)
    tail.join(5.0)
    assert ("last words",) == tail.last_lines


def test_restoring_twice_does_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Also without having been redirected."""
    tail = OutputTail()
    tail.restore()
    tail.redirect()
    tail.restore()
    tail.restore()
    tail.join(5.0)
    assert () == tail.last_lines
