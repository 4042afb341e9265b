"""A small HTTP/1.1 server on loopback for tests of clients: what it answers is a function of what it is asked.

As ours does, it drops what it was about to answer when the client hangs up.
"""

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
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
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            asked = await _read(reader)
            if seen is not None:
                seen.append(asked)
            told = answer(asked)
            if inspect.isawaitable(told):
                answering, leaving = asyncio.ensure_future(told), asyncio.ensure_future(reader.read(1))
                try:
                    await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                    told = answering.result() if answering.done() else None
                finally:
                    answering.cancel()
                    leaving.cancel()
            if told is not None:
                writer.write(_written(told))
                await writer.drain()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        starting = asyncio.start_server(handle, "127.0.0.1", 0, limit=1 << 20)
        server = asyncio.run_coroutine_threadsafe(starting, loop).result(10)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            asyncio.run_coroutine_threadsafe(_end(server), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # connections close in the loop's next round


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
