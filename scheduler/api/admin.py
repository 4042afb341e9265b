"""The operator's ASGI application, on its own loopback listener: metrics, workers, balance, requests; one admin key.

Called by ``scheduler.service`` through uvicorn. It must never change anything, and it shows no prompt and no key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable

import msgspec

from scheduler.accounting.settlement import RequestDetails
from scheduler.api.access import Hosts, bearer_token, unauthorized
from scheduler.api.errors import ApiError
from scheduler.api.exchange import JSON, Exchange, Header, Receive, Scope, Send
from scheduler.api.exchange import new_request_id as random_request_id
from scheduler.metrics import CONTENT_TYPE, Metrics
from scheduler.snapshot import Snapshot

logger = logging.getLogger("jouleway.api")

PREFIX = "/v1/jouleway/"
REQUESTS_PREFIX = f"{PREFIX}requests/"


class AdminApp:
    """An ASGI callable. Reads a snapshot per question."""

    def __init__(
        self,
        *,
        snapshot: Callable[[], Snapshot],
        details: Callable[[str], RequestDetails | None],
        admin_key_digest: bytes,
        hosts: Hosts,
        metrics: Metrics,
        new_request_id: Callable[[], str] = random_request_id,
    ) -> None:
        """``admin_key_digest`` is ``access.digest_of`` of the key."""
        self._snapshot = snapshot
        self._details = details
        self._admin_key_digest = admin_key_digest
        self._hosts = hosts
        self._metrics = metrics
        self._new_request_id = new_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, request_id=self._new_request_id())
        try:
            body, content_type = self._answer(exchange)
            await exchange.respond(200, body, [content_type, (b"cache-control", b"no-store")])
        except ApiError as error:
            logger.info("admin %s: status %d, %s", exchange.request_id, error.status, error.code)
            await exchange.fail(error)
        except Exception as error:
            # The loop's edge.
            logger.error("admin %s failed here: %s: %s", exchange.request_id, type(error).__name__, error)
            if not exchange.is_begun:
                await exchange.fail(ApiError(500, "This question could not be answered.", code="internal_error"))

    def _answer(self, exchange: Exchange) -> tuple[bytes, Header]:
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
            return msgspec.json.encode(self._request(path.removeprefix(REQUESTS_PREFIX))), JSON
        return msgspec.json.encode(self._seen(path)), JSON

    def _check_key(self, values: list[bytes]) -> None:
        digest = hashlib.sha256(bearer_token(values)).digest()
        if not hmac.compare_digest(digest, self._admin_key_digest):
            raise unauthorized("Incorrect admin key.")

    def _seen(self, path: str) -> object:
        """What one of the fixed routes shows."""
        match path.removeprefix(PREFIX) if path.startswith(PREFIX) else "":
            case "snapshot":
                return self._snapshot()
            case "workers":
                return {"workers": self._snapshot().workers}
            case "balance":
                snapshot = self._snapshot()
                return {
                    "balance": snapshot.balance,
                    "tenants": snapshot.tenants,
                    "workers": snapshot.worker_energy,
                }
        raise ApiError(404, "There is no such route here.", code="route_not_found")

    def _request(self, request_id: str) -> object:
        details = self._details(request_id)
        if details is None:
            raise ApiError(404, "This request was never seen, or too long ago.", code="request_not_found")
        return {
            "request_id": details.request_id,
            "tenant": details.tenant,
            "is_final": details.is_final,
            "charges": details.charges,
            "postings": details.postings,
        }
