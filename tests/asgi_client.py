"""Drives an ASGI application in this process: one request, message by message, with hang-ups and slow reading.

Used by tests of ``scheduler.api`` (``from tests.asgi_client import ask``).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class Asked:
    """One request under way. ``await finished()`` for the whole answer, ``hang_up`` to leave."""

    def __init__(self, app: Application, scope: Message, body: list[bytes], *, ends: bool = True) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.is_complete = False
        self.wrote = asyncio.Event()
        """Set at each write; clear it to wait for the next."""
        self.may_write = asyncio.Event()
        self.may_write.set()
        self._stirred = asyncio.Event()
        self._is_gone = False
        self._body = list(body)
        self._ends = ends
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: Application, scope: Message) -> None:
        await app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._body:
            part = self._body.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._body) or not self._ends}
        await self._stirred.wait()
        if self._is_gone:
            return {"type": "http.disconnect"}
        self._stirred.clear()
        return await self._receive()

    async def _send(self, message: Message) -> None:
        await self.may_write.wait()
        if message["type"] == "http.response.start":
            assert self.status is None, "started twice"
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert self.status is not None, "a body before its head"
            assert not self.is_complete, "a body after the last one"
            self.parts.append(message["body"])
            self.is_complete = not message["more_body"]
        self.wrote.set()

    async def finished(self, timeout_s: float = 5.0) -> Asked:
        await asyncio.wait_for(self.task, timeout_s)
        return self

    async def until(self, is_so: Callable[[Asked], bool], timeout_s: float = 5.0) -> None:
        """Returns once ``is_so``; looked at after every write."""
        async with asyncio.timeout(timeout_s):
            while not is_so(self):
                self.wrote.clear()
                await self.wrote.wait()

    def hang_up(self) -> None:
        self._is_gone = True
        self._stirred.set()

    def send_last(self, part: bytes) -> None:
        """What was missing of a body that did not end."""
        self._body.append(part)
        self._ends = True
        self._stirred.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        error = self.json()["error"]
        assert {"message", "type", "param", "code"} == error.keys()
        return error

    def events(self) -> list[str]:
        """Data of each server-sent event; comments aside."""
        return [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]


def ask(
    app: Application,
    path: str,
    body: object = None,
    *,
    key: str | None = None,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    raw_headers: list[tuple[bytes, bytes]] | None = None,
    host: str = "localhost",
    ends: bool = True,
    source: str = "127.0.0.1",
) -> Asked:
    """Begins a request. ``body``: bytes as they are, a list of bytes in parts, anything else as JSON."""
    parts = body if isinstance(body, list) and all(isinstance(part, bytes) for part in body) else None
    if parts is None:
        parts = [body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()]
    fields = [(b"host", host.encode())]
    if key is not None:
        fields.append((b"authorization", f"Bearer {key}".encode()))
    fields += [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "path": path.partition("?")[0],
        "query_string": path.partition("?")[2].encode(),
        "client": (source, 50_000),
        "headers": fields if raw_headers is None else raw_headers,
    }
    return Asked(app, scope, parts, ends=ends)
