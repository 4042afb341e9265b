"""Series of electricity prices and carbon intensities: the lines of a CSV file become values over time, gaps included.

Called by ``scheduler.accounting.energy_prices`` and by ``scheduler.energy_feed``, which reads the files. Pure. It must
never know a zone's tariff, a file system or a clock.

A file begins with ``start_utc,value,unit`` and, where wanted, ``zone`` and ``kind``; each line holds from its start on.
Instants are UTC, so a day on which clocks are changed is a day as any other. Prices may be below 0.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from scheduler.core.steps import Steps

COLUMNS = ("start_utc", "value", "unit")
MORE_COLUMNS = ("zone", "kind")
MAX_ROWS = 100_000
"""Of one file: eleven years of hours."""
HOLD_S = 7_200.0
"""A value holds so long beyond its own interval where the next one is missing."""
LONGEST_INTERVAL_S = 3_600
"""Nothing is coarser than hours: what two starts lie further apart is a gap."""
MAX_PRICE_PER_KWH = 1_000.0
MAX_GCO2E_PER_KWH = 10_000.0
GRAMS_PER_POUND = 453.59237

CARBON_UNITS = {"g/kwh": 1.0, "kg/mwh": 1.0, "lbs/mwh": GRAMS_PER_POUND / 1_000, "lb/mwh": GRAMS_PER_POUND / 1_000}
"""Grams a kWh in one of each; of CO₂ or CO₂e, as the series has them."""
_PRICE_UNIT = re.compile(r"(?:per[ _]|(?:([a-z]{3})/))([km]wh)")
KINDS = frozenset({"actual", "estimated", "forecast", "average", "marginal"})
SIGNALS = frozenset({"average", "marginal"})
"""What a carbon intensity says: of all that is generated, or of what one more kWh brings. Never both in one price."""
UNITS = "per kWh, per MWh (or EUR/kWh, EUR/MWh), g/kWh, kg/MWh, lbs/MWh"


class SeriesError(ValueError):
    """A file that is not a series. The message names the line and what belongs there."""


class SeriesRow(NamedTuple):
    """One line, in the units of the configuration."""

    start_unix_s: int
    value: float
    """Currency units a kWh, or grams a kWh."""
    is_carbon: bool
    zone: str
    """Empty: wherever no line names its zone."""
    is_estimated: bool
    signal: str
    """One of ``SIGNALS``, or empty where it is not said."""
    line: int


class Source(NamedTuple):
    """Where a value is from."""

    value: float
    source: str
    """``series``, ``estimated``, ``held`` (the last value, for want of the next), ``configured``, or ``mean`` (of the
    series, where nothing is configured)."""


def read_series(data: bytes, *, currency: str) -> tuple[SeriesRow, ...]:
    """The lines of a file by their start. ``currency``: that of prices whose unit names one. Raises: SeriesError."""
    if not data.endswith(b"\n"):
        raise SeriesError("the last line has no end: it is still being written, or was cut off")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SeriesError("this is not UTF-8") from None
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [name.strip().lower() for name in next(lines)]
        _check_header(header)
        rows = [_row(dict(zip(header, _fields(line, header, lines.line_num), strict=True)), lines.line_num, currency)
                for line in lines if line]  # fmt: skip
    except csv.Error:
        raise SeriesError(f"line {lines.line_num}: this is not CSV") from None
    if not rows:
        raise SeriesError("it has a header and no value")
    _refuse_twice(rows)
    return tuple(sorted(rows))


def _check_header(header: Sequence[str]) -> None:
    unknown = sorted(set(header) - {*COLUMNS, *MORE_COLUMNS})
    if tuple(header[: len(COLUMNS)]) != COLUMNS or unknown or len(set(header)) < len(header):
        raise SeriesError(f"line 1: the header must be {','.join(COLUMNS)}, then at most {','.join(MORE_COLUMNS)}")


def _fields(line: list[str], header: Sequence[str], number: int) -> list[str]:
    if number > MAX_ROWS + 1:
        raise SeriesError(f"it has more than {MAX_ROWS:,} lines: split it by time")
    if len(line) != len(header):
        raise SeriesError(f"line {number}: {len(line)} fields where the header has {len(header)}")
    return [field.strip() for field in line]


def _row(fields: Mapping[str, str], number: int, currency: str) -> SeriesRow:
    kinds = set(fields.get("kind", "").lower().split())
    if not kinds <= KINDS or kinds >= SIGNALS:
        raise SeriesError(f"line {number}: kind: some of {', '.join(sorted(KINDS))}, of average and marginal one")
    is_carbon, ratio = _unit(fields["unit"], number, currency)
    try:
        value = float(fields["value"]) * ratio
    except ValueError:
        value = math.nan
    low, high = (0.0, MAX_GCO2E_PER_KWH) if is_carbon else (-MAX_PRICE_PER_KWH, MAX_PRICE_PER_KWH)
    if not low <= value <= high:
        what = "g/kWh" if is_carbon else "a kWh"
        raise SeriesError(f"line {number}: value: a number from {low:g} to {high:g} {what}, with a point")
    return SeriesRow(
        start_unix_s=_start(fields["start_utc"], number),
        value=value,
        is_carbon=is_carbon,
        zone=fields.get("zone", ""),
        is_estimated=bool(kinds & {"estimated", "forecast"}),
        signal=next(iter(kinds & SIGNALS), ""),
        line=number,
    )


def _unit(text: str, number: int, currency: str) -> tuple[bool, float]:
    """Whether it is a carbon intensity, and how much one of it is in our unit."""
    unit = text.lower()
    if unit in CARBON_UNITS:
        return True, CARBON_UNITS[unit]
    match = _PRICE_UNIT.fullmatch(unit)
    if match is None:
        raise SeriesError(f"line {number}: unit: one of {UNITS}")
    if match[1] is not None and match[1].upper() != currency:
        raise SeriesError(f"line {number}: unit: prices here are in {currency} (key currency), not {match[1].upper()}")
    return False, 1.0 if match[2] == "kwh" else 1e-3


def _start(text: str, number: int) -> int:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        if not moment.microsecond:
            return int(moment.timestamp())
    except (ValueError, OverflowError):
        pass
    raise SeriesError(f"line {number}: start_utc: a time in whole seconds, as 2026-11-01T00:00:00Z")


def _refuse_twice(rows: Iterable[SeriesRow]) -> None:
    first: dict[tuple[int, bool, str], int] = {}
    for row in rows:
        earlier = first.setdefault((row.start_unix_s, row.is_carbon, row.zone), row.line)
        if earlier != row.line:
            raise SeriesError(f"line {row.line}: the same start, quantity and zone as line {earlier}")


def filled(rows: Iterable[SeriesRow], fallback: Steps[float]) -> Steps[Source]:
    """Values over time of one quantity in one zone; where the series has none, ``fallback`` holds. A fallback of 0 says
    nothing: then it is the mean of the series, or whatever comes after its end would look free and be waited for.

    Of rows with the same start the last given one counts. A value holds for its interval, an hour or the shortest
    between two starts of the series, and ``HOLD_S`` beyond it at most.
    """
    by_start = {row.start_unix_s: row for row in rows}
    starts = sorted(by_start)
    if not starts:
        return fallback.map(lambda value: Source(value, "configured"))
    default = fallback.map(lambda value: Source(value, "configured"))
    if fallback == Steps.always(0.0):
        default = Steps.always(Source(fmean(row.value for row in by_start.values()), "mean"))
    interval_s = min([LONGEST_INTERVAL_S, *(after - before for before, after in pairwise(starts))])
    changes: list[tuple[float, Source]] = []

    def fall_back(from_s: float, to_s: float) -> None:
        moments = (*([from_s] if from_s > -math.inf else []), *default.between(from_s, to_s))
        changes.extend((at_s, default.at(at_s)) for at_s in moments)

    fall_back(-math.inf, starts[0])
    for start, after in zip(starts, [*starts[1:], math.inf], strict=True):
        row = by_start[start]
        changes.append((start, Source(row.value, "estimated" if row.is_estimated else "series")))
        if start + interval_s < after:
            changes.append((start + interval_s, Source(row.value, "held")))
        if start + interval_s + HOLD_S < after:
            fall_back(start + interval_s + HOLD_S, after)
    return Steps.of(default.values[0], changes)


def signals_of(rows: Iterable[SeriesRow]) -> set[str]:
    """Which of average and marginal the rows say they are."""
    return {row.signal for row in rows if row.is_carbon and row.signal}
