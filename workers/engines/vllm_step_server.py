"""The actor's end of the step hook's socket: accepts the engine process, hands on its messages, notices its end.

Called by ``workers.engines.vllm``. It must never know what a message says. The socket lies in a folder that only this
user may enter, and nobody but the first who connects is listened to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from workers.engines.vllm_messages import MAX_MESSAGE_BYTES

MAX_PATH_BYTES = 100
"""Unix sockets allow 107."""
MAX_MESSAGES_AT_ONCE = 64
"""Then other tasks of the loop have their turn."""


class StepServer:
    """``open`` it before the engine starts; ``close`` it once. Everything runs on the event loop's thread."""

    def __init__(self, *, on_message: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_end = on_end
        self._folder = ""
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self.path = ""

    @property
    def is_connected(self) -> bool:
        return self._peer is not None

    def open(self) -> str:
        """Listens; returns the path. Raises: OSError."""
        self._folder = tempfile.mkdtemp(prefix="jouleway-")
        if len(self._folder) > MAX_PATH_BYTES - 8:
            os.rmdir(self._folder)
            self._folder = tempfile.mkdtemp(prefix="jouleway-", dir="/tmp")
        self.path = str(Path(self._folder) / "steps")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(self.path)
        self._listener.listen(1)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        return self.path

    def close(self) -> None:
        """Takes back socket and folder."""
        self._stop_listening()
        peer, self._peer = self._peer, None
        if peer is not None:
            asyncio.get_running_loop().remove_reader(peer)
            peer.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def drain(self) -> None:
        """Takes what has arrived and was not read yet."""
        while self._peer is not None and self._read_some():
            pass

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            self._peer, _ = self._listener.accept()
            self._peer.setblocking(False)
            asyncio.get_running_loop().add_reader(self._peer, self._read_some)
            self._stop_listening()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    def _read_some(self) -> bool:
        """Some messages; True if there may be more."""
        for _ in range(MAX_MESSAGES_AT_ONCE):
            if self._peer is None:
                return False
            try:
                message = self._peer.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return False
            except OSError:
                message = b""
            if not message:
                self.close()
                self._on_end()
                return False
            self._on_message(message)
        return True
