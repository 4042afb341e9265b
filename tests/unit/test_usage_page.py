"""A tenant's answers hold its own rows only, whatever it asks for by whichever route; and nobody else can be felt."""

import base64
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.usage import DAY_US, MINUTE_US, MemoryUsage, UsageRow
from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.api.query import Cursor, Query
from scheduler.api.usage import GROUP_WORDS, OPENAI_SHAPES, USAGE_PATH, USAGE_PATHS, WIDTH_WORDS, answer
from scheduler.api.usage_page import MAX_ROWS, Scope, Span, span_of
from tests.usage_rows import NOW_US, ROWS, START_S, UNITS, caller, memory

OTHERS = ("beta", "gamma")
SPAN = Span(from_us=0, to_us=NOW_US)


class Watched(MemoryUsage):
    """Every question that reached it, by what it was filtered."""

    def __init__(self) -> None:
        super().__init__(ROWS)
        self.wheres: list[Mapping[str, frozenset[str]]] = []

    def usage(self, **how: Any) -> list[UsageRow]:
        assert how["limit"] <= MAX_ROWS + 1
        self.wheres.append(how["where"])
        return super().usage(**how)


def say(path: str, words: list[tuple[str, str]], who: Caller | None, source: MemoryUsage | None = None) -> Any:
    """The answer, or the refusal's words."""
    text = urlencode(words).encode()
    try:
        return json.loads(answer(path, text, source or memory(), who, now_us=NOW_US, prices={}))
    except ApiError as error:
        return (error.status, error.code, error.param, error.message)


# -- every filter, grouping and cursor


VALUES = (
    *UNITS, *(f"key-{tenant}" for tenant in UNITS), "p", "q", "m", "n", "nightly", "", "*", "%", "' OR 1=1 --",
    "alpha,beta", "alpha/p", "nobody",
)  # fmt: skip
"""What a curious tenant might try."""


@st.composite
def cursors(draw: st.DrawFn, path: str, words: list[tuple[str, str]], num_groups: int) -> str:
    """Made up with care: of the right form and of this very question, leading anywhere."""
    names = OPENAI_SHAPES[path].names if path in OPENAI_SHAPES else ("from", "to", "by", "limit", "page", *GROUP_WORDS)
    digest = Query(urlencode(words).encode(), names=names).digest(
        path, draw(st.sampled_from(("alpha", "alpha", "beta")))
    )
    num_texts = num_groups + draw(st.sampled_from((1, 1, 1, 0)))
    after = draw(st.none() | st.tuples(st.integers(0, NOW_US), *[st.sampled_from(VALUES)] * num_texts))
    from_us = draw(st.integers(0, NOW_US))
    return Cursor(from_us=from_us, to_us=draw(st.integers(from_us + 1, 2 * NOW_US)), after=after).text(digest)


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]]]:
    """A route and parameters of it, in any combination."""
    path = draw(st.sampled_from(USAGE_PATHS))
    by: list[str] = []
    if path in OPENAI_SHAPES:
        shape = OPENAI_SHAPES[path]
        by = draw(st.lists(st.sampled_from(shape.fields), max_size=6, unique=True))
        words = [("start_time", str(START_S)), *(("group_by[]", field) for field in by)]
        words.append(("bucket_width", draw(st.sampled_from(list(shape.widths)))))
        words.append(("limit", draw(st.sampled_from(("1", "31")))))
        if "batch" in shape.fields and draw(st.booleans()):
            words.append(("batch", draw(st.sampled_from(("true", "false")))))
        filters = list(shape.filters)
    else:
        words, filters = [("from", str(START_S))], []
        if path == USAGE_PATH:
            by = draw(st.lists(st.sampled_from(list(GROUP_WORDS)), max_size=4, unique=True))
            told = ",".join([*by, *draw(st.lists(st.sampled_from(list(WIDTH_WORDS)), max_size=1))])
            words += [("by", told)] if told else []
            words.append(("limit", str(draw(st.integers(1, 40)))))
            filters = list(GROUP_WORDS)
    if filters:
        words += draw(st.lists(st.tuples(st.sampled_from(filters), st.sampled_from(VALUES)), max_size=4))
        if draw(st.booleans()):
            words.append(("page", draw(cursors(path, words, len(by)))))
    return path, words


def texts(told: Any) -> str:
    """Everything that an answer says, its cursor opened."""
    page = told.get("next_page") if isinstance(told, dict) else None
    opened = base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)).decode() if page else ""
    return json.dumps(told) + opened


@given(questions())
def test_no_question_of_a_tenant_reaches_anothers_rows(question: tuple[str, list[tuple[str, str]]]) -> None:
    """Not a name, in its rows or in its cursor; and the source was never asked for more."""
    source = Watched()
    told = say(*question, caller("alpha"), source)
    assert all(where["tenant"] == {"alpha"} for where in source.wheres)
    if isinstance(told, dict):
        assert not [name for name in OTHERS if name in texts(told)]


@given(questions(), st.sampled_from(OTHERS))
def test_nobody_else_can_be_felt(question: tuple[str, list[tuple[str, str]]], other: str) -> None:
    """Named or not, there or not: the answer to one name is the answer to the other, byte for byte but for cursors."""
    path, words = question
    stranger = "nobody-at-all"[: len(other)]
    asked = [(name, value.replace("nobody", other)) for name, value in words if name != "page"]
    also = [(name, value.replace("nobody", stranger)) for name, value in words if name != "page"]
    one, two = say(path, asked, caller("alpha")), say(path, also, caller("alpha"))
    for told in (one, two):
        if isinstance(told, dict):
            told.pop("next_page", None)
    assert one == two


@given(questions())
def test_a_tenant_sees_what_it_would_see_alone(question: tuple[str, list[tuple[str, str]]]) -> None:
    """Other tenants change no amount, no page, no refusal."""
    alone = MemoryUsage([row for row in ROWS if row.tenant == "alpha"])
    assert say(*question, caller("alpha")) == say(*question, caller("alpha"), alone)


@pytest.mark.parametrize("path", USAGE_PATHS)
def test_a_tenant_without_usage_sees_nothing(path: str) -> None:
    """A new one, or one that is named like nothing."""
    start = "start_time" if path in OPENAI_SHAPES else "from"
    words = [(start, str(START_S))]
    assert say(path, words, caller("")) == say(path, words, caller("alpha"), MemoryUsage())


def test_the_operator_sees_everybody() -> None:
    """The same rows, unfiltered: what the tests above look for is there to be found."""
    told = say(USAGE_PATH, [("from", str(START_S)), ("by", "tenant")], None)
    assert {tenant: 7 * unit for tenant, unit in UNITS.items()} == {
        row["tenant"]: row["requests"] for row in told["rows"]
    }


# -- the scope itself


def test_filters_of_one_group_hold_together() -> None:
    """And nothing given changes nothing."""
    scope = Scope(None)
    scope.narrow("model", None)
    scope.narrow("model", ["m", "n"])
    scope.narrow("model", ("n", "o"))
    found = scope.rows(memory(), span=SPAN, width_us=None, by=("model",), limit=9)
    assert ["n"] == [row.model for row in found]


def test_a_tenant_cannot_be_widened() -> None:
    """Its own name stays in, whatever is asked for beside it."""
    scope = Scope(caller("alpha"))
    scope.narrow("tenant", ["alpha", "beta"])
    (row,) = scope.rows(memory(), span=SPAN, width_us=None, by=("tenant",), limit=9)
    assert ("alpha", 7) == (row.tenant, row.requests)


def test_where_nothing_can_be_left_nobody_is_asked() -> None:
    """A database has no words for a value out of none."""
    source = Watched()
    scope = Scope(caller("alpha"))
    scope.narrow("tenant", ["beta"])
    assert ([], []) == (scope.rows(source, span=SPAN, width_us=None, by=(), limit=9), source.wheres)


def span(text: str) -> Span:
    return span_of(Query(text.encode(), names=("from", "to")), "from", "to", now_us=10 * MINUTE_US + 1)


def test_a_span_begins_with_a_minute_and_ends_now() -> None:
    """Or where it is said to."""
    assert Span(from_us=MINUTE_US, to_us=10 * MINUTE_US + 1) == span("from=61")
    assert Span(from_us=0, to_us=MINUTE_US) == span("from=0&to=61")
    assert Span(from_us=0, to_us=400 * DAY_US) == span(f"from=0&to={400 * 86_400}")


def test_spans_that_meet_within_a_minute_count_it_once() -> None:
    """It belongs to the later one, whole: usage is not kept by the second."""
    before, after = span("from=0&to=150"), span("from=150&to=300")
    assert (2 * MINUTE_US, 2 * MINUTE_US) == (before.to_us, after.from_us)


@pytest.mark.parametrize(
    "text", ["", "to=5", "from=660", "from=60&to=60", "from=60&to=119", "from=-1", "from=0&to=253402300801"]
)
def test_a_span_that_holds_no_time_is_refused(text: str) -> None:
    """By the parameter's name."""
    with pytest.raises(ApiError) as caught:
        span(text)
    assert caught.value.param in ("from", "to")
