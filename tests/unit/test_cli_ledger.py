"""The ledger's command line: each option reaches its command as what it is, and the exit code is the command's."""

from pathlib import Path
from typing import Any

import pytest

from scheduler import cli
from scheduler.commands import ledger as ledger_command
from scheduler.commands import receipt as receipt_command
from scheduler.commands import reconcile as reconcile_command
from scheduler.commands import rerate as rerate_command
from scheduler.commands.exits import ExitCode


class Noted:
    """In a command's place."""

    def __init__(self, code: ExitCode = ExitCode.OK) -> None:
        self.code = code
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *arguments: Any, **options: Any) -> ExitCode:
        self.calls.append((arguments, options))
        return self.code


def left_with(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return int(left.value.code or 0)


def test_verify_takes_a_key_checkpoints_and_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the latter as many as are given."""
    noted = Noted(ExitCode.VERIFICATION)
    monkeypatch.setattr(ledger_command, "run_verify", noted)
    assert 7 == left_with("ledger", "verify", "l.db")
    assert 7 == left_with(
        "ledger", "verify", "postgresql://h/d", "--key", "k", "--checkpoint", "a", "--checkpoint", "b",
        "--receipt", "r", "--json",
    )  # fmt: skip
    assert [
        (("l.db",), {"key": None, "checkpoints": [], "receipts": [], "as_json": False}),
        (
            ("postgresql://h/d",),
            {"key": "k", "checkpoints": [Path("a"), Path("b")], "receipts": [Path("r")], "as_json": True},
        ),
    ] == noted.calls


def test_copy_takes_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing less."""
    noted = Noted()
    monkeypatch.setattr(ledger_command, "run_copy", noted)
    assert 0 == left_with("ledger", "copy", "l.db", "postgresql://h/d", "--json")
    assert [(("l.db", "postgresql://h/d"), {"as_json": True})] == noted.calls
    assert 2 == left_with("ledger", "copy", "l.db")


def test_receipt_takes_a_request_or_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom to ask, what to trust, where to write."""
    noted = Noted()
    monkeypatch.setattr(receipt_command, "run", noted)
    assert 0 == left_with("receipt", "req-a", "-o", "out", "--key", "k", "--url", "u", "-c", "c.yaml", "--json")
    assert 0 == left_with("receipt", "--check", "f")
    names = ("check", "output", "key", "url", "config", "as_json")
    assert [
        (("req-a",), dict(zip(names, (None, Path("out"), "k", "u", Path("c.yaml"), True), strict=True))),
        ((None,), dict(zip(names, (Path("f"), None, None, None, None, False), strict=True))),
    ] == noted.calls


def test_trace_takes_a_text_and_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one."""
    noted = Noted(ExitCode.NOT_FOUND)
    monkeypatch.setattr(receipt_command, "run_trace", noted)
    assert 3 == left_with("trace", "t", "--receipt", "a", "--receipt", "b", "--key", "k")
    assert [((Path("t"),), {"receipts": [Path("a"), Path("b")], "key": "k", "as_json": False})] == noted.calls
    assert 2 == left_with("trace", "t")


def test_reconcile_and_rerate_take_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was written: what a time is, the command says."""
    reconciled, rerated = Noted(), Noted()
    monkeypatch.setattr(reconcile_command, "run", reconciled)
    monkeypatch.setattr(rerate_command, "run", rerated)
    assert 0 == left_with("reconcile", "l.db", "--from", "a", "--to", "b")
    assert 0 == left_with("rerate", "l.db", "-c", "c.yaml", "--from", "a", "--json")
    assert [(("l.db",), {"config": None, "from_text": "a", "to_text": "b", "as_json": False})] == reconciled.calls
    assert [
        (("l.db",), {"config": Path("c.yaml"), "from_text": "a", "to_text": None, "as_json": True})
    ] == rerated.calls


@pytest.mark.parametrize("words", [["ledger"], ["ledger", "forge"], ["ledger", "verify"], ["rerate", "l.db"]])
def test_what_is_no_command_is_refused(words: list[str]) -> None:
    """With the exit code of a wrong argument."""
    assert 2 == left_with(*words)


def test_the_help_has_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the commands that check something."""
    for words in (["ledger", "verify"], ["ledger", "copy"]):
        assert 0 == left_with(*words, "--help")
        assert "7 verification failed" in " ".join(capsys.readouterr().out.replace("│", " ").split())
