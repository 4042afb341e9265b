"""The live directory: each change is checked, logged, made durable and then in effect; denied accesses are logged too.

Owned by ``scheduler.service``, asked by the admin routes. It must never see a key, nor know how callers and rules are
made of the directory: ``publish`` does that.

Changes enter the log and the directory in one go, so that both have the same order; what callers see follows once the
log has it. What takes a secret, a key or a tenant away is in effect at once: no disk can delay it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Callable, Iterable

from scheduler.accounting.change_log import ChangeLog, Logged
from scheduler.accounting.changes import (
    CHANGE_PREFIX,
    FILE_ACTOR,
    NOBODY,
    SECOND_US,
    AccessDenied,
    Actor,
    AdminKeyRevoked,
    AdminKeyRotated,
    Change,
    Deed,
    KeyChanged,
    KeyCreated,
    KeyMoved,
    KeyRevoked,
    KeyRotated,
    KeyTerms,
    TenantChanged,
    TenantClosed,
    TenantCreated,
)
from scheduler.accounting.directory import Directory
from scheduler.accounting.directory_values import AdminKey, invalid
from scheduler.denial_log import COUNT_EVERY_S, DenialLog

logger = logging.getLogger("jouleway.service")

COMMIT_TIMEOUT_S = 30.0
RETRY_S = 1.0
"""Wait after a commit that failed, while a change waits for its effect."""
RECALL_TIMEOUT_S = 5.0

TAKES_AWAY = (KeyRevoked, AdminKeyRevoked, TenantClosed)
ROTATES = (KeyRotated, AdminKeyRotated)

ZoneProblem = Callable[[str, tuple[str, ...] | None], str | None]
"""What is wrong with data of this class in these zones (None: any), as zones are configured; None: nothing."""


class NotCommitted(Exception):
    """The change is logged and not known to be durable: it may be in effect later, or after a restart."""


def takes_away(deed: Deed) -> bool:
    """Whether it ends a secret or a tenant now, so that no disk may delay it."""
    return isinstance(deed, TAKES_AWAY) or (isinstance(deed, ROTATES) and deed.overlap_s == 0)


def new_change_id(prefix: str = CHANGE_PREFIX) -> str:
    """130 bits."""
    return f"{prefix}{base64.b32encode(secrets.token_bytes(17))[:26].decode().lower()}"


class Tenancy:
    """One for each control plane. ``directory`` is for reading."""

    def __init__(
        self,
        *,
        log: ChangeLog,
        directory: Directory,
        publish: Callable[[], None],
        file_owner: str | None = None,
        zone_problem: ZoneProblem = lambda data_class, zones: None,
        unix_clock: Callable[[], float] = time.time,
        commit_timeout_s: float = COMMIT_TIMEOUT_S,
        retry_s: float = RETRY_S,
        count_every_s: float = COUNT_EVERY_S,
    ) -> None:
        """``publish``: makes callers and rules of the directory. ``file_owner``: the file that says which tenants there
        are; None: the API does.
        """
        self.directory = directory
        self.file_owner = file_owner
        self.zone_problem = zone_problem
        self._log = log
        self._publish = publish
        self._unix_clock = unix_clock
        self._commit_timeout_s = commit_timeout_s
        self._retry_s = retry_s
        self._late: asyncio.Task[None] | None = None
        """Waits for a commit that somebody gave up waiting for."""
        self._denials = DenialLog(log, commit=self.commit, new_id=new_change_id, count_every_s=count_every_s)

    @property
    def now_us(self) -> int:
        """By the wall clock."""
        return int(self._unix_clock() * SECOND_US)

    async def change(self, deed: Deed, *, who: Actor, change_id: str) -> bool:
        """False: this change was made before. Returns when it is durable and in effect.

        Raises: ChangeRefused; NotCommitted; what keeps the log from taking it (nothing changed then).
        """
        change = Change(change_id=change_id, at_us=self.now_us, who=who, deed=deed)
        is_new = self.directory.check(change)
        if is_new:
            self._check_zones(deed)
            self._log.append(change)
            self.directory.apply(change)
            if takes_away(deed):
                self._publish()
        try:
            await self.commit()
        except (NotCommitted, asyncio.CancelledError):
            self._publish_later()
            raise
        self._publish()
        return is_new

    async def stop(self) -> None:
        """Nobody waits for a commit any more: the next start finds what became durable. The log's owner commits once
        more, with what was counted.
        """
        await self._denials.stop()
        if self._late is not None:
            self._late.cancel()
            await asyncio.wait([self._late])

    def _publish_later(self) -> None:
        """What is logged becomes durable some time, and then it is in effect, whoever still waits for it."""
        if self._late is None or self._late.done():
            self._late = asyncio.get_running_loop().create_task(self._publish_once_durable(), name="late-change")

    async def _publish_once_durable(self) -> None:
        while True:
            try:
                await self._log.commit()
                break
            except Exception as error:
                logger.debug("a change still waits for the ledger: %s", type(error).__name__)
                await asyncio.sleep(self._retry_s)
        self._publish()
        logger.warning("changes that were answered with not_committed are durable now, and in effect")

    async def recall(self, change_id: str) -> None:
        """From now on the directory knows whether this change was made, however long ago: ``change`` tells by it.

        Raises: what keeps the log from saying so.
        """
        if not self.directory.known.may_have_forgotten(change_id):
            return
        async with asyncio.timeout(RECALL_TIMEOUT_S):
            was_made = await self._log.holds(change_id)
        if was_made:
            self.directory.known.add(change_id)

    def record(self, deeds: Iterable[Deed]) -> None:
        """What the file says: logged and applied one by one; ``commit`` and the effect are the caller's.

        Raises: ChangeRefused.
        """
        for deed in deeds:
            change = Change(change_id=new_change_id(), at_us=self.now_us, who=FILE_ACTOR, deed=deed)
            self.directory.check(change)
            self._log.append(change)
            self.directory.apply(change)

    async def commit(self) -> None:
        """Everything logged before is durable. Raises: NotCommitted."""
        try:
            async with asyncio.timeout(self._commit_timeout_s):
                await self._log.commit()
        except Exception as error:
            raise NotCommitted(f"the ledger did not commit: {type(error).__name__}") from error

    async def denied(
        self, *, listener: str, source: str, route: str, status: int, code: str, sha256: str | None
    ) -> None:
        """One row, or none where there were too many in this minute. Raises: NotCommitted, what ``append`` raises."""
        deed = AccessDenied(listener=listener, source=source, route=route, status=status, code=code, also_denied=0)
        await self._denials.denied(deed, self._who(sha256), at_us=self.now_us)

    async def page(self, *, before: int | None, limit: int) -> list[Logged]:
        """Of the log, the newest first."""
        return await self._log.page(before=before, limit=limit)

    def _who(self, sha256: str | None) -> Actor:
        """Whose key was offered, valid or not."""
        key = None if sha256 is None else self.directory.owner_of(sha256)
        if key is None:
            return NOBODY
        return Actor(key_id=key.key_id, role=key.role if isinstance(key, AdminKey) else "tenant")

    def _check_zones(self, deed: Deed) -> None:
        """Zones are the configuration's: a change may name those it has, and no data may be left without a place.

        Raises: ChangeRefused.
        """
        directory = self.directory
        match deed:
            case TenantCreated() | TenantChanged():
                problem = self.zone_problem(deed.terms.data_class, deed.terms.zones)
            case KeyCreated():
                problem = self._key_problem(deed.terms, deed.tenant)
            case KeyChanged():
                problem = self._key_problem(deed.terms, directory.keys[deed.key_id].tenant)
            case KeyMoved():
                problem = self._key_problem(directory.keys[deed.key_id].terms, deed.tenant)
            case _:
                problem = None
        if problem is not None:
            field, _, message = problem.partition(": ")
            raise invalid(field, message)

    def _key_problem(self, terms: KeyTerms, tenant: str) -> str | None:
        standing = self.directory.tenants[tenant].terms
        return self.zone_problem(terms.data_class or standing.data_class, terms.zones or standing.zones)
