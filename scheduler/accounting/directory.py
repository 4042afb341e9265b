"""Who there is: tenants, their projects, keys and budgets, and the admin keys; the fold of the ledger's changes.

Owned by ``scheduler.tenancy``, which logs each change before its effect; read by whoever makes rules and callers of it.
It must never know a file, a clock, a key or who may make a change.

A change is applied whole or not at all: what is wrong with it is told before anything moves. The same changes in the
same order make the same directory, and a change that comes again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from scheduler.accounting import changes
from scheduler.accounting.changes import Change, OwnerSet
from scheduler.accounting.directory_values import (
    ADMIN_ID_PREFIX,
    KEY_ID_PREFIX,
    MAX_ADMIN_KEYS,
    MAX_KEYS,
    MAX_KEYS_PER_TENANT,
    MAX_PROJECTS_PER_TENANT,
    MAX_TENANTS,
    AdminKey,
    Secret,
    Tenant,
    TenantKey,
    check_budgets,
    check_end,
    check_key_terms,
    check_label,
    check_name,
    check_overlap,
    check_secret,
    check_sha256,
    check_tenant_terms,
    conflict,
    fingerprint_of,
    full,
    invalid,
    rotated,
    unknown,
)
from scheduler.accounting.known_changes import KnownChanges


@dataclass(slots=True)
class _Edits:
    """What a change puts into the tables."""

    tenants: list[Tenant] = field(default_factory=list)
    keys: list[TenantKey] = field(default_factory=list)
    admin_keys: list[AdminKey] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    """Ids of dead keys that make room."""
    owner: OwnerSet | None = None


class Directory:
    """Empty at first. The tables are for reading; ``apply`` is the only way to change them."""

    def __init__(self) -> None:
        self.tenants: dict[str, Tenant] = {}
        self.keys: dict[str, TenantKey] = {}
        self.admin_keys: dict[str, AdminKey] = {}
        self.owner: OwnerSet | None = None
        """None: nobody ever said so."""
        self._keys_of: dict[str, dict[str, None]] = {}
        """Ids of each tenant's keys, the oldest first."""
        self._key_of: dict[str, str] = {}
        """By fingerprint of a secret: the id of its key."""
        self.known = KnownChanges()
        """A change that is found in the log alone is put back here, lest it be made twice."""

    @staticmethod
    def of(logged: Iterable[Change]) -> Directory:
        """As these changes made it. Raises: ChangeRefused for one that never could have been logged."""
        directory = Directory()
        for change in logged:
            directory.apply(change)
        return directory

    def apply(self, change: Change) -> bool:
        """False: it changes nothing, or was applied before. Raises: ChangeRefused; nothing changed then."""
        edits = self._edits(change)
        if edits is None:
            return False
        self._do(edits)
        self.known.add(change.change_id)
        return True

    def check(self, change: Change) -> bool:
        """What ``apply`` would return, without doing it. Raises: ChangeRefused."""
        return self._edits(change) is not None

    def knows(self, change_id: str) -> bool:
        """Whether this change was applied, as far as is remembered."""
        return change_id in self.known

    def state(self) -> dict[str, Any]:
        """Everything, as plain values: equal where two directories are."""
        tables = (self.tenants, self.keys, self.admin_keys, self.owner)
        return dict(zip(("tenants", "keys", "admin_keys", "owner"), msgspec.to_builtins(tables), strict=True))

    # -- what others read

    def keys_of(self, tenant: str) -> list[TenantKey]:
        """The oldest first, dead ones among them."""
        return [self.keys[key_id] for key_id in self._keys_of.get(tenant, ())]

    def owner_of(self, sha256: str) -> TenantKey | AdminKey | None:
        """Whose secret this was, valid or not; None where nobody's is known."""
        key_id = self._key_of.get(fingerprint_of(sha256), "")
        key = self.keys.get(key_id) or self.admin_keys.get(key_id)
        return key if key is not None and any(each.sha256 == sha256 for each in key.secrets) else None

    # -- a deed becomes edits; each of these raises ChangeRefused and moves nothing

    def _edits(self, change: Change) -> _Edits | None:
        """None: it changes nothing, or was applied before."""
        if isinstance(change.deed, changes.AccessDenied) or self.knows(change.change_id):
            return None
        return _MAKERS[type(change.deed)](self, change.deed, change.at_us)

    def _own(self, deed: OwnerSet, at_us: int) -> _Edits:
        return _Edits(owner=deed)

    def _create_tenant(self, deed: changes.TenantCreated, at_us: int) -> _Edits:
        check_name(deed.name, "name")
        if deed.name in self.tenants:
            raise conflict("duplicate_name", "name", "there is such a tenant", "names of closed ones stay taken too")
        if len(self.tenants) >= MAX_TENANTS:
            raise full("name", f"there are {MAX_TENANTS} tenants, the most that are kept")
        check_tenant_terms(deed.terms)
        check_budgets(deed.budgets)
        check_budgets(deed.task_budgets, "task_budgets")
        tenant = Tenant(
            name=deed.name,
            terms=deed.terms,
            budgets=deed.budgets,
            task_budgets=deed.task_budgets,
            created_us=at_us,
        )
        return _Edits(tenants=[tenant])

    def _change_tenant(self, deed: changes.TenantChanged, at_us: int) -> _Edits:
        tenant = self._tenant(deed.name, "name", may_be_closed=True)
        check_tenant_terms(deed.terms)
        if deed.terms.project != changes.DEFAULT_PROJECT and not tenant.has_project(deed.terms.project):
            raise unknown("project", "project", "create it first")
        return _Edits(tenants=[replace(tenant, terms=deed.terms)])

    def _close_tenant(self, deed: changes.TenantClosed, at_us: int) -> _Edits:
        tenant = self._tenant(deed.name, "name", may_be_closed=True)
        return _Edits() if tenant.closed_us is not None else _Edits(tenants=[replace(tenant, closed_us=at_us)])

    def _reopen_tenant(self, deed: changes.TenantReopened, at_us: int) -> _Edits:
        return _Edits(tenants=[replace(self._tenant(deed.name, "name", may_be_closed=True), closed_us=None)])

    def _create_project(self, deed: changes.ProjectCreated, at_us: int) -> _Edits:
        tenant = self._tenant(deed.tenant, "tenant")
        check_name(deed.name, "name")
        if deed.name in tenant.projects:
            raise conflict("duplicate_name", "name", "there is such a project", "set its budgets instead")
        if len(tenant.projects) >= MAX_PROJECTS_PER_TENANT:
            raise full("name", f"a tenant has at most {MAX_PROJECTS_PER_TENANT} projects")
        check_budgets(deed.budgets)
        return _Edits(tenants=[replace(tenant, projects={**tenant.projects, deed.name: deed.budgets})])

    def _remove_project(self, deed: changes.ProjectRemoved, at_us: int) -> _Edits:
        tenant = self._tenant(deed.tenant, "tenant", may_be_closed=True)
        if deed.name not in tenant.projects:
            raise unknown("project", "name")
        users = [key for key in self.keys_of(tenant.name) if key.project == deed.name and not key.is_dead(at_us)]
        if users:
            raise conflict("in_use", "name", f"{len(users)} keys name it", f"move or revoke {users[0].key_id} first")
        if deed.name == tenant.terms.project and deed.name != changes.DEFAULT_PROJECT:
            raise conflict("in_use", "name", "it is its tenant's own project", "give the tenant another one first")
        left = {name: budgets for name, budgets in tenant.projects.items() if name != deed.name}
        return _Edits(tenants=[replace(tenant, projects=left)])

    def _set_budgets(self, deed: changes.BudgetsSet, at_us: int) -> _Edits:
        check_budgets(deed.budgets)
        if deed.level == "key":
            return _Edits(keys=[replace(self._key(deed.name, at_us, field="name"), budgets=deed.budgets)])
        name, _, project = deed.name.partition("/")
        tenant = self._tenant(name, "name")
        if deed.level == "tenant":
            return _Edits(tenants=[replace(tenant, budgets=deed.budgets)])
        if deed.level == "task":
            return _Edits(tenants=[replace(tenant, task_budgets=deed.budgets)])
        if deed.level != "project":
            raise invalid("level", "must be tenant, project, key or task")
        if not tenant.has_project(project):
            raise unknown("project", "name", "it is written TENANT/PROJECT")
        return _Edits(tenants=[replace(tenant, projects={**tenant.projects, project: deed.budgets})])

    def _create_key(self, deed: changes.KeyCreated, at_us: int) -> _Edits:
        tenant = self._tenant(deed.tenant, "tenant")
        check_secret(deed.key_id, deed.sha256, prefix=KEY_ID_PREFIX)
        self._check_unused(deed.sha256)
        if deed.project is not None and not tenant.has_project(deed.project):
            raise unknown("project", "project", "create it first")
        check_key_terms(deed.terms, tenant.terms)
        check_end(deed.terms.expires_us, at_us=at_us)
        check_budgets(deed.budgets)
        key = TenantKey(
            key_id=deed.key_id,
            tenant=deed.tenant,
            project=deed.project,
            terms=deed.terms,
            budgets=deed.budgets,
            secrets=(Secret(sha256=deed.sha256),),
            created_us=at_us,
        )
        return _Edits(keys=[key], forgotten=self._room_for_key(deed.tenant, deed.key_id, at_us))

    def _change_key(self, deed: changes.KeyChanged, at_us: int) -> _Edits:
        key = self._key(deed.key_id, at_us)
        check_key_terms(deed.terms, self.tenants[key.tenant].terms)
        if deed.terms.expires_us != key.terms.expires_us:
            check_end(deed.terms.expires_us, at_us=at_us)
        return _Edits(keys=[replace(key, terms=deed.terms)])

    def _rotate_key(self, deed: changes.KeyRotated, at_us: int) -> _Edits:
        key = self._key(deed.key_id, at_us)
        secrets = self._rotated(key.secrets, deed.sha256, deed.overlap_s, at_us)
        return _Edits(keys=[replace(key, secrets=secrets)])

    def _revoke_key(self, deed: changes.KeyRevoked, at_us: int) -> _Edits:
        key = self.keys.get(deed.key_id)
        if key is None:
            raise unknown("key", "key_id")
        return _Edits() if key.revoked_us is not None else _Edits(keys=[replace(key, revoked_us=at_us)])

    def _move_key(self, deed: changes.KeyMoved, at_us: int) -> _Edits:
        key = self._key(deed.key_id, at_us)
        tenant = self._tenant(deed.tenant, "tenant")
        if deed.project is not None and not tenant.has_project(deed.project):
            raise unknown("project", "project", "create it first")
        check_key_terms(key.terms, tenant.terms)
        is_elsewhere = key.tenant != tenant.name
        forgotten = self._room_for_key(tenant.name, key.key_id, at_us) if is_elsewhere else []
        return _Edits(keys=[replace(key, tenant=tenant.name, project=deed.project)], forgotten=forgotten)

    def _create_admin_key(self, deed: changes.AdminKeyCreated, at_us: int) -> _Edits:
        check_secret(deed.key_id, deed.sha256, prefix=ADMIN_ID_PREFIX)
        self._check_unused(deed.sha256)
        check_label(deed.label)
        check_end(deed.expires_us, at_us=at_us)
        forgotten = []
        if len(self.admin_keys) >= MAX_ADMIN_KEYS:
            dead = next((key_id for key_id, key in self.admin_keys.items() if key.is_dead(at_us)), None)
            if dead is None:
                raise full("key_id", f"there are {MAX_ADMIN_KEYS} admin keys, the most that are kept")
            forgotten = [dead]
        key = AdminKey(
            key_id=deed.key_id,
            role=deed.role,
            label=deed.label,
            expires_us=deed.expires_us,
            secrets=(Secret(sha256=deed.sha256),),
            created_us=at_us,
        )
        return _Edits(admin_keys=[key], forgotten=forgotten)

    def _rotate_admin_key(self, deed: changes.AdminKeyRotated, at_us: int) -> _Edits:
        key = self._admin_key(deed.key_id)
        if key.is_dead(at_us):
            raise conflict("key_ended", "key_id", "it is revoked or expired", "create another one")
        secrets = self._rotated(key.secrets, deed.sha256, deed.overlap_s, at_us)
        return _Edits(admin_keys=[replace(key, secrets=secrets)])

    def _revoke_admin_key(self, deed: changes.AdminKeyRevoked, at_us: int) -> _Edits:
        key = self._admin_key(deed.key_id)
        return _Edits() if key.revoked_us is not None else _Edits(admin_keys=[replace(key, revoked_us=at_us)])

    # -- what the changes speak of

    def _tenant(self, name: str, field: str, *, may_be_closed: bool = False) -> Tenant:
        tenant = self.tenants.get(name)
        if tenant is None:
            raise unknown("tenant", field)
        if tenant.closed_us is not None and not may_be_closed:
            raise conflict("tenant_closed", field, "this tenant is closed", "reopen it first")
        return tenant

    def _key(self, key_id: str, at_us: int, *, field: str = "key_id") -> TenantKey:
        """One that is not at its end, of a tenant that is not closed."""
        key = self.keys.get(key_id)
        if key is None:
            raise unknown("key", field)
        if key.is_dead(at_us):
            raise conflict("key_ended", field, "it is revoked or expired", "create another one")
        self._tenant(key.tenant, field)
        return key

    def _admin_key(self, key_id: str) -> AdminKey:
        key = self.admin_keys.get(key_id)
        if key is None:
            raise unknown("key", "key_id")
        return key

    def _rotated(self, secrets: tuple[Secret, ...], sha256: str, overlap_s: int, at_us: int) -> tuple[Secret, ...]:
        check_sha256(sha256)
        check_overlap(overlap_s)
        self._check_unused(sha256)
        return rotated(secrets, sha256, overlap_s=overlap_s, at_us=at_us)

    def _check_unused(self, sha256: str) -> None:
        """The first digits of a secret name one key and lead to one; only a revoked key gives them up."""
        fingerprint = fingerprint_of(sha256)
        named = (self._key_of.get(fingerprint, ""), KEY_ID_PREFIX + fingerprint, ADMIN_ID_PREFIX + fingerprint)
        for key_id in named:
            key = self.keys.get(key_id) or self.admin_keys.get(key_id)
            if key is not None and key.revoked_us is None:
                raise conflict("duplicate_key", "sha256", f"it begins like a secret of {key_id}", "make another key")

    def _room_for_key(self, tenant: str, key_id: str, at_us: int) -> list[str]:
        """Dead keys of the tenant that are forgotten for one more."""
        own = self._keys_of.get(tenant, {})
        if key_id in own or (len(own) < MAX_KEYS_PER_TENANT and len(self.keys) < MAX_KEYS):
            return []
        dead = next((each for each in own if self.keys[each].is_dead(at_us)), None)
        if dead is None:
            raise full("tenant", f"at most {MAX_KEYS_PER_TENANT} keys of a tenant and {MAX_KEYS} of all are kept")
        return [dead]

    # -- edits move the tables; nothing here can fail

    def _do(self, edits: _Edits) -> None:
        for key_id in edits.forgotten:
            self._forget(key_id)
        for tenant in edits.tenants:
            self.tenants[tenant.name] = tenant
        for key in edits.keys:
            before = self.keys.get(key.key_id)
            if before is not None and before.tenant != key.tenant:
                del self._keys_of[before.tenant][key.key_id]
            self._keys_of.setdefault(key.tenant, {})[key.key_id] = None
            self._point(key, before)
            self.keys[key.key_id] = key
        for admin_key in edits.admin_keys:
            self._point(admin_key, self.admin_keys.get(admin_key.key_id))
            self.admin_keys[admin_key.key_id] = admin_key
        self.owner = edits.owner or self.owner

    def _forget(self, key_id: str) -> None:
        key = self.keys.pop(key_id, None) or self.admin_keys.pop(key_id)
        if isinstance(key, TenantKey):
            del self._keys_of[key.tenant][key_id]
        self._unpoint(key)

    def _point(self, key: TenantKey | AdminKey, before: TenantKey | AdminKey | None) -> None:
        if before is not None:
            self._unpoint(before)
        for secret in key.secrets:
            self._key_of[secret.fingerprint] = key.key_id

    def _unpoint(self, key: TenantKey | AdminKey) -> None:
        for secret in key.secrets:
            if self._key_of.get(secret.fingerprint) == key.key_id:
                del self._key_of[secret.fingerprint]


_MAKERS: dict[type, Callable[[Directory, Any, int], _Edits]] = {
    OwnerSet: Directory._own,
    changes.TenantCreated: Directory._create_tenant,
    changes.TenantChanged: Directory._change_tenant,
    changes.TenantClosed: Directory._close_tenant,
    changes.TenantReopened: Directory._reopen_tenant,
    changes.ProjectCreated: Directory._create_project,
    changes.ProjectRemoved: Directory._remove_project,
    changes.BudgetsSet: Directory._set_budgets,
    changes.KeyCreated: Directory._create_key,
    changes.KeyChanged: Directory._change_key,
    changes.KeyRotated: Directory._rotate_key,
    changes.KeyRevoked: Directory._revoke_key,
    changes.KeyMoved: Directory._move_key,
    changes.AdminKeyCreated: Directory._create_admin_key,
    changes.AdminKeyRotated: Directory._rotate_admin_key,
    changes.AdminKeyRevoked: Directory._revoke_admin_key,
}
