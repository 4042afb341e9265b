"""What an engine left behind dies with its host, whatever killed the host, and nobody else does."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workers import guardian
from workers.guardian import MARKER, pids_of

SLEEPER = "import time; time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-S", "-c", {SLEEPER!r}], start_new_session=True)
time.sleep(60)
"""
HOST = f"""
import os, subprocess, sys, time
sys.path.insert(0, {str(Path(guardian.__file__).parents[1])!r})
from workers.guardian import start_guardian
start_guardian(os.environ[{MARKER!r}])
subprocess.Popen([sys.executable, "-S", "-c", {PARENT!r}], start_new_session=True)
print("up", flush=True)
time.sleep(60)
"""
"""A host with a guardian, an engine, and a process of that engine's own."""


def until(is_true: Callable[[], object], timeout_s: float = 5.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.fixture
def marker() -> Iterator[str]:
    name = f"test-{secrets.token_hex(8)}"
    yield name
    for pid in pids_of(name):
        os.kill(pid, signal.SIGKILL)


def test_the_engines_of_a_killed_host_are_killed_with_their_children(marker: str) -> None:
    """SIGKILL leaves nobody time to clean up: a process beside it does, sessions and grandchildren included."""
    stranger = subprocess.Popen([sys.executable, "-S", "-c", SLEEPER], env={**os.environ, MARKER: f"{marker}-other"})
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOST], env={**os.environ, MARKER: marker}, stdout=subprocess.PIPE
    ) as host:
        try:
            assert host.stdout is not None
            assert b"up\n" == host.stdout.readline()
            until(lambda: len(pids_of(marker)) == 3)
            host.kill()
            host.wait()
            until(lambda: not pids_of(marker))
            assert stranger.poll() is None
        finally:
            host.kill()
            stranger.kill()
            stranger.wait()


def test_a_living_host_keeps_its_engines(marker: str) -> None:
    """The guardian waits; it is no process of the host's own marker, which it would kill."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOST], env={**os.environ, MARKER: marker}, stdout=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        assert b"up\n" == host.stdout.readline()
        until(lambda: len(pids_of(marker)) == 3)
        time.sleep(0.05)
        assert host.pid in pids_of(marker)
        host.kill()


def test_a_marker_is_matched_whole(marker: str) -> None:
    """A name that begins like another's is another's."""
    with subprocess.Popen([sys.executable, "-S", "-c", SLEEPER], env={**os.environ, MARKER: f"{marker}1"}) as process:
        until(lambda: pids_of(f"{marker}1"))
        assert [] == pids_of(marker)
        process.kill()
