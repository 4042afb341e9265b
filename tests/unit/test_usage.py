"""Usage sums: nothing is lost or doubled by any width, grouping, filter or page, and currencies are never added."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.usage import (
    AMOUNTS,
    DAY_US,
    GROUPS,
    HOUR_US,
    MINUTE_US,
    MemoryUsage,
    UsageRow,
    key_of,
    summed,
)
from tests.usage_contract import check_source
from tests.usage_rows import ROWS

NAMES = ("", "a", "b", "Z", "é", "a/b")
amounts = st.integers(-(10**6), 10**15)
minute_rows = st.builds(
    UsageRow,
    bucket_us=st.integers(0, 3 * 24 * 60).map(lambda minute: minute * MINUTE_US),
    currency=st.sampled_from(("", "EUR", "USD")),
    **{name: st.sampled_from(NAMES) for name in GROUPS},
    **dict.fromkeys(("requests", "output_tokens", "energy_mj", "cost_nano"), amounts),
)
groupings = st.permutations(GROUPS).flatmap(lambda names: st.integers(0, 3).map(lambda count: tuple(names[:count])))
widths = st.sampled_from((None, MINUTE_US, 15 * MINUTE_US, HOUR_US, DAY_US))
filters = st.dictionaries(st.sampled_from(GROUPS), st.frozensets(st.sampled_from(NAMES), max_size=3), max_size=2)


def row(minute: int = 0, **values: Any) -> UsageRow:
    return UsageRow(bucket_us=minute * MINUTE_US, **values)


def asked(source: MemoryUsage, **how: Any) -> list[UsageRow]:
    question: dict[str, Any] = {
        "from_us": 0, "to_us": 10 * DAY_US, "width_us": None, "by": (), "where": {}, "limit": 1000, "after": None,
    }  # fmt: skip
    return source.usage(**{**question, **how})


def totals(rows: list[UsageRow]) -> dict[str, tuple[int, ...]]:
    """Every amount by currency."""
    found: dict[str, tuple[int, ...]] = {}
    amounts_of = attrgetter(*AMOUNTS)
    for each in rows:
        known = found.get(each.currency, (0,) * len(AMOUNTS))
        found[each.currency] = tuple(map(sum, zip(known, amounts_of(each), strict=True)))
    return found


def test_every_field_is_a_group_an_amount_the_bucket_or_the_currency() -> None:
    """A new field is summed; none is forgotten."""
    assert set(UsageRow.__struct_fields__) == {*GROUPS, *AMOUNTS, "bucket_us", "currency"}
    assert {"judged", "accepted", "cost_nano", "input_bytes"} <= set(AMOUNTS)


def test_nothing_is_nothing() -> None:
    """No row of zeros is made up."""
    assert [] == asked(MemoryUsage())


def test_rows_are_summed_by_bucket_and_group() -> None:
    """What is not grouped by is empty; without a width there is one bucket."""
    source = MemoryUsage(
        [row(59, tenant="a", model="m", requests=1), row(60, tenant="a", model="n", requests=2), row(61, requests=4)]
    )
    assert [row(0, tenant="a", requests=1), row(60, requests=4), row(60, tenant="a", requests=2)] == asked(
        source, width_us=HOUR_US, by=("tenant",)
    )
    assert [row(requests=7)] == asked(source)


def test_a_range_holds_its_first_minute_and_not_its_last() -> None:
    """Half-open, so that two ranges that meet count nothing twice."""
    source = MemoryUsage([row(minute, requests=1) for minute in range(5)])
    ranges = ((0, 2), (2, 4), (4, 5))
    sums = [asked(source, from_us=low * MINUTE_US, to_us=high * MINUTE_US) for low, high in ranges]
    assert [2, 2, 1] == [found.requests for (found,) in sums]


def test_an_empty_set_lets_nothing_through() -> None:
    """Nor is an unnamed group filtered."""
    source = MemoryUsage([row(tenant="a", requests=1)])
    assert [] == asked(source, where={"tenant": frozenset()})
    assert [row(requests=1)] == asked(source, where={"tenant": frozenset({"a", "b"})})


def test_currencies_are_never_added() -> None:
    """Not even where nothing is grouped by."""
    source = MemoryUsage([row(cost_nano=1, currency=name) for name in ("USD", "EUR", "USD")])
    assert [("EUR", 1), ("USD", 2)] == [(each.currency, each.cost_nano) for each in asked(source)]


@pytest.mark.parametrize(
    "wrong", [{"width_us": 1}, {"width_us": 0}, {"by": ("cost_nano",)}, {"where": {"bucket_us": frozenset()}}]
)
def test_a_question_that_cannot_be_meant_is_ours(wrong: dict[str, Any]) -> None:
    """Users' words are checked before they come here."""
    with pytest.raises(AssertionError):
        asked(MemoryUsage([row()]), **wrong)


def test_a_row_within_a_minute_is_refused() -> None:
    """It could belong to two buckets."""
    with pytest.raises(AssertionError):
        MemoryUsage([UsageRow(bucket_us=1)])


@given(rows=st.lists(minute_rows, max_size=30), by=groupings, width_us=widths)
def test_grouping_loses_and_doubles_nothing(rows: list[UsageRow], by: tuple[str, ...], width_us: int | None) -> None:
    """The sums are those of the minutes; each key comes once, in order."""
    found = summed(rows, width_us=width_us, by=by)
    assert totals(rows) == totals(found)
    keys = [key_of(each, by) for each in found]
    assert sorted(set(keys)) == keys
    assert all(getattr(each, name) == "" for each in found for name in GROUPS if name not in by)


@given(rows=st.lists(minute_rows, max_size=30), by=groupings, where=filters)
def test_a_filter_keeps_what_it_names(
    rows: list[UsageRow], by: tuple[str, ...], where: Mapping[str, frozenset[str]]
) -> None:
    """The same as to sum the rows that it lets through."""
    kept = [each for each in rows if all(getattr(each, name) in values for name, values in where.items())]
    assert summed(kept, width_us=HOUR_US, by=by) == asked(MemoryUsage(rows), width_us=HOUR_US, by=by, where=where)


@given(rows=st.lists(minute_rows, max_size=30), by=groupings, width_us=widths, limit=st.integers(1, 7))
def test_pages_are_the_whole(rows: list[UsageRow], by: tuple[str, ...], width_us: int | None, limit: int) -> None:
    """Whatever the size of a page."""
    source = MemoryUsage(rows)
    whole = asked(source, by=by, width_us=width_us)
    paged: list[UsageRow] = []
    while page := asked(source, by=by, width_us=width_us, limit=limit, after=key_of(paged[-1], by) if paged else None):
        assert len(page) <= limit
        paged += page
    assert whole == paged


def test_the_list_keeps_its_own_contract() -> None:
    """As every source must."""
    check_source(MemoryUsage(ROWS), ROWS)


class Wrong(MemoryUsage):
    """A source with one fault."""

    def __init__(self, rows: list[UsageRow], **fault: Any) -> None:
        super().__init__(rows)
        self._fault = fault

    def usage(self, **how: Any) -> list[UsageRow]:
        return super().usage(**{**how, **self._fault})


@pytest.mark.parametrize(
    "fault", [{"from_us": 0}, {"to_us": 10 * DAY_US}, {"width_us": None}, {"by": ()}, {"where": {}}, {"limit": 2}]
)
def test_the_contract_finds_a_source_that_answers_something_else(fault: dict[str, Any]) -> None:
    """Whatever it forgets of a question."""
    with pytest.raises(AssertionError, match="where"):
        check_source(Wrong(ROWS, **fault), ROWS)


def test_the_contract_finds_a_source_that_turns_no_page() -> None:
    """It would begin again for ever."""
    with pytest.raises(AssertionError, match="after"):
        check_source(Wrong(ROWS, after=None), ROWS)
