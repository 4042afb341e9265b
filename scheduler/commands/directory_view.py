"""Tenants, keys, budgets and the audit log as lines of a table.

Called by ``scheduler.commands.directory``. It must never ask anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scheduler.core.budget_windows import utc_text

Told = Mapping[str, Any]
Row = Callable[[Told], tuple[str, ...]]

TENANT_COLUMNS = ("tenant", "state", "tier", "weight", "data class", "zones", "projects", "keys")
KEY_COLUMNS = ("key", "tenant", "project", "state", "label", "narrower by", "secrets", "ends")
ADMIN_KEY_COLUMNS = ("key", "role", "state", "from", "label", "ends")
BUDGET_COLUMNS = ("level", "name", "counts", "limit", "per")
AUDIT_COLUMNS = ("number", "when", "who", "what", "target", "details")
MAX_DETAIL_CHARS = 60
NONE = "–"


def tenant_row(tenant: Told) -> tuple[str, ...]:
    """One tenant's line."""
    return (
        tenant["name"],
        "closed" if tenant["is_closed"] else "open",
        tenant["max_tier"],
        f"{tenant['weight']:g}",
        tenant["data_class"],
        ", ".join(tenant["zones"] or ()) or "any",
        ", ".join(tenant["projects"]),
        f"{tenant['num_keys']}",
    )


def key_row(key: Told) -> tuple[str, ...]:
    """One key's line."""
    narrower = [key["max_tier"], key["data_class"], *(key["zones"] or ())]
    return (
        key["key_id"],
        key["tenant"],
        key["project"],
        key["state"],
        key["label"] or NONE,
        ", ".join(word for word in narrower if word) or NONE,
        f"{len(key['secrets'])}",
        when(key["expires_unix_s"]),
    )


def admin_key_row(key: Told) -> tuple[str, ...]:
    """One admin key's line; the house's own has no end."""
    return (
        key["key_id"],
        key["role"],
        key["state"],
        key["source"],
        key["label"] or NONE,
        when(key.get("expires_unix_s")),
    )


def budget_rows(level: Told) -> list[tuple[str, ...]]:
    """A line for each budget of a level."""
    rows: list[tuple[str, ...]] = []
    for budget in level["budgets"]:
        per = budget.get("per", NONE)
        word, amount = next((name, value) for name, value in budget.items() if name != "per")
        rows.append((level["level"], level["name"], word, f"{amount:,}" if isinstance(amount, int) else amount, per))
    return rows


def audit_row(row: Told) -> tuple[str, ...]:
    """One row of the log; of its values as much as fits."""
    who = row.get("who") or {}
    details = ", ".join(
        f"{name}={value}" for name, value in (row.get("values") or {}).items() if value not in (None, [])
    )
    return (
        f"{row['number']}",
        utc_text(row["at_us"]) if "at_us" in row else NONE,
        who.get("key_id") or who.get("role") or NONE,
        f"{row.get('what', NONE)}",
        f"{row.get('target', NONE)}",
        details if len(details) <= MAX_DETAIL_CHARS else f"{details[: MAX_DETAIL_CHARS - 1]}…",
    )


def when(unix_s: float | None) -> str:
    """In UTC; never."""
    return NONE if unix_s is None else utc_text(int(unix_s * 1_000_000))
