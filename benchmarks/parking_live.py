"""Two real vLLM engines on Ray are parked and woken in turn, and at last together, while requests flow: none may fail.

``python -m benchmarks.parking_live --cycles 3`` gives the orders itself, by the clock: what is measured is how they are
carried out, never the policy. Engines are vLLM's CPU build with SmolLM2-135M; their meter is modelled (grade D). Writes
``benchmarks/results/parking_live.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import msgspec

from benchmarks.record import record
from benchmarks.worker_run import MODEL, demo_spec
from scheduler.accounting.settlement import Settlement
from scheduler.core.actions import Action, Park, Wake
from scheduler.core.admission import Limits
from scheduler.core.request import Request
from scheduler.core.scheduler import Scheduler
from scheduler.dispatcher import Dispatcher
from scheduler.fleet import Fleet
from scheduler.streams import End, Submission
from workers.ray_worker import RayCluster
from workers.step_curves import PowerStates
from workers.types import Outcome, WorkerState, WorkerStatus

WORKERS = ("vllm-0", "vllm-1")
GAP_S = 2.0
"""Between two requests."""
REST_S = 5.0
"""How long an engine stays parked at least."""
OUTPUT_TOKENS = 12
START_TIMEOUT_S = 900.0
"""Two engines that start at a time on two busy cores."""


class OrderedScheduler(Scheduler):
    """The core, with this benchmark's orders to park and to wake, and none of its own."""

    def __init__(self) -> None:
        super().__init__(models=[MODEL], limits=Limits(max_wait_s=START_TIMEOUT_S))
        self.orders: list[Action] = []
        self.parking.tick = lambda waiting, placement, now_s: []  # type: ignore[method-assign]

    def tick(self, now_s: float) -> list[Action]:
        orders, self.orders = self.orders, []
        return [*super().tick(now_s), *orders]


@dataclass(slots=True, kw_only=True)
class Cycle:
    """One engine parked and woken: what was known of its start before and after, and what it took as seen from here."""

    worker_id: str
    parked_s: float
    """From the first order until it was heard that the engine is gone."""
    woke_s: float
    """From the order until it was heard that it is ready."""
    known_before: PowerStates
    known_after: PowerStates


@dataclass(slots=True)
class Flow:
    """What became of the requests."""

    outcomes: list[str] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    """Until each was answered."""


class House:
    """Core, dispatcher and fleet over real engines."""

    def __init__(self, cluster: RayCluster) -> None:
        self.core = OrderedScheduler()
        self.settlement = Settlement()
        self.dispatcher = Dispatcher(
            scheduler=self.core,
            settlement=self.settlement,
            on_worker_down=lambda worker_id, cause: self.fleet.on_worker_down(worker_id, cause),
        )
        self.fleet = Fleet(
            [[msgspec.structs.replace(demo_spec(calibration_s=5.0), worker_id=each)] for each in WORKERS],
            cluster=cluster,
            links=self.dispatcher,
            last_counter_mj=self.settlement.durable_counter_mj,
            counter_id=lambda worker_id: None,
            clock=time.monotonic,
        )
        self.flow = Flow()
        self.cycles: list[Cycle] = []

    def status(self, worker_id: str) -> WorkerStatus | None:
        connection = self.dispatcher.connection(worker_id)
        return None if connection is None else connection.status

    def states(self, worker_id: str) -> PowerStates:
        """As it says that they are."""
        status = self.status(worker_id)
        assert status is not None
        assert status.power_states is not None
        return status.power_states

    async def until(self, is_true: Callable[[], object]) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not is_true():
                await asyncio.sleep(0.02)

    async def cycle(self, *worker_ids: str) -> None:
        """Parked as soon as nothing runs there, as by a policy that orders again; all of them are woken together."""
        known = {each: self.states(each) for each in worker_ids}
        parked_s = dict(zip(worker_ids, await asyncio.gather(*map(self._park, worker_ids)), strict=True))
        await asyncio.sleep(REST_S)
        woke_s = dict(zip(worker_ids, await asyncio.gather(*map(self._wake, worker_ids)), strict=True))
        for each in worker_ids:
            self.cycles.append(
                Cycle(
                    worker_id=each,
                    parked_s=parked_s[each],
                    woke_s=woke_s[each],
                    known_before=known[each],
                    known_after=self.states(each),
                )
            )
            print(f"{each}: parked in {parked_s[each]:.1f} s, awake in {woke_s[each]:.1f} s", flush=True)

    async def _park(self, worker_id: str) -> float:
        began_s = time.monotonic()

        def is_parked() -> bool:
            status = self.status(worker_id)
            assert status is not None
            if status.state is WorkerState.READY:
                self.core.orders.append(Park(worker_id=worker_id, reason="benchmark"))
            return status.state is WorkerState.PARKED and status.cause == "benchmark"

        await self.until(is_parked)
        return time.monotonic() - began_s

    async def _wake(self, worker_id: str) -> float:
        began_s = time.monotonic()
        self.core.orders.append(Wake(worker_id=worker_id, reason="benchmark"))
        await self.until(lambda: (status := self.status(worker_id)) and status.state is WorkerState.READY)
        return time.monotonic() - began_s

    async def ask(self, number: int) -> None:
        """One request to its end."""
        began_s = time.monotonic()

        def render(max_output_tokens: int, priority: int) -> bytes:
            prompt = f"Question {number}: the capital of France is"
            fields = {"model": MODEL, "prompt": prompt, "max_tokens": max_output_tokens, "ignore_eos": True}
            return json.dumps(fields).encode()

        request = Request(
            request_id=f"req-{number:026d}",
            tenant="t",
            model=MODEL,
            prompt_tokens_bound=60,
            max_output_tokens=OUTPUT_TOKENS,
            arrival_s=began_s,
        )
        stream = self.dispatcher.submit(Submission(request=request, path="/v1/completions", render=render))
        while not isinstance(item := await stream.next(), End):
            pass
        self.flow.outcomes.append(item.outcome.value if item.outcome is not None else item.cause)
        self.flow.waited_s.append(time.monotonic() - began_s)

    async def load(self, stop: asyncio.Event) -> None:
        """A request every ``GAP_S`` until told; returns when all are answered."""
        asked: list[asyncio.Task[None]] = []
        while not stop.is_set():
            asked.append(asyncio.create_task(self.ask(len(asked))))
            await asyncio.sleep(GAP_S)
        await asyncio.gather(*asked)


async def measure(cluster: RayCluster, num_cycles: int) -> House:
    """Each engine in turn, ``num_cycles`` times in all; then both at once."""
    house, stop = House(cluster), asyncio.Event()
    await house.dispatcher.start()
    try:
        await house.fleet.start(adopt=False)
        await house.until(lambda: all((s := house.status(each)) and s.state is WorkerState.READY for each in WORKERS))
        print("both engines are up", flush=True)
        load = asyncio.create_task(house.load(stop))
        for number in range(num_cycles):
            await house.cycle(WORKERS[number % len(WORKERS)])
        await house.cycle(*WORKERS)
        stop.set()
        await load
        await house.until(lambda: not house.settlement.num_open)
    finally:
        await house.fleet.stop()
        await house.dispatcher.stop(stop_workers=True)
    return house


def figures(house: House) -> dict[str, object]:
    """What is recorded; a start is compared with what its worker knew before it, and knows after it."""
    balance = house.settlement.accounts.balance()
    completed = house.flow.outcomes.count(Outcome.COMPLETED.value)
    cycles: list[dict[str, object]] = []
    for each in house.cycles:
        cycles.append(
            {
                "worker": each.worker_id,
                "parked_s": round(each.parked_s, 2),
                "woke_s": round(each.woke_s, 2),
                "known_before_s": round(each.known_before.start_s, 2),
                "known_before_source": each.known_before.source,
                "error_before_ratio": round(each.known_before.start_s / each.woke_s - 1, 3),
                "known_after_s": round(each.known_after.start_s, 2),
                "error_after_ratio": round(each.known_after.start_s / each.woke_s - 1, 3),
                "start_watts_modelled": round(each.known_after.start_watts, 2),
            }
        )
    return {
        "requests": len(house.flow.outcomes),
        "completed": completed,
        "failed": len(house.flow.outcomes) - completed,
        "bounced": house.core.stats.bounced,
        "retried": house.core.stats.retried,
        "answer_p50_s": round(median(house.flow.waited_s), 2),
        "answer_max_s": round(max(house.flow.waited_s), 2),
        "cycles": cycles,
        "difference_mj": balance.difference_mj,
        "unattributed_mj": balance.unattributed_mj,
        "unattributed_causes_mj": dict(balance.causes),
        "meter_mj": balance.meter_mj,
        "token_difference": balance.token_difference,
        "load_average_1m": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=3, help="of one engine at a time; one of both follows")
    given = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="jw", dir="/tmp")  # short: Ray's sockets lie in it
    os.environ["RAY_TMPDIR"] = folder
    cluster = RayCluster(num_cpus=4)
    try:
        cluster.connect()
        house = asyncio.run(measure(cluster, given.cycles))
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    values = figures(house)
    print(json.dumps(values, indent=2))
    what = "two real vLLM CPU engines parked and woken while requests flow; wake time learned against measured"
    print(record("parking_live", values, what=what))


if __name__ == "__main__":
    main()
