"""RAPL: packages only, wrap-around, and what cannot be read is said."""

from pathlib import Path

import pytest

from workers.errors import MeterUnavailable
from workers.power.rapl import RaplMeter
from workers.types import Grade


class Host:
    """A powercap tree with scripted counters."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 0.0

    def zone(self, path: str, name: str, energy_uj: int, *, range_uj: int = 1_000_000_000) -> None:
        folder = self.root / path
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.set(path, energy_uj)

    def set(self, path: str, energy_uj: int) -> None:
        (self.root / path / "energy_uj").write_text(f"{energy_uj}\n")

    def meter(self) -> RaplMeter:
        return RaplMeter(self.root, clock=lambda: self.now_s)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_packages_are_summed_and_graded_c(host: Host) -> None:
    """Everything that runs on the host is in it: grade C."""
    host.zone("intel-rapl:0", "package-0", 5_000_000)
    host.zone("intel-rapl:1", "package-1", 9_000_000)
    meter = host.meter()
    host.set("intel-rapl:0", 6_000_000)
    host.set("intel-rapl:1", 11_000_000)
    host.now_s = 1.0
    reading = meter.read()
    assert (reading.counter_mj, reading.grade, reading.at_s) == (3_000, Grade.C, 1.0)
    assert meter.name == "rapl:package-0+package-1"


def test_parts_and_platform_are_not_counted_twice(host: Host) -> None:
    """Core and dram lie inside or beside a package, psys around it: package scope only."""
    host.zone("intel-rapl:0", "package-0", 0)
    host.zone("intel-rapl:0:0", "core", 0)
    host.zone("intel-rapl:1", "psys", 0)
    meter = host.meter()
    for path in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        host.set(path, 7_000_000)
    assert (meter.read().counter_mj, meter.name) == (7_000, "rapl:package-0")


def test_wrap_around_is_no_loss(host: Host) -> None:
    """The counter begins anew at its range; the sum does not."""
    host.zone("intel-rapl:0", "package-0", 990_000_000, range_uj=1_000_000_000)
    meter = host.meter()
    readings = []
    for energy_uj in (999_000_000, 4_000_000, 5_000_000, 1_000_000):
        host.set("intel-rapl:0", energy_uj)
        readings.append(meter.read().counter_mj)
    assert readings == [9_000, 14_000, 15_000, 1_011_000]


def test_small_moves_are_not_rounded_away(host: Host) -> None:
    """Microjoules are kept between readings."""
    host.zone("intel-rapl:0", "package-0", 0)
    meter = host.meter()
    for step in range(1, 11):
        host.set("intel-rapl:0", step * 600)
        counter_mj = meter.read().counter_mj
    assert counter_mj == 6


def test_standing_counter_is_named(host: Host) -> None:
    """Virtual machines show packages that never move: never a silent 0."""
    host.zone("intel-rapl:0", "package-0", 5)
    meter = host.meter()
    host.now_s = 5.1
    assert meter.read().fault.startswith("counter_stalled")
    assert len(meter.health()) == 1
    host.set("intel-rapl:0", 5_005)
    assert (meter.read().fault, meter.health()) == ("", ())


def test_no_package_is_unavailable(host: Host) -> None:
    """Most virtual machines."""
    with pytest.raises(MeterUnavailable, match="no RAPL package"):
        host.meter()


def test_unreadable_counter_names_the_remedy(host: Host) -> None:
    """Since 2020 only root may read it by default; half of a host is no meter either."""
    host.zone("intel-rapl:0", "package-0", 0)
    host.zone("intel-rapl:1", "package-1", 0)
    (host.root / "intel-rapl:1" / "energy_uj").unlink()
    with pytest.raises(MeterUnavailable, match=r"intel-rapl:1.*udev"):
        host.meter()


def test_vanished_package_is_unavailable(host: Host) -> None:
    """A part of the sum is no sum."""
    host.zone("intel-rapl:0", "package-0", 0)
    meter = host.meter()
    (host.root / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(MeterUnavailable, match="any more"):
        meter.read()
    meter.close()
