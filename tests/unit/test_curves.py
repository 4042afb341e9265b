"""What work takes beyond idling, by hand; and what is assumed where nobody has measured it."""

import math

import pytest

from scheduler.catalogue import load_catalogue
from scheduler.core.curves import PRIOR_CURVES, PRIOR_WATTS_PER_GPU, beyond_idle, is_sound, said_of
from workers.step_curves import StepCurves

H100 = StepCurves(
    time_s=(0.006672, 3.25e-5, 8.94604e-5, 0.0),
    energy_joules=(3.16232, 0.0216, 0.0665024, 0.0),
    idle_watts=119.0,
    source="simulation_constants.csv",
)


def changed(**fields: object) -> StepCurves:
    values = {name: getattr(H100, name) for name in H100.__struct_fields__}
    return StepCurves(**{**values, **fields})


def test_what_it_draws_idle_is_nobodys_work() -> None:
    """An H100 with an 8B model: 2.37 of the 3.16 J that a step takes at least."""
    assert beyond_idle(H100, 1) == pytest.approx((2.368352, 0.0177325, 0.0558566, 0.0), rel=1e-5)


def test_a_device_that_idles_for_more_takes_nothing_not_less() -> None:
    assert 0.0 == beyond_idle(changed(idle_watts=10_000.0), 1)[0]


@pytest.mark.parametrize(
    "unknown",
    [
        PRIOR_CURVES,
        changed(source="prior"),
        changed(energy_joules=(math.nan, 0.0, 0.0, 0.0)),
        changed(energy_joules=(-1.0, 0.0, 0.0, 0.0)),
        changed(idle_watts=math.inf),
    ],
    ids=["none", "unfitted", "nan", "below 0", "infinite idle"],
)
def test_what_nobody_measured_is_taken_for_all_that_the_boards_can_draw(unknown: StepCurves) -> None:
    """Else a worker that has just begun would win every comparison."""
    assert tuple(2 * PRIOR_WATTS_PER_GPU * each for each in unknown.time_s) == beyond_idle(unknown, 2)
    assert beyond_idle(H100, 1) < beyond_idle(changed(source="prior"), 1)


@pytest.mark.parametrize("wrong", [math.nan, -1.0, math.inf])
def test_times_that_cannot_be_are_not_computed_with(wrong: float) -> None:
    """Whatever its energy says."""
    assert is_sound(H100)
    assert not is_sound(changed(time_s=(0.01, wrong, 0.0, 0.0)))


def test_no_board_of_the_catalogue_draws_more_than_is_assumed_of_the_unknown() -> None:
    """Else the one GPU that nobody has measured would be the cheapest."""
    assert PRIOR_WATTS_PER_GPU == max(gpu.board_watts for gpu in load_catalogue().gpus.values())


@pytest.mark.parametrize(
    ("curves", "num_running", "words"),
    [
        (H100, 10**9, "simulation_constants.csv"),
        (changed(batch_range=(8.0, 691.0)), 7, "simulation_constants.csv"),
        (changed(batch_range=(8.0, 691.0)), 690, "simulation_constants.csv"),
        (
            changed(batch_range=(8.0, 691.0)),
            6,
            "simulation_constants.csv, extrapolated: measured at 8 to 691 sequences",
        ),
        (
            changed(batch_range=(8.0, 691.0)),
            691,
            "simulation_constants.csv, extrapolated: measured at 8 to 691 sequences",
        ),
        (None, 0, "none: 1000 W a GPU"),
        (PRIOR_CURVES, 0, "none: 1000 W a GPU"),
        (changed(time_s=(math.nan, 0.0, 0.0, 0.0)), 0, "none: 1000 W a GPU"),
    ],
)
def test_whose_curve_a_worker_is_placed_by(curves: StepCurves | None, num_running: int, words: str) -> None:
    """The newcomer counts: with it one more runs there."""
    assert words == said_of(curves, num_running)
