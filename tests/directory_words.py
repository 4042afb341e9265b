"""Changes of tenants and keys in few words, and a directory with two tenants.

Used by tests of the directory and of everything that changes it (``from tests.directory_words import changed``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from scheduler.accounting.budget_terms import BudgetTerm
from scheduler.accounting.changes import (
    Actor,
    AdminKeyCreated,
    Change,
    Deed,
    KeyCreated,
    KeyTerms,
    ProjectCreated,
    Role,
    TenantCreated,
    TenantTerms,
)
from scheduler.accounting.directory import Directory
from scheduler.core.budget_accounts import Measure

NOW_US = 1_700_000_000_000_000
SECOND_US = 1_000_000
WHO = Actor(key_id="adm-0123456789", role="admin")


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def key_id(secret: str, prefix: str = "key-") -> str:
    return prefix + sha256(secret)[:10]


def tokens(limit: int, per: str = "1h") -> BudgetTerm:
    return BudgetTerm(measure=Measure.TOKENS, limit=limit, per=per)


def tenant(name: str, **terms: object) -> TenantCreated:
    return TenantCreated(name=name, terms=TenantTerms(**terms))  # type: ignore[arg-type]


def key(secret: str, tenant: str = "acme", project: str | None = None, **terms: object) -> KeyCreated:
    return KeyCreated(
        key_id=key_id(secret),
        sha256=sha256(secret),
        tenant=tenant,
        project=project,
        terms=KeyTerms(**terms),  # type: ignore[arg-type]
    )


def admin_key(secret: str, role: Role = Role.READ, **values: object) -> AdminKeyCreated:
    return AdminKeyCreated(key_id=key_id(secret, "adm-"), sha256=sha256(secret), role=role, **values)  # type: ignore[arg-type]


def changed(*deeds: Deed, first: int = 0, at_us: int = NOW_US) -> list[Change]:
    """One change a deed, a second apart."""
    return [
        Change(change_id=f"chg-{first + number}", at_us=at_us + number * SECOND_US, who=WHO, deed=deed)
        for number, deed in enumerate(deeds)
    ]


def directory_of(deeds: Iterable[Deed]) -> Directory:
    return Directory.of(changed(*deeds))


TWO_TENANTS: tuple[Deed, ...] = (
    tenant("acme", max_tier="default", data_class="important", zones=("hall-a", "hall-b")),
    ProjectCreated(tenant="acme", name="search", budgets=(tokens(10),)),
    key("secret-a", project="search"),
    tenant("other"),
    key("secret-b", "other"),
    admin_key("secret-r"),
)
"""``acme`` with a project and ``secret-a``; ``other`` with ``secret-b``; the admin key ``secret-r`` reads."""
