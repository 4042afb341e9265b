"""What is shown by tests rather than by a figure: each proof is a selection of tests, run here and recorded.

Called by hand (``python benchmarks/proofs.py access_matrix canary …``; without a name: all). A proof holds if every one
of its tests passed; none may be skipped.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record

PROOFS: dict[str, tuple[str, tuple[str, ...]]] = {
    "access_matrix": (
        "every route of both listeners x role x foreign ids: 0 leaks, the same answer for not yours and not there",
        (
            "tests/unit/test_admin_matrix.py",
            "tests/unit/test_api_usage.py",
            "tests/unit/test_usage_page.py",
            "tests/unit/test_api_outcomes.py",
            "tests/unit/test_api_receipts.py",
        ),
    ),
    "canary": (
        "text of prompts and answers is in no row, log, metric, receipt or export, and no process dumps core",
        ("tests/cluster/test_canary.py",),
    ),
    "race_restart": (
        "a budget's last unit is raced for across restarts in the middle: overspend 0",
        ("tests/simulation/test_budget_race_restart.py",),
    ),
    "outage": (
        "full disk, errors, a server that is killed, a clock set back: nothing is lost, doubled or served unmetered",
        ("tests/unit/test_outage.py", "tests/unit/test_spool.py"),
    ),
}


def prove(name: str) -> bool:
    """Runs the tests of one proof and records what came of them."""
    what, paths = PROOFS[name]
    began_s = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stdout)
    counts = {
        word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout[-300:])
    }
    holds = done.returncode == 0 and set(counts) == {"passed"}
    values = {**counts, "holds": holds, "took_s": round(time.monotonic() - began_s, 1), "files": paths}
    record(f"proof_{name}", values, command=f"python benchmarks/proofs.py {name}", what=what)
    return holds


def main() -> int:
    """Fails where a proof does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PROOFS))
    arguments = parser.parse_args()
    held = [prove(name) for name in arguments.names or PROOFS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
