"""The words of the command line about usage and value become the commands' wishes, one by one."""

from pathlib import Path
from typing import Any

import pytest

from scheduler import cli
from scheduler.commands import models, outcome, usage
from scheduler.commands.exits import ExitCode


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return int(left.value.code or 0)


def heard(monkeypatch: pytest.MonkeyPatch, command: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(*words: Any, **named: Any) -> ExitCode:
        calls.append((words, named))
        return ExitCode.OK

    monkeypatch.setattr(command, "run", note)
    return calls


def test_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, with everything said, and as JSON."""
    calls = heard(monkeypatch, usage)
    assert ExitCode.OK == run("usage")
    run(
        "usage", "--by", "day,key", "--from", "2026-07-01", "--to", "2026-08-01", "--tenant", "a", "--tenant", "b",
        "--keys", "key-1", "--task", "", "--tier", "flex", "--project", "p", "--model", "m", "--value",
        "--format", "csv", "-o", "u.csv", "--url", "http://h:1", "--config", "c.yaml",
    )  # fmt: skip
    run("usage", "--json")
    filters = {"tenant": ["a", "b"], "project": ["p"], "key": ["key-1"], "model": ["m"], "task": [""], "tier": ["flex"]}
    assert [
        usage.Wishes(),
        usage.Wishes(
            by="day,key", from_text="2026-07-01", to_text="2026-08-01", filters=filters, has_value=True,
            form=usage.Form.CSV, output=Path("u.csv"), url="http://h:1", config=Path("c.yaml"),
        ),
        usage.Wishes(form=usage.Form.JSON),
    ] == [words[0] for words, _ in calls]  # fmt: skip


def test_the_forms_are_those_of_the_command() -> None:
    """The command line names them before the command is loaded."""
    from scheduler.cli_accounts import FormName

    assert [form.value for form in usage.Form] == [form.value for form in FormName]


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bare, and side by side over a stretch of time."""
    calls = heard(monkeypatch, models)
    run("models")
    run("models", "--compare", "--from", "a", "--to", "b", "--url", "u", "--config", "c", "--json")
    bare = {
        "is_comparing": False, "from_text": None, "to_text": None, "config_path": None, "url": None, "as_json": False,
    }  # fmt: skip
    said = {
        "is_comparing": True, "from_text": "a", "to_text": "b", "config_path": Path("c"), "url": "u", "as_json": True,
    }  # fmt: skip
    assert [bare, said] == [named for _, named in calls]


def test_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request or a task; the verdict must be said."""
    calls = heard(monkeypatch, outcome)
    run("outcome", "req-1", "--accepted")
    run("outcome", "--task", "t", "--rejected", "--score", "0.5", "--label", "l", "--id", "i", "--url", "u", "--json")
    assert [
        ((outcome.Wishes(request_id="req-1", accepted=True),), {"as_json": False}),
        (
            (outcome.Wishes(task="t", accepted=False, score=0.5, label="l", given_id="i", url="u"),),
            {"as_json": True},
        ),
    ] == calls
    assert ExitCode.USAGE == run("outcome", "req-1")
    assert ExitCode.USAGE == run("outcome", "req-1", "--accepted", "--score", "2")
    assert 2 == len(calls)
