"""What a tenant may ask of the decisions: the life of a request of its own, and what would become of one now.

Called by ``scheduler.api.app``. It must never tell another tenant's request from one that never was, nor change
anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.api.exchange import Exchange
from scheduler.api.intake import Intake
from scheduler.api.json_shape import MAX_DEPTH, is_too_deep
from scheduler.api.schemas import ROUTES
from scheduler.core.request import Request

PREFIX = "/v1/jouleway/"
REQUESTS_PREFIX = f"{PREFIX}requests/"
WHAT_IF_PATH = f"{PREFIX}what-if"


class Recalls(Protocol):
    """What is needed of a dispatcher to tell a request's life."""

    def explain(self, request_id: str, *, tenant: str | None = None) -> dict[str, Any] | None: ...


class Explains(Recalls, Protocol):
    """What is needed of a dispatcher beside that."""

    def what_if(self, request: Request) -> dict[str, Any]: ...


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """A line of OpenAI's batch format, as `jouleway submit` reads it."""

    url: str
    body: msgspec.Raw
    custom_id: str | None = None
    method: str | None = None


_decode_line = msgspec.json.Decoder(_Line).decode


def life_of(dispatcher: Recalls, request_id: str, *, tenant: str | None = None) -> bytes:
    """The JSON. ``tenant`` None: the operator asks. Raises: ApiError 404."""
    story = dispatcher.explain(request_id, tenant=tenant)
    if story is None:
        raise request_not_found(is_denial=lambda: dispatcher.explain(request_id) is not None)
    return msgspec.json.encode(story)


def request_not_found(*, is_denial: Callable[[], bool] = lambda: False) -> ApiError:
    """The same words for a request of somebody else, which ``is_denial`` knows."""
    message = "This request was never seen, or too long ago."
    return ApiError(404, message, code="request_not_found", is_denial=is_denial)


def what_if(
    dispatcher: Explains, intake: Intake, exchange: Exchange, line: bytes, *, caller: Caller, arrival_s: float
) -> bytes:
    """What would become of the request in ``line`` (with the headers of this exchange), as JSON; nothing runs.

    Raises: ApiError 400, 403, 404.
    """
    if is_too_deep(line):
        raise ApiError(400, f"The JSON is nested deeper than {MAX_DEPTH} levels.", code="json_too_deep")
    try:
        asked = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = 'Expected one line of a jobs file: {"url": "/v1/chat/completions", "body": {...}}.'
        raise ApiError(400, message, code="invalid_json") from None
    if asked.url not in ROUTES:
        raise ApiError(400, f"url: expected one of {', '.join(ROUTES)}.", code="invalid_value", param="url")
    admitted = intake.admit(
        asked.url,
        exchange.headers,
        bytes(asked.body),
        caller=caller,
        arrival_s=arrival_s,
        request_id=exchange.request_id,
    )
    return msgspec.json.encode(dispatcher.what_if(admitted.request))
