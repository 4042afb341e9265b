"""The routes that say who used what: rows of usage, OpenAI's two shapes of it, and models side by side.

Called by ``scheduler.api.app`` for tenants and by ``scheduler.api.admin`` for the operator. It must never change
anything. Whose rows an answer may hold is decided in ``scheduler.api.usage_page`` alone.

Questions are answered on threads, because a ledger reads its disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec

from scheduler.accounting.comparison import compare
from scheduler.accounting.usage import DAY_US, HOUR_US, MINUTE_US, UsageSource, key_of
from scheduler.api.access import Caller
from scheduler.api.places import Places
from scheduler.api.query import LIMIT, PAGE, Cursor, Query, bad_value, cursor_of
from scheduler.api.usage_openai import COMPLETIONS, COSTS
from scheduler.api.usage_openai import answer as answer_openai
from scheduler.api.usage_page import MAX_ROWS, SECOND_US, Scope, Span, span_of
from scheduler.core.request import Rates

USAGE_PATH = "/v1/jouleway/usage"
MODELS_PATH = "/v1/jouleway/models"
OPENAI_SHAPES = {shape.path: shape for shape in (COMPLETIONS, COSTS)}
USAGE_PATHS = (USAGE_PATH, MODELS_PATH, *OPENAI_SHAPES)

GROUP_WORDS = {
    "tenant": "tenant", "project": "project", "key": "key_id", "model": "model", "task": "task", "tier": "tier",
}  # fmt: skip
"""What a question calls the groups of rows."""
WIDTH_WORDS = {"minute": MINUTE_US, "hour": HOUR_US, "day": DAY_US}
MODELS_SPAN_US = 30 * DAY_US
"""Over which models are compared by default."""
DEFAULT_ROWS = 1_000


def usage(text: bytes, source: UsageSource, caller: Caller | None, *, now_us: int) -> bytes:
    """A page of rows as JSON. ``caller`` None: the operator. Raises: ApiError 400."""
    query = Query(text, names=("from", "to", "by", LIMIT, PAGE, *GROUP_WORDS))
    words = tuple(word for value in query.many("by") or () for word in value.split(","))
    groups, width_us = _grouping(words)
    scope = Scope(caller)
    for word, group in GROUP_WORDS.items():
        scope.narrow(group, query.many(word))
    digest = query.digest(USAGE_PATH, "" if caller is None else caller.tenant)
    cursor = cursor_of(query, digest, num_texts=len(groups) + 1)
    span = span_of(query, "from", "to", now_us=now_us)
    if cursor is not None:
        span = Span(from_us=cursor.from_us, to_us=cursor.to_us)
    limit = query.whole(LIMIT, low=1, high=MAX_ROWS) or DEFAULT_ROWS
    after = None if cursor is None else cursor.after
    rows = scope.rows(source, span=span, width_us=width_us, by=groups, limit=limit + 1, after=after)
    page = None
    if len(rows) > limit:
        rows = rows[:limit]
        page = Cursor(from_us=span.from_us, to_us=span.to_us, after=key_of(rows[-1], groups)).text(digest)
    told = {
        "object": "jouleway.usage",
        "from_unix_s": span.from_us // SECOND_US,
        "to_unix_s": -(-span.to_us // SECOND_US),
        "by": words,
        "rows": rows,
        "has_more": page is not None,
        "next_page": page,
    }
    return msgspec.json.encode(told)


def _grouping(words: tuple[str, ...]) -> tuple[tuple[str, ...], int | None]:
    """Groups of rows and the width of their buckets. Raises: ApiError 400."""
    widths = [word for word in words if word in WIDTH_WORDS]
    groups = tuple(word for word in words if word in GROUP_WORDS)
    if len(widths) + len(groups) < len(words) or len(widths) > 1 or len(set(groups)) < len(groups):
        raise bad_value("by", f"expected some of {', '.join(GROUP_WORDS)} and at most one of {', '.join(WIDTH_WORDS)}")
    return tuple(GROUP_WORDS[word] for word in groups), WIDTH_WORDS[widths[0]] if widths else None


def models(
    text: bytes, source: UsageSource, caller: Caller | None, *, now_us: int, prices: Mapping[str, Rates]
) -> bytes:
    """Every model as JSON, over what the caller used; the last 30 days by default. Raises: ApiError 400."""
    query = Query(text, names=("from", "to"))
    if query.one("from") is None and query.one("to") is None:
        from_us = max(now_us - MODELS_SPAN_US, 0) // MINUTE_US * MINUTE_US
        span = Span(from_us=from_us, to_us=now_us)
    else:
        span = span_of(query, "from", "to", now_us=now_us)
    rows = Scope(caller).rows(source, span=span, width_us=None, by=("model",), limit=MAX_ROWS)
    told = {
        "object": "list",
        "from_unix_s": span.from_us // SECOND_US,
        "to_unix_s": -(-span.to_us // SECOND_US),
        "data": compare(rows, prices),
    }
    return msgspec.json.encode(told)


def answer(
    path: str, text: bytes, source: UsageSource, caller: Caller | None, *, now_us: int, prices: Mapping[str, Rates]
) -> bytes:
    """What one of ``USAGE_PATHS`` says to a query string. Raises: ApiError 400."""
    if path == USAGE_PATH:
        return usage(text, source, caller, now_us=now_us)
    if path == MODELS_PATH:
        return models(text, source, caller, now_us=now_us, prices=prices)
    return answer_openai(OPENAI_SHAPES[path], text, source, caller, now_us=now_us)


class UsageDesk:
    """Answers questions about usage for both listeners, so many at a time."""

    def __init__(
        self,
        source: UsageSource,
        *,
        prices: Callable[[], Mapping[str, Rates]] = dict,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """``prices``: of every served model, as they are now."""
        self._source = source
        self._prices = prices
        self._unix_clock = unix_clock
        self._places = Places("usage", code="usage_busy")

    async def answer(self, path: str, text: bytes, caller: Caller | None) -> bytes:
        """The JSON. Raises: ApiError 400, 503."""
        async with self._places.taken(None if caller is None else caller.tenant):
            now_us = int(self._unix_clock() * SECOND_US)
            return await asyncio.to_thread(
                answer, path, text, self._source, caller, now_us=now_us, prices=self._prices()
            )
