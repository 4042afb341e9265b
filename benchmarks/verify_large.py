"""`jouleway ledger verify` over ten million rows: how long, and how much memory at most.

Called by hand (``python benchmarks/verify_large.py``). The ledger is written here first, by the settlement of a control
plane (rows of whole requests; simulated), in large groups; then the command runs as a process of its own, and the
kernel says what it took. Bound (issue 5, row 7): 300 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ledger_load import Load
from benchmarks.record import ROOT, record
from scheduler.accounting.ledger import Ledger
from scheduler.accounting.ledger_reader import sqlite_url
from scheduler.accounting.recovery import recover
from scheduler.core.scheduler import Scheduler

BOUND_MB = 300.0
SEED = b"\x06" * 32
GROUP = 2_000


async def fill(path: Path, *, num_rows: int) -> tuple[int, float]:
    """Rows, and seconds that it took to write them."""
    began_s = time.perf_counter()
    ledger = Ledger(sqlite_url(path), seed=SEED)
    settlement, _ = recover(ledger, Scheduler(), statement="benchmark", version="benchmark")
    load = Load(settlement)
    while settlement.journal.next_seq < num_rows:
        load.requests(GROUP)
        await settlement.commit()
        if settlement.journal.next_seq // 1_000_000 > (settlement.journal.next_seq - 6_500) // 1_000_000:
            print(f"{settlement.journal.next_seq:,} rows written", file=sys.stderr, flush=True)
    load.window()
    await settlement.journal.commit(with_state=True)
    size = ledger.size
    ledger.close()
    return size, time.perf_counter() - began_s


def verified(path: Path) -> tuple[dict[str, Any], float]:
    """What the command says, and its largest resident set in MB (of the process itself: VmHWM)."""
    command = [sys.executable, "-m", "scheduler.cli", "ledger", "verify", str(path), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        most_kb = 0
        while process.poll() is None:
            with contextlib.suppress(OSError, ValueError, StopIteration):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                most_kb = max(most_kb, int(next(line for line in lines if line.startswith("VmHWM")).split()[1]))
            time.sleep(0.02)
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0, said
    return json.loads(said), most_kb / 1024


def main() -> int:
    """Measure, record, and fail where the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", help="where there is room for it (about 0.8 kB a row)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "ledger.db"
        size, wrote_s = asyncio.run(fill(path, num_rows=arguments.rows))
        told, most_mb = verified(path)
        values = {
            "simulated": True,
            "rows": size,
            "file_bytes": path.stat().st_size,
            "written_rows_per_s": round(size / wrote_s),
            "verified_rows": told["rows"],
            "took_s": told["took_s"],
            "rows_per_s": round(told["rows"] / told["took_s"]),
            "max_resident_mb": round(most_mb, 1),
            "bound_mb": BOUND_MB,
        }
    name = "verify_large" if arguments.rows >= 10_000_000 else "verify_large_short"
    path = record(name, values, what="ledger verify over a large ledger: rows per second and the largest resident set")
    print(path.relative_to(ROOT))
    return 0 if most_mb <= BOUND_MB and told["rows"] == size else 1


if __name__ == "__main__":
    sys.exit(main())
