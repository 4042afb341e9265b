"""Energy modelled from the engine's CPU-seconds, for machines without any meter: grade D, always.

Called by ``workers.power.choose``. It must never know a step, a token or a fitted curve: a model that shared the step
model's inputs could only confirm it.

joules = CPU-seconds of the engine's process trees × watts of a busy core + idle watts × time loaded. Both watts are
assumptions that are printed with the figures. Children that end hand their CPU-seconds to their parent (``cutime``);
what was counted for them while they lived is not counted again, and the sum never steps back.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.errors import MeterUnavailable
from workers.types import Grade
from workers.windows import MeterReading

ProcessId = tuple[int, int]
"""pid and start time in clock ticks: a pid alone may be another process tomorrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTimes:
    """One process as /proc shows it; times in clock ticks."""

    parent_pid: int
    started_ticks: int
    own_ticks: int
    reaped_ticks: int
    """Of all its ended and reaped descendants."""


def parse_stat(text: str) -> ProcessTimes:
    """Reads ``/proc/PID/stat`` (proc(5)); the command's name may itself hold blanks and brackets."""
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessTimes(
        parent_pid=int(fields[1]),
        started_ticks=int(fields[19]),
        own_ticks=int(fields[11]) + int(fields[12]),
        reaped_ticks=int(fields[13]) + int(fields[14]),
    )


def read_processes(proc: Path) -> dict[int, ProcessTimes]:
    """Every process there is; those that end meanwhile are left out."""
    processes = {}
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            try:
                processes[int(entry.name)] = parse_stat((proc / entry.name / "stat").read_text())
            except (OSError, ValueError, IndexError):
                continue
    return processes


class CpuSecondsMeter:
    """CPU-seconds of the trees under ``pids`` × ``watts_per_cpu_second`` + ``idle_watts`` × time."""

    name = "modelled:cpu-seconds"

    def __init__(
        self,
        pids: tuple[int, ...],
        *,
        watts_per_cpu_second: float,
        idle_watts: float,
        proc: Path = Path("/proc"),
        ticks_per_s: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises: MeterUnavailable where none of ``pids`` can be seen."""
        self._pids = pids
        self._watts_per_cpu_second = watts_per_cpu_second
        self._idle_watts = idle_watts
        self._proc = proc
        self._ticks_per_s = ticks_per_s or os.sysconf("SC_CLK_TCK")
        self._clock = clock
        self._seen: dict[ProcessId, ProcessTimes] = {}
        self._roots: dict[int, int] = {}
        self._active_ticks = 0
        self._lost: tuple[str, ...] = ()
        processes = self._read()
        for pid in pids:
            if pid in processes:
                self._roots[pid] = processes[pid].started_ticks
        if not self._roots:
            named = ", ".join(map(str, pids)) or "none given"
            raise MeterUnavailable(f"no engine process to count the CPU-seconds of: {named}")
        self._count(processes)
        self._active_ticks = 0  # what the engine burned before it was metered is nobody's
        self._loaded_s = 0.0
        self._loaded_since_s: float | None = clock()

    def read(self) -> MeterReading:
        """Raises: MeterUnavailable when all of the engine's processes are gone, unless it is parked."""
        now_s = self._clock()
        if self._loaded_since_s is None:
            return self._reading(now_s)
        processes = self._read()
        self._count(processes)
        alive = [pid for pid in self._roots if self._is_root_alive(pid, processes)]
        self._lost = tuple(f"process_gone: {pid}" for pid in self._roots if pid not in alive)
        if not alive:
            raise MeterUnavailable(f"the engine's processes are gone: {', '.join(map(str, self._roots))}")
        return self._reading(now_s)

    def follow(self, pids: tuple[int, ...]) -> None:
        """These are the engine from now on, with all that they ever burned; none: it is parked and burns nothing."""
        now_s = self._clock()
        if self._loaded_since_s is not None:
            self._loaded_s += now_s - self._loaded_since_s
        self._loaded_since_s = now_s if pids else None
        processes = self._read()
        self._pids, self._seen, self._lost = pids, {}, ()
        self._roots = {pid: processes[pid].started_ticks for pid in pids if pid in processes}
        self._count(processes)

    def _reading(self, now_s: float) -> MeterReading:
        loaded_s = self._loaded_s + (0.0 if self._loaded_since_s is None else now_s - self._loaded_since_s)
        cpu_s = self._active_ticks / self._ticks_per_s
        joules = cpu_s * self._watts_per_cpu_second + loaded_s * self._idle_watts
        return MeterReading(at_s=now_s, counter_mj=math.floor(joules * 1000 + 1e-6), grade=Grade.D)

    def health(self) -> tuple[str, ...]:
        return self._lost

    def close(self) -> None:
        self._seen.clear()

    def _read(self) -> dict[int, ProcessTimes]:
        try:
            return read_processes(self._proc)
        except OSError as error:
            raise MeterUnavailable(f"{self._proc} cannot be read: {error}") from error

    def _is_root_alive(self, pid: int, processes: dict[int, ProcessTimes]) -> bool:
        return pid in processes and processes[pid].started_ticks == self._roots[pid]

    def _count(self, processes: dict[int, ProcessTimes]) -> None:
        """Adds what the trees burned since the last look; every term is clamped, so the sum never steps back.

        A child that ended since then is in its reaper's reaped ticks in full: what was counted for it while it lived is
        taken off there. Where nobody in the tree reaped it, what was counted simply stays.
        """
        tree = self._tree(processes)
        parents = {process_id[0]: (process_id, times.parent_pid) for process_id, times in self._seen.items()}
        counted_ticks: dict[ProcessId, int] = {}
        for process_id, before in self._seen.items():
            if process_id not in tree:
                reaper = before.parent_pid
                while reaper in parents and parents[reaper][0] not in tree:
                    reaper = parents[reaper][1]
                if reaper in parents:
                    reaper_id = parents[reaper][0]
                    counted = before.own_ticks + before.reaped_ticks
                    counted_ticks[reaper_id] = counted_ticks.get(reaper_id, 0) + counted
        for process_id, times in tree.items():
            known = self._seen.get(process_id)
            own_ticks = times.own_ticks - (known.own_ticks if known else 0)
            reaped_ticks = times.reaped_ticks - (known.reaped_ticks if known else 0)
            self._active_ticks += max(own_ticks, 0) + max(reaped_ticks - counted_ticks.get(process_id, 0), 0)
        self._seen = tree

    def _tree(self, processes: dict[int, ProcessTimes]) -> dict[ProcessId, ProcessTimes]:
        """The living processes under the roots; one whose parent ended stays ours."""
        children: dict[int, list[int]] = {}
        for pid, times in processes.items():
            children.setdefault(times.parent_pid, []).append(pid)
        known = {pid for pid, started in self._seen if pid in processes and processes[pid].started_ticks == started}
        waiting = [pid for pid in self._roots if self._is_root_alive(pid, processes)] + sorted(known)
        tree: dict[ProcessId, ProcessTimes] = {}
        while waiting:
            pid = waiting.pop()
            times = processes[pid]
            if (pid, times.started_ticks) not in tree:
                tree[pid, times.started_ticks] = times
                waiting += children.get(pid, ())
        return tree
