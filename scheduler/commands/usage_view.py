"""Usage as a table, as columns to export, and with what an accepted result cost.

Called by ``scheduler.commands.usage``. Pure but for printing. It must never ask anybody.

A column of an export has a kind, so that each form writes it exactly: counts are whole numbers, amounts decimals with
all their places, never floats.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from fractions import Fraction
from typing import TextIO

from scheduler.accounting.decimals import MICRO_PLACES, MILLI_PLACES, NANO_PLACES, decimal_text
from scheduler.accounting.outcomes import Value, rounded, value_of
from scheduler.accounting.usage import UsageRow, summed
from scheduler.commands.output import print_lines, print_table

FIELDS = {"key": "key_id"}
"""Words of ``--by`` that are not the name of their field."""
WIDTHS = ("minute", "hour", "day")
RATIO_PLACES = 6


class Kind(Enum):
    """What a cell holds."""

    TIME = "unix microseconds"
    TEXT = "text"
    COUNT = "a whole number"
    AMOUNT = "decimal text"
    RATIO = "decimal text, rounded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of an export."""

    name: str
    kind: Kind
    cell: Callable[[UsageRow], int | str | None]
    """None: it cannot be told."""


def time_word(by: Sequence[str]) -> str | None:
    """The word of ``by`` that groups by time."""
    return next((word for word in by if word in WIDTHS), None)


def field_of(word: str) -> str:
    """The field of a row that a word of ``by`` stands for."""
    return FIELDS.get(word, word)


def columns(by: Sequence[str], *, has_value: bool) -> list[Column]:
    """What an export holds: when, whose, how much, and what an accepted result cost."""
    found = []
    if time_word(by) is not None:
        found.append(Column(name="start", kind=Kind.TIME, cell=lambda row: row.bucket_us))
    for word in by:
        if word not in WIDTHS:
            found.append(_of_field(word, Kind.TEXT, field_of(word)))
    found += [_of_field(name, Kind.COUNT, name) for name in COUNTS]
    found += [
        _amount("gpu_seconds", "gpu_us", MICRO_PLACES),
        _amount("joules", "energy_mj", MILLI_PLACES),
        Column(name="joules_per_output_token", kind=Kind.RATIO, cell=_joules_per_token),
        _amount("gco2e", "carbon_ug", MICRO_PLACES),
        _amount("cost", "cost_nano", NANO_PLACES),
        _of_field("currency", Kind.TEXT, "currency"),
        *(_of_field(name, Kind.COUNT, name) for name in ("accepted", "rejected", "judged")),
    ]
    return found + (VALUE_COLUMNS if has_value else [])


COUNTS = (
    "requests", "attempts", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "image_tokens",
    "audio_tokens", "input_bytes", "output_bytes",
)  # fmt: skip


def _of_field(name: str, kind: Kind, field: str) -> Column:
    return Column(name=name, kind=kind, cell=lambda row: getattr(row, field))


def _amount(name: str, field: str, places: int) -> Column:
    return Column(name=name, kind=Kind.AMOUNT, cell=lambda row: decimal_text(getattr(row, field), places))


def _joules_per_token(row: UsageRow) -> str | None:
    """Joules of requests over output tokens."""
    if not row.output_tokens:
        return None
    return decimal_text(rounded(Fraction(row.energy_mj * 1_000, row.output_tokens)), RATIO_PLACES)


def _value(name: str, kind: Kind, cell: Callable[[Value], int | str | None]) -> Column:
    return Column(name=name, kind=kind, cell=lambda row: cell(value_of(row)))


def _ratio_text(ratio: float | None) -> str | None:
    return None if ratio is None else f"{ratio:.{RATIO_PLACES}f}"


def _amount_text(amount: int | None, places: int) -> str | None:
    return None if amount is None else decimal_text(amount, places)


VALUE_COLUMNS = [
    _value("covered_ratio", Kind.RATIO, lambda value: _ratio_text(value.covered_ratio)),
    _value("accepted_ratio", Kind.RATIO, lambda value: _ratio_text(value.accepted_ratio)),
    _value("accepted_ratio_low", Kind.RATIO, lambda value: _ratio_text(value.accepted_ratio_low)),
    _value("accepted_ratio_high", Kind.RATIO, lambda value: _ratio_text(value.accepted_ratio_high)),
    _value("cost_per_accepted", Kind.AMOUNT, lambda value: _amount_text(value.cost_nano, NANO_PLACES)),
    _value("cost_per_accepted_low", Kind.AMOUNT, lambda value: _amount_text(value.cost_nano_low, NANO_PLACES)),
    _value("cost_per_accepted_high", Kind.AMOUNT, lambda value: _amount_text(value.cost_nano_high, NANO_PLACES)),
    _value("joules_per_accepted", Kind.AMOUNT, lambda value: _amount_text(value.energy_mj, MILLI_PLACES)),
    _value("joules_per_accepted_low", Kind.AMOUNT, lambda value: _amount_text(value.energy_mj_low, MILLI_PLACES)),
    _value("joules_per_accepted_high", Kind.AMOUNT, lambda value: _amount_text(value.energy_mj_high, MILLI_PLACES)),
]


def write_csv(file: TextIO, rows: Sequence[UsageRow], shown: Sequence[Column]) -> None:
    """A line of names, then a line a row; what cannot be told is empty."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.name for column in shown])
    for row in rows:
        writer.writerow([_stamp(row.bucket_us) if column.kind is Kind.TIME else column.cell(row) for column in shown])


def _stamp(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- tables


def show(rows: Sequence[UsageRow], by: Sequence[str], *, from_unix_s: int, to_unix_s: int, has_value: bool) -> None:
    """A table on standard output, with the sum of each currency where there are several rows."""
    title = f"{_stamp(from_unix_s * 1_000_000)} to {_stamp(to_unix_s * 1_000_000)}"
    if not rows:
        print_lines([f"{title}: no usage"])
        return
    cells, names = (_value_cells, VALUE_NAMES) if has_value else (_cells, AMOUNT_NAMES)
    lines = [(*_labels(row, by), *cells(row)) for row in rows]
    totals = summed(rows, width_us=None, by=())
    if len(rows) > len(totals):
        lines += [("all", *[""] * (len(by) - 1), *cells(total)) for total in totals]
    print_table(title, (*map(_name, by), *names), lines, numeric_from=len(by), is_whole=True)


def _name(word: str) -> str:
    return f"{word} (UTC)" if word in WIDTHS else word


def _labels(row: UsageRow, by: Sequence[str]) -> list[str]:
    forms = {"day": "%Y-%m-%d", "hour": "%Y-%m-%d %H:%M", "minute": "%Y-%m-%d %H:%M"}
    start = datetime.fromtimestamp(row.bucket_us // 1_000_000, UTC)
    return [start.strftime(forms[word]) if word in forms else getattr(row, field_of(word)) or "–" for word in by]


AMOUNT_NAMES = ("requests", "input", "cached", "output", "GPU-s", "J", "J/token", "gCO2e", "money", "accepted")


def _cells(row: UsageRow) -> Iterator[str]:
    yield from (f"{count:,}" for count in (row.requests, row.input_tokens, row.cached_tokens, row.output_tokens))
    yield f"{row.gpu_us / 1e6:,.1f}"
    yield f"{row.energy_mj / 1e3:,.1f}"
    yield f"{row.energy_mj / 1e3 / row.output_tokens:,.3f}" if row.output_tokens else "–"
    yield f"{row.carbon_ug / 1e6:,.3f}"
    yield money(row.cost_nano, row.currency)
    results = row.accepted + row.rejected
    yield f"{row.accepted:,} of {results:,}" if results else "–"


VALUE_NAMES = ("requests", "judged", "accepted", "share in %", "money each", "J each")


def _value_cells(row: UsageRow) -> Iterator[str]:
    value = value_of(row)
    yield f"{row.requests:,}"
    yield "–" if value.covered_ratio is None else f"{value.covered_ratio:.0%}"
    yield f"{value.accepted:,} of {value.results:,}" if value.results else "–"
    yield share(value)
    yield money_each(value, row.currency)
    yield joules_each(value)


def share(value: Value) -> str:
    """Of the results those that were accepted, with the interval."""
    if value.accepted_ratio is None or value.accepted_ratio_low is None or value.accepted_ratio_high is None:
        return "–"
    low, high = value.accepted_ratio_low * 100, value.accepted_ratio_high * 100
    return f"{value.accepted_ratio:.1%} [{low:.1f} – {high:.1f}]"


def money_each(value: Value, currency: str) -> str:
    """Per accepted result, with the interval."""
    text = _within(value.cost_nano, value.cost_nano_low, value.cost_nano_high, 1e9)
    return text if value.cost_nano_low is None else f"{text} {currency}".rstrip()


def joules_each(value: Value) -> str:
    """Per accepted result, with the interval."""
    return _within(value.energy_mj, value.energy_mj_low, value.energy_mj_high, 1e3)


def _within(amount: int | None, low: int | None, high: int | None, units: float) -> str:
    """An interval may have no end, and then what lies in it cannot be told."""
    if low is None:
        return "–"
    middle = "–" if amount is None else figure(amount / units)
    return f"{middle} [{figure(low / units)} – {'∞' if high is None else figure(high / units)}]"


def figure(number: float) -> str:
    """An estimate: four digits say more than it knows."""
    size = abs(number)
    if size and not 1e-4 <= size < 1e15:
        return f"{number:.3e}"
    return f"{number:,.{max(3 - math.floor(math.log10(size)), 0) if size else 0}f}"


def money(nano: int, currency: str) -> str:
    """Exact, without the zeros at its end but for two places."""
    whole, _, places = decimal_text(abs(nano), NANO_PLACES).partition(".")
    return f"{'-' if nano < 0 else ''}{int(whole):,}.{places.rstrip('0').ljust(2, '0')} {currency}".rstrip()
