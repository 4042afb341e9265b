"""What can happen to tenants, projects, keys and budgets: one frozen value a deed, and the row that says who did it.

Made by the admin routes and by ``scheduler.tenancy``, folded by ``scheduler.accounting.directory``, kept by the ledger
as rows of kind ``change``. A deed must never hold a key: its SHA-256 and its public id are all that is written.

Integers and text only, so that a row has one canonical form. Times are UTC microseconds since 1970.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from scheduler.accounting.budget_terms import BudgetTerm

SECOND_US = 1_000_000
WEIGHT_PARTS = 1_000_000
"""Of a weight of 1."""
DEFAULT_PROJECT = "default"
CHANGE_PREFIX, DENIAL_PREFIX = "chg-", "dny-"
"""How ids of rows begin: what changes nothing is not read when the directory is made again."""


class Role(StrEnum):
    """What an admin key may."""

    ADMIN = "admin"
    """Everything."""
    BILLING = "billing"
    """Reads who used what and at which price; sees no receipt, no machine, and of a key its id in usage only."""
    READ = "read"
    """Sees everything, changes nothing."""


class Owner(StrEnum):
    """Who says which tenants there are."""

    FILE = "file"
    API = "api"


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who did it."""

    key_id: str | None
    """Public; None where no known key was given."""
    role: str
    """A ``Role``, ``tenant`` (a key of one), ``file`` (the configuration) or ``nobody``."""


FILE_ACTOR = Actor(key_id=None, role="file")
NOBODY = Actor(key_id=None, role="nobody")


class TenantTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant gets, budgets aside."""

    project: str = DEFAULT_PROJECT
    """Of keys that name none."""
    max_tier: str = "priority"
    weight_micro: int = WEIGHT_PARTS
    """Its share beside other tenants, in millionths."""
    data_class: str = "general"
    zones: tuple[str, ...] | None = None
    """None: wherever its data class may."""


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How a key is narrower than its tenant; None: as its tenant."""

    label: str = ""
    """For people."""
    max_tier: str | None = None
    data_class: str | None = None
    zones: tuple[str, ...] | None = None
    expires_us: int | None = None
    """From then on it opens nothing; None: never by time."""


class OwnerSet(msgspec.Struct, frozen=True, kw_only=True, tag="owner_set", tag_field="what"):
    """From here on the file or the API says which tenants there are."""

    owner: Owner
    file_sha256: str
    """Of the file's tenants at that moment: later edits are told by it."""


class TenantCreated(msgspec.Struct, frozen=True, kw_only=True, tag="tenant_created", tag_field="what"):
    name: str
    terms: TenantTerms = TenantTerms()
    budgets: tuple[BudgetTerm, ...] = ()
    task_budgets: tuple[BudgetTerm, ...] = ()


class TenantChanged(msgspec.Struct, frozen=True, kw_only=True, tag="tenant_changed", tag_field="what"):
    name: str
    terms: TenantTerms
    """All of them, changed or not."""


class TenantClosed(msgspec.Struct, frozen=True, kw_only=True, tag="tenant_closed", tag_field="what"):
    """None of its keys opens anything; its name stays taken, since rows speak of it."""

    name: str


class TenantReopened(msgspec.Struct, frozen=True, kw_only=True, tag="tenant_reopened", tag_field="what"):
    name: str


class ProjectCreated(msgspec.Struct, frozen=True, kw_only=True, tag="project_created", tag_field="what"):
    tenant: str
    name: str
    budgets: tuple[BudgetTerm, ...] = ()


class ProjectRemoved(msgspec.Struct, frozen=True, kw_only=True, tag="project_removed", tag_field="what"):
    tenant: str
    name: str


class BudgetsSet(msgspec.Struct, frozen=True, kw_only=True, tag="budgets_set", tag_field="what"):
    """These budgets and no others, from now on; what was used of equal ones stays used."""

    level: str
    """``tenant``, ``project``, ``key``, or ``task``: of each of a tenant's tasks."""
    name: str
    """``acme``, ``acme/search``, ``key-0123456789``; of ``task`` the tenant."""
    budgets: tuple[BudgetTerm, ...]


class KeyCreated(msgspec.Struct, frozen=True, kw_only=True, tag="key_created", tag_field="what"):
    key_id: str
    sha256: str
    tenant: str
    project: str | None = None
    """None: its tenant's own."""
    terms: KeyTerms = KeyTerms()
    budgets: tuple[BudgetTerm, ...] = ()


class KeyChanged(msgspec.Struct, frozen=True, kw_only=True, tag="key_changed", tag_field="what"):
    key_id: str
    terms: KeyTerms
    """All of them, changed or not; the key's end among them."""


class KeyRotated(msgspec.Struct, frozen=True, kw_only=True, tag="key_rotated", tag_field="what"):
    """Another secret under the same id, so that budgets and usage go on."""

    key_id: str
    sha256: str
    overlap_s: int
    """How long the secret before stays valid; 0: it ends now."""


class KeyRevoked(msgspec.Struct, frozen=True, kw_only=True, tag="key_revoked", tag_field="what"):
    """At once and for good, with every secret of it."""

    key_id: str


class KeyMoved(msgspec.Struct, frozen=True, kw_only=True, tag="key_moved", tag_field="what"):
    key_id: str
    tenant: str
    project: str | None


class AdminKeyCreated(msgspec.Struct, frozen=True, kw_only=True, tag="admin_key_created", tag_field="what"):
    key_id: str
    sha256: str
    role: Role
    label: str = ""
    expires_us: int | None = None


class AdminKeyRotated(msgspec.Struct, frozen=True, kw_only=True, tag="admin_key_rotated", tag_field="what"):
    key_id: str
    sha256: str
    overlap_s: int


class AdminKeyRevoked(msgspec.Struct, frozen=True, kw_only=True, tag="admin_key_revoked", tag_field="what"):
    key_id: str


class AccessDenied(msgspec.Struct, frozen=True, kw_only=True, tag="access_denied", tag_field="what"):
    """Somebody was refused; changes nothing."""

    listener: str
    """``server`` or ``admin``."""
    source: str
    """The other end's address."""
    route: str
    """As a template, never as it was asked: a path can hold a secret."""
    status: int
    code: str
    """The word that the client got."""
    also_denied: int
    """Denials since the row before that have no row of their own: too many in a minute."""


Deed = (
    OwnerSet
    | TenantCreated
    | TenantChanged
    | TenantClosed
    | TenantReopened
    | ProjectCreated
    | ProjectRemoved
    | BudgetsSet
    | KeyCreated
    | KeyChanged
    | KeyRotated
    | KeyRevoked
    | KeyMoved
    | AdminKeyCreated
    | AdminKeyRotated
    | AdminKeyRevoked
    | AccessDenied
)
WHATS: frozenset[str] = frozenset(each.__struct_config__.tag for each in Deed.__args__)
"""Every ``what`` that is known here; other rows of kind ``change`` speak of other things."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what, when."""

    change_id: str
    """The same id is the same change, however often it comes."""
    at_us: int
    who: Actor
    deed: Deed

    @property
    def what(self) -> str:
        """``key_revoked``."""
        return str(self.deed.__struct_config__.tag)

    @property
    def target(self) -> str:
        """What it happened to: a tenant, ``tenant/project``, the public id of a key, a listener's route."""
        deed = self.deed
        match deed:
            case OwnerSet():
                return "directory"
            case AccessDenied():
                return f"{deed.listener} {deed.route}"
            case ProjectCreated() | ProjectRemoved():
                return f"{deed.tenant}/{deed.name}"
            case TenantCreated() | TenantChanged() | TenantClosed() | TenantReopened() | BudgetsSet():
                return deed.name
            case _:
                return deed.key_id

    def fields(self) -> dict[str, Any]:
        """The body of its row, all of it integers, text, lists and None."""
        values = msgspec.to_builtins(self.deed)
        what = values.pop("what")
        return {
            "id": self.change_id,
            "at_us": self.at_us,
            "who": msgspec.to_builtins(self.who),
            "what": what,
            "target": self.target,
            "values": values,
        }

    @staticmethod
    def of(fields: dict[str, Any]) -> Change:
        """From the body of its row. Raises: ValueError for what no version of this package wrote."""
        try:
            return Change(
                change_id=fields["id"],
                at_us=fields["at_us"],
                who=msgspec.convert(fields["who"], Actor),
                deed=msgspec.convert({"what": fields["what"], **fields["values"]}, Deed),
            )
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise ValueError(f"this is no change: {error}") from None
