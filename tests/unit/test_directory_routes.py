"""Tenants, projects, budgets and the audit log over HTTP (``scheduler.api.directory``)."""

from typing import Any

from scheduler.accounting.change_log import Logged
from scheduler.accounting.errors import LedgerError
from scheduler.api.directory import all_budgets, budgets_of
from tests.directory_office import Ledger, Office, directory_of_everybody
from tests.directory_words import key_id, tokens

A = key_id("secret-a")
HOUR = {"tokens": 5, "per": "1h"}


async def test_a_tenants_life() -> None:
    """Created, changed, closed, opened again; each answer shows it as it stands."""
    office = Office()
    made = await office.asked(
        "POST",
        "/tenants",
        {"name": "new", "weight": 2, "budgets": [HOUR], "task_budgets": [{"money": 1.5, "per": "total"}]},
    )
    assert (201, 2.0, [HOUR], [{"money": "1.5", "per": "total"}]) == (
        made.status, made.json()["weight"], made.json()["budgets"], made.json()["task_budgets"],
    )  # fmt: skip
    changed = (await office.asked("PATCH", "/tenants/new", {"max_tier": "flex", "zones": ["hall-a"]})).json()
    assert ("flex", ["hall-a"], 2.0) == (changed["max_tier"], changed["zones"], changed["weight"])
    assert (await office.asked("DELETE", "/tenants/new")).json()["is_closed"]
    opened = (await office.asked("PATCH", "/tenants/new", {"is_closed": False})).json()
    assert (False, "flex") == (opened["is_closed"], opened["max_tier"])
    assert opened == (await office.asked("GET", "/tenants/new")).json()
    listed = (await office.asked("GET", "/tenants")).json()
    assert ["acme", "new", "other"] == [row["name"] for row in listed["data"]]


async def test_opening_again_stands_alone() -> None:
    """One change is one row."""
    office = Office()
    await office.asked("DELETE", "/tenants/acme")
    asked = await office.asked("PATCH", "/tenants/acme", {"is_closed": False, "weight": 3})
    assert (400, "is_closed") == (asked.status, asked.error()["param"])


async def test_keys_of_a_closed_tenant_open_nothing_until_it_is_opened() -> None:
    """At once, both ways."""
    office = Office()
    told = []
    for method, body in (("DELETE", None), ("PATCH", {"is_closed": False})):
        await office.asked(method, "/tenants/acme", body)
        told.append((await office.opens("secret-a"), await office.opens("secret-b")))
    assert [(False, True), (True, True)] == told


async def test_projects_are_made_and_removed() -> None:
    """A tenant's own is among them."""
    office = Office()
    made = await office.asked("POST", "/tenants/acme/projects", {"name": "p", "budgets": [HOUR]})
    assert (201, [HOUR], False) == (made.status, made.json()["budgets"], made.json()["is_own"])
    listed = (await office.asked("GET", "/tenants/acme/projects?limit=2")).json()
    assert (["default", "p"], True) == ([row["name"] for row in listed["data"]], listed["has_more"])
    removed = await office.asked("DELETE", "/tenants/acme/projects/p")
    assert (200, ["default", "search"]) == (removed.status, removed.json()["projects"])
    in_use = await office.asked("DELETE", "/tenants/acme/projects/search")
    assert (409, "in_use") == (in_use.status, in_use.error()["code"])


async def test_budgets_of_every_level_are_set_and_shown() -> None:
    """One level, or everything that has any."""
    office = Office()
    levels = [("tenant", "acme"), ("task", "acme"), ("project", "acme/search"), ("key", A)]
    for level, name in levels:
        asked = await office.asked("PUT", "/budgets", {"level": level, "name": name, "budgets": [HOUR]})
        assert (200, [HOUR]) == (asked.status, asked.json()["budgets"])
        shown = (await office.asked("GET", f"/budgets?level={level}&name={name}")).json()
        assert {"level": level, "name": name, "budgets": [HOUR]} == shown
    listed = (await office.asked("GET", "/budgets")).json()["data"]
    assert levels == [(row["level"], row["name"]) for row in listed]


async def test_budgets_of_nothing_are_refused() -> None:
    """Each in its words."""
    told = {}
    for query in ("level=tenant", "level=x&name=acme", "level=tenant&name=no", "level=project&name=acme/no",
                  "level=project&name=acme", "level=key&name=no"):  # fmt: skip
        asked = await Office().asked("GET", f"/budgets?{query}")
        told[query] = (asked.status, asked.error()["code"])
    assert [(400, "invalid_query"), (400, "invalid_value"), (404, "unknown_tenant"), (404, "unknown_project"),
            (404, "unknown_project"), (404, "unknown_key")] == list(told.values())  # fmt: skip


def test_every_budget_is_found_from_above() -> None:
    """What is listed is what each level has."""
    directory = directory_of_everybody()
    for level, name, budgets in all_budgets(directory):
        assert budgets == budgets_of(directory, level, name)
    assert (tokens(10),) == budgets_of(directory, "project", "acme/search")


async def test_the_audit_log_is_paged_backwards() -> None:
    """Who, what, to whom, with the new values and no key."""
    office = Office()
    for name in "abc":
        await office.asked("POST", "/tenants", {"name": name})
    first = (await office.asked("GET", "/audit?limit=2")).json()
    assert (["c", "b"], True) == ([row["target"] for row in first["data"]], first["has_more"])
    row: dict[str, Any] = first["data"][0]
    assert ("tenant_created", "admin", "c") == (row["what"], row["who"]["role"], row["values"]["name"])
    second = (await office.asked("GET", f"/audit?limit=2&before={first['last']}")).json()
    assert (["a"], False) == ([row["target"] for row in second["data"]], second["has_more"])
    empty = (await office.asked("GET", f"/audit?before={second['last']}")).json()
    assert ([], None) == (empty["data"], empty["last"])
    for before in ("x", "-1", "", "9" * 30):
        assert 400 == (await office.asked("GET", f"/audit?before={before}")).status


async def test_an_audit_log_that_cannot_be_read_is_said_without_the_ledgers_words() -> None:
    """Come again."""

    class Away(Ledger):
        async def page(self, *, before: int | None, limit: int) -> list[Logged]:
            raise LedgerError("postgresql://CANARY: connection refused")

    asked = await Office(log=Away()).asked("GET", "/audit")
    assert (503, "ledger_unavailable", "5") == (asked.status, asked.error()["code"], asked.headers["retry-after"])
    assert b"CANARY" not in asked.body
