"""A real PostgreSQL for tests and benchmarks: Debian's package, a folder of its own, a socket and no port.

Used by fixtures (``tests/conftest.py``) and by ``benchmarks/settlements.py``. Ended and removed by whoever started it.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

ACCOUNT = "postgres"
"""A server refuses to run as root."""
TIMEOUT_S = 60.0
MISSING = "PostgreSQL is not installed; remedy: apt-get install postgresql (Debian's package)"


def programs() -> Path:
    """Where initdb and postgres lie. Raises: RuntimeError, which names the package."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise RuntimeError(MISSING)
    return Path(on_path).parent


@dataclass(slots=True)
class Server:
    """One server; each test makes a database of its own in it."""

    folder: Path
    _programs: Path
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def url_of(self, database: str) -> str:
        return f"postgresql:///{database}?host={self.folder}&user={ACCOUNT}"

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"ledger_{next(self._numbers)}"
        with psycopg.connect(f"host={self.folder} user={ACCOUNT} dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url_of(name)

    @property
    def version(self) -> str:
        with psycopg.connect(f"host={self.folder} user={ACCOUNT} dbname=postgres") as connection:
            row = connection.execute("SHOW server_version").fetchone()
        return "" if row is None else str(row[0])

    def start(self) -> None:
        """And answers."""
        options = f"-k {self.folder} -c listen_addresses= -c max_connections=50"
        log = self.folder / "server.log"
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", str(log), "-w", "start")

    def stop(self, *, mode: str = "immediate") -> None:
        """As a crash, by default."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def run(self, program: str, *arguments: str) -> None:
        as_account = {"user": ACCOUNT, "group": pwd.getpwnam(ACCOUNT).pw_gid} if os.geteuid() == 0 else {}
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
            **as_account,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr.decode(errors='replace')}")


@contextmanager
def serving() -> Iterator[Server]:
    """A fresh server, gone on leaving. Raises: RuntimeError where there is none to start."""
    folder = Path(tempfile.mkdtemp(prefix="jwpg", dir="/tmp"))
    try:
        server = Server(folder, programs())
        if os.geteuid() == 0:
            account = pwd.getpwnam(ACCOUNT)
            os.chown(folder, account.pw_uid, account.pw_gid)
        server.run("initdb", "-D", str(folder / "data"), "-U", ACCOUNT, "-A", "trust", "--no-sync", "-E", "UTF8")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
