"""Parts of a week: what is written becomes spans, and an instant has exactly one local time, in every night."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.tariffs import (
    ALWAYS,
    DAY_MINUTES,
    WEEK_MINUTES,
    joined,
    minute_of_week,
    span_text,
    spans_of,
    zone_of,
)
from tests.core_words import thorough
from tests.price_words import unix_s

MON, TUE, SAT, SUN = 0, DAY_MINUTES, 5 * DAY_MINUTES, 6 * DAY_MINUTES
BERLIN = "Europe/Berlin"


def clock(at: str, zone: str = BERLIN) -> str:
    minute = minute_of_week(unix_s(at), zone_of(zone))
    return span_text((minute, minute + 1)).partition(" to ")[0]


@pytest.mark.parametrize(
    ("days", "hours", "spans"),
    [
        (["mon"], "08:00-20:00", [(480, 1200)]),
        (["mon", "Tue"], "00:00-24:00", [(MON, TUE), (TUE, 2 * TUE)]),
        (["mon"], "22:00-06:00", [(1320, DAY_MINUTES + 360)]),
        (["sun"], "22:00-06:00", [(SUN + 1320, WEEK_MINUTES), (0, 360)]),
        (["sun"], "22:00-00:00", [(SUN + 1320, WEEK_MINUTES)]),
        (["sat-mon"], "12:30-13:00", [(SAT + 750, SAT + 780), (SUN + 750, SUN + 780), (750, 780)]),
    ],
)
def test_days_and_hours_are_spans_of_the_week(days: list[str], hours: str, spans: list[tuple[int, int]]) -> None:
    """Hours that end before they begin end on the next day; Sunday's end on Monday."""
    assert spans == spans_of(days, hours)


@pytest.mark.parametrize(
    ("days", "hours", "words"),
    [
        (["mon"], "8:00-20:00", "hours are written"),
        (["mon"], "08:00-25:00", "hours are written"),
        (["mon"], "08:60-09:00", "hours are written"),
        (["mon"], "00:00-24:30", "from 00:00 to 24:00"),
        (["mon"], "24:00-06:00", "from 00:00 to 24:00"),
        (["mon"], "night", "hours are written"),
        (["mon"], "08:00-08:00", "the whole day is 00:00-24:00"),
        (["monday"], "08:00-20:00", "no day that is known here"),
        (["mon-"], "08:00-20:00", "no day that is known here"),
        ([], "08:00-20:00", "names no day"),
        (["mon-wed", "tue"], "08:00-20:00", "names a day twice"),
    ],
)
def test_what_is_no_part_of_a_week_is_refused(days: list[str], hours: str, words: str) -> None:
    """With what may stand there."""
    with pytest.raises(ValueError, match=words):
        spans_of(days, hours)


@thorough
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))))
def test_joined_spans_cover_the_same_minutes(drawn: list[tuple[int, int]]) -> None:
    """In order, and none touches the next."""
    spans = [(begin, begin + length) for begin, length in drawn]
    found = joined(spans)
    assert {minute for span in spans for minute in range(*span)} == {
        minute for span in found for minute in range(*span)
    }
    assert all(before[1] < after[0] for before, after in pairwise(found))


def test_always_is_the_whole_week() -> None:
    """In whatever time zone."""
    assert ((0, WEEK_MINUTES),) == ALWAYS.spans == joined(spans_of(["mon-sun"]))


@pytest.mark.parametrize(
    "name", ["", "utc", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "right/Europe/Berlin", "localtime", "Europe"]
)
def test_only_names_of_the_database_are_time_zones(name: str) -> None:
    """No paths, nothing that another machine understands otherwise, no zones that count leap seconds."""
    with pytest.raises(ValueError, match="Europe/Berlin"):
        zone_of(name)


def test_utc_needs_no_database() -> None:
    """The default works everywhere."""
    assert UTC is zone_of("UTC")


# -- edges of time


def test_the_hour_that_is_repeated_has_the_same_local_time_twice() -> None:
    """Berlin, 2026-10-25: 02:00 to 03:00 comes twice, and 02:59 is followed by 02:00 once."""
    utc = ("00:00", "00:59", "01:00", "01:59", "02:00")
    assert ["sun 02:00", "sun 02:59", "sun 02:00", "sun 02:59", "sun 03:00"] == [
        clock(f"2026-10-25T{hour}:00+00:00") for hour in utc
    ]


def test_the_hour_that_is_left_out_is_never_reached() -> None:
    """Berlin, 2026-03-29: 01:59 is followed by 03:00."""
    assert ["sun 01:59", "sun 03:00"] == [clock(f"2026-03-29T{hour}+00:00") for hour in ("00:59:59", "01:00:00")]


def test_zones_whose_day_was_left_out_or_that_count_in_half_hours() -> None:
    """Samoa had no 2011-12-30; Lord Howe moves by half an hour; India is 5:30 ahead."""
    assert ["thu 23:59", "sat 00:00"] == [
        clock(f"2011-12-30T{hour}+00:00", "Pacific/Apia") for hour in ("09:59:59", "10:00:00")
    ]
    assert ["sun 01:59", "sun 01:30"] == [
        clock(f"2026-04-04T{hour}+00:00", "Australia/Lord_Howe") for hour in ("14:59:59", "15:00:00")
    ]
    assert "sun 05:30" == clock("2026-11-01T00:00+00:00", "Asia/Kolkata")


def test_a_leap_day_is_a_day_of_the_week() -> None:
    """2028-02-29 is a Tuesday, and the next minute belongs to Wednesday; 2100 has none."""
    assert ["tue 23:59", "wed 00:00"] == [
        clock(at, "UTC") for at in ("2028-02-29T23:59:59+00:00", "2028-03-01T00:00+00:00")
    ]
    assert ["sun 23:59", "mon 00:00"] == [
        clock(at, "UTC") for at in ("2100-02-28T23:59:59+00:00", "2100-03-01T00:00+00:00")
    ]


def test_a_leap_second_is_the_last_second_once_more() -> None:
    """2016-12-31T23:59:60Z has the unix time of the second after it: that of midnight, whatever the fraction."""
    new_year = unix_s("2017-01-01T00:00+00:00")
    zone = zone_of("UTC")
    assert [SAT + 1439, SUN, SUN] == [minute_of_week(new_year + by_s, zone) for by_s in (-0.000001, 0.0, 0.999999)]


@thorough
@given(at=st.integers(0, 2**32), zone=st.sampled_from(["UTC", BERLIN, "America/New_York", "Asia/Kathmandu"]))
def test_the_wall_clock_is_that_of_the_zone(at: int, zone: str) -> None:
    """Against datetime's own arithmetic from UTC and the zone's offset."""
    offset = datetime.fromtimestamp(at, zone_of(zone)).utcoffset()
    assert offset is not None
    local = datetime(1970, 1, 1) + timedelta(seconds=at) + offset
    assert (local - datetime(1970, 1, 5)) // timedelta(minutes=1) % WEEK_MINUTES == minute_of_week(at, zone_of(zone))


@pytest.mark.parametrize(
    ("span", "text"),
    [
        ((0, 360), "mon 00:00 to mon 06:00"),
        ((SAT, WEEK_MINUTES), "sat 00:00 to sun 24:00"),
        ((1320, DAY_MINUTES + 1), "mon 22:00 to tue 00:01"),
    ],
)
def test_a_span_in_words(span: tuple[int, int], text: str) -> None:
    """A day that is over is 24:00."""
    assert text == span_text(span)
