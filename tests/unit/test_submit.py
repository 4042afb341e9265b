"""`jouleway submit` as a shell sees it: exit codes, what is written and said, and that it goes on."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scheduler.commands import submit
from scheduler.commands.control_plane import KEY_VARIABLE
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.submit import Wishes, exit_code
from scheduler.commands.submit_run import State, Stop
from tests.canned_http import Asked, Told, serving

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a text that nobody may read"
NOTE = {"energy_joules": 2.5, "gpu_seconds": 0.5, "grade": "D", "cost_nano": 1_000_000, "currency": "EUR"}


class Server:
    """Answers each line with its own words; ``turn`` may answer something else, or wait."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.models: object = {"data": [{"id": "m"}]}
        self.models_status = 200
        self.turn: Callable[[str], Told | None] = lambda _: None
        self.ran: set[str] = set()
        """Idempotency keys of lines that were answered, heard or not."""
        self.hold_from: int | None = None
        """Lines from this one on wait for their answer."""
        self.num_held = 0
        self.unheard: set[str] = set()
        """Lines after whose first answer the connection breaks."""

    async def __call__(self, asked: Asked) -> Told | None:
        if asked.path == "/v1/models":
            return Told(status=self.models_status, body=self.models)
        name = json.loads(asked.body)["prompt"]
        self.asked[name] += 1
        self.num_held += 1
        try:
            while self.hold_from is not None and int(name) >= self.hold_from:
                await asyncio.sleep(0.005)
        finally:
            self.num_held -= 1
        other = self.turn(name)
        if other is not None:
            return other
        key = asked.headers["idempotency-key"]
        usage = {"prompt_tokens": 10, "completion_tokens": 20}
        if key in self.ran:
            return Told(body={"usage": usage}, headers={"x-jouleway-replayed": "1"})
        self.ran.add(key)
        if name in self.unheard:
            return None
        return Told(body={"text": SECRET, "name": name, "usage": usage, "jouleway": NOTE})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(KEY_VARIABLE, "the-key")
    with serving(server) as url:
        yield url


def jobs_file(folder: Path, num_jobs: int = 6) -> Path:
    path = folder / "jobs.jsonl"
    line = '{"custom_id": "%d", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "%d"}}\n'
    path.write_text("".join(line % (number, number) for number in range(num_jobs)))
    return path


def wishes(source: Path, url: str, **options: Any) -> Wishes:
    fields = {"concurrency": 2, "service_tier": "flex", "timeout_s": 10.0, **options}
    return Wishes(source=source, url=url, **fields)


def ids(path: Path) -> list[str]:
    return sorted(json.loads(line)["custom_id"] for line in path.read_text().splitlines())


def test_every_line_gets_its_answer_and_the_sum_is_said(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data on standard output, talk on standard error, no text of an answer in either."""
    assert ExitCode.OK == submit.run(wishes(jobs_file(tmp_path), url), as_json=True)
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert {
        "lines": 6, "finished": 6, "finished_by_this_run": 6, "failed": 0, "answers_lost": 0, "left": 0,
        "stopped_by": None, "models": {"m": 6}, "output": str(tmp_path / "jobs.output.jsonl"),
    }.items() <= said.items()  # fmt: skip
    assert {
        "input_tokens": 60, "output_tokens": 120, "energy_joules": 15.0, "gpu_seconds": 3.0, "energy_grade": "D",
        "cost_nano": 6_000_000, "currency": "EUR", "answers_without_joules": 0,
    }.items() <= said["totals"].items()  # fmt: skip
    assert "60 + 120 tokens · 15.0 J (grade D, provisional) · 0.006000 EUR" in captured.err
    assert SECRET not in captured.out + captured.err
    lines = [json.loads(line) for line in (tmp_path / "jobs.output.jsonl").read_text().splitlines()]
    assert all(line["custom_id"] == line["response"]["body"]["name"] for line in lines)


def test_a_second_run_asks_nothing(url: str, server: Server, tmp_path: Path) -> None:
    """Not even whether the server is there."""
    wanted = wishes(jobs_file(tmp_path), url)
    submit.run(wanted, as_json=False)
    server.models_status = 500
    before = (tmp_path / "jobs.output.jsonl").read_bytes()
    assert ExitCode.OK == submit.run(wanted, as_json=False)
    assert {1} == set(server.asked.values())
    assert before == (tmp_path / "jobs.output.jsonl").read_bytes()


def test_a_failed_line_is_exit_code_1_and_asked_again(url: str, server: Server, tmp_path: Path) -> None:
    """Its error is in the errors file until it succeeds."""
    error = {"error": {"message": "no", "code": "context_length_exceeded"}}
    server.turn = lambda name: Told(status=400, body=error) if name == "3" else None
    wanted = wishes(jobs_file(tmp_path), url)
    assert ExitCode.FAILURE == submit.run(wanted, as_json=False)
    (line,) = [json.loads(text) for text in (tmp_path / "jobs.errors.jsonl").read_text().splitlines()]
    assert ("3", 400, error) == (line["custom_id"], line["response"]["status_code"], line["response"]["body"])
    server.turn = lambda _: None
    assert ExitCode.OK == submit.run(wanted, as_json=False)
    assert ["0", "1", "2", "3", "4", "5"] == ids(tmp_path / "jobs.output.jsonl")
    assert "" == (tmp_path / "jobs.errors.jsonl").read_text()


def test_a_used_up_budget_is_exit_code_5(
    url: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is left for a day with a budget."""
    body = {"error": {"code": "insufficient_quota"}}
    quota = Told(status=429, body=body, headers={"x-should-retry": "false"})
    server.turn = lambda name: quota if int(name) >= 3 else None
    wanted = wishes(jobs_file(tmp_path), url, concurrency=1)
    assert ExitCode.BUDGET == submit.run(wanted, as_json=True)
    captured = capsys.readouterr()
    assert {"finished": 3, "failed": 1, "left": 2, "stopped_by": "insufficient_quota"}.items() <= json.loads(
        captured.out
    ).items()
    assert "3 lines are asked again by the same command" in captured.err


@pytest.mark.parametrize(
    ("status", "models", "code", "words"),
    [
        (401, {}, ExitCode.POLICY, "refuses the key"),
        (403, {}, ExitCode.POLICY, "refuses the key"),
        (500, {}, ExitCode.FAILURE, "status 500"),
        (200, {"data": [{"id": "other"}]}, ExitCode.NOT_FOUND, "asks for 'm'"),
        (200, {"data": 1}, ExitCode.FAILURE, "does not list its models"),
    ],
)
def test_what_every_line_would_meet_is_said_before_the_first(
    url: str, server: Server, tmp_path: Path, status: int, models: object, code: ExitCode, words: str
) -> None:
    """Server, key and model."""
    server.models_status, server.models = status, models
    with pytest.raises(CommandError, match=words) as caught:
        submit.run(wishes(jobs_file(tmp_path), url), as_json=False)
    assert code == caught.value.code
    assert not server.asked


def test_a_server_without_a_list_of_models_is_asked_all_the_same(url: str, server: Server, tmp_path: Path) -> None:
    """Not every server of OpenAI's API has one."""
    server.models_status = 404
    assert ExitCode.OK == submit.run(wishes(jobs_file(tmp_path), url), as_json=False)


def test_a_closed_port_and_a_missing_key_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """6 and 4."""
    monkeypatch.setenv(KEY_VARIABLE, "k")
    with pytest.raises(CommandError) as caught:
        submit.run(wishes(jobs_file(tmp_path), "http://127.0.0.1:1"), as_json=False)
    assert ExitCode.UNAVAILABLE == caught.value.code
    with pytest.raises(CommandError, match="--task"):
        submit.run(wishes(jobs_file(tmp_path), "http://127.0.0.1:1", task="a\nb"), as_json=False)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(CommandError) as caught:
        submit.run(wishes(jobs_file(tmp_path), "http://127.0.0.1:1"), as_json=False)
    assert (ExitCode.POLICY, True) == (caught.value.code, KEY_VARIABLE in caught.value.remedy)


def test_a_check_needs_no_server_and_makes_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines, models, routes and the digest."""
    source = jobs_file(tmp_path)
    assert ExitCode.OK == submit.run(wishes(source, "http://127.0.0.1:1", is_check_only=True), as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (6, {"/v1/completions": 6}, 64) == (said["lines"], said["routes"], len(said["input_sha256"]))
    assert [source] == list(tmp_path.iterdir())
    source.write_bytes(b"\xff\n")
    with pytest.raises(CommandError, match="not UTF-8"):
        submit.run(wishes(source, "http://127.0.0.1:1", is_check_only=True), as_json=True)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"num_done": 9}, ExitCode.OK),
        ({"num_before": 9}, ExitCode.OK),
        ({"num_done": 8, "num_failed": 1}, ExitCode.FAILURE),
        ({"num_done": 8, "num_lost": 1}, ExitCode.FAILURE),
        ({"num_before": 9, "num_lost_before": 1}, ExitCode.FAILURE),
        ({"num_done": 8}, ExitCode.FAILURE),
        ({"num_done": 8, "stop": Stop.INTERRUPTED}, ExitCode.INTERRUPTED),
        ({"num_done": 9, "stop": Stop.INTERRUPTED}, ExitCode.OK),
        ({"num_done": 8, "num_failed": 1, "stop": Stop.QUOTA}, ExitCode.BUDGET),
        ({"num_done": 7, "num_failed": 1, "stop": Stop.KEY}, ExitCode.POLICY),
        ({"num_done": 7, "num_failed": 1, "stop": Stop.UNAVAILABLE}, ExitCode.UNAVAILABLE),
    ],
)
def test_every_end_has_its_exit_code(fields: dict[str, Any], code: ExitCode) -> None:
    """A Ctrl-C that came too late stopped nothing."""
    assert code == exit_code(State(num_jobs=9, **fields))


def begun(source: Path, url: str, *options: str) -> subprocess.Popen[str]:
    """As a shell starts it."""
    command = [sys.executable, "-m", "scheduler.cli", "submit", str(source), "--url", url, "--concurrency", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), KEY_VARIABLE: "k"}
    return subprocess.Popen([*command, *options], env=env, cwd="/", stderr=subprocess.PIPE, text=True)


def wait_for(is_true: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 20.0
    while not is_true():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_running_lines_end(url: str, server: Server, tmp_path: Path, number: signal.Signals) -> None:
    """Exit code 130; the next run asks the rest, and no line ran twice."""
    source = jobs_file(tmp_path)
    server.hold_from = 2
    process = begun(source, url)
    try:
        wait_for(lambda: server.asked.total() == 4)
        process.send_signal(number)
        assert any("2 lines may end" in line for line in said_by(process))
        server.hold_from = None
        assert ExitCode.INTERRUPTED == process.wait(20)
    finally:
        end(process)
    assert ["0", "1", "2", "3"] == ids(tmp_path / "jobs.output.jsonl")
    assert ExitCode.OK == submit.run(wishes(source, url), as_json=False)
    assert Counter("012345") == server.asked
    assert list("012345") == ids(tmp_path / "jobs.output.jsonl")


def test_a_second_signal_hangs_up_at_once(url: str, server: Server, tmp_path: Path) -> None:
    """Whatever the server does; what ran is asked again."""
    source = jobs_file(tmp_path)
    server.hold_from = 2
    process = begun(source, url)
    try:
        wait_for(lambda: server.asked.total() == 4)
        process.send_signal(signal.SIGINT)
        assert any("may end" in line for line in said_by(process))
        process.send_signal(signal.SIGINT)
        assert ExitCode.INTERRUPTED == process.wait(20)
    finally:
        end(process)
    assert ["0", "1"] == ids(tmp_path / "jobs.output.jsonl")
    server.hold_from = None
    assert ExitCode.OK == submit.run(wishes(source, url), as_json=False)
    assert list("012345") == ids(tmp_path / "jobs.output.jsonl")


def test_a_killed_run_is_gone_on_with(url: str, server: Server, tmp_path: Path) -> None:
    """SIGKILL, three times: no finished line is asked again, and none is missing at the end."""
    source, output = jobs_file(tmp_path, 40), tmp_path / "jobs.output.jsonl"
    for num_answered in (5, 17, 30):
        server.hold_from = num_answered
        process = begun(source, url)
        try:
            wait_for(lambda num=num_answered: output.exists() and len(ids(output)) >= num)
            wait_for(lambda: server.num_held >= 2)  # the next two, and no line before them
        finally:
            end(process)
        assert num_answered == len(ids(output))
        wait_for(lambda: server.num_held == 0)  # it has seen that they are gone: what they asked does not run
    server.hold_from = None
    assert ExitCode.OK == submit.run(wishes(source, url), as_json=False)
    assert sorted(map(str, range(40))) == ids(output)
    assert {"5": 2, "6": 2, "17": 2, "18": 2, "30": 2, "31": 2} == {k: n for k, n in server.asked.items() if n > 1}


def test_what_ran_unheard_is_named_and_not_run_again(url: str, server: Server, tmp_path: Path) -> None:
    """The answer of line 2 is lost on the way: exit code 1, its usage counts, and no later run asks for it."""
    source = jobs_file(tmp_path)
    server.unheard = {"2"}
    assert ExitCode.FAILURE == submit.run(wishes(source, url, concurrency=1), as_json=False)
    assert (["2"], ["0", "1", "3", "4", "5"]) == (
        ids(tmp_path / "jobs.errors.jsonl"),
        ids(tmp_path / "jobs.output.jsonl"),
    )
    assert "answer_lost" in (tmp_path / "jobs.errors.jsonl").read_text()
    asked = dict(server.asked)
    assert ExitCode.FAILURE == submit.run(wishes(source, url), as_json=False)
    assert (asked, 6) == (dict(server.asked), len(server.ran))


def said_by(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    return iter(process.stderr.readline, "")


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(20)
    assert process.stderr is not None
    process.stderr.close()
