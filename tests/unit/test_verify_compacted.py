"""A compaction hides old texts from verify, not what came after them: and no false alarm, wherever it ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scheduler.accounting.checkpoints import Signer
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.postings import charge_legs, energy_legs, void_legs
from scheduler.accounting.rows import Charge, Energy, Hold, Opened, Row, Void
from scheduler.accounting.verify import Fault, Verified, verify
from scheduler.core.actions import Payer
from tests.compacted_ledger import add, compact
from tests.ledger_words import LEDGER_ID, SEED, execute, file_of, fill, hold_of

KEY = Signer(f"jouleway/{LEDGER_ID}", SEED).public_key
NUM_ROWS, CUT = 300, 120


def checked(url: str) -> Verified:
    with closing(Reader(url)) as reader:
        return verify(reader, key=KEY)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return file_of(tmp_path_factory.mktemp("model"), NUM_ROWS)


@pytest.fixture
def copy_url(model: Path, tmp_path: Path) -> str:
    return sqlite_url(Path(shutil.copy(model, tmp_path / "copy.db")))


@pytest.mark.parametrize("seed", range(12))
def test_wherever_a_compaction_ends_there_is_no_false_alarm(seed: int, tmp_path: Path) -> None:
    """Among open holds, charges without energy, windows of which a part is old; also over a restart."""
    path = tmp_path / "ledger.db"
    for number in range(2):
        fill(sqlite_url(path), 60 * (number + 1), seed=seed, first_request=1_000 * number)
    for cut in range(10 + seed % 8, 125, 8):
        url = sqlite_url(Path(shutil.copy(path, tmp_path / f"{cut}.db")))
        compact(url, cut // 2, cut)
        assert 0 < checked(url).num_compacted <= cut


# -- rows that somebody with the key adds behind a compaction


def paid(rows: list[Row]) -> Charge:
    return next(row for row in rows[CUT:] if isinstance(row, Charge) and row.payer is Payer.REQUEST)


def of_nobody(rows: list[Row]) -> Charge:
    """As old as anybody likes to say."""
    values: dict[str, Any] = {"attempt_id": "req-nobody-1", "request_id": "req-nobody", "arrived_us": 0, "legs": []}
    return msgspec.structs.replace(paid(rows), **values)


def charge_without_a_hold(rows: list[Row]) -> None:
    again = of_nobody(rows)
    again.legs = charge_legs(again, None)
    add(rows, again)


def charge_of_a_hold_that_never_was(rows: list[Row]) -> None:
    again = of_nobody(rows)
    again.legs = charge_legs(again, hold_of("req-nobody", tenant=again.tenant))
    add(rows, again)


def charge_of_a_hold_that_was_charged(rows: list[Row]) -> None:
    """Its hold is compacted, and so is the charge that took all of it."""
    row = next(row for row in rows[:CUT] if isinstance(row, Charge) and row.payer is Payer.REQUEST)
    again = msgspec.structs.replace(row, attempt_id=f"{row.request_id}-9", legs=[])
    hold = next(row for row in rows if isinstance(row, Hold) and row.request_id == again.request_id)
    again.legs = charge_legs(again, msgspec.structs.replace(hold, cost_nano=hold.cost_nano * 1_000_000))
    add(rows, again)


def charge_of_a_hold_that_a_start_voided(rows: list[Row]) -> None:
    row = next(row for row in rows[:CUT] if isinstance(row, Charge) and row.payer is Payer.REQUEST)
    hold = next(each for each in rows if isinstance(each, Hold) and each.request_id == row.request_id)
    add(rows, Opened(epoch=99, version="1", statement="s"))
    add(rows, msgspec.structs.replace(row, attempt_id=f"{row.request_id}-9", legs=charge_legs(row, hold)))


def void_of_a_hold_that_never_was(rows: list[Row]) -> None:
    legs = void_legs(hold_of("req-nobody"))
    add(rows, Void(request_id="req-nobody", tenant="alpha", cause="c", legs=legs))


def money_in_a_void(rows: list[Row]) -> None:
    hold = next(row for row in rows[:CUT] if isinstance(row, Hold))
    legs = [("held/alpha", "USD", -5), ("used/alpha", "USD", 5)]
    rows[:] = [row for row in rows if not (isinstance(row, Void) and row.request_id == hold.request_id)]
    for seq, row in enumerate(rows):
        row.seq = seq
    add(rows, Void(request_id=hold.request_id, tenant="alpha", cause="c", legs=legs))


def energy_that_nobody_was_charged(rows: list[Row]) -> None:
    """With money."""
    row = next(row for row in rows if isinstance(row, Energy))
    values: dict[str, Any] = {"energy_mj": 0, "gpu_us": 0, "carbon_ug": 0, "cost_nano": 10**9, "account": "alpha"}
    legs = energy_legs(row.worker_id, "alpha", energy_mj=0, gpu_us=0, cost_nano=10**9)
    add(rows, msgspec.structs.replace(row, attempt_id="req-nobody-1", legs=legs, **values))


def energy_of_windows_that_never_were(rows: list[Row]) -> None:
    row = next(row for row in rows if isinstance(row, Energy))
    legs = energy_legs(row.worker_id, "(operator)", energy_mj=10**9, gpu_us=0)
    values: dict[str, Any] = {"energy_mj": 10**9, "gpu_us": 0, "carbon_ug": 0, "cost_nano": 0, "account": "(operator)"}
    add(rows, msgspec.structs.replace(row, attempt_id="req-nobody-1", legs=legs, **values))


def energy_beyond_its_windows(rows: list[Row]) -> None:
    """Of an attempt whose hold can be seen."""
    begun = {row.request_id for row in rows[CUT:] if isinstance(row, Hold)}
    row = next(
        row for row in rows if isinstance(row, Energy) and row.energy_mj and row.attempt_id.rpartition("-")[0] in begun
    )
    row.energy_mj += 1
    row.legs = [
        (account, unit, amount + (unit == "mJ") * (1 if amount > 0 else -1)) for account, unit, amount in row.legs
    ]


def payer_of_a_charge_that_is_seen(rows: list[Row]) -> None:
    charged = {row.attempt_id for row in rows[CUT:] if isinstance(row, Charge) and row.account == "alpha"}
    row = next(row for row in rows if isinstance(row, Energy) and row.attempt_id in charged)
    row.account = "beta"
    row.legs = [(account.replace("/alpha", "/beta"), unit, amount) for account, unit, amount in row.legs]


def difference_of_a_charge_that_is_seen(rows: list[Row]) -> None:
    """However old its hold is: the charge says what its measurement comes to."""
    charges = {row.attempt_id: row for row in rows[CUT:] if isinstance(row, Charge) and row.account == "alpha"}
    row = next(row for row in rows if isinstance(row, Energy) and row.attempt_id in charges)
    row.cost_nano = 1_000
    row.legs += [("drawn/alpha", "USD", -1_000), ("used/alpha", "USD", 1_000)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (charge_without_a_hold, "no hold of its request is open"),
        (charge_of_a_hold_that_never_was, "no hold of its request is open"),
        (charge_of_a_hold_that_was_charged, "where compacted rows left"),
        (charge_of_a_hold_that_a_start_voided, "no hold of its request is open"),
        (void_of_a_hold_that_never_was, "gives back a hold that is not open: req-nobody"),
        (money_in_a_void, "moves something else than it says"),
        (energy_that_nobody_was_charged, r"is paid by alpha, and its charge by \(operator\)"),
        (energy_of_windows_that_never_were, "mJ from in_flight/w-.*, where compacted rows left"),
        (energy_beyond_its_windows, "and windows gave it"),
        (payer_of_a_charge_that_is_seen, "is paid by beta, and its charge by alpha"),
        (difference_of_a_charge_that_is_seen, "costs something else than what was measured"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_compaction_hides_nothing_that_came_after_it(
    copy_url: str, wrong: Callable[[list[Row]], None], words: str
) -> None:
    """Only a row whose own hold, charge or windows are compacted may lack them, and takes what these left."""
    compact(copy_url, CUT, wrong=wrong)
    with pytest.raises(Fault, match=words):
        checked(copy_url)


def test_a_name_that_somebody_gives_a_compacted_row_pays_nothing(copy_url: str) -> None:
    """Names of rows without a text are signed by nobody; the sums of the compaction are."""
    compact(copy_url, CUT, wrong=charge_of_a_hold_that_never_was)
    execute(copy_url, f"UPDATE rows SET row_id = 'req-nobody' WHERE seq = {first_hold(copy_url)}")
    with pytest.raises(Fault, match="where compacted rows left"):
        checked(copy_url)


def first_hold(url: str) -> int:
    return int(execute(url, "SELECT min(seq) FROM rows WHERE kind = 'hold'")[0][0])
