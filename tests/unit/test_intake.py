"""A body and its headers become a request: what the key allows at most, what the model's figures say, no text."""

import json
from typing import Any

import pytest

from scheduler.accounting.prices import PriceBook
from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.api.intake import MODEL_MISSING, Admitted, Intake
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.core.request import Band, DataClass, Rates, Slo
from tests.price_words import entry, tariff, version

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "CANARY hello"}]}
SLO = Slo(ttft_s=9.0)
AT_UNIX_S = 1_700_000_000.5
"""A Tuesday, 22:13 UTC."""
DAY, NIGHT = tariff("day", "06:00-22:00"), tariff("night", "22:00-06:00")
PRICES = PriceBook(
    [
        version(
            "v",
            entry(10, Band.FLEX, model="m"),
            entry(20, Band.DEFAULT, Band.PRIORITY, model="m", tariff=DAY),
            entry(30, Band.DEFAULT, Band.PRIORITY, model="m", tariff=NIGHT),
        )
    ]
)


def intake(zones: frozenset[str] | None = None, *, prices: PriceBook = PRICES, **limits: Any) -> Intake:
    return Intake(
        models={"m": ServedModel(name="m", default_output_tokens=50, expansion=3, slo=SLO)},
        limits=RelayLimits(**limits),
        salt_key=b"salt",
        zones=zones,
        prices=prices,
        unix_clock=lambda: AT_UNIX_S,
    )


def admit(
    body: dict[str, Any] | bytes | None = None,
    *,
    headers: dict[bytes, list[bytes]] | None = None,
    path: str = CHAT,
    by: Intake | None = None,
    **caller: Any,
) -> Admitted:
    fields = {"tenant": "alpha", "project": "p", "key_id": "key-1", "best_band": Band.PRIORITY, **caller}
    data = body if isinstance(body, bytes) else json.dumps(HELLO if body is None else body).encode()
    return (by or intake()).admit(
        path, headers or {}, data, caller=Caller(**fields), arrival_s=100.0, request_id="req-a"
    )


def refused(*args: Any, **how: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admit(*args, **how)
    return caught.value


def test_a_body_becomes_a_request_of_its_caller() -> None:
    """Everything the core needs, nothing of the text."""
    found = admit({**HELLO, "max_tokens": 9, "n": 2}, by=intake(request_timeout_s=60.0))
    request = found.request
    assert ("req-a", "alpha", "p", "key-1", "m", Band.DEFAULT) == (
        request.request_id, request.tenant, request.project, request.key_id, request.model, request.band,
    )  # fmt: skip
    assert (9, 2, 100.0, 160.0, 1_700_000_000.5) == (
        request.max_output_tokens, request.num_sequences, request.arrival_s, request.deadline_s, request.arrival_unix_s,
    )  # fmt: skip
    assert request.prompt_tokens_bound >= 3 * len("CANARY hello")
    assert request.body_bytes == len(found.ask.body)
    assert 1 == len(request.prefix_blocks)
    assert "CANARY" not in repr(request)


def test_the_models_prices_and_targets_are_pinned() -> None:
    """Those of its arrival; later price books change nothing for a request that was admitted."""
    by = intake()
    request = admit(by=by).request
    assert (30, SLO) == (request.rates.input_nano, request.slo)
    assert PRICES.rates("m", Band.DEFAULT, AT_UNIX_S) == request.rates
    by.reload(PriceBook([version("w", entry(99, model="m"))]))
    assert (30, 99) == (request.rates.input_nano, admit(by=by).request.rates.input_nano)


@pytest.mark.parametrize(("best_band", "nano"), [(Band.PRIORITY, 30), (Band.FLEX, 10)])
def test_the_price_is_that_of_the_tier_it_gets(best_band: Band, nano: int) -> None:
    """Not of the one that it asked for, where its key lowers that."""
    request = admit({**HELLO, "service_tier": "priority"}, best_band=best_band).request
    assert (best_band, nano) == (request.band, request.rates.input_nano)


def test_what_has_no_price_is_not_run() -> None:
    """The operator's gap: the model, the tier and the setting are named, and asking again does not help."""
    error = refused(by=intake(prices=PriceBook([version("v", entry(model="other"))])))
    assert (503, "no_price", "model", False) == (error.status, error.code, error.param, error.should_retry)
    assert "model 'm' has no price for service tier default" in error.message
    assert "prices.versions" in error.message
    assert "prices.missing: free" in error.message


def test_what_has_no_price_may_be_free() -> None:
    """If the operator says so; no version is named then."""
    prices = PriceBook([version("v", entry(model="other"))], is_free_where_missing=True)
    assert Rates() == admit(by=intake(prices=prices)).request.rates


def test_without_a_limit_of_its_own_the_models_default_applies() -> None:
    """Never the whole context."""
    assert 50 == admit().request.max_output_tokens


@pytest.mark.parametrize(
    ("tier", "best_band", "expected"),
    [
        (None, Band.PRIORITY, Band.DEFAULT),
        ("auto", Band.PRIORITY, Band.DEFAULT),
        ("priority", Band.PRIORITY, Band.PRIORITY),
        ("priority", Band.DEFAULT, Band.DEFAULT),
        (None, Band.FLEX, Band.FLEX),
        ("flex", Band.PRIORITY, Band.FLEX),
    ],
)
def test_service_tier_is_a_band_that_the_caller_may_have(tier: str | None, best_band: Band, expected: Band) -> None:
    """A higher tier than the key allows is lowered, as OpenAI does, not refused."""
    body = {**HELLO, **({"service_tier": tier} if tier else {})}
    assert expected == admit(body, best_band=best_band).request.band


@pytest.mark.parametrize(("asked", "expected_s"), [(b"2.5", 102.5), (b"1e9", 160.0)])
def test_a_deadline_can_only_be_tightened(asked: bytes, expected_s: float) -> None:
    """The operator's bound holds whatever the client says."""
    found = admit(headers={b"x-jouleway-deadline-s": [asked]}, by=intake(request_timeout_s=60.0))
    assert expected_s == found.request.deadline_s


@pytest.mark.parametrize(
    ("tier", "asked", "expected_s", "is_deferrable"),
    [
        ("flex", b"86400", 86_500.0, True),
        ("flex", b"1e9", 86_500.0, True),
        ("flex", b"30", 130.0, True),
        ("flex", None, 160.0, False),
        ("default", b"86400", 160.0, False),
    ],
)
def test_batch_class_work_may_state_a_later_deadline_and_wait_until_then(
    tier: str, asked: bytes | None, expected_s: float, is_deferrable: bool
) -> None:
    """Up to the operator's window; who states none waits for no price."""
    headers = {} if asked is None else {b"x-jouleway-deadline-s": [asked]}
    by = intake(request_timeout_s=60.0, max_window_s=86_400.0)
    request = admit({**HELLO, "service_tier": tier}, headers=headers, by=by).request
    assert (expected_s, is_deferrable) == (request.deadline_s, request.is_deferrable)


def test_a_key_without_more_than_batch_class_may_wait_whatever_tier_it_asks_for() -> None:
    """Its band counts, and not its wish."""
    headers = {b"x-jouleway-deadline-s": [b"7200"]}
    assert admit({**HELLO, "service_tier": "priority"}, headers=headers, best_band=Band.FLEX).request.is_deferrable


def test_headers_tighten_what_the_key_allows() -> None:
    """Task, class and zones go with the request."""
    headers = {b"x-jouleway-task": [b"nightly"], b"x-jouleway-data-class": [b"core"], b"x-jouleway-zones": [b"eu-1"]}
    request = admit(headers=headers, data_class=DataClass.IMPORTANT, zones=frozenset({"eu-1", "eu-2"})).request
    assert ("nightly", DataClass.CORE, frozenset({"eu-1"})) == (request.task, request.data_class, request.zones)


def test_without_headers_the_keys_class_and_zones_hold() -> None:
    """No header, no freedom."""
    request = admit(data_class=DataClass.CORE, zones=frozenset({"eu-1"})).request
    assert ("", DataClass.CORE, frozenset({"eu-1"})) == (request.task, request.data_class, request.zones)


def test_only_configured_zones_can_be_named() -> None:
    """Where they are known."""
    headers = {b"x-jouleway-zones": [b"eu-9"]}
    assert "unknown_zone" == refused(headers=headers, by=intake(zones=frozenset({"eu-1"}))).code


def test_an_unknown_model_is_not_found() -> None:
    """Before it takes a place in a queue."""
    error = refused({**HELLO, "model": "gpt-x"})
    assert (404, "model_not_found", "model", MODEL_MISSING) == (error.status, error.code, error.param, error.message)


def test_a_wrong_body_names_its_field() -> None:
    """The schema's own words."""
    assert (400, "temprature") == ((error := refused({**HELLO, "temprature": 1})).status, error.param)


def test_salts_keep_tenants_apart() -> None:
    """One salt per tenant, the same in every request; prompts of two tenants have no hash in common."""
    by = intake()
    first, again, other = admit(by=by), admit(by=by), admit(by=by, tenant="beta")
    assert first.salt == again.salt != other.salt
    assert first.request.prefix_blocks == again.request.prefix_blocks != other.request.prefix_blocks
    assert len(first.salt) <= 64
