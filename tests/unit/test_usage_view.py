"""Usage on the screen and in columns: every amount exact in an export, nothing told that cannot be."""

import csv
import io
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.outcomes import value_of
from scheduler.accounting.usage import AMOUNTS, GROUPS, UsageRow
from scheduler.commands import usage_view
from scheduler.commands.usage_view import (
    Kind,
    columns,
    field_of,
    figure,
    joules_each,
    money,
    money_each,
    share,
    time_word,
    write_csv,
)

START_S = 1_782_864_000
ROW = UsageRow(
    bucket_us=START_S * 10**6, tenant="alpha", key_id="key-1", model="m", requests=3, attempts=4, input_tokens=1_000,
    cached_tokens=200, output_tokens=70, reasoning_tokens=5, input_bytes=4_000, output_bytes=280, gpu_us=1_234_567,
    energy_mj=140_001, carbon_ug=7, cost_nano=1_000_000_001, accepted=2, rejected=1, judged=3, currency="EUR",
)  # fmt: skip
EVERYTHING = ("day", "tenant", "project", "key", "model", "task", "tier")


def read(rows: list[UsageRow], by: tuple[str, ...], *, has_value: bool = False) -> list[dict[str, str]]:
    file = io.StringIO()
    write_csv(file, rows, columns(by, has_value=has_value))
    return list(csv.DictReader(io.StringIO(file.getvalue())))


def shown(
    rows: list[UsageRow], by: tuple[str, ...], capsys: pytest.CaptureFixture[str], *, has_value: bool = False
) -> str:
    usage_view.show(rows, by, from_unix_s=START_S, to_unix_s=START_S + 86_400, has_value=has_value)
    return capsys.readouterr().out


# -- exports


def test_a_line_of_csv() -> None:
    """Amounts with all their places; moments in UTC."""
    (line,) = read([ROW], ("day", "tenant", "key"))
    assert {
        "start": "2026-07-01T00:00:00Z", "tenant": "alpha", "key": "key-1", "requests": "3", "attempts": "4",
        "input_tokens": "1000", "cached_tokens": "200", "output_tokens": "70", "reasoning_tokens": "5",
        "image_tokens": "0", "audio_tokens": "0", "input_bytes": "4000", "output_bytes": "280",
        "gpu_seconds": "1.234567", "joules": "140.001", "joules_per_output_token": "2.000014", "gco2e": "0.000007",
        "cost": "1.000000001", "currency": "EUR", "accepted": "2", "rejected": "1", "judged": "3",
    } == line  # fmt: skip


def test_the_value_is_more_columns() -> None:
    """Per accepted result, with both ends of the interval."""
    (line,) = read([ROW], (), has_value=True)
    value = value_of(ROW)
    assert ("1.000000", "0.666667", f"{value.accepted_ratio_low:.6f}", f"{value.accepted_ratio_high:.6f}") == (
        line["covered_ratio"], line["accepted_ratio"], line["accepted_ratio_low"], line["accepted_ratio_high"],
    )  # fmt: skip
    assert ("0.500000001", "70.001") == (line["cost_per_accepted"], line["joules_per_accepted"])
    assert Decimal(line["cost_per_accepted_low"]) == Decimal(value.cost_nano_low or 0) / 10**9
    assert "" == read([UsageRow(bucket_us=0)], (), has_value=True)[0]["cost_per_accepted_high"]


def test_what_cannot_be_told_is_empty() -> None:
    """And not 0."""
    (line,) = read([UsageRow(bucket_us=0)], ("model",))
    assert ("", "", "", "0.000000000") == (
        line["model"],
        line["joules_per_output_token"],
        line["currency"],
        line["cost"],
    )
    assert "start" not in line


def test_every_field_of_a_row_has_its_column() -> None:
    """A new amount cannot be forgotten in an export."""
    units = {"gpu_us": "gpu_seconds", "energy_mj": "joules", "carbon_ug": "gco2e", "cost_nano": "cost"}
    names = {column.name for column in columns(EVERYTHING, has_value=False)}
    assert {units.get(name, name) for name in AMOUNTS} <= names
    assert {"key" if name == "key_id" else name for name in GROUPS} <= names


@given(st.integers(-(10**28), 10**28), st.integers(0, 10**28))
def test_sums_of_an_export_are_exact(cost_nano: int, energy_mj: int) -> None:
    """Decimals, read back, are the ledger's whole numbers."""
    (line,) = read([UsageRow(bucket_us=0, cost_nano=cost_nano, energy_mj=energy_mj)], ())
    for text, places, amount in ((line["cost"], 9, cost_nano), (line["joules"], 3, energy_mj)):
        sign, digits, exponent = Decimal(text).as_tuple()
        assert (amount, -places) == ((-1 if sign else 1) * int("".join(map(str, digits))), exponent)


def test_names_with_commas_and_quotes_stay_whole() -> None:
    """As CSV has it; one line a row."""
    file = io.StringIO()
    write_csv(file, [UsageRow(bucket_us=0, model='a,"b"\nc')], columns(("model",), has_value=False))
    assert [["model"], ['a,"b"\nc']] == [line[:1] for line in csv.reader(io.StringIO(file.getvalue()))]
    assert "\r" not in file.getvalue()


def test_the_words_of_time_and_of_fields() -> None:
    """One word is not the name of its field."""
    assert ("hour", None) == (time_word(("tenant", "hour")), time_word(("tenant",)))
    assert ("key_id", "model") == (field_of("key"), field_of("model"))
    assert {Kind.TIME, Kind.TEXT, Kind.COUNT, Kind.AMOUNT, Kind.RATIO} == {
        column.kind for column in columns(EVERYTHING, has_value=True)
    }


# -- tables


def test_a_table_says_who_used_what(capsys: pytest.CaptureFixture[str]) -> None:
    """With the span above it; one row needs no sum."""
    text = shown([ROW], ("day", "tenant", "task"), capsys)
    for words in (
        "2026-07-01T00:00:00Z to 2026-07-02T00:00:00Z", "day (UTC)", "2026-07-01", "alpha", "–", "1,000", "1.2",
        "140.0", "2.000", "1.000000001 EUR", "2 of 3",
    ):  # fmt: skip
        assert words in text
    assert "all" not in text


def test_several_rows_have_their_sums(capsys: pytest.CaptureFixture[str]) -> None:
    """One of each currency; hours with their time."""
    rows = [ROW, ROW, UsageRow(bucket_us=(START_S + 3_600) * 10**6, requests=9, currency="USD")]
    lines = shown(rows, ("hour", "model"), capsys).splitlines()
    assert ["all", "all"] == [line.split()[0] for line in lines[-2:]]
    assert ("2.000000002 EUR" in lines[-2], "0.00 USD" in lines[-1]) == (True, True)
    assert "2026-07-01 01:00" in lines[-3]


def test_everything_in_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Grouped by nothing."""
    assert "140.0" in shown([ROW], (), capsys)


def test_no_usage_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Instead of an empty table."""
    assert "no usage" in shown([], ("tenant",), capsys)


def test_a_table_of_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Shares and amounts with their intervals; what has no end has none."""
    hopeless = UsageRow(bucket_us=0, model="n", requests=4, rejected=4, judged=4, cost_nano=400, currency="EUR")
    unjudged = UsageRow(bucket_us=0, model="o", requests=1, currency="EUR")
    text = shown([ROW, hopeless, unjudged], ("model",), capsys, has_value=True)
    good, bad, none = text.splitlines()[2:5]
    for words in ("100%", "2 of 3", "66.7% [20.8 – 93.9]", "0.5000 [0.3552 – 1.605] EUR", "70.00 ["):
        assert words in good
    assert "– [" in bad
    assert "– ∞] EUR" in bad
    assert ["o", "1", "0%", "–", "–", "–", "–"] == none.split()


@pytest.mark.parametrize(
    ("nano", "currency", "text"),
    [
        (0, "EUR", "0.00 EUR"), (1, "", "0.000000001"), (-1, "EUR", "-0.000000001 EUR"), (10**9, "USD", "1.00 USD"),
        (-1_234_567_500_000_000, "", "-1,234,567.50"), (1_230_000_000, "EUR", "1.23 EUR"),
    ],
)  # fmt: skip
def test_money_is_exact_and_short(nano: int, currency: str, text: str) -> None:
    """Two places at least, all that are needed."""
    assert text == money(nano, currency)


def test_nothing_judged_has_no_share_and_no_amount() -> None:
    """A dash."""
    assert "–" == share(value_of(UsageRow(bucket_us=0)))
    assert ("–", "–") == (money_each(value_of(UsageRow(bucket_us=0)), ""), joules_each(value_of(UsageRow(bucket_us=0))))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"), (1.0, "1.000"), (-0.5, "-0.5000"), (0.000_1, "0.0001000"), (0.000_01, "1.000e-05"),
        (12_345.6, "12,346"), (999.96, "1,000.0"), (1e15, "1.000e+15"),
    ],
)  # fmt: skip
def test_an_estimate_has_four_digits(number: float, text: str) -> None:
    """Never fewer, and no long row of zeros."""
    assert text == figure(number)
