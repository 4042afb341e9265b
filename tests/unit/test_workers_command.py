"""`jouleway workers` asks the admin listener and prints what it says; whoever cannot be asked is named."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scheduler.commands import workers
from scheduler.commands.exits import CommandError, ExitCode

STATUS = {
    "state": "ready", "cause": "", "zone": "hall-a", "num_running": 3, "num_waiting": 1, "kv_used_tokens": 12345,
    "meter": "nvml:energy-counter", "grade": "A", "meter_up": True, "power_watts": 312.25, "outbox_depth": 2,
    "health": ["xid 79: fallen off the bus"],
}  # fmt: skip
WORKER = {"worker_id": "gpu-0", "phase": "connected", "cause": "", "status": STATUS}
CONFIG = """
server: {port: 0}
admin: {port: %d}
state_dir: state
models: {m: {}}
workers: [{name: w, engine: simulated, model: m}]
tenants: [{name: t}]
generate_keys: true
"""


@contextmanager
def admin(status: int, value: object, seen: list[str]) -> Iterator[int]:
    """Answers every request on loopback; yields the port, notes the request heads."""
    loop = asyncio.new_event_loop()
    body = json.dumps(value).encode()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        await writer.drain()
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_the_table_shows_state_load_meter_and_complaints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key travels in the header; health is said in words below the table."""
    monkeypatch.setenv(workers.KEY_VARIABLE, "the-key")
    seen: list[str] = []
    with admin(200, {"workers": [WORKER]}, seen) as port:
        assert ExitCode.OK == workers.run(config_path=None, url=f"http://127.0.0.1:{port}", as_json=False)
    text = capsys.readouterr().out
    for words in ("gpu-0", "ready", "hall-a", "12,345", "nvml:energy-counter", "312.2", "gpu-0: xid 79"):
        assert words in text
    assert "Authorization: Bearer the-key" in seen[0]
    assert seen[0].startswith("GET /v1/jouleway/workers ")


def test_json_is_passed_on_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One document."""
    monkeypatch.setenv(workers.KEY_VARIABLE, "the-key")
    with admin(200, {"workers": [WORKER]}, []) as port:
        workers.run(config_path=None, url=f"http://127.0.0.1:{port}", as_json=True)
    assert {"workers": [WORKER]} == json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_exit_code_4(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """With the remedy."""
    monkeypatch.setenv(workers.KEY_VARIABLE, "the-key")
    with admin(status, {}, []) as port, pytest.raises(CommandError) as caught:
        workers.run(config_path=None, url=f"http://127.0.0.1:{port}", as_json=False)
    assert ExitCode.POLICY == caught.value.code
    assert "the-key" not in str(caught.value) + caught.value.remedy


def test_nobody_there_is_exit_code_6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port."""
    monkeypatch.setenv(workers.KEY_VARIABLE, "the-key")
    with admin(200, {}, []) as port:
        pass
    with pytest.raises(CommandError) as caught:
        workers.run(config_path=None, url=f"http://127.0.0.1:{port}", as_json=False)
    assert ExitCode.UNAVAILABLE == caught.value.code


def test_port_and_key_come_from_the_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An operator on the same machine needs no variable."""
    monkeypatch.delenv(workers.KEY_VARIABLE, raising=False)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "admin.key").write_text("key-of-the-file\n")
    seen: list[str] = []
    with admin(200, {"workers": []}, seen) as port:
        path = tmp_path / "c.yaml"
        path.write_text(CONFIG % port)
        assert ExitCode.OK == workers.run(config_path=path, url=None, as_json=True)
    assert "Bearer key-of-the-file" in seen[0]
    assert {"workers": []} == json.loads(capsys.readouterr().out)


def test_without_key_or_port_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Port 0 is known to the running process alone; a key is never guessed."""
    monkeypatch.delenv(workers.KEY_VARIABLE, raising=False)
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG % 0)
    with pytest.raises(CommandError, match=r"admin\.port is 0"):
        workers.run(config_path=path, url=None, as_json=False)
    with pytest.raises(CommandError) as caught:
        workers.run(config_path=path, url="http://127.0.0.1:1", as_json=False)
    assert (ExitCode.POLICY, True) == (caught.value.code, workers.KEY_VARIABLE in caught.value.remedy)


@pytest.mark.parametrize(
    ("changes", "phase", "expected"),
    [
        ({}, "connected", ("ready", "nvml:energy-counter")),
        ({}, "lost", ("ready (lost)", "nvml:energy-counter")),
        ({"meter_up": False}, "connected", ("ready", "nvml:energy-counter, down")),
        ({"meter": "", "meter_up": False}, "connected", ("ready", "none, down")),
    ],
)
def test_a_line_says_how_link_and_meter_stand(changes: dict[str, Any], phase: str, expected: tuple[str, str]) -> None:
    """A lost link and a lost meter show where one looks for them."""
    line = workers.row({**WORKER, "phase": phase, "status": {**STATUS, **changes}})
    assert expected == (line[1], line[6])
    assert len(workers.COLUMNS) == len(line)


def test_a_worker_that_never_spoke_has_a_line_too() -> None:
    """Its phase is all that is known."""
    line = workers.row({"worker_id": "w", "phase": "connecting", "cause": "", "status": None})
    assert ("w", "connecting") == line[:2]
    assert len(workers.COLUMNS) == len(line)
