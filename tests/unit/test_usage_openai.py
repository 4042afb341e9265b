"""OpenAI's usage and costs: its parameters, its buckets and pages, its objects, held against what it publishes."""

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.usage import DAY_US, MINUTE_US, MemoryUsage, UsageRow
from scheduler.api import usage_openai
from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.api.usage_openai import COMPLETIONS, COSTS, Shape, answer
from tests.openai_usage_schema import FIELDS, REQUIRED, check_page, published
from tests.usage_rows import NOW_US, ROWS, START_S, UNITS, caller, memory

ALPHA = caller("alpha")
DAY_S = 86_400


def asked(
    shape: Shape = COMPLETIONS, who: Caller | None = ALPHA, source: MemoryUsage | None = None, **words: Any
) -> dict[str, Any]:
    """A page; lists are written as OpenAI's clients do."""
    pairs = {"start_time": START_S, **words}
    listed = {f"{name}[]" if isinstance(value, list) else name: value for name, value in pairs.items()}
    text = urlencode(listed, doseq=True).encode()
    page = json.loads(answer(shape, text, source or memory(), who, now_us=NOW_US))
    check_page(page)
    return page


def results(page: dict[str, Any]) -> list[dict[str, Any]]:
    return [result for bucket in page["data"] for result in bucket["results"]]


def refused(shape: Shape = COMPLETIONS, **words: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asked(shape, **words)
    assert 400 == caught.value.status
    return caught.value


# -- what is published


def test_the_fields_are_those_that_are_published() -> None:
    """What the checks below know of OpenAI's schema is what it says."""
    document = published()
    if document is None:
        pytest.skip("OpenAI's published schema does not lie beside this checkout: FIELDS alone was checked")
    schemas = document["components"]["schemas"]
    for name, shape in (("UsageCompletionsResult", COMPLETIONS), ("CostsResult", COSTS)):
        (kind,) = schemas[name]["properties"]["object"]["enum"]
        assert {"object", *FIELDS[kind]} == set(schemas[name]["properties"])
        assert {"object", *REQUIRED[kind]} == set(schemas[name]["required"])
        parameters = {each["name"]: each["schema"] for each in document["paths"][shape.path[3:]]["get"]["parameters"]}
        assert set(shape.names) == set(parameters)
        assert set(shape.widths) == set(parameters["bucket_width"]["enum"])
        assert list(shape.fields) == parameters["group_by"]["items"]["enum"]


def test_openais_own_client_reads_it() -> None:
    """Its parameters as it writes them, its objects as it reads them, page after page."""

    def serve(request: httpx2.Request) -> httpx2.Response:
        shape = {shape.path: shape for shape in (COMPLETIONS, COSTS)}[request.url.path]
        return httpx2.Response(200, content=answer(shape, request.url.query, memory(), None, now_us=NOW_US))

    http = httpx2.Client(transport=httpx2.MockTransport(serve))
    with openai.OpenAI(api_key="-", admin_api_key="admin", base_url="http://x/v1", http_client=http) as client:
        usage = client.admin.organization.usage
        page = usage.completions(
            start_time=START_S, bucket_width="1d", group_by=["project_id", "model", "batch"], limit=1,
            project_ids=["alpha", "beta"], batch=False,
        )  # fmt: skip
        assert (True, {"alpha", "beta"}, {False}) == (
            page.has_more, {each.project_id for each in page.data[0].results}, {e.batch for e in page.data[0].results},
        )  # fmt: skip
        following = usage.completions(
            start_time=START_S, bucket_width="1d", group_by=["project_id", "model", "batch"], limit=1,
            project_ids=["alpha", "beta"], batch=False, page=page.next_page or "",
        )  # fmt: skip
        assert page.data[0].end_time == following.data[0].start_time
        costs = usage.costs(start_time=START_S, group_by=["line_item"])
        assert {"m", "n"} == {result.line_item for result in costs.data[0].results}
        assert "eur" == costs.data[0].results[0].amount.currency


# -- buckets


def test_a_bucket_ends_by_the_clock() -> None:
    """The first one begins where it was asked to, the last one ends there; all between are whole."""
    page = asked(start_time=START_S + 3_600, end_time=START_S + 2 * DAY_S + 60)
    bounds = [START_S + 3_600, START_S + DAY_S, START_S + 2 * DAY_S, START_S + 2 * DAY_S + 60]
    assert list(pairwise(bounds)) == [(bucket["start_time"], bucket["end_time"]) for bucket in page["data"]]
    assert [2, 1, 0] == [sum(each["num_model_requests"] for each in bucket["results"]) for bucket in page["data"]]


def test_until_now_by_default() -> None:
    """A started second is told whole."""
    page = asked()
    assert (NOW_US // 10**6, [5, 1, 1, 0]) == (
        page["data"][-1]["end_time"],
        [sum(each["num_model_requests"] for each in bucket["results"]) for bucket in page["data"]],
    )


@pytest.mark.parametrize(("width", "default", "most"), [("1d", 7, 31), ("1h", 24, 168), ("1m", 60, 1_440)])
def test_a_page_has_as_many_buckets_as_openai_says(width: str, default: int, most: int) -> None:
    """By default and at most; one more is refused."""
    end = START_S + 40 * DAY_S
    assert default == len(asked(bucket_width=width, end_time=end)["data"])
    assert most == len(asked(bucket_width=width, end_time=end, limit=most)["data"])
    assert "limit" == refused(bucket_width=width, limit=most + 1).param


def test_costs_have_days_only() -> None:
    """Up to 180 of them."""
    assert (7, 180) == tuple(
        len(asked(COSTS, end_time=START_S + 400 * DAY_S, **limit)["data"]) for limit in ({}, {"limit": 180})
    )
    assert ("bucket_width", "limit") == (refused(COSTS, bucket_width="1h").param, refused(COSTS, limit=181).param)


def test_without_usage_a_bucket_is_empty() -> None:
    """It is there all the same."""
    assert [[], []] == [
        bucket["results"] for bucket in asked(source=MemoryUsage(), end_time=START_S + 2 * DAY_S)["data"]
    ]


# -- what is grouped and filtered


def test_what_is_not_grouped_by_is_null() -> None:
    """One result a bucket."""
    (first, *_) = asked()["data"]
    (result,) = first["results"]
    assert (5, 50, 25, 4, 46) == tuple(
        result[name]
        for name in (
            "num_model_requests",
            "input_tokens",
            "output_tokens",
            "input_cached_tokens",
            "input_uncached_tokens",
        )
    )
    assert {None} == {result[field] for field in COMPLETIONS.fields}
    assert "input_text_tokens" not in result


def test_kinds_of_input_are_told_where_nothing_was_cached() -> None:
    """Of what was cached nobody counted the kind."""
    row = UsageRow(bucket_us=START_S * 10**6, tenant="alpha", input_tokens=10, image_tokens=3, audio_tokens=2)
    (result,) = results(asked(source=MemoryUsage([row])))
    assert (5, 3, 2) == tuple(result[f"input_{kind}_tokens"] for kind in ("text", "image", "audio"))


@pytest.mark.parametrize("field", COMPLETIONS.fields)
@pytest.mark.parametrize("who", [ALPHA, None])
def test_every_grouping_loses_nothing(field: str, who: Caller | None) -> None:
    """The parts are the whole, each named once a bucket."""
    whole, parts = asked(who=who), asked(who=who, group_by=[field])
    for one, several in zip(whole["data"], parts["data"], strict=True):
        for amount in ("num_model_requests", "input_tokens", "output_tokens"):
            assert sum(each[amount] for each in one["results"]) == sum(each[amount] for each in several["results"])
        names = [each[field] for each in several["results"]]
        assert len(set(names)) == len(names)


def test_a_tenants_projects_are_projects_and_the_operators_are_tenants() -> None:
    """A user is a tenant, whoever asks."""
    fields = ["project_id", "user_id", "api_key_id"]
    own = {tuple(each[field] for field in fields) for each in results(asked(group_by=fields))}
    assert {("p", "alpha", "key-alpha"), ("q", "alpha", "key-alpha")} == own
    everybody = {tuple(each[field] for field in fields) for each in results(asked(who=None, group_by=fields))}
    assert {(tenant, tenant, f"key-{tenant}") for tenant in UNITS} == everybody


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"project_ids": ["p"]}, 4), ({"project_ids": ["p", "q"]}, 7), ({"project_ids": ["alpha"]}, 0),
        ({"user_ids": ["alpha"]}, 7), ({"user_ids": ["beta"]}, 0), ({"user_ids": ["alpha", "beta"]}, 7),
        ({"api_key_ids": ["key-alpha"]}, 7), ({"api_key_ids": ["key-beta"]}, 0),
        ({"models": ["m"]}, 4), ({"models": ["n", "none"]}, 3), ({"models": ["none"]}, 0),
        ({"batch": "true"}, 2), ({"batch": "false"}, 5), ({"models": ["m"], "batch": "true"}, 1),
        ({"project_ids": "p"}, 4),
    ],
)  # fmt: skip
def test_filters(words: dict[str, Any], expected: int) -> None:
    """All of them hold together; the result is what is left."""
    assert expected == sum(each["num_model_requests"] for each in results(asked(**words)))


def test_an_operator_filters_tenants() -> None:
    """By project or by user; both together leave what is in both."""
    for words in (
        {"project_ids": ["beta"]},
        {"user_ids": ["beta"]},
        {"project_ids": ["alpha", "beta"], "user_ids": ["beta"]},
    ):
        assert 7_000 == sum(each["num_model_requests"] for each in results(asked(who=None, **words)))
    assert [] == results(asked(who=None, project_ids=["alpha"], user_ids=["beta"]))


def test_two_tiers_that_are_no_batch_are_one_result() -> None:
    """Grouped by tier they are two."""
    first = [asked(group_by=[field])["data"][0]["results"] for field in ("batch", "service_tier")]
    assert [{True, False}, {"priority", "default", "flex"}] == [
        {each[field] for each in told} for field, told in zip(("batch", "service_tier"), first, strict=True)
    ]
    both = asked(group_by=["batch", "service_tier"])["data"][0]["results"]
    assert {(False, "priority"), (False, "default"), (True, "flex")} == {
        (each["batch"], each["service_tier"]) for each in both
    }


# -- money


def test_money_is_exact() -> None:
    """A JSON number with nine places; half a cent of a currency unit's billionth is not made a float."""
    rows = [
        UsageRow(bucket_us=START_S * 10**6, tenant="alpha", cost_nano=123_456_789_012_345_678_901, currency="USD"),
        UsageRow(bucket_us=START_S * 10**6, tenant="alpha", cost_nano=-1, currency="EUR"),
    ]
    text = answer(COSTS, f"start_time={START_S}".encode(), MemoryUsage(rows), ALPHA, now_us=NOW_US)
    euro, dollar = results(json.loads(text, parse_float=Decimal))
    assert ({"value": Decimal("-0.000000001"), "currency": "eur"}) == euro["amount"]
    assert ({"value": Decimal("123456789012.345678901"), "currency": "usd"}) == dollar["amount"]


def test_a_line_item_is_a_model() -> None:
    """With the tokens that were paid for."""
    first = asked(COSTS, group_by=["line_item", "project_id"])["data"][0]["results"]
    assert {("m", "p", 45), ("n", "q", 30)} == {
        (each["line_item"], each["project_id"], each["quantity"]) for each in first
    }
    assert {"tokens"} == {each["quantity_unit"] for each in first}
    (whole,) = asked(COSTS)["data"][0]["results"]
    assert (None, None, None) == (whole["line_item"], whole["quantity"], whole["quantity_unit"])


def test_what_was_free_is_no_cost() -> None:
    """It has no currency to be told in."""
    row = UsageRow(bucket_us=START_S * 10**6, tenant="alpha", requests=1)
    assert [] == results(asked(COSTS, source=MemoryUsage([row])))


def test_usage_in_two_currencies_is_one_result_and_costs_are_two() -> None:
    """Tokens have no currency."""
    rows = [
        UsageRow(bucket_us=START_S * 10**6, tenant="alpha", requests=1, cost_nano=1, currency=currency)
        for currency in ("EUR", "USD")
    ]
    assert [2] == [each["num_model_requests"] for each in results(asked(source=MemoryUsage(rows)))]
    assert ["eur", "usd"] == [each["amount"]["currency"] for each in results(asked(COSTS, source=MemoryUsage(rows)))]


# -- pages


def pages(**words: Any) -> list[dict[str, Any]]:
    """All of them, one after the other."""
    found = [asked(**words)]
    while found[-1]["has_more"]:
        assert len(found) < 1_000, "pages without end"
        found.append(asked(**words, page=found[-1]["next_page"]))
    return found


def tally(found: list[dict[str, Any]], field: str) -> dict[tuple[int, str], int]:
    """Requests by bucket and value; no bucket and value twice."""
    sums: dict[tuple[int, str], int] = {}
    for page in found:
        for bucket in page["data"]:
            for each in bucket["results"]:
                key = (bucket["start_time"], str(each[field]))
                assert key not in sums, "one result in two parts"
                sums[key] = each["num_model_requests"]
    return sums


@pytest.mark.parametrize("limit", [1, 2, 24])
def test_pages_follow_each_other_without_a_gap(limit: int) -> None:
    """Each bucket once, in order, whole."""
    found = pages(bucket_width="1h", limit=limit, group_by=["model"])
    buckets = [bucket for page in found for bucket in page["data"]]
    assert all(one["end_time"] == other["start_time"] for one, other in pairwise(buckets))
    assert tally([asked(bucket_width="1h", limit=168, group_by=["model"])], "model") == tally(found, "model")
    assert all(len(page["data"]) == limit for page in found[:-1])


@given(
    rows=st.lists(
        st.builds(
            UsageRow,
            bucket_us=st.integers(0, 4).map(lambda hour: START_S * 10**6 + hour * 3600 * 10**6),
            tenant=st.just("alpha"),
            model=st.sampled_from("abcd"),
            tier=st.sampled_from(("priority", "default", "flex", "")),
            currency=st.sampled_from(("EUR", "USD")),
            requests=st.integers(1, 9),
        ),
        max_size=40,
    ),
    fields=st.sampled_from((["model"], ["batch", "model"], ["model", "service_tier"])),
    limit=st.integers(1, 5),
)
def test_a_bucket_that_is_too_large_goes_on_in_the_next_page(
    rows: list[UsageRow], fields: list[str], limit: int
) -> None:
    """No result is lost, doubled or parted, though a page holds ten rows only."""
    words = {"bucket_width": "1h", "group_by": fields, "end_time": START_S + 5 * 3600, "source": MemoryUsage(rows)}
    whole = asked(**words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage_openai, "MAX_ROWS", 10)
        found = pages(**words, limit=limit)
    by = "/".join(fields)

    def named(page: dict[str, Any]) -> dict[str, Any]:
        for each in results(page):
            each[by] = tuple(each[field] for field in fields)
        return page

    assert tally([named(whole)], by) == tally([named(page) for page in found], by)


def test_the_end_stands_while_pages_are_turned() -> None:
    """Now moves on, the question does not."""
    text = f"start_time={START_S}&limit=1".encode()
    first = json.loads(answer(COMPLETIONS, text, memory(), ALPHA, now_us=NOW_US))
    page = first["next_page"]
    while page is not None:
        told = json.loads(
            answer(COMPLETIONS, text + b"&page=" + page.encode(), memory(), ALPHA, now_us=NOW_US + DAY_US)
        )
        page = told["next_page"]
    assert -(-NOW_US // 10**6) == told["data"][-1]["end_time"]


@pytest.mark.parametrize(
    "words",
    [{"models": ["m"]}, {"group_by": ["model"]}, {"bucket_width": "1h"}, {"who": None}, {"who": caller("beta")}],
)
def test_a_cursor_of_another_question_is_refused(words: dict[str, Any]) -> None:
    """Of another tenant's too."""
    page = asked(limit=1)["next_page"]
    assert "page" == refused(**words, limit=1, page=page).param


# -- what is refused


@pytest.mark.parametrize(
    ("words", "param"),
    [
        ({"start_time": ""}, "start_time"), ({"start_time": "soon"}, "start_time"),
        ({"start_time": START_S + 4 * DAY_S}, "start_time"), ({"end_time": START_S}, "start_time"),
        ({"end_time": 0}, "end_time"), ({"bucket_width": "1w"}, "bucket_width"), ({"group_by": ["task"]}, "group_by"),
        ({"batch": "yes"}, "batch"), ({"limit": 0}, "limit"), ({"page": "x"}, "page"),
        ({"start_time": 2**63}, "start_time"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(words: dict[str, Any], param: str) -> None:
    """By the parameter's name."""
    assert param == refused(**words).param


def test_a_start_is_needed_and_costs_have_no_models() -> None:
    """As OpenAI has it."""
    with pytest.raises(ApiError, match="start_time"):
        answer(COSTS, b"", memory(), ALPHA, now_us=NOW_US)
    assert "unknown_parameter" == refused(COSTS, models=["m"]).code


def test_the_rows_of_the_tests_are_told_apart() -> None:
    """A sum of one tenant's rows is no sum of another's."""
    assert 7 * len(UNITS) == len(ROWS)
    assert MINUTE_US * 1_440 == DAY_US
