"""A control plane on real Ray and simulated engines, in this process: dispatcher, core, fleet, accounts.

Used by the tests of this folder (``from tests.cluster.plane import plane``). What it books is kept, so that a test can
hold every window against the counter's file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scheduler.accounting.settlement import Settlement
from scheduler.core.admission import Limits
from scheduler.core.request import Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.dispatcher import Body, Dispatcher, End, Head, Stream, Submission
from scheduler.fleet import Fleet
from workers.guardian import MARKER
from workers.ray_worker import RayCluster
from workers.types import MeterSpec, WindowRecord, WorkerSpec

MODEL = "simulated"
STEP_S = 0.01


def spec_of(worker_id: str, *, counter_path: str | None = None, **values: Any) -> WorkerSpec:
    """A simulated worker that is ready at once and closes two windows a second."""
    engine_args = {"fixed_step_s": STEP_S, "refresh_s": 0.02, **values.pop("engine_args", {})}
    fields = {"window_s": 0.5, "calibration_s": 0.0, "num_cpus": 0.1, **values}
    return WorkerSpec(
        worker_id=worker_id,
        engine="simulated",
        model=MODEL,
        engine_args=engine_args,
        meter=MeterSpec(kind="simulated", counter_path=counter_path),
        **fields,
    )


class KeptSettlement(Settlement):
    """Keeps every window that was booked, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[tuple[str, WindowRecord]] = []

    def window(self, worker_id: str, record: WindowRecord, *, number: int = 0) -> None:
        super().window(worker_id, record, number=number)
        self.windows.append((worker_id, record))


@dataclass(slots=True, kw_only=True)
class Answer:
    """What a client would have got."""

    heads: list[Head] = field(default_factory=list)
    data: bytes = b""
    end: End | None = None
    first_byte_s: float | None = None

    @property
    def usage(self) -> dict[str, int]:
        """The usage that the engine sent as the last chunk of the stream."""
        events = [line[6:] for line in self.data.split(b"\n") if line.startswith(b"data: {")]
        found: dict[str, int] = next(usage for event in reversed(events) if (usage := json.loads(event).get("usage")))
        return found


class Plane:
    """Submit, look, kill."""

    def __init__(self, cluster: RayCluster, groups: list[list[WorkerSpec]], *, rules: Rules | None = None) -> None:
        self.settlement = KeptSettlement()
        self.core = Scheduler(models=[MODEL], limits=Limits(final_timeout_s=10.0), rules=rules)
        self.dispatcher = Dispatcher(
            scheduler=self.core,
            settlement=self.settlement,
            on_worker_down=lambda worker_id, cause: self.fleet.on_worker_down(worker_id, cause),
        )
        self.fleet = Fleet(
            groups,
            cluster=cluster,
            links=self.dispatcher,
            last_counter_mj=self.settlement.durable_counter_mj,
            counter_id=lambda worker_id: None,
            clock=time.monotonic,
            restart_delays_s=(0.2,),
        )
        self._num_requests = 0

    def submit(self, *, tenant: str = "t", prompt: str = "hello there", max_tokens: int = 20, n: int = 1) -> Stream:
        self._num_requests += 1
        request_id = f"req-{self._num_requests:026d}"

        def render(max_output_tokens: int, priority: int) -> bytes:
            body = {
                "model": MODEL,
                "prompt": prompt,
                "max_tokens": max_output_tokens,
                "ignore_eos": True,
                "n": n,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            return json.dumps(body).encode()

        request = Request(
            request_id=request_id,
            tenant=tenant,
            model=MODEL,
            prompt_tokens_bound=len(prompt),
            max_output_tokens=max_tokens,
            num_sequences=n,
            arrival_s=time.monotonic(),
        )
        return self.dispatcher.submit(Submission(request=request, path="/v1/completions", render=render))

    async def until(self, is_true: Callable[[], object], *, timeout_s: float = 20.0) -> None:
        until_s = time.monotonic() + timeout_s
        while not is_true():
            assert time.monotonic() < until_s, self.dispatcher.snapshot()
            await asyncio.sleep(0.02)

    def is_ready(self, num_workers: int) -> bool:
        return sum(worker.is_ready for worker in self.dispatcher.snapshot().workers) == num_workers

    async def settled(self) -> None:
        """Every attempt is charged and posted, nothing is in flight, no credit is owned."""
        await self.until(lambda: not self.settlement.num_open and not self.core.num_running and not self.core.num_open)
        snapshot = self.dispatcher.snapshot()
        assert (0, 0, 0) == (
            snapshot.balance.difference_mj,
            snapshot.balance.in_flight_mj,
            snapshot.balance.in_flight_gpu_us,
        )
        for worker in snapshot.workers:
            assert not any((worker.num_attempts, worker.credit.sequences, worker.credit.kv_tokens)), worker
        assert 0 == snapshot.bad_windows

    def pid_of(self, worker_id: str) -> int:
        """The process of a worker that was started by this plane's Ray."""
        (pid,) = [pid for pid, name in host_pids().items() if f"-{worker_id}." in name]
        return pid


async def answer_of(stream: Stream, *, timeout_s: float = 30.0) -> Answer:
    """Reads to the end."""
    answer = Answer()
    async with asyncio.timeout(timeout_s):
        while True:
            match await stream.next():
                case Head() as head:
                    answer.heads.append(head)
                case Body(data=data):
                    answer.first_byte_s = answer.first_byte_s or time.monotonic()
                    answer.data += data
                case End() as end:
                    answer.end = end
                    return answer


def environment_of(pid: int) -> Mapping[str, str]:
    """What a process was started with; empty where it is gone."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = file.read().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def host_pids(*, temp_dir: str | None = None) -> dict[int, str]:
    """Processes of workers that the Ray in ``temp_dir`` runs (this test session's by default), with their names."""
    temp_dir = temp_dir or os.environ["RAY_TMPDIR"]
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            environment = environment_of(int(entry))
            if environment.get("RAY_TMPDIR", "").startswith(temp_dir) and MARKER in environment:
                found[int(entry)] = environment[MARKER]
    return found


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def plane(
    cluster: RayCluster, groups: list[list[WorkerSpec]], *, rules: Rules | None = None
) -> AsyncIterator[Plane]:
    """Everything started and ready; on the way out every worker is stopped and its last record booked."""
    made = Plane(cluster, groups, rules=rules)
    await made.dispatcher.start()
    try:
        await made.fleet.start(adopt=False)
        await made.until(lambda: made.is_ready(sum(map(len, groups))))
        yield made
    finally:
        await made.fleet.stop()
        await made.dispatcher.stop(stop_workers=True)
