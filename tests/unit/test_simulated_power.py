"""What a simulated engine draws: every second is in one state, and each state has its watts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.simulation.power import Draw, EngineState, StateClock, StateJoules

DRAW = Draw(idle_watts=100.0, parked_watts=50.0, start_s=10.0, start_watts=200.0)


def test_by_hand() -> None:
    """60 s loaded of which 20 s of steps, 30 s parked, 10 s starting, 5 s loaded."""
    clock = StateClock()
    clock.change(EngineState.PARKED, 60.0)
    clock.change(EngineState.STARTING, 90.0)
    clock.change(EngineState.LOADED, 100.0)
    found = clock.joules(DRAW, step_joules=7_000.0, busy_s=20.0, end_s=105.0)
    assert StateJoules(steps=7_000.0, idle=4_500.0, starting=2_000.0, parked=1_500.0) == found
    assert (15_000.0, 1) == (found.total, clock.num_wakes)


def test_an_engine_that_is_left_alone_idles() -> None:
    assert 100.0 * 42.0 == StateClock().joules(DRAW, step_joules=0.0, busy_s=0.0, end_s=42.0).total


def test_states_add_up_over_engines() -> None:
    one = StateJoules(steps=1.0, idle=2.0, starting=3.0, parked=4.0)
    assert StateJoules(steps=2.0, idle=4.0, starting=6.0, parked=8.0) == one + one


@given(st.lists(st.tuples(st.sampled_from(EngineState), st.floats(0, 1e4)), max_size=20), st.floats(0, 1e4))
def test_every_second_is_in_one_state(changes: list[tuple[EngineState, float]], more_s: float) -> None:
    """Whatever the order."""
    clock, now_s = StateClock(), 0.0
    for state, after_s in changes:
        now_s += after_s
        clock.change(state, now_s)
    end_s = now_s + more_s
    assert sum(clock.spent_s(state, end_s) for state in EngineState) == pytest.approx(end_s)
