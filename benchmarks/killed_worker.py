"""A real worker in a process of its own, to be killed: serves its own load, writes its records to standard output.

Called by ``benchmarks.conservation`` (``python -m benchmarks.killed_worker COUNTER_FILE``), which reads the counter's
file from outside. It must never hand over anything but outbox records, one a line. Simulated engine, real clock.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys

import msgspec

from workers.build import build_worker
from workers.types import Abort, Call, MeterSpec, WorkerSpec
from workers.worker import Worker

WINDOW_S = 0.5


def spec_of(path: str, *, seed: int, last_counter_mj: int | None) -> WorkerSpec:
    """A small engine whose counter lives in ``path``."""
    return WorkerSpec(
        worker_id="w0",
        engine="simulated",
        model="m",
        engine_args={"max_sequences": 32},
        meter=MeterSpec(kind="simulated", counter_path=path),
        window_s=WINDOW_S,
        calibration_s=1.0,
        seed=seed,
        last_counter_mj=last_counter_mj,
    )


async def _write(worker: Worker) -> None:
    """Every record as it leaves the stream; what was not written when the process dies is lost."""
    async for report in worker.reports(1):
        for numbered in report.records:
            sys.stdout.write(base64.b64encode(msgspec.msgpack.encode(numbered)).decode() + "\n")
        if report.records:
            sys.stdout.flush()


async def _load(worker: Worker, rng: random.Random) -> None:
    number = 0
    while True:
        await asyncio.sleep(rng.expovariate(12.0))
        name = f"req{rng.getrandbits(48):x}-1"
        number += 1
        prompt = "x" * int(min(rng.lognormvariate(6.5, 1.0), 8_000))
        body = {"model": "m", "prompt": prompt, "max_tokens": rng.randint(2, 200), "ignore_eos": True}
        worker.command(1, [Call(attempt_id=name, path="/v1/completions", body=json.dumps(body).encode())])
        if number % 20 == 0:
            worker.command(1, [Abort(attempt_id=name, reason="client_gone")])


async def _live(given: argparse.Namespace) -> None:
    worker = build_worker(spec_of(given.path, seed=given.seed, last_counter_mj=given.last_counter_mj))
    writer = asyncio.create_task(_write(worker))
    await worker.start()
    load = asyncio.create_task(_load(worker, random.Random(given.seed)))
    await asyncio.to_thread(sys.stdin.read)  # its end is the order to stop
    load.cancel()
    await worker.stop(drain_s=1.0)
    await asyncio.sleep(1.5)  # the last records leave
    writer.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--last-counter-mj", type=int, default=None)
    asyncio.run(_live(parser.parse_args()))
