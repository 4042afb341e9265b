"""The actor's end of the hook's socket: private, in order, gone without a trace."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from workers.engines.vllm_step_server import MAX_MESSAGES_AT_ONCE, StepServer
from workers.engines.vllm_step_tap import StepSocket


class Server:
    """A server and what it heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.num_ends = 0
        self.server = StepServer(on_message=self.heard.append, on_end=self._ended)

    def _ended(self) -> None:
        self.num_ends += 1


async def until(is_so: object) -> None:
    for _ in range(500):
        if is_so():  # type: ignore[operator]
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


async def test_messages_arrive_in_order_and_the_end_is_heard() -> None:
    """More than are read at once; then the hook is gone."""
    one = Server()
    path = one.server.open()
    hook = StepSocket(path)
    sent = [b"%d" % number for number in range(2 * MAX_MESSAGES_AT_ONCE + 5)]
    assert all(hook.send(message) for message in sent)
    await until(lambda: len(one.heard) == len(sent))
    assert sent == one.heard
    assert one.server.is_connected
    assert 0 == one.num_ends
    hook.close()
    await until(lambda: one.num_ends)
    assert (1, False) == (one.num_ends, one.server.is_connected)
    assert not Path(path).parent.exists()


async def test_nobody_else_may_enter() -> None:
    """The folder is this user's alone, and only the first who connects is heard."""
    one = Server()
    path = one.server.open()
    assert stat.S_IMODE(os.stat(Path(path).parent).st_mode) == 0o700
    hook = StepSocket(path)
    await until(lambda: one.server.is_connected)
    with pytest.raises(OSError):
        StepSocket(path)
    hook.close()
    one.server.close()


async def test_closing_leaves_nothing(tmp_path: Path) -> None:
    """Before anybody connected, and twice."""
    one = Server()
    path = one.server.open()
    one.server.close()
    one.server.close()
    assert not Path(path).parent.exists()
    assert not one.server.is_connected


async def test_what_has_arrived_can_be_drained() -> None:
    """The engine died: its last messages count, without a turn of the loop."""
    one = Server()
    hook = StepSocket(one.server.open())
    hook.send(b"hello")
    await until(lambda: one.server.is_connected)
    hook.send(b"last")
    one.server.drain()
    assert [b"hello", b"last"] == one.heard
    hook.close()
    one.server.close()


async def test_a_long_temporary_folder_is_left_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Unix socket's path is short: /tmp serves."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    one = Server()
    assert len(one.server.open()) < 100
    assert [] == list(long.iterdir())
    one.server.close()
