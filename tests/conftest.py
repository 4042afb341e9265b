"""For every test: hypothesis prints what reproduces a failure, a slow machine is no failure, and logs are heard.

And the databases that a ledger may be in: SQLite, and a real PostgreSQL server, started by the first test that asks.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.postgres import PostgresServer, running_server

EXAMPLES = int(os.environ.get("JOULEWAY_EXAMPLES", "100"))
"""Of each property that names no number of its own. `make unit` tries fewer, to stay quick; `make test` all."""

settings.register_profile("jouleway", deadline=None, print_blob=True, max_examples=EXAMPLES)
settings.load_profile("jouleway")


@pytest.fixture(autouse=True)
def root_logger_as_python_has_it() -> None:
    """A real engine that died in an earlier test leaves the root logger at ERROR: warnings would not be heard."""
    logging.root.setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Of an empty database."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def new_ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Makes URLs of databases that hold nothing yet; every test that asks runs on both."""
    num_made = 0
    with contextlib.ExitStack() as databases:

        def made() -> str:
            nonlocal num_made
            num_made += 1
            if request.param == "sqlite":
                return f"sqlite:///{tmp_path / f'ledger-{num_made}.db'}"
            return databases.enter_context(request.getfixturevalue("postgres_server").database())

        yield made


@pytest.fixture
def ledger_url(new_ledger_url: Callable[[], str]) -> str:
    """One such URL."""
    return new_ledger_url()
