"""How every change is answered: whose it is first, once, durable, in the directory's words; and pages."""

from typing import Any

import msgspec
import pytest

from scheduler.accounting import known_changes
from scheduler.accounting.change_log import MAX_PAGE
from scheduler.accounting.changes import AdminKeyRevoked
from scheduler.api.directory_changes import limit_of, page_of
from scheduler.api.errors import ApiError
from tests.directory_office import ROOT, Ledger, Office
from tests.directory_words import key_id

A = key_id("secret-a")
CHANGES: list[tuple[str, str, Any]] = [
    ("POST", "/tenants", {"name": "new"}),
    ("PATCH", "/tenants/acme", {"weight": 2}),
    ("DELETE", "/tenants/acme", None),
    ("POST", "/tenants/acme/projects", {"name": "p"}),
    ("DELETE", "/tenants/acme/projects/search", None),
    ("PUT", "/budgets", {"level": "tenant", "name": "acme", "budgets": []}),
    ("POST", "/tenants/acme/keys", {}),
    ("PATCH", f"/keys/{A}", {"label": "x"}),
    ("POST", f"/keys/{A}/rotate", {}),
    ("POST", f"/keys/{A}/revoke", {}),
    ("POST", f"/keys/{A}/move", {}),
    ("POST", "/admin-keys", {"role": "read"}),
    ("POST", f"/admin-keys/{key_id('secret-r', 'adm-')}/rotate", {}),
    ("POST", f"/admin-keys/{key_id('secret-r', 'adm-')}/revoke", {}),
]


def test_every_change_is_tried_here() -> None:
    """None is forgotten."""
    routes = [route for route in Office().admin.routes if route.method != "GET"]
    assert len(CHANGES) == len(routes)


@pytest.mark.parametrize(("method", "path", "body"), CHANGES, ids=lambda value: str(value)[:30])
async def test_where_the_file_owns_every_change_is_refused(method: str, path: str, body: Any) -> None:
    """With the file's name and what to do; nothing is looked at, nothing is logged. Reading goes on."""
    office = Office(file_owner="cluster.yaml")
    before = office.tenancy.directory.state()
    for given in (body, b"{"):
        asked = await office.asked(method, path, given)
        assert (409, "owned_by_file") == (asked.status, asked.error()["code"])
        assert "owned by the file cluster.yaml (directory: file)" in asked.error()["message"]
    assert (before, []) == (office.tenancy.directory.state(), await office.rows())
    assert 200 == (await office.asked("GET", "/tenants")).status


@pytest.mark.parametrize(("method", "path", "body"), CHANGES, ids=lambda value: str(value)[:30])
async def test_every_change_leaves_one_row_with_who_did_it(method: str, path: str, body: Any) -> None:
    """And with an Idempotency-Key the same question changes nothing again."""
    office = Office()
    if "search" in path:
        await office.asked("POST", f"/keys/{A}/revoke")
    num_rows = len(await office.rows())
    headers = {"idempotency-key": "once"}
    first = await office.asked(method, path, body, key="secret-admin", headers=headers)
    state, rows = office.tenancy.directory.state(), await office.rows()
    assert first.status in (200, 201), first.body
    assert (num_rows + 1, "admin", key_id("secret-admin", "adm-")) == (
        len(rows), rows[-1]["who"]["role"], rows[-1]["who"]["key_id"],
    )  # fmt: skip
    again = await office.asked(method, path, body, key="secret-admin", headers=headers)
    if "key" in first.json():
        assert (409, "already_made") == (again.status, again.error()["code"])
        assert first.json()["key"] not in repr(rows)
    else:
        assert (first.status, first.json(), "1") == (again.status, again.json(), again.headers["x-jouleway-replayed"])
    assert (state, len(rows)) == (office.tenancy.directory.state(), len(await office.rows()))


async def test_another_question_with_the_same_idempotency_key_is_another_change() -> None:
    """As it is for another admin key."""
    office = Office()
    headers = {"idempotency-key": "once"}
    for name, key in (("a", "secret-admin"), ("b", "secret-admin")):
        assert 201 == (await office.asked("POST", "/tenants", {"name": name}, key=key, headers=headers)).status
    taken = await office.asked("POST", "/tenants", {"name": "a"}, headers=headers)
    assert (409, "duplicate_name") == (taken.status, taken.error()["code"])


async def test_a_ledger_that_does_not_commit_is_a_503_that_may_be_asked_again() -> None:
    """The same question then finds what it did."""
    ledger = Ledger()
    office = Office(log=ledger)
    ledger.error = OSError("disk full")
    headers = {"idempotency-key": "once"}
    asked = await office.asked("POST", "/tenants", {"name": "new"}, headers=headers)
    assert (503, "not_committed", "1", "true") == (
        asked.status, asked.error()["code"], asked.headers["retry-after"], asked.headers["x-should-retry"],
    )  # fmt: skip
    ledger.error = None
    asked = await office.asked("POST", "/tenants", {"name": "new"}, headers=headers)
    assert (201, "1") == (asked.status, asked.headers["x-jouleway-replayed"])


@pytest.mark.parametrize(("method", "path", "body"), CHANGES, ids=lambda value: str(value)[:30])
async def test_a_change_that_may_have_been_made_long_ago_waits_unless_it_takes_away(
    method: str, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can say whether it was: only what takes a whole key or tenant away may happen twice."""
    monkeypatch.setattr(known_changes, "MAX_KNOWN_CHANGES", 1)
    ledger = Ledger()
    office = Office(log=ledger)
    office.tenancy.directory.known.add("chg-newest")
    ledger.holds_error = OSError("away")
    state = office.tenancy.directory.state()
    asked = await office.asked(method, path, body, headers={"idempotency-key": "once"})
    if path.endswith("/revoke") or (path == "/tenants/acme" and method == "DELETE"):
        assert (200, 1) == (asked.status, len(await office.rows()))
    else:
        assert (503, "ledger_unavailable", "5") == (asked.status, asked.error()["code"], asked.headers["retry-after"])
        assert (state, ["asked"]) == (office.tenancy.directory.state(), ledger.events)


async def test_the_log_is_asked_for_keyed_changes_alone_and_only_where_some_were_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading asks nothing either."""
    ledger = Ledger()
    office = Office(log=ledger)
    headers = {"idempotency-key": "once"}
    await office.asked("PATCH", "/tenants/acme", {"weight": 2}, headers=headers)
    monkeypatch.setattr(known_changes, "MAX_KNOWN_CHANGES", 1)
    await office.asked("PATCH", "/tenants/acme", {"weight": 3})
    await office.asked("GET", "/tenants", headers=headers)
    assert "asked" not in ledger.events
    await office.asked("PATCH", "/tenants/acme", {"weight": 4}, headers=headers)
    assert "asked" in ledger.events


async def test_a_key_that_is_asked_for_again_is_in_effect_then() -> None:
    """It cannot be shown, but what the question did is no secret."""
    ledger = Ledger()
    office = Office(log=ledger)
    headers, body = {"idempotency-key": "once"}, {"overlap_s": 60}
    ledger.error = OSError("disk full")
    assert 503 == (await office.asked("POST", f"/keys/{A}/rotate", body, headers=headers)).status
    published = office.published
    assert 503 == (await office.asked("POST", f"/keys/{A}/rotate", body, headers=headers)).status
    ledger.error = None
    asked = await office.asked("POST", f"/keys/{A}/rotate", body, headers=headers)
    assert (409, "already_made") == (asked.status, asked.error()["code"])
    assert published < office.published
    await office.tenancy.stop()


async def test_no_key_is_shown_that_may_not_be_durable() -> None:
    """Whoever cannot be told gets another one."""
    ledger = Ledger()
    office = Office(log=ledger)
    ledger.error = OSError("disk full")
    asked = await office.asked("POST", "/tenants/acme/keys", {})
    assert (503, True) == (asked.status, b"jw-" not in asked.body)
    await office.tenancy.stop()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("GET", "/tenants/nobody", None, 404, "unknown_tenant", "name"),
        ("POST", "/tenants", {"name": "acme"}, 409, "duplicate_name", "name"),
        ("POST", "/tenants", {"name": "Acme"}, 400, "invalid_value", "name"),
        ("POST", "/tenants", {"nam": "x"}, 400, "invalid_value", None),
        ("POST", "/tenants", b"{", 400, "invalid_json", None),
        ("POST", "/tenants", b"x" * (65 << 10), 413, "body_too_large", None),
        ("GET", "/tenants?limit=0", None, 400, "invalid_query", "limit"),
        ("GET", "/tenants?what=1", None, 400, "invalid_query", None),
        ("PUT", "/tenants/acme", {}, 405, "method_not_allowed", None),
        ("GET", "/nothing", None, 404, "route_not_found", None),
    ],
)
async def test_each_refusal(method: str, path: str, body: Any, status: int, code: str, param: str | None) -> None:
    """A status, a word and a field."""
    asked = await Office().asked(method, path, body)
    assert (status, code, param) == (asked.status, asked.error()["code"], asked.error()["param"])


async def test_an_idempotency_key_that_is_none_is_refused() -> None:
    """As on the other listener."""
    asked = await Office().asked("POST", "/tenants", {"name": "a"}, headers={"idempotency-key": "a b"})
    assert (400, "idempotency-key") == (asked.status, asked.error()["param"])


async def test_a_revoked_admin_key_is_closed_at_once() -> None:
    """Also for the one who revokes itself."""
    office = Office()
    own = key_id("secret-admin", "adm-")
    asked = await office.asked("POST", f"/admin-keys/{own}/revoke", key="secret-admin")
    assert (200, "revoked") == (asked.status, asked.json()["state"])
    assert 401 == (await office.asked("GET", "/tenants", key="secret-admin")).status
    assert AdminKeyRevoked(key_id=own).key_id == own
    assert ROOT.endswith("/admin")


# -- pages


def names_of(query: dict[str, str]) -> tuple[list[str], bool]:
    page = page_of(iter("dbca"), query, lambda name: {"name": name})
    told = msgspec.json.decode(page.body)
    assert (told["data"][-1]["name"] if told["data"] else None) == told["last"]
    return [row["name"] for row in told["data"]], told["has_more"]


def test_a_page_is_in_order_and_says_whether_there_is_more() -> None:
    """Whatever ``after`` is, a name or none."""
    assert (["a", "b", "c", "d"], False) == names_of({})
    assert (["a", "b"], True) == names_of({"limit": "2"})
    assert (["c", "d"], False) == names_of({"limit": "2", "after": "b"})
    assert (["c", "d"], False) == names_of({"after": "bb"})
    assert ([], False) == names_of({"after": "d"})


@pytest.mark.parametrize("text", ["0", "-1", str(MAX_PAGE + 1), "x", "", "１", "1e3", "9" * 5_000])
def test_a_limit_is_a_small_number(text: str) -> None:
    """And nothing else."""
    with pytest.raises(ApiError):
        limit_of({"limit": text})
    assert (1, MAX_PAGE, 100) == (limit_of({"limit": "1"}), limit_of({"limit": str(MAX_PAGE)}), limit_of({}))
