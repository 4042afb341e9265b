"""Engines parked and woken on real Ray: requests wait or go elsewhere, none fails, every millijoule is booked."""

import asyncio
from pathlib import Path

import pytest

from scheduler.core.actions import Action, Park, Wake
from scheduler.core.parking import ParkingRules
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.core.score import PlacementRules
from scheduler.dispatcher import Dispatcher
from tests.cluster.plane import Plane, answer_of, host_pids, kill, plane, spec_of
from workers.ray_worker import RayCluster
from workers.simulated_counter import CounterFile
from workers.types import Outcome, Phase, WorkerState, WorkerStatus

START = {"start_s": 1.0, "start_watts": 200.0, "parked_watts": 60.0}


class Orders:
    """Orders that the next tick of a core gives; the core's own policy gives none."""

    def __init__(self, made: Plane) -> None:
        self._dispatcher: Dispatcher = made.dispatcher
        self._waiting: list[Action] = []
        self._tick = made.core.tick
        core: Scheduler = made.core
        core.tick = self._with_orders  # type: ignore[method-assign]
        core.parking.tick = lambda waiting, placement, now_s: []  # type: ignore[method-assign]

    def _with_orders(self, now_s: float) -> list[Action]:
        waiting, self._waiting = self._waiting, []
        return [*self._tick(now_s), *waiting]

    def park(self, *worker_ids: str) -> None:
        self._waiting += [Park(worker_id=each, reason="test") for each in worker_ids]

    def wake(self, *worker_ids: str) -> None:
        self._waiting += [Wake(worker_id=each, reason="test") for each in worker_ids]

    def status(self, worker_id: str) -> WorkerStatus:
        connection = self._dispatcher.connection(worker_id)
        assert connection is not None
        assert connection.status is not None
        return connection.status


async def parked(made: Plane, orders: Orders, *worker_ids: str) -> None:
    """Ordered again until nothing runs there any more, as a policy would."""

    def are_parked() -> bool:
        late = [each for each in worker_ids if orders.status(each).state is not WorkerState.PARKED]
        orders.park(*late)
        return not late

    await made.until(are_parked)


async def test_requests_go_elsewhere_or_wait_and_none_fails(cluster: RayCluster) -> None:
    """One of two parked under load, then both; whoever comes then is answered after the wake, by the same processes."""
    groups = [[spec_of(name, engine_args=START)] for name in ("p-0", "p-1")]
    async with plane(cluster, groups) as made:
        orders, pids = Orders(made), {made.pid_of("p-0"), made.pid_of("p-1")}
        answers = [asyncio.create_task(answer_of(made.submit(max_tokens=10 + k % 20))) for k in range(20)]
        orders.park("p-0", "p-1")  # calls are on their way: whoever is busy refuses to park, nobody's answer breaks
        await parked(made, orders, "p-1")
        answers += [asyncio.create_task(answer_of(made.submit())) for _ in range(10)]
        await asyncio.gather(*answers)
        await parked(made, orders, "p-0", "p-1")
        late = [asyncio.create_task(answer_of(made.submit(max_tokens=5))) for _ in range(10)]
        await asyncio.sleep(0.3)
        assert (10, ("simulated",)) == (made.core.num_open, made.dispatcher.snapshot().ready_models)
        orders.wake("p-0", "p-1")
        answers += late
        for answer in await asyncio.gather(*answers):
            assert answer.end is not None
            assert (Outcome.COMPLETED, 1) == (answer.end.outcome, len(answer.heads))
        await made.until(lambda: made.is_ready(2))
        assert pids == {made.pid_of("p-0"), made.pid_of("p-1")}
        assert (0, {}) == (made.core.stats.retried, made.core.stats.rejected)
        await made.settled()
        balance = made.settlement.accounts.balance()
        assert (0, 0, 0) == (balance.token_difference, balance.inexact_sequences, balance.posting_difference_mj)


async def test_power_states_are_learned_and_the_energy_of_cycles_adds_up(cluster: RayCluster, tmp_path: Path) -> None:
    """An observer of the counter's file saw every millijoule that was booked; starts are known within a fifth."""
    path = tmp_path / "counter"
    async with plane(cluster, [[spec_of("p-2", counter_path=str(path), engine_args=START)]]) as made:
        orders, observer = Orders(made), CounterFile(path)
        for _ in range(2):
            await answer_of(made.submit(max_tokens=30))
            await parked(made, orders, "p-2")
            await asyncio.sleep(1.5)
            orders.wake("p-2")
            await made.until(lambda: made.is_ready(1))
        await answer_of(made.submit())
        await made.settled()
        states = orders.status("p-2").power_states
        assert states is not None
        assert (60.0, 1.0, 200.0, "measured") == (
            *(pytest.approx(each, rel=0.2) for each in (states.parked_watts, states.start_s, states.start_watts)),
            states.source,
        )
    windows = [window for _, window in made.settlement.windows]
    start_mj = windows[0].counter_mj - windows[0].meter_mj
    assert windows[-1].counter_mj - start_mj == sum(window.meter_mj for window in windows)
    assert windows[-1].counter_mj <= observer.read().counter_mj
    assert {Phase.SERVING, Phase.PARKED, Phase.STARTING} == {window.phase for window in windows}
    assert {0} == {window.unattributed_mj for window in windows if window.phase is not Phase.SERVING}
    observer.close()


async def test_a_killed_process_of_a_parked_worker_is_replaced_by_one_that_serves(cluster: RayCluster) -> None:
    """Who is parked can die too: its successor starts loaded, and whoever waited is answered."""
    async with plane(cluster, [[spec_of("p-3")]]) as made:
        orders, pid = Orders(made), made.pid_of("p-3")
        await parked(made, orders, "p-3")
        reading = asyncio.create_task(answer_of(made.submit()))
        await asyncio.sleep(0.1)
        assert pid in host_pids()
        kill(pid)
        answer = await reading
        assert answer.end is not None
        assert Outcome.COMPLETED is answer.end.outcome
        await made.settled()


async def test_the_cores_own_policy_parks_who_is_not_needed_and_wakes_it_for_whoever_comes(cluster: RayCluster) -> None:
    """Energy has a price and the model may scale to zero: parked once that pays, woken for a request."""
    rules = Rules(
        parking=ParkingRules(default_warm=0), placement=PlacementRules(nano_per_joule={"local": 1e6}, delay_ratio=1e-9)
    )
    start: dict[str, float] = {"start_s": 0.5, "start_watts": 200.0, "parked_watts": 60.0, "idle_watts": 119.0}
    async with plane(cluster, [[spec_of("p-4", engine_args=start)]], rules=rules) as made:
        for _ in range(2):
            answer = await answer_of(made.submit())
            assert answer.end is not None
            assert Outcome.COMPLETED is answer.end.outcome
            await made.until(lambda: not made.is_ready(1), timeout_s=120.0)
            connection = made.dispatcher.connection("p-4")
            assert connection is not None
            await made.until(lambda c=connection: c.status is not None and c.status.state is WorkerState.PARKED)
        assert (0, {}) == (made.core.stats.retried, made.core.stats.rejected)
        await made.settled()
