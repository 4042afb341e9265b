"""The fast fleet: every request ends once, the production core drives it, and what is ordered is what happens."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.actions import Action, Park, Wake
from scheduler.core.scheduler import Scheduler
from scheduler.simulation.baselines import Baseline, LeastRequests, PowerOfTwo, RoundRobin
from scheduler.simulation.core_router import CoreRouter, curves_of
from scheduler.simulation.fleet import Fleet, FleetWorker, Loss, Router
from scheduler.simulation.power import EngineState
from scheduler.simulation.traces import Arrival
from tests.core_words import thorough
from workers.engines.simulated_options import SimulatedOptions
from workers.types import WorkerState

MODEL = "m"
FAST = SimulatedOptions(kv_tokens=20_000, max_sequences=32)
SLOW = SimulatedOptions(kv_tokens=20_000, max_sequences=32, time_t0_s=0.02, time_prefill_s=1e-4)


def workers(*options: SimulatedOptions) -> list[FleetWorker]:
    return [FleetWorker(worker_id=f"w-{number}", options=each) for number, each in enumerate(options)]


def arrival(at_s: float, *, prompt: int = 100, output: int = 20, blocks: tuple[int, ...] = ()) -> Arrival:
    return Arrival(
        arrival_s=at_s, prompt_tokens=prompt, output_tokens=output, prompt_tokens_bound=4 * prompt, blocks=blocks,
        full_blocks=blocks[: prompt // FAST.block_tokens],
    )  # fmt: skip


def core_router() -> CoreRouter:
    return CoreRouter(Scheduler(models=(MODEL,)), model=MODEL)


ROUTERS: dict[str, Callable[[], Router]] = {
    "core": core_router,
    "round robin": RoundRobin,
    "least requests": LeastRequests,
    "power of two": lambda: PowerOfTwo(seed=1),
}


def steady(num: int, gap_s: float) -> list[Arrival]:
    """Requests of mixed sizes."""
    return [
        arrival(gap_s * number, prompt=50 + 97 * number % 900, output=1 + 31 * number % 200) for number in range(num)
    ]


@pytest.mark.parametrize("name", ROUTERS)
def test_every_request_ends_once(name: str) -> None:
    """With its first token after its arrival and its end after that, and the engines are empty then."""
    arrivals = steady(300, 0.01)
    fleet = Fleet(workers(FAST, SLOW, FAST), arrivals, ROUTERS[name]())
    found = fleet.run()
    assert (found.first_token_s > found.arrival_s).all()
    assert (found.ended_s >= found.first_token_s).all()
    assert found.num_attempts == 300
    assert [(engine.num_running, engine.num_waiting) for engine in fleet.engines] == [(0, 0)] * 3
    assert fleet.running == [{}, {}, {}]


@pytest.mark.parametrize("name", ROUTERS)
def test_the_same_arrivals_give_the_same_run(name: str) -> None:
    """To the last bit: there is no clock and no chance in it."""
    one, other = (Fleet(workers(FAST, SLOW), steady(100, 0.02), ROUTERS[name]()).run() for _ in range(2))
    assert one.ended_s.tolist() == other.ended_s.tolist()
    assert one.worker.tolist() == other.worker.tolist()


def test_a_lone_request_takes_what_its_curve_says() -> None:
    """One step for the prompt, one for each further token."""
    found = Fleet(workers(FAST), [arrival(1.0, prompt=100, output=11)], core_router()).run()
    first_s = FAST.time_t0_s + 100 * FAST.time_prefill_s
    assert found.ttft_s[0] == pytest.approx(first_s)
    assert found.ttft_s[0] == pytest.approx(found.unloaded_s[0])
    assert found.tpot_s[0] == pytest.approx(FAST.time_t0_s + FAST.time_decode_s)
    assert found.busy_s == pytest.approx(first_s + 10 * found.tpot_s[0])


def test_what_the_core_refuses_never_ends() -> None:
    """A core that shuts down takes nothing new: the run is over all the same."""
    router = core_router()
    router.core.drain(0.0)
    found = Fleet(workers(FAST), [arrival(0.5)], router).run()
    assert found.worker.tolist() == [-1]
    assert math.isinf(found.ttft_s[0])


def test_the_core_leaves_nothing_behind() -> None:
    """No open request, no attempt, no credit."""
    router = core_router()
    Fleet(workers(FAST, FAST), steady(200, 0.01), router).run()
    assert (router.core.num_open, router.core.num_running) == (0, 0)
    assert [set(router.core.cluster.credit(name)) for name in ("w-0", "w-1")] == [{0}, {0}]


def test_the_core_hears_each_engines_own_curve() -> None:
    """Unlike engines are told apart: the slow one gets less."""
    found = Fleet(workers(FAST, SLOW), steady(300, 0.02), core_router()).run()
    assert np.count_nonzero(found.worker == 0) > np.count_nonzero(found.worker == 1)
    assert curves_of(SLOW).time_s == (0.02, 1e-4, SLOW.time_decode_s, SLOW.time_context_s)


def test_a_shared_prefix_is_cached_where_it_was_computed() -> None:
    """Turns of one conversation on one engine: all but the first find their beginning."""
    blocks = tuple(range(60))
    turns = [arrival(2.0 * turn, prompt=160 * (turn + 1), blocks=blocks[: 10 * (turn + 1)]) for turn in range(6)]
    found = Fleet(workers(FAST), turns, RoundRobin()).run()
    assert found.cached_tokens.tolist() == [0, 160, 320, 480, 640, 800]


class Aborting(RoundRobin):
    """Breaks off whatever is not over by the third tick."""

    def tick(self, now_s: float) -> None:
        if now_s > 0.25:
            for worker, running in enumerate(self._fleet.running):
                for attempt_id in list(running):
                    self._fleet.abort(worker, attempt_id, now_s)


def test_an_aborted_attempt_ends_with_its_step() -> None:
    """Within a step of the order; an unknown attempt is left alone."""
    router = Aborting()
    fleet = Fleet(workers(FAST), [arrival(0.0, output=10_000), arrival(0.0, output=3)], router)
    found = fleet.run()
    assert 0.3 <= found.ended_s[0] < 0.33
    assert found.ended_s[1] < 0.1
    fleet.abort(0, "nobody", 1.0)


class To(Baseline):
    """Sends the n-th request to the n-th of a list."""

    def __init__(self, choices: Sequence[int]) -> None:
        self.choices = choices

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        return self.choices[number]


@thorough
@given(
    st.lists(st.tuples(st.floats(0.0, 0.2), st.integers(0, 1), st.integers(1, 900), st.integers(1, 200)), max_size=40)
)
def test_engines_do_not_touch_each_other(drawn: list[tuple[float, int, int, int]]) -> None:
    """What runs on one engine takes as long as if the other were not there."""
    at_s, arrivals, choices = 0.0, [], []
    for gap_s, choice, prompt, output in drawn:
        at_s += gap_s
        arrivals.append(arrival(at_s, prompt=prompt, output=output))
        choices.append(choice)
    both = Fleet(workers(FAST, SLOW), arrivals, To(choices)).run()
    for worker, options in enumerate((FAST, SLOW)):
        own = [number for number, choice in enumerate(choices) if choice == worker]
        alone = Fleet(workers(options), [arrivals[number] for number in own], To([0] * len(own))).run()
        assert alone.ended_s.tolist() == pytest.approx(both.ended_s[own].tolist(), rel=1e-9)


# -- parked and woken


class Clockwork(Scheduler):
    """The core, with orders to park and to wake by the clock."""

    def tick(self, now_s: float) -> list[Action]:
        actions = super().tick(now_s)
        state = self.cluster.workers["w-1"].view.state
        if state is WorkerState.READY and not self.cluster.workers["w-1"].claims and now_s < 20.0:
            actions.append(Park(worker_id="w-1", reason="by the clock"))
        elif state is WorkerState.PARKED and now_s >= 20.0:
            actions.append(Wake(worker_id="w-1", reason="by the clock"))
        return actions


def test_the_core_parks_and_wakes_engines_and_hears_their_states() -> None:
    """Between its orders and the engine's return nothing is placed there."""
    router = CoreRouter(Clockwork(models=(MODEL,)), model=MODEL)
    found = Fleet(workers(FAST, SLOW), [arrival(0.2 + 0.5 * number) for number in range(200)], router).run()
    assert 1 == found.num_wakes
    assert 200.0 * 45.0 == pytest.approx(found.joules.starting)
    assert not math.isnan(found.ended_s.max())
    assert {0} == set(found.worker[found.arrival_s < 65.0].tolist())


class Sleeper(RoundRobin):
    """Parks the second engine at once, wakes it at 20 s, and gives all to the first meanwhile."""

    def __init__(self) -> None:
        self.woken_s: list[float] = []

    def choose(self, number: int, loaded: Sequence[int]) -> int:
        return number % 2 if self.woken_s else 0

    def woken(self, worker: int, now_s: float) -> None:
        assert 1 == worker
        self.woken_s.append(now_s)

    def tick(self, now_s: float) -> None:
        state = self._fleet.clocks[1].state
        if state is EngineState.LOADED and not self.woken_s:
            self._fleet.park(1, now_s)
        elif state is EngineState.PARKED and now_s >= 20.0:
            self._fleet.wake(1, now_s)


def test_an_engine_that_was_parked_is_paid_by_state() -> None:
    """By hand: it was parked at the first tick, and took as long to start as it should."""
    router = Sleeper()
    found = Fleet(workers(FAST, FAST), [arrival(float(second)) for second in range(100)], router).run()
    parked_s = 20.0 - 0.1
    assert [20.0 + 45.0] == pytest.approx(router.woken_s)
    assert 1 == found.num_wakes
    assert 60.0 * parked_s == pytest.approx(found.joules.parked)
    assert 200.0 * 45.0 == pytest.approx(found.joules.starting)
    assert 2 * found.span_s - parked_s - 45.0 == pytest.approx(found.loaded_s)
    assert 119.0 * (found.loaded_s - found.busy_s) == pytest.approx(found.joules.idle)
    assert (found.worker == 1).any()


@pytest.mark.parametrize("name", ROUTERS)
def test_who_never_parks_pays_idle_watts_between_steps(name: str) -> None:
    found = Fleet(workers(FAST, SLOW), steady(100, 0.02), ROUTERS[name]()).run()
    assert (0, 0.0, 0.0) == (found.num_wakes, found.joules.starting, found.joules.parked)
    assert 2 * found.span_s == pytest.approx(found.loaded_s)
    assert found.span_s == pytest.approx(np.nanmax(found.ended_s))
    assert found.joules.idle == pytest.approx(119.0 * (found.loaded_s - found.busy_s))


class Careless(RoundRobin):
    """Parks whoever works."""

    def tick(self, now_s: float) -> None:
        self._fleet.park(0, now_s)


def test_no_engine_is_stopped_under_its_requests() -> None:
    with pytest.raises(AssertionError, match="1 attempts run on w-0"):
        Fleet(workers(FAST), [arrival(0.0, output=500)], Careless()).run()


class Blind(RoundRobin):
    """Sends to whoever is parked."""

    def arrive(self, number: int, now_s: float) -> None:
        self._fleet.park(0, now_s)
        self._fleet.start(number, 0, now_s)


def test_no_request_goes_to_an_engine_that_is_not_loaded() -> None:
    with pytest.raises(AssertionError, match="w-0 is not loaded"):
        Fleet(workers(FAST), [arrival(0.0)], Blind()).run()


# -- engines that die, several models


@pytest.mark.parametrize("name", ROUTERS)
def test_an_engine_that_dies_starts_again_and_everybody_ends_or_is_refused(name: str) -> None:
    """Its start is paid and is no wake; what it computed before is paid too."""
    arrivals = steady(400, 0.02)
    fleet = Fleet(workers(FAST, FAST), arrivals, ROUTERS[name](), losses=[Loss(3.0, 0), Loss(4.0, 0)])
    found = fleet.run()
    assert (1, 0) == (found.num_losses, found.num_wakes)
    assert (found.span_s - 3.0) * 200.0 == pytest.approx(found.joules.starting)
    assert (np.isnan(found.ended_s) == (found.worker < 0)).all()
    assert 0 < np.isnan(found.ended_s).sum() < 40
    alone = Fleet(workers(FAST), steady(150, 0.02), RoundRobin()).run()
    assert found.joules.steps > alone.joules.steps
    assert 0 == fleet.num_waiting


def test_the_core_tries_again_what_had_not_begun() -> None:
    """The prompt that waited goes to the other engine; the answer under way is lost."""
    one_place = dataclasses.replace(FAST, max_sequences=1)
    arrivals = [arrival(0.0, output=3_000), arrival(0.0, output=3_000), arrival(1.0), arrival(1.0)]
    found = Fleet(workers(one_place, one_place), arrivals, core_router(), losses=[Loss(2.0, 0)]).run()
    assert 1 == np.isnan(found.ended_s).sum()
    assert not np.isnan(found.ended_s[2:]).any()


def test_a_parked_engine_cannot_be_lost() -> None:
    router = Sleeper()
    arrivals = [arrival(float(second)) for second in range(100)]
    found = Fleet(workers(FAST, FAST), arrivals, router, losses=[Loss(5.0, 1)]).run()
    assert (0, 1) == (found.num_losses, found.num_wakes)


def test_gpus_of_an_engine_count_together() -> None:
    big = FleetWorker(worker_id="big", options=FAST, num_gpus=4)
    found = Fleet([big], [arrival(0.0), arrival(9.0)], RoundRobin()).run()
    assert 4 * found.span_s == pytest.approx(found.loaded_gpu_s)


def test_a_prompt_longer_than_the_engines_context_is_refused_by_the_engine() -> None:
    """The core has room for it by KV; the engine's answer ends it, once."""
    narrow = dataclasses.replace(FAST, max_model_len=500)
    found = Fleet(workers(narrow, narrow), [arrival(0.0, prompt=600), arrival(0.1)], core_router()).run()
    assert [True, False] == np.isnan(found.ended_s).tolist()


def test_an_answer_longer_than_clients_ask_for_is_not_cut() -> None:
    """They ask for the longest then, under the core as under anybody."""
    roomy = dataclasses.replace(FAST, kv_tokens=100_000)
    found = Fleet(workers(roomy), [arrival(0.0, output=6_000)], core_router()).run()
    assert 6_000 * FAST.time_t0_s < found.e2e_s[0]


def test_models_are_kept_apart_by_the_core() -> None:
    """Each request runs on an engine of its model; its unloaded time is that of the fastest of them."""
    fleet = [
        FleetWorker(worker_id="a", options=FAST, model="a"), FleetWorker(worker_id="b", options=SLOW, model="b")
    ]  # fmt: skip
    arrivals = [dataclasses.replace(arrival(0.1 * number), model="ab"[number % 2]) for number in range(40)]
    found = Fleet(fleet, arrivals, CoreRouter(Scheduler(models=("a", "b")))).run()
    assert [0, 1] * 20 == found.worker.tolist()
    assert FAST.time_t0_s + 100 * FAST.time_prefill_s == pytest.approx(found.unloaded_s[0])
    assert SLOW.time_t0_s + 100 * SLOW.time_prefill_s == pytest.approx(found.unloaded_s[1])
