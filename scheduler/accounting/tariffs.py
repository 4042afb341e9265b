"""When a price holds: stretches of the week on the wall clock of a named time zone.

Called by ``scheduler.accounting.prices`` and by the configuration. It must never know a price or ask a clock; of the
outside it knows the IANA time zone database alone.

A week is 10,080 minutes of local time from Monday 00:00; a tariff is half-open spans of it. The instant decides, and an
instant has exactly one local time: in the night in which clocks go back the repeated hour has the same tariff twice, in
the one in which they go forward the hour that is left out is never reached. Unix time has no leap seconds (the last
second of such a day is repeated), and the 29th of February is a day of the week as any other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WHOLE_DAY = "00:00-24:00"

Span = tuple[int, int]
"""Minutes of the local week, half-open: the first belongs to it, the last does not."""

_ZONE = re.compile(r"[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
"""Neither a path nor ``right/…`` (which counts leap seconds) nor ``localtime`` (which every machine has another)."""
_HOURS = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """A named part of the week. ``spans`` are in order and do not touch."""

    name: str
    time_zone: str = "UTC"
    spans: tuple[Span, ...]


ALWAYS = Tariff(name="always", spans=((0, WEEK_MINUTES),))


def spans_of(days: Iterable[str], hours: str = WHOLE_DAY) -> list[Span]:
    """``["mon-fri"], "22:00-06:00"``: on those days from the first time to the second, the next day's if it is earlier.

    Raises: ValueError, with the forms that exist.
    """
    match = _HOURS.fullmatch(hours)
    if match is None:
        raise ValueError('hours are written "22:00-06:00", from 00:00 to 24:00')
    begin, end = (int(match[place]) * 60 + int(match[place + 1]) for place in (1, 3))
    if max(begin, end) > DAY_MINUTES or begin == DAY_MINUTES:
        raise ValueError('hours are written "22:00-06:00", from 00:00 to 24:00')
    if begin == end:
        raise ValueError(f"hours begin and end at the same time; the whole day is {WHOLE_DAY}")
    length = end - begin if end > begin else end - begin + DAY_MINUTES
    spans: list[Span] = []
    for day in _days(days):
        first = day * DAY_MINUTES + begin
        spans.append((first, min(first + length, WEEK_MINUTES)))
        if first + length > WEEK_MINUTES:
            spans.append((0, first + length - WEEK_MINUTES))  # from Sunday into Monday
    return spans


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same minutes in order, in as few spans as there can be; what is covered twice is covered."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return tuple(found)


def zone_of(name: str) -> tzinfo:
    """The time zone of that name. Raises: ValueError where there is none, or no database to look it up in."""
    if name == "UTC":
        return UTC  # needs no database
    try:
        if _ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        pass
    raise ValueError(f"no time zone {name!r} is known here: write UTC or a name as Europe/Berlin (package tzdata)")


def minute_of_week(at_unix_s: float, zone: tzinfo) -> int:
    """Minutes since Monday 00:00 on the zone's wall clock at that instant."""
    local = datetime.fromtimestamp(math.floor(at_unix_s), zone)
    return local.weekday() * DAY_MINUTES + local.hour * 60 + local.minute


def span_text(span: Span) -> str:
    """``mon 22:00 to tue 06:00``; a day that is over is 24:00."""
    begin, end = span
    day = (end - 1) // DAY_MINUTES
    minute = end - day * DAY_MINUTES
    return (
        f"{DAYS[begin // DAY_MINUTES]} {begin // 60 % 24:02d}:{begin % 60:02d} "
        f"to {DAYS[day]} {minute // 60:02d}:{minute % 60:02d}"
    )


def _days(words: Iterable[str]) -> list[int]:
    """``mon``, ``mon-fri``, ``sat-mon``; each once."""
    found: list[int] = []
    for word in words:
        first, dash, last = word.strip().lower().partition("-")
        if first not in DAYS or (last if dash else first) not in DAYS:
            raise ValueError(f"no day that is known here: write {', '.join(DAYS)}, or a range as mon-fri")
        begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        found += [(begin + step) % 7 for step in range((end - begin) % 7 + 1)]
    if not found:
        raise ValueError("names no day; leave days out for all of them")
    if len(set(found)) < len(found):
        raise ValueError("names a day twice")
    return found
