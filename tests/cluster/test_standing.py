"""A standing cluster: the control plane is killed under load, the next one takes over, and every joule is there."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.plane import host_pids, is_alive
from tests.cluster.standing import Place, Seen, ServedPlane, ask, place, processes_of, standing_ray
from workers.simulated_counter import CounterFile

WINDOW_S = 0.5
MAX_WATTS = 700
"""More than the default device draws at this load."""


@pytest.fixture(scope="module")
def at() -> Iterator[Place]:
    with place() as made, standing_ray(made):
        yield made


def config_of(at: Place) -> Path:
    return at.configuration(
        [
            {
                "name": "sim",
                "count": 2,
                "calibration_s": 0.5,
                "window_s": WINDOW_S,
                "engine_args": {"fixed_step_s": 0.01, "refresh_s": 0.02},
                "meter": {"kind": "simulated", "counter_path": str(at.folder / "counter")},
            }
        ]
    )


async def load(plane: ServedPlane, num_clients: int, *, max_tokens: int) -> list[asyncio.Task[list[Seen]]]:
    """Clients that ask again and again until their connection breaks."""

    async def client(number: int) -> list[Seen]:
        seen: list[Seen] = []
        while not seen or seen[-1].is_done:
            seen.append(await ask(plane.url, tenant=("alpha", "beta")[number % 2], max_tokens=max_tokens))
        return seen

    return [asyncio.create_task(client(number)) for number in range(num_clients)]


def energy_of(snapshot: dict[str, object]) -> dict[str, tuple[int, int]]:
    """Worker -> (booked meter, counter of its last booked window)."""
    rows = snapshot["worker_energy"]
    assert isinstance(rows, list)
    return {row["worker_id"]: (row["meter_mj"], row["windows"]["counter_mj"]) for row in rows}


async def between_windows(plane: ServedPlane) -> dict[str, tuple[int, int]]:
    """The energy rows at a moment when every worker's last window was acknowledged and none is about to close."""
    changed_s: dict[str, float] = {}
    rows = energy_of(await plane.admin("snapshot"))
    while True:
        await asyncio.sleep(0.02)
        last, rows = rows, energy_of(await plane.admin("snapshot"))
        now_s = time.monotonic()
        changed_s |= {worker_id: now_s for worker_id in rows if rows[worker_id] != last.get(worker_id)}
        if len(changed_s) == len(rows) and all(0.04 < now_s - each < 0.6 * WINDOW_S for each in changed_s.values()):
            return rows


async def test_a_killed_control_plane_is_succeeded_and_every_joule_is_booked_once(at: Place) -> None:
    """Re-adopted without a new process, orphans aborted and paid by the operator, the outbox replayed; a clean end.

    The second goes on with the books of the first, and they hold exactly what the counter's file counted.
    """
    config = config_of(at)
    observers = {}
    first = await asyncio.to_thread(at.serve, config)
    pids = host_pids(temp_dir=str(at.folder))
    assert 2 == len(pids)
    info = {row["worker_id"]: row["status"]["info"] for row in (await first.admin("workers"))["workers"]}
    clients = await load(first, 4, max_tokens=50)
    clients += await load(first, 6, max_tokens=5_000)
    await first.until(lambda seen: seen["finished"].get("completed", 0) > 4 and seen["num_running"] >= 8)
    for worker_id in info:
        observers[worker_id] = CounterFile(at.folder / f"counter-{worker_id[-1]}")
    before = await between_windows(first)
    first.kill()
    broken = await asyncio.gather(*clients)
    assert all(seen[-1].error for seen in broken)
    assert sum(len(seen) for seen in broken) > 10
    await asyncio.sleep(2 * WINDOW_S)  # nobody listens: records wait in the outboxes

    second = await asyncio.to_thread(at.serve, config)
    assert "adopted 2 standing workers; no weights are loaded again" in second.log.read_text()
    assert pids == host_pids(temp_dir=str(at.folder))
    assert info == {row["worker_id"]: row["status"]["info"] for row in (await second.admin("workers"))["workers"]}
    snapshot = await second.until(lambda seen: not seen["open_attempts"])
    operator = {row["tenant"]: row for row in snapshot["tenants"]}["(operator)"]
    assert operator["aborted"] >= 6
    assert operator["output_tokens"] > 0
    assert operator["energy_mj"] > 0
    assert (await ask(second.url)).is_done
    snapshot = await second.until(lambda seen: not seen["open_attempts"] and not seen["num_open"])
    balance = snapshot["balance"]
    assert (0, 0) == (balance["difference_mj"], balance["in_flight_mj"])
    assert (0, 0) == (balance["token_difference"], balance["posting_difference_mj"])
    assert 0 == snapshot["bad_windows"]
    for worker_id, (meter_mj, counter_mj) in energy_of(snapshot).items():
        booked_mj, edge_mj = before[worker_id]
        assert edge_mj - booked_mj == counter_mj - meter_mj, "from the first window to the last without a gap"
        assert 0 < booked_mj < meter_mj
        shown_mj = observers[worker_id].read().counter_mj
        assert 0 <= shown_mj - counter_mj <= 3 * WINDOW_S * 1000 * MAX_WATTS
    assert 0 == second.stop()
    assert pids.keys() == host_pids(temp_dir=str(at.folder)).keys(), "a stop leaves standing workers alone"

    stopped = at.run("down", "--config", str(config), "--drain-s", "0", "--json")
    assert '"sim-0"' in stopped
    assert '"sim-1"' in stopped
    until_s = time.monotonic() + 10.0
    while host_pids(temp_dir=str(at.folder)) and time.monotonic() < until_s:
        await asyncio.sleep(0.1)
    assert {} == host_pids(temp_dir=str(at.folder))


async def test_of_two_control_planes_the_newer_one_has_the_workers(at: Place) -> None:
    """The older is fenced off, says so, and answers its clients; the newer serves the same processes.

    On the same ledger there can be no second one at all.
    """
    config = config_of(at)
    older = await asyncio.to_thread(at.serve, config)
    pids = host_pids(temp_dir=str(at.folder))
    clients = [asyncio.create_task(ask(older.url, max_tokens=3_000)) for _ in range(4)]
    await older.until(lambda seen: seen["num_running"] == 4)
    with pytest.raises(AssertionError, match="is written by another control plane; remedy: stop that one first"):
        await asyncio.to_thread(at.serve, config)
    ledger = {"url": f"sqlite:///{at.folder}/other.db", "checkpoint_dir": str(at.folder / "other-checkpoints")}
    other = at.folder / "other.yaml"
    other.write_text(json.dumps({**json.loads(config.read_text()), "ledger": ledger}))
    newer = await asyncio.to_thread(at.serve, other)
    assert pids == host_pids(temp_dir=str(at.folder))
    snapshot = await older.until(lambda seen: all(worker["phase"] == "fenced" for worker in seen["workers"]))
    assert not any(worker["is_ready"] for worker in snapshot["workers"])
    answers = await asyncio.gather(*clients)
    assert not any(seen.is_done and not seen.error for seen in answers)
    assert all(seen.error for seen in answers)
    served = await asyncio.gather(*(ask(newer.url) for _ in range(8)))
    assert all(seen.is_done and not seen.error for seen in served)
    await newer.until(lambda seen: not seen["open_attempts"] and not seen["balance"]["in_flight_mj"])
    assert older.process.poll() is None
    assert 0 == older.stop()
    assert (await ask(newer.url)).is_done, "the older one's end does not touch the newer one's workers"
    assert 0 == newer.stop()
    at.run("down", "--config", str(config), "--drain-s", "0", "--json")


async def test_a_stop_lets_long_answers_end(at: Place) -> None:
    """SIGTERM: who runs is answered whole, for as long as limits.drain_s says; Ray's own handler aborted after 3 s."""
    config = config_of(at)
    plane = await asyncio.to_thread(at.serve, config)
    asking = asyncio.create_task(ask(plane.url, max_tokens=600))
    await plane.until(lambda seen: seen["num_running"] == 1)
    assert 0 == await asyncio.to_thread(plane.stop)
    seen = await asking
    assert (True, "", 200) == (seen.is_done, seen.error, seen.status)
    at.run("down", "--config", str(config), "--drain-s", "0", "--json")


async def test_workers_end_with_their_raylet(at: Place) -> None:
    """SIGKILL of the raylet: they leave, by Ray's own word or by our rule of 15 s."""
    config = config_of(at)
    await asyncio.to_thread(at.serve, config)
    pids = host_pids(temp_dir=str(at.folder))
    raylets = {parent_of(pid) for pid in pids}
    assert 1 == len(raylets)
    os.kill(raylets.pop(), signal.SIGKILL)
    until_s = time.monotonic() + 40.0
    while any(map(is_alive, pids)) and time.monotonic() < until_s:
        await asyncio.sleep(0.2)
    assert not [pid for pid in pids if is_alive(pid)]
    assert processes_of(at.folder), "the folder's other processes are still known: the search finds something"


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
