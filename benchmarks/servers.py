"""Starts the servers that are compared, waits until they answer, measures their CPU, and ends what it started.

Called by the comparisons in this folder. It must never know what is measured.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ServerError(Exception):
    """A server did not come up, or went away; carries the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One running server and its process group."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    command: tuple[str, ...]
    log: Path
    admin_url: str = ""
    """Jouleway's admin listener."""

    def cpu_s(self) -> float:
        """CPU seconds of the process and all its descendants so far (those still alive)."""
        return sum(own_cpu_s(pid) for pid in tree(self.process.pid))

    def shown(self) -> str:
        """The command line, for a result."""
        return shlex.join(self.command)


def free_port() -> int:
    """A loopback port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    url: str,
    ready_path: str,
    log: Path,
    environment: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 180.0,
) -> Iterator[Server]:
    """A server that answers ``ready_path`` with 200; ended with its whole process group on leaving.

    Raises: ServerError when it ends or does not answer in time, with the last lines of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    server = Server(name=name, url=url, process=process, command=tuple(command), log=log)
    try:
        _wait_ready(server, ready_path, headers or {}, timeout_s)
        yield server
    finally:
        stop(process)


def _wait_ready(server: Server, path: str, headers: Mapping[str, str], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    request = urllib.request.Request(server.url + path, headers=dict(headers))
    while time.monotonic() < deadline_s:
        if server.process.poll() is not None:
            raise ServerError(f"{server.name} ended with {server.process.returncode}:\n{tail(server.log)}")
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    raise ServerError(f"{server.name} did not answer {path} within {timeout_s:g} s:\n{tail(server.log)}")


def stop(process: subprocess.Popen[bytes], *, patience_s: float = 20.0) -> None:
    """SIGINT to the process, then SIGKILL to what is left of its tree and group."""
    known = tree(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in known:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait(10)


def tail(path: Path, *, num_lines: int = 25) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])


def tree(root: int) -> list[int]:
    """The process and all its descendants, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        if Path(f"/proc/{pid}").exists():
            found.append(pid)
        queue += children.get(pid, [])
    return found


def own_cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of one process; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def command_name(pid: int) -> str:
    """What a process calls itself, shortened; empty when it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").split()
    except OSError:
        return ""
    return " ".join(Path(word).name if word.startswith("/") else word for word in words[:4])[:80]


def wait_quiet(*, max_load: float, timeout_s: float) -> float:
    """Wait until the one-minute load falls below ``max_load``; returns the load at the end, quiet or not."""
    deadline_s = time.monotonic() + timeout_s
    while os.getloadavg()[0] > max_load and time.monotonic() < deadline_s:
        print(f"waiting for a quiet machine: load {os.getloadavg()[0]:.2f} > {max_load}", file=sys.stderr, flush=True)
        time.sleep(10)
    return os.getloadavg()[0]
