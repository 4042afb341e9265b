"""The commands over tenants, keys and budgets: each has its help, none takes a key, all reach their function."""

import re
from typing import Any

import pytest
import typer

from scheduler import cli
from scheduler.commands import directory, directory_command
from scheduler.commands.exits import ExitCode

GROUPS: dict[str, typer.Typer] = {
    "tenants": directory_command.tenants,
    "keys": directory_command.keys,
    "admin-keys": directory_command.admin_keys,
    "budgets": directory_command.budgets,
}
COMMANDS = [(name, str(each.name)) for name, group in GROUPS.items() for each in group.registered_commands]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return int(left.value.code or 0)


@pytest.mark.parametrize("command", [*COMMANDS, ("audit",)], ids=" ".join)
def test_every_command_has_help_with_json_and_exit_codes(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """And no flag that takes a key: everyone who lists processes would see it."""
    assert ExitCode.OK == run(*command, "--help")
    text = capsys.readouterr().out
    assert "--json" in text
    assert "Exit codes" in text
    assert not re.search(r"--[a-z-]*(key|token|secret|password)\b", text)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_says_where_its_key_comes_from(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In its own help."""
    assert ExitCode.OK == run(group, "--help")
    assert "JOULEWAY_ADMIN_KEY" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "method", "given"),
    [
        (["tenants", "list"], "list_tenants", ()),
        (["tenants", "create", "a", "--weight", "2"], "create_tenant",
         ("a", {"max_tier": None, "weight": 2.0, "data_class": None, "zones": None})),
        (["tenants", "set", "a", "--max-tier", "flex", "--reopen"], "set_tenant",
         ("a", {"max_tier": "flex", "weight": None, "data_class": None, "zones": None, "project": None})),
        (["tenants", "close", "a"], "close_tenant", ("a",)),
        (["tenants", "add-project", "a", "p"], "add_project", ("a", "p")),
        (["tenants", "remove-project", "a", "p"], "remove_project", ("a", "p")),
        (["keys", "list", "--tenant", "a"], "list_keys", ("a",)),
        (["keys", "create", "a", "--project", "p", "--expires-in-s", "60"], "create_key",
         ("a", {"project": "p", "label": None, "max_tier": None, "data_class": None, "zones": None,
                "expires_in_s": 60.0})),
        (["keys", "set", "key-1", "--label", "ci"], "set_key",
         ("key-1", {"label": "ci", "max_tier": None, "data_class": None, "zones": None, "expires_in_s": None})),
        (["keys", "rotate", "key-1", "--overlap-s", "60"], "rotate", ("keys", "key-1", 60)),
        (["keys", "revoke", "key-1"], "revoke", ("keys", "key-1")),
        (["keys", "move", "key-1", "--project", "p"], "move_key", ("key-1", None, "p")),
        (["admin-keys", "list"], "list_admin_keys", ()),
        (["admin-keys", "create", "billing"], "create_admin_key",
         ({"role": "billing", "label": None, "expires_in_s": None},)),
        (["admin-keys", "rotate", "adm-1"], "rotate", ("admin-keys", "adm-1", 0)),
        (["admin-keys", "revoke", "adm-1"], "revoke", ("admin-keys", "adm-1")),
        (["budgets", "show"], "show_budgets", (None, None)),
        (["budgets", "show", "key", "key-1"], "show_budgets", ("key", "key-1")),
        (["budgets", "set", "tenant", "a", "tokens=1:1h"], "set_budgets", ("tenant", "a", ["tokens=1:1h"])),
        (["audit", "--limit", "5"], "audit", (5,)),
    ],
)  # fmt: skip
def test_arguments_reach_the_command(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], method: str, given: tuple[Any, ...]
) -> None:
    """With the listener and how to print."""
    called: list[Any] = []

    class Stand:
        def __init__(self, *where: Any, **how: Any) -> None:
            called.append((where, how))

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **more: called.append((name, args, more)) or ExitCode.NOT_FOUND

    monkeypatch.setattr(directory, "Admin", Stand)
    assert ExitCode.NOT_FOUND == run(*arguments, "--url", "http://h:1", "--json")
    assert ((None, "http://h:1"), {"as_json": True}) == called[0]
    assert (method, given) == called[1][:2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["keys"],
        ["keys", "create"],
        ["keys", "rotate", "key-1", "--overlap-s", "-1"],
        ["tenants", "create", "a", "--max-tier", "gold"],
        ["tenants", "set", "a", "--weight", "0"],
        ["admin-keys", "create", "root"],
        ["budgets", "set", "fleet", "a"],
        ["audit", "--limit", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anybody is asked."""
    assert ExitCode.USAGE == run(*arguments)
    assert "jw-" not in capsys.readouterr().err
