"""What the configuration file says of tenants, as changes of the directory: the API's seed, or the file's own words.

Called by ``scheduler.service`` at its start and at each reload. It must never apply a change, and it hands on hashes of
keys only.

The file is compared with what stands, so that reading it twice changes nothing, and each difference is one row of the
audit log. What the file does not name is closed or revoked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from scheduler.accounting import changes
from scheduler.accounting.budget_terms import BudgetTerm
from scheduler.accounting.changes import DEFAULT_PROJECT, WEIGHT_PARTS, Deed, KeyTerms, TenantTerms
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import TIERS, TenantKey
from scheduler.api.access import key_id_of
from scheduler.config_tenants import BudgetConfig, KeyConfig, TenantConfig
from scheduler.credentials import FileKey


def file_sha256(tenants: Iterable[TenantConfig]) -> str:
    """Of what the file says of tenants: an edit is told by it. Keys in files count by their path."""
    return hashlib.sha256("\n".join(tenant.model_dump_json() for tenant in tenants).encode()).hexdigest()


def deeds_of_file(directory: Directory, tenants: tuple[TenantConfig, ...], keys: Iterable[FileKey]) -> Iterator[Deed]:
    """Each to be applied before the next is asked for: they are told from what stands then."""
    wanted = {key_id_of(each.digest): each for each in keys}
    for key_id, standing in list(directory.keys.items()):
        if standing.revoked_us is None and not _is_kept(standing, wanted.get(key_id)):
            yield changes.KeyRevoked(key_id=key_id)
    for tenant in tenants:
        yield from _tenant(directory, tenant)
    for key_id, file_key in wanted.items():
        yield from _key(directory, key_id, file_key)
    for tenant in tenants:
        yield from _projects_left(directory, tenant)
    names = {tenant.name for tenant in tenants}
    for name, standing_tenant in list(directory.tenants.items()):
        if name not in names and standing_tenant.closed_us is None:
            yield changes.TenantClosed(name=name)


def _is_kept(standing: TenantKey, wanted: FileKey | None) -> bool:
    """A key of another tenant, with another secret or with an end is not the file's; it begins anew."""
    return (
        wanted is not None
        and (standing.tenant, standing.secrets[0].sha256) == (wanted.tenant.name, wanted.digest.hex())
        and standing.terms.expires_us is None
    )


def _tenant(directory: Directory, tenant: TenantConfig) -> Iterator[Deed]:
    name, terms = tenant.name, _tenant_terms(tenant)
    budgets, task_budgets = _terms(tenant.budgets), _terms(tenant.task_budgets)
    standing = directory.tenants.get(name)
    if standing is None:
        yield changes.TenantCreated(name=name, terms=terms, budgets=budgets, task_budgets=task_budgets)
    elif standing.closed_us is not None:
        yield changes.TenantReopened(name=name)
    projects = {project: _terms(each.budgets) for project, each in tenant.projects.items()}
    if terms.project != DEFAULT_PROJECT:
        projects.setdefault(terms.project, ())
    for project, of_project in projects.items():
        before = directory.tenants[name].projects.get(project)
        if before is None:
            yield changes.ProjectCreated(tenant=name, name=project, budgets=of_project)
        elif before != of_project:
            yield changes.BudgetsSet(level="project", name=f"{name}/{project}", budgets=of_project)
    if directory.tenants[name].terms != terms:
        yield changes.TenantChanged(name=name, terms=terms)
    if directory.tenants[name].budgets != budgets:
        yield changes.BudgetsSet(level="tenant", name=name, budgets=budgets)
    if directory.tenants[name].task_budgets != task_budgets:
        yield changes.BudgetsSet(level="task", name=name, budgets=task_budgets)


def _key(directory: Directory, key_id: str, file_key: FileKey) -> Iterator[Deed]:
    digest, tenant, key = file_key
    terms = KeyTerms() if key is None else _key_terms(key, tenant)
    budgets = () if key is None else _terms(key.budgets)
    project = None if key is None else key.project
    standing: TenantKey | None = directory.keys.get(key_id)
    if standing is None or standing.revoked_us is not None:
        yield changes.KeyCreated(
            key_id=key_id, sha256=digest.hex(), tenant=tenant.name, project=project, terms=terms, budgets=budgets
        )
        return
    if standing.terms != terms:
        yield changes.KeyChanged(key_id=key_id, terms=terms)
    if standing.project != project:
        yield changes.KeyMoved(key_id=key_id, tenant=tenant.name, project=project)
    if standing.budgets != budgets:
        yield changes.BudgetsSet(level="key", name=key_id, budgets=budgets)


def _projects_left(directory: Directory, tenant: TenantConfig) -> Iterator[Deed]:
    """Those that the file no longer names, once no key does."""
    for project in list(directory.tenants[tenant.name].projects):
        if project not in tenant.projects and project != tenant.project:
            yield changes.ProjectRemoved(tenant=tenant.name, name=project)


def _tenant_terms(tenant: TenantConfig) -> TenantTerms:
    return TenantTerms(
        project=tenant.project,
        max_tier=tenant.max_tier,
        weight_micro=round(tenant.weight * WEIGHT_PARTS),
        data_class=tenant.data_class,
        zones=_zones(tenant.zones),
    )


def _key_terms(key: KeyConfig, tenant: TenantConfig) -> KeyTerms:
    """A tier above its tenant's is lowered to it, as ever."""
    is_lower = key.max_tier is not None and TIERS.index(key.max_tier) >= TIERS.index(tenant.max_tier)
    return KeyTerms(
        max_tier=key.max_tier if is_lower else None,
        data_class=key.data_class,
        zones=_zones(key.zones),
    )


def _zones(zones: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if zones is None else tuple(dict.fromkeys(zones))


def _terms(budgets: tuple[BudgetConfig, ...]) -> tuple[BudgetTerm, ...]:
    return tuple(budget.term for budget in budgets)
