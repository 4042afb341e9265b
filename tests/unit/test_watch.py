"""Sick, hung, orphaned: the rules at their edges, on time as an argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.types import WorkerState
from workers.watch import Verdict, Watch


def watch(*, stall_s: float = 10.0, orphan_s: float = 100.0) -> Watch:
    return Watch(stall_timeout_s=stall_s, orphan_timeout_s=orphan_s, now_s=0.0)


@pytest.mark.parametrize(("now_s", "verdict"), [(10.0, Verdict.FINE), (10.1, Verdict.STALLED)])
def test_work_without_a_step_is_a_stall_after_its_time(now_s: float, verdict: Verdict) -> None:
    """Not a moment earlier."""
    assert verdict is watch().look(now_s, state=WorkerState.READY, has_work=True)


def test_time_without_work_does_not_count() -> None:
    """The stall clock starts when work comes, not when the last step ended."""
    rules = watch()
    assert Verdict.FINE is rules.look(50.0, state=WorkerState.READY, has_work=False)
    assert Verdict.FINE is rules.look(59.0, state=WorkerState.READY, has_work=True)
    assert Verdict.STALLED is rules.look(60.1, state=WorkerState.READY, has_work=True)


def test_a_step_starts_the_clock_anew() -> None:
    """Long requests are none."""
    rules = watch()
    rules.on_step(9.0)
    assert Verdict.FINE is rules.look(18.0, state=WorkerState.READY, has_work=True)
    assert 9.0 == rules.stalled_s(18.0)


def test_a_sick_worker_gets_as_long_again() -> None:
    """Then it is hung; a worker that was well in between starts from the beginning."""
    rules = watch()
    assert Verdict.FINE is rules.look(20.0, state=WorkerState.SICK, has_work=False)
    assert Verdict.FINE is rules.look(29.0, state=WorkerState.SICK, has_work=False)
    assert Verdict.FINE is rules.look(29.5, state=WorkerState.READY, has_work=False)
    assert Verdict.FINE is rules.look(31.0, state=WorkerState.SICK, has_work=False)
    assert Verdict.HUNG is rules.look(41.1, state=WorkerState.SICK, has_work=False)


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.READY, WorkerState.SICK])
def test_nobody_speaks_to_an_orphan_in_any_state(state: WorkerState) -> None:
    """Loading, serving or sick: without a control plane it ends."""
    rules = watch(stall_s=1000.0)
    rules.on_contact(5.0)
    assert Verdict.FINE is rules.look(105.0, state=state, has_work=False)
    assert Verdict.ORPHANED is rules.look(105.1, state=state, has_work=False)


@pytest.mark.parametrize("state", [WorkerState.DRAINING, WorkerState.STOPPED])
def test_who_is_leaving_is_left_alone(state: WorkerState) -> None:
    """It has its end already."""
    assert Verdict.FINE is watch().look(1e6, state=state, has_work=True)


@given(st.floats(min_value=0, max_value=1e9))
def test_zero_means_never_an_orphan(now_s: float) -> None:
    """For workers that are to outlive any pause of their control plane."""
    rules = watch(orphan_s=0.0)
    assert Verdict.ORPHANED is not rules.look(now_s, state=WorkerState.READY, has_work=False)


def test_a_start_is_no_stall() -> None:
    """Loading weights takes no steps."""
    assert Verdict.FINE is watch().look(99.0, state=WorkerState.STARTING, has_work=True)
