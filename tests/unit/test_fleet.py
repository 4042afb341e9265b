"""The configured workers stand: adopted, started, started again with growing waits, and never after the stop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from scheduler.fleet import Fleet
from workers.errors import WorkerError
from workers.types import MeterSpec, WorkerSpec


def spec_of(worker_id: str, **fields: object) -> WorkerSpec:
    return WorkerSpec(worker_id=worker_id, engine="simulated", model="m", max_running=7, **fields)  # type: ignore[arg-type]


class Link:
    def __init__(self, worker_id: str, incarnation: str) -> None:
        self.worker_id = worker_id
        self.incarnation = incarnation


class ScriptedCluster:
    """Starts what it is told, except for the first ``num_failures`` tries."""

    def __init__(self, standing: tuple[str, ...] = (), num_failures: int = 0) -> None:
        self.standing = standing
        self.num_failures = num_failures
        self.started: list[list[WorkerSpec]] = []

    def start(self, specs: list[WorkerSpec]) -> list[Link]:
        if self.num_failures:
            self.num_failures -= 1
            raise WorkerError("no resources")
        self.started.append(specs)
        return [Link(spec.worker_id, f"life-{len(self.started)}") for spec in specs]

    def find(self) -> list[Link]:
        return [Link(worker_id, "old") for worker_id in self.standing]


class Links:
    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []

    def add_link(self, link: Any, *, max_running: int = 0, incarnation: str = "") -> None:
        self.events.append(("add", link.worker_id, incarnation, str(max_running)))

    async def remove_link(self, worker_id: str) -> None:
        self.events.append(("remove", worker_id))


class House:
    """A fleet on scripted parts; ``slept_s`` are the waits before each restart."""

    def __init__(
        self,
        groups: list[list[WorkerSpec]],
        cluster: ScriptedCluster,
        *,
        counters: dict[str, int] | None = None,
        counter_ids: dict[str, str | None] | None = None,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.cluster = cluster
        self.links = Links()
        self.counters = counters or {}
        self.counter_ids = counter_ids or {}
        self.slept_s: list[float] = []
        self.fleet = Fleet(
            groups,
            cluster=cluster,  # type: ignore[arg-type]
            links=self.links,
            last_counter_mj=self._last_counter_mj,
            counter_id=self.counter_ids.get,
            clock=now_s,
            sleep=self._sleep,
        )

    async def _last_counter_mj(self, worker_id: str) -> int | None:
        return self.counters.get(worker_id)

    async def _sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        await asyncio.sleep(0)

    async def down(self, *worker_ids: str) -> None:
        """These report their end; returns when every restart is over."""
        for worker_id in worker_ids:
            self.fleet.on_worker_down(worker_id, "its process died")
        for _ in range(200):
            await asyncio.sleep(0.001)
            if all(group.task is None for group in self.fleet._groups):
                return
        raise AssertionError("the restart does not end")


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def test_everything_is_started_where_nothing_stands() -> None:
    """One process a group; each link carries its limit and its process's name."""

    async def scene() -> None:
        house = House([[spec_of("a-0"), spec_of("a-1")], [spec_of("b-0")]], ScriptedCluster())
        assert await house.fleet.start(adopt=False) == (0, 3)
        assert [len(specs) for specs in house.cluster.started] == [2, 1]
        assert house.links.events == [
            ("add", "a-0", "life-1", "7"), ("add", "a-1", "life-1", "7"), ("add", "b-0", "life-2", "7")
        ]  # fmt: skip

    play(scene())


def test_standing_workers_are_adopted_and_strangers_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """No second engine is started for a worker that stands; one that is not configured is named."""

    async def scene() -> None:
        house = House([[spec_of("a-0")], [spec_of("b-0")]], ScriptedCluster(standing=("a-0", "z-9")))
        assert await house.fleet.start(adopt=True) == (1, 1)
        assert house.links.events == [("add", "a-0", "old", "7"), ("add", "b-0", "life-1", "7")]

    play(scene())
    assert "z-9" in caplog.text


def test_half_a_process_is_an_error_with_its_remedy() -> None:
    """A process whose workers are no longer those configured can be neither adopted nor started."""

    async def scene() -> None:
        house = House([[spec_of("a-0"), spec_of("a-1")]], ScriptedCluster(standing=("a-0",)))
        with pytest.raises(WorkerError, match="jouleway down"):
            await house.fleet.start(adopt=True)

    play(scene())


def test_a_dead_worker_is_replaced_after_its_link_is_removed() -> None:
    """Removed first, so that its attempts are settled before the successor speaks under the same name."""

    async def scene() -> None:
        house = House([[spec_of("a-0")]], ScriptedCluster())
        await house.fleet.start(adopt=False)
        await house.down("a-0")
        assert house.links.events[1:] == [("remove", "a-0"), ("add", "a-0", "life-2", "7")]
        assert house.fleet.num_restarts == 1

    play(scene())


def test_a_process_is_started_again_once_all_its_workers_are_down() -> None:
    """While one of them lives, its process lives and keeps the names."""

    async def scene() -> None:
        house = House([[spec_of("a-0"), spec_of("a-1")]], ScriptedCluster())
        await house.fleet.start(adopt=False)
        await house.down("a-0")
        assert len(house.cluster.started) == 1
        await house.down("a-1")
        assert len(house.cluster.started) == 2

    play(scene())


def test_waits_grow_and_a_steady_worker_starts_anew() -> None:
    """1, 5, 15, 60, 60 s; after ten steady minutes 1 s again. Failed tries count."""
    now_s = 0.0

    async def scene() -> None:
        nonlocal now_s
        house = House([[spec_of("a-0")]], ScriptedCluster(), now_s=lambda: now_s)
        await house.fleet.start(adopt=False)
        house.cluster.num_failures = 1
        for _ in range(4):
            await house.down("a-0")
        assert house.slept_s == [1.0, 5.0, 15.0, 60.0, 60.0]
        now_s = 700.0
        await house.down("a-0")
        assert house.slept_s[-1] == 1.0

    play(scene())


def test_the_last_reading_of_a_device_goes_to_the_successor_with_its_name() -> None:
    """Whichever counter the last booked reading was of; a worker that died before it booked one changes nothing."""

    async def scene() -> None:
        house = House([[spec_of("a-0")]], ScriptedCluster(), counters={"a-0": 5})
        await house.fleet.start(adopt=False)
        told: list[tuple[str | None, int]] = [("GPU-1", 7), (None, 7), ("GPU-2", 9), ("", 11)]
        for counter_id, counter_mj in told:
            house.counter_ids["a-0"], house.counters["a-0"] = counter_id, counter_mj
            await house.down("a-0")
        found = [(specs[0].last_counter_mj, specs[0].last_counter_id) for specs in house.cluster.started]
        assert [(None, ""), (7, "GPU-1"), (7, "GPU-1"), (9, "GPU-2"), (None, "")] == found

    play(scene())


@pytest.mark.parametrize(
    ("fields", "expected"), [({}, None), ({"meter": MeterSpec(kind="simulated", counter_path="c")}, 5)]
)
def test_the_last_reading_goes_on_only_where_the_counter_does(fields: dict[str, object], expected: int | None) -> None:
    """A modelled counter has another past; one that lives in a file goes on, also at the first start."""

    async def scene() -> None:
        house = House([[spec_of("a-0", **fields)]], ScriptedCluster(), counters={"a-0": 5})
        await house.fleet.start(adopt=False)
        house.counters["a-0"] = 7
        await house.down("a-0")
        found = [specs[0].last_counter_mj for specs in house.cluster.started]
        assert found == [expected, None if expected is None else 7]

    play(scene())


def test_nothing_is_started_after_the_stop() -> None:
    """A worker that ends because everything ends is not missed, and a restart under way is called off."""

    async def scene() -> None:
        house = House([[spec_of("a-0")]], ScriptedCluster())
        await house.fleet.start(adopt=False)
        house.fleet.on_worker_down("a-0", "")
        await house.fleet.stop()
        house.fleet.on_worker_down("a-0", "")
        await asyncio.sleep(0.005)
        assert len(house.cluster.started) == 1

    play(scene())


def test_a_stranger_that_goes_down_is_ignored() -> None:
    """Only configured workers are kept."""

    async def scene() -> None:
        house = House([[spec_of("a-0")]], ScriptedCluster())
        await house.fleet.start(adopt=False)
        house.fleet.on_worker_down("z-9", "x")
        assert len(house.cluster.started) == 1

    play(scene())
