"""Moments are read as UTC unless they say otherwise, and what is none is said."""

import pytest

from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.instants import month_start_unix_s, period_us, unix_s

JULY_S = 1_782_864_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-07-01", JULY_S),
        ("2026-07-01T00:00", JULY_S),
        ("2026-07-01T00:00:00Z", JULY_S),
        ("2026-07-01T02:00+02:00", JULY_S),
        ("2026-06-30T12:15-11:45", JULY_S),
        ("2026-07-01 00:00:00.999999", JULY_S),
        ("1970-01-01", 0),
        ("2028-02-29", 1_835_395_200),
        ("2026-03-29T02:30", 1_774_751_400),
        ("9999-12-31T23:59:59", 253_402_300_799),
    ],
)
def test_moments(text: str, seconds: int) -> None:
    """Days, times, zones, leap days, and hours that some clocks skip."""
    assert seconds == unix_s(text, option="--from")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "today",
        "2026-13-01",
        "2027-02-29",
        "2026-06-30T23:59:60",
        "1969-12-31",
        "0001-01-01T00:00+14:00",
        "1782864000",
        "é",
    ],
)
def test_what_is_no_moment_is_said_with_its_option(text: str) -> None:
    """A leap second has no number in unix time."""
    with pytest.raises(CommandError, match="--until") as caught:
        unix_s(text, option="--until")
    assert (ExitCode.USAGE, True) == (caught.value.code, "2026-07-01" in caught.value.remedy)


@pytest.mark.parametrize("second", [0, 1, 31 * 86_400 - 1])
def test_a_month_begins_on_its_first_day(second: int) -> None:
    """UTC, whatever the machine's zone."""
    assert JULY_S == month_start_unix_s(JULY_S + second + 0.5)
    assert JULY_S + 31 * 86_400 == month_start_unix_s(JULY_S + 31 * 86_400)


def test_a_period_has_a_beginning_and_may_have_no_end() -> None:
    """Microseconds, as rows have them; what is wrong is said with its option."""
    assert (0, None) == period_us(None, None)
    assert (86_400_000_000, 172_800_000_000) == period_us("1970-01-02", "1970-01-03")
    for told, option in ((("soon", None), "--from"), ((None, "soon"), "--to")):
        with pytest.raises(CommandError, match=f"{option} is no moment"):
            period_us(*told)
