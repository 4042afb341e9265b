"""Kill after kill under load: what every worker's counter showed is booked, to the millijoule, over all its lives.

At most five minutes of `make soak` (JOULEWAY_SOAK_S sets fewer seconds); `make soak-counters` runs it alone.
"""

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.plane import host_pids, kill
from tests.cluster.standing import KEYS, Place, ServedPlane, ask, place, processes_of
from workers.simulated_counter import CounterFile

SOAK_S = min(float(os.environ.get("JOULEWAY_SOAK_S", "300")), 300.0)
SEED = 20_240_601
KILL_EVERY_S = 4.0
NUM_CLIENTS = 12
WINDOW_S = 0.5
MAX_WATTS = 1_000
WORKERS: list[dict[str, Any]] = [{"name": "pair", "count": 2, "one_process": True}, {"name": "solo", "count": 3}]
ENGINE = {"fixed_step_s": 0.005, "refresh_s": 0.02, "kv_tokens": 40_000}

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SOAK_S + 200.0)]


def config_of(at: Place) -> Path:
    shared = {"calibration_s": 0, "window_s": WINDOW_S, "engine_args": ENGINE, "max_running": 64}
    return at.configuration(
        [
            {**shared, **worker, "meter": {"kind": "simulated", "counter_path": str(at.folder / worker["name"])}}
            for worker in WORKERS
        ],
        limits={"request_timeout_s": 60.0, "drain_s": 5.0},
    )


async def client(number: int, plane: ServedPlane, ended: Counter[str], until_s: float) -> None:
    """Whole answers mostly; one in eight hangs up."""
    draw = random.Random(SEED + number)
    while time.monotonic() < until_s:
        asking = asyncio.create_task(
            ask(plane.url, tenant=draw.choice([*KEYS]), max_tokens=draw.randrange(2, 120), n=draw.choice((1, 1, 1, 2)))
        )
        if draw.random() < 0.125:
            await asyncio.sleep(draw.uniform(0.0, 0.3))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            ended["left"] += 1
            continue
        seen = await asking
        ended["whole" if seen.is_done and not seen.error else f"{seen.status} {seen.error}"] += 1


async def kill_hosts(at: Place, until_s: float) -> int:
    """One process after the other, whatever it is doing."""
    draw, num_kills = random.Random(SEED), 0
    while time.monotonic() < until_s - KILL_EVERY_S:
        await asyncio.sleep(KILL_EVERY_S)
        with contextlib.suppress(ProcessLookupError, IndexError):
            kill(draw.choice(sorted(host_pids(temp_dir=str(at.folder)))))
            num_kills += 1
    return num_kills


def is_idle(snapshot: dict[str, Any]) -> bool:
    owned = [snapshot["num_open"], snapshot["num_running"], snapshot["open_attempts"]]
    owned += [snapshot["balance"]["in_flight_mj"], snapshot["balance"]["in_flight_gpu_us"]]
    for worker in snapshot["workers"]:
        owned += [worker["num_attempts"], *worker["credit"].values()]
    return not any(owned) and all(worker["is_ready"] for worker in snapshot["workers"])


def unbooked_mj(snapshot: dict[str, Any]) -> int:
    """What all counters showed beyond what is booked, a start's own windows included: it never changes."""
    rows = snapshot["worker_energy"]
    shown_mj = sum(row["windows"]["counter_mj"] for row in rows)
    return shown_mj - sum(row["meter_mj"] for row in rows) - snapshot["balance"]["calibration_mj"]


async def test_every_joule_of_every_life_is_booked() -> None:
    """Kills at any moment; then no attempt, credit, energy in flight or process is left, and no counter knows more."""
    print(f"seed {SEED}, {SOAK_S:g} s")
    num_workers = sum(worker["count"] for worker in WORKERS)
    with place() as at:
        plane = await asyncio.to_thread(at.serve, config_of(at))
        first = await plane.until(lambda seen: sum(row["meter_mj"] > 0 for row in seen["worker_energy"]) == num_workers)
        ended: Counter[str] = Counter()
        until_s = time.monotonic() + SOAK_S
        async with asyncio.TaskGroup() as group:
            for number in range(NUM_CLIENTS):
                group.create_task(client(number, plane, ended, until_s))
            kills = group.create_task(kill_hosts(at, until_s))
        last = await plane.until(is_idle, timeout_s=120.0)
        ahead_mj = {}
        for row in last["worker_energy"]:
            name, _, number = row["worker_id"].rpartition("-")
            observer = CounterFile(at.folder / f"{name}-{number}")
            ahead_mj[row["worker_id"]] = observer.read().counter_mj - row["windows"]["counter_mj"]
            observer.close()
        status = plane.stop()
        gone_s = time.monotonic() + 15.0
        while processes_of(at.folder) and time.monotonic() < gone_s:
            await asyncio.sleep(0.2)
        left, log = processes_of(at.folder), plane.log.read_text()
        last_words = log[-3_000:] + at.driver_logs()
    balance = last["balance"]
    print(json.dumps({"kills": kills.result(), "ended": ended, "finished": last["finished"], "balance": balance}))
    assert unbooked_mj(first) == unbooked_mj(last)
    assert all(0 <= mj < 3 * WINDOW_S * 1_000 * MAX_WATTS for mj in ahead_mj.values()), ahead_mj
    assert (0, 0) == (balance["difference_mj"], balance["token_difference"])
    assert 0 == last["bad_windows"]
    assert dict(balance["causes"])["worker_lost"] > 0
    assert set(ended) <= {"whole", "left", "200 worker_lost", "503 "}, "an error after the first byte, or killed twice"
    assert ended["whole"] > 10 * kills.result() > 0
    assert (0, []) == (status, left), last_words
    assert "Traceback" not in log
