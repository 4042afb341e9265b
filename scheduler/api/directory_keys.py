"""Admin routes over the keys of tenants and over further admin keys.

Given to ``scheduler.api.admin`` with the rest of ``scheduler.api.directory``. A key is in the answer that made it, and
never again. It must never tell a key of the other kind from one that is not there.
"""

from __future__ import annotations

from scheduler.accounting import changes
from scheduler.accounting.changes import Deed
from scheduler.accounting.directory_values import (
    ADMIN_ID_PREFIX,
    KEY_ID_PREFIX,
    TenantKey,
    conflict,
    fingerprint_of,
    unknown,
)
from scheduler.api import directory_bodies as bodies
from scheduler.api.access import ADMIN_KEY_PREFIX, KEY_PREFIX
from scheduler.api.admin_routes import OPERATORS, Question, Reply, Route
from scheduler.api.directory_changes import PAGING, Changes, page_of, reply
from scheduler.api.directory_views import View, admin_key_view, house_key_view, key_view


class KeyRoutes:
    """Keys of tenants."""

    def __init__(self, changes_: Changes) -> None:
        self._changes = changes_

    def routes(self) -> list[Route]:
        """All of them."""
        read, change = self._changes.read, self._changes.change
        of_tenant, one = "/tenants/{tenant}/keys", "/keys/{key}"
        return [
            read("/keys", OPERATORS, self._list, PAGING),
            read(of_tenant, OPERATORS, self._list_of_tenant, PAGING),
            change("POST", of_tenant, self._create),
            read(one, OPERATORS, self._show),
            change("PATCH", one, self._patch),
            change("POST", f"{one}/rotate", self._rotate),
            change("POST", f"{one}/revoke", self._revoke, is_urgent=True),
            change("POST", f"{one}/move", self._move),
        ]

    async def _list(self, question: Question) -> Reply:
        return page_of(self._changes.directory.keys, question.query, self._view)

    async def _list_of_tenant(self, question: Question) -> Reply:
        directory, name = self._changes.directory, question.names["tenant"]
        if name not in directory.tenants:
            raise unknown("tenant", "name")
        return page_of((key.key_id for key in directory.keys_of(name)), question.query, self._view)

    async def _show(self, question: Question) -> Reply:
        return reply(self._view(question.names["key"]))

    async def _create(self, question: Question) -> Reply:
        body = bodies.read_body(question.body, bodies.KeyBody)
        terms = bodies.new_key_terms(body, now_us=self._changes.keeper.now_us)
        budgets = bodies.budget_terms(body.budgets)
        made: list[str] = []

        def deed_of(sha256: str) -> Deed:
            made.append(KEY_ID_PREFIX + fingerprint_of(sha256))
            return changes.KeyCreated(
                key_id=made[0],
                sha256=sha256,
                tenant=question.names["tenant"],
                project=body.project,
                terms=terms,
                budgets=budgets,
            )

        key = await self._changes.make_key(question, KEY_PREFIX, deed_of)
        return reply({"key": key, **self._view(made[0])}, status=201)

    async def _patch(self, question: Question) -> Reply:
        patch = bodies.read_body(question.body, bodies.KeyPatch)
        standing = self._key(question.names["key"])
        terms = bodies.patched_key_terms(standing.terms, patch, now_us=self._changes.keeper.now_us)
        return await self._make(question, changes.KeyChanged(key_id=standing.key_id, terms=terms))

    async def _rotate(self, question: Question) -> Reply:
        body, key_id = bodies.read_body(question.body, bodies.RotateBody), question.names["key"]

        def deed_of(sha256: str) -> Deed:
            return changes.KeyRotated(key_id=key_id, sha256=sha256, overlap_s=body.overlap_s)

        key = await self._changes.make_key(question, KEY_PREFIX, deed_of)
        return reply({"key": key, **self._view(key_id)})

    async def _revoke(self, question: Question) -> Reply:
        bodies.read_body(question.body, bodies.Nothing)
        return await self._make(question, changes.KeyRevoked(key_id=question.names["key"]))

    async def _move(self, question: Question) -> Reply:
        body = bodies.read_body(question.body, bodies.MoveBody)
        standing = self._key(question.names["key"])
        tenant = standing.tenant if body.tenant is None else body.tenant
        deed = changes.KeyMoved(key_id=standing.key_id, tenant=tenant, project=body.project)
        return await self._make(question, deed)

    async def _make(self, question: Question, deed: Deed) -> Reply:
        is_new = await self._changes.make(question, deed)
        return reply(self._view(question.names["key"]), is_new=is_new)

    def _key(self, key_id: str) -> TenantKey:
        """Raises: ChangeRefused."""
        key = self._changes.directory.keys.get(key_id)
        if key is None:
            raise unknown("key", "key_id")
        return key

    def _view(self, key_id: str) -> View:
        return key_view(self._key(key_id), self._changes.directory, now_us=self._changes.keeper.now_us)


class AdminKeyRoutes:
    """Admin keys beside the house's own, which lies in its file."""

    def __init__(self, changes_: Changes, *, house_key_id: str) -> None:
        self._changes = changes_
        self._house_key_id = house_key_id

    def routes(self) -> list[Route]:
        """All of them."""
        read, change = self._changes.read, self._changes.change
        one = "/admin-keys/{key}"
        return [
            read("/admin-keys", OPERATORS, self._list, PAGING),
            change("POST", "/admin-keys", self._create),
            change("POST", f"{one}/rotate", self._rotate),
            change("POST", f"{one}/revoke", self._revoke, is_urgent=True),
        ]

    async def _list(self, question: Question) -> Reply:
        return page_of([self._house_key_id, *self._changes.directory.admin_keys], question.query, self._view)

    async def _create(self, question: Question) -> Reply:
        body = bodies.read_body(question.body, bodies.AdminKeyBody)
        expires_us = bodies.end_us(body, now_us=self._changes.keeper.now_us)
        made: list[str] = []

        def deed_of(sha256: str) -> Deed:
            made.append(ADMIN_ID_PREFIX + fingerprint_of(sha256))
            return changes.AdminKeyCreated(
                key_id=made[0], sha256=sha256, role=body.role, label=body.label, expires_us=expires_us
            )

        key = await self._changes.make_key(question, ADMIN_KEY_PREFIX, deed_of)
        return reply({"key": key, **self._view(made[0])}, status=201)

    async def _rotate(self, question: Question) -> Reply:
        body, key_id = bodies.read_body(question.body, bodies.RotateBody), question.names["key"]
        self._check_is_ours(key_id)

        def deed_of(sha256: str) -> Deed:
            return changes.AdminKeyRotated(key_id=key_id, sha256=sha256, overlap_s=body.overlap_s)

        key = await self._changes.make_key(question, ADMIN_KEY_PREFIX, deed_of)
        return reply({"key": key, **self._view(key_id)})

    async def _revoke(self, question: Question) -> Reply:
        bodies.read_body(question.body, bodies.Nothing)
        key_id = question.names["key"]
        self._check_is_ours(key_id)
        is_new = await self._changes.make(question, changes.AdminKeyRevoked(key_id=key_id))
        return reply(self._view(key_id), is_new=is_new)

    def _check_is_ours(self, key_id: str) -> None:
        if key_id == self._house_key_id:
            remedy = "replace the file admin.key_file and restart"
            raise conflict("owned_by_file", "key_id", "this admin key lies in its file", remedy)

    def _view(self, key_id: str) -> View:
        if key_id == self._house_key_id:
            return house_key_view(key_id)
        return admin_key_view(self._changes.directory.admin_keys[key_id], now_us=self._changes.keeper.now_us)
