"""RAPL: the energy counters of the host's CPU packages, as Linux shows them under powercap. Grade C.

Called by ``workers.power.choose``. It must never know an engine: a package is shared by everything that runs on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.errors import MeterUnavailable
from workers.types import Grade
from workers.windows import MeterReading

POWERCAP = Path("/sys/class/powercap")
STALLED_AFTER_S = 5.0


@dataclass(slots=True)
class _Package:
    name: str
    path: Path
    range_uj: int
    last_uj: int
    sum_uj: int = 0

    def advance(self) -> None:
        """Adds what the counter moved; it wraps at its range, about once a minute under full load on some parts."""
        now_uj = int((self.path / "energy_uj").read_text())
        moved_uj = now_uj - self.last_uj
        self.sum_uj += moved_uj if moved_uj >= 0 else moved_uj + self.range_uj
        self.last_uj = now_uj


class RaplMeter:
    """Sum over all packages. Read it at least once per wrap-around (a minute is safe), else a wrap goes unseen."""

    def __init__(self, root: Path = POWERCAP, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises: MeterUnavailable where no package counter can be read (no RAPL, or root alone may read it)."""
        self._clock = clock
        self._packages: list[_Package] = []
        problems: list[str] = []
        for path in sorted(root.glob("intel-rapl:*")):
            # intel-rapl:0 is a package, intel-rapl:0:0 a part of it (core, dram) that would be counted twice.
            if path.name.count(":") != 1:
                continue
            try:
                name = (path / "name").read_text().strip()
                if not name.startswith("package"):
                    continue
                range_uj = int((path / "max_energy_range_uj").read_text())
                self._packages.append(_Package(name, path, range_uj, int((path / "energy_uj").read_text())))
            except (OSError, ValueError) as error:
                problems.append(f"{path.name}: {type(error).__name__}")
        if problems:
            raise MeterUnavailable(
                f"RAPL under {root} cannot be read ({', '.join(problems)}); "
                "remedy: make energy_uj readable for this user, e.g. by a udev rule"
            )
        if not self._packages:
            raise MeterUnavailable(f"no RAPL package under {root}")
        self._moved_mj = 0
        self._moved_s = clock()
        self._fault = ""

    @property
    def name(self) -> str:
        return "rapl:" + "+".join(package.name for package in self._packages)

    def read(self) -> MeterReading:
        """Raises: MeterUnavailable when a package's counter is gone."""
        try:
            for package in self._packages:
                package.advance()
        except (OSError, ValueError) as error:
            raise MeterUnavailable(f"{self.name} cannot be read any more: {type(error).__name__}") from error
        now_s = self._clock()
        counter_mj = sum(package.sum_uj for package in self._packages) // 1000
        if counter_mj != self._moved_mj:
            self._moved_mj, self._moved_s = counter_mj, now_s
        standing_s = now_s - self._moved_s
        # A host that runs us draws power: a package that shows none is broken (or virtual), and says so.
        self._fault = f"counter_stalled: no change for {standing_s:.1f} s" if standing_s > STALLED_AFTER_S else ""
        return MeterReading(at_s=now_s, counter_mj=counter_mj, grade=Grade.C, fault=self._fault)

    def health(self) -> tuple[str, ...]:
        return (self._fault,) if self._fault else ()

    def close(self) -> None:
        """Nothing is held open."""
