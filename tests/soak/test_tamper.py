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
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.verify import verify
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


@pytest.mark.parametrize("first", range(0, NUM_CLEAN, 100))
def test_there_is_no_false_alarm(first: int, tmp_path: Path) -> None:
    """Of a thousand ledgers of random traffic, with each of their checkpoints."""
    for seed in range(first, first + 100):
        url = sqlite_url(tmp_path / f"{seed}.db")
        notes = fill(url, 20 + seed % 150, seed=seed)
        with closing(Reader(url)) as reader:
            verify(reader, checkpoints=notes)
