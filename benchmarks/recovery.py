"""A ledger of a million rows: how long until the first admission, and whether its state is what all rows come to.

Called by hand (``python benchmarks/recovery.py``). The ledger is written by the same settlement as in production, with
its states; recovery reads the last state and the rows behind it, and is then compared with a replay of every row:
books, budgets and usage must be equal. Rows are made, not measured: simulated. Bound (issue 5, row 6): 10 s.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ledger_load import Load
from benchmarks.record import ROOT, record
from scheduler.accounting import book_state
from scheduler.accounting.charging import request_of, tokens_of
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import sqlite_url
from scheduler.accounting.recovery import recover
from scheduler.accounting.rows import Charge
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.budgets import Budgets
from scheduler.core.energy_bounds import EnergyBound
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler

BOUND_S = 10.0
SEED = b"\x06" * 32
GROUP = 200
LARGE = 10**15


def core() -> Scheduler:
    """With budgets above every tenant, so that recovery has some to rebuild."""
    budgets = (
        Budget(Measure.TOKENS, LARGE, Window.parse("1h")),
        Budget(Measure.OUTPUT_TOKENS, LARGE, Window.parse("calendar day")),
        Budget(Measure.REQUESTS, LARGE, Window.parse("total")),
    )
    return Scheduler(
        models=["chat"], rules=Rules(budgets={Level("tenant", f"tenant-{number}"): budgets for number in range(20)})
    )


def use(budgets: Budgets, charge: Charge) -> None:
    """As the core does it: held, charged, over."""
    request, tokens = request_of(charge, arrival_s=0.0), tokens_of(charge)
    budgets.hold(request, prompt_tokens=2 * tokens.input_tokens, bound=lambda prompt, output: EnergyBound())
    budgets.charge(charge.request_id, charge.attempt_id, tokens, 0)
    budgets.end(charge.request_id)


async def fill(url: str, *, num_rows: int) -> int:
    """Rows of whole requests, committed in groups, states as they come due; the last ones are behind a state."""
    ledger, scheduler = Ledger(url, seed=SEED), core()
    settlement, _ = recover(ledger, scheduler, statement="benchmark", version="benchmark")
    load = Load(settlement, on_charge=lambda charge: use(scheduler.holds.budgets, charge))
    while settlement.journal.next_seq < num_rows:
        load.requests(GROUP)
        await settlement.commit()
    size = settlement.journal.next_seq
    ledger.close()
    return size


def opened(url: str, *, use_state: bool) -> tuple[float, bytes, list[Any], Any]:
    """Seconds from nothing to a core that may admit, and what it knows."""
    began_s = time.perf_counter()
    ledger = Ledger(url, seed=SEED)
    scheduler = core()
    settlement, recovered = recover(ledger, scheduler, statement="benchmark", version="benchmark", use_state=use_state)
    took_s = time.perf_counter() - began_s
    ledger.close()
    books = settlement.books
    books.closed.clear()  # a state keeps the last ones only
    return took_s, book_state.dump(books), sorted(scheduler.holds.budgets.used()), recovered


def measure(folder: Path, *, num_rows: int) -> dict[str, Any]:
    """Fill, recover by the state, recover by all rows, compare."""
    url = sqlite_url(folder / "ledger.db")
    began_s = time.perf_counter()
    size = asyncio.run(fill(url, num_rows=num_rows))
    filled_s = time.perf_counter() - began_s
    took_s, books, budgets, recovered = opened(url, use_state=True)
    full_s, full_books, full_budgets, full = opened(url, use_state=False)
    return {
        "simulated": True,
        "rows": size,
        "rows_per_s_written": round(size / filled_s, 1),
        "file_bytes": (folder / "ledger.db").stat().st_size,
        "first_admission_s": round(took_s, 3),
        "rows_behind_the_state": recovered.num_replayed,
        "full_replay_s": round(full_s, 3),
        "full_replay_rows": full.num_replayed,
        "is_equal_books": books == full_books,
        "is_equal_budgets": budgets == full_budgets,
        "bound_s": BOUND_S,
    }


def main() -> int:
    """Measure, record, and fail where the bound is missed or the state is not what all rows come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        values = measure(Path(folder), num_rows=arguments.rows)
    path = record(
        "recovery", values, what="recovery of a control plane from a large ledger, by its state and by all rows"
    )
    print(path.relative_to(ROOT))
    is_good = values["first_admission_s"] <= BOUND_S and values["is_equal_books"] and values["is_equal_budgets"]
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
