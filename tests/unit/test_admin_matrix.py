"""Every admin route × everybody who could come: who may, and that nothing foreign is told from nothing at all."""

import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from scheduler.accounting.changes import Role
from scheduler.api.admin_routes import Route
from scheduler.api.app import METHODS, PREFIXES
from scheduler.snapshot import BudgetSnapshot
from tests.asgi_client import Asked, ask
from tests.directory_office import CALLERS, HOUSE_ID, ROLE_OF, Office
from tests.directory_words import key_id
from tests.local_link import control_plane

ALL, SEES, CHANGES = frozenset(Role), frozenset({Role.ADMIN, Role.READ}), frozenset({Role.ADMIN})
ADMIN = "/v1/jouleway/admin"

EXPECTED: dict[tuple[str, str], frozenset[Role]] = {
    ("GET", "/metrics"): SEES,
    ("GET", "/v1/jouleway/requests/{request}"): SEES,
    ("GET", "/v1/jouleway/snapshot"): SEES,
    ("GET", "/v1/jouleway/workers"): SEES,
    ("GET", "/v1/jouleway/queues"): SEES,
    ("GET", "/v1/jouleway/budgets"): ALL,
    ("GET", "/v1/jouleway/balance"): ALL,
    ("GET", "/v1/jouleway/receipts/{request}"): SEES,
    ("GET", "/v1/jouleway/checkpoint"): ALL,
    ("GET", "/v1/jouleway/usage"): ALL,
    ("GET", "/v1/jouleway/models"): ALL,
    ("GET", "/v1/organization/usage/completions"): ALL,
    ("GET", "/v1/organization/costs"): ALL,
    ("GET", f"{ADMIN}/tenants"): ALL,
    ("POST", f"{ADMIN}/tenants"): CHANGES,
    ("GET", f"{ADMIN}/tenants/{{tenant}}"): ALL,
    ("PATCH", f"{ADMIN}/tenants/{{tenant}}"): CHANGES,
    ("DELETE", f"{ADMIN}/tenants/{{tenant}}"): CHANGES,
    ("GET", f"{ADMIN}/tenants/{{tenant}}/projects"): ALL,
    ("POST", f"{ADMIN}/tenants/{{tenant}}/projects"): CHANGES,
    ("DELETE", f"{ADMIN}/tenants/{{tenant}}/projects/{{project}}"): CHANGES,
    ("GET", f"{ADMIN}/budgets"): ALL,
    ("PUT", f"{ADMIN}/budgets"): CHANGES,
    ("GET", f"{ADMIN}/audit"): SEES,
    ("GET", f"{ADMIN}/keys"): SEES,
    ("GET", f"{ADMIN}/tenants/{{tenant}}/keys"): SEES,
    ("POST", f"{ADMIN}/tenants/{{tenant}}/keys"): CHANGES,
    ("GET", f"{ADMIN}/keys/{{key}}"): SEES,
    ("PATCH", f"{ADMIN}/keys/{{key}}"): CHANGES,
    ("POST", f"{ADMIN}/keys/{{key}}/rotate"): CHANGES,
    ("POST", f"{ADMIN}/keys/{{key}}/revoke"): CHANGES,
    ("POST", f"{ADMIN}/keys/{{key}}/move"): CHANGES,
    ("GET", f"{ADMIN}/admin-keys"): SEES,
    ("POST", f"{ADMIN}/admin-keys"): CHANGES,
    ("POST", f"{ADMIN}/admin-keys/{{key}}/rotate"): CHANGES,
    ("POST", f"{ADMIN}/admin-keys/{{key}}/revoke"): CHANGES,
}
"""A new route needs a row here: who may is decided, never forgotten."""

A, B, R = key_id("secret-a"), key_id("secret-b"), key_id("secret-r", "adm-")
TENANT_KEY, ADMIN_KEY = {"request": "req-x", "tenant": "acme", "project": "search", "key": A}, {"key": R}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", f"{ADMIN}/tenants"): {"name": "new"},
    ("PATCH", f"{ADMIN}/tenants/{{tenant}}"): {"weight": 2},
    ("POST", f"{ADMIN}/tenants/{{tenant}}/projects"): {"name": "p"},
    ("PUT", f"{ADMIN}/budgets"): {"level": "tenant", "name": "acme", "budgets": []},
    ("POST", f"{ADMIN}/admin-keys"): {"role": "read"},
}
MAY_BE_REFUSED = {
    ("GET", "/v1/jouleway/requests/{request}"): 404,  # nothing ran
    ("GET", "/v1/jouleway/receipts/{request}"): 404,
    ("GET", "/v1/jouleway/usage"): 400,  # of which time is not said
    ("GET", "/v1/organization/usage/completions"): 400,
    ("GET", "/v1/organization/costs"): 400,
    ("DELETE", f"{ADMIN}/tenants/{{tenant}}/projects/{{project}}"): 409,  # a key names it
}


@pytest_asyncio.fixture
async def office() -> AsyncIterator[Office]:
    async with control_plane() as plane:
        yield Office(dispatcher=plane.dispatcher)


def routes_of(office: Office) -> dict[tuple[str, str], Route]:
    return {(route.method, route.path): route for route in office.admin.routes}


def path_of(template: str, **names: str) -> str:
    names = {**(ADMIN_KEY if "/admin-keys/" in template else TENANT_KEY), **names}
    return template.format(**names)


async def put(office: Office, route: tuple[str, str], caller: str, **names: str) -> Asked:
    method, template = route
    body = None if method == "GET" else BODIES.get(route, {})
    key = CALLERS[caller]
    return await ask(office.admin, path_of(template, **names), body, method=method, key=key).finished()


def test_every_route_has_its_row() -> None:
    """And says the same itself."""
    assert EXPECTED == {name: route.roles for name, route in routes_of(Office()).items()}
    assert CHANGES == frozenset.union(*(roles for (method, _), roles in EXPECTED.items() if method != "GET"))


@pytest.mark.parametrize("route", EXPECTED, ids=" ".join)
async def test_who_may(office: Office, route: tuple[str, str]) -> None:
    """Whoever has no admin key gets 401 and the same words each; another role 403; only then is anything done."""
    before = office.tenancy.directory.state()
    for caller in CALLERS:
        if ROLE_OF.get(caller) in EXPECTED[route]:
            continue
        asked = await put(office, route, caller)
        expected = (403, "role_not_allowed") if caller in ROLE_OF else (401, "invalid_api_key")
        assert expected == (asked.status, asked.error()["code"]), caller
        if caller not in ("nobody", *ROLE_OF):
            assert "Incorrect API key provided." == asked.error()["message"]
        assert before == office.tenancy.directory.state(), caller
    for caller in ROLE_OF:
        if ROLE_OF[caller] in EXPECTED[route]:
            asked = await put(Office(dispatcher=office.dispatcher), route, caller)
            assert asked.status in (200, 201, MAY_BE_REFUSED.get(route, 200)), (caller, asked.body)
            assert "no-store" == asked.headers.get("cache-control", "no-store")


@pytest.mark.parametrize("route", [route for route in EXPECTED if "{" in route[1]], ids=" ".join)
async def test_what_is_foreign_is_told_like_what_is_not_there(office: Office, route: tuple[str, str]) -> None:
    """An id of the other kind, of nobody, of the house: same status, same words, same headers."""
    nowhere = {"request": "req-nobody", "tenant": "nobody", "key": "key-0000000000"}
    foreign = {"request": "req-other", "tenant": A, "key": A if "/admin-keys/" in route[1] else R}
    answers = []
    for names in (nowhere, foreign):
        asked = await put(office, route, "admin", **names)
        headers = {name: value for name, value in asked.headers.items() if name != "x-request-id"}
        answers.append((asked.status, headers, asked.body))
    assert answers[0] == answers[1]
    assert 404 == answers[0][0]


async def test_a_project_of_another_tenant_is_not_there(office: Office) -> None:
    """Below the wrong tenant."""
    route = ("DELETE", f"{ADMIN}/tenants/{{tenant}}/projects/{{project}}")
    wrong = await put(office, route, "admin", tenant="other", project="search")
    nowhere = await put(office, route, "admin", tenant="other", project="nobody")
    assert (404, wrong.body) == (wrong.status, nowhere.body)


async def test_what_is_foreign_takes_as_long_as_what_is_not_there(office: Office) -> None:
    """Medians of many, alternating: what differs is noise."""
    for route in (("POST", f"{ADMIN}/keys/{{key}}/revoke"), ("POST", f"{ADMIN}/admin-keys/{{key}}/revoke")):
        foreign = A if "/admin-keys/" in route[1] else R
        times_s: dict[str, list[float]] = {"key-0000000000": [], foreign: []}
        for _ in range(60):
            for name, taken_s in times_s.items():
                started_s = time.perf_counter()
                assert 404 == (await put(office, route, "admin", key=name)).status
                taken_s.append(time.perf_counter() - started_s)
        nowhere_s, foreign_s = (statistics.median(taken_s) for taken_s in times_s.values())
        assert 1 / 3 < nowhere_s / foreign_s < 3


async def test_no_admin_key_opens_a_tenants_route(office: Office) -> None:
    """Nor does one that was revoked; whoever it is gets the words of a wrong key."""
    paths = [path for path in METHODS if path not in ("/health", "/ready")] + [f"{prefix}x" for prefix in PREFIXES]
    for path in paths:
        for caller in ("stranger", "revoked tenant", "revoked admin", "billing", "read", "admin", "house"):
            body = {} if METHODS.get(path) == ("POST",) else None
            asked = await ask(office.relay, path, body, key=CALLERS[caller]).finished()
            assert (401, "invalid_api_key") == (asked.status, asked.error()["code"]), (path, caller)


async def test_the_house_key_cannot_be_taken_away(office: Office) -> None:
    """It lies in its file; nobody can lock everybody out."""
    for deed in ("rotate", "revoke"):
        asked = await put(office, ("POST", f"{ADMIN}/admin-keys/{{key}}/{deed}"), "admin", key=HOUSE_ID)
        assert (409, "owned_by_file") == (asked.status, asked.error()["code"])


# -- what is shown to those who bill


async def shown(office: Office, path: str, caller: str) -> Any:
    asked = await ask(office.admin, path, key=CALLERS[caller]).finished()
    assert 200 == asked.status, asked.body
    return asked.json()


async def test_whoever_bills_sees_neither_machines_nor_budgets_of_keys(office: Office) -> None:
    """On the routes that all roles have; nothing else is missing from them."""
    near = [
        BudgetSnapshot(level=level, measure="tokens", window="1h", limit=1, used=1, held=0, left=0, resets_unix_s=None)
        for level in ("tenant acme", f"key {A}", "project acme/search", "task acme/keys")
    ]
    snapshot = replace(office.dispatcher.snapshot(), budgets_near_limit=tuple(near))
    office.dispatcher.snapshot = lambda: snapshot
    for level, name in (("key", A), ("tenant", "acme")):
        body = {"level": level, "name": name, "budgets": [{"tokens": 1, "per": "1h"}]}
        assert (
            200
            == (await ask(office.admin, f"{ADMIN}/budgets", body, method="PUT", key=CALLERS["admin"]).finished()).status
        )
    for caller in ROLE_OF:
        is_operator = caller != "billing"
        balance, budgets, set_ones = [
            await shown(office, path, caller)
            for path in ("/v1/jouleway/balance", "/v1/jouleway/budgets", f"{ADMIN}/budgets")
        ]
        assert (is_operator, {"balance", "tenants"}) == ("workers" in balance, balance.keys() - {"workers"})
        assert (4 if is_operator else 3, {"budgets", "held", "excess"}) == (len(budgets["budgets"]), budgets.keys())
        assert is_operator == any(row["level"] == "key" for row in set_ones["data"])
        assert is_operator == (A in repr((balance, budgets, set_ones)))


async def test_whoever_bills_asks_for_no_keys_budgets(office: Office) -> None:
    """Known or not; those of others it gets."""
    for name, caller, status in ((A, "billing", 403), ("key-0000000000", "billing", 403), (A, "read", 200)):
        path = f"{ADMIN}/budgets?level=key&name={name}"
        assert status == (await ask(office.admin, path, key=CALLERS[caller]).finished()).status
    await shown(office, f"{ADMIN}/budgets?level=tenant&name=acme", "billing")
