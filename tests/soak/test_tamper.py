"""Every byte of a ledger's file is changed in turn, and a thousand clean ledgers are looked at: no miss, no alarm.

About half an hour on two cores; JOULEWAY_TAMPER_STRIDE=n takes every n-th byte. `make soak-tamper` runs it alone.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.record import record
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.verify import Fault, verify
from tests.flipped_ledger import Flips, missed_of
from tests.ledger_words import file_of, fill

STRIDE = int(os.environ.get("JOULEWAY_TAMPER_STRIDE", "1"))
NUM_CLEAN = 1_000
NUM_PARTS = 64

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7_200)]


def test_every_byte_is_flipped_in_turn(tmp_path: Path) -> None:
    """One bit of it, or all eight: each change is found, or every row is still the one that was signed."""
    path = file_of(tmp_path, 200)
    num_bytes = len(Flips(path).data)
    parts = [range(start * STRIDE, num_bytes, NUM_PARTS * STRIDE) for start in range(NUM_PARTS)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(missed_of, [path] * NUM_PARTS, parts))
    missed = [words for _, some in results for words in some]
    num_found = sum(num for num, _ in results)
    record(
        "tamper" if STRIDE == 1 else "tamper_sampled",
        {"rows": 200, "file_bytes": num_bytes, "stride": STRIDE, "changes_found": num_found, "missed": len(missed)},
        command=f"JOULEWAY_TAMPER_STRIDE={STRIDE} make soak-tamper",
        what="bytes of a ledger's file changed one after the other: each change of a row is found by ledger verify",
    )
    assert [] == missed
    assert num_found > num_bytes // STRIDE // 2


def alarms_of(folder: Path, seeds: range) -> list[str]:
    """Of ledgers of random traffic, each with its checkpoints."""
    alarms = []
    for seed in seeds:
        url = sqlite_url(folder / f"{seed}.db")
        notes = fill(url, 20 + seed % 150, seed=seed)
        try:
            with closing(Reader(url)) as reader:
                verify(reader, checkpoints=notes)
        except (Fault, LedgerError) as error:
            alarms.append(f"seed {seed}: {error}")
    return alarms


def test_there_is_no_false_alarm(tmp_path: Path) -> None:
    """Nothing was changed in any of them."""
    parts = [range(start, NUM_CLEAN, NUM_PARTS) for start in range(NUM_PARTS)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        alarms = [words for some in pool.map(alarms_of, [tmp_path] * NUM_PARTS, parts) for words in some]
    record(
        "tamper_clean",
        {"ledgers": NUM_CLEAN, "false_alarms": len(alarms)},
        command="make soak-tamper",
        what="ledgers of random traffic that nobody changed, each read by ledger verify with its checkpoints",
    )
    assert [] == alarms
