"""The simulated counter: ticks, idle between steps, a file that outlives its writer, faults."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import MeterUnavailable
from workers.simulated_counter import FILE_LAYOUT, MAGIC, CounterFile, CounterValue, SimulatedCounter


def counter(**values: object) -> SimulatedCounter:
    return SimulatedCounter(idle_watts=100.0, refresh_s=0.1, **values)  # type: ignore[arg-type]


def test_idle_device_counts_its_idle_watts() -> None:
    """Never a silent 0: a loaded engine draws power."""
    assert counter().read(10.0).counter_mj == 1_000_000


def test_value_moves_only_at_its_tick() -> None:
    """Between two ticks the shown value stands, and says when it last moved."""
    shown = counter()
    values = [shown.read(at_s) for at_s in (1.0, 1.05, 1.0999, 1.15)]
    assert [value.counter_mj for value in values] == [100_000, 100_000, 100_000, 110_000]
    assert [value.at_s for value in values] == pytest.approx([1.0, 1.0, 1.0, 1.1])


def test_step_adds_its_energy_evenly_over_its_time() -> None:
    """A tick inside a step sees the part that is done."""
    shown = counter()
    shown.add_step(1.0, 2.0, 500.0)
    assert [shown.joules(at_s) for at_s in (0.5, 1.0, 1.5, 2.0, 3.0)] == [50.0, 100.0, 350.0, 600.0, 700.0]


def test_back_to_back_steps_leave_no_idle() -> None:
    """Busy time is paid by steps alone."""
    shown = counter()
    for index in range(10):
        shown.add_step(index * 0.1, (index + 1) * 0.1, 7.0)
    assert shown.joules(1.0) == pytest.approx(70.0)


def test_cut_step_keeps_what_was_used() -> None:
    """A jump over many steps that was cut short."""
    shown = counter()
    shown.add_step(0.0, 10.0, 1_000.0)
    shown.cut_step(2.0, 200.0)
    assert shown.joules(3.0) == pytest.approx(300.0)


def test_history_is_bounded() -> None:
    """A day of steps takes no more memory than two seconds of them."""
    shown = counter()
    for index in range(100_000):
        shown.add_step(index * 0.01, (index + 1) * 0.01, 1.0)
    assert len(shown._segments) < 300
    assert shown.joules(1_000.0) == pytest.approx(100_000.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.floats(0.001, 0.5), st.floats(0, 400), st.floats(0, 0.3)), min_size=1, max_size=40
    )
)
def test_counter_never_steps_back_and_ends_exact(steps: list[tuple[float, float, float, float]]) -> None:
    """Any steps, gaps and readings: monotone, and in the end the sum of everything, to the millijoule."""
    shown, now_s, expected, last_mj = counter(), 0.0, 0.0, 0
    for gap_s, length_s, joules, look_s in steps:
        started_s = now_s + gap_s
        shown.add_step(started_s, started_s + length_s, joules)
        expected += gap_s * 100 + joules
        now_s = started_s + length_s
        value = shown.read(started_s + min(look_s, length_s))
        assert value.counter_mj >= last_mj
        last_mj = value.counter_mj
    end_s = (now_s // 0.1 + 2) * 0.1
    assert shown.joules(end_s) == pytest.approx(expected + (end_s - now_s) * 100, abs=1e-6)
    assert shown.read(end_s + 0.05).counter_mj >= last_mj


# -- the file


def test_file_is_read_from_outside_and_continued(tmp_path: Path) -> None:
    """An observer sees what the meter saw; a restarted engine goes on from there."""
    path = tmp_path / "deep" / "counter"
    first = counter(path=path)
    observer = CounterFile(path)
    value = first.read(5.0)
    assert observer.read() == value == CounterValue(at_s=5.0, counter_mj=500_000)
    second = counter(path=path, started_s=100.0)
    assert second.read(100.0).counter_mj == 500_000
    assert second.read(101.0).counter_mj == observer.read().counter_mj == 600_000


def test_writer_killed_inside_a_write_does_not_stop_its_successor(tmp_path: Path) -> None:
    """An odd sequence lock is left behind: readers end, the next writer repairs it."""
    path = tmp_path / "counter"
    path.write_bytes(FILE_LAYOUT.pack(MAGIC, 7, 1.0, 42))
    assert CounterFile(path).read().counter_mj == 42
    CounterFile(path, write=True).write(CounterValue(at_s=2.0, counter_mj=50))
    assert (CounterFile(path).read().counter_mj, FILE_LAYOUT.unpack(path.read_bytes())[1] % 2) == (50, 0)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 64])
def test_file_that_holds_no_counter_is_refused(tmp_path: Path, content: bytes) -> None:
    """A wrong path must not pass for a counter at 0."""
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(MeterUnavailable, match="other"):
        CounterFile(path)


def test_missing_file_is_refused_for_readers(tmp_path: Path) -> None:
    """Only an engine creates it."""
    with pytest.raises(MeterUnavailable):
        CounterFile(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_closed_counter_leaves_its_value(tmp_path: Path) -> None:
    """Closing twice is harmless."""
    shown = counter(path=tmp_path / "counter")
    shown.read(1.0)
    shown.close()
    shown.close()
    assert CounterFile(tmp_path / "counter").read().counter_mj == 100_000


# -- faults


def test_lost_meter_goes_on_counting() -> None:
    """Nobody can read it, but the energy is there when it is back."""
    shown = counter()
    shown.lose()
    with pytest.raises(MeterUnavailable):
        shown.read(1.0)
    shown.find()
    assert shown.read(2.0).counter_mj == 200_000


def test_stuck_counter_stands_and_catches_up() -> None:
    """The value and its time stand still; the device does not."""
    shown = counter()
    shown.read(1.0)
    shown.stick()
    assert shown.read(9.0) == CounterValue(at_s=1.0, counter_mj=100_000)
    shown.find()
    assert shown.read(10.0).counter_mj == 1_000_000


def test_reset_begins_at_zero(tmp_path: Path) -> None:
    """In the file as well."""
    shown = counter(path=tmp_path / "counter")
    shown.read(3.0)
    shown.reset(3.0)
    assert CounterFile(tmp_path / "counter").read().counter_mj == 0
    assert shown.read(4.0).counter_mj == 100_000


# -- what it draws between steps


def test_a_device_that_is_parked_and_started_draws_what_it_is_told() -> None:
    """100 W idle, 60 W parked, 200 W starting: read just after each change, the tick before it is as it was."""
    shown, seen = counter(), list[int]()
    for at_s, watts in ((10.05, 60.0), (20.05, 200.0), (25.05, 100.0)):
        shown.draw(watts, at_s)
        seen.append(shown.read(at_s).counter_mj)
    assert [1_000_000, 1_602_000, 2_595_000] == seen
    assert pytest.approx(1_005 + 600 + 1_000 + 95) == shown.joules(26.0)


def test_steps_after_a_change_leave_the_new_watts_between_them() -> None:
    shown = counter()
    shown.draw(50.0, 1.0)
    shown.add_step(2.0, 3.0, 500.0)
    shown.add_step(4.0, 5.0, 500.0)
    assert [100.0, 150.0, 650.0, 700.0, 1_200.0, 1_250.0] == [shown.joules(at_s) for at_s in range(1, 7)]


def test_a_step_under_way_ends_as_it_would() -> None:
    """Its energy is known from its start; the change counts from its end."""
    shown = counter()
    shown.add_step(0.0, 2.0, 500.0)
    shown.draw(60.0, 1.0)
    assert [250.0, 500.0, 560.0] == [shown.joules(at_s) for at_s in (1.0, 2.0, 3.0)]


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.sampled_from([0.0, 60.0, 100.0, 200.0])), max_size=20))
def test_changing_watts_never_takes_anything_back(changes: list[tuple[float, float]]) -> None:
    """A reader sees the same sum or more, whenever it looks, and in the end the integral."""
    shown, now_s, watts, expected, last_mj = counter(), 0.0, 100.0, 0.0, 0
    for after_s, next_watts in changes:
        now_s, expected = now_s + after_s, expected + watts * after_s
        seen_mj = shown.read(now_s).counter_mj
        assert seen_mj >= last_mj
        last_mj, watts = seen_mj, next_watts
        shown.draw(watts, now_s)
        assert pytest.approx(expected) == shown.joules(now_s)
