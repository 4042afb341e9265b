"""A change is checked, logged, durable and then in effect; what takes away is in effect at once; denials leave rows."""

import asyncio
import logging
from typing import Any

import pytest

from scheduler.accounting import changes
from scheduler.accounting.changes import Change, Deed, KeyTerms, TenantTerms
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import ChangeRefused
from scheduler.tenancy import NotCommitted, Tenancy, new_change_id
from tests.asgi_client import ask
from tests.directory_office import CALLERS, FOREIGN_ID, HOUSE_ID, NOW_S, Ledger, Office
from tests.directory_words import TWO_TENANTS, WHO, changed, key, key_id, sha256, tenant

A, B = key_id("secret-a"), key_id("secret-b")


def tenancy_of(ledger: Ledger, **how: Any) -> Tenancy:
    return Tenancy(
        log=ledger,
        directory=Directory.of(changed(*TWO_TENANTS)),
        publish=lambda: ledger.events.append("publish"),
        unix_clock=lambda: NOW_S,
        **how,
    )


async def make(tenancy: Tenancy, deed: Deed, change_id: str = "chg-x") -> bool:
    return await tenancy.change(deed, who=WHO, change_id=change_id)


async def test_a_change_is_in_effect_once_it_is_durable() -> None:
    """Log, commit, effect; and the row says who, what and when."""
    ledger = Ledger()
    tenancy = tenancy_of(ledger)
    assert await make(tenancy, tenant("new"))
    assert ["tenant_created", "commit", "publish"] == ledger.events
    (row,) = await tenancy.page(before=None, limit=10)
    assert ("chg-x", "admin", int(NOW_S * 1e6)) == (
        row.fields["id"], row.fields["who"]["role"], row.fields["at_us"],
    )  # fmt: skip
    assert "new" in tenancy.directory.tenants


@pytest.mark.parametrize(
    "deed",
    [
        changes.KeyRevoked(key_id=A),
        changes.AdminKeyRevoked(key_id=key_id("secret-r", "adm-")),
        changes.TenantClosed(name="acme"),
        changes.KeyRotated(key_id=A, sha256=sha256("next"), overlap_s=0),
        changes.AdminKeyRotated(key_id=key_id("secret-r", "adm-"), sha256=sha256("next"), overlap_s=0),
    ],
)
async def test_what_takes_away_does_not_wait_for_the_disk(deed: Deed) -> None:
    """A key that leaked is closed although the ledger hangs."""
    ledger = Ledger()
    ledger.may_commit.clear()
    making = asyncio.create_task(make(tenancy_of(ledger), deed))
    await asyncio.sleep(0)
    assert "publish" == ledger.events[-1]
    assert not making.done()
    ledger.may_commit.set()
    await making


async def test_what_is_refused_is_not_logged() -> None:
    """Nothing happened."""
    ledger = Ledger()
    with pytest.raises(ChangeRefused):
        await make(tenancy_of(ledger), tenant("acme"))
    assert [] == ledger.events


async def test_the_same_change_is_made_once() -> None:
    """The second waits until the first is durable, whatever it says."""
    ledger = Ledger()
    tenancy = tenancy_of(ledger)
    assert [True, False] == [await make(tenancy, tenant("new")), await make(tenancy, tenant("new"))]
    assert 1 == ledger.events.count("tenant_created")
    assert 2 == ledger.events.count("commit")


async def test_a_ledger_that_does_not_commit_is_said_and_the_change_waits() -> None:
    """Order in log and directory stay the same; once it commits again everything is in effect."""
    ledger = Ledger()
    tenancy = tenancy_of(ledger)
    ledger.error = OSError("disk full")
    with pytest.raises(NotCommitted, match="OSError"):
        await make(tenancy, tenant("new"))
    assert ["tenant_created"] == ledger.events
    ledger.error = None
    assert not await make(tenancy, tenant("new"))
    assert ["tenant_created", "commit", "publish"] == ledger.events


async def test_a_rotation_with_an_overlap_waits_for_the_disk() -> None:
    """The secret before is valid meanwhile."""
    ledger = Ledger()
    ledger.may_commit.clear()
    making = asyncio.create_task(
        make(tenancy_of(ledger), changes.KeyRotated(key_id=A, sha256=sha256("next"), overlap_s=9))
    )
    await asyncio.sleep(0)
    assert "publish" not in ledger.events
    ledger.may_commit.set()
    await making


@pytest.mark.parametrize("way", ["failed", "late", "left"])
async def test_a_change_that_is_durable_late_is_in_effect_then(way: str) -> None:
    """Nobody asks again: the commit failed, took too long, or whoever asked left."""
    ledger = Ledger()
    tenancy = tenancy_of(ledger, retry_s=0.001, commit_timeout_s=0.01 if way == "late" else 9)
    if way == "failed":
        ledger.error = OSError("disk full")
    else:
        ledger.may_commit.clear()
    making = asyncio.create_task(make(tenancy, tenant("new")))
    await asyncio.sleep(0.005)
    if way == "left":
        making.cancel()
    with pytest.raises((NotCommitted, asyncio.CancelledError)):
        await making
    assert ["tenant_created"] == ledger.events
    await asyncio.sleep(0.01)
    ledger.error = None
    ledger.may_commit.set()
    assert tenancy._late is not None
    await tenancy._late
    assert ["tenant_created", "commit", "publish"] == ledger.events


async def test_a_stop_waits_for_no_commit() -> None:
    """The next start finds what became durable."""
    ledger = Ledger()
    tenancy = tenancy_of(ledger)
    await tenancy.stop()
    ledger.error = OSError("disk full")
    with pytest.raises(NotCommitted):
        await make(tenancy, tenant("new"))
    await asyncio.wait_for(tenancy.stop(), 1)
    assert "publish" not in ledger.events


async def test_the_wait_for_a_commit_has_an_end() -> None:
    """Named in the time-out."""
    ledger = Ledger()
    ledger.may_commit.clear()
    with pytest.raises(NotCommitted, match="TimeoutError"):
        await make(tenancy_of(ledger, commit_timeout_s=0.01), tenant("new"))


async def test_a_log_that_takes_nothing_changes_nothing() -> None:
    """Not even in memory."""
    ledger = Ledger()
    tenancy = tenancy_of(ledger)
    ledger.append_error = OSError("closed")
    with pytest.raises(OSError, match="closed"):
        await make(tenancy, tenant("new"))
    assert "new" not in tenancy.directory.tenants


async def test_changes_that_come_together_keep_the_order_of_the_log() -> None:
    """A log folded again is the directory as it stands."""
    ledger = Ledger()
    tenancy = tenancy_of(ledger)
    deeds: list[Deed] = [tenant("new"), key("k", "new"), changes.TenantClosed(name="new"), key("late", "new")]
    told = await asyncio.gather(
        *(make(tenancy, deed, f"chg-{number}-new") for number, deed in enumerate(deeds)), return_exceptions=True
    )
    assert [True, True, True, ChangeRefused] == [each if each is True else type(each) for each in told]
    rows = [Change.of(dict(row.fields)) for row in reversed(await tenancy.page(before=None, limit=100))]
    assert tenancy.directory.state() == Directory.of([*changed(*TWO_TENANTS), *rows]).state()


@pytest.mark.parametrize(
    "deed",
    [
        tenant("new", zones=("mars",)),
        changes.TenantChanged(name="other", terms=TenantTerms(zones=("mars",))),
        key("k", "other", zones=("mars",)),
        changes.KeyChanged(key_id=B, terms=KeyTerms(zones=("mars",))),
    ],
)
async def test_zones_are_the_configurations(deed: Deed) -> None:
    """A name that no worker could have is a slip."""

    def problem(data_class: str, zones: tuple[str, ...] | None) -> str | None:
        return "zones: there is no zone 'mars'" if zones == ("mars",) else None

    ledger = Ledger()
    with pytest.raises(ChangeRefused, match="there is no zone") as caught:
        await make(tenancy_of(ledger, zone_problem=problem), deed)
    assert ("zones", []) == (caught.value.field, ledger.events)


async def test_a_move_is_checked_with_the_new_tenants_zones_and_class() -> None:
    """What the key leaves open is its tenant's."""
    asked: list[Any] = []
    tenancy = tenancy_of(Ledger(), zone_problem=lambda *data: asked.append(data))
    await make(tenancy, changes.KeyMoved(key_id=B, tenant="acme", project=None))
    await make(tenancy, changes.KeyRevoked(key_id=B), "chg-y")
    assert [("important", ("hall-a", "hall-b"))] == asked


async def test_what_the_file_says_is_logged_as_the_files() -> None:
    """Applied one by one, so that a deed may rest on the one before."""
    ledger = Ledger()
    tenancy = tenancy_of(ledger)
    tenancy.record([tenant("new"), key("k", "new")])
    assert ["tenant_created", "key_created"] == ledger.events
    assert {("file", None)} == {
        (row.fields["who"]["role"], row.fields["who"]["key_id"]) for row in await tenancy.page(before=None, limit=9)
    }


# -- through the listeners


async def test_a_revoked_key_is_closed_after_the_answer_and_others_stay_open() -> None:
    """Requests that come later get 401."""
    office = Office()
    assert await office.opens("secret-a")
    assert 200 == (await office.asked("POST", f"/keys/{A}/revoke")).status
    assert [False, True] == [await office.opens("secret-a"), await office.opens("secret-b")]


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("/v1/completions", b'{"model": "m", "prompt": "x"'),
        ("/v1/jouleway/what-if", b'{"url": "/v1/completions", "body": {"model": "m", "prompt": "x"}'),
        ("/v1/jouleway/outcomes", b'{"task": "nightly", "accepted": true'),
    ],
)
async def test_a_key_that_is_revoked_while_a_body_is_held_open_opens_nothing(path: str, start: bytes) -> None:
    """It was good when the headers came."""
    office = Office()
    held = ask(office.relay, path, start, key="secret-a", ends=False)
    await asyncio.sleep(0)
    assert 200 == (await office.asked("POST", f"/keys/{A}/revoke")).status
    held.send_last(b"}")
    await held.finished()
    assert (401, "invalid_api_key") == (held.status, held.error()["code"])
    assert [] == office.dispatcher.submissions + office.dispatcher.asked


async def test_an_admin_key_that_is_revoked_while_its_body_is_held_open_changes_nothing() -> None:
    """Before as after it."""
    office = Office()
    own = key_id("secret-admin", "adm-")
    held = ask(office.admin, "/v1/jouleway/admin/tenants", b'{"name": "new"', key="secret-admin", ends=False)
    await asyncio.sleep(0)
    assert 200 == (await office.asked("POST", f"/admin-keys/{own}/revoke")).status
    held.send_last(b"}")
    await held.finished()
    assert (401, False) == (held.status, "new" in office.tenancy.directory.tenants)


async def test_denied_accesses_leave_rows_that_say_whose_key_it_was(caplog: pytest.LogCaptureFixture) -> None:
    """On both listeners; neither a key nor a path as it was asked is written down."""
    caplog.set_level(logging.DEBUG)
    office = Office()
    for caller in ("nobody", "stranger", "tenant", "revoked admin", "billing"):
        await ask(office.admin, "/v1/jouleway/admin/keys/CANARY/rotate", {}, key=CALLERS[caller]).finished()
    await ask(office.relay, "/v1/models/CANARY", key=CALLERS["admin"], source="10.0.0.9").finished()
    await ask(office.relay, "/v1/models", key=CALLERS["tenant"]).finished()
    rows = await office.rows()
    who = [("nobody", None), ("nobody", None), ("tenant", A), ("admin", key_id("secret-revoked", "adm-")),
           ("billing", key_id("secret-billing", "adm-")), ("admin", key_id("secret-admin", "adm-"))]  # fmt: skip
    assert who == [(row["who"]["role"], row["who"]["key_id"]) for row in rows]
    assert {"access_denied"} == {row["what"] for row in rows}
    assert [(401, "invalid_api_key")] * 4 + [(403, "role_not_allowed"), (401, "invalid_api_key")] == [
        (row["values"]["status"], row["values"]["code"]) for row in rows
    ]
    assert ("admin /v1/jouleway/admin/keys/{key}/rotate", "127.0.0.1") == (
        rows[0]["target"], rows[0]["values"]["source"],
    )  # fmt: skip
    assert ("server /v1/models/…", "10.0.0.9") == (rows[-1]["target"], rows[-1]["values"]["source"])
    written = repr(rows) + caplog.text
    assert [] == [word for word in ("CANARY", *CALLERS.values()) if word is not None and word in written]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jouleway/receipts/{}", None),
        ("/v1/jouleway/requests/{}", None),
        ("/v1/jouleway/outcomes", {"request_id": "{}", "accepted": True}),
    ],
)
async def test_whoever_tries_anothers_request_is_in_the_audit_log(path: str, body: dict[str, Any] | None) -> None:
    """Though its answer is that of a request that never was, which is in no log; nor is one's own."""
    office = Office()
    office.dispatcher.stories = {FOREIGN_ID: {"tenant": "other"}}
    answers = []
    for secret, name in (("secret-a", FOREIGN_ID), ("secret-a", "req-" + "n" * 26), ("secret-b", FOREIGN_ID)):
        asked_body = None if body is None else {**body, "request_id": name}
        asked = await ask(office.relay, path.format(name), asked_body, key=secret).finished()
        answers.append((asked.status, asked.body, asked.headers.keys()))
    assert (404, answers[0]) == (answers[0][0], answers[1])
    (row,) = await office.rows()
    assert ("tenant", A, 404, "request_not_found") == (
        row["who"]["role"], row["who"]["key_id"], row["values"]["status"], row["values"]["code"],
    )  # fmt: skip
    assert FOREIGN_ID not in repr(row)


async def test_a_flood_of_denials_is_bounded_and_counted() -> None:
    """So many rows a minute; the next minute's row says how many had none."""
    office = Office()
    for _ in range(25):
        await ask(office.admin, "/metrics", key="jw-wrong").finished()
    assert 10 == len(await office.rows())
    office.now_s += 60
    await ask(office.admin, "/metrics", key="jw-wrong").finished()
    assert 15 == (await office.rows())[-1]["values"]["also_denied"]


async def test_a_denial_that_cannot_be_logged_is_still_denied(caplog: pytest.LogCaptureFixture) -> None:
    """The answer left before."""
    ledger = Ledger()
    ledger.error = OSError("disk full")
    asked = await ask(Office(log=ledger).admin, "/metrics", key="jw-wrong").finished()
    assert 401 == asked.status
    assert "a denied access is not in the audit log: NotCommitted" in caplog.text


async def test_the_answer_to_a_denied_access_does_not_wait_for_the_disk() -> None:
    """It leaves first."""
    ledger = Ledger()
    ledger.may_commit.clear()
    asked = ask(Office(log=ledger).admin, "/metrics", key="jw-wrong")
    await asked.until(lambda it: it.is_complete)
    assert (401, False) == (asked.status, asked.task.done())
    ledger.may_commit.set()
    await asked.finished()


def test_ids_of_changes_cannot_be_guessed() -> None:
    """And look like one."""
    first, second = new_change_id(), new_change_id()
    assert first != second
    assert (30, "chg-") == (len(first), first[:4])
    assert HOUSE_ID.startswith("adm-")
    assert sha256("x") != first
