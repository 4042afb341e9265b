"""`jouleway top` asks the admin listener for one snapshot a look, and survives a control plane that is away."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from scheduler.commands import top
from scheduler.commands.control_plane import ADMIN_KEY_VARIABLE
from scheduler.commands.exits import CommandError, ExitCode
from tests.canned_http import Asked, Told, serving

SNAPSHOT = {
    "workers": [], "queue": [], "budgets_near_limit": [], "worker_energy": [], "num_open": 7, "num_running": 0,
    "submitted": 9, "finished": {}, "rejected": {}, "preempted": 0, "is_draining": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "admin-key")


class Watching:
    """Some looks at a server that answers from a list, the last answer for ever; then Ctrl-C."""

    def __init__(self, *told: Told | None, looks: int = 1) -> None:
        self.told = told
        self.looks = looks
        self.seen: list[Asked] = []
        self.slept: list[float] = []

    def run(self, **options: Any) -> ExitCode:
        answers: Iterator[Told | None] = iter(self.told)

        def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            if len(self.slept) == self.looks:
                raise KeyboardInterrupt

        fields = {"config_path": None, "is_once": False, "interval_s": 2.0, "as_json": False, **options}
        with serving(lambda _: next(answers, self.told[-1]), seen=self.seen) as url:
            return top.run(url=url, sleep=sleep, **fields)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich draws as on a screen."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


GOOD = Told(body=SNAPSHOT)


def test_once_and_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one question, with the admin key; nobody sleeps."""
    watching = Watching(GOOD)
    assert ExitCode.OK == watching.run(is_once=True, as_json=True)
    said = json.loads(capsys.readouterr().out)
    parts = {"at_unix_s", "workers", "queue", "budgets", "totals", "is_draining", "ledger_problem"}
    assert parts == said.keys()
    assert 7 == said["totals"]["num_open"]
    assert [("GET", "/v1/jouleway/snapshot", "Bearer admin-key")] == [
        (asked.method, asked.path, asked.headers["authorization"]) for asked in watching.seen
    ]
    assert [] == watching.slept


@pytest.mark.parametrize("is_once", [True, False])
def test_without_a_terminal_it_is_shown_once(capsys: pytest.CaptureFixture[str], is_once: bool) -> None:
    """A pipe is no screen."""
    watching = Watching(GOOD)
    assert ExitCode.OK == watching.run(is_once=is_once)
    assert "7 open" in capsys.readouterr().out
    assert 1 == len(watching.seen)


def test_json_alone_is_a_line_a_look(capsys: pytest.CaptureFixture[str]) -> None:
    """Until Ctrl-C, which is no failure."""
    watching = Watching(GOOD, looks=3)
    assert ExitCode.OK == watching.run(as_json=True)
    assert [7, 7, 7] == [json.loads(line)["totals"]["num_open"] for line in capsys.readouterr().out.splitlines()]
    assert [2.0, 2.0, 2.0] == watching.slept


@pytest.mark.usefixtures("terminal")
def test_a_control_plane_that_is_away_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The last look stays, and is said to be old; then it is drawn anew."""
    watching = Watching(GOOD, None, Told(body={**SNAPSHOT, "num_open": 8}), looks=3)
    assert ExitCode.OK == watching.run()
    text = capsys.readouterr().out
    assert 1 == text.count("what follows is old")
    assert text.index("7 open") < text.index("what follows is old") < text.index("8 open")


@pytest.mark.usefixtures("terminal")
def test_a_key_that_is_no_longer_taken_ends_it() -> None:
    """Asking again cannot help."""
    with pytest.raises(CommandError) as caught:
        Watching(GOOD, Told(status=401), looks=5).run()
    assert ExitCode.POLICY == caught.value.code


@pytest.mark.parametrize(("told", "code"), [(Told(status=401), ExitCode.POLICY), (None, ExitCode.UNAVAILABLE)])
def test_a_first_look_that_fails_is_the_end(told: Told | None, code: ExitCode) -> None:
    """With the exit code of its reason."""
    with pytest.raises(CommandError) as caught:
        Watching(told).run()
    assert code == caught.value.code
