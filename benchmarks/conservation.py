"""Measures conservation: every millijoule of the meter in exactly one account, through faults, kills and mutants.

Called by people (``python benchmarks/conservation.py --json``). It must never judge by the worker's own sum alone: an
observer reads the counter's file from outside, in the kill runs from another process. All energy here is simulated.

Three parts. Clean runs: difference 0 mJ and the bounds of design §5. Fault runs on virtual time, and kill runs with
real processes: difference 0 mJ. Mutants: programs that are wrong on purpose must fail the same checks.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.conservation_run import FAULTS, WORKER_ID, Mutant, Observer, Outcome, run
from benchmarks.record import record
from scheduler.accounting.charging import charge_of_stranger
from scheduler.accounting.settlement import Settlement
from workers.balance import check_balance
from workers.types import EnergyPosting, Numbered, UsageRecord, WindowRecord

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = {
    "a tenth of the step records is lost, always": Mutant(drops_ratio=0.1),
    "a tenth of the step records is lost after 30 windows": Mutant(drops_ratio=0.1, from_window=30),
    "the steps of one request are lost": Mutant(loses_attempt=60),
    "meter x 1.2, always": Mutant(meter_factor=1.2),
    "meter x 1.2 after 40 windows": Mutant(meter_factor=1.2, from_window=40),
}


def clean(folder: Path, *, seed: int, num_windows: int, mutant: Mutant | None = None) -> dict[str, Any]:
    """One run without faults, judged; a mutant's run is judged the same way."""
    outcome = run(folder / f"clean-{seed}-{time.monotonic_ns()}", seed=seed, num_windows=num_windows, mutant=mutant)
    balance = check_balance(outcome.windows, outcome.postings, outcome.usages, observed_mj=outcome.observed_mj)
    return {
        "seed": seed,
        **_figures(outcome),
        "unattributed_ratio": _rounded(balance.unattributed_ratio),
        "requests_ratio": _rounded(balance.requests_ratio),
        "predicted_over_measured": _rounded(balance.predicted_over_measured),
        "worst_20_windows": _rounded(balance.worst_span),
        "metered_token_difference": outcome.settlement.accounts.metered_token_difference,
        "problems": [problem.split(": req")[0] for problem in balance.problems],
    }


def faulty(folder: Path, *, seed: int, num_windows: int) -> dict[str, Any]:
    """One run through every fault, on virtual time."""
    outcome = run(folder / f"faults-{seed}", seed=seed, num_windows=num_windows, faults=FAULTS)
    counts = {name: outcome.faults.count(name) for name in FAULTS}
    return {"seed": seed, **_figures(outcome), "faults": counts, "counter_resets": outcome.num_resets}


def _figures(outcome: Outcome) -> dict[str, int]:
    balance = outcome.settlement.accounts.balance()
    return {
        "num_windows": outcome.num_windows,
        "num_requests": outcome.num_requests,
        "num_lives": outcome.num_lives,
        "observed_mj": outcome.observed_mj,
        "difference_mj": outcome.difference_mj,
        "in_flight_mj": balance.in_flight_mj + outcome.in_flight_mj,
    }


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)


def killed(folder: Path, *, seed: int, num_kills: int) -> dict[str, Any]:
    """Real processes, real SIGKILL: the counter's file is read from here, the records come by a pipe."""
    path = folder / f"killed-{seed}"
    rng = random.Random(seed)
    settlement = Settlement()
    observer: Observer | None = None
    num_windows = 0
    for life in range(num_kills + 1):
        # The file is made at 0; from there on each life goes on where the last one was booked.
        last_mj = settlement.last_counter_mj(WORKER_ID) or 0
        command = [sys.executable, "-m", "benchmarks.killed_worker", str(path), "--seed", str(seed * 100 + life)]
        command += ["--last-counter-mj", str(last_mj)]
        settlement.open_worker(WORKER_ID, incarnation=str(life))
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            observer = observer or _first_look(path)
            time.sleep(rng.uniform(3.0, 5.0))
            if life < num_kills:
                process.kill()
            output = process.communicate(timeout=60)[0]
        finally:
            process.kill()
        num_windows += _book(settlement, output)
        settlement.close_worker(WORKER_ID)
    assert observer is not None
    observer.look()
    observer.close()
    balance = settlement.accounts.balance()
    parts_mj = balance.requests_mj + balance.idle_mj + balance.overhead_mj + balance.unattributed_mj
    return {
        "seed": seed,
        "num_kills": num_kills,
        "num_windows": num_windows,
        "observed_mj": observer.counted_mj,
        "difference_mj": parts_mj + balance.in_flight_mj + balance.calibration_mj - observer.counted_mj,
        "in_flight_mj": balance.in_flight_mj,
        "requests_mj": balance.requests_mj,
        "worker_lost_mj": dict(balance.causes).get("worker_lost", 0),
    }


def _first_look(path: Path) -> Observer:
    deadline_s = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline_s:
        time.sleep(0.001)
    observer = Observer(path)
    # What the counter counted before this look is the worker's, too: its file was made at 0.
    observer.counted_mj += observer.first_mj
    return observer


def _book(settlement: Settlement, output: str) -> int:
    """Books what a life wrote; a line that its death cut is no record. Returns its windows."""
    num_windows = 0
    for line in output.splitlines(keepends=True):
        if not line.endswith("\n"):
            continue
        numbered = msgspec.msgpack.decode(base64.b64decode(line), type=Numbered)
        if not settlement.is_new(WORKER_ID, numbered.number):
            continue
        match numbered.record:
            case WindowRecord() as window:
                num_windows += 1
                settlement.window(WORKER_ID, window)
            case EnergyPosting() as posting:
                settlement.post_energy(WORKER_ID, posting)
            case UsageRecord() as usage:
                settlement.charge(charge_of_stranger(usage, worker_id=WORKER_ID, status=None))
    return num_windows


def measure(folder: Path, *, num_windows: int, seeds: int, num_kills: int) -> dict[str, Any]:
    """All parts. ``num_windows`` is the least of each of clean and fault runs over all seeds."""
    per_seed = -(-num_windows // seeds)
    values: dict[str, Any] = {
        "clean": [clean(folder, seed=seed, num_windows=per_seed) for seed in range(seeds)],
        "faults": [faulty(folder, seed=seed, num_windows=per_seed) for seed in range(seeds)],
        "mutants": {
            name: [clean(folder, seed=seed, num_windows=100, mutant=mutant) for seed in range(seeds)]
            for name, mutant in MUTANTS.items()
        },
        "killed_processes": [killed(folder, seed=1, num_kills=num_kills)] if num_kills else [],
    }
    return {"passes": not (found := failures(values)), "failures": found, **values}


def failures(values: dict[str, Any]) -> list[str]:
    """What does not hold of all that is claimed, in words."""
    found = []
    for part in ("clean", "faults", "killed_processes"):
        for each in values[part]:
            if each["difference_mj"] or each["in_flight_mj"]:
                found.append(f"{part}, seed {each['seed']}: {each['difference_mj']} mJ do not add up")
    for each in values["clean"]:
        found += [f"clean, seed {each['seed']}: {problem}" for problem in each["problems"]]
    for name, runs in values["mutants"].items():
        found += [f"mutant not caught, seed {each['seed']}: {name}" for each in runs if not each["problems"]]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Prints the figures; exit code 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description="Conservation of simulated energy, with faults, kills and mutants.")
    parser.add_argument("--windows", type=int, default=2_000, help="least windows of clean runs, and of fault runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=5, help="real processes killed (5 s each)")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/conservation_simulated.json")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        values = measure(Path(folder), num_windows=given.windows, seeds=given.seeds, num_kills=given.kills)
    print(json.dumps(values, indent=None if given.json else 2))
    if given.record:
        record(
            "conservation_simulated",
            values,
            what="Simulated: requests + idle + overhead + unattributed + in flight against what an observer of the "
            "counter's file saw, in mJ. The real worker with the simulated engine on virtual time: clean, through "
            "eleven faults, and as programs that are wrong on purpose; and real processes ended by SIGKILL.",
        )
    return 0 if values["passes"] else 1


if __name__ == "__main__":
    sys.exit(main())
