"""Durable settlements per second at the ledger's interface: hold, charge and energy posting, tree and checkpoint in.

Called by hand (``python benchmarks/settlements.py``). While a group of settlements is committed (SQLite: WAL, FULL;
PostgreSQL: synchronous_commit on) the next one is booked, as in a control plane; what comes meanwhile waits for the
next commit. Windows of energy come with them. The requests are drawn before the clock runs. Beside it stands what the
database takes of the same bytes without hashes, legs and signatures (``bare``).
Bounds (issue 5, row 4): SQLite 4,000/s, PostgreSQL 1,500/s on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ledger_load import Load
from benchmarks.record import ROOT, record
from scheduler.accounting.journal import Journal
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import Reader, sqlite_url
from scheduler.accounting.settlement import Settlement

GROUPS = (1, 10, 100)
"""Settlements that wait for one commit: what a relay's load makes of it."""
BOUNDS = {"sqlite": 4_000.0, "postgresql": 1_500.0}
SEED = b"\x05" * 32


def settle(url: str, *, num: int, group: int, seed: int) -> dict[str, float]:
    """One fresh ledger, ``num`` settlements in groups."""
    ledger = Ledger(url, seed=SEED)
    try:
        settlement = Settlement(journal=Journal(ledger, next_seq=ledger.size))
        load = Load(settlement, seed=seed)
        return asyncio.run(_settle(settlement, load, num=num, group=group))
    finally:
        ledger.close()


async def _settle(settlement: Settlement, load: Load, *, num: int, group: int) -> dict[str, float]:
    groups = [load.drawn(group) for _ in range(0, num, group)]
    waits_s: list[float] = []
    committing = asyncio.create_task(asyncio.sleep(0))
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for requests in groups:
        load.settle(requests)
        await committing
        committing = asyncio.create_task(_commit(settlement, waits_s))
        await asyncio.sleep(0)  # it takes its rows now
    await committing
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    waits_s.sort()
    return {
        "settlements_per_s": round(num / took_s, 1),
        "settlements_per_cpu_s": round(num / cpu_s, 1),
        "commit_p50_ms": round(1_000 * statistics.median(waits_s), 3),
        "commit_p99_ms": round(1_000 * waits_s[int(0.99 * (len(waits_s) - 1))], 3),
    }


async def _commit(settlement: Settlement, waits_s: list[float]) -> None:
    began_s = time.perf_counter()
    await settlement.commit()
    waits_s.append(time.perf_counter() - began_s)


def bare(url: str, *, group: int) -> float:
    """Settlements a second that SQLite takes of the rows of a ledger, their texts alone."""
    reader = Reader(url)
    bodies = [body or "" for _, _, _, body, _ in reader.stored()]
    reader.close()
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "bare.db")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, body TEXT)")
        began_s = time.perf_counter()
        for start in range(0, len(bodies), 3 * group):
            part = bodies[start : start + 3 * group]
            connection.executemany("INSERT INTO rows (body) VALUES (?)", [(body,) for body in part])
            connection.commit()
        took_s = time.perf_counter() - began_s
        connection.close()
    return round(len(bodies) / 3 / took_s, 1)


def measure(urls: dict[str, Any], *, num: int, turns: int) -> dict[str, Any]:
    """Every database in turn, ``turns`` times; the median of each figure."""
    values: dict[str, Any] = {}
    for group in GROUPS:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
        bares: list[float] = []
        for turn in range(turns):
            for name, make_url in urls.items():
                url = make_url()
                found[name].append(settle(url, num=max(num * min(group, 10) // 10, 200), group=group, seed=turn))
                if name == "sqlite":
                    bares.append(bare(url, group=group))
        for name, figures in found.items():
            medians = {key: statistics.median(each[key] for each in figures) for key in figures[0]}
            values.setdefault(name, {})[f"groups_of_{group}"] = medians
        values["sqlite"][f"groups_of_{group}"]["bare_per_s"] = statistics.median(bares)
    best = {name: values[name][f"groups_of_{GROUPS[-1]}"]["settlements_per_s"] for name in urls}
    return {**values, "bounds_per_s": BOUNDS, "is_within": {name: best[name] >= BOUNDS[name] for name in urls}}


def main() -> int:
    """Measure, record, and fail where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settlements", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--postgresql", metavar="URL", help="of a server where databases may be made; else one is started"
    )
    arguments = parser.parse_args()
    from tests.postgres import running_server

    with tempfile.TemporaryDirectory() as folder, running_server() as server:
        count = iter(range(1_000_000))
        urls = {
            "sqlite": lambda: sqlite_url(Path(folder) / f"ledger-{next(count)}.db"),
            "postgresql": server.new_database,
        }
        values = measure(urls, num=arguments.settlements, turns=arguments.turns)
        values["postgresql"]["version"] = server.version
    path = record("settlements", values, what="durable settlements per second at the ledger's interface, tree included")
    print(path.relative_to(ROOT))
    return 0 if all(values["is_within"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
