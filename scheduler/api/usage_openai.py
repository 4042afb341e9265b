"""OpenAI's `/v1/organization/usage/completions` and `/v1/organization/costs`: its parameters, buckets, pages, objects.

Called by ``scheduler.api.usage``. It must never know who else there is: the scope is made of the caller.

Whoever asks is an organization: a tenant's projects are its projects, the operator's projects are the tenants. A user
is a tenant, which is what a key stands for. Batch work is what has the tier ``flex``. The first bucket begins at the
start time and ends where a bucket ends by the clock (UTC); the last one ends at the end time. Buckets without usage
have no results. What does not fit a page goes on in the next one, in the middle of a bucket if need be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from scheduler.accounting.decimals import NANO_PLACES, decimal_text
from scheduler.accounting.usage import (
    BATCH_TIER,
    DAY_US,
    HOUR_US,
    MINUTE_US,
    TIERS,
    UsageRow,
    UsageSource,
    key_of,
    summed,
)
from scheduler.api.access import Caller
from scheduler.api.query import LIMIT, PAGE, Cursor, Query, cursor_of
from scheduler.api.usage_page import MAX_ROWS, SECOND_US, Scope, Span, span_of

Result = dict[str, object]


class Width(NamedTuple):
    """A width of buckets, and how many of them a page has by default and at most."""

    width_us: int
    default: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one of the two routes takes and tells."""

    path: str
    widths: Mapping[str, Width]
    filters: Mapping[str, str]
    """A parameter, and the field that it is about."""
    fields: tuple[str, ...]
    """What can be grouped by."""
    has_money: bool
    result: Callable[[UsageRow], Result]

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter."""
        own = ("start_time", "end_time", "bucket_width", "group_by", LIMIT, PAGE)
        return (*own, *self.filters, *(("batch",) if "batch" in self.fields else ()))


def answer(shape: Shape, text: bytes, source: UsageSource, caller: Caller | None, *, now_us: int) -> bytes:
    """A page of buckets as JSON. ``caller`` None: the operator. Raises: ApiError 400."""
    query = Query(text, names=shape.names)
    width = shape.widths[query.word("bucket_width", shape.widths) or "1d"]
    count = query.whole(LIMIT, low=1, high=width.most) or width.default
    fields = query.words("group_by", shape.fields)
    groups = {field: _group_of(field, caller) for field in fields}
    scope = Scope(caller)
    for name, field in shape.filters.items():
        scope.narrow(_group_of(field, caller), query.many(name))
    if "batch" in shape.fields:
        batch = query.word("batch", ("true", "false"))
        scope.narrow("tier", None if batch is None else [tier for tier in ("", *TIERS) if _is_batch(tier, batch)])
    # The tier comes last, where batch and not batch lie side by side.
    by = tuple(sorted(set(groups.values()), key=lambda group: (group == "tier", group)))
    digest = query.digest(shape.path, "" if caller is None else caller.tenant)
    cursor = cursor_of(query, digest, num_texts=len(by) + 1)
    whole = span_of(query, "start_time", "end_time", now_us=now_us)
    span = whole if cursor is None else Span(from_us=cursor.from_us, to_us=cursor.to_us)
    buckets = _buckets(span, width.width_us, count)
    rows = scope.rows(
        source,
        span=Span(from_us=span.from_us, to_us=buckets[-1].to_us),
        width_us=width.width_us,
        by=by,
        limit=MAX_ROWS + 1,
        after=None if cursor is None else cursor.after,
    )
    kept = _whole_groups(rows, by)
    follows = _next(kept, rows, buckets, span, width.width_us, by)
    results = _results(shape, kept, groups)
    data = [
        _bucket(bucket, results.get(_start(bucket.from_us, width.width_us), []))
        for bucket in buckets
        if follows is None or bucket.from_us < follows.from_us or (follows.after and bucket.from_us == follows.from_us)
    ]
    page = None if follows is None else follows.text(digest)
    return msgspec.json.encode({"object": "page", "data": data, "has_more": page is not None, "next_page": page})


def _group_of(field: str, caller: Caller | None) -> str:
    """The group of rows that a field of OpenAI's stands for."""
    if field == "project_id":
        return "tenant" if caller is None else "project"
    return {
        "user_id": "tenant", "api_key_id": "key_id", "model": "model", "line_item": "model",
        "batch": "tier", "service_tier": "tier",
    }[field]  # fmt: skip


def _is_batch(tier: str, batch: str) -> bool:
    return (tier == BATCH_TIER) == (batch == "true")


# -- buckets and pages


def _start(at_us: int, width_us: int) -> int:
    return at_us // width_us * width_us


def _buckets(span: Span, width_us: int, count: int) -> list[Span]:
    """The first so many of the span."""
    buckets: list[Span] = []
    from_us = span.from_us
    while from_us < span.to_us and len(buckets) < count:
        to_us = min(_start(from_us, width_us) + width_us, span.to_us)
        buckets.append(Span(from_us=from_us, to_us=to_us))
        from_us = to_us
    return buckets


def _whole_groups(rows: list[UsageRow], by: tuple[str, ...]) -> list[UsageRow]:
    """What fits a page. Rows that become one result (two tiers that are no batch, two currencies) are not parted."""
    if len(rows) <= MAX_ROWS:
        return rows
    finer = tuple(group for group in by if group != "tier")
    first_left = key_of(rows[MAX_ROWS], finer)[:-1]
    kept = rows[:MAX_ROWS]
    while kept and key_of(kept[-1], finer)[:-1] == first_left:
        kept.pop()
    assert kept, "more tiers and currencies in one group than a page has rows"
    return kept


def _next(
    kept: list[UsageRow], rows: list[UsageRow], buckets: list[Span], span: Span, width_us: int, by: tuple[str, ...]
) -> Cursor | None:
    """Where the next page begins; None: this is the last."""
    if len(kept) == len(rows):
        to_us = buckets[-1].to_us
        return Cursor(from_us=to_us, to_us=span.to_us) if to_us < span.to_us else None
    last = next(bucket for bucket in buckets if _start(bucket.from_us, width_us) == kept[-1].bucket_us)
    if rows[len(kept)].bucket_us == kept[-1].bucket_us:
        return Cursor(from_us=last.from_us, to_us=span.to_us, after=key_of(kept[-1], by))
    return Cursor(from_us=last.to_us, to_us=span.to_us)


def _bucket(span: Span, results: list[Result]) -> Result:
    start, end = span.from_us // SECOND_US, -(-span.to_us // SECOND_US)
    return {"object": "bucket", "start_time": start, "end_time": end, "results": results}


# -- results


def _results(shape: Shape, rows: list[UsageRow], groups: Mapping[str, str]) -> dict[int, list[Result]]:
    """By the start of their bucket."""
    parts: dict[int, dict[tuple[object, ...], list[UsageRow]]] = {}
    for row in rows:
        currency = row.currency if shape.has_money else ""
        if shape.has_money and not currency and not row.cost_nano:
            continue  # nothing was paid, in no currency
        told = tuple(_told(field, getattr(row, group)) for field, group in groups.items())
        same = parts.setdefault(row.bucket_us, {}).setdefault((currency, *told), [])
        same.append(msgspec.structs.replace(row, currency=currency))
    return {
        bucket_us: [_result(shape, dict(zip(groups, told, strict=True)), same) for (_, *told), same in found.items()]
        for bucket_us, found in parts.items()
    }


def _result(shape: Shape, told: Mapping[str, object], rows: list[UsageRow]) -> Result:
    (total,) = summed(rows, width_us=None, by=())
    named = {**dict.fromkeys(shape.fields), **told}
    return {**shape.result(total), **named, **_quantity(total, named)}


def _told(field: str, value: str) -> object:
    return value == BATCH_TIER if field == "batch" else value or None


def _completion(row: UsageRow) -> Result:
    """Where nothing was cached the kinds of input are told apart; of what was cached it is not known which kind."""
    result: Result = {
        "object": "organization.usage.completions.result",
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "num_model_requests": row.requests,
        "input_cached_tokens": row.cached_tokens,
        "input_uncached_tokens": row.input_tokens - row.cached_tokens,
        "output_text_tokens": row.output_tokens,
    }
    if not row.cached_tokens:
        result["input_text_tokens"] = row.input_tokens - row.image_tokens - row.audio_tokens
        result["input_image_tokens"] = row.image_tokens
        result["input_audio_tokens"] = row.audio_tokens
    return result


def _cost(row: UsageRow) -> Result:
    """The value is a JSON number with all its nine places: a reader that keeps decimals loses nothing."""
    value = msgspec.Raw(decimal_text(row.cost_nano, NANO_PLACES).encode())
    return {
        "object": "organization.costs.result",
        "amount": {"value": value, "currency": row.currency.lower()},
    }


def _quantity(row: UsageRow, named: Mapping[str, object]) -> Result:
    """A line item is a model; its quantity are the tokens that were paid for."""
    if "line_item" not in named:
        return {}
    if named["line_item"] is None:
        return {"quantity": None, "quantity_unit": None}
    return {"quantity": row.input_tokens + row.output_tokens, "quantity_unit": "tokens"}


COMPLETIONS = Shape(
    path="/v1/organization/usage/completions",
    widths={"1d": Width(DAY_US, 7, 31), "1h": Width(HOUR_US, 24, 168), "1m": Width(MINUTE_US, 60, 1440)},
    filters={"project_ids": "project_id", "user_ids": "user_id", "api_key_ids": "api_key_id", "models": "model"},
    fields=("project_id", "user_id", "api_key_id", "model", "batch", "service_tier"),
    has_money=False,
    result=_completion,
)
COSTS = Shape(
    path="/v1/organization/costs",
    widths={"1d": Width(DAY_US, 7, 180)},
    filters={"project_ids": "project_id", "api_key_ids": "api_key_id"},
    fields=("project_id", "line_item", "api_key_id"),
    has_money=True,
    result=_cost,
)
