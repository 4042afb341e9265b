"""What operators see: the file's words, states by the clock, and never a key."""

import msgspec

from scheduler.accounting import changes
from scheduler.accounting.change_log import Logged
from scheduler.accounting.changes import KeyTerms, Role
from scheduler.api.directory_views import (
    admin_key_view,
    audit_view,
    budgets_view,
    house_key_view,
    key_view,
    list_view,
    project_view,
    tenant_view,
    words,
)
from tests.directory_words import NOW_US, SECOND_US, TWO_TENANTS, admin_key, directory_of, key_id, sha256, tokens

A, R = key_id("secret-a"), key_id("secret-r", "adm-")
LATER_US = NOW_US + 1_000 * SECOND_US


def test_a_tenant_is_shown_as_the_file_writes_it() -> None:
    """With its projects and how many keys it has."""
    directory = directory_of([*TWO_TENANTS, changes.BudgetsSet(level="tenant", name="acme", budgets=(tokens(9),))])
    shown = tenant_view(directory.tenants["acme"], directory)
    assert ("acme", "default", ["default", "search"], "default", 1.0, "important", ("hall-a", "hall-b")) == tuple(
        shown[name] for name in ("name", "project", "projects", "max_tier", "weight", "data_class", "zones")
    )
    assert ([{"tokens": 9, "per": "1h"}], [], 1, False, NOW_US / 1e6, None) == tuple(
        shown[name] for name in ("budgets", "task_budgets", "num_keys", "is_closed", "created_unix_s", "closed_unix_s")
    )


def test_projects_show_their_budgets() -> None:
    """A tenant's own may have none."""
    tenant = directory_of(TWO_TENANTS).tenants["acme"]
    assert [(False, [{"tokens": 10, "per": "1h"}]), (True, [])] == [
        (shown["is_own"], shown["budgets"])
        for shown in (project_view(tenant, "search"), project_view(tenant, "default"))
    ]


def test_a_keys_state_is_told_by_hand_clock_and_tenant() -> None:
    """Revoked before expired before its tenant's."""
    ends = changes.KeyChanged(key_id=A, terms=KeyTerms(expires_us=NOW_US + 50 * SECOND_US))
    closed, revoked = changes.TenantClosed(name="acme"), changes.KeyRevoked(key_id=A)
    states = []
    for deeds in ((), (ends,), (closed,), (ends, closed), (ends, revoked)):
        directory = directory_of([*TWO_TENANTS, *deeds])
        states.append(key_view(directory.keys[A], directory, now_us=LATER_US)["state"])
    assert ["active", "expired", "tenant_closed", "expired", "revoked"] == states


def test_secrets_are_shown_by_their_first_digits_while_they_are_valid() -> None:
    """The newest first; none of the whole hash."""
    rotated = changes.KeyRotated(key_id=A, sha256=sha256("n"), overlap_s=60)
    directory = directory_of([*TWO_TENANTS, rotated])
    during = key_view(directory.keys[A], directory, now_us=NOW_US + 10 * SECOND_US)
    after = key_view(directory.keys[A], directory, now_us=LATER_US)
    assert [(sha256("n")[:10], None), (sha256("secret-a")[:10], NOW_US / 1e6 + 66)] == [
        (each["fingerprint"], each["until_unix_s"]) for each in during["secrets"]
    ]
    assert 1 == len(after["secrets"])
    assert sha256("n") not in repr(during)
    assert "search" == during["project"]


def test_admin_keys_and_the_house_key() -> None:
    """Both say where they come from."""
    directory = directory_of([*TWO_TENANTS, admin_key("b", Role.BILLING, label="books")])
    shown = admin_key_view(directory.admin_keys[key_id("b", "adm-")], now_us=LATER_US)
    assert ("billing", "books", "active", "api") == tuple(shown[name] for name in ("role", "label", "state", "source"))
    assert ("admin", "file") == (house_key_view("adm-1")["role"], house_key_view("adm-1")["source"])


def test_pages_and_rows() -> None:
    """As JSON can say them."""
    row = Logged(7, {"id": "chg-1", "what": "price_adopted"})
    page = list_view([audit_view(row), budgets_view("tenant", "a", (tokens(1),))], has_more=True, last=7)
    assert ("list", True, 7) == (page["object"], page["has_more"], page["last"])
    assert {"number": 7, "id": "chg-1", "what": "price_adopted"} == page["data"][0]
    assert words((tokens(1),)) == page["data"][1]["budgets"]
    msgspec.json.encode(page)
