"""How long the core takes to decide: at 100 and 1,000 workers with work running on each and 10,000 requests queued.

Called by people (``python benchmarks/decision.py``) and, in short, by ``tests/simulation``. One process, virtual time;
nothing is sent anywhere. A *decision* is what a request costs that is placed at once: ``submit`` from admission to the
Dispatch, all workers looked at. Beside it: placing alone, queueing, trueing up credit, ending, and the tick.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record
from scheduler.core.actions import Dispatch
from scheduler.core.admission import Limits
from scheduler.core.cluster import WorkerView
from scheduler.core.placement import Work, place
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Band, Request
from scheduler.core.scheduler import Scheduler
from workers.types import Outcome, Progress, StepCurves, UsageRecord, WorkerState

BOUNDS_MS = {100: 0.15, 1_000: 0.5}
RUNNING_PER_WORKER = 64
NUM_QUEUED = 10_000
NUM_DECISIONS = 2_000
CURVES = StepCurves(time_s=(0.0067, 3.25e-5, 8.95e-5, 1e-9), energy_joules=(3.2, 0.02, 0.07, 2e-5), idle_watts=119.0)
ROOMY, QUEUED = "roomy", "queued"
"""Two models: one that every worker serves, and one whose queue stands because no worker does."""


def view(index: int, *, kv_tokens: int = 2_000_000) -> WorkerView:
    return WorkerView(
        worker_id=f"w-{index:04}",
        state=WorkerState.READY,
        models=(ROOMY,),
        kv_tokens=kv_tokens,
        max_sequences=RUNNING_PER_WORKER + 64,
        max_running=RUNNING_PER_WORKER + 64,
        curves=CURVES,
    )


class Bench:
    """A core in the state to be measured; every call moves its virtual clock on."""

    def __init__(self, num_workers: int) -> None:
        limits = Limits(queue=QueueLimits(max_requests=2 * NUM_QUEUED), max_wait_s=1e9, lost_s=1e9, silent_s=1e9)
        self.core = Scheduler(models=(ROOMY, QUEUED), limits=limits)
        self.num_workers = num_workers
        self._number = 0
        self._now_s = 0.0
        for index in range(num_workers):
            self.core.on_worker_report(view(index), self.now_s())
        self.running: list[str] = []
        for _ in range(num_workers * RUNNING_PER_WORKER):
            self.running.append(self.dispatch())
        self.core.on_progress(
            [Progress(attempt_id, 400, 0, 400, 1 + index % 200) for index, attempt_id in enumerate(self.running)],
            self.now_s(),
        )
        for _ in range(NUM_QUEUED):
            self.core.submit(self.request(QUEUED), self.now_s())
        assert len(self.core.queue) == NUM_QUEUED

    def now_s(self) -> float:
        self._now_s += 1e-6
        return self._now_s

    def request(self, model: str) -> Request:
        self._number += 1
        return Request(
            request_id=f"req-{self._number}",
            tenant=f"tenant-{self._number % 200}",
            model=model,
            band=self._number % len(Band),
            prompt_tokens_bound=400 + self._number % 300,
            max_output_tokens=256,
            arrival_s=self._now_s,
            body_bytes=1_000,
        )

    def dispatch(self) -> str:
        """Places one request; the attempt's id."""
        (action,) = self.core.submit(self.request(ROOMY), self.now_s())
        assert isinstance(action, Dispatch), action
        return action.attempt_id

    def finish(self, attempt_id: str) -> None:
        """Settles one attempt."""
        usage = UsageRecord(attempt_id=attempt_id, outcome=Outcome.COMPLETED, input_tokens=400, output_tokens=200)
        self.core.on_finished(usage, self.now_s())


def crowd(num_workers: int) -> tuple[Scheduler, list[str]]:
    """Every worker full, and the whole queue waiting for the same model: the core, and the attempts that run."""
    limits = Limits(queue=QueueLimits(max_requests=2 * NUM_QUEUED), max_wait_s=1e9, lost_s=1e9, silent_s=1e9)
    core = Scheduler(models=(ROOMY,), limits=limits)
    for index in range(num_workers):
        core.on_worker_report(dataclasses.replace(view(index), max_running=4), 0.0)
    running: list[str] = []
    for number in range(4 * num_workers + NUM_QUEUED):
        request = Request(
            request_id=f"req-{number}",
            tenant="tenant",
            model=ROOMY,
            band=number % len(Band),
            prompt_tokens_bound=400,
            max_output_tokens=256,
            arrival_s=0.0,
        )
        running += [action.attempt_id for action in core.submit(request, 0.0) if isinstance(action, Dispatch)]
    assert len(core.queue) == NUM_QUEUED
    return core, running


def end_and_next(core: Scheduler, running: list[str]) -> None:
    """One attempt is settled, and the head of the queue takes its place."""
    usage = UsageRecord(attempt_id=running.pop(0), outcome=Outcome.COMPLETED, input_tokens=400, output_tokens=200)
    (dispatch,) = [action for action in core.on_finished(usage, 0.0) if isinstance(action, Dispatch)]
    running.append(dispatch.attempt_id)


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
        "p99_cpu_ms": round(cpu[int(len(cpu) * 0.99)], 4),
        "calls": len(wall),
    }


def measure(num_workers: int, *, num_decisions: int = NUM_DECISIONS) -> dict[str, object]:
    """All figures at one size."""
    bench = Bench(num_workers)
    core = bench.core
    decisions, endings = [], []
    for _ in range(num_decisions):
        # Every placed request ends again, so that the state stays what it was.
        placed: list[str] = []
        decisions += spans_ms(iter([lambda placed=placed: placed.append(bench.dispatch())]))  # type: ignore[misc]
        endings += spans_ms(iter([lambda placed=placed: bench.finish(placed[0])]))  # type: ignore[misc]
    work = Work(prompt_tokens=500, output_tokens=200)
    reports = [
        [Progress(each, 400, 0, 400, 201) for each in bench.running[start : start + 64]]
        for start in range(0, min(len(bench.running), 64 * 100), 64)
    ]
    waiting = [bench.request(QUEUED) for _ in range(500)]
    crowded, crowded_running = crowd(num_workers)
    return {
        "workers": num_workers,
        "running_attempts": len(bench.running),
        "queued": NUM_QUEUED,
        "decision": figures(decisions),
        "place_alone": figures(spans_ms(lambda: place(core.cluster, ROOMY, work) for _ in range(num_decisions))),
        "on_finished": figures(endings),
        "on_progress_of_64": figures(
            spans_ms(lambda report=report: core.on_progress(report, bench.now_s()) for report in reports)
        ),
        "queue_one_more": figures(
            spans_ms(lambda request=request: core.submit(request, bench.now_s()) for request in waiting)
        ),
        "tick": figures(spans_ms(lambda: core.tick(bench.now_s()) for _ in range(200))),
        "end_and_next_of_a_full_queue": figures(
            spans_ms(lambda: end_and_next(crowded, crowded_running) for _ in range(num_decisions))
        ),
        "tick_of_a_full_queue": figures(spans_ms(lambda: crowded.tick(0.0) for _ in range(200))),
        "bound_p50_ms": BOUNDS_MS[num_workers],
    }


def main() -> int:
    """Measure, record, and fail when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="decision")
    arguments = parser.parse_args()
    sizes = [measure(num_workers) for num_workers in BOUNDS_MS]
    passes = all(size["decision"]["p50_ms"] <= size["bound_p50_ms"] for size in sizes)  # type: ignore[index, operator]
    path = record(
        arguments.name,
        {"pass": passes, "sizes": sizes},
        what=f"the production core in one process: submit to Dispatch with {RUNNING_PER_WORKER} attempts running on "
        f"each worker and {NUM_QUEUED:,} requests queued",
    )
    for size in sizes:
        print(size)
    print(path.relative_to(ROOT))
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
