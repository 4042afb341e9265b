"""One HTTP exchange on raw ASGI: the headers as a table, the body within its bounds, whole answers, errors.

Called by every face of ``scheduler.api``. It must never know a key or what a body means; of its route it knows how to
say an error.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from scheduler.api.dialects import dialect
from scheduler.api.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")
NO_STORE: Header = (b"cache-control", b"no-store")
CLOSE: Header = (b"connection", b"close")
MAX_SOURCE_CHARS = 64
REQUEST_ID = re.compile(r"req-[a-z2-7]{26}")
"""What ``new_request_id`` makes; whatever else is asked for is not there."""


class ClientGone(Exception):
    """The client left while its body was read: there is nobody to answer."""


def new_request_id(unix_s: float | None = None, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """``req-`` and 26 lowercase base32 characters, never taken from a client: 40 bits of time (unix, 1/16 s), then 90
    bits that nobody can guess. Ids of one time lie side by side in an index, which else is read all over at each write.
    """
    ticks = int((time.time() if unix_s is None else unix_s) * 16) & (1 << 40) - 1
    bits = ticks << 96 | int.from_bytes(random_bytes(12), "big")
    return f"req-{base64.b32encode(bits.to_bytes(17, 'big'))[:26].decode().lower()}"


class Exchange:
    """A request and the way back. Everything that is sent begins with ``start``, so that it always carries the id."""

    __slots__ = (
        "dialect",
        "headers",
        "is_begun",
        "is_body_read",
        "late_headers",
        "method",
        "path",
        "query",
        "receive",
        "request_id",
        "send",
        "source",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, request_id: str) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        client = scope.get("client")
        self.source: str = str(client[0])[:MAX_SOURCE_CHARS] if client else "unknown"
        """The other end's address, as far as is known."""
        self.dialect = dialect(self.path)
        self.headers: dict[bytes, list[bytes]] = {}
        """Every header with all its values in order; ASGI gives the names in lower case."""
        for name, value in scope["headers"]:
            self.headers.setdefault(name, []).append(value)
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.is_body_read = self.method in ("GET", "HEAD")
        self.is_begun = False
        """Status and headers have left: an error can only follow as a part of the body."""
        self.late_headers: Callable[[], list[Header]] | None = None
        """Asked when the answer begins, whatever it is: what is true then."""

    # -- in

    async def read_body(self, *, max_bytes: int, timeout_s: float) -> bytes:
        """The whole body. Raises: ApiError 400, 413 (as early as it can be told), 415; 408 when it takes too long;
        ClientGone.
        """
        self._check_framing(max_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._read_within(max_bytes)
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {timeout_s:g} s.", code="body_timeout") from None
        self.is_body_read = True
        return body

    def _check_framing(self, max_bytes: int) -> None:
        """Refuses what two servers could read in two ways, and what says itself that it is too large."""
        lengths = self.headers.get(b"content-length", [])
        if len(lengths) > 1 or (lengths and b"transfer-encoding" in self.headers):
            raise ApiError(400, "Content-Length is given twice, or beside Transfer-Encoding.", code="bad_framing")
        if lengths:
            if not lengths[0].isdigit() or len(lengths[0]) > 18:
                raise ApiError(400, "The Content-Length header is malformed.", code="bad_framing")
            if int(lengths[0]) > max_bytes:
                raise _too_large(max_bytes)
        codings = self.headers.get(b"content-encoding", [])
        if any(coding.strip().lower() not in (b"", b"identity") for coding in codings):
            raise ApiError(415, "Content-Encoding: only identity is read here.", code="unsupported_content_encoding")

    async def _read_within(self, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- out

    async def start(self, status: int, headers: list[Header]) -> None:
        """Status and headers, with our id among them; once."""
        self.is_begun = True
        late = [] if self.late_headers is None else self.late_headers()
        own = [(b"x-request-id", self.request_id.encode())]
        if self.dialect.id_header is not None:
            own.append((self.dialect.id_header, self.request_id.encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *late, *own]})

    async def write(self, data: bytes, *, more: bool) -> None:
        """A part of the body; ``more`` False ends it."""
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def respond(self, status: int, body: bytes, headers: list[Header]) -> None:
        """A whole answer; its length is added."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(body, more=False)

    async def fail(self, error: ApiError) -> None:
        """An error in the route's shape. Where a body may still be on its way the connection is not used again."""
        headers = [JSON, *error.header_list()]
        if not self.is_body_read:
            headers.append(CLOSE)
        await self.respond(error.status, self.dialect.error_body(error), headers)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body is larger than {max_bytes} bytes.", code="body_too_large")
