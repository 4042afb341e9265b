"""Admin routes over tenants, projects, budgets and the audit log; those over keys are beside them.

Given to ``scheduler.api.admin`` by ``scheduler.service``. It must never see a key.
"""

from __future__ import annotations

from collections.abc import Iterator

from scheduler.accounting import changes
from scheduler.accounting.budget_terms import BudgetTerm
from scheduler.accounting.change_log import MAX_PAGE
from scheduler.accounting.changes import Deed
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import Tenant, invalid, unknown
from scheduler.api import directory_bodies as bodies
from scheduler.api.admin_routes import EVERYBODY, OPERATORS, Question, Reply, Route
from scheduler.api.directory_changes import PAGING, Changes, KeepsDirectory, limit_of, page_of, reply
from scheduler.api.directory_keys import AdminKeyRoutes, KeyRoutes
from scheduler.api.directory_views import View, audit_view, budgets_view, list_view, project_view, tenant_view
from scheduler.api.errors import ApiError, asking_the_ledger


def directory_routes(keeper: KeepsDirectory, *, house_key_id: str) -> list[Route]:
    """All of them. ``house_key_id``: of the admin key that lies in its file and is no part of the directory."""
    changes_ = Changes(keeper)
    return [
        *TenantRoutes(changes_).routes(),
        *KeyRoutes(changes_).routes(),
        *AdminKeyRoutes(changes_, house_key_id=house_key_id).routes(),
    ]


class TenantRoutes:
    """Tenants, their projects and budgets, and who changed what."""

    def __init__(self, changes_: Changes) -> None:
        self._changes = changes_

    def routes(self) -> list[Route]:
        """All of them."""
        read, change = self._changes.read, self._changes.change
        one, projects = "/tenants/{tenant}", "/tenants/{tenant}/projects"
        return [
            read("/tenants", EVERYBODY, self._list, PAGING),
            change("POST", "/tenants", self._create),
            read(one, EVERYBODY, self._show),
            change("PATCH", one, self._patch),
            change("DELETE", one, self._close, is_urgent=True),
            read(projects, EVERYBODY, self._list_projects, PAGING),
            change("POST", projects, self._create_project),
            change("DELETE", f"{projects}/{{project}}", self._remove_project),
            read("/budgets", EVERYBODY, self._show_budgets, ("level", "name")),
            change("PUT", "/budgets", self._set_budgets),
            read("/audit", OPERATORS, self._audit, ("before", "limit")),
        ]

    # -- tenants

    async def _list(self, question: Question) -> Reply:
        tenants = self._changes.directory.tenants
        return page_of(tenants, question.query, lambda name: self._view(name))

    async def _show(self, question: Question) -> Reply:
        return reply(self._view(question.names["tenant"]))

    async def _create(self, question: Question) -> Reply:
        body = bodies.read_body(question.body, bodies.TenantBody)
        deed = changes.TenantCreated(
            name=body.name,
            terms=bodies.new_tenant_terms(body),
            budgets=bodies.budget_terms(body.budgets),
            task_budgets=bodies.budget_terms(body.task_budgets, "task_budgets"),
        )
        return await self._make(question, deed, body.name, status=201)

    async def _patch(self, question: Question) -> Reply:
        """Terms, or open again: one of both, so that it is one row."""
        patch = bodies.read_body(question.body, bodies.TenantPatch)
        tenant = tenant_of(self._changes.directory, question.names["tenant"])
        terms = bodies.patched_tenant_terms(tenant.terms, patch)
        deed: Deed = changes.TenantChanged(name=tenant.name, terms=terms)
        if patch.is_closed is False:
            if terms != tenant.terms:
                raise invalid("is_closed", "stands alone", "change the other terms in a request of their own")
            deed = changes.TenantReopened(name=tenant.name)
        return await self._make(question, deed, tenant.name)

    async def _close(self, question: Question) -> Reply:
        bodies.read_body(question.body, bodies.Nothing)
        name = question.names["tenant"]
        return await self._make(question, changes.TenantClosed(name=name), name)

    async def _make(self, question: Question, deed: Deed, name: str, *, status: int = 200) -> Reply:
        is_new = await self._changes.make(question, deed)
        return reply(self._view(name), status=status, is_new=is_new)

    def _view(self, name: str) -> View:
        return tenant_view(tenant_of(self._changes.directory, name), self._changes.directory)

    # -- projects and budgets

    async def _list_projects(self, question: Question) -> Reply:
        tenant = tenant_of(self._changes.directory, question.names["tenant"])
        names = {tenant.terms.project, *tenant.projects}
        return page_of(names, question.query, lambda name: project_view(tenant, name))

    async def _create_project(self, question: Question) -> Reply:
        body = bodies.read_body(question.body, bodies.ProjectBody)
        name, budgets = question.names["tenant"], bodies.budget_terms(body.budgets)
        is_new = await self._changes.make(
            question, changes.ProjectCreated(tenant=name, name=body.name, budgets=budgets)
        )
        tenant = tenant_of(self._changes.directory, name)
        return reply(project_view(tenant, body.name), status=201, is_new=is_new)

    async def _remove_project(self, question: Question) -> Reply:
        bodies.read_body(question.body, bodies.Nothing)
        name = question.names["tenant"]
        deed = changes.ProjectRemoved(tenant=name, name=question.names["project"])
        return await self._make(question, deed, name)

    async def _show_budgets(self, question: Question) -> Reply:
        """Of one level; without a name of every level that has any. Whoever bills sees none of keys."""
        is_operator = question.caller.role in OPERATORS
        level, name = question.query.get("level"), question.query.get("name")
        if (level is None) != (name is None):
            raise ApiError(400, "Give level and name, or none of them.", code="invalid_query", param="level")
        if level is None or name is None:
            found = all_budgets(self._changes.directory)
            rows = [budgets_view(*row) for row in found if row[2] and (is_operator or row[0] != "key")]
            return reply(list_view(rows[:MAX_PAGE], has_more=len(rows) > MAX_PAGE))
        if level == "key" and not is_operator:
            message = f"This key's role is {question.caller.role}; budgets of keys need admin or read."
            raise ApiError(403, message, code="role_not_allowed")
        return reply(budgets_view(level, name, budgets_of(self._changes.directory, level, name)))

    async def _set_budgets(self, question: Question) -> Reply:
        body = bodies.read_body(question.body, bodies.BudgetsBody)
        budgets = bodies.budget_terms(body.budgets)
        deed = changes.BudgetsSet(level=body.level, name=body.name, budgets=budgets)
        is_new = await self._changes.make(question, deed)
        return reply(budgets_view(body.level, body.name, budgets), is_new=is_new)

    # -- who changed what

    async def _audit(self, question: Question) -> Reply:
        """The newest first; ``before``: the number of the last row of the page before."""
        limit, before = limit_of(question.query), question.query.get("before")
        if before is not None and not (before.isascii() and before.isdecimal() and len(before) <= 18):
            raise ApiError(400, "before: must be the number of a row.", code="invalid_query", param="before")
        number = None if before is None else int(before)
        with asking_the_ledger():
            rows = await self._changes.keeper.page(before=number, limit=limit + 1)
        shown = rows[:limit]
        last = shown[-1].number if shown else None
        return reply(list_view([audit_view(row) for row in shown], has_more=len(rows) > limit, last=last))


def tenant_of(directory: Directory, name: str) -> Tenant:
    """Raises: ChangeRefused."""
    tenant = directory.tenants.get(name)
    if tenant is None:
        raise unknown("tenant", "name")
    return tenant


def budgets_of(directory: Directory, level: str, name: str) -> tuple[BudgetTerm, ...]:
    """Raises: ChangeRefused."""
    if level == "key":
        key = directory.keys.get(name)
        if key is None:
            raise unknown("key", "name")
        return key.budgets
    owner, _, project = name.partition("/")
    tenant = tenant_of(directory, name if level in ("tenant", "task") else owner)
    if level == "project" and not tenant.has_project(project):
        raise unknown("project", "name", "it is written TENANT/PROJECT")
    of_level = {
        "tenant": tenant.budgets,
        "task": tenant.task_budgets,
        "project": tenant.projects.get(project, ()),
    }
    if level not in of_level:
        raise invalid("level", "must be tenant, project, key or task")
    return of_level[level]


def all_budgets(directory: Directory) -> Iterator[tuple[str, str, tuple[BudgetTerm, ...]]]:
    """Level, name and budgets of everything, tenant by tenant."""
    for name in sorted(directory.tenants):
        tenant = directory.tenants[name]
        yield "tenant", name, tenant.budgets
        yield "task", name, tenant.task_budgets
        for project in sorted(tenant.projects):
            yield "project", f"{name}/{project}", tenant.projects[project]
        for key in directory.keys_of(name):
            yield "key", key.key_id, key.budgets
