"""Moments as people write them on a command line: a day, or a day and a time; UTC unless they say otherwise.

Called by the commands that ask for a stretch of time. Pure. It must never ask a clock.
"""

from __future__ import annotations

from datetime import UTC, datetime

from scheduler.commands.exits import CommandError, ExitCode

FORMS = "2026-07-01, 2026-07-01T13:00 (UTC) or 2026-07-01T13:00+02:00"


def unix_s(text: str, *, option: str) -> int:
    """Whole unix seconds, a started one cut. Raises: CommandError, naming the option."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        seconds = int(moment.timestamp() // 1)
    except (ValueError, OverflowError):
        seconds = -1
    if seconds < 0:
        raise CommandError(f"{option} is no moment since 1970", code=ExitCode.USAGE, remedy=f"write it as {FORMS}")
    return seconds


def period_us(from_text: str | None, to_text: str | None) -> tuple[int, int | None]:
    """Of ``--from`` and ``--to``, in unix microseconds; without them from the beginning, and to no end.

    Raises: CommandError, naming the option.
    """
    from_us = 0 if from_text is None else 1_000_000 * unix_s(from_text, option="--from")
    return from_us, None if to_text is None else 1_000_000 * unix_s(to_text, option="--to")


def month_start_unix_s(now_unix_s: float) -> int:
    """When the month of that moment began (UTC)."""
    now = datetime.fromtimestamp(now_unix_s, UTC)
    return int(datetime(now.year, now.month, 1, tzinfo=UTC).timestamp())
