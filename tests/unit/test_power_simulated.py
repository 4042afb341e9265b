"""The simulated meter reads a counter like a real one, names its faults, and is always graded D."""

from pathlib import Path

import pytest

from workers.errors import MeterUnavailable
from workers.power.simulated import SimulatedMeter
from workers.simulated_counter import SimulatedCounter
from workers.types import Grade


class Clock:
    def __init__(self) -> None:
        self.now_s = 1.0

    def __call__(self) -> float:
        return self.now_s


def test_reading_is_stamped_with_the_tick_and_graded_d() -> None:
    """A window's edge lies where the counter moved."""
    clock = Clock()
    meter = SimulatedMeter(SimulatedCounter(idle_watts=100.0, refresh_s=0.5), clock=clock)
    clock.now_s = 2.3
    reading = meter.read()
    assert (reading.at_s, reading.counter_mj, reading.grade, reading.fault) == (2.0, 200_000, Grade.D, "")
    assert (meter.name, meter.health()) == ("simulated:counter", ())


def test_file_of_another_process_is_read(tmp_path: Path) -> None:
    """The observer's way: no engine at hand."""
    counter = SimulatedCounter(idle_watts=100.0, path=tmp_path / "counter")
    counter.publish(3.0)
    meter = SimulatedMeter(tmp_path / "counter", clock=lambda: 3.05)
    assert meter.read().counter_mj == 300_000
    meter.close()
    with pytest.raises(MeterUnavailable, match="closed"):
        meter.read()


def test_missing_file_is_unavailable(tmp_path: Path) -> None:
    """Said at once, not at the first window."""
    with pytest.raises(MeterUnavailable, match="none"):
        SimulatedMeter(tmp_path / "none")


def test_lost_meter_is_unavailable() -> None:
    """By the fault switch, as a GPU that fell off the bus."""
    counter = SimulatedCounter(idle_watts=100.0)
    meter = SimulatedMeter(counter, clock=Clock())
    counter.lose()
    with pytest.raises(MeterUnavailable, match="lost"):
        meter.read()


def test_reset_is_named_once() -> None:
    """The next reading is well again."""
    clock, counter = Clock(), SimulatedCounter(idle_watts=100.0)
    meter = SimulatedMeter(counter, clock=clock)
    meter.read()
    counter.reset(1.0)
    clock.now_s = 1.5
    assert meter.read().fault.startswith("counter_reset: from 100000 to")
    assert len(meter.health()) == 1
    clock.now_s = 2.0
    assert (meter.read().fault, meter.health()) == ("", ())


def test_standing_counter_is_named() -> None:
    """More than 5 s without a move: even an idle device moves."""
    clock, counter = Clock(), SimulatedCounter(idle_watts=100.0)
    meter = SimulatedMeter(counter, clock=clock)
    meter.read()
    counter.stick()
    clock.now_s = 7.0
    assert meter.read().fault.startswith("counter_stalled: no change for 6.0 s")
