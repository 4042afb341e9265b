"""Results are written with what is needed to judge them, and without a trace of this machine's folders."""

import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from benchmarks.record import ROOT, main, portable, record
from benchmarks.sampling import summary
from benchmarks.servers import ServerError, command_name, free_port, own_cpu_s, running, stop, tree

SCRATCH = f"{os.sep}tmp"


def test_a_result_says_how_where_and_with_what(tmp_path: Path) -> None:
    """Machine, versions, date and command stand beside the figures."""
    path = record("trial", {"tokens_per_s": 12.5}, what="a trial", command="make trial", folder=tmp_path)
    found = json.loads(path.read_text())
    assert path.name == "trial.json"
    assert (found["what"], found["command"], found["values"]) == ("a trial", "make trial", {"tokens_per_s": 12.5})
    assert found["machine"]["cpu_model"]
    assert found["machine"]["num_cores"] == len(os.sched_getaffinity(0))
    assert found["machine"]["memory_gib"] > 0
    assert found["versions"]["python"].startswith("3.")
    assert found["versions"]["numpy"]
    assert found["date_utc"].endswith("+00:00")
    assert list(tmp_path.iterdir()) == [path]


def test_versions_of_others_are_added(tmp_path: Path) -> None:
    """A peer's version is given by whoever installed it."""
    path = record("trial", {}, versions={"litellm": "1.106.3"}, folder=tmp_path)
    assert json.loads(path.read_text())["versions"]["litellm"] == "1.106.3"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_a_name_that_is_no_file_name_is_refused(name: str, tmp_path: Path) -> None:
    """A result lands in the results folder and nowhere else."""
    with pytest.raises(ValueError, match="plain file name"):
        record(name, {}, folder=tmp_path)


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """NaN is a failed measurement, not a result; the last good one stays."""
    path = record("trial", {"x": 1}, folder=tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        record("trial", {"x": math.nan}, folder=tmp_path)
    assert json.loads(path.read_text())["values"] == {"x": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ROOT}/.venv/bin/python {ROOT}/benchmarks/x.py", ".venv/bin/python benchmarks/x.py"),
        (f"cd {ROOT}", "cd ."),
        (f"python {SCRATCH}/a-b/c/d.py --out {SCRATCH}/e", "python d.py --out e"),
        (f"--model {Path.home()}/models/tiny --port 80", "--model ~/models/tiny --port 80"),
        ("GET /v1/models and /health", "GET /v1/models and /health"),
    ],
)
def test_machine_paths_are_stripped(text: str, expected: str) -> None:
    """A result can be read, and its command run, anywhere."""
    assert portable(text) == expected


def test_no_machine_path_reaches_a_file(tmp_path: Path) -> None:
    """Values are stripped like the command."""
    path = record("trial", {"log": f"{tmp_path}/deep/run.log"}, command=f"x {ROOT}/y", folder=tmp_path)
    text = path.read_text()
    assert str(ROOT) not in text
    assert json.loads(text)["values"]["log"] == "run.log"


def test_figures_of_another_program_are_read_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell pipeline records like a Python one."""
    import io

    written: list[dict[str, object]] = []

    def keep(name: str, values: dict[str, object], **others: object) -> Path:
        written.append({"name": name, "values": values, **others})
        return ROOT / "benchmarks" / "results" / f"{name}.json"

    monkeypatch.setattr("benchmarks.record.record", keep)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": 1}'))
    assert main(["piped", "--command", "make piped", "--what", "w"]) == 0
    assert written == [{"name": "piped", "values": {"a": 1}, "command": "make piped", "what": "w"}]
    assert capsys.readouterr().out == "benchmarks/results/piped.json\n"


def test_every_result_in_the_tree_is_whole() -> None:
    """Each recorded figure says what, how, when, on what and with which versions, and names no folder of a machine."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        found = json.loads(path.read_text())
        missing = {"name", "what", "command", "date_utc", "machine", "versions", "values"} - set(found)
        assert not missing, f"{path.name} lacks {missing}"
        assert found["name"] == path.stem
        for folder in ("tmp", "root", "home", "work"):
            assert f"/{folder}/" not in path.read_text(), f"{path.name} names a folder under {folder}"


# -- profiles


def test_a_profile_sums_own_time_and_time_with_callees() -> None:
    """Two stacks, three samples to one: shares per function, recursion counted once."""
    stacks = "main (a.py:1);send (x/y/b.py:7) 3\nmain (a.py:1);main (a.py:2);read (c.py:9) 1\nnoise\n"
    found = summary(stacks)
    assert found["samples"] == 4
    assert found["own_ratio"] == {"send (y/b.py)": 0.75, "read (c.py)": 0.25}
    assert found["with_callees_ratio"] == {"main (a.py)": 1.0, "send (y/b.py)": 0.75, "read (c.py)": 0.25}


def test_an_empty_profile_has_no_shares() -> None:
    """Nothing sampled is not a division by zero."""
    assert summary("") == {"samples": 0, "own_ratio": {}, "with_callees_ratio": {}}


# -- servers


def test_a_server_is_waited_for_and_ended(tmp_path: Path) -> None:
    """It answers inside the block and is gone after it."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    url = f"http://127.0.0.1:{port}"
    with running("files", command, url=url, ready_path="/", log=tmp_path / "log") as server:
        assert urllib.request.urlopen(url, timeout=5).status == 200
        assert server.process.pid in tree(server.process.pid)
        assert server.cpu_s() > 0
        assert "http.server" in command_name(server.process.pid)
    assert server.process.poll() is not None
    assert tree(server.process.pid) == []
    assert own_cpu_s(server.process.pid) == 0.0
    assert command_name(server.process.pid) == ""


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    """The last lines say why."""
    command = [sys.executable, "-c", "raise SystemExit('no model here')"]
    with (
        pytest.raises(ServerError, match="no model here"),
        running("broken", command, url="http://127.0.0.1:1", ready_path="/", log=tmp_path / "log"),
    ):
        pass


def test_children_are_ended_with_their_parent() -> None:
    """An engine process does not outlive its server, even when the parent ignores the signal."""
    child = "import time; time.sleep(60)"
    parent = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    while len(family := tree(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    stop(process, patience_s=0.05)
    deadline_s = time.monotonic() + 5
    while any(state(pid) not in ("", "Z") for pid in family) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert [state(pid) for pid in family if state(pid) not in ("", "Z")] == []


def state(pid: int) -> str:
    """One letter of /proc, empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
