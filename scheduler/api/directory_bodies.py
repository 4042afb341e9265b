"""What an operator sends to change tenants, keys and budgets, in the configuration file's words, read into terms.

Called by ``scheduler.api.directory``. It must never repeat a value in an error: a secret can be in the wrong place.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from scheduler.accounting.budget_terms import COUNTED, BudgetTerm
from scheduler.accounting.changes import SECOND_US, WEIGHT_PARTS, KeyTerms, Role, TenantTerms
from scheduler.api.errors import ApiError

MAX_UNIX_S = 253_402_300_800.0
"""The year 10000; later ends are slips of the unit."""

Zones = tuple[str, ...] | None


class BudgetBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """``{"tokens": 1000000, "per": "1h"}``; amounts are numbers or, to be exact, text."""

    tokens: Decimal | None = None
    input_tokens: Decimal | None = None
    cached_tokens: Decimal | None = None
    output_tokens: Decimal | None = None
    money: Decimal | None = None
    joules: Decimal | None = None
    gpu_seconds: Decimal | None = None
    gco2e: Decimal | None = None
    requests: Decimal | None = None
    concurrency: Decimal | None = None
    per: str | None = None


class Ends(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """When a key ends; neither: never, or as before."""

    expires_in_s: float | UnsetType = UNSET
    expires_unix_s: float | None | UnsetType = UNSET
    """None: never."""


class TenantBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A new tenant."""

    name: str
    project: str = TenantTerms().project
    max_tier: str = TenantTerms().max_tier
    weight: float = 1.0
    data_class: str = TenantTerms().data_class
    zones: Zones = None
    budgets: tuple[BudgetBody, ...] = ()
    task_budgets: tuple[BudgetBody, ...] = ()


class TenantPatch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What changes; the rest stays."""

    project: str | UnsetType = UNSET
    max_tier: str | UnsetType = UNSET
    weight: float | UnsetType = UNSET
    data_class: str | UnsetType = UNSET
    zones: Zones | UnsetType = UNSET
    is_closed: Literal[False] | UnsetType = UNSET
    """False opens a closed one again; DELETE closes it."""


class ProjectBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A new project."""

    name: str
    budgets: tuple[BudgetBody, ...] = ()


class KeyBody(Ends, kw_only=True):
    """A new key of a tenant; what is left out is as its tenant's."""

    project: str | None = None
    label: str = ""
    max_tier: str | None = None
    data_class: str | None = None
    zones: Zones = None
    budgets: tuple[BudgetBody, ...] = ()


class KeyPatch(Ends, kw_only=True):
    """What changes; None: as its tenant's."""

    label: str | UnsetType = UNSET
    max_tier: str | None | UnsetType = UNSET
    data_class: str | None | UnsetType = UNSET
    zones: Zones | UnsetType = UNSET


class AdminKeyBody(Ends, kw_only=True):
    """A new admin key."""

    role: Role
    label: str = ""


class RotateBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How long the secret before stays valid."""

    overlap_s: int = 0


class MoveBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where to; no tenant: within its own."""

    tenant: str | None = None
    project: str | None = None
    """None: its tenant's own."""


class BudgetsBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """These and no others."""

    level: str
    name: str
    budgets: tuple[BudgetBody, ...]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """Where nothing needs to be said."""


Body = TypeVar("Body", bound=msgspec.Struct)


def read_body(body: bytes, kind: type[Body]) -> Body:
    """An empty body is an empty object. Raises: ApiError 400, with the field and never its value."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        if message.startswith(("Invalid enum", "Invalid value")):  # these repeat the value
            message = "Not one of the words that are known here"
        field = place.strip("`").removeprefix(".") or None
        known = ", ".join(kind.__struct_fields__) or "nothing"
        raise ApiError(400, f"{message}. Fields here: {known}.", code="invalid_value", param=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(400, "The body is no JSON object.", code="invalid_json") from None


def budget_terms(bodies: tuple[BudgetBody, ...], field: str = "budgets") -> tuple[BudgetTerm, ...]:
    """Raises: ApiError 400."""
    terms = []
    for place, body in enumerate(bodies):
        try:
            terms.append(BudgetTerm.of({word: getattr(body, word) for word in COUNTED}, body.per))
        except ValueError as error:
            raise ApiError(400, f"{field}[{place}]: {error}.", code="invalid_value", param=field) from None
    return tuple(terms)


def new_tenant_terms(body: TenantBody) -> TenantTerms:
    """Raises: ApiError 400."""
    return TenantTerms(
        project=body.project,
        max_tier=body.max_tier,
        weight_micro=_weight_micro(body.weight),
        data_class=body.data_class,
        zones=body.zones,
    )


def patched_tenant_terms(terms: TenantTerms, patch: TenantPatch) -> TenantTerms:
    """Raises: ApiError 400."""
    given = _given(patch, "project", "max_tier", "data_class", "zones")
    if patch.weight is not UNSET:
        given["weight_micro"] = _weight_micro(patch.weight)
    return msgspec.structs.replace(terms, **given)


def new_key_terms(body: KeyBody, *, now_us: int) -> KeyTerms:
    """Raises: ApiError 400."""
    return KeyTerms(
        label=body.label,
        max_tier=body.max_tier,
        data_class=body.data_class,
        zones=body.zones,
        expires_us=end_us(body, now_us=now_us),
    )


def patched_key_terms(terms: KeyTerms, patch: KeyPatch, *, now_us: int) -> KeyTerms:
    """Raises: ApiError 400."""
    given = _given(patch, "label", "max_tier", "data_class", "zones")
    if patch.expires_in_s is not UNSET or patch.expires_unix_s is not UNSET:
        given["expires_us"] = end_us(patch, now_us=now_us)
    return msgspec.structs.replace(terms, **given)


def end_us(body: Ends, *, now_us: int) -> int | None:
    """None: never. Raises: ApiError 400."""
    if body.expires_in_s is not UNSET and body.expires_unix_s is not UNSET:
        message = "Give one of expires_in_s and expires_unix_s."
        raise ApiError(400, message, code="invalid_value", param="expires_in_s")
    if body.expires_in_s is not UNSET:
        return now_us + _microseconds(body.expires_in_s, "expires_in_s")
    if body.expires_unix_s is UNSET or body.expires_unix_s is None:
        return None
    return _microseconds(body.expires_unix_s, "expires_unix_s")


def _microseconds(seconds: float, field: str) -> int:
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_UNIX_S):
        message = f"{field}: must be seconds above 0 and before the year 10000."
        raise ApiError(400, message, code="invalid_value", param=field)
    return round(seconds * SECOND_US)


def _weight_micro(weight: float) -> int:
    """Its bounds are the directory's. Raises: ApiError 400."""
    if not math.isfinite(weight) or abs(weight) > 1e6:
        raise ApiError(400, "weight: must be from 0.001 to 1000.", code="invalid_value", param="weight")
    return round(weight * WEIGHT_PARTS)


def _given(patch: msgspec.Struct, *names: str) -> dict[str, Any]:
    values = {name: getattr(patch, name) for name in names}
    return {name: value for name, value in values.items() if value is not UNSET}
