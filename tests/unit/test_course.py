"""The course of a run: points by the second, watts that add up to the joules paid, and bounded however long it is."""

import numpy as np
import pytest

from scheduler.simulation import course
from scheduler.simulation.course import Course
from scheduler.simulation.fleet import Fleet
from scheduler.simulation.policies import Setting
from scheduler.simulation.replay import simulate
from tests.fleet_words import arrival, steady, workers


def test_a_point_a_second() -> None:
    """From the first tick to the last one before the end."""
    watch = Course()
    found = simulate("round-robin", Setting(workers=workers(2)), steady(100, 0.3), watch=watch)
    assert np.arange(len(watch.at_s)) + 0.1 == pytest.approx(watch.at_s)
    assert found.span_s - 1.2 < watch.at_s[-1] <= found.span_s


def test_watts_are_means_and_add_up_to_the_joules() -> None:
    """An idle fleet draws its idle watts; a busy one more; what stood at the last point was paid by then."""
    watch = Course()
    arrivals = [arrival(30.0, output=3_000), arrival(60.0)]
    found = simulate("round-robin", Setting(workers=workers(2)), arrivals, watch=watch)
    idle = watch.watts[(watch.at_s > 1.0) & (watch.at_s < 30.0)]
    assert [200.0] * len(idle) == pytest.approx(idle.tolist())
    assert watch.watts.max() > 200.0
    assert sum(watch.watts[10::10][:3]) == pytest.approx(3 * 200.0, rel=0.01)
    assert found.joules.total > 200.0 * 30.0


def test_who_waits_and_who_is_loaded() -> None:
    """Six at once over one place each: four wait; race-to-idle leaves one of three loaded."""
    watch = Course()
    fleet = workers(3, num_gpus=2)
    simulate("race-to-idle", Setting(workers=fleet), [arrival(5.0), arrival(20.0)], watch=watch)
    assert 6.0 == watch.loaded_gpus[0] or 2.0 == watch.loaded_gpus[0]
    assert {2.0} == set(watch.loaded_gpus[2:].tolist())
    assert 0.0 == watch.num_waiting.max()
    crowd = Course(every_s=0.1)
    simulate("round-robin", Setting(workers=workers(1)), [arrival(0.05, prompt=2_000) for _ in range(6)], watch=crowd)
    assert 6.0 >= crowd.num_waiting.max() >= 4.0
    assert 0.0 == crowd.num_waiting[-1]


def test_it_never_grows_beyond_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second one goes, and it looks half as often from then on."""
    monkeypatch.setattr(course, "MAX_POINTS", 16)
    watch = Course()
    simulate("round-robin", Setting(workers=workers(1)), [arrival(0.0), arrival(100.0)], watch=watch)
    assert 8 <= len(watch.at_s) < 16
    assert watch.every_s > 1.0
    assert sorted(watch.at_s) == watch.at_s.tolist()
    assert watch.at_s[-1] > 80.0


def test_who_asked_is_told_the_time() -> None:
    told: list[float] = []
    watch = Course(on_look=told.append)
    simulate("round-robin", Setting(workers=workers(1)), [arrival(0.0), arrival(10.0)], watch=watch)
    assert watch.at_s.tolist() == told


def test_to_look_on_changes_nothing() -> None:
    """To the last bit."""
    arrivals = steady(100, 0.05)
    seen, unseen = (
        simulate("jouleway", Setting(workers=workers(2)), arrivals, watch=watch) for watch in (Course(), None)
    )
    assert seen.ended_s.tolist() == unseen.ended_s.tolist()
    assert seen.joules == unseen.joules


def test_an_empty_course_has_no_points() -> None:
    watch = Course()
    Fleet(workers(1), [], _Nobody(), watch=watch).run()
    assert [] == watch.watts.tolist() == watch.at_s.tolist()


class _Nobody:
    def open(self, fleet: Fleet) -> None: ...

    def arrive(self, number: int, now_s: float) -> None: ...

    def first_token(self, job: object, now_s: float) -> None: ...

    def ended(self, job: object, now_s: float) -> None: ...

    def woken(self, worker: int, now_s: float) -> None: ...

    def lost(self, worker: int, jobs: object, now_s: float) -> None: ...

    def tick(self, now_s: float) -> None: ...
