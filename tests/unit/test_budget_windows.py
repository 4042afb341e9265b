"""Windows cut time without a gap or an overlap, and what a rolling one counts is never less than its length."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.budget_windows import (
    DAY_S,
    MAX_ROLLING_S,
    NUM_BUCKETS,
    SECOND_US,
    Kind,
    Window,
    civil_of_days,
    days_of_civil,
    utc_text,
)
from tests.core_words import thorough

WORDS = ["1s", "7s", "90s", "1m", "1h", "36h", "30d", "minute", "hour", "day"]
CALENDAR = ["calendar minute", "calendar hour", "calendar day", "calendar month"]
MOMENTS = st.integers(0, 10**10 * SECOND_US)


@pytest.mark.parametrize(
    ("text", "kind", "length_s"),
    [
        ("90s", Kind.ROLLING, 90),
        ("5 m", Kind.ROLLING, 300),
        ("hour", Kind.ROLLING, 3600),
        ("30d", Kind.ROLLING, 30 * DAY_S),
        ("366d", Kind.ROLLING, MAX_ROLLING_S),
        ("calendar  day", Kind.CALENDAR, DAY_S),
        ("calendar month", Kind.MONTH, 31 * DAY_S),
        ("total", Kind.TOTAL, 0),
    ],
)
def test_a_window_is_read_as_people_write_it(text: str, kind: Kind, length_s: int) -> None:
    """Rolling, calendar and total; spaces do not matter."""
    window = Window.parse(text)
    assert (kind, length_s) == (window.kind, window.length_s)
    assert window == Window.parse(str(window))


@pytest.mark.parametrize(
    "text", ["", "0h", "-1h", "1.5h", "1w", "1e3s", "٣h", "calendar week", "calendar", "forever", "h1", "1h 2m", "１h"]
)
def test_an_unknown_window_is_refused_with_the_forms_that_exist(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="calendar minute, hour, day or month, or total"):
        Window.parse(text)


def test_a_month_is_asked_back() -> None:
    """Rolling months do not exist, and nobody can say which was meant."""
    with pytest.raises(ValueError, match="calendar month, or 30d"):
        Window.parse("month")


@pytest.mark.parametrize("text", ["367d", "999999999d", "8785h"])
def test_a_rolling_window_has_a_longest_length(text: str) -> None:
    """Beyond it, a total is meant."""
    with pytest.raises(ValueError, match="at most 366d"):
        Window.parse(text)


def test_windows_that_mean_the_same_are_equal() -> None:
    """However they were written; each is told as it was."""
    assert Window.parse("60m") == Window.parse("hour") == Window(Kind.ROLLING, 3600)
    assert ("60m", "hour", "3600s") == tuple(
        str(each) for each in (Window.parse("60m"), Window.parse("hour"), Window(Kind.ROLLING, 3600))
    )
    assert Window.parse("calendar hour") != Window.parse("hour")


@pytest.mark.parametrize("text", [*CALENDAR, "total"])
def test_what_nobody_wrote_has_words_as_well(text: str) -> None:
    """For windows that the code makes."""
    window = Window.parse(text)
    assert text == str(Window(window.kind, window.length_s))


@pytest.mark.parametrize("text", WORDS + CALENDAR)
@thorough
@given(at_us=MOMENTS)
def test_every_moment_lies_in_its_slot(text: str, at_us: int) -> None:
    """Half-open: the start belongs to it, the next slot's start does not."""
    window = Window.parse(text)
    slot = window.slot_of(at_us)
    start_us, end_us = window.start_us(slot), window.start_us(slot + 1)
    assert start_us is not None
    assert end_us is not None
    assert start_us <= at_us < end_us
    assert (slot, slot, slot + 1) == (window.slot_of(start_us), window.slot_of(end_us - 1), window.slot_of(end_us))


@pytest.mark.parametrize("text", WORDS)
@thorough
@given(at_us=MOMENTS)
def test_a_rolling_window_counts_at_least_its_length(text: str, at_us: int) -> None:
    """And forgets at most a bucket later."""
    window = Window.parse(text)
    free_us = window.free_us(window.slot_of(at_us))
    assert free_us is not None
    length_us = window.length_s * SECOND_US
    assert length_us <= free_us - at_us <= length_us + length_us / NUM_BUCKETS + 1


def test_a_total_is_never_free() -> None:
    """It has one slot, and no moment frees it."""
    total = Window.parse("total")
    assert (0, 0, None, None) == (total.slot_of(0), total.slot_of(10**18), total.start_us(1), total.free_us(0))


@pytest.mark.parametrize(
    ("at", "starts"),
    [
        ("2028-02-29T23:59:59", "2028-02-01T00:00:00"),
        ("2028-03-01T00:00:00", "2028-03-01T00:00:00"),
        ("2026-12-31T23:59:59", "2026-12-01T00:00:00"),
        ("2100-02-28T12:00:00", "2100-02-01T00:00:00"),
    ],
)
def test_calendar_months_are_utc_months(at: str, starts: str) -> None:
    """Leap years and turns of the year among them."""
    month = Window.parse("calendar month")
    assert _us(starts) == month.start_us(month.slot_of(_us(at)))


@thorough
@given(days=st.integers(-700_000, 2_900_000))
def test_civil_dates_are_those_of_the_calendar(days: int) -> None:
    """Against Python's own, over all its years."""
    date = datetime.date.fromordinal(days + datetime.date(1970, 1, 1).toordinal())
    assert (date.year, date.month, date.day) == civil_of_days(days)
    assert days == days_of_civil(*civil_of_days(days))


def test_a_moment_is_told_when_it_is_over() -> None:
    """Rounded up: whoever comes at the told second is not too early."""
    assert "2026-11-25T21:30:00Z" == utc_text(_us("2026-11-25T21:30:00"))
    assert "2026-11-25T21:30:01Z" == utc_text(_us("2026-11-25T21:30:00") + 1)


def _us(text: str) -> int:
    return int(datetime.datetime.fromisoformat(f"{text}+00:00").timestamp()) * SECOND_US
