"""Tenants, keys, budgets and rows of the log as lines of a table."""

from scheduler.commands.directory_view import (
    ADMIN_KEY_COLUMNS,
    AUDIT_COLUMNS,
    BUDGET_COLUMNS,
    KEY_COLUMNS,
    MAX_DETAIL_CHARS,
    TENANT_COLUMNS,
    admin_key_row,
    audit_row,
    budget_rows,
    key_row,
    tenant_row,
    when,
)

TENANT = {
    "name": "acme", "is_closed": False, "max_tier": "flex", "weight": 2.0, "data_class": "core", "zones": None,
    "projects": ["default", "p"], "num_keys": 3,
}  # fmt: skip
KEY = {
    "key_id": "key-1", "tenant": "acme", "project": "p", "state": "active", "label": "", "max_tier": "flex",
    "data_class": None, "zones": ["a"], "secrets": [{}, {}], "expires_unix_s": 1_700_000_000.0,
}  # fmt: skip


def test_a_tenants_line() -> None:
    """Without zones it may run anywhere."""
    assert ("acme", "open", "flex", "2", "core", "any", "default, p", "3") == tenant_row(TENANT)
    assert ("closed", "a") == tenant_row({**TENANT, "is_closed": True, "zones": ["a"]})[1::4]
    assert len(TENANT_COLUMNS) == len(tenant_row(TENANT))


def test_a_keys_line() -> None:
    """How it is narrower, how many secrets are valid, and when it ends."""
    assert ("key-1", "acme", "p", "active", "–", "flex, a", "2", "2023-11-14T22:13:20Z") == key_row(KEY)
    plain = key_row({**KEY, "max_tier": None, "zones": None, "expires_unix_s": None, "label": "ci"})
    assert ("ci", "–", "2", "–") == plain[4:]
    assert len(KEY_COLUMNS) == len(plain)


def test_an_admin_keys_line() -> None:
    """The house's own has no end and no label of its own."""
    line = admin_key_row({"key_id": "adm-1", "role": "read", "state": "active", "source": "api", "label": ""})
    assert ("adm-1", "read", "active", "api", "–", "–") == line
    assert len(ADMIN_KEY_COLUMNS) == len(line)


def test_a_line_for_each_budget() -> None:
    """Large numbers in groups, decimals as they are."""
    level = {
        "level": "tenant",
        "name": "acme",
        "budgets": [{"tokens": 1_000, "per": "1h"}, {"money": "0.5", "per": "total"}, {"concurrency": 4}],
    }
    assert [
        ("tenant", "acme", "tokens", "1,000", "1h"),
        ("tenant", "acme", "money", "0.5", "total"),
        ("tenant", "acme", "concurrency", "4", "–"),
    ] == budget_rows(level)
    assert len(BUDGET_COLUMNS) == 5


def test_a_line_of_the_log() -> None:
    """Who by key, else by role; a row of another kind is shown as far as it can be."""
    row = {
        "number": 7, "at_us": 1_700_000_000_000_000, "who": {"key_id": None, "role": "file"}, "what": "tenant_created",
        "target": "acme", "values": {"name": "acme", "budgets": [], "zones": None, "terms": "x" * 100},
    }  # fmt: skip
    line = audit_row(row)
    assert ("7", "2023-11-14T22:13:20Z", "file", "tenant_created", "acme") == line[:5]
    assert (MAX_DETAIL_CHARS, "…", True) == (len(line[5]), line[5][-1], line[5].startswith("name=acme, terms=xx"))
    assert "key-1" == audit_row({**row, "who": {"key_id": "key-1", "role": "admin"}})[2]
    assert ("8", "–", "–", "–", "–", "") == audit_row({"number": 8})
    assert len(AUDIT_COLUMNS) == len(line)


def test_times_are_utc() -> None:
    """Never is a dash."""
    assert ("–", "1970-01-01T00:00:01Z") == (when(None), when(1.0))
