"""An energy counter as a simulated device would show it: cumulative, integer millijoules, moving in ticks.

Written by ``workers.engines.simulated``, read by ``workers.power.simulated`` and, through its file, by observers in
other processes. It must never know sequences, windows or a fitted model.

Between two steps the device draws its idle watts, or what it is told that it draws meanwhile; a step adds its energy
evenly over its time. What a reader sees is the exact sum at the last refresh tick, floored to a millijoule, so the
shown counter never steps back.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from workers.errors import MeterUnavailable

FILE_LAYOUT = struct.Struct("<8sQdQ")
"""Magic, sequence lock (odd while written), monotonic seconds of the tick, cumulative millijoules."""
MAGIC = b"JWCOUNT1"
HISTORY_S = 2.0
"""How far back a tick may lie: the longest refresh is a tenth of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterValue:
    """What the counter showed, and when it last moved (monotonic seconds)."""

    at_s: float
    counter_mj: int


class CounterFile:
    """The shown value in a memory-mapped file: it outlives the process, a SIGKILL included (not the machine)."""

    def __init__(self, path: str | Path, *, write: bool = False) -> None:
        """Raises: MeterUnavailable where the file is missing (readers) or is no counter."""
        self.path = Path(path)
        is_new = write and (not self.path.exists() or self.path.stat().st_size == 0)
        if is_new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Whole or not at all: an observer never maps a half-written file.
            draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            draft.write_bytes(FILE_LAYOUT.pack(MAGIC, 0, 0.0, 0))
            draft.replace(self.path)
        try:
            with self.path.open("r+b" if write else "rb") as file:
                access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
                self._map = mmap.mmap(file.fileno(), FILE_LAYOUT.size, access=access)
        except (OSError, ValueError) as error:
            raise MeterUnavailable(f"counter file {self.path} cannot be read: {error}") from error
        magic, self._sequence, _, _ = FILE_LAYOUT.unpack_from(self._map)
        if magic != MAGIC:
            self._map.close()
            raise MeterUnavailable(f"counter file {self.path} does not hold a simulated counter")
        self._sequence += self._sequence % 2  # its writer was killed in the middle of a write

    def read(self) -> CounterValue:
        """The last published value. A value that its writer was killed over is read as it stands."""
        for _ in range(100):
            _, before, at_s, counter_mj = FILE_LAYOUT.unpack_from(self._map)
            if before % 2 == 0 and FILE_LAYOUT.unpack_from(self._map)[1] == before:
                break
        return CounterValue(at_s=at_s, counter_mj=counter_mj)

    def write(self, value: CounterValue) -> None:
        """Publishes a value for every other process."""
        struct.pack_into("<Q", self._map, 8, self._sequence + 1)
        struct.pack_into("<dQ", self._map, 16, value.at_s, value.counter_mj)
        self._sequence += 2
        struct.pack_into("<Q", self._map, 8, self._sequence)

    def close(self) -> None:
        self._map.close()


@dataclass(slots=True)
class _Segment:
    started_s: float
    ended_s: float
    before_joules: float
    """Cumulative energy at ``started_s``."""
    joules: float
    then_watts: float
    """Drawn from its end to the next one."""


def _floor_mj(joules: float) -> int:
    # A sum of floats may lie a hair below the millijoule that it is.
    return math.floor(joules * 1000 + 1e-6)


class SimulatedCounter:
    """Cumulative energy of one simulated device. Steps are added in order of time; any later moment can be read.

    ``refresh_s`` is the period in which the shown value moves (20–100 ms on real boards). With ``path`` the value lives
    in a file as well and continues from there: a restarted engine goes on where the last one was killed.
    """

    def __init__(
        self, *, idle_watts: float, refresh_s: float = 0.1, started_s: float = 0.0, path: str | Path | None = None
    ) -> None:
        self._between_watts = idle_watts
        self._refresh_s = refresh_s
        self._file = None if path is None else CounterFile(path, write=True)
        before_mj = 0 if self._file is None else self._file.read().counter_mj
        self._segments: deque[_Segment] = deque([_Segment(started_s, started_s, before_mj / 1000, 0.0, idle_watts)])
        self._shown = CounterValue(at_s=started_s, counter_mj=before_mj)
        self._zero_mj = 0
        self._is_lost = False
        self._is_stuck = False

    # -- the device's side

    def add_step(self, started_s: float, ended_s: float, joules: float) -> None:
        """A step's energy, known at its start. ``started_s`` must not lie before the end of the step before."""
        segments = self._segments
        last = segments[-1]
        idle_joules = max(started_s - last.ended_s, 0.0) * last.then_watts
        before_joules = last.before_joules + last.joules + idle_joules
        segments.append(_Segment(started_s, ended_s, before_joules, joules, self._between_watts))
        while len(segments) > 2 and segments[1].ended_s < started_s - HISTORY_S:
            segments.popleft()

    def draw(self, watts: float, at_s: float) -> None:
        """From here on it draws so much between steps: idle, parked or starting. A step under way ends as it would."""
        self._between_watts, at_s = watts, max(at_s, self._segments[-1].ended_s)
        self.add_step(at_s, at_s, 0.0)

    def cut_step(self, ended_s: float, joules: float) -> None:
        """The last step was cut short (or stretched): it ends at ``ended_s`` with ``joules`` in all."""
        self._segments[-1].ended_s = ended_s
        self._segments[-1].joules = joules

    def joules(self, at_s: float) -> float:
        """The exact energy up to ``at_s``, which no reader of a real device would ever see."""
        for segment in reversed(self._segments):
            if at_s >= segment.ended_s:
                idle_joules = (at_s - segment.ended_s) * segment.then_watts
                return segment.before_joules + segment.joules + idle_joules
            if at_s >= segment.started_s:
                done_ratio = (at_s - segment.started_s) / (segment.ended_s - segment.started_s)
                return segment.before_joules + segment.joules * done_ratio
            # In the gap before this step: the segment below answers.
        return self._segments[0].before_joules

    # -- the reader's side

    def read(self, now_s: float) -> CounterValue:
        """What the device shows at ``now_s``. Raises: MeterUnavailable while the meter is lost."""
        if self._is_lost:
            raise MeterUnavailable("the simulated meter was lost (fault switch)")
        return self.publish(now_s)

    def publish(self, now_s: float) -> CounterValue:
        """Moves the shown value to the last tick before ``now_s``, in the file too."""
        tick_s = self._tick_s(now_s)
        if tick_s > self._shown.at_s and not self._is_stuck:
            counter_mj = _floor_mj(self.joules(tick_s)) - self._zero_mj
            self._shown = CounterValue(at_s=tick_s, counter_mj=max(counter_mj, self._shown.counter_mj))
            if self._file is not None:
                self._file.write(self._shown)
        return self._shown

    def _tick_s(self, now_s: float) -> float:
        # 2.0 // 0.1 is 19: a moment that is a tick up to rounding is that tick.
        return math.floor(now_s / self._refresh_s + 1e-9) * self._refresh_s

    def close(self) -> None:
        """Releases the file; the value in it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # -- faults

    def lose(self) -> None:
        """Readings fail from now on; the device itself goes on counting."""
        self._is_lost = True

    def find(self) -> None:
        """The meter is back."""
        self._is_lost = self._is_stuck = False

    def stick(self) -> None:
        """The shown value stands still from now on, as some boards' counters do."""
        self._is_stuck = True

    def reset(self, now_s: float) -> None:
        """The counter begins anew at zero, as after a reload of the driver."""
        tick_s = self._tick_s(now_s)
        self._zero_mj = _floor_mj(self.joules(tick_s))
        self._shown = CounterValue(at_s=tick_s, counter_mj=0)
        if self._file is not None:
            self._file.write(self._shown)
