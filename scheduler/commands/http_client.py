"""A small HTTP/1.1 client for our own endpoint: no dependency, streams bodies, hangs up when told.

Called by the demo and by the commands that ask a running control plane. It must never be used for throughput
measurements (``scheduler.bench`` has its own client).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 64 << 20


class BadAnswer(Exception):
    """The other side did not speak HTTP/1.1 as we need it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status and headers; the body follows as an iterator or is read whole."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; of repeated ones the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        """The body as JSON. Raises BadAnswer."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise BadAnswer(f"status {self.status} with a body that is not JSON") from error


async def _read_head(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
        raise BadAnswer(f"not an HTTP answer: {first[:80]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    return Answer(status=int(parts[1]), headers=headers)


async def _chunks(reader: asyncio.StreamReader, answer: Answer) -> AsyncIterator[bytes]:
    if answer.headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    length = answer.headers.get("content-length")
    if length is not None:
        yield await reader.readexactly(int(length))
        return
    while data := await reader.read(1 << 16):
        yield data


@contextlib.asynccontextmanager
async def open_request(
    url: str, *, method: str = "GET", body: bytes = b"", headers: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Answer, AsyncIterator[bytes]]]:
    """Send one request; leaving the context closes the connection, so leaving early is a disconnect.

    Raises: OSError where nobody listens, BadAnswer where the answer is not HTTP.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    context = ssl.create_default_context() if secure else None
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context, limit=MAX_HEAD_BYTES)
    try:
        fields = {
            "Host": parts.netloc.rpartition("@")[2],
            "Connection": "close",
            "Content-Length": str(len(body)),
            **({"Content-Type": "application/json"} if body else {}),
            **(headers or {}),
        }
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        await writer.drain()
        try:
            answer = await _read_head(reader)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise BadAnswer("the connection closed before an answer") from error
        yield answer, _chunks(reader, answer)
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def fetch(
    url: str,
    *,
    method: str = "GET",
    payload: object = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Reply:
    """One request, the whole answer; a payload of bytes is sent as it is. Raises: OSError, BadAnswer, TimeoutError."""
    body = payload if isinstance(payload, bytes) else b"" if payload is None else json.dumps(payload).encode()
    async with asyncio.timeout(timeout_s), open_request(url, method=method, body=body, headers=headers) as opened:
        answer, chunks = opened
        whole = bytearray()
        try:
            async for chunk in chunks:
                whole += chunk
                if len(whole) > MAX_BODY_BYTES:
                    raise BadAnswer(f"the body is longer than {MAX_BODY_BYTES} bytes")
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise BadAnswer("the connection closed within the body") from error
        return Reply(status=answer.status, headers=answer.headers, body=bytes(whole))


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each server-sent event; comments (keep-alive) are skipped."""
    pending = b""
    async for chunk in chunks:
        pending += chunk
        *whole, pending = pending.split(b"\n\n")
        for event in whole:
            for line in event.split(b"\n"):
                if line.startswith(b"data: "):
                    yield line[6:].decode()
