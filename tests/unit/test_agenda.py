"""Virtual time: things happen in order, and what the core is told never goes back."""

from scheduler.simulation.agenda import Agenda


def test_things_happen_in_time_and_in_the_order_they_were_asked_for() -> None:
    """And what happens may ask for more."""
    time, seen = Agenda(start_unix_s=1_000.0), list[str]()
    time.at(2.0, lambda: seen.append("late"))
    time.at(1.0, lambda: (seen.append("first"), time.after(0.5, lambda: seen.append("asked later")))[0])
    time.at(1.0, lambda: seen.append("second"))
    for _ in range(4):
        time.step()
    assert ["first", "second", "asked later", "late"] == seen
    assert (2.0, 2.0, 1_002.0, 2.0) == (time.now_s, time.told_s, time.unix_s, time.last_s)


def test_a_jump_ahead_is_told_at_once() -> None:
    """By so much the core's time advances without an event."""
    time = Agenda(start_unix_s=0.0)
    assert 3.0 == time.jump(monotonic_s=3.0, wall_s=-10.0)
    assert (0.0, 3.0, -10.0) == (time.now_s, time.told_s, time.unix_s)


def test_a_jump_back_lets_the_core_s_time_stand_still() -> None:
    """Until the clock is where it was."""
    time, told = Agenda(start_unix_s=0.0), list[float]()
    for at_s in (5.0, 6.0, 9.0):
        time.at(at_s, lambda: told.append(time.told_s))
    time.step()
    assert 0.0 == time.jump(monotonic_s=-3.0, wall_s=0.0)
    time.step()
    time.step()
    assert ([5.0, 5.0, 6.0], 6.0) == (told, time.monotonic_s)
