"""A standing Ray cluster and control planes as processes of their own: what can be killed and found again.

Used by ``tests/cluster`` and ``tests/soak``. Everything that is started here has a folder of its own by which it is
known, and is ended by process id or group.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.servers import free_port
from scheduler.commands.http_client import BadAnswer, events, fetch, open_request
from tests.cluster.plane import MODEL, is_alive

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"alpha": "jw-test-key-of-alpha-0123456789", "beta": "jw-test-key-of-beta-01234567890"}
ADMIN_KEY = "jw-test-admin-key-0123456789abcdef"


def processes_of(folder: Path) -> list[int]:
    """Whatever was started with this folder in its command line or environment, ourselves aside."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{entry}/cmdline").read_bytes() + Path(f"/proc/{entry}/environ").read_bytes()
            if f"{folder}/".encode() in told and is_alive(int(entry)):
                found.append(int(entry))
    return found


def end_all(folder: Path) -> list[int]:
    """Kills what is left of this folder; returns what there was."""
    left = processes_of(folder)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return left


@dataclass(slots=True, kw_only=True)
class Place:
    """A folder with a short path (Ray's sockets lie in it), a configuration and an environment."""

    folder: Path
    environment: dict[str, str]
    ray_address: str | None = None
    planes: list[ServedPlane] = field(default_factory=list)

    def configuration(self, workers: list[dict[str, Any]], **sections: Any) -> Path:
        """Any free ports, two tenants, no weights. JSON is YAML."""
        path = self.folder / "jouleway.yaml"
        state = self.folder / "state"
        state.mkdir(exist_ok=True, mode=0o700)
        key = state / "admin.key"
        key.touch(mode=0o600)
        key.write_text(ADMIN_KEY + "\n")
        config: dict[str, Any] = {
            "server": {"port": 0},
            "admin": {"port": 0},
            "ray": {"num_cpus": 8} if self.ray_address is None else {"address": self.ray_address},
            "models": {MODEL: {"default_output_tokens": 64, "normalizer": "none"}},
            "workers": [{"engine": "simulated", "model": MODEL, "cpus": 0.1, **worker} for worker in workers],
            "tenants": [
                {"name": name, "keys": ["sha256:" + hashlib.sha256(key.encode()).hexdigest()]}
                for name, key in KEYS.items()
            ],
            "state_dir": str(state),
        }
        path.write_text(json.dumps({**config, **sections}, indent=1))
        return path

    def driver_logs(self) -> str:
        """The last words of Ray's part of each control plane."""
        found = sorted(self.folder.glob("r/ray/session_2*/logs/python-core-driver-*.log")) or sorted(
            self.folder.glob("r/session_2*/logs/python-core-driver-*.log")
        )
        return "\n".join(path.read_text(errors="replace")[-2_000:] for path in found)

    def run(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """A command of ours that ends by itself; its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "scheduler.cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout

    def serve(self, config: Path, *, timeout_s: float = 150.0) -> ServedPlane:
        """A control plane, ready."""
        plane = ServedPlane(self, config, number=len(self.planes))
        self.planes.append(plane)
        plane.wait_ready(timeout_s)
        return plane


class ServedPlane:
    """One `jouleway serve`."""

    def __init__(self, place: Place, config: Path, *, number: int) -> None:
        self.log = place.folder / f"serve-{number}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config), "--json"],
                cwd=ROOT,
                env=place.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.url = ""
        self.admin_url = ""

    def wait_ready(self, timeout_s: float) -> None:
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        until_s, said = time.monotonic() + timeout_s, b""
        while b"\n" not in said:
            assert time.monotonic() < until_s, self.log.read_text()[-4_000:]
            assert self.process.poll() is None, self.log.read_text()[-4_000:]
            said += self.process.stdout.read() or b""
            time.sleep(0.05)
        ready = json.loads(said.split(b"\n")[0])
        self.url, self.admin_url = ready["url"], ready["admin_url"]

    def kill(self) -> None:
        """As the kernel would."""
        self.process.kill()
        self.process.wait(10.0)

    def stop(self, *, timeout_s: float = 60.0) -> int:
        """In order, as an operator would."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10.0)
        if self.process.stdout is not None:
            self.process.stdout.close()

    async def admin(self, what: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        reply = await fetch(f"{self.admin_url}/v1/jouleway/{what}", headers=headers)
        answer = reply.json()
        assert isinstance(answer, dict), reply.status
        return answer

    async def until(self, is_true: Any, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """The first snapshot of which it is true."""
        until_s = time.monotonic() + timeout_s
        while True:
            snapshot = await self.admin("snapshot")
            if is_true(snapshot):
                return snapshot
            assert time.monotonic() < until_s, json.dumps(snapshot, indent=1)
            await asyncio.sleep(0.1)


@dataclass(slots=True, kw_only=True)
class Seen:
    """One streamed answer as its client saw it."""

    status: int = 0
    num_pieces: int = 0
    is_done: bool = False
    """The last event, [DONE], came."""
    error: str = ""
    """Code of the error event, or what broke the connection."""


async def ask(url: str, *, tenant: str = "alpha", max_tokens: int = 20, prompt: str = "hello", **fields: Any) -> Seen:
    """One streaming completion, read to its end whatever that is."""
    payload = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True, **fields}
    seen = Seen()
    try:
        async with open_request(
            f"{url}/v1/completions",
            method="POST",
            body=json.dumps(payload).encode(),
            headers={"Authorization": f"Bearer {KEYS[tenant]}"},
        ) as (answer, chunks):
            seen.status = answer.status
            async for event in events(chunks):
                if event == "[DONE]":
                    seen.is_done = True
                elif "error" in (said := json.loads(event)):
                    seen.error = said["error"].get("code") or "error"
                else:
                    seen.num_pieces += 1
    except (OSError, BadAnswer, asyncio.IncompleteReadError, ValueError) as error:
        seen.error = type(error).__name__
    return seen


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Everything started in it is ended, by its folder where need be."""
    folder = Path(tempfile.mkdtemp(prefix="jw", dir="/tmp"))
    (folder / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "JOULEWAY_"))}
    environment |= {
        "RAY_TMPDIR": str(folder / "r"),
        "HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "JOULEWAY_LOG_LEVEL": "INFO",
        "PYTHONFAULTHANDLER": "1",
    }
    made = Place(folder=folder, environment=environment)
    try:
        yield made
    finally:
        for plane in made.planes:
            plane.close()
        end_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def standing_ray(at: Place, *, num_cpus: int = 8) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start` in the foreground, with a token of its own."""
    token = at.folder / "token"
    token.write_text("jouleway-test-token-of-this-folder-only-0123456789")
    token.chmod(0o600)
    at.environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", "--include-dashboard=false", f"--num-cpus={num_cpus}", f"--temp-dir={at.folder}/r",
        "--disable-usage-stats",
    ]  # fmt: skip
    with (at.folder / "ray.log").open("wb") as log:
        process = subprocess.Popen(command, env=at.environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until_s = time.monotonic() + 30.0
        while "Ray runtime started" not in (at.folder / "ray.log").read_text():
            assert process.poll() is None, (at.folder / "ray.log").read_text()
            assert time.monotonic() < until_s, (at.folder / "ray.log").read_text()
            time.sleep(0.1)
        at.ray_address = f"127.0.0.1:{port}"
        yield process
    finally:
        for plane in at.planes:
            plane.close()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        end_all(at.folder)
        process.wait(10.0)
