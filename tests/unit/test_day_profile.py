"""What usually comes at which hour: learned from whole quarters, as today is against other days."""

import pytest

from scheduler.core.day_profile import DAY_S, SLOT_S, DayProfile

NOON_S = 20_000 * DAY_S + 12 * 3600.0


def fed(*days: tuple[float, float], step_s: float = 60.0) -> DayProfile:
    """Each day so much before noon and so much after it, an hour each."""
    profile = DayProfile()
    for number, (before, after) in enumerate(days):
        for step in range(-60, 60):
            profile.add(NOON_S + number * DAY_S + step * step_s, before if step < 0 else after)
    return profile


def rise(profile: DayProfile, minutes: float, *, level: float = 2.0, ahead_s: float = 600.0) -> float:
    """So many minutes after noon of the next days."""
    return profile.rise(NOON_S + 9 * DAY_S + 60.0 * minutes, ahead_s, level)


def test_nothing_is_known_of_the_first_day() -> None:
    assert 0.0 == rise(DayProfile(), 0.0)


def test_what_came_more_at_noon_is_expected_before_noon() -> None:
    """As soon as noon is near, and not once it is over."""
    profile = fed((2.0, 6.0))
    assert 4.0 == pytest.approx(rise(profile, -5.0))
    assert 0.0 == rise(profile, -20.0)
    assert 0.0 == rise(profile, 5.0)


def test_less_is_not_a_rise() -> None:
    assert 0.0 == rise(fed((6.0, 2.0)), -5.0)


@pytest.mark.parametrize(("level", "expected"), [(1.0, 2.0), (4.0, 8.0), (1e9, 16.0), (0.0, 0.0)])
def test_a_day_of_half_the_load_rises_by_half_as_much(level: float, expected: float) -> None:
    """Bounded: a level that is out of all proportion proves nothing."""
    assert expected == pytest.approx(rise(fed((2.0, 6.0)), -5.0, level=level))


def test_after_a_silent_night_the_morning_is_expected_as_it_was() -> None:
    assert 6.0 == pytest.approx(rise(fed((0.0, 6.0)), -5.0, level=0.0))


def test_a_new_day_counts_for_half() -> None:
    assert 6.0 == pytest.approx(rise(fed((2.0, 6.0), (2.0, 10.0)), -5.0))


def test_a_quarter_that_was_not_seen_from_its_beginning_is_unknown() -> None:
    """The service started in the middle of it."""
    profile = DayProfile()
    for step in range(5, 60):
        profile.add(NOON_S + 60.0 * step, 6.0)
    profile.add(NOON_S + DAY_S - SLOT_S, 2.0)
    profile.add(NOON_S + DAY_S, 2.0)
    assert 0.0 == profile.rise(NOON_S + DAY_S - 60.0, 300.0, 2.0)
