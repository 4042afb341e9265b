"""Fault switches of a simulated engine: each is set off once, at its time after the start, and never after its end."""

import asyncio

import pytest

from benchmarks.virtual_time import VirtualLoop, run_virtually
from workers.engines.simulated_faults import arm_faults
from workers.engines.simulated_options import SimulatedOptions
from workers.simulated_counter import SimulatedCounter


class Diary:
    """An engine and its counter that only note what befalls them, and when."""

    def __init__(self, loop: VirtualLoop, **options: object) -> None:
        self.options = SimulatedOptions(**options)  # type: ignore[arg-type]
        self.counter = SimulatedCounter(idle_watts=1.0)
        self._loop = loop
        self.notes: list[tuple[float, str]] = []
        for name in ("lose", "find", "stick"):
            setattr(self.counter, name, lambda name=name: self._note(name))
        self.counter.reset = lambda now_s: self._note(f"reset at {now_s:g}")  # type: ignore[method-assign]

    def _note(self, words: str) -> None:
        self.notes.append((self._loop.time(), words))

    def hang(self) -> None:
        self._note("hang")

    def resume(self) -> None:
        self._note("resume")

    def slow(self, ratio: float) -> None:
        self._note(f"slow {ratio:g}")

    def die(self, *, mode: str = "engine") -> None:
        self._note(f"die {mode}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"hang_for_s": 5.0, "meter_lost_for_s": 5.0}, []),
        ({"hang_after_s": 1.0}, [(1.0, "hang")]),
        ({"hang_after_s": 1.0, "hang_for_s": 2.0}, [(1.0, "hang"), (3.0, "resume")]),
        ({"die_after_s": 4.0, "die_mode": "process"}, [(4.0, "die process")]),
        ({"slow_after_s": 0.5, "slow_ratio": 3.0}, [(0.5, "slow 3")]),
        ({"meter_lost_after_s": 1.0, "meter_lost_for_s": 1.0}, [(1.0, "lose"), (2.0, "find")]),
        ({"counter_stuck_after_s": 2.0, "counter_reset_after_s": 3.0}, [(2.0, "stick"), (3.0, "reset at 3")]),
    ],
)
def test_each_switch_is_set_off_at_its_time(options: dict[str, object], expected: list[tuple[float, str]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        diary = Diary(loop, **options)
        timers = arm_faults(diary, clock=loop.time)
        await asyncio.sleep(10.0)
        assert expected == diary.notes
        assert len(expected) == len(timers)

    run_virtually(main)


def test_an_engine_that_ended_meets_no_fault_any_more() -> None:
    async def main(loop: VirtualLoop) -> None:
        diary = Diary(loop, hang_after_s=1.0, die_after_s=2.0)
        for timer in arm_faults(diary, clock=loop.time):
            timer.cancel()
        await asyncio.sleep(10.0)
        assert [] == diary.notes

    run_virtually(main)
