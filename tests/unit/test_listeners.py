"""Listeners bind first, say where they are, refuse a taken port by name, and end their connections in order."""

import asyncio
import socket
from typing import Any

import pytest

from scheduler.listeners import Listener, PortTaken, bind, url_of


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers every request with its path."""
    assert scope["type"] == "http"
    body = scope["path"].encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def ask(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


def test_a_taken_port_is_named_with_its_setting() -> None:
    """The operator reads which key to change; the socket is not leaked."""
    with bind("server", "127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"admin\.port: 127\.0\.0\.1:{port} is taken") as caught:
            bind("admin", "127.0.0.1", port)
    assert ("admin", port) == (caught.value.name, caught.value.port)


def test_a_host_that_is_not_ours_is_the_systems_error() -> None:
    """TEST-NET-1 is nobody's."""
    with pytest.raises(OSError):
        bind("server", "192.0.2.1", 0)


def test_urls_name_scheme_host_and_port() -> None:
    """IPv6 in brackets."""
    with bind("server", "127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert f"http://127.0.0.1:{port}" == url_of(listening)
        assert f"https://127.0.0.1:{port}" == url_of(listening, tls=True)
    if socket.has_ipv6:
        with bind("server", "::1", 0) as listening:
            assert url_of(listening).startswith("http://[::1]:")


def test_it_serves_from_start_to_stop_and_says_no_server_name() -> None:
    """After the stop nobody is answered."""

    async def scene() -> None:
        listening = bind("server", "127.0.0.1", 0)
        port = listening.getsockname()[1]
        listener = Listener(application, listening)
        await listener.start()
        answer = await ask(port)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"/x")
        assert b"\r\nserver:" not in answer.lower()
        await listener.stop()
        with pytest.raises(OSError):
            await ask(port)

    asyncio.run(scene())


def test_stopping_one_that_never_started_frees_its_port() -> None:
    """A start that failed before leaves nothing bound."""

    async def scene() -> None:
        listening = bind("server", "127.0.0.1", 0)
        port = listening.getsockname()[1]
        await Listener(application, listening).stop()
        bind("server", "127.0.0.1", port).close()

    asyncio.run(scene())
