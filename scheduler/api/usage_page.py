"""One page of usage: whose rows may be seen, of which time, how many of them, and where the next page begins.

Called by ``scheduler.api.usage`` and ``scheduler.api.usage_openai``. It is the only place that asks a ``UsageSource``
for somebody: a tenant's own name is always in the question, whatever else is asked, so that no filter, grouping or
cursor reaches another tenant's rows. What is not a tenant's is told from what never was by nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.accounting.usage import MINUTE_US, Key, UsageRow, UsageSource
from scheduler.api.access import Caller
from scheduler.api.query import MAX_UNIX_S, Query, bad_value

MAX_ROWS = 10_000
"""Of one page."""
SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Of time: [``from_us``, ``to_us``), unix microseconds."""

    from_us: int
    to_us: int


class Scope:
    """What rows an answer may hold: the caller's own, of those the ones that it asks for."""

    def __init__(self, caller: Caller | None) -> None:
        """``caller`` None: the operator, who sees everybody."""
        self._where: dict[str, frozenset[str]] = {}
        if caller is not None:
            self.narrow("tenant", [caller.tenant])

    def narrow(self, group: str, values: list[str] | tuple[str, ...] | None) -> None:
        """Only these of the group from now on, of those that were left; None: as before."""
        if values is not None:
            asked = frozenset(values)
            self._where[group] = self._where.get(group, asked) & asked

    def rows(
        self,
        source: UsageSource,
        *,
        span: Span,
        width_us: int | None,
        by: tuple[str, ...],
        limit: int,
        after: Key | None = None,
    ) -> list[UsageRow]:
        """As ``UsageSource.usage``. Where nothing can be left nobody is asked."""
        if not all(self._where.values()):
            return []
        where: Mapping[str, frozenset[str]] = dict(self._where)
        return source.usage(
            from_us=span.from_us, to_us=span.to_us, width_us=width_us, by=by, where=where, limit=limit, after=after
        )


def span_of(query: Query, first: str, last: str, *, now_us: int) -> Span:
    """From the parameter ``first`` to ``last``, both cut to their minutes: usage is kept by minute, and two spans that
    meet count none twice. ``last`` is now by default, with the minute that runs. Raises: ApiError 400.
    """
    from_s = query.whole(first, low=0, high=MAX_UNIX_S - 1)
    if from_s is None:
        raise bad_value(first, "expected unix seconds")
    to_s = query.whole(last, low=1, high=MAX_UNIX_S)
    from_us = _minute_us(from_s)
    to_us = now_us if to_s is None else _minute_us(to_s)
    if from_us >= to_us:
        words = "expected a time before now" if to_s is None else f"expected a minute before that of {last}"
        raise bad_value(first, words)
    return Span(from_us=from_us, to_us=to_us)


def _minute_us(at_s: int) -> int:
    """When its minute began."""
    return at_s * SECOND_US // MINUTE_US * MINUTE_US
