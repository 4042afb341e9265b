"""openai-python and anthropic, unmodified, on the routes beside chats: responses, embeddings, messages (simulated)."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from tests.cluster.test_openai_client import ENDLESS, Served, client_of, served, until
from tests.local_link import KEYS, MODEL, control_plane, simulated_spec

MESSAGES: list[Any] = [{"role": "user", "content": "Say something."}]
METERED = {"x-jouleway-metering": "1"}
LATE = {"x-jouleway-deadline-s": "0.2"}


def claude_of(url: str, *, key: str = KEYS["alpha"]) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url.removesuffix("/v1"), api_key=key, max_retries=0, timeout=20.0)


@contextlib.asynccontextmanager
async def asked(**engine_args: Any) -> AsyncIterator[tuple[Served, anthropic.AsyncAnthropic]]:
    spec = simulated_spec(**({"engine_args": engine_args} if engine_args else {}))
    async with (
        control_plane([spec]) as plane,
        served(plane) as url,
        client_of(url) as client,
        claude_of(url) as claude,
    ):
        yield Served(plane, url, client), claude


@pytest_asyncio.fixture
async def both() -> AsyncIterator[tuple[Served, anthropic.AsyncAnthropic]]:
    """A fast engine, and a client of each kind."""
    async with asked() as found:
        yield found


Both = tuple[Served, anthropic.AsyncAnthropic]


# -- responses


async def test_a_response_whole_and_streamed(both: Both) -> None:
    """The same text; the joules are an event that the helper passes over; the last one comes after the charge."""
    relay, _ = both
    extra = {"seed": 5, **ENDLESS}
    fields: dict[str, Any] = {"model": MODEL, "input": "Say.", "max_output_tokens": 6, "extra_body": extra}
    whole = await relay.client.responses.create(**fields)
    async with relay.client.responses.stream(**fields, extra_headers=METERED) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert whole.output_text == final.output_text
    assert ("incomplete", 6) == (final.status, final.usage.output_tokens if final.usage else None)
    assert ["jouleway", "response.completed"] == kinds[-2:]
    assert {"completed": 2} == relay.plane.dispatcher.snapshot().finished


async def test_an_error_within_a_response_is_raised() -> None:
    """The same word as anywhere."""
    async with asked(fixed_step_s=0.02) as (relay, _):
        stream = await relay.client.responses.create(
            model=MODEL, input="x", max_output_tokens=1000, stream=True, extra_headers=LATE, extra_body=ENDLESS
        )
        with pytest.raises(openai.APIError) as caught:
            async for _event in stream:
                pass
    assert "deadline_exceeded" == caught.value.code


async def test_what_a_response_would_keep_is_refused(both: Both) -> None:
    """By name."""
    with pytest.raises(openai.BadRequestError) as caught:
        await both[0].client.responses.create(model=MODEL, input="x", store=True)
    assert ("store", "unsupported_parameter") == (caught.value.param, caught.value.code)


# -- embeddings


async def test_embeddings(both: Both) -> None:
    """Equal texts are equal vectors; nothing was generated; the joules are there."""
    relay, _ = both
    answer = await relay.client.embeddings.create(model=MODEL, input=["one", "two", "one"], extra_headers=METERED)
    one, two, again = [each.embedding for each in answer.data]
    assert (True, False) == (one == again, one == two)
    assert answer.model_extra is not None
    assert answer.model_extra["jouleway"]["gpu_seconds"] > 0
    tenant = relay.plane.dispatcher.snapshot().tenants[0]
    assert (answer.usage.prompt_tokens, 0) == (tenant.input_tokens, tenant.output_tokens)


async def test_a_batch_of_embeddings_may_be_large(both: Both) -> None:
    """As many as OpenAI takes."""
    answer = await both[0].client.embeddings.create(model=MODEL, input=["x"] * 2048, dimensions=2)
    assert (2048, 2) == (len(answer.data), len(answer.data[0].embedding))


# -- messages


async def test_a_message_whole_and_streamed(both: Both) -> None:
    """The same shape and the charge's usage; the id is where the client looks; its helper passes over the joules."""
    relay, claude = both
    fields: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "messages": MESSAGES, "extra_body": {"top_k": 1}}
    whole = await claude.messages.create(**fields, extra_headers=METERED)
    async with claude.messages.stream(**fields, extra_headers=METERED) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert ["jouleway", "message_stop"] == kinds[-2:]
    assert 1 == len(final.content) == len(whole.content)
    assert (whole._request_id or "").startswith("req-")
    tenant = relay.plane.dispatcher.snapshot().tenants[0]
    counted = [answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) for answer in (whole, final)]
    assert (sum(counted), whole.usage.output_tokens + final.usage.output_tokens) == (
        tenant.input_tokens, tenant.output_tokens,
    )  # fmt: skip


async def test_an_error_within_a_message_is_raised() -> None:
    """Anthropic's client raises on the event's name."""
    async with asked(fixed_step_s=0.02, output_tokens_mean=1e9) as (_, claude):
        stream = await claude.messages.create(
            model=MODEL, max_tokens=1000, messages=MESSAGES, stream=True, extra_headers=LATE
        )
        with pytest.raises(anthropic.APIStatusError) as caught:
            async for _event in stream:
                pass
    body: Any = caught.value.body
    assert "deadline_exceeded" == body["error"]["code"]


async def test_anthropic_s_client_gets_its_own_errors(both: Both) -> None:
    """By class, with our words; either header carries the key."""
    relay, claude = both
    with pytest.raises(anthropic.BadRequestError) as refused:
        await claude.messages.create(model=MODEL, max_tokens=5, messages=MESSAGES, extra_body={"priority": 1})
    async with claude_of(relay.url, key="wrong") as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.messages.create(model=MODEL, max_tokens=5, messages=MESSAGES)
    body: Any = refused.value.body
    assert ("error", "invalid_request_error", "operator_only_parameter") == (
        body["type"], body["error"]["type"], body["error"]["code"],
    )  # fmt: skip
    async with anthropic.AsyncAnthropic(
        base_url=relay.url.removesuffix("/v1"), auth_token=KEYS["beta"], max_retries=0, timeout=20.0
    ) as bearer:
        assert (await bearer.messages.create(model=MODEL, max_tokens=5, messages=MESSAGES)).content


async def test_a_client_that_leaves_a_message_ends_its_request() -> None:
    """As on any route."""
    async with asked(fixed_step_s=0.005, output_tokens_mean=1e9) as (relay, claude):
        stream = await claude.messages.create(model=MODEL, max_tokens=5000, messages=MESSAGES, stream=True)
        async for event in stream:
            if event.type == "content_block_delta":
                break
        await stream.close()
        await until(lambda: relay.plane.dispatcher.snapshot().num_running == 0)
        assert {"aborted": 1} == relay.plane.dispatcher.snapshot().finished


# -- on every route


async def test_a_key_that_ran_before_is_replayed_in_the_words_of_its_route(both: Both) -> None:
    """Usage and note, never the text; each client reads it."""
    relay, claude = both
    keyed = {"idempotency-key": "k-1", **METERED}
    response: Any = {"model": MODEL, "input": "x", "max_output_tokens": 3, "extra_headers": keyed}
    message: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 3, "extra_headers": {"idempotency-key": "k-2"}}
    first, second = [await relay.client.responses.create(**response) for _ in range(2)]
    assert (first.usage, "") == (second.usage, second.output_text)
    said, again = [await claude.messages.create(**message) for _ in range(2)]
    assert (said.usage.output_tokens, []) == (again.usage.output_tokens, again.content)
