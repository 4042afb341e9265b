"""The operator's ASGI application, on its own loopback listener: host, key, route, role, body, then who answers.

Called by ``scheduler.service`` through uvicorn. Of itself it shows metrics, workers, queues, budgets, balance and
requests; other routes are given to it. It must never change anything itself, and it shows no prompt.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import msgspec

from scheduler.accounting.changes import CHANGE_PREFIX, Role
from scheduler.api.access import AdminCaller, Hosts, Keys
from scheduler.api.admin_routes import EVERYBODY, OPERATORS, READS, Question, Reply, Route, RouteTable
from scheduler.api.checkpoint import CHECKPOINT_PATH, Growths, checkpoint_body
from scheduler.api.denied import NotesDenied, note
from scheduler.api.errors import ApiError, ledger_unavailable
from scheduler.api.exchange import ClientGone, Exchange, Receive, Scope, Send
from scheduler.api.exchange import new_request_id as random_request_id
from scheduler.api.explain import PREFIX, REQUESTS_PREFIX, Recalls, life_of
from scheduler.api.places import proof_places
from scheduler.api.receipts import RECEIPTS_PREFIX, Receipts, receipt_body
from scheduler.api.request_headers import idempotency_key
from scheduler.api.usage import USAGE_PATHS, UsageDesk
from scheduler.metrics import CONTENT_TYPE, Metrics
from scheduler.snapshot import Snapshot

logger = logging.getLogger("jouleway.api")

MAX_BODY_BYTES = 64 << 10
BODY_TIMEOUT_S = 10.0


class Shows(Recalls, Protocol):
    """What is needed of a dispatcher."""

    def snapshot(self) -> Snapshot: ...


class AdminApp:
    """An ASGI callable. Reads a snapshot per question."""

    def __init__(
        self,
        *,
        dispatcher: Shows,
        keys: Keys[AdminCaller],
        hosts: Hosts,
        metrics: Metrics,
        routes: Iterable[Route] = (),
        denials: NotesDenied | None = None,
        new_request_id: Callable[[], str] = random_request_id,
        receipts: Receipts | None = None,
        growths: Growths | None = None,
        usage: UsageDesk | None = None,
        recall: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """``routes``: beside its own. ``denials`` None: nobody keeps an audit log. What is None has no routes.
        ``recall``: what a change with an Idempotency-Key waits for, so that it is not made twice however late it comes.
        """
        self._keys = keys
        self._recall = recall
        self._hosts = hosts
        self._denials = denials
        self._new_request_id = new_request_id
        own = _own_routes(dispatcher, metrics)
        self.routes = RouteTable([*own, *_ledger_routes(receipts, growths, usage), *routes])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send, request_id=self._new_request_id())
        try:
            reply = await self._answer(exchange)
            await exchange.respond(reply.status, reply.body, reply.header_list)
        except ApiError as error:
            logger.info("admin %s: status %d, %s", exchange.request_id, error.status, error.code)
            await exchange.fail(error)
            values, route = exchange.headers.get(b"authorization", []), self.routes.template_of(exchange.path)
            await note(self._denials, exchange, error, listener="admin", route=route, values=values)
        except ClientGone:
            logger.info("admin %s: the client left while its body was read", exchange.request_id)
        except Exception as error:
            # The loop's edge.
            logger.error("admin %s failed here: %s: %s", exchange.request_id, type(error).__name__, error)
            if not exchange.is_begun:
                await exchange.fail(ApiError(500, "This question could not be answered.", code="internal_error"))

    async def _answer(self, exchange: Exchange) -> Reply:
        """Raises: ApiError, ClientGone."""
        self._hosts.check(exchange.headers.get(b"host", []), setting="the admin listener answers loopback names only")
        if exchange.path == "/health" and exchange.method in READS:
            return Reply(body=b'{"status":"ok"}')
        caller = self._caller(exchange)
        route, names = self.routes.find(exchange.method, exchange.path)
        _check_role(caller, route)
        query = {} if route.reads_query else route.read_query(exchange.query)
        body = b""
        if exchange.method not in READS:
            body = await exchange.read_body(max_bytes=MAX_BODY_BYTES, timeout_s=BODY_TIMEOUT_S)
        change_id = await self._change_id(exchange, route, caller, body)
        # A key that was taken away meanwhile opens nothing any more; from here to the deed nobody else comes in.
        caller = self._caller(exchange)
        _check_role(caller, route)
        return await route.answer(
            Question(caller=caller, names=names, query=query, raw_query=exchange.query, body=body, change_id=change_id)
        )

    def _caller(self, exchange: Exchange) -> AdminCaller:
        """As the key stands at this moment. Raises: ApiError 401."""
        return self._keys.caller(exchange.headers.get(b"authorization", []))

    async def _change_id(self, exchange: Exchange, route: Route, caller: AdminCaller, body: bytes) -> str:
        """Raises: ApiError 400; 503 where nobody can say whether this change was made before, and it can wait."""
        change_id = change_id_of(exchange, caller, body)
        if change_id is None or self._recall is None or exchange.method in READS:
            return change_id or new_change_id(exchange)
        try:
            await self._recall(change_id)
        except Exception as error:
            logger.warning("admin %s: the ledger was asked in vain: %s", exchange.request_id, type(error).__name__)
            if not route.is_urgent:
                raise ledger_unavailable() from None
            return new_change_id(exchange)  # to take away twice harms less than to take away late
        return change_id


def _check_role(caller: AdminCaller, route: Route) -> None:
    """Raises: ApiError 403."""
    if caller.role not in route.roles:
        roles = " or ".join(sorted(route.roles))
        message = f"This key's role is {caller.role}; this route needs {roles}."
        raise ApiError(403, message, code="role_not_allowed")


def new_change_id(exchange: Exchange) -> str:
    """Of a change that is asked for once."""
    return f"{CHANGE_PREFIX}{exchange.request_id.removeprefix('req-')}"


def change_id_of(exchange: Exchange, caller: AdminCaller, body: bytes) -> str | None:
    """The same for the same question of the same key; None without an Idempotency-Key. Raises: ApiError 400."""
    given = idempotency_key(exchange.headers)
    if given is None:
        return None
    digest = hashlib.sha256()
    for part in (caller.key_id.encode(), given, exchange.method.encode(), exchange.path.encode(), body):
        digest.update(b"%d:" % len(part) + part)
    return f"{CHANGE_PREFIX}{base64.b32encode(digest.digest())[:26].decode().lower()}"


def _own_routes(dispatcher: Shows, metrics: Metrics) -> list[Route]:
    """What is seen of a running control plane."""

    def shown(view: View) -> Callable[[Question], Awaitable[Reply]]:
        async def answer(question: Question) -> Reply:
            is_operator = question.caller.role in OPERATORS
            return Reply(body=msgspec.json.encode(view(dispatcher.snapshot(), is_operator)))

        return answer

    async def rendered(question: Question) -> Reply:
        return Reply(body=metrics.render(), content_type=(b"content-type", CONTENT_TYPE.encode()))

    async def life(question: Question) -> Reply:
        return Reply(body=life_of(dispatcher, question.names["request"]))

    return [
        Route(method="GET", path="/metrics", roles=OPERATORS, answer=rendered),
        Route(method="GET", path=f"{REQUESTS_PREFIX}{{request}}", roles=OPERATORS, answer=life),
        *(
            Route(method="GET", path=f"{PREFIX}{name}", roles=roles, answer=shown(view))
            for name, (roles, view) in VIEWS.items()
        ),
    ]


def _ledger_routes(receipts: Receipts | None, growths: Growths | None, usage: UsageDesk | None) -> list[Route]:
    """What the ledger proves and sums up, of everybody."""
    routes, proofs = [], proof_places()
    if receipts is not None:

        async def receipt(question: Question) -> Reply:
            return Reply(body=await receipt_body(receipts, question.names["request"], places=proofs))

        routes.append(Route(method="GET", path=f"{RECEIPTS_PREFIX}{{request}}", roles=OPERATORS, answer=receipt))
    if growths is not None:

        async def checkpoint(question: Question) -> Reply:
            return Reply(body=await checkpoint_body(growths, question.raw_query, places=proofs))

        routes.append(Route(method="GET", path=CHECKPOINT_PATH, roles=EVERYBODY, answer=checkpoint, reads_query=True))
    if usage is not None:
        routes += [_usage_route(path, usage) for path in sorted(USAGE_PATHS)]
    return routes


def _usage_route(path: str, usage: UsageDesk) -> Route:
    async def answer(question: Question) -> Reply:
        return Reply(body=await usage.answer(path, question.raw_query, None))

    return Route(method="GET", path=path, roles=EVERYBODY, answer=answer, reads_query=True)


def _balance(snapshot: Snapshot, is_operator: bool) -> object:
    """Whoever bills sees no machines."""
    shown = {"balance": snapshot.balance, "tenants": snapshot.tenants}
    return {**shown, "workers": snapshot.worker_energy} if is_operator else shown


def _budgets(snapshot: Snapshot, is_operator: bool) -> object:
    """Those near their limit, what is held on all of them, and what was taken beyond holds of energy.

    Whoever bills sees none of keys.
    """
    near = [each for each in snapshot.budgets_near_limit if is_operator or not each.level.startswith("key ")]
    return {"budgets": near, "held": snapshot.budget_held, "excess": snapshot.budget_excess}


View = Callable[[Snapshot, bool], object]
"""What is shown of a snapshot to whoever may, or may not, see keys, requests and machines."""

VIEWS: dict[str, tuple[frozenset[Role], View]] = {
    "snapshot": (OPERATORS, lambda snapshot, is_operator: snapshot),
    "workers": (OPERATORS, lambda snapshot, is_operator: {"workers": snapshot.workers}),
    "queues": (OPERATORS, lambda snapshot, is_operator: {"queues": snapshot.queue}),
    "budgets": (EVERYBODY, _budgets),
    "balance": (EVERYBODY, _balance),
}
"""Parts of a snapshot, each under its name after ``/v1/jouleway/``, and who may see it."""
