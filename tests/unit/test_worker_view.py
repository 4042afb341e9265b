"""What the core takes of a worker's status."""

import pytest

from scheduler.core.worker_view import WorkerView
from workers.step_curves import PowerStates, StepCurves
from workers.types import EngineInfo, WorkerState, WorkerStatus

INFO = EngineInfo(
    engine="e", version="1", models=("m",), max_model_len_tokens=9, kv_tokens=77, max_sequences=0, num_gpus=4
)
CURVES = StepCurves(
    time_s=(0.1, 0.0, 0.0, 0.0), energy_joules=(1.0, 0.0, 0.0, 0.0), idle_watts=1.0, source="s", batch_range=(0.0, 6.0)
)


def status(**fields: object) -> WorkerStatus:
    return WorkerStatus(worker_id="w", state=WorkerState.READY, **fields)  # type: ignore[arg-type]


def test_a_status_is_taken_over() -> None:
    """A worker takes one sequence at least, and as many attempts as its configuration says."""
    states = PowerStates(parked_watts=1.0, start_s=2.0, start_watts=3.0)
    found = WorkerView.of(
        status(info=INFO, zone="z", num_running=5, num_waiting=2, kv_used_tokens=9, curves=CURVES, power_states=states),
        max_running=3,
    )
    assert WorkerView(
        worker_id="w", state=WorkerState.READY, models=("m",), zone="z", kv_tokens=77, max_sequences=1, max_running=3,
        num_gpus=4, num_running=5, num_waiting=2, kv_used_tokens=9, curves=CURVES, power_states=states,
    ) == found  # fmt: skip


def test_who_says_ready_without_an_engine_still_starts() -> None:
    """It serves no model yet."""
    found = WorkerView.of(status())
    assert (WorkerState.STARTING, (), 0) == (found.state, found.models, found.kv_tokens)


@pytest.mark.parametrize(
    ("num_running", "curves", "word"),
    [
        (5, CURVES, "s"),
        (6, CURVES, "s, extrapolated: measured at 0 to 6 sequences"),
        (0, None, "none: 1000 W a GPU"),
    ],
)
def test_whose_curve_it_is_placed_by(num_running: int, curves: StepCurves | None, word: str) -> None:
    assert word == WorkerView.of(status(info=INFO, num_running=num_running, curves=curves)).curve_word
