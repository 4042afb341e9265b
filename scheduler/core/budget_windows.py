"""The windows of budgets: which stretch of time a charge belongs to, and when it no longer counts.

Called by ``scheduler.core.budget_accounts`` and, to read a window, by the configuration. It must never know what is
counted or ask a clock: the moment is an argument, in whole microseconds since 1970 (UTC).

Every window cuts time into numbered slots, half-open: the first microsecond belongs to it, the last bound to the next.
A calendar window counts one slot, the running one. A rolling window of length L cuts slots of L/60 and counts the
running one and the 60 before it: in no stretch of length L is more counted than the limit, and a charge is forgotten
at most L/60 after it is L old. ``total`` has one slot that never ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

SECOND_US = 1_000_000
DAY_S = 86_400
NUM_BUCKETS = 60
"""Slots of a rolling window."""
MAX_ROLLING_S = 366 * DAY_S

UNITS_S = {"s": 1, "second": 1, "m": 60, "minute": 60, "h": 3600, "hour": 3600, "d": DAY_S, "day": DAY_S}
CALENDAR_S = {"minute": 60, "hour": 3600, "day": DAY_S}
"""Calendar windows of one length; a month has several."""
LONGEST_MONTH_S = 31 * DAY_S

FORMS = "1h (a number with s, m, h or d), minute, hour, day, calendar minute, hour, day or month, or total"
_ROLLING = re.compile(r"([1-9][0-9]{0,8})\s?(s|m|h|d)|(second|minute|hour|day)")


class Kind(StrEnum):
    """How a window's slots follow each other."""

    ROLLING = "rolling"
    CALENDAR = "calendar"
    MONTH = "month"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time in which at most the limit is counted. Equal if it means the same, however it was written."""

    kind: Kind
    length_s: int
    """0 for a total; the longest month for months."""
    text: str = field(default="", compare=False)
    """As it was written."""

    def __str__(self) -> str:
        return self.text or _text(self.kind, self.length_s)

    @staticmethod
    def parse(text: str) -> Window:
        """Reads ``1h``, ``day``, ``calendar month``, ``total``. Raises: ValueError, with the forms that exist."""
        words = " ".join(text.split())
        if words == "total":
            return Window(Kind.TOTAL, 0, words)
        if words == "calendar month":
            return Window(Kind.MONTH, LONGEST_MONTH_S, words)
        if words.startswith("calendar ") and words.removeprefix("calendar ") in CALENDAR_S:
            return Window(Kind.CALENDAR, CALENDAR_S[words.removeprefix("calendar ")], words)
        match = _ROLLING.fullmatch(words)
        if match is None:
            remedy = "; a month has no fixed length: calendar month, or 30d" if words == "month" else ""
            raise ValueError(f"no window that is known here: write {FORMS}{remedy}")
        length_s = UNITS_S[match[3]] if match[3] else int(match[1]) * UNITS_S[match[2]]
        if length_s > MAX_ROLLING_S:
            raise ValueError(f"a rolling window is at most {MAX_ROLLING_S // DAY_S}d long; a longer one is a total")
        return Window(Kind.ROLLING, length_s, words)

    @property
    def num_slots(self) -> int:
        """Slots that count at a time, the running one among them."""
        return NUM_BUCKETS + 1 if self.kind is Kind.ROLLING else 1

    def slot_of(self, at_us: int) -> int:
        """The slot that the moment lies in."""
        if self.kind is Kind.ROLLING:
            return at_us * NUM_BUCKETS // (self.length_s * SECOND_US)
        if self.kind is Kind.CALENDAR:
            return at_us // (self.length_s * SECOND_US)
        if self.kind is Kind.MONTH:
            year, month, _ = civil_of_days(at_us // (DAY_S * SECOND_US))
            return year * 12 + month - 1
        return 0

    def start_us(self, slot: int) -> int | None:
        """The first microsecond of the slot; None for a total, which never began and never ends."""
        if self.kind is Kind.ROLLING:
            return -(-slot * self.length_s * SECOND_US // NUM_BUCKETS)
        if self.kind is Kind.CALENDAR:
            return slot * self.length_s * SECOND_US
        if self.kind is Kind.MONTH:
            return days_of_civil(slot // 12, slot % 12 + 1, 1) * DAY_S * SECOND_US
        return None

    def free_us(self, slot: int) -> int | None:
        """From when on the slot no longer counts; None = never."""
        return self.start_us(slot + self.num_slots)


def _text(kind: Kind, length_s: int) -> str:
    """The plainest words for a window that nobody wrote."""
    if kind is Kind.ROLLING:
        return f"{length_s}s"
    names = {length: name for name, length in CALENDAR_S.items()}
    return {Kind.CALENDAR: f"calendar {names.get(length_s)}", Kind.MONTH: "calendar month", Kind.TOTAL: "total"}[kind]


# -- civil dates: Howard Hinnant, "chrono-compatible low-level date algorithms", proleptic Gregorian calendar


def days_of_civil(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to the date; months 1 to 12."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def civil_of_days(days: int) -> tuple[int, int, int]:
    """Year, month and day of so many days after 1970-01-01."""
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month + 2) // 5 + 1
    month += 3 if month < 10 else -9
    return era * 400 + year_of_era + (month <= 2), month, day


def utc_text(at_us: int) -> str:
    """``2026-11-25T21:30:00Z``, rounded up to a whole second: at that moment it is over."""
    days, second = divmod(-(-at_us // SECOND_US), DAY_S)
    year, month, day = civil_of_days(days)
    return f"{year:04d}-{month:02d}-{day:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"
