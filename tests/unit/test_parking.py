"""Which engines are parked and woken: by hand, at the edges, and the break-even over ten thousand cases."""

import random
from collections.abc import Mapping

import pytest

from scheduler.core.actions import Park, Wake
from scheduler.core.capacity import saved_watts
from scheduler.core.cluster import Cluster, WorkerView
from scheduler.core.demand import LEVEL_S, WINDOW_S
from scheduler.core.estimates import ModelEstimates
from scheduler.core.parking import BOOST_GAIN, CROWDED_RATIO, IDLE_S, MARGIN_S, Parking, ParkingRules, pays
from scheduler.core.request import Band
from scheduler.core.score import PlacementRules
from tests.core_words import MODEL, request, view
from workers.step_curves import PowerStates, StepCurves
from workers.types import WorkerState

H100 = StepCurves(
    time_s=(0.00667, 3.25e-5, 8.95e-5, 0.0), energy_joules=(3.16, 0.0216, 0.0665, 0.0), idle_watts=119.0, source="fit"
)
STATES = PowerStates(parked_watts=60.0, start_s=45.0, start_watts=200.0)
BREAK_EVEN_S = 45.0 * 140.0 / 59.0
"""Of a start's joules and what is saved meanwhile, time being free."""
PRICE = PlacementRules(nano_per_joule={"local": 40.0}, delay_ratio=1e-12)


def engine(name: str, **values: object) -> WorkerView:
    fields: dict[str, object] = {
        "kv_tokens": 400_000, "max_sequences": 512, "curves": H100, "power_states": STATES, **values,
    }  # fmt: skip
    return view(name, **fields)


class Yard:
    """Engines that do as they are told, a start later; the load is said, nothing runs."""

    def __init__(
        self, *views: WorkerView, warm: Mapping[str, int] | None = None, placement: PlacementRules = PRICE
    ) -> None:
        self.cluster, self.placement = Cluster(), placement
        for each in views:
            self.cluster.update(each, 0.0)
        self.parking = Parking(self.cluster, ParkingRules(warm=warm or {}))
        self.estimates = ModelEstimates()
        self.log: list[tuple[float, Park | Wake]] = []
        self.now_s = 0.0
        self._starts: dict[str, float] = {}

    def run(self, seconds: float, *, requests_per_s: float = 0.0, waiting: tuple[str, ...] = ()) -> list[str]:
        """What it ordered meanwhile, as ``park a`` and ``wake b``."""
        before, owed = len(self.log), 0.0
        for _ in range(round(seconds)):
            self.now_s += 1.0
            owed += requests_per_s
            while owed >= 1.0:
                owed -= 1.0
                asked = request(prompt_tokens_bound=1_000, max_output_tokens=200, arrival_s=self.now_s)
                self.parking.arrived(asked, self.estimates, self.now_s)
            for name, start_s in list(self._starts.items()):
                if self.now_s >= start_s + 45.0:
                    del self._starts[name]
                    self.turn(name, WorkerState.READY)
            for action in self.parking.tick(waiting, self.placement, self.now_s):
                self.log.append((self.now_s, action))
                self.turn(action.worker_id, WorkerState.PARKED if isinstance(action, Park) else WorkerState.STARTING)
                if isinstance(action, Wake):
                    self._starts[action.worker_id] = self.now_s
        return [f"{type(action).__name__.lower()} {action.worker_id}" for _, action in self.log[before:]]

    def turn(self, name: str, state: WorkerState) -> None:
        worker = self.cluster.workers[name]
        self.cluster.update(engine(name, state=state, zone=worker.view.zone, curves=worker.view.curves), self.now_s)

    def up(self) -> list[str]:
        return sorted(name for name, each in self.cluster.workers.items() if each.view.state is not WorkerState.PARKED)


def yard(*names: str, **values: object) -> Yard:
    return Yard(*[engine(name) for name in names], **values)  # type: ignore[arg-type]


def test_what_nobody_needed_for_the_break_even_is_parked_and_one_stays_warm() -> None:
    found = yard("a", "b", "c")
    assert [] == found.run(BREAK_EVEN_S - 3.0, requests_per_s=1.0)
    assert ["park c", "park b"] == found.run(10.0, requests_per_s=1.0)
    assert [] == found.run(600.0, requests_per_s=1.0)


@pytest.mark.parametrize(
    "nano_per_joule", [{}, {"local": 0.0}, {"local": -40.0}, {"elsewhere": 40.0}],
    ids=["no price", "free", "paid for", "of another zone"],
)  # fmt: skip
def test_where_energy_costs_nothing_nothing_is_parked(nano_per_joule: dict[str, float]) -> None:
    found = yard("a", "b", placement=PlacementRules(nano_per_joule=nano_per_joule))
    assert [] == found.run(1_200.0, requests_per_s=1.0)


def test_an_engine_that_cannot_be_parked_is_left_alone() -> None:
    """Nor is one that serves two models."""
    found = Yard(engine("a"), engine("b", power_states=None), engine("c", models=(MODEL, "other")))
    assert ["park a"] == found.run(600.0, requests_per_s=1.0)


def test_what_runs_is_not_parked() -> None:
    """Neither what is owned here nor what somebody else runs there."""
    found = Yard(engine("a"), engine("b", num_running=1))
    assert ["park a"] == found.run(600.0, requests_per_s=1.0)


def test_what_ran_just_now_is_not_parked_yet() -> None:
    """Nobody needed it for long, and it had somebody until now."""
    found = Yard(engine("a", num_running=1), engine("b", num_running=1))
    assert [] == found.run(200.0, requests_per_s=1.0)
    found.cluster.update(engine("b"), found.now_s)
    assert ["park b"] == found.run(30.0, requests_per_s=1.0)
    assert IDLE_S <= found.log[0][0] - 200.0 <= IDLE_S + 2 * WINDOW_S


def test_who_comes_more_wakes_engines_before_they_are_needed() -> None:
    """At 10 requests a second one is full; the forecast is above the level, and the start takes 45 s."""
    found = yard("a", "b", "c")
    found.run(300.0, requests_per_s=1.0)
    assert ["a"] == found.up()
    assert ["wake b"] == found.run(60.0, requests_per_s=15.0)[:1]
    reasons = [action.reason for _, action in found.log if isinstance(action, Wake)]
    assert reasons[0].endswith("of the load that may come has no engine")


def test_somebody_who_waits_wakes_one_and_no_more_while_it_starts() -> None:
    found = yard("a", "b", "c")
    found.run(300.0, requests_per_s=1.0)
    assert ["wake b"] == found.run(40.0, requests_per_s=1.0, waiting=(MODEL,))
    assert ["wake c"] == found.run(20.0, requests_per_s=1.0, waiting=(MODEL,))
    assert not [each for each in found.run(60.0, requests_per_s=1.0, waiting=("another",)) if "wake" in each]


def test_zero_engines_are_a_choice_per_model() -> None:
    """The last one goes when for the break-even nobody was there, and who comes then wakes it."""
    found = yard("a", "b", warm={MODEL: 0})
    found.run(300.0, requests_per_s=1.0)
    assert ["a"] == found.up()
    assert [] == found.run(BREAK_EVEN_S)
    assert ["park a"] == found.run(LEVEL_S + 6.0)
    assert [] == found.run(3_600.0)
    assert ["wake a"] == found.run(4.0, waiting=(MODEL,))


def test_so_many_are_kept_warm_and_woken_where_fewer_are_up() -> None:
    found = Yard(*[engine(name, state=WorkerState.PARKED) for name in "abcd"], warm={MODEL: 2})
    assert ["wake a", "wake b"] == found.run(4.0)
    assert [] == found.run(1_200.0)
    found.parking.reload(ParkingRules(default_warm=1))
    assert ["park b"] == found.run(10.0)


def test_those_on_which_the_load_costs_least_stay() -> None:
    """By the price of their zone, then by their curve."""
    hungry = StepCurves(time_s=H100.time_s, energy_joules=(6.3, 0.04, 0.13, 0.0), idle_watts=119.0, source="fit")
    prices = PlacementRules(nano_per_joule={"local": 40.0, "dear": 90.0}, delay_ratio=1e-12)
    found = Yard(engine("a", zone="dear"), engine("b", curves=hungry), engine("c"), placement=prices)
    assert ["park a", "park b"] == sorted(found.run(300.0, requests_per_s=1.0))
    assert ["c"] == found.up()


def test_a_load_that_swings_faster_than_the_break_even_parks_nothing() -> None:
    """A minute for two engines, a minute for one."""
    found = yard("a", "b")
    for _ in range(10):
        assert [] == found.run(60.0, requests_per_s=12.0)
        assert [] == found.run(60.0, requests_per_s=1.0)


def test_the_outlook_counts_in_engines_like_the_best() -> None:
    found = yard("a", "b", "c")
    found.run(300.0, requests_per_s=2.0)
    seen = found.parking.outlooks[MODEL]
    # 2,000 × 0.3 prompt tokens by the prior of bytes, 400 outputs of at most 200; 85 % of a 45 ms step is left.
    prompts, outputs = 2 * found.estimates.prompt_tokens(request(prompt_tokens_bound=1_000)), 2 * 200
    assert (prompts * 3.25e-5 + outputs * 8.95e-5) / (1 - 0.00667 / 0.045) == pytest.approx(seen.level, rel=0.01)
    assert seen.level <= seen.forecast
    assert (1.0, 2.0) == pytest.approx((seen.up, seen.parked))


@pytest.mark.parametrize("seed", range(4))
def test_the_break_even_over_many_cases(seed: int) -> None:
    """Of 2,500 drawn engines, prices and gaps each: parking pays exactly beyond the inequality of the design, and
    whoever stops by it pays at most twice what it would have cost to know the gap, and what one more look costs."""
    chance = random.Random(seed)
    for case in range(2_500):
        parked_watts = chance.uniform(0.0, 100.0)
        states = PowerStates(
            parked_watts=parked_watts,
            start_s=chance.uniform(1.0, 300.0),
            start_watts=parked_watts + chance.uniform(0.0, 500.0),
        )
        curves = StepCurves(time_s=H100.time_s, energy_joules=H100.energy_joules, idle_watts=chance.uniform(0.0, 300.0))
        each = engine("w", power_states=states, curves=curves)
        price, delay = chance.choice([0.0, -5.0, chance.uniform(0.1, 100.0)]), chance.choice([0.0, 1e3])
        gap_s = chance.expovariate(1 / 300.0)
        where = f"seed {seed}, case {case}: {states}, {curves.idle_watts=}, {price=}, {delay=}, {gap_s=}"

        saved = saved_watts(each) * price
        start = states.start_s * (states.start_watts - parked_watts) * price + states.start_s * delay
        assert (price > 0.0 and gap_s * saved > start) == pays(each, gap_s, price, delay), where

        looks_s = (WINDOW_S * look for look in range(1, round(gap_s / WINDOW_S) + 1))
        parks_s = next((at_s for at_s in looks_s if pays(each, at_s, price, delay)), None)
        if price <= 0.0 or saved <= 0.0:
            assert parks_s is None, where
            continue
        paid = saved * gap_s if parks_s is None else saved * parks_s + start
        known = min(saved * gap_s, start)
        assert paid <= 2.0 * known + saved * WINDOW_S, where


def crowd(found: Yard, looks: int, *, crowded: int, requests_per_s: float = 5.0) -> list[str]:
    """So many looks at each of which twenty were placed, so many of them in vain; what was ordered meanwhile."""
    before = len(found.log)
    for _ in range(looks):
        for number in range(20):
            found.parking.placed(request(), is_crowded=number < crowded)
        found.run(WINDOW_S, requests_per_s=requests_per_s)
    return [f"{type(action).__name__.lower()} {action.worker_id}" for _, action in found.log[before:]]


def test_where_promises_are_broken_more_is_kept_up_until_that_ends() -> None:
    """The load alone would have one engine; a tenth of what is placed finds no place without a miss."""
    found = yard("a", "b", "c")
    found.run(300.0, requests_per_s=5.0)
    assert ["a"] == found.up()
    assert ["wake b", "wake c"] == crowd(found, 120, crowded=2)
    assert ["park c", "park b"] == crowd(found, 500, crowded=0)


def test_late_batch_work_keeps_nothing_up() -> None:
    """Nor does a model of which nothing is known, and a rare miss is none too many."""
    found = yard("a", "b")
    found.run(300.0, requests_per_s=5.0)
    for _ in range(100):
        found.parking.placed(request(band=Band.FLEX), is_crowded=True)
        found.parking.placed(request(model="unheard"), is_crowded=True)
        for number in range(100):
            found.parking.placed(request(), is_crowded=number < 1)
        found.run(WINDOW_S, requests_per_s=5.0)
    assert ["a"] == found.up()


def test_a_crowd_that_no_engine_could_help_keeps_all_up_and_piles_nothing_up() -> None:
    """Two engines at half their load each are asked for by twice the boost: from there it ebbs away."""
    found = yard("a", "b")
    assert [] == crowd(found, 200, crowded=20, requests_per_s=10.0)
    model_looks = (2.0 / 0.6) / (BOOST_GAIN * CROWDED_RATIO * 20) + BREAK_EVEN_S / WINDOW_S
    assert ["park b"] == crowd(found, round(model_looks) + 5, crowded=0, requests_per_s=10.0)


def test_engines_are_awake_before_a_load_that_rises_slowly_is_there() -> None:
    """From a tenth of an engine to two of them in ten minutes: at no look is less up than what came lately asks for."""
    found = yard("a", "b", "c", "d")
    found.run(600.0, requests_per_s=1.0)
    for rate in range(2, 30):
        found.run(20.0, requests_per_s=float(rate))
        ready = [each for each in found.cluster.workers.values() if each.view.state is WorkerState.READY]
        assert found.parking.outlooks[MODEL].level <= len(ready), f"at {rate} requests/s"
    assert 45.0 + MARGIN_S < 20.0 * 28
