"""Kills what an engine left behind when its host process is gone, however it went: SIGKILL included.

Started by ``workers.host`` as a process of its own, which waits for the host's end. It must never know an engine: what
belongs to the host carries the host's marker in its environment, children of children too.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

MARKER = "JOULEWAY_HOST"
"""Environment variable of the host's process and of everything it starts."""

POLL_S = 1.0
ROUNDS = 5
"""Looks for survivors; a process that was just being started shows in the next."""


def start_guardian(marker: str) -> subprocess.Popen[bytes]:
    """A process of its own session that outlives us by a moment. It needs nothing but Python's core."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, marker, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={},
        cwd="/",
    )


def pids_of(marker: str) -> list[int]:
    """Every process that was started with this marker, other users' aside."""
    wanted = f"{MARKER}={marker}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if wanted in environment.split(b"\0"):
            found.append(int(entry))
    return found


def guard(marker: str, host_pid: int) -> None:
    """Returns when the host is gone and nothing with its marker is left."""
    is_open = True
    while os.getppid() == host_pid:
        # The pipe closes with the host; where a child holds its end open too, the parent's id tells.
        if is_open and select.select([sys.stdin], [], [], POLL_S)[0]:
            is_open = bool(os.read(sys.stdin.fileno(), 64))
        elif not is_open:
            time.sleep(0.02)
    for _ in range(ROUNDS):
        for pid in pids_of(marker):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(0.2)


if __name__ == "__main__":
    guard(sys.argv[1], int(sys.argv[2]))
