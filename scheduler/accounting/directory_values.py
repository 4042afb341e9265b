"""One tenant, one key, one admin key as they stand, the bounds of each, and what is wrong with a value.

Called by ``scheduler.accounting.directory``. It must never know another entry, a clock or a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from scheduler.accounting.budget_terms import BudgetTerm, refuse_alike
from scheduler.accounting.changes import SECOND_US, WEIGHT_PARTS, KeyTerms, Role, TenantTerms

MAX_TENANTS = 100_000
"""Closed ones among them: their names stay taken."""
MAX_PROJECTS_PER_TENANT = 10_000
MAX_KEYS_PER_TENANT = 10_000
"""Revoked ones among them, of which the oldest are forgotten for new ones."""
MAX_KEYS = 200_000
MAX_ADMIN_KEYS = 256
MAX_SECRETS_PER_KEY = 4
"""That are valid at a time: the newest, and those that overlap with it."""
MAX_BUDGETS = 256
"""Of one level."""
MAX_ZONES = 1_024
MAX_LABEL_CHARS = 64
MAX_OVERLAP_S = 30 * 86_400
MAX_LIFE_S = 10 * 366 * 86_400
"""Of a key that expires: a later end is a slip of the unit."""
MIN_WEIGHT_MICRO, MAX_WEIGHT_MICRO = 1_000, 1_000 * WEIGHT_PARTS

TIERS = ("priority", "default", "flex")
DATA_CLASSES = ("general", "important", "core")
KEY_ID_PREFIX, ADMIN_ID_PREFIX = "key-", "adm-"
FINGERPRINT_CHARS = 10

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LABEL = re.compile(rf"[A-Za-z0-9 ._:/@+-]{{0,{MAX_LABEL_CHARS}}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Refusal(StrEnum):
    """Why a change is refused, as far as somebody acts on it."""

    UNKNOWN = "unknown"
    """What it speaks of is not there."""
    CONFLICT = "conflict"
    """It cannot be done as things stand."""
    INVALID = "invalid"
    """It could never be done."""


class ChangeRefused(Exception):
    """A change that changes nothing; ``field`` is what is wrong with it, ``code`` a word for it."""

    def __init__(self, kind: Refusal, code: str, field: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{field}: {message}{f'; {remedy}' if remedy else ''}")
        self.kind = kind
        self.code = code
        self.field = field


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """What opens a key, by its hash."""

    sha256: str
    until_us: int | None = None
    """Of one that was rotated away; None: the newest."""

    @property
    def fingerprint(self) -> str:
        """Its first digits: unique here, safe to print."""
        return fingerprint_of(self.sha256)


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """As it stands."""

    name: str
    terms: TenantTerms
    budgets: tuple[BudgetTerm, ...]
    task_budgets: tuple[BudgetTerm, ...]
    projects: dict[str, tuple[BudgetTerm, ...]] = {}
    """Those that keys name, and those with budgets."""
    created_us: int
    closed_us: int | None = None

    def has_project(self, name: str) -> bool:
        """Whether a key may name it."""
        return name == self.terms.project or name in self.projects


class TenantKey(msgspec.Struct, frozen=True, kw_only=True):
    """As it stands. ``key_id`` stays through every rotation: it was made of the first secret."""

    key_id: str
    tenant: str
    project: str | None
    terms: KeyTerms
    budgets: tuple[BudgetTerm, ...]
    secrets: tuple[Secret, ...]
    """The newest first."""
    created_us: int
    revoked_us: int | None = None

    def is_dead(self, at_us: int) -> bool:
        """Opens nothing any more, whatever its tenant does."""
        return self.revoked_us is not None or is_over(self.terms.expires_us, at_us)


class AdminKey(msgspec.Struct, frozen=True, kw_only=True):
    """As it stands."""

    key_id: str
    role: Role
    label: str
    expires_us: int | None
    secrets: tuple[Secret, ...]
    created_us: int
    revoked_us: int | None = None

    def is_dead(self, at_us: int) -> bool:
        """Opens nothing any more."""
        return self.revoked_us is not None or is_over(self.expires_us, at_us)


def fingerprint_of(sha256: str) -> str:
    """The first digits of a hash in hexadecimal."""
    return sha256[:FINGERPRINT_CHARS]


def is_over(until_us: int | None, at_us: int) -> bool:
    """Whether an end has come; None never comes."""
    return until_us is not None and at_us >= until_us


def rotated(secrets: tuple[Secret, ...], sha256: str, *, overlap_s: int, at_us: int) -> tuple[Secret, ...]:
    """The new secret, and those before it as long as they overlap, the oldest left out where they are too many."""
    until_us = at_us + overlap_s * SECOND_US
    kept = [
        Secret(sha256=each.sha256, until_us=until_us if each.until_us is None else min(each.until_us, until_us))
        for each in secrets
    ]
    valid = [each for each in kept if not is_over(each.until_us, at_us)]
    return (Secret(sha256=sha256), *valid[: MAX_SECRETS_PER_KEY - 1])


# -- what is wrong with a value: each raises ChangeRefused


def check_name(name: str, field: str) -> None:
    """Lower case, so that two names never differ by case alone."""
    if _NAME.fullmatch(name) is None:
        raise invalid(field, "must be 1 to 63 of a-z 0-9 . _ -, beginning with a letter or a digit")


def check_secret(key_id: str, sha256: str, *, prefix: str) -> None:
    """A key's id is made of its first secret."""
    check_sha256(sha256)
    if key_id != prefix + fingerprint_of(sha256):
        raise invalid("key_id", f"must be {prefix} and the first {FINGERPRINT_CHARS} digits of the secret's SHA-256")


def check_sha256(sha256: str) -> None:
    """64 hexadecimal digits."""
    if _SHA256.fullmatch(sha256) is None:
        raise invalid("sha256", "must be 64 hexadecimal digits in lower case")


def check_overlap(overlap_s: int) -> None:
    """From none to a month."""
    if not 0 <= overlap_s <= MAX_OVERLAP_S:
        raise invalid("overlap_s", f"must be from 0 to {MAX_OVERLAP_S} seconds")


def check_label(label: str) -> None:
    """Words for people, nothing that could be a text."""
    if _LABEL.fullmatch(label) is None:
        raise invalid("label", f"must be at most {MAX_LABEL_CHARS} letters, digits, spaces or any of . _ : / @ + -")


def check_end(expires_us: int | None, *, at_us: int) -> None:
    """In the time to come, and not for ever."""
    if expires_us is None:
        return
    if expires_us <= at_us:
        raise invalid("expires", "must lie in the time to come", "revoke the key to end it now")
    if expires_us > at_us + MAX_LIFE_S * SECOND_US:
        raise invalid("expires", f"must lie within {MAX_LIFE_S} seconds", "leave it out for a key without an end")


def check_budgets(budgets: tuple[BudgetTerm, ...], field: str = "budgets") -> None:
    """Each can be counted, no two count the same."""
    if len(budgets) > MAX_BUDGETS:
        raise invalid(field, f"at most {MAX_BUDGETS} of one level")
    for place, term in enumerate(budgets):
        try:
            term.check()
        except ValueError as error:
            raise invalid(f"{field}[{place}]", str(error)) from None
    try:
        refuse_alike(budgets)
    except ValueError as error:
        raise invalid(field, str(error)) from None


def check_tenant_terms(terms: TenantTerms) -> None:
    """Each value for itself."""
    check_name(terms.project, "project")
    _check_word(terms.max_tier, TIERS, "max_tier")
    _check_word(terms.data_class, DATA_CLASSES, "data_class")
    if not MIN_WEIGHT_MICRO <= terms.weight_micro <= MAX_WEIGHT_MICRO:
        raise invalid("weight", "must be from 0.001 to 1000", "who shall get nothing gets no key, or a budget of 0")
    _check_zones(terms.zones)


def check_key_terms(terms: KeyTerms, tenant: TenantTerms) -> None:
    """A key may only narrow what its tenant gets."""
    check_label(terms.label)
    if terms.max_tier is not None:
        _check_word(terms.max_tier, TIERS, "max_tier")
        if TIERS.index(terms.max_tier) < TIERS.index(tenant.max_tier):
            raise beyond("max_tier", f"{terms.max_tier} is above its tenant's {tenant.max_tier}")
    if terms.data_class is not None:
        _check_word(terms.data_class, DATA_CLASSES, "data_class")
        if DATA_CLASSES.index(terms.data_class) < DATA_CLASSES.index(tenant.data_class):
            raise beyond("data_class", f"{terms.data_class} is below its tenant's {tenant.data_class}")
    _check_zones(terms.zones)
    if terms.zones is not None and tenant.zones is not None and not set(terms.zones) <= set(tenant.zones):
        raise beyond("zones", f"its tenant may use {', '.join(tenant.zones)} only")


def _check_word(word: str, words: tuple[str, ...], field: str) -> None:
    if word not in words:
        raise invalid(field, f"must be one of {', '.join(words)}")


def _check_zones(zones: Iterable[str] | None) -> None:
    if zones is None:
        return
    names = list(zones)
    if not 0 < len(names) <= MAX_ZONES:
        raise invalid("zones", f"must be 1 to {MAX_ZONES} names", "leave it out for wherever the data class may")
    for name in names:
        check_name(name, "zones")
    if len(set(names)) < len(names):
        raise invalid("zones", "one of them is given twice")


def invalid(field: str, message: str, remedy: str = "") -> ChangeRefused:
    """It could never be done."""
    return ChangeRefused(Refusal.INVALID, "invalid_value", field, message, remedy)


def beyond(field: str, message: str) -> ChangeRefused:
    """A key would get more than its tenant."""
    remedy = "a key may only be narrower; change its tenant first"
    return ChangeRefused(Refusal.INVALID, "beyond_tenant", field, message, remedy)


def unknown(what: str, field: str, remedy: str = "") -> ChangeRefused:
    """It speaks of something that is not there."""
    return ChangeRefused(Refusal.UNKNOWN, f"unknown_{what}", field, f"there is no such {what}", remedy)


def conflict(code: str, field: str, message: str, remedy: str) -> ChangeRefused:
    """It cannot be done as things stand."""
    return ChangeRefused(Refusal.CONFLICT, code, field, message, remedy)


def full(field: str, message: str) -> ChangeRefused:
    """A bound is reached."""
    return conflict("limit_reached", field, message, "close, revoke or remove what is not used")
