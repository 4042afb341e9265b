"""Usage as sums: what was asked, computed and paid, by bucket of time and by group; the one question that answers it.

Called by ``scheduler.api.usage``; the ledger implements ``UsageSource``. Pure. It must never know a caller: whose rows
may be seen is decided by whoever asks, in ``where``.

A row holds sums over a bucket of time and a group. Underneath lie rows of minutes; every other width is a multiple of a
minute, and buckets start at multiples of it since 1970 (UTC), so that no time zone cuts an hour or a day. Money of two
currencies is never added: the currency belongs to the key of every row, whatever is grouped by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Protocol

import msgspec

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

BATCH_TIER = "flex"
TIERS = ("priority", "default", BATCH_TIER)
"""OpenAI's words for the bands, as rows hold them; work of the last one fills what the others leave."""


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over one bucket and one group. What it is not grouped by is empty.

    Classes lie within classes: cached, image and audio tokens are among the input tokens, reasoning tokens among the
    output tokens.
    """

    bucket_us: int
    """Start of the bucket, unix microseconds (UTC); 0 where time is not grouped by."""
    tenant: str = ""
    project: str = ""
    key_id: str = ""
    model: str = ""
    task: str = ""
    tier: str = ""
    """One of ``TIERS``."""
    requests: int = 0
    attempts: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    input_bytes: int = 0
    """UTF-8, of text."""
    output_bytes: int = 0
    gpu_us: int = 0
    energy_mj: int = 0
    carbon_ug: int = 0
    cost_nano: int = 0
    accepted: int = 0
    rejected: int = 0
    """Results of the row's requests by the outcome that counts for each, which is its latest."""
    judged: int = 0
    """Requests that those outcomes cover: one for a request's, all of a task's for a task's. 0 beside outcomes: as many
    as there are outcomes."""
    currency: str = ""
    """Of ``cost_nano``."""


Key = tuple[int | str, ...]
"""Where a row lies in the order: its bucket, its values of what is grouped by, its currency."""

GROUPS = ("tenant", "project", "key_id", "model", "task", "tier")
AMOUNTS = tuple(name for name in UsageRow.__struct_fields__ if name not in (*GROUPS, "bucket_us", "currency"))
"""Every field that is summed."""


class UsageSource(Protocol):
    """Whoever keeps rows of minutes. May be called from any thread, and several at once."""

    def usage(
        self,
        *,
        from_us: int,
        to_us: int,
        width_us: int | None,
        by: tuple[str, ...],
        where: Mapping[str, frozenset[str]],
        limit: int,
        after: Key | None,
    ) -> list[UsageRow]:
        """The rows of the minutes that start in [``from_us``, ``to_us``), summed.

        ``width_us`` None: one bucket over all. ``by``: some of ``GROUPS``. ``where``: of each group named, the values
        that count; an empty set lets nothing through. Sorted by ``key_of``, texts by code point (PostgreSQL: collation
        "C"); at most ``limit`` of those that come after the key ``after``.
        """


def key_of(row: UsageRow, by: tuple[str, ...]) -> Key:
    """Where the row lies among rows that are grouped by ``by``."""
    return (row.bucket_us, *(getattr(row, name) for name in by), row.currency)


def summed(rows: Iterable[UsageRow], *, width_us: int | None, by: tuple[str, ...]) -> list[UsageRow]:
    """Rows of smaller buckets and more groups as rows of larger buckets and fewer, sorted by ``key_of``."""
    assert width_us is None or (width_us > 0 and width_us % MINUTE_US == 0), width_us
    assert set(by) <= set(GROUPS), by
    amounts_of = attrgetter(*AMOUNTS)
    sums: dict[Key, list[int]] = {}
    for row in rows:
        start_us = 0 if width_us is None else row.bucket_us // width_us * width_us
        key = (start_us, *(getattr(row, name) for name in by), row.currency)
        amounts = amounts_of(row)
        known = sums.get(key)
        sums[key] = list(amounts) if known is None else [one + other for one, other in zip(known, amounts, strict=True)]
    names = ("bucket_us", *by, "currency", *AMOUNTS)
    return [msgspec.convert(dict(zip(names, (*key, *sums[key]), strict=True)), UsageRow) for key in sorted(sums)]


class MemoryUsage:
    """A ``UsageSource`` over a list: for tests, and the yardstick of whatever keeps rows on a disk."""

    def __init__(self, rows: Iterable[UsageRow] = ()) -> None:
        self._minutes: list[UsageRow] = []
        self.add(*rows)

    def add(self, *rows: UsageRow) -> None:
        """Rows of minutes; several may belong to one minute and group."""
        assert all(row.bucket_us % MINUTE_US == 0 for row in rows), "a bucket is a whole minute"
        self._minutes += rows

    def usage(
        self,
        *,
        from_us: int,
        to_us: int,
        width_us: int | None,
        by: tuple[str, ...],
        where: Mapping[str, frozenset[str]],
        limit: int,
        after: Key | None,
    ) -> list[UsageRow]:
        """As ``UsageSource`` says."""
        assert where.keys() <= set(GROUPS), where
        found = [
            row
            for row in self._minutes
            if from_us <= row.bucket_us < to_us and all(getattr(row, name) in where[name] for name in where)
        ]
        rows = summed(found, width_us=width_us, by=by)
        return [row for row in rows if after is None or key_of(row, by) > after][:limit]
