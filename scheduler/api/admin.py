"""The operator's ASGI application, on its own loopback listener: metrics, workers, queues, budgets, balance, requests,
who used what.

Called by ``scheduler.service`` through uvicorn, opened by one admin key. It must never change anything, and it shows no
prompt and no key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from scheduler.api.access import Hosts, bearer_token, unauthorized
from scheduler.api.errors import ApiError
from scheduler.api.exchange import JSON, NO_STORE, Exchange, Header, Receive, Scope, Send
from scheduler.api.exchange import new_request_id as random_request_id
from scheduler.api.explain import PREFIX, REQUESTS_PREFIX, life_of
from scheduler.api.receipts import RECEIPTS_PREFIX, Receipts, receipt_body
from scheduler.api.usage import USAGE_PATHS, UsageDesk
from scheduler.metrics import CONTENT_TYPE, Metrics
from scheduler.snapshot import Snapshot

logger = logging.getLogger("jouleway.api")


class Shows(Protocol):
    """What is needed of a dispatcher."""

    def snapshot(self) -> Snapshot: ...

    def explain(self, request_id: str, *, tenant: str | None = None) -> dict[str, Any] | None: ...


class AdminApp:
    """An ASGI callable. Reads a snapshot per question."""

    def __init__(
        self,
        *,
        dispatcher: Shows,
        admin_key_digest: bytes,
        hosts: Hosts,
        metrics: Metrics,
        new_request_id: Callable[[], str] = random_request_id,
        receipts: Receipts | None = None,
        usage: UsageDesk | None = None,
    ) -> None:
        """``admin_key_digest`` is ``access.digest_of`` of the key. What is None has no routes."""
        self._receipts = receipts
        self._dispatcher = dispatcher
        self._admin_key_digest = admin_key_digest
        self._hosts = hosts
        self._metrics = metrics
        self._new_request_id = new_request_id
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, request_id=self._new_request_id())
        try:
            body, content_type = await self._answer(exchange)
            await exchange.respond(200, body, [content_type, NO_STORE])
        except ApiError as error:
            logger.info("admin %s: status %d, %s", exchange.request_id, error.status, error.code)
            await exchange.fail(error)
        except Exception as error:
            # The loop's edge.
            logger.error("admin %s failed here: %s: %s", exchange.request_id, type(error).__name__, error)
            if not exchange.is_begun:
                await exchange.fail(ApiError(500, "This question could not be answered.", code="internal_error"))

    async def _answer(self, exchange: Exchange) -> tuple[bytes, Header]:
        """Body and content type. Raises: ApiError."""
        self._hosts.check(exchange.headers.get(b"host", []), setting="the admin listener answers loopback names only")
        if exchange.method not in ("GET", "HEAD"):
            raise ApiError(
                405, "This listener only answers GET.", code="method_not_allowed", headers=((b"allow", b"GET, HEAD"),)
            )
        path = exchange.path
        if path == "/health":
            return b'{"status":"ok"}', JSON
        self._check_key(exchange.headers.get(b"authorization", []))
        if path == "/metrics":
            return self._metrics.render(), (b"content-type", CONTENT_TYPE.encode())
        if path.startswith(REQUESTS_PREFIX):
            return life_of(self._dispatcher, path.removeprefix(REQUESTS_PREFIX)), JSON
        if path.startswith(RECEIPTS_PREFIX):
            return await receipt_body(self._receipts, path.removeprefix(RECEIPTS_PREFIX)), JSON
        if path in USAGE_PATHS and self._usage is not None:
            return await self._usage.answer(path, exchange.query, None), JSON
        return msgspec.json.encode(self._seen(path)), JSON

    def _check_key(self, values: list[bytes]) -> None:
        digest = hashlib.sha256(bearer_token(values)).digest()
        if not hmac.compare_digest(digest, self._admin_key_digest):
            raise unauthorized("Incorrect admin key.")

    def _seen(self, path: str) -> object:
        """What one of the fixed routes shows."""
        name = path.removeprefix(PREFIX) if path.startswith(PREFIX) else ""
        if name not in VIEWS:
            raise ApiError(404, "There is no such route here.", code="route_not_found")
        return VIEWS[name](self._dispatcher.snapshot())


def _balance(snapshot: Snapshot) -> object:
    return {"balance": snapshot.balance, "tenants": snapshot.tenants, "workers": snapshot.worker_energy}


def _budgets(snapshot: Snapshot) -> object:
    """Those near their limit, what is held on all of them, and what was taken beyond holds of energy."""
    return {
        "budgets": snapshot.budgets_near_limit,
        "held": snapshot.budget_held,
        "excess": snapshot.budget_excess,
    }


VIEWS: dict[str, Callable[[Snapshot], object]] = {
    "snapshot": lambda snapshot: snapshot,
    "workers": lambda snapshot: {"workers": snapshot.workers},
    "queues": lambda snapshot: {"queues": snapshot.queue},
    "budgets": _budgets,
    "balance": _balance,
}
"""Parts of a snapshot, each under its name after ``/v1/jouleway/``."""
