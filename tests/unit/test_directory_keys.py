"""Keys over HTTP: shown once, stored hashed, rotated with overlap, moved, ended by hand and by the clock."""

import hashlib
import logging
from typing import Any

import pytest

from tests.asgi_client import ask
from tests.directory_office import HOUSE_ID, HOUSE_KEY, Office
from tests.directory_words import NOW_US, key_id

A, B, R = key_id("secret-a"), key_id("secret-b"), key_id("secret-r", "adm-")


async def created(office: Office, **body: Any) -> dict[str, Any]:
    asked = await office.asked("POST", "/tenants/acme/keys", body)
    assert 201 == asked.status, asked.body
    assert "no-store" == asked.headers["cache-control"]
    return asked.json()  # type: ignore[no-any-return]


async def test_a_key_is_shown_once_and_opens_at_once() -> None:
    """Its id is made of its hash; nothing that is shown later holds it."""
    office = Office()
    made = await created(office, project="search", label="ci", max_tier="flex", budgets=[{"requests": 5, "per": "1m"}])
    key = made["key"]
    assert key.startswith("jw-")
    assert len(key) > 40
    assert f"key-{hashlib.sha256(key.encode()).hexdigest()[:10]}" == made["key_id"]
    assert ("acme", "search", "ci", "active", "flex") == tuple(
        made[name] for name in ("tenant", "project", "label", "state", "max_tier")
    )
    assert await office.opens(key)
    caller = office.keys.caller([f"Bearer {key}".encode()])
    assert ("acme", "search", made["key_id"], frozenset({"hall-a", "hall-b"})) == (
        caller.tenant, caller.project, caller.key_id, caller.zones,
    )  # fmt: skip
    shown = (await office.asked("GET", f"/keys/{made['key_id']}")).json()
    assert {name: value for name, value in made.items() if name != "key"} == shown
    assert key not in repr(await office.rows()) + repr(vars(office.keys))


async def test_no_key_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """At the finest level."""
    caplog.set_level(logging.DEBUG)
    office = Office()
    made = await created(office)
    rotated = (await office.asked("POST", f"/keys/{made['key_id']}/rotate")).json()
    admin = (await office.asked("POST", "/admin-keys", {"role": "read"})).json()
    await ask(office.admin, "/metrics", key=made["key"]).finished()
    assert [] == [key for key in (made["key"], rotated["key"], admin["key"], HOUSE_KEY) if key in caplog.text]


async def test_a_rotation_overlaps_for_so_many_seconds() -> None:
    """Under the same id; then the old one is over, by the clock alone."""
    office = Office()
    asked = await office.asked("POST", f"/keys/{A}/rotate", {"overlap_s": 60})
    new, shown = asked.json()["key"], asked.json()
    assert (A, 2) == (shown["key_id"], len(shown["secrets"]))
    assert [True, True] == [await office.opens(key) for key in (new, "secret-a")]
    assert [A, A] == [office.keys.caller([f"Bearer {key}".encode()]).key_id for key in (new, "secret-a")]
    office.now_s += 60
    assert [True, False] == [await office.opens(key) for key in (new, "secret-a")]


async def test_without_overlap_the_old_secret_ends_at_once() -> None:
    """That is the default: a leaked key is rotated."""
    office = Office()
    new = (await office.asked("POST", f"/keys/{A}/rotate")).json()["key"]
    assert [True, False] == [await office.opens(key) for key in (new, "secret-a")]


async def test_a_revoked_key_ends_with_all_its_secrets() -> None:
    """For good."""
    office = Office()
    new = (await office.asked("POST", f"/keys/{A}/rotate", {"overlap_s": 60})).json()["key"]
    asked = await office.asked("POST", f"/keys/{A}/revoke")
    assert (200, "revoked") == (asked.status, asked.json()["state"])
    assert [False, False] == [await office.opens(key) for key in (new, "secret-a")]
    again = await office.asked("POST", f"/keys/{A}/rotate")
    assert (409, "key_ended") == (again.status, again.error()["code"])


async def test_a_key_ends_by_the_clock() -> None:
    """At that moment; the clock going back opens it again, as no row says that it ended."""
    office = Office()
    made = await created(office, expires_in_s=30)
    told = []
    for step_s in (29.9, 0.1, -1):
        office.now_s += step_s
        told.append(await office.opens(made["key"]))
    assert [True, False, True] == told
    assert made["expires_unix_s"] == pytest.approx(made["created_unix_s"] + 30)


async def test_an_end_can_be_set_and_taken_away_while_the_key_is_valid() -> None:
    """With the other terms of it."""
    office = Office()
    set_ = (await office.asked("PATCH", f"/keys/{A}", {"expires_in_s": 60, "label": "short"})).json()
    assert (office.now_s + 60, "short") == (set_["expires_unix_s"], set_["label"])
    assert None is (await office.asked("PATCH", f"/keys/{A}", {"expires_unix_s": None})).json()["expires_unix_s"]
    past = await office.asked("PATCH", f"/keys/{A}", {"expires_unix_s": NOW_US / 1e6})
    assert (400, "expires") == (past.status, past.error()["param"])


async def test_a_key_moves_within_its_tenant_and_to_another() -> None:
    """Callers are of the new place at once; where it would get more it is refused."""
    office = Office()
    assert "default" == (await office.asked("POST", f"/keys/{A}/move", {})).json()["project"]
    moved = (await office.asked("POST", f"/keys/{B}/move", {"tenant": "acme", "project": "search"})).json()
    assert ("acme", "search") == (moved["tenant"], moved["project"])
    assert "acme" == office.keys.caller([b"Bearer secret-b"]).tenant
    narrow = await created(office, zones=["hall-a"])
    await office.asked("POST", "/tenants", {"name": "elsewhere", "zones": ["hall-z"]})
    refused = await office.asked("POST", f"/keys/{narrow['key_id']}/move", {"tenant": "elsewhere"})
    assert (400, "beyond_tenant") == (refused.status, refused.error()["code"])


async def test_a_tenant_that_is_narrowed_narrows_its_keys_at_once() -> None:
    """Although the keys say something wider."""
    office = Office()
    made = await created(office, zones=["hall-a"], max_tier="default", data_class="important")
    await office.asked("PATCH", "/tenants/acme", {"zones": ["hall-b"], "max_tier": "flex", "data_class": "core"})
    caller = office.keys.caller([f"Bearer {made['key']}".encode()])
    assert (frozenset(), "FLEX", "CORE") == (caller.zones, caller.best_band.name, caller.data_class.name)


async def test_keys_are_listed_of_all_and_of_one_tenant() -> None:
    """Revoked ones among them."""
    office = Office()
    listed = (await office.asked("GET", "/keys")).json()["data"]
    assert sorted([A, B, key_id("secret-gone")]) == [row["key_id"] for row in listed]
    of_one = (await office.asked("GET", "/tenants/other/keys?limit=1")).json()
    assert (1, True) == (len(of_one["data"]), of_one["has_more"])


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"project": "no"}, "unknown_project", "project"),
        ({"max_tier": "priority"}, "beyond_tenant", "max_tier"),
        ({"zones": ["hall-c"]}, "beyond_tenant", "zones"),
        ({"data_class": "general"}, "beyond_tenant", "data_class"),
        ({"label": "<script>"}, "invalid_value", "label"),
        ({"expires_in_s": -1}, "invalid_value", "expires_in_s"),
        ({"budgets": [{"tokens": 1}]}, "invalid_value", "budgets[0]"),
        ({"key": "jw-my-own"}, "invalid_value", None),
    ],
)
async def test_a_key_that_cannot_be_is_refused(body: dict[str, Any], code: str, param: str | None) -> None:
    """And nothing of it is left."""
    office = Office()
    before = office.tenancy.directory.state()
    asked = await office.asked("POST", "/tenants/acme/keys", body)
    assert (code, param) == (asked.error()["code"], asked.error()["param"])
    assert before == office.tenancy.directory.state()
    assert "jw-my-own" not in asked.body.decode()


async def test_admin_keys_are_made_rotated_revoked_and_listed() -> None:
    """With a prefix of their own; the house's key is among them, marked as its file's."""
    office = Office()
    made = (await office.asked("POST", "/admin-keys", {"role": "billing", "label": "books", "expires_in_s": 60})).json()
    assert (True, "adm-", "billing") == (made["key"].startswith("jwa-"), made["key_id"][:4], made["role"])
    assert [200, 403] == [(await office.asked("GET", path, key=made["key"])).status for path in ("/tenants", "/keys")]
    new = (await office.asked("POST", f"/admin-keys/{made['key_id']}/rotate", {"overlap_s": 10})).json()["key"]
    assert [200, 200] == [(await office.asked("GET", "/tenants", key=key)).status for key in (new, made["key"])]
    office.now_s += 60
    assert 401 == (await office.asked("GET", "/tenants", key=new)).status
    listed = {row["key_id"]: row for row in (await office.asked("GET", "/admin-keys")).json()["data"]}
    assert ("file", "active", "expired") == (
        listed[HOUSE_ID]["source"], listed[R]["state"], listed[made["key_id"]]["state"],
    )  # fmt: skip
