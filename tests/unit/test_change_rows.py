"""Changes as rows of a real ledger: none is written twice, however late and wherever it is asked for again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from scheduler.accounting import change_rows, changes, known_changes
from scheduler.accounting.change_rows import LedgerChangeLog
from scheduler.accounting.directory import Directory
from scheduler.accounting.rows import decode
from tests.directory_office import Office
from tests.directory_words import changed, key, key_id, tenant
from tests.ledger_words import Life, execute, living

A = key_id("secret-a")
ONCE = {"idempotency-key": "once"}


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    with living(f"sqlite:///{tmp_path / 'ledger.db'}") as life:
        yield life


def log_of(life: Life) -> LedgerChangeLog:
    log = LedgerChangeLog(life.ledger)
    log.attach(life.settlement, life.ledger)
    return log


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/tenants/acme", {"weight": 2}),
        ("POST", f"/keys/{A}/rotate", {}),
        ("POST", "/tenants/acme/keys", {}),
        ("PUT", "/budgets", {"level": "tenant", "name": "acme", "budgets": [{"tokens": 7, "per": "1h"}]}),
    ],
)
async def test_a_change_that_comes_again_after_all_others_is_made_once(
    life: Life, method: str, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second row of its id could never be stored, nor anything after it."""
    monkeypatch.setattr(known_changes, "MAX_KNOWN_CHANGES", 2)
    office = Office(log=log_of(life))
    first = await office.asked(method, path, body, headers=ONCE)
    assert first.status in (200, 201), first.body
    for number in range(4):
        assert 201 == (await office.asked("POST", "/tenants", {"name": f"new-{number}"})).status
    assert 200 == (await office.asked("PATCH", "/tenants/acme", {"weight": 5})).status
    state, rows = office.tenancy.directory.state(), await office.rows()
    again = await office.asked(method, path, body, headers=ONCE)
    if "key" in first.json():
        assert (409, "already_made") == (again.status, again.error()["code"])
    else:
        assert (200, "1") == (again.status, again.headers["x-jouleway-replayed"])
    assert (state, rows) == (office.tenancy.directory.state(), await office.rows())
    assert 201 == (await office.asked("POST", "/tenants", {"name": "after"})).status
    assert len(rows) + 1 == len(await office.rows())


async def test_what_waits_for_the_database_is_held_too(life: Life) -> None:
    """Before the ledger is attached, appended, durable."""
    log = LedgerChangeLog(life.ledger)
    (change,) = changed(tenant("a"))
    assert not await log.holds(change.change_id)
    log.append(change)
    assert await log.holds(change.change_id)
    log.attach(life.settlement, life.ledger)
    assert await log.holds(change.change_id)
    await log.commit()
    assert ({}, True) == (log._waiting, await log.holds(change.change_id))
    assert Directory.of(changed(tenant("a"))).state() == Directory.of(log.changes()).state()


async def test_denied_accesses_are_not_read_when_the_directory_is_made_again(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can make those. Not even decoded where an earlier version gave them ids like any; the log shows them."""
    log, label = log_of(life), '","what":"access_denied","'
    deed = changes.AccessDenied(listener="server", source="::1", route="/x", status=401, code="w", also_denied=0)
    for number, change_id in enumerate(("dny-a", "chg-of-an-earlier-version")):
        log.append(changes.Change(change_id=change_id, at_us=number, who=changes.NOBODY, deed=deed))
    for change in changed(key("s", label=label)):
        log.append(change)
    await log.commit()
    decoded: list[str] = []
    monkeypatch.setattr(change_rows, "decode", lambda body: decoded.append(body) or decode(body))  # type: ignore[func-returns-value]
    assert [label] == [change.deed.terms.label for change in log.changes()]  # type: ignore[union-attr]
    assert 1 == len(decoded)
    assert ["key_created", "access_denied", "access_denied"] == [
        row.fields["what"] for row in await log.page(before=None, limit=9)
    ]


def test_reading_changes_without_denials_takes_its_index(tmp_path: Path) -> None:
    """Else every start would look at whatever anybody sent."""
    url, asked = f"sqlite:///{tmp_path / 'ledger.db'}", []
    with living(url) as life:
        with life.ledger.reading() as connection:
            sa.event.listen(connection.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
        list(life.ledger.of_kind("change", without=changes.DENIAL_PREFIX))
    (plan,) = execute(url, f"EXPLAIN QUERY PLAN {asked[-1].replace('?', '1')}")
    assert "USING INDEX rows_of_deeds" in plan.detail
