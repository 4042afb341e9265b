"""Both listeners over one live directory, without sockets, with a clock by hand.

Used by tests of the admin routes (``from tests.directory_office import Office``).
"""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler.accounting.change_log import ChangeLog, MemoryChangeLog
from scheduler.accounting.changes import AdminKeyRevoked, Change, KeyRevoked, Role
from scheduler.accounting.directory import Directory
from scheduler.accounting.growth import Growth
from scheduler.accounting.outcomes import Facts
from scheduler.accounting.receipts import OfAnotherTenant
from scheduler.accounting.usage import MemoryUsage
from scheduler.api.access import AdminCaller, Caller, Hosts, Keys
from scheduler.api.admin import AdminApp
from scheduler.api.app import RelayApp
from scheduler.api.directory import directory_routes
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.api.outcomes import OutcomeDesk
from scheduler.api.usage import UsageDesk
from scheduler.credentials import admin_keys, directory_keys, house_key_id
from scheduler.metrics import Metrics
from scheduler.tenancy import Tenancy
from tests.asgi_client import Asked, ask
from tests.directory_words import NOW_US, SECOND_US, TWO_TENANTS, admin_key, changed, key, key_id
from tests.fake_dispatcher import FakeDispatcher
from tests.outcome_log import MemoryOutcomes

ROOT = "/v1/jouleway/admin"
HOUSE_KEY = "house-key-of-the-tests"
HOUSE_ID = house_key_id(HOUSE_KEY)
FOREIGN_ID = "req-" + "f" * 26
"""A request of ``other``."""
NOW_S = NOW_US / SECOND_US + 1_000

CALLERS: dict[str, str | None] = {
    "nobody": None,
    "stranger": "jw-nobody-ever-had-this-key",
    "tenant": "secret-a",
    "other tenant": "secret-b",
    "revoked tenant": "secret-gone",
    "revoked admin": "secret-revoked",
    "expired admin": "secret-expired",
    "billing": "secret-billing",
    "read": "secret-r",
    "admin": "secret-admin",
    "house": HOUSE_KEY,
}
"""Everybody who could come, and with which key."""
ROLE_OF = {"billing": Role.BILLING, "read": Role.READ, "admin": Role.ADMIN, "house": Role.ADMIN}


def grown(from_size: int) -> Growth:
    """Of no ledger; a test may put another one in its place."""
    return Growth(checkpoint="", from_size=from_size, proof=[])


def directory_of_everybody() -> Directory:
    """Two tenants and all of ``CALLERS``."""
    deeds = [
        *TWO_TENANTS,
        key("secret-gone", "other"),
        KeyRevoked(key_id=key_id("secret-gone")),
        admin_key("secret-admin", Role.ADMIN),
        admin_key("secret-billing", Role.BILLING),
        admin_key("secret-revoked", Role.ADMIN),
        AdminKeyRevoked(key_id=key_id("secret-revoked", "adm-")),
        admin_key("secret-expired", Role.ADMIN, expires_us=NOW_US + 100 * SECOND_US),
    ]
    return Directory.of(changed(*deeds))


class Ledger(MemoryChangeLog):
    """A log that commits when it is let, fails when it is told, and says in which order things happened."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.error: Exception | None = None
        self.append_error: Exception | None = None
        self.holds_error: Exception | None = None

    def append(self, change: Change) -> None:
        if self.append_error is not None:
            raise self.append_error
        self.events.append(change.what)
        super().append(change)

    async def holds(self, change_id: str) -> bool:
        self.events.append("asked")
        if self.holds_error is not None:
            raise self.holds_error
        return await super().holds(change_id)

    async def commit(self) -> None:
        await self.may_commit.wait()
        if self.error is not None:
            raise self.error
        self.events.append("commit")


class Office:
    """``now_s`` may be moved. ``published`` counts how often the directory came into effect."""

    def __init__(
        self,
        *,
        file_owner: str | None = None,
        log: ChangeLog | None = None,
        dispatcher: Any = None,
        commit_timeout_s: float = 5.0,
    ) -> None:
        self.now_s = NOW_S
        self.published = 0
        self.log = MemoryChangeLog() if log is None else log
        self.keys: Keys[Caller] = Keys([], unix_clock=lambda: self.now_s)
        self.admin_keys: Keys[AdminCaller] = Keys([], unix_clock=lambda: self.now_s)
        self.tenancy = Tenancy(
            log=self.log,
            directory=directory_of_everybody(),
            publish=self.publish,
            file_owner=file_owner,
            unix_clock=lambda: self.now_s,
            commit_timeout_s=commit_timeout_s,
        )
        self.publish()
        self.dispatcher = dispatcher or FakeDispatcher()
        metrics, dispatcher = Metrics(), self.dispatcher
        self.admin = AdminApp(
            dispatcher=dispatcher,
            keys=self.admin_keys,
            hosts=Hosts(),
            metrics=metrics,
            routes=directory_routes(self.tenancy, house_key_id=HOUSE_ID),
            recall=self.tenancy.recall,
            denials=self.tenancy,
            receipts=lambda request_id, tenant: None,
            growths=lambda size: grown(size),
            usage=UsageDesk(MemoryUsage()),
        )
        self.relay = RelayApp(
            dispatcher=dispatcher,
            keys=self.keys,
            hosts=Hosts(),
            models={"m": ServedModel(name="m", default_output_tokens=8, expansion=1, created_unix_s=1)},
            limits=RelayLimits(),
            metrics=metrics,
            denials=self.tenancy,
            receipts=self.receipt,
            growths=lambda size: grown(size),
            usage=UsageDesk(MemoryUsage()),
            outcomes=OutcomeDesk(MemoryOutcomes({FOREIGN_ID: Facts(tenant="other")})),
        )

    @staticmethod
    def receipt(request_id: str, tenant: str | None) -> None:
        """Nobody's but ``other``'s, and that has none yet."""
        if request_id == FOREIGN_ID and tenant not in (None, "other"):
            raise OfAnotherTenant

    def publish(self) -> None:
        self.published += 1
        self.keys.reload(directory_keys(self.tenancy.directory))
        self.admin_keys.reload(admin_keys(self.tenancy.directory, HOUSE_KEY))

    async def asked(
        self, method: str, path: str, body: object = None, *, key: str | None = HOUSE_KEY, **how: Any
    ) -> Asked:
        """Of the admin listener, below ``ROOT``."""
        return await ask(self.admin, ROOT + path, body, method=method, key=key, **how).finished()

    async def opens(self, key: str) -> bool:
        """Whether the key opens the tenants' listener."""
        asked = await ask(self.relay, "/v1/models", key=key).finished()
        assert asked.status in (200, 401)
        return asked.status == 200

    async def rows(self) -> list[dict[str, Any]]:
        """Bodies of the log, the oldest first."""
        return [dict(row.fields) for row in reversed(await self.log.page(before=None, limit=1_000))]
