"""A ledger goes into another database as it is: same head, same proofs, same books; and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.ledger_load import Load
from benchmarks.recovery import core
from scheduler.accounting import book_state
from scheduler.accounting.errors import LedgerError, LedgerInUse, LedgerMissing
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_copy import TABLES, copy_ledger
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.recovery import recover
from scheduler.accounting.verify import verify
from tests.postgres import running_server

SEED = b"\x03" * 32


@pytest.fixture(scope="module")
def new_database() -> Iterator[Callable[[], str]]:
    with running_server() as server:
        yield server.new_database


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Closed, with rows behind its state."""
    url = sqlite_url(tmp_path / "from.db")
    ledger = Ledger(url, seed=SEED)
    settlement, _ = recover(ledger, core(), statement="s", version="v")

    async def fill() -> None:
        load = Load(settlement)
        load.requests(300)
        await settlement.journal.commit(with_state=True)
        load.requests(70)
        await settlement.commit()

    asyncio.run(fill())
    ledger.close()
    return url


def opened(url: str) -> tuple[int, bytes]:
    ledger = Ledger(url, seed=SEED)
    settlement, _ = recover(ledger, core(), statement="s", version="v", unix_clock=lambda: 0.0)
    told = len(settlement.books.closed), book_state.dump(settlement.books)
    ledger.close()
    return told


def test_it_goes_to_a_server_and_back(source: str, new_database: Callable[[], str], tmp_path: Path) -> None:
    """Head, proofs and books; a control plane goes on from the copy."""
    on_server, back, seen = new_database(), sqlite_url(tmp_path / "back.db"), []
    size = copy_ledger(source, on_server, on_progress=lambda done, of: seen.append((done, of)))
    assert (size, size) == seen[-1]
    assert size == copy_ledger(on_server, back, on_progress=lambda done, of: None)
    readers = [Reader(url) for url in (source, on_server, back)]
    heads = [reader.head() for reader in readers]
    assert heads[0] == heads[1] == heads[2]
    assert [size] * 3 == [verify(reader).num_rows for reader in readers]
    for reader in readers:
        reader.close()
    assert opened(source) == opened(on_server) == opened(back)


def test_a_ledger_that_is_open_is_not_copied(source: str, tmp_path: Path) -> None:
    """What comes meanwhile would be missing."""
    ledger = Ledger(source, seed=SEED)
    with pytest.raises(LedgerInUse):
        copy_ledger(source, sqlite_url(tmp_path / "to.db"), on_progress=lambda done, of: None)
    ledger.close()


def test_a_mistyped_source_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither the file that was meant, nor its lock, nor a folder, nor a target."""
    with pytest.raises(LedgerMissing, match=r"frm\.db: there is no such file"):
        copy_ledger(
            sqlite_url(tmp_path / "a" / "frm.db"),
            sqlite_url(tmp_path / "b" / "to.db"),
            on_progress=lambda done, of: None,
        )
    assert [] == list(tmp_path.iterdir())


def test_nothing_is_overwritten(source: str, tmp_path: Path) -> None:
    """A database with a ledger is named, and stays as it is."""
    target = sqlite_url(tmp_path / "to.db")
    copy_ledger(source, target, on_progress=lambda done, of: None)
    with pytest.raises(LedgerError, match="not empty"):
        copy_ledger(source, target, on_progress=lambda done, of: None)
    reader = Reader(target)
    verify(reader)
    reader.close()


def test_every_table_is_copied() -> None:
    """A new one needs a place in the list."""
    text = (Path(__file__).parents[2] / "scheduler/accounting/migrations/versions/0001_ledger.py").read_text()
    assert text.count("op.create_table(") == len(TABLES)
