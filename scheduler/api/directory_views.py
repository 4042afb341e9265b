"""How tenants, projects, keys, budgets and the audit log are shown to operators: in the configuration file's words.

Called by ``scheduler.api.directory``. It must never show a key or a whole hash of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scheduler.accounting.budget_terms import BudgetTerm
from scheduler.accounting.change_log import Logged
from scheduler.accounting.changes import SECOND_US, WEIGHT_PARTS
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import AdminKey, Secret, Tenant, TenantKey, is_over

View = dict[str, Any]


def tenant_view(tenant: Tenant, directory: Directory) -> View:
    """One tenant."""
    terms = tenant.terms
    return {
        "name": tenant.name,
        "project": terms.project,
        "projects": sorted({terms.project, *tenant.projects}),
        "max_tier": terms.max_tier,
        "weight": terms.weight_micro / WEIGHT_PARTS,
        "data_class": terms.data_class,
        "zones": terms.zones,
        "budgets": words(tenant.budgets),
        "task_budgets": words(tenant.task_budgets),
        "num_keys": sum(key.revoked_us is None for key in directory.keys_of(tenant.name)),
        "is_closed": tenant.closed_us is not None,
        "created_unix_s": _unix_s(tenant.created_us),
        "closed_unix_s": _unix_s(tenant.closed_us),
    }


def project_view(tenant: Tenant, name: str) -> View:
    """One project; a tenant's own has budgets only once some were set."""
    return {
        "tenant": tenant.name,
        "name": name,
        "is_own": name == tenant.terms.project,
        "budgets": words(tenant.projects.get(name, ())),
    }


def key_view(key: TenantKey, directory: Directory, *, now_us: int) -> View:
    """One key. What is None is as its tenant's."""
    tenant = directory.tenants[key.tenant]
    return {
        "key_id": key.key_id,
        "tenant": key.tenant,
        "project": key.project or tenant.terms.project,
        "label": key.terms.label,
        "state": "tenant_closed" if tenant.closed_us is not None and not key.is_dead(now_us) else _state(key, now_us),
        "max_tier": key.terms.max_tier,
        "data_class": key.terms.data_class,
        "zones": key.terms.zones,
        "budgets": words(key.budgets),
        **_life(key.secrets, key.created_us, key.terms.expires_us, key.revoked_us, now_us),
    }


def admin_key_view(key: AdminKey, *, now_us: int) -> View:
    """One admin key."""
    return {
        "key_id": key.key_id,
        "role": key.role,
        "label": key.label,
        "state": _state(key, now_us),
        "source": "api",
        **_life(key.secrets, key.created_us, key.expires_us, key.revoked_us, now_us),
    }


def house_key_view(key_id: str) -> View:
    """The admin key that lies in its file beside the service."""
    return {"key_id": key_id, "role": "admin", "label": "admin.key_file", "state": "active", "source": "file"}


def budgets_view(level: str, name: str, budgets: Iterable[BudgetTerm]) -> View:
    """Those of one level."""
    return {"level": level, "name": name, "budgets": words(budgets)}


def audit_view(row: Logged) -> View:
    """One row as it was written."""
    return {"number": row.number, **row.fields}


def list_view(rows: list[View], *, has_more: bool, **more: object) -> View:
    """A page of them."""
    return {"object": "list", "data": rows, "has_more": has_more, **more}


def words(budgets: Iterable[BudgetTerm]) -> list[dict[str, int | str]]:
    """As they are written."""
    return [term.words() for term in budgets]


def _state(key: TenantKey | AdminKey, now_us: int) -> str:
    if key.revoked_us is not None:
        return "revoked"
    return "expired" if key.is_dead(now_us) else "active"


def _life(
    secrets: tuple[Secret, ...], created_us: int, expires_us: int | None, revoked_us: int | None, now_us: int
) -> View:
    """When it began and ends, and which secrets of it are valid, by the first digits of their hash."""
    valid = [each for each in secrets if not is_over(each.until_us, now_us)]
    return {
        "secrets": [{"fingerprint": each.fingerprint, "until_unix_s": _unix_s(each.until_us)} for each in valid],
        "created_unix_s": _unix_s(created_us),
        "expires_unix_s": _unix_s(expires_us),
        "revoked_unix_s": _unix_s(revoked_us),
    }


def _unix_s(at_us: int | None) -> float | None:
    return None if at_us is None else at_us / SECOND_US
