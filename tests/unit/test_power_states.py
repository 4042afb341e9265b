"""What parking and starting an engine takes: a prior by its kind, and what was seen instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.power_states import FIRST_START, GPU_PRIOR, MEASURED, PRIOR, PowerBook, prior_of
from workers.step_curves import PowerStates
from workers.types import Grade, MeterSpec, WorkerSpec
from workers.windows import MeterReading

START = PowerStates(parked_watts=60.0, start_s=45.0, start_watts=200.0)


def reading(at_s: float, joules: float) -> MeterReading:
    return MeterReading(at_s=at_s, counter_mj=round(joules * 1000), grade=Grade.A)


def spec(**values: object) -> WorkerSpec:
    fields: dict[str, object] = {"worker_id": "w", "engine": "vllm", "model": "m", **values}
    return WorkerSpec(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_gpus": 1}, (60.0, 45.0, 200.0)),
        ({"num_gpus": 4}, (240.0, 45.0, 800.0)),
        ({"engine": "simulated"}, (60.0, 45.0, 200.0)),
        ({"num_cpus": 2.0}, (0.0, 40.0, 24.0)),
        ({"num_cpus": 8.0, "meter": MeterSpec(watts_per_cpu_second=5.0)}, (0.0, 40.0, 40.0)),
    ],
    ids=["a GPU", "four GPUs", "simulated", "a CPU engine", "cores of other watts"],
)
def test_a_prior_is_scaled_by_the_kind_of_engine(
    values: dict[str, object], expected: tuple[float, float, float]
) -> None:
    """All its GPUs together; a CPU engine draws nothing once it is gone, and its cores' watts while it starts."""
    found = prior_of(spec(**values))
    assert (*expected, PRIOR) == (found.parked_watts, found.start_s, found.start_watts, found.source)


def test_a_first_start_says_how_long_and_no_watts() -> None:
    """Its meter was opened after it."""
    book = PowerBook(START)
    assert book.states() == START
    book.started_first(30.0)
    assert PowerStates(parked_watts=60.0, start_s=30.0, start_watts=200.0, source=FIRST_START) == book.states()


def test_the_first_wake_replaces_what_a_first_start_took() -> None:
    """Weights and libraries are in memory by then: a mean of both would be true of neither."""
    book = PowerBook(START)
    book.started_first(90.0)
    book.woke(30.0, reading(0.0, 0.0), reading(30.0, 3_000.0))
    assert PowerStates(parked_watts=60.0, start_s=30.0, start_watts=100.0, source=MEASURED) == book.states()


def test_each_further_wake_counts_as_much_as_all_before() -> None:
    book = PowerBook(START)
    for start_s in (30.0, 40.0, 45.0):
        book.woke(start_s, reading(0.0, 0.0), reading(start_s, 100 * start_s))
    assert (40.0, 100.0) == (book.states().start_s, book.states().start_watts)


@given(st.floats(1.0, 600.0), st.floats(1.0, 600.0))
def test_any_start_time_is_known_within_a_fifth_after_two_wakes(prior_s: float, true_s: float) -> None:
    """From any prior, if wakes differ by a tenth among themselves."""
    book = PowerBook(PowerStates(parked_watts=0.0, start_s=prior_s, start_watts=1.0))
    book.started_first(3 * true_s)
    for factor in (0.9, 1.1):
        book.woke(true_s * factor, None, None)
        assert abs(book.states().start_s - true_s) <= 0.2 * true_s


def test_a_start_without_a_meter_teaches_its_time_alone() -> None:
    """Watts stay what they were believed to be; so they do over a counter that began anew."""
    book = PowerBook(START)
    book.woke(20.0, None, reading(20.0, 1.0))
    book.woke(20.0, reading(0.0, 50.0), reading(20.0, 1.0))
    assert (20.0, 200.0) == (book.states().start_s, book.states().start_watts)


def test_parked_watts_are_what_the_meter_shows_meanwhile() -> None:
    """The first look replaces the prior, later ones move it; a look shorter than a counter's ticks says nothing."""
    book = PowerBook(START)
    before = reading(100.0, 1_000.0)
    book.rested(before, reading(100.5, 2_000.0))
    assert 60.0 == book.states().parked_watts
    book.rested(before, reading(110.0, 1_700.0))
    assert 70.0 == book.states().parked_watts
    book.rested(before, reading(120.0, 2_800.0))
    assert 80.0 == book.states().parked_watts
    book.rested(None, reading(130.0, 9_000.0))
    assert 80.0 == book.states().parked_watts
    assert PRIOR == book.states().source  # of the start nothing was seen yet


def test_the_gpu_prior_is_that_of_the_simulated_fleet() -> None:
    """What is decided in simulation and before the first start live rests on the same figures."""
    from scheduler.simulation.power import Draw

    draw = Draw()
    assert (draw.parked_watts, draw.start_s, draw.start_watts) == (
        GPU_PRIOR.parked_watts, GPU_PRIOR.start_s, GPU_PRIOR.start_watts
    )  # fmt: skip
