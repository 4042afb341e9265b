"""The public ASGI application: host, route, key, body, then who answers; an id and an OpenAI body on every answer.

Called by ``scheduler.service`` through uvicorn. It must never know a worker or a price; no header and no body of a
client reaches the log.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from scheduler.accounting.prices import NO_PRICES, PriceBook
from scheduler.api.access import Caller, Hosts, Keys
from scheduler.api.checkpoint import CHECKPOINT_PATH, Growths, checkpoint_body
from scheduler.api.denied import NotesDenied, note
from scheduler.api.dialects import authorizations
from scheduler.api.errors import ApiError
from scheduler.api.exchange import JSON, NO_STORE, ClientGone, Exchange, Receive, Scope, Send
from scheduler.api.exchange import new_request_id as random_request_id
from scheduler.api.explain import REQUESTS_PREFIX, WHAT_IF_PATH, Explains, life_of, what_if
from scheduler.api.intake import MODEL_MISSING, Intake
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.api.openai import Relay, Submits
from scheduler.api.outcomes import MAX_BODY_BYTES as MAX_OUTCOME_BYTES
from scheduler.api.outcomes import OUTCOMES_PATH, OutcomeDesk
from scheduler.api.places import proof_places
from scheduler.api.receipts import RECEIPTS_PREFIX, Receipts, receipt_body
from scheduler.api.schemas import ROUTES
from scheduler.api.usage import USAGE_PATHS, UsageDesk
from scheduler.metrics import Metrics
from scheduler.snapshot import Snapshot

logger = logging.getLogger("jouleway.api")

READY_MAX_AGE_S = 1.0
"""``/ready`` is open to everybody and a snapshot costs work: one a second at most."""

MODELS_PATH = "/v1/models"
READS = ("GET", "HEAD")
METHODS = {
    **dict.fromkeys(ROUTES, ("POST",)),
    WHAT_IF_PATH: ("POST",),
    OUTCOMES_PATH: ("POST",),
    **dict.fromkeys(USAGE_PATHS, READS),
    CHECKPOINT_PATH: READS,
    MODELS_PATH: READS,
    "/health": READS,
    "/ready": READS,
}
PREFIXES = (f"{MODELS_PATH}/", REQUESTS_PREFIX, RECEIPTS_PREFIX)
"""What follows is a name; all of them are read."""
OPEN_PATHS = ("/health", "/ready")


class Dispatches(Submits, Explains, Protocol):
    """What the application needs of a dispatcher."""

    def snapshot(self) -> Snapshot: ...


class RelayApp:
    """An ASGI callable. It binds nothing and starts nothing."""

    def __init__(
        self,
        *,
        dispatcher: Dispatches,
        keys: Keys[Caller],
        hosts: Hosts,
        models: Mapping[str, ServedModel],
        limits: RelayLimits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        new_request_id: Callable[[], str] = random_request_id,
        cache_salt_key: bytes | None = None,
        zones: frozenset[str] | None = None,
        receipts: Receipts | None = None,
        growths: Growths | None = None,
        prices: PriceBook = NO_PRICES,
        usage: UsageDesk | None = None,
        outcomes: OutcomeDesk | None = None,
        denials: NotesDenied | None = None,
    ) -> None:
        """``cache_salt_key`` None: a new one, so that prefix caches are not shared with the process before. ``zones``:
        every configured one; None = any name may be one. ``receipts``, ``growths``, ``usage``, ``outcomes`` None: no
        such routes. ``denials`` None: nobody keeps an audit log.
        """
        self._receipts = receipts
        self._growths = growths
        self._proofs = proof_places()
        self._denials = denials
        self._dispatcher = dispatcher
        self._keys = keys
        self._hosts = hosts
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._new_request_id = new_request_id
        self._intake = Intake(
            models=models,
            limits=limits,
            salt_key=secrets.token_bytes(32) if cache_salt_key is None else cache_salt_key,
            zones=zones,
            prices=prices,
            unix_clock=unix_clock,
        )
        self._relay = Relay(
            dispatcher=dispatcher,
            intake=self._intake,
            limits=limits,
            metrics=metrics,
            clock=clock,
            unix_clock=unix_clock,
        )
        self._models = {f"{MODELS_PATH}/{name}": _model_body(model) for name, model in models.items()}
        listed = b",".join(self._models[path] for path in sorted(self._models))
        self._models[MODELS_PATH] = b'{"object":"list","data":[%b]}' % listed
        self._ready: tuple[float, bool] | None = None
        self._usage = usage
        self._outcomes = outcomes
        self._methods = {path: methods for path, methods in METHODS.items() if self._is_served(path)}

    def reload(self, prices: PriceBook) -> None:
        """Other prices from now on; what was admitted keeps its own."""
        self._intake.reload(prices)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        exchange = Exchange(scope, receive, send, request_id=self._new_request_id())
        try:
            await self._route(exchange)
        except ApiError as error:
            self._metrics.count_error(status=error.status, code=error.code or "")
            level = logging.WARNING if error.status >= 500 else logging.INFO
            logger.log(level, "request %s: status %d, %s", exchange.request_id, error.status, error.code)
            with contextlib.suppress(OSError):  # nobody is left to read it
                await exchange.fail(error)
            values = authorizations(exchange.headers)
            await note(
                self._denials, exchange, error, listener="server", route=template_of(exchange.path), values=values
            )
        except ClientGone:
            logger.info("request %s: the client left while its body was read", exchange.request_id)
        except Exception as error:
            # The loop's edge. The text of this error may hold a prompt: only its type leaves.
            logger.error("request %s failed here: %s", exchange.request_id, type(error).__name__)
            self._metrics.count_error(status=500, code="internal_error")
            if not exchange.is_begun:
                await exchange.fail(ApiError(500, "The relay failed on this request.", code="internal_error"))

    async def _route(self, exchange: Exchange) -> None:
        """Raises: ApiError, ClientGone."""
        arrival_s = self._clock()
        path = exchange.path
        methods = READS if path.startswith(PREFIXES) else self._methods.get(path, ())
        if path in OPEN_PATHS and exchange.method in methods:
            await self._probe(exchange, arrival_s)
            return
        self._hosts.check(exchange.headers.get(b"host", []))
        if not methods:
            raise ApiError(404, "There is no such route here.", code="route_not_found")
        if exchange.method not in methods:
            allow = ((b"allow", ", ".join(methods).encode()),)
            raise ApiError(405, f"This route takes {' and '.join(methods)}.", code="method_not_allowed", headers=allow)
        caller = self._caller(exchange)
        if methods is READS:
            await self._read(exchange, caller)
        else:
            await self._take(exchange, arrival_s)

    def _caller(self, exchange: Exchange) -> Caller:
        """As the key stands at this moment. Raises: ApiError 401."""
        return self._keys.caller(authorizations(exchange.headers))

    def _is_served(self, path: str) -> bool:
        if path == OUTCOMES_PATH:
            return self._outcomes is not None
        if path == CHECKPOINT_PATH:
            return self._growths is not None
        return path not in USAGE_PATHS or self._usage is not None

    async def _probe(self, exchange: Exchange, now_s: float) -> None:
        """For load balancers, which ask by address and without a key."""
        if exchange.path == "/health":
            await exchange.respond(200, b'{"status":"ok"}', [JSON])
        elif self._is_ready(now_s):
            await exchange.respond(200, b'{"status":"ready"}', [JSON])
        else:
            await exchange.respond(503, b'{"status":"no worker is ready, or the ledger cannot be written"}', [JSON])

    async def _read(self, exchange: Exchange, caller: Caller) -> None:
        """Raises: ApiError 400, 404, 503."""
        path = exchange.path
        if path.startswith(REQUESTS_PREFIX):
            life = life_of(self._dispatcher, path.removeprefix(REQUESTS_PREFIX), tenant=caller.tenant)
            await exchange.respond(200, life, [JSON, NO_STORE])
            return
        if path.startswith(RECEIPTS_PREFIX):
            request_id = path.removeprefix(RECEIPTS_PREFIX)
            receipt = await receipt_body(self._receipts, request_id, places=self._proofs, tenant=caller.tenant)
            await exchange.respond(200, receipt, [JSON, NO_STORE])
            return
        if path in USAGE_PATHS and self._usage is not None:
            await exchange.respond(200, await self._usage.answer(path, exchange.query, caller), [JSON, NO_STORE])
            return
        if path == CHECKPOINT_PATH and self._growths is not None:
            told = await checkpoint_body(self._growths, exchange.query, places=self._proofs, tenant=caller.tenant)
            await exchange.respond(200, told, [JSON, NO_STORE])
            return
        body = self._models.get(path)
        if body is None:
            raise ApiError(404, MODEL_MISSING, code="model_not_found", param="model")
        await exchange.respond(200, body, [JSON])

    async def _take(self, exchange: Exchange, arrival_s: float) -> None:
        """A body, and what is done with it by whoever's the key is once it is here: it may have been taken away
        meanwhile, and nothing waits between that look and the deed. Raises: ApiError, ClientGone.
        """
        limits = self._limits
        if exchange.path == OUTCOMES_PATH and self._outcomes is not None:
            body = await exchange.read_body(max_bytes=MAX_OUTCOME_BYTES, timeout_s=limits.body_timeout_s)
            outcome = await self._outcomes.take(body, lambda: self._caller(exchange))
            await exchange.respond(200, outcome, [JSON, NO_STORE])
            return
        body = await exchange.read_body(max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
        caller = self._caller(exchange)
        if exchange.path == WHAT_IF_PATH:
            told = what_if(self._dispatcher, self._intake, exchange, body, caller=caller, arrival_s=arrival_s)
            await exchange.respond(200, told, [JSON, NO_STORE])
            return
        await self._relay.answer(exchange, body, caller=caller, arrival_s=arrival_s)

    def _is_ready(self, now_s: float) -> bool:
        """Whether some worker takes work; at most a second old."""
        if self._ready is None or now_s - self._ready[0] >= READY_MAX_AGE_S:
            snapshot = self._dispatcher.snapshot()
            is_ready = bool(snapshot.ready_models) and not snapshot.is_draining and not snapshot.ledger_problem
            self._ready = (now_s, is_ready)
        return self._ready[1]


def template_of(path: str) -> str:
    """What may be written down of a path: never what a client put behind it."""
    if path in METHODS:
        return path
    return next((f"{prefix}…" for prefix in PREFIXES if path.startswith(prefix)), "(other)")


def _model_body(model: ServedModel) -> bytes:
    """OpenAI's model object."""
    return msgspec.json.encode(
        {"id": model.name, "object": "model", "created": model.created_unix_s, "owned_by": "jouleway"}
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing starts or stops here: the service does both."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
