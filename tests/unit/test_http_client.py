"""The small client speaks HTTP/1.1 with all three kinds of body, and hangs up when it is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from scheduler.commands.http_client import BadAnswer, events, fetch, open_request
from tests.canned_http import Asked, Told, serving

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve(handler: Handler) -> tuple[asyncio.Server, str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def answering(raw: bytes, seen: list[bytes] | None = None) -> Handler:
    """A server that reads the head of one request, writes ``raw`` and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        writer.write(raw)
        await writer.drain()
        writer.close()

    return handle


async def fetched(raw: bytes) -> tuple[int, bytes]:
    server, url = await serve(answering(raw))
    async with server:
        reply = await fetch(f"{url}/x", timeout_s=5.0)
        return reply.status, reply.body


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=1\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
    ],
    ids=["length", "chunked", "until closed"],
)
async def test_every_kind_of_body(raw: bytes) -> None:
    """By length, in chunks, and until the connection closes."""
    assert (200, b"hello") == await fetched(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["nothing", "another protocol", "no status", "cut short", "bad chunk size"],
)
async def test_a_bad_answer_is_one_error(raw: bytes) -> None:
    """Whatever is wrong with the answer, callers handle one exception."""
    with pytest.raises(BadAnswer):
        await fetched(raw)


async def test_the_request_line_and_headers() -> None:
    """Method, path with query, host, length and our headers are sent."""
    seen: list[bytes] = []
    server, url = await serve(answering(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", seen))
    async with server:
        await fetch(f"{url}/v1/x?a=1", method="POST", payload={"b": 2}, headers={"Authorization": "Bearer k"})
    lines = seen[0].decode().split("\r\n")
    assert lines[0] == "POST /v1/x?a=1 HTTP/1.1"
    assert {"Authorization: Bearer k", "Content-Length: 8", "Connection: close"} <= set(lines)
    assert f"Host: {url.removeprefix('http://')}" in lines


async def test_nobody_listens() -> None:
    """The operating system's error comes through."""
    server, url = await serve(answering(b""))
    server.close()
    await server.wait_closed()
    with pytest.raises(OSError, match="onnect"):
        await fetch(url)


async def test_json_of_a_page_that_is_none() -> None:
    """A proxy's HTML page is a bad answer, with its status."""
    server, url = await serve(answering(b"HTTP/1.1 502 Bad\r\nContent-Length: 6\r\n\r\n<html>"))
    async with server:
        reply = await fetch(url)
    with pytest.raises(BadAnswer, match="502"):
        reply.json()


async def test_leaving_early_hangs_up() -> None:
    """The server sees the end of the connection when the reader leaves a stream."""
    is_gone = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await reader.read()
        is_gone.set()
        writer.close()

    server, url = await serve(endless)
    async with server:
        async with open_request(url) as (answer, chunks):
            assert (200, b"hello") == (answer.status, await anext(chunks))
        async with asyncio.timeout(5):
            await is_gone.wait()


async def test_events_are_put_together_from_any_cut() -> None:
    """Comments are skipped; an event may arrive in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b": keep", b"-alive\n\ndata: {", b'"a":1}\n', b"\ndata: [DONE]\n\n"):
            yield piece

    assert ['{"a":1}', "[DONE]"] == [event async for event in events(pieces())]


async def test_bytes_are_sent_as_they_are() -> None:
    """Whoever has JSON already sends it untouched: spaces, order and digits stay."""
    seen: list[Asked] = []
    with serving(lambda _: Told(body={}), seen=seen) as url:
        await fetch(url, method="POST", payload=b'{"a": 1.10}')
        await fetch(url, method="POST", payload={"a": 1})
    assert [b'{"a": 1.10}', b'{"a": 1}'] == [asked.body for asked in seen]


@pytest.mark.parametrize("status", [b"abc", "²00".encode("latin-1"), b""])
async def test_a_status_that_is_no_number_is_a_bad_answer(status: bytes) -> None:
    """A superscript is a digit to Python and no number."""
    with pytest.raises(BadAnswer):
        await fetched(b"HTTP/1.1 %b OK\r\nContent-Length: 0\r\n\r\n" % status)
