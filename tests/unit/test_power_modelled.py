"""Modelled energy from CPU-seconds: whole process trees, and never a step back whatever comes and goes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import MeterUnavailable
from workers.power.modelled import CpuSecondsMeter, parse_stat
from workers.types import Grade

TICKS_PER_S = 100


class Machine:
    """A /proc with scripted processes; ``end`` hands a process's ticks to its parent, as the kernel does on wait()."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 0.0
        self.own: dict[int, int] = {}
        self.reaped: dict[int, int] = {}
        self.parents: dict[int, int] = {}
        self.starts: dict[int, int] = {}

    def start(self, pid: int, parent: int = 1, *, ticks: int = 0, started: int = 0) -> None:
        self.own[pid], self.reaped[pid], self.parents[pid] = ticks, 0, parent
        self.starts[pid] = started or pid
        self._write(pid)

    def burn(self, pid: int, ticks: int) -> None:
        self.own[pid] += ticks
        self._write(pid)

    def end(self, pid: int, *, reaped: bool = True) -> None:
        """Ends a process; its children go to init."""
        shutil.rmtree(self.root / str(pid))
        parent = self.parents.pop(pid)
        total = self.own.pop(pid) + self.reaped.pop(pid)
        if reaped and parent in self.own:
            self.reaped[parent] += total
            self._write(parent)
        for child, its_parent in list(self.parents.items()):
            if its_parent == pid:
                self.parents[child] = 1
                self._write(child)

    def _write(self, pid: int) -> None:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        user, system = self.own[pid] // 2, self.own[pid] - self.own[pid] // 2
        fields = [
            *(str(pid), "(engine core) 1)", "S", str(self.parents[pid])),
            *["0"] * 9,
            *(str(user), str(system), str(self.reaped[pid]), "0", "20", "0", "1", "0", str(self.starts[pid])),
        ]
        (folder / "stat").write_text(" ".join(fields))

    def meter(self, *pids: int, watts: float = 10.0, idle_watts: float = 0.0) -> CpuSecondsMeter:
        return CpuSecondsMeter(
            pids, watts_per_cpu_second=watts, idle_watts=idle_watts, proc=self.root, ticks_per_s=TICKS_PER_S,
            clock=lambda: self.now_s,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_stat_is_read_behind_the_command_name() -> None:
    """A command may hold blanks and brackets."""
    times = parse_stat("42 (a) b (c) S 7 1 1 0 -1 4 0 0 0 0 11 22 33 44 20 0 1 0 9999 1 2")
    assert (times.parent_pid, times.own_ticks, times.reaped_ticks, times.started_ticks) == (7, 33, 77, 9999)


def test_cpu_seconds_times_watts_plus_idle(machine: Machine) -> None:
    """2 CPU-seconds at 10 W and 5 s at 3 W are 35 J, graded D."""
    machine.start(10, ticks=500)
    meter = machine.meter(10, idle_watts=3.0)
    machine.burn(10, 200)
    machine.now_s = 5.0
    reading = meter.read()
    assert (reading.counter_mj, reading.grade, reading.at_s) == (35_000, Grade.D, 5.0)
    assert meter.name == "modelled:cpu-seconds"


def test_what_was_burned_before_is_nobodys(machine: Machine) -> None:
    """The counter starts when it is opened, at 0."""
    machine.start(10, ticks=90_000)
    assert machine.meter(10).read().counter_mj == 0


def test_whole_tree_is_counted_and_nothing_beside_it(machine: Machine) -> None:
    """Children and grandchildren of the engine, but not the neighbour."""
    machine.start(10)
    machine.start(11, 10)
    machine.start(12, 11)
    machine.start(20)
    meter = machine.meter(10)
    for pid in (10, 11, 12, 20):
        machine.burn(pid, 100)
    assert meter.read().counter_mj == 30_000


def test_child_that_starts_later_is_counted_whole(machine: Machine) -> None:
    """All of its time is new."""
    machine.start(10)
    meter = machine.meter(10)
    machine.start(11, 10, ticks=50)
    assert meter.read().counter_mj == 5_000


def test_child_that_ends_is_not_counted_twice(machine: Machine) -> None:
    """Its time moves into its parent's; only what it burned since the last look is new."""
    machine.start(10)
    machine.start(11, 10)
    meter = machine.meter(10)
    machine.burn(11, 300)
    assert meter.read().counter_mj == 30_000
    machine.burn(11, 40)
    machine.end(11)
    assert meter.read().counter_mj == 34_000
    assert meter.read().counter_mj == 34_000


def test_child_between_two_looks_is_counted(machine: Machine) -> None:
    """Born and gone: its parent tells."""
    machine.start(10)
    meter = machine.meter(10)
    machine.start(11, 10, ticks=70)
    machine.end(11)
    assert meter.read().counter_mj == 7_000


def test_unreaped_child_takes_nothing_away(machine: Machine) -> None:
    """A parent that ignores its children gets none of their time; what was counted stays, and later work counts."""
    machine.start(10)
    machine.start(11, 10)
    meter = machine.meter(10)
    machine.burn(11, 300)
    meter.read()
    machine.end(11, reaped=False)
    assert meter.read().counter_mj == 30_000
    machine.burn(10, 10)
    assert meter.read().counter_mj == 31_000


def test_orphan_stays_the_engines(machine: Machine) -> None:
    """Its parent died and init has it: it still burns for the engine."""
    machine.start(10)
    machine.start(11, 10)
    machine.start(12, 11)
    meter = machine.meter(10)
    meter.read()
    machine.end(11)
    machine.burn(12, 60)
    assert meter.read().counter_mj == 6_000


def test_reused_pid_is_another_process(machine: Machine) -> None:
    """A root that ended and whose number somebody else got is gone."""
    machine.start(10, ticks=100)
    meter = machine.meter(10)
    machine.end(10)
    machine.start(10, ticks=5_000, started=777)
    with pytest.raises(MeterUnavailable, match="gone"):
        meter.read()


def test_one_gone_root_of_two_is_in_the_health(machine: Machine) -> None:
    """The other one is still metered."""
    machine.start(10)
    machine.start(20)
    meter = machine.meter(10, 20)
    machine.burn(10, 100)
    meter.read()
    machine.end(10)
    machine.burn(20, 100)
    assert meter.read().counter_mj == 20_000
    assert meter.health() == ("process_gone: 10",)
    meter.close()


@pytest.mark.parametrize("pids", [(), (99,)])
def test_no_process_is_unavailable(machine: Machine, pids: tuple[int, ...]) -> None:
    """Without an engine there is nothing to model."""
    with pytest.raises(MeterUnavailable, match="no engine process"):
        machine.meter(*pids)


def test_unreadable_proc_is_unavailable(tmp_path: Path) -> None:
    """Another operating system, or a hidden /proc."""
    with pytest.raises(MeterUnavailable, match="cannot be read"):
        Machine(tmp_path / "none").meter(1)


@given(st.lists(st.tuples(st.sampled_from(["start", "burn", "end", "lose"]), st.integers(0, 5), st.integers(1, 90))))
def test_any_coming_and_going_counts_every_tick_once(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, int]]
) -> None:
    """Reaped children: exact. Never a step back, also where nobody reaps."""
    machine = Machine(tmp_path_factory.mktemp("proc"))
    machine.start(10)
    meter = machine.meter(10)
    burned, last_mj, next_pid, is_exact = 0, 0, 11, True
    for kind, which, ticks in events:
        alive = sorted(machine.own)
        pid = alive[which % len(alive)]
        if kind == "start":
            machine.start(next_pid, pid, ticks=ticks)
            burned += ticks
            next_pid += 1
        elif kind == "burn":
            machine.burn(pid, ticks)
            burned += ticks
        elif pid != 10:
            # A process whose parent is gone is reaped by init: its last ticks are nobody's.
            is_exact = is_exact and kind == "end" and machine.parents[pid] in machine.own
            machine.end(pid, reaped=kind == "end")
        reading_mj = meter.read().counter_mj
        assert reading_mj >= last_mj
        last_mj = reading_mj
    assert last_mj <= burned * 100
    if is_exact:
        assert last_mj == burned * 100


def test_real_processes_are_metered() -> None:
    """Against the real /proc: a child that burns half a CPU-second costs about its watts."""
    code = "import time\nwhile time.process_time() < 0.5: pass"
    meter = CpuSecondsMeter((os.getpid(),), watts_per_cpu_second=20.0, idle_watts=0.0)
    subprocess.run([sys.executable, "-c", code], check=True)
    assert 9_000 <= meter.read().counter_mj <= 40_000


# -- parked and started again


def test_a_parked_engine_burns_nothing_and_is_no_lost_meter(machine: Machine) -> None:
    """Its processes are gone on purpose: the counter stands, and time without an engine has no idle watts."""
    machine.start(10)
    meter = machine.meter(10, idle_watts=3.0)
    machine.burn(10, 100)
    machine.now_s = 5.0
    assert 25_000 == meter.read().counter_mj
    meter.follow(())
    machine.end(10)
    machine.now_s = 100.0
    reading = meter.read()
    assert (25_000, 100.0, "", ()) == (reading.counter_mj, reading.at_s, reading.fault, meter.health())


def test_an_engine_that_is_started_again_is_counted_from_its_first_tick(machine: Machine) -> None:
    """What it burned to start is its own; the time before it was up has no idle watts."""
    machine.start(10)
    meter = machine.meter(10, idle_watts=3.0)
    machine.now_s = 5.0
    meter.read()
    meter.follow(())
    machine.end(10)
    machine.start(20, ticks=3_000)
    machine.start(21, parent=20, ticks=500)
    machine.now_s = 50.0
    meter.follow((20,))
    assert 15_000 + 350_000 == meter.read().counter_mj
    machine.burn(21, 100)
    machine.now_s = 60.0
    assert 15_000 + 350_000 + 10_000 + 30_000 == meter.read().counter_mj


def test_an_engine_that_ends_by_itself_after_a_wake_is_a_lost_meter(machine: Machine) -> None:
    """Only who is parked may be without processes."""
    machine.start(10)
    meter = machine.meter(10)
    meter.follow(())
    machine.end(10)
    machine.start(20)
    meter.follow((20,))
    machine.end(20)
    with pytest.raises(MeterUnavailable, match="20"):
        meter.read()
