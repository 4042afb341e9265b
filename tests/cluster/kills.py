"""SIGKILL at random instants to control planes and workers under load; then the ledger is asked what clients saw.

Used by ``tests/cluster`` (a few kills) and ``tests/soak`` (hundreds, and real engines). A control plane is a process of
its own on a standing Ray cluster, clients are here, and so is the observer of each worker's counter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler.accounting.checkpoints import PublicKey
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.rows import Charge, Energy, Window, decode
from scheduler.accounting.verify import verify
from scheduler.commands.http_client import BadAnswer, events, open_request
from tests.cluster.plane import MODEL, host_pids
from tests.cluster.standing import KEYS, Place, ServedPlane
from workers.simulated_counter import CounterFile

NUM_CLIENTS = 8
NUM_WORKERS = 2
WINDOW_S = 0.5
WORKER_KILL_RATIO = 0.3
READY_TIMEOUT_S = 180.0


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer whose end a client saw."""

    request_id: str
    tenant: str
    output_tokens: int


@dataclass(slots=True, kw_only=True)
class Run:
    """What happened, and what must not have."""

    ended: list[Answer] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    energy: dict[str, dict[str, int]] = field(default_factory=dict)
    """By worker, in mJ: where the counter's joules are."""
    causes: Counter[str] = field(default_factory=Counter)
    """mJ of unattributed energy by cause."""


class Observer:
    """Reads a worker's counter from outside, so often that no shown value is missed, from its first moment on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: set[int] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._path.exists():
            if self._is_over.wait(0.001):
                return
        file = CounterFile(self._path)
        while not self._is_over.wait(0.002):
            self.values.add(file.read().counter_mj)
        file.close()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()


def simulated_workers(at: Place) -> list[dict[str, Any]]:
    """Each in a process of its own, its counter in a file."""
    return [
        {
            "name": "sim",
            "count": NUM_WORKERS,
            "calibration_s": 0.5,
            "window_s": WINDOW_S,
            "engine_args": {"fixed_step_s": 0.005, "refresh_s": 0.02},
            "meter": {"kind": "simulated", "counter_path": str(at.folder / "counter")},
        }
    ]


def kill_under_load(
    at: Place, config: Path, *, num_kills: int, seed: int, min_pause_s: float = 0.05, max_pause_s: float = 2.0
) -> Run:
    """Serves, asks, kills, serves again; at the end everything is let settle and stopped in order."""
    return asyncio.run(_kill_under_load(at, config, num_kills, random.Random(seed), (min_pause_s, max_pause_s)))


async def _kill_under_load(
    at: Place, config: Path, num_kills: int, chance: random.Random, pause_s: tuple[float, float]
) -> Run:
    observers = {}
    if "counter_path" in config.read_text():
        observers = {f"sim-{number}": Observer(at.folder / f"counter-{number}") for number in range(NUM_WORKERS)}
    run, planes = Run(), [await asyncio.to_thread(at.serve, config, timeout_s=READY_TIMEOUT_S)]
    is_over = asyncio.Event()
    clients = [
        asyncio.create_task(_client(run, planes, is_over, random.Random(chance.random()), number))
        for number in range(NUM_CLIENTS)
    ]
    try:
        while run.kills.total() < num_kills:
            await asyncio.sleep(chance.uniform(*pause_s))
            workers = [pid for pid, name in host_pids(temp_dir=str(at.folder)).items() if name]
            if workers and chance.random() < WORKER_KILL_RATIO:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    run.kills["worker"] += 1
                continue
            planes[-1].kill()
            run.kills["control_plane"] += 1
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            began_s = time.monotonic()
            planes.append(await asyncio.to_thread(at.serve, config, timeout_s=READY_TIMEOUT_S))
            run.recovery_s.append(time.monotonic() - began_s)
    finally:
        is_over.set()
        await asyncio.gather(*clients)
    snapshot = await planes[-1].until(lambda seen: not (seen["open_attempts"] or seen["num_open"]), timeout_s=60.0)
    run.problems += [] if not snapshot["balance"]["difference_mj"] else ["the live balance does not add up"]
    code = await asyncio.to_thread(planes[-1].stop)
    run.problems += [] if code == 0 else [f"serve ended with {code}"]
    for observer in observers.values():
        observer.close()
    _judge(run, at, config, observers)
    return run


async def _client(
    run: Run, planes: list[ServedPlane], is_over: asyncio.Event, chance: random.Random, number: int
) -> None:
    """One answer after the other, whichever control plane there is."""
    tenant = sorted(KEYS)[number % len(KEYS)]
    while not is_over.is_set():
        max_tokens = chance.randint(1, 60)
        payload = {"model": MODEL, "prompt": "w" * chance.randint(1, 300), "max_tokens": max_tokens, "ignore_eos": True}
        is_stream = chance.random() < 0.8
        try:
            async with (
                asyncio.timeout(120.0),
                open_request(
                    f"{planes[-1].url}/v1/completions",
                    method="POST",
                    body=json.dumps({**payload, "stream": is_stream}).encode(),
                    headers={"Authorization": f"Bearer {KEYS[tenant]}"},
                ) as (answer, chunks),
            ):
                is_done = await (_read_stream(chunks) if is_stream else _read_whole(chunks))
                if answer.status == 200 and is_done:
                    request_id = answer.headers["x-request-id"]
                    run.ended.append(Answer(request_id=request_id, tenant=tenant, output_tokens=max_tokens))
                else:
                    run.broken[f"status {answer.status}"] += 1
                    await asyncio.sleep(0.05)
        except (OSError, BadAnswer, asyncio.IncompleteReadError, ValueError, TimeoutError) as error:
            run.broken[type(error).__name__] += 1
            await asyncio.sleep(0.05)


async def _read_stream(chunks: Any) -> bool:
    async for event in events(chunks):
        if event == "[DONE]":
            return True
        if "error" in json.loads(event):
            return False
    return False


async def _read_whole(chunks: Any) -> bool:
    body = b"".join([chunk async for chunk in chunks])
    return b'"usage"' in body


def _judge(run: Run, at: Place, config: Path, observers: dict[str, Observer]) -> None:
    """From the ledger alone, as it lies on the disk."""
    settings = json.loads(config.read_text())
    url = settings.get("ledger", {}).get("url") or f"sqlite:///{at.folder}/state/ledger.db"
    key = PublicKey.parse((at.folder / "state" / "ledger.key.pub").read_text())
    notes = [
        f"{note.strip()}\n"
        for path in (at.folder / "state-checkpoints").glob("*.checkpoints")
        for note in path.read_text().split("\n\n\n")
        if note.strip()
    ]
    reader = Reader(url)
    try:
        verified = verify(reader, key=key, checkpoints=notes)
        told = _read(run, reader, observers.keys())
    finally:
        reader.close()
    run.problems += [] if not verified.num_open_holds else [f"{verified.num_open_holds} holds are open"]
    for answer in run.ended:
        own = told.charges.get(answer.request_id, [])
        paid = [charge for charge in own if charge.payer == "request"]
        if len(paid) != 1:
            run.problems.append(f"{answer.request_id} was seen to end and has {len(paid)} charges")
        elif (paid[0].tenant, paid[0].output_tokens) != (answer.tenant, answer.output_tokens):
            run.problems.append(f"{answer.request_id} has {paid[0].output_tokens} tokens of {answer.output_tokens}")
    for own in told.charges.values():
        run.problems += [f"{each.attempt_id} has no energy" for each in own if each.attempt_id not in told.posted]
    _judge_energy(run, told, observers)


@dataclass(slots=True)
class Told:
    """What the rows say."""

    charges: dict[str, list[Charge]] = field(default_factory=dict)
    """By request."""
    edges: dict[str, list[int]] = field(default_factory=dict)
    """By worker: first and last reading, and what its counter fell at resets."""
    posted: set[str] = field(default_factory=set)
    """Attempts with their energy."""
    balances: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By account and unit."""


def _read(run: Run, reader: Reader, observed: Collection[str]) -> Told:
    """A counter that outlives its worker is observed, and must go on without a gap."""
    told = Told()
    for _, kind, _, body, _ in reader.stored():
        run.rows[kind] += 1
        row = decode(body or "")
        for account, unit, amount in row.legs:
            told.balances[account, unit] += amount
        match row:
            case Charge():
                told.charges.setdefault(row.request_id, []).append(row)
            case Energy():
                told.posted.add(row.attempt_id)
            case Window(window=window):
                begin_mj = window.counter_mj - window.meter_mj
                edge = told.edges.setdefault(row.worker_id, [begin_mj, begin_mj, 0])
                if begin_mj != edge[1] and row.worker_id in observed:
                    run.problems.append(f"{row.row_id} begins {begin_mj - edge[1]} mJ after the one before ended")
                edge[2] += edge[1] - begin_mj
                edge[1] = window.counter_mj
                run.causes.update(dict(window.causes))
    return told


def _judge_energy(run: Run, told: Told, observers: dict[str, Observer]) -> None:
    """Every millijoule between the counter's first and last booked reading is in an account, once."""
    for (account, unit), amount in told.balances.items():
        kind, _, rest = account.partition("/")
        if unit == "mJ":
            worker_id = rest.partition("/")[0]
            of_worker = run.energy.setdefault(worker_id, {})
            of_worker[kind] = of_worker.get(kind, 0) + amount
        if kind == "held" and amount:
            run.problems.append(f"{account} holds {amount} {unit}")
    for worker_id, parts in run.energy.items():
        counted_mj = sum(amount for kind, amount in parts.items() if kind != "meter")
        if parts.get("in_flight"):
            run.problems.append(f"{worker_id}: {parts['in_flight']} mJ are in flight")
        first_mj, last_mj, fell_mj = told.edges[worker_id]
        if not counted_mj == -parts["meter"] == last_mj - first_mj + fell_mj:
            run.problems.append(
                f"{worker_id}: accounts have {counted_mj} mJ, its counter {last_mj - first_mj + fell_mj}"
            )
        observer = observers.get(worker_id)
        if observer is not None and not {first_mj, last_mj} <= observer.values:
            run.problems.append(f"{worker_id}: nobody saw the counter show {first_mj} and {last_mj} mJ")
