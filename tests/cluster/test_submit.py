"""The commands against a real control plane: a file of jobs that is killed and gone on with, explain, top."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.commands.control_plane import ADMIN_KEY_VARIABLE, KEY_VARIABLE
from scheduler.commands.exits import ExitCode
from tests.cluster.plane import MODEL
from tests.cluster.standing import ADMIN_KEY, KEYS, ROOT, Place, ServedPlane, place

OUTPUT_TOKENS = 30
POOR_KEY = "jw-test-key-of-poor-01234567890123"


class Shell:
    """Runs our commands against one control plane, as a tenant or as the operator."""

    def __init__(self, at: Place, plane: ServedPlane) -> None:
        self.at = at
        self.plane = plane

    def begin(self, *arguments: str, tenant: str | None = "alpha") -> subprocess.Popen[str]:
        keys = {ADMIN_KEY_VARIABLE: ADMIN_KEY} if tenant is None else {KEY_VARIABLE: {**KEYS, "poor": POOR_KEY}[tenant]}
        return subprocess.Popen(
            [sys.executable, "-m", "scheduler.cli", *arguments],
            cwd=ROOT,
            env={**self.at.environment, **keys},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, tenant: str | None = "alpha", code: ExitCode = ExitCode.OK) -> str:
        """Its standard output."""
        process = self.begin(*arguments, tenant=tenant)
        out, err = process.communicate(timeout=60.0)
        assert code == process.returncode, err
        return out

    def submit(self, source: Path, *options: str, code: ExitCode = ExitCode.OK) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(
            self.run("submit", str(source), "--url", self.plane.url, "--json", *options, code=code)
        )
        return said

    def top(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(
            self.run("top", "--once", "--json", "--url", self.plane.admin_url, tenant=None)
        )
        return said


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with place() as at:
        worker = {
            "name": "sim", "count": 2, "calibration_s": 0, "window_s": 0.5, "engine_args": {"fixed_step_s": 0.01},
            "meter": {"kind": "simulated"},
        }  # fmt: skip
        digest = hashlib.sha256(POOR_KEY.encode()).hexdigest()
        # Made twice: a tenant with a small budget beside those that every test has.
        tenants = json.loads(at.configuration([worker]).read_text())["tenants"]
        budgets = [{"output_tokens": 5 * OUTPUT_TOKENS, "per": "total"}]
        poor = {"name": "poor", "keys": [f"sha256:{digest}"], "budgets": budgets}
        plane = at.serve(at.configuration([worker], tenants=[*tenants, poor]))
        yield Shell(at, plane)
        assert ExitCode.OK == plane.stop(), plane.log.read_text()[-4_000:]


def jobs_file(folder: Path, num_jobs: int) -> Path:
    path = folder / "jobs.jsonl"
    with path.open("w") as file:
        for number in range(num_jobs):
            body = {"model": MODEL, "prompt": f"Job {number}.", "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}
            line = {"custom_id": f"job-{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_jobs_is_answered_with_what_it_took(shell: Shell, tmp_path: Path) -> None:
    """Every line, tokens to the token, joules of a simulated meter."""
    said = shell.submit(jobs_file(tmp_path, 40))
    assert (40, 0, 0) == (said["finished"], said["failed"], said["left"])
    assert 40 * OUTPUT_TOKENS == said["totals"]["output_tokens"]
    assert said["totals"]["energy_joules"] > 0
    assert ("D", 0) == (said["totals"]["energy_grade"], said["totals"]["answers_without_joules"])
    lines = lines_of(tmp_path / "jobs.output.jsonl")
    assert {f"job-{number}" for number in range(40)} == {line["custom_id"] for line in lines}
    assert all(line["response"]["status_code"] == 200 and line["response"]["request_id"] for line in lines)


def test_a_killed_run_is_gone_on_with_and_no_line_completes_twice(shell: Shell, tmp_path: Path) -> None:
    """What the engines completed is what the files hold: an answer, or the word that it was lost."""
    source = jobs_file(tmp_path, 120)
    before = shell.top()["totals"]["finished_by_outcome"]["completed"]
    for num_lines in (20, 60):
        process = shell.begin("submit", str(source), "--url", shell.plane.url, "--concurrency", "8")
        output = tmp_path / "jobs.output.jsonl"
        until_s = time.monotonic() + 60.0
        while not output.exists() or len(output.read_bytes().splitlines()) < num_lines:
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=20.0)
    process = shell.begin("submit", str(source), "--url", shell.plane.url, "--json")
    said = json.loads(process.communicate(timeout=120.0)[0])
    assert 120 == said["finished"] + said["answers_lost"]
    assert (ExitCode.FAILURE if said["answers_lost"] else ExitCode.OK) == process.returncode
    done = [line["custom_id"] for line in lines_of(tmp_path / "jobs.output.jsonl")]
    lost = [line["custom_id"] for line in lines_of(tmp_path / "jobs.errors.jsonl")]
    assert sorted(f"job-{number}" for number in range(120)) == sorted(done + lost)
    assert 120 == shell.top()["totals"]["finished_by_outcome"]["completed"] - before


def test_ctrl_c_ends_what_runs_and_leaves_the_rest(shell: Shell, tmp_path: Path) -> None:
    """Exit code 130, whole lines, and the same command goes on."""
    source = jobs_file(tmp_path, 200)
    process = shell.begin("submit", str(source), "--url", shell.plane.url, "--concurrency", "4", "--json")
    output = tmp_path / "jobs.output.jsonl"
    while not output.exists() or not output.stat().st_size:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = json.loads(process.communicate(timeout=30.0)[0])
    assert (ExitCode.INTERRUPTED, "interrupted") == (process.returncode, said["stopped_by"])
    assert (0, said["finished"]) == (said["failed"], len(lines_of(output)))
    assert 0 < said["left"] < 200
    assert 200 == shell.submit(source)["finished"]


def test_a_used_up_budget_ends_the_run(shell: Shell, tmp_path: Path) -> None:
    """To the token: five answers, exit code 5, the rest is left; explain and top show the budget."""
    source = jobs_file(tmp_path, 20)
    out = shell.run("submit", str(source), "--url", shell.plane.url, "--json", tenant="poor", code=ExitCode.BUDGET)
    said = json.loads(out)
    assert (5 * OUTPUT_TOKENS, "insufficient_quota") == (said["totals"]["output_tokens"], said["stopped_by"])
    assert 20 == said["finished"] + said["failed"] + said["left"]
    last = lines_of(tmp_path / "jobs.errors.jsonl")[-1]["response"]
    assert (429, "insufficient_quota") == (last["status_code"], last["body"]["error"]["code"])
    (budget,) = [each for each in shell.top()["budgets"] if each["level"] == "tenant poor"]
    assert ("output_tokens", 0, 1.0) == (budget["measure"], budget["left"], budget["full_ratio"])
    request_id = lines_of(tmp_path / "jobs.output.jsonl")[0]["response"]["request_id"]
    story = json.loads(shell.run("explain", request_id, "--url", shell.plane.url, "--json", tenant="poor"))
    (held,) = story["budgets"]
    assert (5 * OUTPUT_TOKENS, OUTPUT_TOKENS) == (held["limit"], held["settled"])


def test_explain_walks_a_line_of_the_output(shell: Shell, tmp_path: Path) -> None:
    """Its request id is in the file; each score is the sum of its terms; another tenant does not see it."""
    shell.submit(jobs_file(tmp_path, 1))
    (line,) = lines_of(tmp_path / "jobs.output.jsonl")
    request_id = line["response"]["request_id"]
    story = json.loads(shell.run("explain", request_id, "--url", shell.plane.url, "--json"))
    assert ("alpha", "flex", "finished", "completed") == (
        story["tenant"], story["band"], story["state"], story["outcome"]
    )  # fmt: skip
    (attempt,) = story["attempts"]
    assert OUTPUT_TOKENS == attempt["tokens"]["output"]
    scored = [worker for worker in attempt["decision"]["workers"] if worker["score"] is not None]
    assert scored
    assert all(sum(worker["terms"].values()) == worker["score"] for worker in scored)
    assert attempt["worker_id"] == min(scored, key=lambda worker: (worker["score"], worker["worker_id"]))["worker_id"]
    text = shell.run("explain", request_id, "--url", shell.plane.admin_url, tenant=None)
    assert request_id in text
    shell.run("explain", request_id, "--url", shell.plane.url, tenant="beta", code=ExitCode.NOT_FOUND)


def test_what_if_runs_nothing(shell: Shell, tmp_path: Path) -> None:
    """It says where a request would go, and none is counted."""
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Where?"}]}))
    before = shell.top()["totals"]
    story = json.loads(shell.run("explain", "--what-if", str(body), "--url", shell.plane.url, "--json"))
    assert ("what_if", "started", None) == (story["state"], story["verdict"], story["rejection"])
    assert {"sim-0", "sim-1"} == {worker["worker_id"] for worker in story["decision"]["workers"]}
    assert before["submitted"] == shell.top()["totals"]["submitted"]
    body.write_text(body.read_text().replace(f'"{MODEL}"', '"none"'))
    shell.run("explain", "--what-if", str(body), "--url", shell.plane.url, code=ExitCode.NOT_FOUND)


def test_top_shows_the_workers(shell: Shell) -> None:
    """Ready ones, with watts and a zone."""
    said, until_s = shell.top(), time.monotonic() + 30.0
    while said["totals"]["power_watts"] is None:
        assert time.monotonic() < until_s, "no meter was read"
        said = shell.top()
    assert ["sim-0", "sim-1"] == [worker["worker_id"] for worker in said["workers"]]
    for worker in said["workers"]:
        assert worker["is_ready"]
        assert worker["kv_tokens"] > 0
    assert ["priority", "default", "flex"] == [band["band"] for band in said["queue"]]
    text = shell.run("top", "--once", "--url", shell.plane.admin_url, tenant=None)
    assert "sim-0" in text
