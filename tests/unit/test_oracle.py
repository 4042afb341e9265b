"""The bound: worked out by hand for one engine and for unlike ones, never above a run, and what no engine meets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.request import DEFAULT_SLO
from scheduler.simulation.oracle import SLOT_S, NoEngineMeets, bound, check
from scheduler.simulation.policies import Setting
from scheduler.simulation.power import Draw
from scheduler.simulation.replay import simulate
from scheduler.simulation.traces import Arrival
from tests.core_words import thorough
from tests.fleet_words import DRAW, OPTIONS, arrival, steady, workers
from workers.engines.simulated_options import SimulatedOptions

ROUND = SimulatedOptions(
    time_t0_s=0.01, time_decode_s=0.0001, time_prefill_s=0.00004, energy_e0_joules=4.0, energy_decode_joules=0.1,
    energy_prefill_joules=0.02, energy_context_joules=0.0,
)  # fmt: skip
CHEAP = SimulatedOptions(
    time_t0_s=0.02, time_decode_s=0.0001, time_prefill_s=0.00004, energy_e0_joules=4.0, energy_decode_joules=0.05,
    energy_prefill_joules=0.03, energy_context_joules=0.0,
)  # fmt: skip
FREE = Draw(idle_watts=100.0, parked_watts=0.0)


def busy(prompt: int = 1_000, output: int = 501, num: int = 400) -> list[Arrival]:
    """In one slot, the last of them at its end: 4 · 10⁵ prompt tokens and 2 · 10⁵ further ones."""
    return [arrival(SLOT_S * (number + 0.5) / num, prompt=prompt, output=output) for number in range(num)]


def test_one_kind_by_hand() -> None:
    """36 engine-seconds of tokens, of which an engine has 0.8 a second: 45, in which 20 steps a second are made."""
    found = bound(workers(8, options=ROUND, draw=FREE), busy(), DEFAULT_SLO)
    assert 45 * 20 * 4.0 + 4e5 * 0.02 + 2e5 * 0.1 == pytest.approx(found.joules)
    assert 45.0 == pytest.approx(found.loaded_gpu_s)
    assert 400 * 501 == found.good_tokens


def test_parked_watts_are_paid_by_who_is_not_loaded() -> None:
    """Eight engines until the last arrival, less what the loaded ones do not draw while they step."""
    arrivals = busy()
    found = bound(workers(8, options=ROUND, draw=DRAW), arrivals, DEFAULT_SLO)
    free = bound(workers(8, options=ROUND, draw=FREE), arrivals, DEFAULT_SLO)
    assert free.joules + 50.0 * (8 * arrivals[-1].arrival_s - 45.0) == pytest.approx(found.joules)


def test_one_engine_is_loaded_while_there_is_work() -> None:
    """A single short answer: its steps, and idle watts for the rest of the slot; the others are parked."""
    arrivals = [arrival(0.0, prompt=100, output=101), arrival(9.0, prompt=100, output=1)]
    found = bound(workers(3, options=ROUND, draw=DRAW), arrivals, DEFAULT_SLO)
    present_s = 101 * (0.01 + 0.0001) + 0.0
    work_s = 200 * 0.00004 + 100 * 0.0001
    steps = (present_s - work_s) / 0.01 * 4.0 + 200 * 0.02 + 100 * 0.1
    idle = (10.0 - present_s) * 100.0
    assert steps + idle + 50.0 * (3 * 9.0 - 10.0) == pytest.approx(found.joules)
    assert 10.0 == found.loaded_gpu_s


def test_a_prefix_that_was_seen_is_not_computed_again() -> None:
    """The same two blocks twice: the second prompt has its last block to do."""
    blocks = (1, 2)
    twice = [arrival(1.0, prompt=1_100, blocks=blocks), arrival(2.0, prompt=1_100, blocks=blocks)]
    once = [arrival(1.0, prompt=1_100), arrival(2.0, prompt=76)]
    both = [bound(workers(1, options=ROUND, draw=FREE), each, DEFAULT_SLO).joules for each in (twice, once)]
    assert both[0] == pytest.approx(both[1])


def test_unlike_kinds_divide_the_work_by_what_is_cheap_on_each() -> None:
    """Prompts are cheaper on one, outputs on the other, and there is room: each gets its own sort."""
    fleet = [*workers(8, options=ROUND, draw=FREE), *workers(8, options=CHEAP, draw=FREE)]
    found = bound(fleet, busy(), DEFAULT_SLO)
    prompts = 4e5 * 0.02 + 4e5 * 0.00004 / 0.8 * 20 * 4.0
    outputs = 2e5 * 0.05 + 2e5 * 0.0001 / 0.6 * 20 * 4.0
    assert prompts + outputs == pytest.approx(found.joules)
    assert found.loaded_gpu_s is None


def test_a_kind_without_room_leaves_work_to_the_other() -> None:
    """One cheap engine has 6 s for tokens a slot, 60,000 outputs; the other 140,000 are made where they cost more."""
    fleet = [*workers(8, options=ROUND, draw=FREE), *workers(1, options=CHEAP, draw=FREE)]
    found = bound(fleet, busy(), DEFAULT_SLO)
    prompts = 4e5 * 0.02 + 4e5 * 0.00004 / 0.8 * 20 * 4.0
    cheap = 6e4 * 0.05 + 6e4 * 0.0001 / 0.6 * 20 * 4.0
    dear = 14e4 * 0.1 + 14e4 * 0.0001 / 0.8 * 20 * 4.0
    assert prompts + cheap + dear == pytest.approx(found.joules)


def test_work_beyond_all_engines_moves_on() -> None:
    """One engine has 8 s for tokens in a slot; 36 take four slots and a half, at the same joules a token."""
    found = bound(workers(1, options=ROUND, draw=FREE), busy(), DEFAULT_SLO)
    assert 45 * 20 * 4.0 + 4e5 * 0.02 + 2e5 * 0.1 == pytest.approx(found.joules)


def test_models_add_up() -> None:
    """They share nothing."""
    fleet = [*workers(4, options=ROUND, draw=DRAW, model="a"), *workers(4, options=CHEAP, draw=DRAW, model="b")]
    streams = {model: [arrival(each.arrival_s, model=model) for each in busy()] for model in ("a", "b")}
    both = bound(fleet, sorted([*streams["a"], *streams["b"]], key=lambda each: each.arrival_s), DEFAULT_SLO)
    alone = [bound([each for each in fleet if each.model == model], streams[model], DEFAULT_SLO) for model in "ab"]
    assert sum(each.joules for each in alone) == pytest.approx(both.joules)


def test_an_objective_that_no_engine_meets_is_refused() -> None:
    """By how much the fastest misses it; one fast enough is enough."""
    strict = DEFAULT_SLO._replace(tpot_s=0.015)
    with pytest.raises(NoEngineMeets, match=r"a token in 15 ms: the fastest \(w-0\) takes 20.10 ms .* 5.10 ms more"):
        check(workers(2, options=CHEAP), strict)
    check([*workers(1, options=CHEAP), *workers(1, options=ROUND)], strict)
    with pytest.raises(NoEngineMeets):
        bound(workers(1, options=CHEAP), busy(), strict)


@pytest.mark.parametrize("policy", ["round-robin", "least-requests", "race-to-idle"])
@pytest.mark.parametrize("gap_s", [0.02, 0.1, 1.0, 7.0])
def test_no_run_is_below_the_bound(policy: str, gap_s: float) -> None:
    """Crowded, light and nearly empty; whole runs, drain included."""
    fleet, arrivals = workers(3, options=OPTIONS), steady(int(60 / gap_s), gap_s, prompt=300, output=120)
    found = simulate(policy, Setting(workers=fleet), arrivals)
    assert bound(fleet, arrivals, DEFAULT_SLO).joules <= found.joules.total


@thorough
@given(st.lists(st.tuples(st.floats(0, 60), st.integers(1, 4_000), st.integers(1, 600)), min_size=1, max_size=40))
def test_more_engines_or_a_longer_objective_never_cost_more(drawn: list[tuple[float, int, int]]) -> None:
    """With nothing to pay for who is parked."""
    arrivals = [arrival(at_s, prompt=prompt, output=output) for at_s, prompt, output in sorted(drawn)]

    def joules(num: int, tpot_s: float) -> float:
        return bound(workers(num, options=ROUND, draw=FREE), arrivals, DEFAULT_SLO._replace(tpot_s=tpot_s)).joules

    one = joules(1, 0.05)
    assert joules(4, 0.05) <= one * (1 + 1e-9)
    assert joules(1, 0.1) <= one * (1 + 1e-9)


def test_nothing_asked_takes_nothing_for_no_token() -> None:
    found = bound(workers(2), [], DEFAULT_SLO)
    assert 0.0 == found.joules
    assert math.inf == found.joules_per_good_token
