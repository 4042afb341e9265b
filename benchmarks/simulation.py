"""The core under simulated faults, seed after seed: how many requests, how they ended, how often a promise was broken.

Called by ``tests/soak/test_simulation.py`` and from the command line. It must never decide what a breach is: that is
``scheduler.simulation.checker``'s.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import Any

from benchmarks.record import record
from scheduler.core.actions import Abort, Dispatch, Finish, Reject
from scheduler.simulation.checker import check
from scheduler.simulation.draws import draw_scenario
from scheduler.simulation.driver import simulate
from scheduler.simulation.trace import ClockJumped, Configured, Decided, Event, Restarted, Submitted

NUM_REQUESTS = 500
"""Of each seed; twice as many where shares are pressed on."""
FIRST_SEED = 100_000
"""Far from those of the tests."""
NUM_SEEDS_AT_ONCE = 4
MAX_BREACHES = 20


def count(trace: Iterable[Event]) -> Counter[str]:
    """What happened, and how requests ended."""
    counts: Counter[str] = Counter()
    for event in trace:
        match event:
            case Submitted():
                counts["requests"] += 1
            case Decided(action=Dispatch()):
                counts["attempts"] += 1
            case Decided(action=Reject(rejection=rejection)):
                counts[f"refused: {rejection.reason}"] += 1
            case Decided(action=Finish(outcome=outcome, cause=cause)):
                counts[f"{outcome.value}: {cause}" if cause else outcome.value] += 1
            case Decided(action=Abort(reason=reason)):
                counts[f"ordered to end: {reason}"] += 1
            case Restarted():
                counts["restarts"] += 1
            case ClockJumped():
                counts["clock jumps"] += 1
            case Configured():
                counts["configurations"] += 1
            case _:
                pass
    return counts


def run_seeds(first_seed: int, num_seeds: int, num_requests: int) -> tuple[Counter[str], list[str]]:
    """Counts, and a line for each breach."""
    counts: Counter[str] = Counter()
    breaches = []
    for seed in range(first_seed, first_seed + num_seeds):
        trace = simulate(draw_scenario(seed, num_requests=num_requests))
        counts += count(trace)
        counts["seeds"] += 1
        breaches += [f"seed {seed}: {breach}" for breach in check(trace)]
    return counts, breaches


def run(*, num_requests: int, first_seed: int = FIRST_SEED, num_processes: int | None = None) -> dict[str, Any]:
    """Seeds from ``first_seed`` on until so many requests were submitted, on every core."""
    started_s = time.monotonic()
    counts: Counter[str] = Counter()
    breaches: list[str] = []
    context = multiprocessing.get_context("spawn")
    num_processes = num_processes or os.cpu_count() or 1
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        seed = first_seed
        running: set[Future[tuple[Counter[str], list[str]]]] = set()
        while counts["requests"] < num_requests or running:
            while counts["requests"] < num_requests and len(running) < 2 * num_processes:
                running.add(pool.submit(run_seeds, seed, NUM_SEEDS_AT_ONCE, NUM_REQUESTS))
                seed += NUM_SEEDS_AT_ONCE
            done = next(as_completed(running))
            running.remove(done)
            more, found = done.result()
            counts += more
            breaches += found
    return {
        "first_seed": first_seed,
        "requests_per_seed": NUM_REQUESTS,
        "num_processes": num_processes,
        "wall_s": round(time.monotonic() - started_s, 1),
        "counts": dict(sorted(counts.items())),
        "num_breaches": len(breaches),
        "breaches": breaches[:MAX_BREACHES],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/simulation.json")
    options = parser.parse_args(argv)
    values = run(num_requests=options.requests, first_seed=options.first_seed, num_processes=options.processes)
    if options.record:
        record("simulation", values, what="the production core under simulated faults, checked from its traces")
    print(*values["breaches"], sep="\n")
    print(f"{values['counts']['requests']} requests, {values['num_breaches']} breaches, {values['wall_s']} s")
    return 1 if values["num_breaches"] else 0


if __name__ == "__main__":
    sys.exit(main())
