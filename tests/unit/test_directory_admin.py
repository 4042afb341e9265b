"""The commands of ``scheduler.commands.directory`` against the real routes: a key, and nothing else, can be piped."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from scheduler import cli
from scheduler.commands.control_plane import ADMIN_KEY_VARIABLE
from scheduler.commands.directory import budget_of, sent
from scheduler.commands.exits import CommandError, ExitCode
from tests.asgi_client import ask
from tests.canned_http import Asked, Told, serving
from tests.directory_office import HOUSE_KEY, Office
from tests.directory_words import key_id

A, B = key_id("secret-a"), key_id("secret-b")


class Plane:
    """An office behind a socket, and the command line in front of it."""

    def __init__(self, office: Office, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.office = office
        self.url = url
        self.capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        with pytest.raises(SystemExit) as left:
            cli.main([*arguments, "--url", self.url])
        captured = self.capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    def told(self, *arguments: str) -> Any:
        code, out, _ = self.run(*arguments, "--json")
        assert ExitCode.OK == code
        return json.loads(out)


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Plane]:
    office = Office()

    async def answer(asked: Asked) -> Told:
        key = asked.headers["authorization"].removeprefix("Bearer ")
        path, mark, query = asked.path.partition("?")
        headers = {name: asked.headers[name] for name in ("content-length",)}
        done = await ask(
            office.admin, unquote(path) + mark + query, asked.body, method=asked.method, key=key, headers=headers
        ).finished()
        return Told(status=done.status or 0, body=done.body)

    monkeypatch.setenv(ADMIN_KEY_VARIABLE, HOUSE_KEY)
    with serving(answer) as url:
        yield Plane(office, url, capsys)


def test_a_created_key_can_be_piped(plane: Plane) -> None:
    """One line and nothing else; what is said of it goes to standard error."""
    code, out, err = plane.run("keys", "create", "acme", "--project", "search", "--label", "ci")
    assert (ExitCode.OK, True, 1) == (code, out.startswith("jw-"), out.count("\n"))
    assert "of acme/search was created. It is shown this once." in err
    assert out.strip() not in err
    made = plane.told("keys", "create", "acme")
    assert ("acme", True) == (made["tenant"], made["key"].startswith("jw-"))


def test_a_change_that_the_ledger_does_not_take_in_time_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the same Idempotency-Key, another one for each command; what reads has none."""
    refusal = {"error": {"message": "not in time", "type": "server_error", "param": None, "code": "not_committed"}}
    busy = Told(status=503, body=refusal, headers={"retry-after": "0"})
    answers = [busy, Told(status=201, body={"name": "a"}), busy, busy, Told(body={"data": [], "has_more": False})]
    seen: list[Asked] = []
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, HOUSE_KEY)
    with serving(lambda asked: answers.pop(0), seen=seen) as url:
        codes = []
        for words in (["tenants", "create", "a"], ["tenants", "create", "a"], ["tenants", "list"]):
            with pytest.raises(SystemExit) as left:
                cli.main([*words, "--url", url])
            codes.append(left.value.code or 0)
    assert [ExitCode.OK, ExitCode.UNAVAILABLE, ExitCode.OK] == codes
    assert "jouleway audit" in capsys.readouterr().err
    first, again, second, last, listed = [asked.headers.get("idempotency-key") for asked in seen]
    assert (first, second, None) == (again, last, listed)
    assert len({first, second, None}) == 3


def test_a_keys_life(plane: Plane) -> None:
    """Rotated, set, moved, revoked, listed."""
    code, out, err = plane.run("keys", "rotate", A, "--overlap-s", "60")
    assert (ExitCode.OK, True, True) == (code, out.startswith("jw-"), "valid for 60 s more" in err)
    assert "valid no longer" in plane.run("keys", "rotate", A)[2]
    assert "was changed" in plane.run("keys", "set", A, "--expires-in-s", "3600", "--zones", "hall-a")[2]
    assert f"{A} is of acme/default now" in plane.run("keys", "move", A)[2]
    assert f"{A} is revoked" in plane.run("keys", "revoke", A)[2]
    assert [(A, "revoked", ["hall-a"])] == [
        (row["key_id"], row["state"], row["zones"]) for row in plane.told("keys", "list", "--tenant", "acme")["data"]
    ]
    code, out, _ = plane.run("keys", "list")
    assert (ExitCode.OK, True, True) == (code, A in out, B in out)


def test_a_tenants_life(plane: Plane) -> None:
    """Created, set, given a project, closed and opened again."""
    for arguments, words in (
        (["create", "new", "--weight", "2", "--zones", "hall-a, hall-b"], "jouleway keys create new"),
        (["set", "new", "--zones", "any", "--max-tier", "flex"], "tenant new was changed"),
        (["add-project", "new", "p"], "project new/p was created"),
        (["remove-project", "new", "p"], "project new/p was removed"),
        (["close", "new"], "tenant new is closed"),
        (["set", "new", "--reopen"], "tenant new was changed"),
    ):
        code, out, err = plane.run("tenants", *arguments)
        assert (ExitCode.OK, "", True) == (code, out, words in err)
    (shown,) = [row for row in plane.told("tenants", "list")["data"] if row["name"] == "new"]
    assert ("flex", 2.0, None, False) == (shown["max_tier"], shown["weight"], shown["zones"], shown["is_closed"])
    assert "new" in plane.run("tenants", "list")[1]


def test_admin_keys(plane: Plane) -> None:
    """Created, rotated, revoked, listed."""
    made = plane.told("admin-keys", "create", "billing", "--label", "books")
    assert (True, "billing") == (made["key"].startswith("jwa-"), made["role"])
    assert plane.run("admin-keys", "create", "read")[1].startswith("jwa-")
    assert plane.run("admin-keys", "rotate", made["key_id"])[1].startswith("jwa-")
    assert "is revoked" in plane.run("admin-keys", "revoke", made["key_id"])[2]
    out = plane.run("admin-keys", "list")[1]
    assert "admin.key_file" in out
    assert "books" in out


def test_budgets_are_set_and_shown(plane: Plane) -> None:
    """In the words of the file."""
    words = plane.run(
        "budgets", "set", "tenant", "acme", "tokens=1000000:1h", "money=0.5:calendar day", "concurrency=4"
    )[2]
    assert "tenant acme has 3 budgets now" in words
    shown = plane.told("budgets", "show", "tenant", "acme")
    assert [{"tokens": 1_000_000, "per": "1h"}, {"money": "0.5", "per": "calendar day"}, {"concurrency": 4}] == shown[
        "budgets"
    ]
    code, out, _ = plane.run("budgets", "show")
    assert (ExitCode.OK, True, True) == (code, "1,000,000" in out, "calendar day" in out)
    assert "has no budget now" in plane.run("budgets", "set", "tenant", "acme", "--none")[2]


def test_the_audit_log_is_shown_the_newest_first(plane: Plane) -> None:
    """As many as are asked for."""
    for name in "abc":
        plane.run("tenants", "create", name)
    assert ["c", "b"] == [row["target"] for row in plane.told("audit", "--limit", "2")["data"]]
    out = plane.run("audit")[1]
    assert out.index("tenant_created") > 0
    assert "name=c" in out


def test_long_lists_are_read_page_by_page(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there is no more, or enough."""
    monkeypatch.setattr("scheduler.commands.directory.PAGE", 2)
    for number in range(4):
        plane.run("tenants", "create", f"t{number}")
    assert 6 == len(plane.told("tenants", "list")["data"])
    assert 3 == len(plane.told("audit", "--limit", "3")["data"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tenants", "create", "acme"], ExitCode.FAILURE, "there is such a tenant"),
        (["tenants", "create", "Acme"], ExitCode.USAGE, "must be 1 to 63 of a-z"),
        (["tenants", "close", "nobody"], ExitCode.NOT_FOUND, "there is no such tenant"),
        (["tenants", "set", "acme"], ExitCode.USAGE, "nothing is to be changed"),
        (["tenants", "close", ".."], ExitCode.USAGE, "a name is missing"),
        (["keys", "revoke", "key-no"], ExitCode.NOT_FOUND, "there is no such key"),
        (["keys", "revoke", "a/b"], ExitCode.NOT_FOUND, "no such route"),
        (["keys", "create", "acme", "--max-tier", "priority"], ExitCode.USAGE, "above its tenant's default"),
        (["budgets", "show", "tenant"], ExitCode.USAGE, "give LEVEL and NAME"),
        (["budgets", "set", "tenant", "acme"], ExitCode.USAGE, "or --none for no limit"),
        (["budgets", "set", "tenant", "acme", "tokens=1:1h", "--none"], ExitCode.USAGE, "or --none"),
        (["budgets", "set", "tenant", "acme", "tokens=1"], ExitCode.USAGE, "tokens needs a window"),
    ],
)
def test_each_refusal_is_said_in_the_control_planes_words(
    plane: Plane, arguments: list[str], code: ExitCode, words: str
) -> None:
    """With its exit code; nothing goes to standard output."""
    told = plane.run(*arguments)
    assert (code, "") == told[:2]
    assert words in told[2]


def test_a_wrong_key_is_said_with_where_to_find_the_right_one(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a role that is not enough with which is."""
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "jwa-wrong")
    code, _, err = plane.run("tenants", "list")
    assert (ExitCode.POLICY, True, False) == (code, "remedy: export JOULEWAY_ADMIN_KEY" in err, "jwa-wrong" in err)
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "secret-billing")
    code, _, err = plane.run("keys", "list")
    assert (ExitCode.POLICY, True) == (code, "role is billing; this route needs admin or read" in err)


def test_where_the_file_owns_it_is_said(plane: Plane) -> None:
    """With the file."""
    plane.office.tenancy.file_owner = "cluster.yaml"
    code, _, err = plane.run("tenants", "create", "new")
    assert (ExitCode.FAILURE, True) == (code, "owned by the file cluster.yaml" in err)


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"error": "x"}'])
def test_an_answer_that_is_none_is_said(
    body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever it is that listens there."""
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, HOUSE_KEY)
    told = Told(status=500 if b"error" in body else 200, body=body)
    with serving(lambda _: told) as url, pytest.raises(SystemExit) as left:
        cli.main(["tenants", "list", "--url", url])
    assert left.value.code in (ExitCode.UNAVAILABLE, ExitCode.FAILURE)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens=5:1h", {"tokens": "5", "per": "1h"}),
        ("money=0.5:calendar day", {"money": "0.5", "per": "calendar day"}),
        ("concurrency=4", {"concurrency": "4"}),
    ],
)
def test_a_budget_is_written_in_one_word(text: str, expected: dict[str, str]) -> None:
    """The control plane checks it."""
    assert expected == budget_of(text)


@pytest.mark.parametrize("text", ["", "tokens", "tokens=", "tokens=:1h", "coins=5:1h", "=5"])
def test_what_is_no_budget_is_said_with_its_form(text: str) -> None:
    """Before anybody is asked."""
    with pytest.raises(CommandError) as caught:
        budget_of(text)
    assert (ExitCode.USAGE, True) == (caught.value.code, "tokens=1000000:1h" in caught.value.remedy)


def test_what_was_not_given_is_not_sent() -> None:
    """Zones by comma; ``any`` is a value."""
    assert {"a": 1, "zones": ["x", "y"]} == sent({"a": 1, "b": None, "zones": "x, y"})
    assert {"zones": None} == sent({"zones": "any"})
