"""A PostgreSQL server for tests: Debian's, in a temporary folder, reached by a socket there and by nobody else.

Used by the fixtures of ``tests/conftest.py``. It refuses to run as root: then it runs as Debian's account for it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

ACCOUNT = "postgres"
START_TIMEOUT_S = 60.0
SETTINGS = {
    "listen_addresses": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "16MB",
    "max_connections": "40",
    "timezone": "UTC",
    "lc_messages": "C",
}


def binaries() -> Path:
    """The folder of ``initdb``. Fails the test where PostgreSQL is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: each.parent.name, reverse=True)
    if (pg_config := shutil.which("pg_config")) is not None:
        told = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False).stdout.strip()
        folders.insert(0, Path(told))
    for folder in folders:
        if all((folder / name).is_file() for name in ("initdb", "postgres")):
            return folder
    pytest.fail("PostgreSQL's server is not installed: apt-get install postgresql")


class PostgresServer:
    """One server; ``database()`` hands out empty databases, ``stop`` and ``start`` play its absence."""

    def __init__(self, folder: Path) -> None:
        """``folder`` must be open to the account that the server runs as."""
        self._bin = binaries()
        self._folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._num_databases = 0
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._account = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []}
            shutil.chown(folder, ACCOUNT, ACCOUNT)
        self._run("initdb", "-D", str(self._data), "-U", ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        settings = [f"{name}={value}" for name, value in SETTINGS.items()]
        options = [part for setting in settings for part in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self._data), "-k", str(self._folder), *options],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                **self._account,
            )
        until_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._admin().close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > until_s:
                    log_text = (self._folder / "log").read_text()[-2_000:]
                    pytest.fail(f"PostgreSQL does not start: {error}\n{log_text}")
                time.sleep(0.05)

    def stop(self, *, at_once: bool = False) -> None:
        """With every connection; ``at_once`` as if the power went."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
            self._process.wait(START_TIMEOUT_S)
            self._process = None

    @property
    def version(self) -> str:
        with contextlib.closing(self._admin()) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        return "" if row is None else str(row[0])

    def new_database(self) -> str:
        """The URL of an empty one, which lives as long as the server."""
        self._num_databases += 1
        name = f"test_{self._num_databases}"
        with contextlib.closing(self._admin()) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{ACCOUNT}@/{name}?host={self._folder}"

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The same, and it is gone afterwards."""
        url, name = self.new_database(), f"test_{self._num_databases}"
        try:
            yield url
        finally:
            if self._process is None:
                self.start()
            with contextlib.closing(self._admin()) as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _admin(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self._folder), user=ACCOUNT, dbname="postgres", autocommit=True)

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / name), *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            **self._account,
        )
        if done.returncode:
            pytest.fail(f"{name} failed: {done.stderr}")


@contextlib.contextmanager
def running_server() -> Iterator[PostgresServer]:
    """In a folder whose path is short enough for a socket. Fails where the account is missing."""
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(ACCOUNT)
        except KeyError:
            pytest.fail(
                f"there is no account {ACCOUNT}, and PostgreSQL does not run as root: apt-get install postgresql"
            )
    folder = Path(tempfile.mkdtemp(prefix="jw-pg-"))
    server = None
    try:
        server = PostgresServer(folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)
