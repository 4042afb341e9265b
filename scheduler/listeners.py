"""The two HTTP listeners: sockets bound before anything starts, uvicorn on our own event loop, ended in order.

Called by ``scheduler.service``; the only file that imports uvicorn. It must never know what the applications do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Idle connections are closed after this; longer than the 60 s of common proxies, so that they close first."""
MAX_HEAD_BYTES = 64 << 10
STOP_GRACE_S = 5
"""How long connections may finish after the last answer ended."""


class PortTaken(Exception):
    """Somebody else listens there; carries host and port."""

    def __init__(self, name: str, host: str, port: int) -> None:
        super().__init__(f"{name}.port: {host}:{port} is taken")
        self.name = name
        self.host = host
        self.port = port


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificate chain and key, PEM files."""

    cert_file: Path
    key_file: Path


def bind(name: str, host: str, port: int) -> socket.socket:
    """A listening socket; port 0 = any free one. Raises: PortTaken, OSError for a host that is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(name, host, port) from None
        raise
    return listening


def url_of(listening: socket.socket, *, tls: bool = False) -> str:
    """Where the socket is asked."""
    host, port = listening.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class Listener:
    """One application on one bound socket. ``start`` it once, ``stop`` it once."""

    def __init__(
        self, application: Application, listening: socket.socket, *, tls: Tls | None = None, behind_proxy: bool = False
    ) -> None:
        import uvicorn

        class Server(uvicorn.Server):
            """Signals belong to the command that runs the service."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        self.url = url_of(listening, tls=tls is not None)
        self._socket = listening
        self._server = Server(
            uvicorn.Config(
                application,
                interface="asgi3",
                http="httptools",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                date_header=True,
                proxy_headers=behind_proxy,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=STOP_GRACE_S,
                ssl_certfile=None if tls is None else str(tls.cert_file),
                ssl_keyfile=None if tls is None else str(tls.key_file),
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when connections are taken. Raises: what uvicorn raises (a TLS file that cannot be read)."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name=f"listener {self.url}")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError(f"the listener on {self.url} ended before it served")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """No new connections; open answers get ``STOP_GRACE_S`` to end."""
        if self._task is None:
            self._socket.close()
            return
        self._server.should_exit = True
        await asyncio.gather(self._task, return_exceptions=True)
