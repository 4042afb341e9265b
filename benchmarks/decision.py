"""How long the core takes to decide: at 100 and 1,000 workers with work running on each and 10,000 requests queued.

Called by people (``python benchmarks/decision.py``) and, in short, by ``tests/simulation``. One process, virtual time;
nothing is sent anywhere. Every term is on: budgets of 200 tenants and their keys, data classes and zones, prefixes that
tenants' prompts share, slack of all that decodes, prices of GPU-seconds.

A *decision* is what a request costs that is placed at once: ``submit`` from admission to the Dispatch, all workers
looked at, each filter and term kept for explain. Beside it: the next of a full queue, placing alone, queueing, trueing
up credit, ending, and the tick.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record
from scheduler.core.actions import Dispatch
from scheduler.core.admission import Limits
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.cluster import WorkerView
from scheduler.core.data_policy import DataPolicy
from scheduler.core.placement import place
from scheduler.core.prefixes import Prefixes
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Band, DataClass, Rates, Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.core.score import PlacementRules, Work
from workers.step_curves import StepCurves
from workers.types import Outcome, Progress, UsageRecord, WorkerState

BOUNDS_MS = {100: 0.15, 1_000: 0.5}
P99_RATIO = 3
FLAT_RATIO = 1.25
"""The next of a full queue at 10,000 waiting, over that at 500: what a loop over the queue could not keep."""
RUNNING_PER_WORKER = 64
NUM_QUEUED = 10_000
NUM_DECISIONS = 2_000
NUM_TENANTS = 200
NUM_BLOCKS = 16
"""Of each prompt, of which a tenant's prompts share the first few."""
CURVES = StepCurves(time_s=(0.0067, 3.25e-5, 8.95e-5, 1e-9), energy_joules=(3.2, 0.02, 0.07, 2e-5), idle_watts=119.0)
ROOMY, QUEUED = "roomy", "queued"
"""Two models: one that every worker serves, and one whose queue stands because no worker does."""

ZONES = {"vault": DataClass.CORE, "hall": DataClass.IMPORTANT, "yard": DataClass.GENERAL}
RATES = Rates(input_nano=200_000_000, cached_nano=20_000_000, output_nano=600_000_000)


def view(index: int, *, max_running: int = 2 * RUNNING_PER_WORKER) -> WorkerView:
    return WorkerView(
        worker_id=f"w-{index:04}",
        state=WorkerState.READY,
        models=(ROOMY,),
        zone=tuple(ZONES)[index % len(ZONES)],
        kv_tokens=412_000,
        max_sequences=2 * RUNNING_PER_WORKER,
        max_running=max_running,
        curves=CURVES,
    )


def rules() -> Rules:
    """Budgets that are never reached, at two levels of each tenant."""
    hour, month = Window.parse("1h"), Window.parse("calendar month")
    budgets = (
        Budget(Measure.TOKENS, 10**15, hour),
        Budget(Measure.MONEY_NANO, 10**18, month),
        Budget(Measure.ENERGY_MJ, 10**15, hour),
        Budget(Measure.CONCURRENCY, 10**9),
    )
    levels = [Level(kind, f"{kind}-{number}") for kind in ("tenant", "key") for number in range(NUM_TENANTS)]
    prices = {zone: 1e6 * (1 + index) for index, zone in enumerate(ZONES)}
    return Rules(budgets=dict.fromkeys(levels, budgets), zones=ZONES, placement=PlacementRules(gpu_nano_per_s=prices))


def request(number: int, model: str, now_s: float) -> Request:
    """One of 200 tenants', of any band and class; its prompt begins as others of its tenant do."""
    tenant = number % NUM_TENANTS
    shared = tuple(range(1_000 * tenant, 1_000 * tenant + number % NUM_BLOCKS))
    return Request(
        request_id=f"req-{number}",
        tenant=f"tenant-{tenant}",
        key_id=f"key-{tenant}",
        model=model,
        band=number % len(Band),
        prompt_tokens_bound=400 + number % 300,
        max_output_tokens=256,
        arrival_s=now_s,
        arrival_unix_s=1.8e9 + now_s,
        body_bytes=1_000,
        data_class=DataClass(number % 2),
        rates=RATES,
        prefix_blocks=(*shared, *(10**9 + NUM_BLOCKS * number + block for block in range(NUM_BLOCKS - len(shared)))),
    )


def core_of(num_workers: int, *, max_running: int = 2 * RUNNING_PER_WORKER) -> Scheduler:
    limits = Limits(
        queue=QueueLimits(max_requests=2 * NUM_QUEUED, max_total_requests=2 * NUM_QUEUED),
        max_wait_s=1e9,
        lost_s=1e9,
        silent_s=1e9,
    )
    core = Scheduler(models=(ROOMY, QUEUED), limits=limits, rules=rules())
    for index in range(num_workers):
        core.on_worker_report(view(index, max_running=max_running), 0.0)
    return core


class Bench:
    """A core in the state to be measured; every call moves its virtual clock on."""

    def __init__(self, num_workers: int, *, num_queued: int = NUM_QUEUED) -> None:
        self.core = core_of(num_workers)
        self.num_workers = num_workers
        self._number = 0
        self._now_s = 0.0
        self.running: list[str] = []
        while len(self.running) < num_workers * RUNNING_PER_WORKER:
            # Their prompts are computed before more come, as on workers that keep up.
            batch = [self.dispatch() for _ in range(min(num_workers, 8 * RUNNING_PER_WORKER))]
            self.report(batch, first=len(self.running))
            self.running += batch
        for _ in range(num_queued):
            self.core.submit(self.request(QUEUED), self.now_s())
        assert len(self.core.queue) == num_queued

    def now_s(self) -> float:
        self._now_s += 1e-6
        return self._now_s

    def request(self, model: str) -> Request:
        self._number += 1
        return request(self._number, model, self._now_s)

    def dispatch(self) -> str:
        """Places one request; the attempt's id."""
        (action,) = self.core.submit(self.request(ROOMY), self.now_s())
        assert isinstance(action, Dispatch), action
        return action.attempt_id

    def report(self, attempt_ids: list[str], *, first: int = 0) -> None:
        """Their prompts are computed and they decode."""
        self.core.on_progress(
            [Progress(each, 120, 0, 120, 1 + (first + index) % 200) for index, each in enumerate(attempt_ids)],
            self.now_s(),
        )

    def finish(self, attempt_id: str) -> None:
        """Settles one attempt."""
        usage = UsageRecord(attempt_id=attempt_id, outcome=Outcome.COMPLETED, input_tokens=120, output_tokens=200)
        self.core.on_finished(usage, self.now_s())


class Crowd:
    """Every worker full, and the whole queue waiting for the same model."""

    def __init__(self, num_workers: int, num_queued: int) -> None:
        self.core = core_of(num_workers, max_running=4)
        self.running: list[str] = []
        number = 0
        while len(self.core.queue) < num_queued:
            number += 1
            self._hear(self.core.submit(request(number, ROOMY, 0.0), 0.0))
            if len(self.core.queue) < 2 and self.running:
                self.core.on_progress([Progress(each, 120, 0, 120, 1) for each in self.running[-8:]], 0.0)

    def _hear(self, actions: list[Any]) -> None:
        self.running += [action.attempt_id for action in actions if isinstance(action, Dispatch)]

    def end_and_next(self) -> None:
        """One attempt is settled, and whoever is next takes its place."""
        usage = UsageRecord(
            attempt_id=self.running.pop(0), outcome=Outcome.COMPLETED, input_tokens=120, output_tokens=200
        )
        self._hear(self.core.on_finished(usage, 0.0))


Span = tuple[float, float]
"""Milliseconds of one call: on the wall, and of this thread's own CPU time (without its neighbours' slices)."""


def spans_ms(calls: Iterator[Callable[[], object]]) -> list[Span]:
    """How long each call took."""
    spans = []
    for call in calls:
        before_s, before_cpu_s = time.perf_counter(), time.thread_time()
        call()
        cpu_s, wall_s = time.thread_time() - before_cpu_s, time.perf_counter() - before_s
        spans.append((wall_s * 1000, cpu_s * 1000))
    return spans


def figures(spans: list[Span]) -> dict[str, float]:
    """Median and tail."""
    wall, cpu = (sorted(column) for column in zip(*spans, strict=True))
    return {
        "p50_ms": round(statistics.median(wall), 4),
        "p99_ms": round(wall[int(len(wall) * 0.99)], 4),
        "p50_cpu_ms": round(statistics.median(cpu), 4),
        "p99_cpu_ms": round(cpu[int(len(cpu) * 0.99)], 4),
        "calls": len(wall),
    }


def measure_crowd(num_workers: int, num_queued: int, *, num_calls: int) -> dict[str, float]:
    """An end and the next of a full queue."""
    crowd = Crowd(num_workers, num_queued)
    return figures(spans_ms(crowd.end_and_next for _ in range(num_calls)))


def measure_decisions(bench: Bench, num_decisions: int) -> tuple[dict[str, float], dict[str, float]]:
    """Decisions and endings in turn: every placed request ends again, so that the state stays what it was."""
    decisions: list[Span] = []
    endings: list[Span] = []
    placed: list[str] = []
    for _ in range(num_decisions):
        decisions += spans_ms(iter([lambda: placed.append(bench.dispatch())]))
        bench.report(placed)
        endings += spans_ms(iter([lambda: bench.finish(placed.pop())]))
    return figures(decisions), figures(endings)


def place_alone(bench: Bench) -> Callable[[], object]:
    """Filters and score over the same workers, without prefixes, admission or claim."""
    cluster, policy, prefixes = bench.core.cluster, DataPolicy(ZONES), Prefixes()
    asked, work = bench.request(ROOMY), Work(prompt_tokens=120, output_tokens=200)
    return lambda: place(cluster, asked, work, policy=policy, prefixes=prefixes, now_s=bench.now_s())


def measure(
    num_workers: int, *, num_decisions: int = NUM_DECISIONS, queues: tuple[int, ...] = (500, NUM_QUEUED)
) -> dict[str, Any]:
    """All figures at one size."""
    bench = Bench(num_workers)
    core = bench.core
    decision, ending = measure_decisions(bench, num_decisions)
    reports = [
        [Progress(each, 120, 0, 120, 220) for each in bench.running[start : start + 64]]
        for start in range(0, min(len(bench.running), 64 * 100), 64)
    ]
    alone = place_alone(bench)
    waiting = [bench.request(QUEUED) for _ in range(500)]
    return {
        "workers": num_workers,
        "running_attempts": len(bench.running),
        "queued": NUM_QUEUED,
        "tenants": NUM_TENANTS,
        "decision": decision,
        "place_alone": figures(spans_ms(alone for _ in range(num_decisions))),
        "on_finished": ending,
        "on_progress_of_64": figures(spans_ms(partial(core.on_progress, report, bench.now_s()) for report in reports)),
        "queue_one_more": figures(spans_ms(partial(core.submit, request, bench.now_s()) for request in waiting)),
        "tick": figures(spans_ms(lambda: core.tick(bench.now_s()) for _ in range(200))),
        "end_and_next_of_a_full_queue": {
            f"{num_queued}_waiting": measure_crowd(num_workers, num_queued, num_calls=min(num_decisions, 400))
            for num_queued in queues
        },
        "bound_p50_ms": BOUNDS_MS[num_workers],
        "bound_p99_ms": P99_RATIO * BOUNDS_MS[num_workers],
    }


def verdict(size: dict[str, Any]) -> dict[str, bool]:
    """Each bound on its own."""
    decision = size["decision"]
    crowds = [row["p50_cpu_ms"] for row in size["end_and_next_of_a_full_queue"].values()]
    return {
        "p50": decision["p50_ms"] <= size["bound_p50_ms"],
        "p99": decision["p99_ms"] <= size["bound_p99_ms"],
        "flat_in_the_queue": crowds[-1] <= FLAT_RATIO * crowds[0],
    }


def main() -> int:
    """Measure, record, and fail when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="decision")
    parser.add_argument("--workers", type=int, nargs="+", choices=BOUNDS_MS, default=list(BOUNDS_MS))
    arguments = parser.parse_args()
    sizes = [measure(num_workers) for num_workers in arguments.workers]
    for size in sizes:
        size["pass"] = verdict(size)
        print(size)
    passes = all(all(size["pass"].values()) for size in sizes)
    path = record(
        arguments.name,
        {"pass": passes, "sizes": sizes},
        what=f"the production core, one process, every term on: submit to Dispatch with {RUNNING_PER_WORKER} attempts "
        f"running on each worker, {NUM_QUEUED:,} requests queued, {NUM_TENANTS} tenants with budgets",
    )
    print(path.relative_to(ROOT), "pass" if passes else "MISSED")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
