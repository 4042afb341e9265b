"""A small HTTP/1.1 server on loopback for tests of clients: what it answers is a function of what it is asked."""

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request; names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One answer; a body that is not bytes is sent as JSON."""

    status: int = 200
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[Asked], Told | None | Awaitable[Told | None]]
"""None: hang up without a word."""


@contextmanager
def serving(answer: Answer, *, seen: list[Asked] | None = None) -> Iterator[str]:
    """Serves from a thread of its own until the block ends; yields the URL, notes what was asked."""
    loop = asyncio.new_event_loop()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            asked = await _read(reader)
            if seen is not None:
                seen.append(asked)
            told = answer(asked)
            told = await told if inspect.isawaitable(told) else told
            if told is not None:
                writer.write(_written(told))
                await writer.drain()
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0, limit=1 << 20))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method=method, path=path, headers=headers, body=body)


def _written(told: Told) -> bytes:
    body = told.body if isinstance(told.body, bytes) else json.dumps(told.body).encode()
    lines = [f"HTTP/1.1 {told.status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in told.headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
