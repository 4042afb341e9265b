"""Where data was placed, in many small random worlds: classes, zones, workers that fail or move, reloads.

Called by people (``python benchmarks/residency.py``) and, in short, by ``tests/simulation``. The production core,
virtual time; nothing is sent anywhere.

The judge keeps its own map of which worker is in which zone and of what the operator said last, and knows the rule of
design §8 in one line. It looks at every Dispatch (first tries, retries, and what goes on after a preemption), and at
every newcomer: it is refused with ``data_residency_mismatch`` exactly where no known zone may ever hold it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record
from scheduler.core.actions import Abort, Action, Dispatch, Reject, Settle
from scheduler.core.cluster import WorkerView
from scheduler.core.request import Band, DataClass, Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from workers.types import Outcome, Progress, UsageRecord, WorkerState

NUM_CASES = 100_000
ZONES = ("vault", "hall", "yard", "attic")
MODELS = ("m", "n")
MISMATCH = "data_residency_mismatch"
ZoneClasses = dict[str, DataClass]


class World:
    """One core, its workers, and the judge."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._classes = self._drawn_classes()
        self._zone_of: dict[str, str] = {}
        self._models_of: dict[str, tuple[str, ...]] = {}
        self._seen: dict[str, set[str]] = {model: set() for model in MODELS}
        self._asked: dict[str, Request] = {}
        self._running: dict[str, str] = {}
        """Attempts that are not settled: on which worker."""
        self._preempted: set[str] = set()
        self._now_s = 0.0
        self._core = Scheduler(models=MODELS, rules=self._rules())
        for number in range(self._chance.randint(1, 5)):
            self._arrives(f"w{number}")

    def run(self) -> Counter[str]:
        """Some steps of anything; what was counted."""
        moves = (self._submit, self._submit, self._submit, self._fail, self._end, self._lose, self._come, self._reload)
        for _ in range(self._chance.randint(6, 14)):
            self._now_s += self._chance.random()
            self._chance.choice(moves)()
        for worker_id in list(self._zone_of):  # whoever still waits is tried where there is room now
            self._arrives(worker_id)
        self._heard(self._core.tick(self._now_s))
        return self.counts

    # -- what happens

    def _submit(self) -> None:
        chance, name = self._chance, f"r{len(self._asked)}"
        zones = frozenset(chance.sample(ZONES, chance.randint(0, 3))) if chance.random() < 0.4 else None
        asked = Request(
            request_id=name,
            tenant=chance.choice("ab"),
            model=chance.choice(MODELS),
            band=chance.choice(tuple(Band)),
            prompt_tokens_bound=100,
            max_output_tokens=50,
            arrival_s=self._now_s,
            data_class=chance.choice(tuple(DataClass)),
            zones=zones,
        )
        self._asked[name] = asked
        actions = self._core.submit(asked, self._now_s)
        is_refused = any(isinstance(each, Reject) and each.rejection.reason == MISMATCH for each in actions)
        self.counts["submitted"] += 1
        self.counts["refused"] += is_refused
        known = self._seen[asked.model]
        self.counts["wrongly refused"] += is_refused and any(self._may(asked, zone) for zone in known)
        self.counts["not refused"] += bool(known) and not is_refused and not any(self._may(asked, z) for z in known)
        self._heard(actions)

    def _fail(self) -> None:
        """The worker is to blame, before any byte: it is tried again."""
        for attempt_id in self._some_attempt():
            self._heard(self._core.on_ended(attempt_id, Outcome.FAILED, "worker_failed", self._now_s))
            self._finish(attempt_id, Outcome.FAILED, "worker_failed")

    def _end(self) -> None:
        for attempt_id in self._some_attempt():
            self._core.on_progress([Progress(attempt_id, 10, 0, 10, 1)], self._now_s)
            self._finish(attempt_id, Outcome.COMPLETED, "")

    def _lose(self) -> None:
        """With everything that runs there."""
        if self._zone_of:
            worker_id = self._chance.choice(sorted(self._zone_of))
            del self._zone_of[worker_id]
            self._running = {each: where for each, where in self._running.items() if where != worker_id}
            self.counts["workers lost"] += 1
            self._heard(self._core.on_worker_lost(worker_id, "died", self._now_s))

    def _come(self) -> None:
        """A new worker, or one that was there, perhaps in another zone and with another model."""
        self._arrives(f"w{self._chance.randrange(6)}")

    def _reload(self) -> None:
        """What runs goes on where it is; whoever waits is judged by the new rules."""
        self._classes = self._drawn_classes()
        self._heard(self._core.reload(self._rules(), self._now_s))

    # -- the judge

    def _may(self, asked: Request, zone: str) -> bool:
        holds = self._classes.get(zone, DataClass.GENERAL)
        return holds >= asked.data_class and (asked.zones is None or zone in asked.zones)

    def _heard(self, actions: Iterable[Action]) -> None:
        for action in list(actions):
            match action:
                case Dispatch(request_id=request_id, attempt_id=attempt_id, worker_id=worker_id):
                    self._running[attempt_id] = worker_id
                    is_first = attempt_id.endswith("-1")
                    how = (
                        "first tries"
                        if is_first
                        else "after preemption"
                        if request_id in self._preempted
                        else "retries"
                    )
                    self.counts[how] += 1
                    asked = self._asked[request_id]
                    is_there = worker_id in self._zone_of and asked.model in self._models_of[worker_id]
                    if not is_there or not self._may(asked, self._zone_of[worker_id]):
                        self.counts[f"outside: {how}"] += 1
                        self.counts["outside"] += 1
                case Abort(attempt_id=attempt_id, reason="preempted"):
                    self._preempted.add(attempt_id.rpartition("-")[0])
                    self.counts["preemptions"] += 1
                    self._finish(attempt_id, Outcome.ABORTED, "preempted")
                case Settle(attempt_id=attempt_id):
                    self._running.pop(attempt_id, None)
                case _:
                    pass

    # -- inside

    def _drawn_classes(self) -> ZoneClasses:
        """Some zones have no name here: they hold general data."""
        named = self._chance.sample(ZONES, self._chance.randint(0, len(ZONES)))
        return {zone: self._chance.choice(tuple(DataClass)) for zone in named}

    def _rules(self) -> Rules:
        return Rules(zones=self._classes, reserve_ratio=0.0)

    def _arrives(self, worker_id: str) -> None:
        chance = self._chance
        if worker_id in self._zone_of and chance.random() < 0.5:
            zone, models = self._zone_of[worker_id], self._models_of[worker_id]
        else:
            zone, models = chance.choice(ZONES), chance.choice((("m",), ("n",), MODELS))
        self._zone_of[worker_id], self._models_of[worker_id] = zone, models
        for model in models:
            self._seen[model].add(zone)
        view = WorkerView(
            worker_id=worker_id,
            state=WorkerState.READY,
            models=models,
            zone=zone,
            kv_tokens=10_000,
            max_sequences=8,
            max_running=chance.randint(1, 3),
        )
        self._heard(self._core.on_worker_report(view, self._now_s))

    def _some_attempt(self) -> list[str]:
        running = sorted(self._running)
        return [self._chance.choice(running)] if running else []

    def _finish(self, attempt_id: str, outcome: Outcome, cause: str) -> None:
        usage = UsageRecord(attempt_id=attempt_id, outcome=outcome, cause=cause, input_tokens=10, output_tokens=1)
        self._running.pop(attempt_id, None)
        self._heard(self._core.on_finished(usage, self._now_s))


def run(num_cases: int, *, first_seed: int = 0, progress_every: int = 0) -> tuple[Counter[str], list[int]]:
    """All counts together, and the seeds of cases with data outside or a wrong answer to a newcomer."""
    total: Counter[str] = Counter()
    bad: list[int] = []
    for seed in range(first_seed, first_seed + num_cases):
        counts = World(seed).run()
        total += counts
        if counts["outside"] or counts["wrongly refused"] or counts["not refused"]:
            bad.append(seed)
        if progress_every and (seed + 1) % progress_every == 0:
            print(f"{seed + 1} of {num_cases} cases, {len(bad)} bad", flush=True)
    return total, bad


def main() -> int:
    """Run, record, and fail where anything was placed outside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=NUM_CASES)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--name", default="residency")
    arguments = parser.parse_args()
    began_s = time.perf_counter()
    counts, bad = run(arguments.cases, first_seed=arguments.first_seed, progress_every=10_000)
    names = ("outside", "wrongly refused", "not refused", "first tries", "retries", "after preemption", "refused")
    values = {name.replace(" ", "_"): counts[name] for name in (*names, "submitted", "preemptions", "workers lost")}
    path = record(
        arguments.name,
        {"pass": not bad, "cases": arguments.cases, **values, "bad_seeds": bad[:20],
         "seconds": round(time.perf_counter() - began_s, 1)},
        what="simulated: the production core in random worlds of zones, classes, workers that fail and come back "
        "elsewhere, preemptions and reloads; every dispatch and every newcomer judged by a rule of the benchmark's own",
    )  # fmt: skip
    print(path.relative_to(ROOT), "pass" if not bad else f"BAD: seeds {bad[:20]}")
    return 0 if not bad else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
