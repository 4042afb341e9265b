"""The demo's plan mixes every kind for every seed, and hangs up exactly twice."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands.demo_requests import MIN_REQUESTS, plan_requests

TENANTS = [("atlas", "key-a"), ("borea", "key-b"), ("ceres", "key-c")]


@given(num_requests=st.integers(MIN_REQUESTS, 120), seed=st.integers(0, 2**31))
def test_every_plan_is_mixed(num_requests: int, seed: int) -> None:
    """Chat and completion, stream and not, short and long, both tiers, three tenants, two aborts: always."""
    plan = plan_requests(TENANTS, num_requests=num_requests, seed=seed)
    assert len(plan) == num_requests
    assert {True, False} == {request.is_chat for request in plan}
    assert {True, False} == {request.is_stream for request in plan}
    assert {True, False} == {request.is_long for request in plan}
    assert {"priority", "default"} == {request.tier for request in plan}
    assert {("atlas", "key-a"), ("borea", "key-b"), ("ceres", "key-c")} == {(r.tenant, r.api_key) for r in plan}
    aborted = [request for request in plan if request.abort_after_chunks is not None]
    assert len(aborted) == 2
    assert all(request.is_stream and request.max_tokens > (request.abort_after_chunks or 0) for request in aborted)


def test_every_tenant_uses_both_tiers() -> None:
    """The tier is not another name for the tenant."""
    plan = plan_requests(TENANTS, num_requests=40, seed=0)
    assert len({(request.tenant, request.tier) for request in plan}) == 6


def test_the_same_seed_plans_the_same() -> None:
    """A demo can be repeated; another seed differs."""
    first, again, other = (plan_requests(TENANTS, num_requests=40, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_requests_start_in_order_within_half_a_minute() -> None:
    """40 requests arrive over some 16 s, so that batches of many sizes occur."""
    starts = [request.starts_after_s for request in plan_requests(TENANTS, num_requests=40, seed=0)]
    assert starts == sorted(starts)
    assert starts[0] == 0.0
    assert 5.0 < starts[-1] < 30.0


def test_the_body_is_what_an_openai_client_sends() -> None:
    """Chat has messages, a completion has a prompt, only streams ask for usage in the stream."""
    for request in plan_requests(TENANTS, num_requests=40, seed=0):
        payload = json.loads(json.dumps(request.payload("m")))
        assert ("messages" in payload, "prompt" in payload) == (request.is_chat, not request.is_chat)
        assert request.path == ("/v1/chat/completions" if request.is_chat else "/v1/completions")
        assert payload.get("stream_options") == ({"include_usage": True} if request.is_stream else None)
        assert (payload["model"], payload["service_tier"]) == ("m", request.tier)


def test_long_requests_are_long() -> None:
    """A long prompt fills more than one prefill chunk of the demo engine's block."""
    plan = plan_requests(TENANTS, num_requests=40, seed=0)
    assert min(len(r.prompt) for r in plan if r.is_long) > 4 * max(len(r.prompt) for r in plan if not r.is_long)


def test_the_label_never_holds_the_prompt() -> None:
    """Progress lines carry no text of a request, not even of a demo's."""
    for request in plan_requests(TENANTS, num_requests=40, seed=0):
        assert request.prompt not in request.label


@pytest.mark.parametrize(("num_requests", "tenants"), [(MIN_REQUESTS - 1, TENANTS), (40, TENANTS[:2])])
def test_a_plan_that_cannot_be_mixed_is_refused(num_requests: int, tenants: list[tuple[str, str]]) -> None:
    """Too few requests or tenants is an error that names the number."""
    with pytest.raises(ValueError, match=r"at least 12|3 tenants"):
        plan_requests(tenants, num_requests=num_requests, seed=0)
