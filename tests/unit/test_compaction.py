"""Old texts go, and nothing else: the tree verifies, balances stay, what recovery needs is kept."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from benchmarks.ledger_load import Load
from benchmarks.recovery import core
from scheduler.accounting import book_state, compaction
from scheduler.accounting.compaction import COMPACTED, Compactor
from scheduler.accounting.errors import LedgerBroken, LedgerError
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.receipts import check_receipt, make_receipt
from scheduler.accounting.recovery import recover
from scheduler.accounting.rows import request_id_of
from scheduler.accounting.verify import Fault, verify

SEED = b"\x02" * 32
DAY_S = 86_400.0


class House:
    """A ledger with a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.url = sqlite_url(path)
        self.now_s = 1_700_000_000.0
        self.open()

    def open(self, *, use_state: bool = True) -> None:
        self.ledger = Ledger(self.url, seed=SEED)
        try:
            self.settlement, self.recovered = recover(
                self.ledger, core(), statement="s", version="v", unix_clock=lambda: self.now_s, use_state=use_state
            )
        except BaseException:
            self.ledger.close()
            raise

    async def days(self, num: int) -> None:
        """So many days of requests, and a state at the end of each."""
        load = Load(self.settlement, seed=int(self.now_s))
        for _ in range(num):
            load.requests(120)
            load.window()
            await self.settlement.journal.commit(with_state=True)
            self.now_s += DAY_S

    def us_ago(self, days: float) -> int:
        return int((self.now_s - days * DAY_S - 1) * 1_000_000)


def raise_full(*_: object, **__: object) -> None:
    raise LedgerError("the disk is full")


def balances(house: House) -> dict[tuple[str, str], int]:
    return {key: amount for key, amount in house.settlement.books.balances.items() if amount}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "ledger.db")


async def test_old_texts_go_and_everything_still_adds_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """By day and in parts; what is young stays; a receipt that was fetched proves what it proved."""
    monkeypatch.setattr(compaction, "MAX_ROWS", 100)
    await house.days(3)
    attempt_id = next(iter(house.settlement.books.closed))
    receipt = make_receipt(house.ledger, request_id_of(attempt_id), statement="s")
    assert receipt is not None
    before = balances(house)
    cutoff_us = int((house.now_s - DAY_S - 1) * 1_000_000)
    num = await Compactor(house.ledger, house.settlement).compact(before_us=cutoff_us)
    assert num > 600
    found = verify(house.ledger, key=house.ledger.signer.public_key)
    assert (num, 0) == (found.num_compacted, found.num_open_holds)
    assert before == balances(house)
    kept = [kind for _, kind, _, body, _ in house.ledger.stored() if body is not None]
    assert {"genesis", "opened", "daily", "charge"} <= set(kept)
    assert make_receipt(house.ledger, request_id_of(attempt_id), statement="s") is None
    check_receipt(receipt, key=house.ledger.signer.public_key)
    assert 0 == await Compactor(house.ledger, house.settlement).compact(before_us=cutoff_us)
    dumped = book_state.dump(house.settlement.books)
    await house.settlement.journal.commit(with_state=True)
    house.ledger.close()
    house.open()
    assert before == balances(house)
    assert dumped == book_state.dump(house.settlement.books)
    house.ledger.close()
    with pytest.raises(LedgerBroken, match="no state covers it"):
        house.open(use_state=False)


@pytest.mark.parametrize("is_broken_off", [False, True])
async def test_a_successor_goes_on_where_the_last_compaction_ended(
    house: House, monkeypatch: pytest.MonkeyPatch, is_broken_off: bool
) -> None:
    """Also where that one broke off between its row and the texts: no two begin at one row."""
    await house.days(2)
    if is_broken_off:
        monkeypatch.setattr(house.ledger, "drop_bodies", raise_full)
    with contextlib.suppress(LedgerError):
        await Compactor(house.ledger, house.settlement).compact(before_us=house.us_ago(1))
    house.ledger.close()
    monkeypatch.undo()
    house.open()
    await house.days(2)
    assert await Compactor(house.ledger, house.settlement).compact(before_us=house.us_ago(1)) > 200
    found = verify(house.ledger, key=house.ledger.signer.public_key)
    assert found.num_compacted > 400
    texts = [kind for _, kind, _, body, _ in house.ledger.stored(0, found.num_rows // 2) if body is not None]
    assert not COMPACTED.intersection(texts), "what broke off was finished"
    house.ledger.close()


async def test_a_compaction_that_broke_off_goes_on_in_the_same_process(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its row nor a text is lost or written twice."""
    await house.days(3)
    compactor = Compactor(house.ledger, house.settlement)
    monkeypatch.setattr(house.ledger, "write", raise_full)
    with pytest.raises(LedgerError, match="disk is full"):
        await compactor.compact(before_us=house.us_ago(1))
    monkeypatch.undo()
    await compactor.compact(before_us=house.us_ago(1))
    assert verify(house.ledger, key=house.ledger.signer.public_key).num_compacted > 400
    house.ledger.close()


async def test_what_recovery_needs_is_never_compacted(house: House) -> None:
    """However old it is."""
    load = Load(house.settlement)
    load.requests(50)
    await house.settlement.commit()
    assert 0 == await Compactor(house.ledger, house.settlement).compact(before_us=1 << 62)
    house.ledger.close()


async def test_a_text_that_goes_without_a_compaction_is_missed(house: House) -> None:
    """So is one text more or less than a compaction says."""
    await house.days(2)
    await Compactor(house.ledger, house.settlement).compact(before_us=int((house.now_s - DAY_S - 1) * 1_000_000))
    stored = list(house.ledger.stored())
    young = next(seq for seq, kind, _, body, _ in reversed(stored) if kind == "charge" and body is not None)
    house.ledger.drop_bodies(young, young + 1, kinds=["charge"])
    with pytest.raises(Fault, match="no compaction says so"):
        verify(house.ledger)
    house.ledger.close()


async def test_traffic_goes_on_meanwhile(house: House) -> None:
    """Commits and compaction take turns."""
    await house.days(2)
    load = Load(house.settlement, seed=9)

    async def traffic() -> None:
        for _ in range(20):
            load.requests(5)
            await house.settlement.commit()

    compactor = Compactor(house.ledger, house.settlement)
    await asyncio.gather(traffic(), compactor.compact(before_us=int((house.now_s - DAY_S) * 1_000_000)))
    house.ledger.close()
    reader = Reader(house.url)
    assert verify(reader).num_compacted > 0
    reader.close()
