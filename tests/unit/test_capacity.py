"""What a load takes of an engine: by hand, and against the closed form of its steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.capacity import LEAST_ROOM, PACE_RATIO, Load, curves_of, engines, saved_watts, watts
from scheduler.core.cluster import WorkerView
from scheduler.core.curves import PRIOR_CURVES
from tests.core_words import view
from workers.step_curves import PowerStates, StepCurves

CURVES = StepCurves(
    time_s=(0.006, 3e-5, 1e-4, 0.0), energy_joules=(3.0, 0.02, 0.06, 0.0), idle_watts=100.0, source="by hand"
)
STATES = PowerStates(parked_watts=60.0, start_s=45.0, start_watts=200.0)
TPOT_S = 0.05
CHAT = Load(requests=10.0, prompt_tokens=10_000.0, output_tokens=2_000.0)


def engine(**values: object) -> WorkerView:
    return view(**{"kv_tokens": 400_000, "max_sequences": 512, "curves": CURVES, "power_states": STATES, **values})


def test_a_load_takes_what_its_tokens_take_of_the_time_that_is_left() -> None:
    """0.3 s of prompts and 0.2 s of output a second; of 45 ms a step 6 are fixed, 13/15 are left."""
    assert 0.5 * 15 / 13 == pytest.approx(engines(engine(), CHAT, TPOT_S))
    assert 0.0 == engines(engine(), Load(), TPOT_S)


def test_context_makes_tokens_slower() -> None:
    """1,100 tokens of context at 1e-8 s are 11 µs more a token."""
    curves = StepCurves(time_s=(0.006, 3e-5, 1e-4, 1e-8), energy_joules=CURVES.energy_joules, idle_watts=100.0)
    assert 1_100.0 == CHAT.context_tokens
    assert (0.3 + 2_000 * 1.11e-4) * 15 / 13 == pytest.approx(engines(engine(curves=curves), CHAT, TPOT_S))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"max_sequences": 45}, 2.0), ({"kv_tokens": 49_500}, 2.0), ({"kv_tokens": 0}, 0.5 * 15 / 13)],
    ids=["90 sequences run", "each with 1,100 tokens", "its room is not known"],
)
def test_what_runs_at_a_time_may_be_the_limit(limits: dict[str, int], expected: float) -> None:
    """By Little's law 2,000 tokens a second at 45 ms are 90 sequences."""
    assert expected == pytest.approx(engines(engine(**limits), CHAT, TPOT_S))


def test_where_the_fixed_part_takes_all_of_the_pace_some_room_is_left() -> None:
    assert 0.5 / LEAST_ROOM == pytest.approx(engines(engine(), CHAT, 0.006))


@given(st.floats(0.01, 100.0))
def test_twice_the_load_takes_twice_the_engines(factor: float) -> None:
    once = engines(engine(), CHAT, TPOT_S)
    assert factor * once == pytest.approx(engines(engine(), CHAT.times(factor), TPOT_S))


def test_watts_are_of_steps_of_tokens_and_of_being_loaded() -> None:
    """By hand: 2.4 J a step beyond idle at 25 steps a second, the tokens' own, and 40 W for each loaded engine."""
    num = engines(engine(), CHAT, TPOT_S)
    of_steps = num * (3.0 - 100.0 * 0.006) / (PACE_RATIO * TPOT_S)
    of_tokens = 10_000 * (0.02 - 100.0 * 3e-5) + 2_000 * (0.06 - 100.0 * 1e-4)
    assert of_steps + of_tokens + num * 40.0 == pytest.approx(watts(engine(), CHAT, TPOT_S))


def test_an_engine_that_cannot_be_parked_saves_nothing() -> None:
    assert (40.0, 0.0) == (saved_watts(engine()), saved_watts(engine(power_states=None)))


def test_without_sound_curves_it_is_the_prior() -> None:
    broken = StepCurves(time_s=(float("nan"), 0.0, 0.0, 0.0), energy_joules=CURVES.energy_joules, idle_watts=0.0)
    assert PRIOR_CURVES is curves_of(engine(curves=None))
    assert PRIOR_CURVES is curves_of(engine(curves=broken))
