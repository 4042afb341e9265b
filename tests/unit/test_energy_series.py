"""Series of prices and carbon: what a line may say, what is wrong with one, and what holds where values are missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.energy_series import (
    GRAMS_PER_POUND,
    SeriesError,
    SeriesRow,
    Source,
    filled,
    read_series,
    signals_of,
)
from scheduler.core.steps import Steps
from tests.core_words import thorough
from tests.price_words import unix_s

HEADER = "start_utc,value,unit,zone,kind\n"
HOUR = 3_600


def read(*lines: str, header: str = HEADER) -> tuple[SeriesRow, ...]:
    return read_series((header + "".join(f"{line}\n" for line in lines)).encode(), currency="EUR")


def hours(*values: float | None, is_estimated: bool = False) -> list[SeriesRow]:
    """One value an hour from 0 on; None is missing."""
    return [
        SeriesRow(HOUR * number, value, False, "", is_estimated, "", number + 2)
        for number, value in enumerate(values)
        if value is not None
    ]


@pytest.mark.parametrize(
    ("value", "unit", "expected", "is_carbon"),
    [
        ("0.30", "per kWh", 0.30, False),
        ("0.30", "EUR/kWh", 0.30, False),
        ("85", "per_MWh", 0.085, False),
        ("-12.5", "EUR/MWh", -0.0125, False),
        ("381", "g/kWh", 381.0, True),
        ("381", "kg/MWh", 381.0, True),
        ("1000", "lbs/MWh", GRAMS_PER_POUND, True),
        ("1000", "lb/MWh", GRAMS_PER_POUND, True),
    ],
)
def test_every_unit_becomes_that_of_the_configuration(value: str, unit: str, expected: float, is_carbon: bool) -> None:
    """Prices may be below 0."""
    (row,) = read(f"2026-11-01T00:00:00Z,{value},{unit},hall-a,")
    assert (expected, is_carbon, "hall-a") == (pytest.approx(row.value), row.is_carbon, row.zone)


def test_lines_come_in_order_whatever_the_files_order() -> None:
    """Blank lines and a byte order mark of a spreadsheet are nothing."""
    rows = read_series(
        b"\xef\xbb\xbfstart_utc,value,unit\n2026-11-01T01:00:00Z,2,per kWh\n\n2026-11-01,1,per kWh\n", currency="EUR"
    )
    assert [1.0, 2.0] == [row.value for row in rows]
    assert unix_s("2026-11-01T00:00:00+00:00") == rows[0].start_unix_s


@pytest.mark.parametrize("start", ["2026-11-01T02:00:00+02:00", "2026-11-01T00:00:00", "2026-11-01T00:00:00Z"])
def test_an_instant_is_utc_or_says_its_offset(start: str) -> None:
    """So a night in which clocks change has as many hours as it has."""
    assert unix_s("2026-11-01T00:00:00+00:00") == read(f"{start},1,per kWh,,")[0].start_unix_s


@pytest.mark.parametrize(
    ("kind", "is_estimated", "signal"),
    [("", False, ""), ("actual", False, ""), ("forecast", True, ""), ("Marginal estimated", True, "marginal")],
)
def test_a_kind_says_whether_a_value_is_known_and_what_it_is_of(kind: str, is_estimated: bool, signal: str) -> None:
    """Both are kept: an estimate is said to be one, and two signals are never added up."""
    rows = read(f"2026-11-01,1,g/kWh,,{kind}")
    assert (is_estimated, signal) == (rows[0].is_estimated, rows[0].signal)
    assert ({signal} if signal else set()) == signals_of(rows)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2026-11-01,1,per kWh", "line 3: 3 fields where the header has 5"),
        ("yesterday,1,per kWh,,", "line 3: start_utc: a time in whole seconds"),
        ("2026-11-01T00:00:00.5,1,per kWh,,", "line 3: start_utc"),
        ("2026-11-01,much,per kWh,,", "line 3: value: a number from -1000 to 1000 a kWh"),
        ("2026-11-01,nan,per kWh,,", "line 3: value"),
        ("2026-11-01,inf,per kWh,,", "line 3: value"),
        ('2026-11-01,"0,30",per kWh,,', "line 3: value: .* with a point"),
        ("2026-11-01,-1,g/kWh,,", "line 3: value: a number from 0 to 10000 g/kWh"),
        ("2026-11-01,1,per hour,,", "line 3: unit: one of per kWh"),
        ("2026-11-01,1,USD/kWh,,", "line 3: unit: prices here are in EUR"),
        ("2026-11-01,1,g/kWh,,average marginal", "line 3: kind: .* of average and marginal one"),
        ("2026-11-01,1,g/kWh,,guess", "line 3: kind"),
        ("2026-10-31T00:00:00Z,2,per kWh,,", "line 3: the same start, quantity and zone as line 2"),
    ],
)
def test_a_wrong_line_is_named_with_what_belongs_there(line: str, words: str) -> None:
    """So that it can be mended without reading a source."""
    with pytest.raises(SeriesError, match=words):
        read("2026-10-31,1,per kWh,,", line)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the last line has no end"),
        (b"start_utc,value,unit\n2026-11-01,0.1", "still being written, or was cut off"),
        (b"start_utc,value,unit\n", "a header and no value"),
        (b"start,value,unit\n2026-11-01,1,per kWh\n", "line 1: the header must be start_utc,value,unit"),
        (b"start_utc,value,unit,price\n2026-11-01,1,per kWh,3\n", "line 1: the header"),
        (b"start_utc,value,unit,zone,zone\n2026-11-01,1,per kWh,a,b\n", "line 1: the header"),
        (b"start_utc,value,unit\n2026-11-01,\xff,per kWh\n", "not UTF-8"),
        (b'start_utc,value,unit\n"2026-11-01"x,1,per kWh\n', "line 2: this is not CSV"),
        (b"start_utc,value,unit\n" + b"2026-11-01,1,per kWh\n" * 100_001, "more than 100,000"),
    ],
)
def test_what_is_no_series_is_refused_whole(data: bytes, words: str) -> None:
    """A value that was cut in two would be another value."""
    with pytest.raises(SeriesError, match=words):
        read_series(data, currency="EUR")


def test_a_missing_value_is_held_for_two_hours_and_then_the_configured_one_holds() -> None:
    """And what is held or configured says so."""
    steps = filled(hours(1.0, None, None, None, 5.0), Steps.always(0.3))
    found = [steps.at(HOUR * hour) for hour in range(8)]
    held, configured = Source(1.0, "held"), Source(0.3, "configured")
    five = (Source(5.0, "series"), Source(5.0, "held"), Source(5.0, "held"))
    assert [Source(1.0, "series"), held, held, configured, *five, configured] == found
    assert configured == steps.at(-1)


def test_a_gap_falls_back_to_the_tariff_of_that_hour() -> None:
    """The configured one has its own steps."""
    nights = Steps.of(0.30, [(10.0 * HOUR, 0.12), (12.0 * HOUR, 0.30)])
    steps = filled(hours(1.0), nights)
    assert [0.30, 0.12, 0.12, 0.30] == [steps.at(HOUR * hour).value for hour in (9, 10, 11, 12)]


def test_an_interval_is_the_shortest_between_two_starts() -> None:
    """Quarter hours hold for theirs."""
    rows = [SeriesRow(start, 1.0, False, "", False, "", 2) for start in (0, 900, 1_800)]
    steps = filled(rows, Steps.always(0.0))
    assert ("series", "held") == (steps.at(2_699).source, steps.at(2_700).source)


def test_a_later_file_counts_where_two_say_the_same_hour() -> None:
    """What was forecast gives way to what was."""
    steps = filled([*hours(1.0, is_estimated=True), *hours(2.0)], Steps.always(0.0))
    assert Source(2.0, "series") == steps.at(0)
    assert Source(1.0, "estimated") == filled(hours(1.0, is_estimated=True), Steps.always(0.0)).at(0)


def test_where_nothing_is_configured_the_end_of_a_series_is_not_free() -> None:
    """Or all that may wait would wait for it."""
    steps = filled(hours(1.0, 3.0), Steps.always(0.0))
    assert [Source(2.0, "mean"), Source(3.0, "series"), Source(2.0, "mean")] == [
        steps.at(at_s) for at_s in (-1, HOUR, 5 * HOUR)
    ]


def test_without_a_series_everything_is_configured() -> None:
    """Nothing is held that never was."""
    assert Steps.always(Source(0.3, "configured")) == filled([], Steps.always(0.3))


@thorough
@given(st.lists(st.one_of(st.none(), st.floats(-1, 1)), max_size=30), st.integers(-3, 40), st.integers(0, 3_599))
def test_no_value_outlives_its_hour_by_more_than_two(values: list[float | None], hour: int, second: int) -> None:
    """Held against the rule as it is said."""
    expected = Source(9.0, "configured")
    for age in range(3):
        if 0 <= hour - age < len(values) and (value := values[hour - age]) is not None:
            expected = Source(value, "held" if age else "series")
            break
    found = filled(hours(*values), Steps.always(9.0)).at(HOUR * hour + second)
    assert expected == found
