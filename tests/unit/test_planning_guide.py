"""The planning guide's example runs as it is printed, and what others do there is what the guide shows."""

import re
import shlex
from pathlib import Path

import pytest

from scheduler import cli
from scheduler.simulation.policies import POLICIES
from scheduler.workloads import WORKLOADS

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert found is not None, language
    return found[1]


def test_the_example_yields_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit is looked for; every line but our own is the guide's, to the last digit."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(block("bash").replace("\\\n", " "))
    assert "jouleway" == program
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert 0 == ended.value.code
    seen = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    for line in block("text").splitlines():
        assert line in seen
    assert any(line.startswith("jouleway ") for line in seen)
    assert {"out.json", "out.png"} <= {path.name for path in tmp_path.iterdir()}
    assert 1 == len(list((tmp_path / "cache" / "jouleway" / "round-robin-limits").iterdir()))


@pytest.mark.parametrize("name", [*POLICIES, "autoscale-X", "oracle", *WORKLOADS])
def test_every_policy_and_workload_is_explained(name: str) -> None:
    assert f"`{name}`" in GUIDE
