"""Minutes of load through the whole stack with everything that goes wrong in it; then memory, accounts and processes.

Called by ``tests/soak`` and by people (``python benchmarks/soak.py --duration-s 1800``). Simulated engines behind a
real `jouleway serve` and Ray: plain and streamed requests, clients that hang up, clients that stop reading, and every
so often SIGKILL to a worker's process. It must never look inside the service: HTTP, /proc and signals only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.jouleway_server import ADMIN_KEY, OPERATOR_KEY, Configuration, configuration, serving
from benchmarks.record import ROOT, record
from benchmarks.servers import Server, command_name, tree
from scheduler.commands.http_client import BadAnswer, fetch, open_request

NUM_WORKERS = 3
CLIENTS = 24
SAMPLE_S = 5.0
KILL_EVERY_S = 45.0
SETTLE_S = 60.0
WARMUP_RATIO = 1 / 3
"""Bounded tables (closed attempts, request details) fill up first; memory is judged after that."""
MAX_GROWTH_RATIO = 0.05
"""Growth over the judged span by a least-squares line, relative to the median: more is a leak."""
REQUEST_TIMEOUT_S = 60.0
MODEL = "simulated"


def soak_configuration() -> Configuration:
    """Three simulated engines in three processes; one may die while others serve."""
    worker = {
        "name": "sim",
        "engine": "simulated",
        "model": MODEL,
        "count": NUM_WORKERS,
        "cpus": 0.1,
        "meter": {"kind": "simulated"},
        "calibration_s": 1,
        "engine_args": {"fixed_step_s": 0.004, "output_tokens_mean": 1e9},
    }
    settings = configuration(worker, {MODEL: {"default_output_tokens": 64, "normalizer": "none"}})
    return {**settings, "limits": {"slow_reader_s": 2.0, "request_timeout_s": 60.0}}


@dataclass(slots=True, kw_only=True)
class Soak:
    """What happened so far."""

    server: Server
    admin_url: str
    until_s: float
    chance: random.Random
    ended: Counter[str] = field(default_factory=Counter)
    kills: list[int] = field(default_factory=list)
    pids: set[tuple[int, str]] = field(default_factory=set)
    """Every process of the service that was ever seen, with its start time."""
    rss: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """Seconds and bytes, by process: the control plane, and all workers and Ray together."""


# -- clients


async def client(soak: Soak, index: int) -> None:
    """One request after the other until time is up; each client is of one kind."""
    kinds = ("whole", "stream", "stream", "hang_up", "stream", "whole", "hang_up", "slow")
    kind = kinds[index % len(kinds)]
    chance = random.Random(soak.chance.random())
    while time.monotonic() < soak.until_s:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                soak.ended[await _one(soak, kind, chance)] += 1
        except (OSError, BadAnswer, asyncio.IncompleteReadError, ValueError) as error:
            soak.ended[f"broken:{type(error).__name__}"] += 1
        except TimeoutError:
            soak.ended["timeout"] += 1
        await asyncio.sleep(chance.expovariate(50.0))


async def _one(soak: Soak, kind: str, chance: random.Random) -> str:
    """How it ended, in a word."""
    max_tokens = 4096 if kind == "slow" else chance.randint(4, 24)
    payload = {
        "model": MODEL,
        "prompt": "w" * chance.randint(8, 800),
        "max_tokens": max_tokens,
        "stream": kind != "whole",
        "service_tier": chance.choice(("priority", "default", "flex")),
    }
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
    body = json.dumps(payload).encode()
    async with open_request(f"{soak.server.url}/v1/completions", method="POST", body=body, headers=headers) as opened:
        answer, chunks = opened
        if kind == "hang_up":
            if chance.random() < 0.3:
                return "hung_up_at_once"
            async for _ in chunks:
                return "hung_up_in_stream"
        if kind == "slow":
            async for _ in chunks:
                await asyncio.sleep(4.0)  # twice what one write may block; the socket's buffers are filled meanwhile
                return "slow"
        whole = b"".join([chunk async for chunk in chunks])
    if answer.status != 200:
        return f"status:{answer.status}"
    if kind == "whole":
        return "whole" if json.loads(whole)["usage"]["completion_tokens"] == max_tokens else "short"
    if whole.endswith(b"data: [DONE]\n\n"):
        return "stream"
    return "error_event" if b'"error"' in whole else "cut"


# -- the rest of the world


async def killer(soak: Soak) -> None:
    """SIGKILL to one worker's process every so often, never to two at once."""
    while True:
        await asyncio.sleep(KILL_EVERY_S)
        if time.monotonic() > soak.until_s - KILL_EVERY_S:
            return
        victims = [pid for pid in tree(soak.server.process.pid) if command_name(pid).startswith("ray::WorkerHost")]
        if len(victims) == NUM_WORKERS:
            victim = soak.chance.choice(victims)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                soak.kills.append(victim)


async def sampler(soak: Soak, started_s: float) -> None:
    """Memory of the control plane, and of all other processes of the service together."""
    while True:
        pids = tree(soak.server.process.pid)
        at_s = time.monotonic() - started_s
        for pid in pids:
            if (born := _start_time(pid)) is not None:
                soak.pids.add((pid, born))
        plane = soak.server.process.pid
        soak.rss.setdefault("control_plane", []).append((at_s, rss_bytes(plane)))
        workers = [rss_bytes(pid) for pid in pids if command_name(pid).startswith("ray::WorkerHost")]
        if len(workers) == NUM_WORKERS:
            soak.rss.setdefault("largest_worker", []).append((at_s, max(workers)))
        await asyncio.sleep(SAMPLE_S)


def rss_bytes(pid: int) -> int:
    """Resident memory; 0 when the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _start_time(pid: int) -> str | None:
    """In ticks since boot: with the pid it names a process for ever. None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


# -- judging


def growth(samples: Sequence[tuple[float, int]]) -> dict[str, float]:
    """A least-squares line through the judged samples: bytes a second, and what that adds over the span."""
    times, sizes = [at_s for at_s, _ in samples], [float(size) for _, size in samples]
    fit = statistics.linear_regression(times, sizes)
    span_s = times[-1] - times[0]
    residual = statistics.stdev(
        size - fit.intercept - fit.slope * at_s for at_s, size in zip(times, sizes, strict=True)
    )
    return {
        "samples": len(samples),
        "median_bytes": statistics.median(sizes),
        "slope_bytes_per_s": round(fit.slope, 2),
        "growth_ratio": round(fit.slope * span_s / statistics.median(sizes), 5),
        "residual_bytes": round(residual, 1),
    }


async def settled(admin_url: str) -> dict[str, Any]:
    """The snapshot once nothing is open any more, or the last one after ``SETTLE_S``."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        reply = await fetch(f"{admin_url}/v1/jouleway/snapshot", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        snapshot = reply.json()
        assert isinstance(snapshot, dict)
        is_over = not (snapshot["num_open"] or snapshot["num_running"] or snapshot["open_attempts"])
        if (is_over and not snapshot["balance"]["in_flight_mj"]) or time.monotonic() > deadline_s:
            return snapshot
        await asyncio.sleep(1.0)


def orphans(pids: set[tuple[int, str]]) -> list[str]:
    """Processes of the service that outlived it."""
    return [command_name(pid) for pid, born in sorted(pids) if _start_time(pid) == born]


async def load(server: Server, admin_url: str, *, duration_s: float, seed: int) -> tuple[Soak, dict[str, Any]]:
    """Everything at once for ``duration_s``; then the settled snapshot."""
    started_s = time.monotonic()
    soak = Soak(server=server, admin_url=admin_url, until_s=started_s + duration_s, chance=random.Random(seed))
    others = [asyncio.create_task(killer(soak)), asyncio.create_task(sampler(soak, started_s))]
    clients = [asyncio.create_task(client(soak, index)) for index in range(CLIENTS)]
    try:
        await asyncio.gather(*clients)
    finally:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return soak, await settled(admin_url)


def run(*, duration_s: float, seed: int) -> dict[str, Any]:
    """The whole soak; every figure, and the list of what must not be."""
    with tempfile.TemporaryDirectory() as folder:
        with serving(soak_configuration(), Path(folder)) as server:
            soak, snapshot = asyncio.run(load(server, server.admin_url, duration_s=duration_s, seed=seed))
        log_bytes = (Path(folder) / "jouleway.log").stat().st_size
    time.sleep(1.0)
    judged = {
        name: growth([sample for sample in samples if sample[0] >= duration_s * WARMUP_RATIO])
        for name, samples in soak.rss.items()
    }
    balance = snapshot["balance"]
    credit = {worker["worker_id"]: _sum(worker["credit"]) for worker in snapshot["workers"]}
    values: dict[str, Any] = {
        "simulated": True,
        "seed": seed,
        "duration_s": duration_s,
        "requests": sum(soak.ended.values()),
        "ended": dict(sorted(soak.ended.items())),
        "kills": len(soak.kills),
        "memory": judged,
        "bound_growth_ratio": MAX_GROWTH_RATIO,
        "open_after": {name: snapshot[name] for name in ("num_open", "num_running", "open_attempts")},
        "credit_after_tokens": credit,
        "balance": {name: value for name, value in balance.items() if name not in ("meters", "causes")},
        "causes": dict(balance["causes"]),
        "finished": snapshot["finished"],
        "retried": snapshot["retried"],
        "orphans": orphans(soak.pids),
        "log_bytes": log_bytes,
    }
    return {**values, "problems": problems(values)}


def _sum(credit: dict[str, int] | list[int]) -> int:
    """All that is still claimed on one worker."""
    return sum(credit.values() if isinstance(credit, dict) else credit)


def problems(values: dict[str, Any]) -> list[str]:
    """What must not be."""
    found = [f"memory of {name}: {figures}" for name, figures in values["memory"].items()
             if figures["growth_ratio"] > MAX_GROWTH_RATIO]  # fmt: skip
    found += [f"{name} is {value}" for name, value in values["open_after"].items() if value]
    found += [f"credit on {name}: {tokens}" for name, tokens in values["credit_after_tokens"].items() if tokens]
    balance = values["balance"]
    found += [
        f"{name} is {balance[name]}" for name in ("difference_mj", "in_flight_mj", "token_difference") if balance[name]
    ]
    found += [f"a process was left: {name}" for name in values["orphans"]]
    unexpected = {
        name: count for name, count in values["ended"].items() if name in ("short", "cut", "timeout", "status:500")
    }
    found += [f"{count} requests ended {name}" for name, count in unexpected.items()]
    return found


def main() -> int:
    """Soak, record, and fail where something must not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration-s", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="soak")
    arguments = parser.parse_args()
    values = run(duration_s=arguments.duration_s, seed=arguments.seed)
    path = record(
        arguments.name,
        values,
        what=f"{arguments.duration_s:g} s of load on simulated engines through `jouleway serve` and Ray: aborts, slow "
        "readers, a worker killed every 45 s; memory after the first third, accounts and processes at the end",
    )
    print(path.relative_to(ROOT), *values["problems"], sep="\n")
    return 1 if values["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
