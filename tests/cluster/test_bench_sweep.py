"""The operations guide's sweep, run as it stands there: two settings of a real service over a simulated engine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.jouleway_server import ADMIN_KEY, OPERATOR_KEY, serving, simulated_configuration
from benchmarks.servers import Server

ROOT = Path(__file__).resolve().parents[2]
SHORT = (("--duration-s 60", "--duration-s 6"), ("--warmup-s 10", "--warmup-s 1"), ("--rates 0.5,1,2,4", "--rates 4"))
"""What the guide recommends takes half an hour; here the shape is tested, not the figures."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """`jouleway serve` with one engine, its Ray in a short path; windows of a second, so that idle spans are short."""
    configuration = simulated_configuration(0.01)
    worker = configuration["workers"][0]  # type: ignore[index]
    folder = Path(tempfile.mkdtemp(prefix="jw", dir="/tmp"))
    try:
        with serving({**configuration, "workers": [{**worker, "window_s": 1}]}, folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command() -> str:
    """The sweep of docs/operations.md."""
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = guide.split("### An energy sweep", 1)[1].split("\n### ", 1)[0]
    (found,) = re.findall(r"^```bash\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return str(found)


def run(server: Server, folder: Path, *, rates: str = "4") -> subprocess.CompletedProcess[str]:
    words = command()
    changes = (
        *SHORT, ("--rates 4", f"--rates {rates}"), ("http://127.0.0.1:8000", server.url),
        ("http://127.0.0.1:8001", server.admin_url), (".venv/bin/jouleway", f"{sys.executable} -m scheduler.cli"),
        ("--repeats 3", "--repeats 1"), ("--idle-s 20", "--idle-s 5"), ("--cooldown-s 10", "--cooldown-s 0"),
    )  # fmt: skip
    for old, new in changes:
        assert old in words, old
        words = words.replace(old, new)
    keys = {"JOULEWAY_API_KEY": OPERATOR_KEY, "JOULEWAY_ADMIN_KEY": ADMIN_KEY, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-euc", words], cwd=folder, env={**os.environ, **keys}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def test_a_sweep_is_measured_drawn_and_gone_on_with(server: Server, tmp_path: Path) -> None:
    """Joules balance, idle watts are the device's, watts rise under load, and the second call measures only the new
    rate (7: on a busy machine a point may not be quoted)."""
    done = run(server, tmp_path)
    assert done.returncode in (0, 7), done.stderr
    first = json.loads((tmp_path / "sweep.json").read_text())
    assert (2, True) == (len(first["points"]), first["complete"])
    for point in first["points"]:
        check(point)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "grade D (modelled or simulated, no device was read)" in " ".join(done.stdout.split())
    assert "[1/2]" in done.stderr
    again = run(server, tmp_path, rates="4,8")
    assert again.returncode in (0, 7), again.stderr
    second = json.loads((tmp_path / "sweep.json").read_text())
    assert first["points"] == second["points"][:2]
    assert [4.0, 4.0, 8.0, 8.0] == [point["conditions"]["rate_rps"] for point in second["points"]]
    assert 2 == again.stderr.count("repeat 1")


def check(point: dict[str, Any]) -> None:
    energy = point["report"]["energy"]
    accounts = ("requests", "idle", "overhead", "unattributed", "in_flight")
    assert energy["meter_joules"] == pytest.approx(sum(energy[f"{name}_joules"] for name in accounts), abs=1e-3)
    assert 0 == pytest.approx(energy["difference_joules"], abs=1e-3)
    before, steady, after = (point[name]["watts"] for name in ("idle_before", "steady", "idle_after"))
    assert before == pytest.approx(after, rel=0.25)
    assert steady > 1.2 * max(before, after)
    assert {"D"} == {point[name]["grade"] for name in ("idle_before", "steady", "idle_after")}
    assert point["good_tokens_per_s"] / steady == pytest.approx(point["good_tokens_per_joule"])
    assert 0 == point["report"]["requests"]["failed"]
