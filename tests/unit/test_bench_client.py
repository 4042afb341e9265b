"""One streaming exchange: what is stamped, what is counted, and how each failure is named."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from scheduler.bench.client import (
    MAX_EVENT_BYTES,
    BadStream,
    Client,
    EventReader,
    Exchange,
    Target,
    TargetError,
    find_model,
    open_session,
    probe,
)
from scheduler.bench.prompts import Prompts, TokenFit
from scheduler.bench.workload import Planned

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(words: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": words}}]})


def usage(prompt: int | None, completion: int | None, cached: int | None = None, **more: object) -> bytes:
    details = None if cached is None else {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return event({"choices": [], "usage": counts, **more})


def streaming(*parts: bytes) -> Handler:
    """A handler that streams these bytes, each in a write of its own."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return handle


@asynccontextmanager
async def target_with(
    handler: Handler, *, models: object = None, timeout_s: float = 20.0, **options: Any
) -> AsyncIterator[tuple[Client, aiohttp.ClientSession]]:
    """A client of a server on loopback that answers with ``handler``."""

    async def list_models(request: web.Request) -> web.Response:
        return models if isinstance(models, web.Response) else web.json_response(models)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    app.router.add_post("/v1/completions", handler)
    app.router.add_get("/v1/models", list_models)
    async with TestServer(app) as server:
        target = Target(base_url=str(server.make_url("")).rstrip("/"), model="m", timeout_s=timeout_s, **options)
        async with open_session(target) as session:
            yield Client(target, session), session


async def exchanged(handler: Handler, **options: Any) -> Exchange:
    """What the client saw of one request that was due at second 0."""
    planned = Planned(index=0, due_s=0.0, input_tokens=4, output_tokens=3)
    async with target_with(handler, **options) as (client, _):
        origin_s = client.clock()
        return await client.exchange(Exchange(planned=planned, due_s=0.0), client.payload("hi", 3), origin_s=origin_s)


# -- events


STREAM = b": keep-alive\n\ndata: one\n\nevent: x\ndata: two\ndata: lines\n\nid: 3\n\ndata:tight\n\n"
EVENTS = [b"one", b"two\nlines", b"tight"]


@given(cuts=st.lists(st.integers(0, len(STREAM) * 2), max_size=20), crlf=st.booleans())
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int], crlf: bool) -> None:
    """Packets end where they like, lines end in LF or CRLF; comments and other fields are skipped."""
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    reader, found = EventReader(), []
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in pairwise(edges):
        found += reader.feed(stream[start:end])
    assert found == EVENTS


def test_an_endless_event_is_refused() -> None:
    """A server that never ends an event cannot fill the client's memory."""
    reader = EventReader()
    reader.feed(b"x" * MAX_EVENT_BYTES)
    with pytest.raises(BadStream, match="event_too_large"):
        reader.feed(b"x")


# -- a good exchange


async def test_a_stream_is_stamped_and_counted_by_the_servers_usage() -> None:
    """Text pieces are stamped; role and usage chunks are not; tokens are the server's."""
    role = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    seen = await exchanged(streaming(role, text("a"), text("b c"), usage(12, 3, cached=8), DONE))
    assert (seen.reason, len(seen.token_s)) == (None, 2)
    assert (seen.input_tokens, seen.cached_tokens, seen.output_tokens, seen.counted_by_server) == (12, 8, 3, True)
    assert seen.sent_s is not None
    assert 0 < seen.sent_s <= seen.token_s[0] <= seen.token_s[1] <= seen.ended_s
    assert seen.ttft_s == seen.token_s[0]
    assert seen.tpot_s == (seen.token_s[1] - seen.token_s[0]) / 2
    assert seen.e2e_s == seen.ended_s


async def test_usage_on_every_chunk_counts_the_last_one() -> None:
    """continuous_usage_stats gives running totals, which are not added up."""

    def running(words: str, done: int) -> bytes:
        return event(
            {"choices": [{"delta": {"content": words}}], "usage": {"prompt_tokens": 5, "completion_tokens": done}}
        )

    seen = await exchanged(streaming(running("a", 1), running("b", 2), usage(5, 2), DONE))
    assert (seen.input_tokens, seen.output_tokens, len(seen.token_s)) == (5, 2, 2)


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a"},
        {"delta": {"reasoning_content": "a"}},
        {"delta": {"reasoning": "a"}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}},
    ],
)
async def test_every_kind_of_output_counts_as_text(choice: dict[str, object]) -> None:
    """Completions, reasoning and tool calls are output as much as content is."""
    seen = await exchanged(streaming(event({"choices": [choice]}), DONE))
    assert (seen.reason, len(seen.token_s)) == (None, 1)


async def test_without_usage_the_pieces_are_counted_and_that_is_said() -> None:
    """Some servers send no usage; the count is then marked as ours."""
    seen = await exchanged(streaming(text("a"), text("b"), DONE))
    assert (seen.output_tokens, seen.counted_by_server, seen.input_tokens) == (2, False, 0)


async def test_joules_in_the_last_chunk_are_kept() -> None:
    """A Jouleway server states what the request used so far."""
    jouleway = {"energy_joules": 1.5, "gpu_seconds": 0.25, "provisional": True}
    seen = await exchanged(streaming(text("a"), usage(1, 1, jouleway=jouleway), DONE))
    assert (seen.energy_joules, seen.gpu_seconds) == (1.5, 0.25)


async def test_the_request_carries_key_metering_header_and_extra_headers() -> None:
    """What the server needs to know is in the headers."""
    got: dict[str, str] = {}

    async def handle(request: web.Request) -> web.StreamResponse:
        got.update(request.headers)
        return await streaming(text("a"), DONE)(request)

    await exchanged(handle, api_key="sk-1", extra_headers=(("X-Tier", "batch"),))
    assert got["Authorization"] == "Bearer sk-1"
    assert got["x-jouleway-metering"] == "1"
    assert got["X-Tier"] == "batch"


def test_latencies_count_from_the_scheduled_send() -> None:
    """A request that was due at 1 s and sent at 3 s waited two seconds, whoever's fault it was."""
    planned = Planned(index=0, due_s=1.0, input_tokens=1, output_tokens=3)
    seen = Exchange(planned=planned, due_s=1.0, sent_s=3.0, ended_s=6.0, output_tokens=3)
    seen.token_s.extend([4.0, 5.0])
    assert (seen.ttft_s, seen.tpot_s, seen.e2e_s) == (3.0, 0.5, 5.0)


def test_there_is_no_tpot_below_two_tokens() -> None:
    """One token has no time between tokens, and no text has no first token."""
    planned = Planned(index=0, due_s=0.0, input_tokens=1, output_tokens=1)
    seen = Exchange(planned=planned, due_s=0.0, output_tokens=1)
    assert seen.ttft_s is None
    seen.token_s.append(1.0)
    assert seen.tpot_s is None


# -- failures have names


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((text("a"),), "truncated"),
        ((), "truncated"),
        ((DONE,), "no_text"),
        ((usage(1, 0), DONE), "no_text"),
        ((text("a"), event({"error": {"message": "worker died"}}), DONE), "error_event"),
        ((b"data: {not json\n\n", DONE), "bad_event"),
        ((b"data: \xff\xfe\n\n", DONE), "bad_event"),
        ((b'data: {"choices": 3}\n\n', DONE), "bad_event"),
    ],
)
async def test_a_broken_stream_has_a_named_reason(parts: tuple[bytes, ...], reason: str) -> None:
    """Nothing that went wrong counts as completed."""
    seen = await exchanged(streaming(*parts))
    assert seen.reason == reason
    assert seen.ended_s > 0


async def test_an_error_status_keeps_the_servers_words() -> None:
    """The reason is the status, the detail what the server said, bounded."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "queue is full " * 200}}, status=503)

    seen = await exchanged(handle)
    assert seen.reason == "http_503"
    assert "queue is full" in seen.detail
    assert len(seen.detail) <= 300


async def test_a_server_that_hangs_up_is_a_lost_connection() -> None:
    """The transport closed in the middle of a body."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Content-Length": "100"})
        await response.prepare(request)
        await response.write(text("a")[:20])
        assert request.transport is not None
        request.transport.abort()
        return response

    seen = await exchanged(handle)
    assert seen.reason == "connection_lost"


async def test_a_server_that_never_answers_is_a_timeout() -> None:
    """Each request has a limit of its own."""

    async def handle(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    seen = await exchanged(handle, timeout_s=0.05)
    assert (seen.reason, seen.detail) == ("timeout", "no end within 0.05 s")


async def test_nobody_there_is_a_refused_connection() -> None:
    """A closed port is named as such."""
    target = Target(base_url="http://127.0.0.1:1", model="m")
    async with open_session(target) as session:
        client = Client(target, session)
        planned = Planned(index=0, due_s=0.0, input_tokens=4, output_tokens=3)
        seen = await client.exchange(Exchange(planned=planned, due_s=0.0), b"{}", origin_s=0.0)
        assert seen.reason == "connection_refused"
        with pytest.raises(TargetError, match=r"127\.0\.0\.1:1 cannot be reached"):
            await find_model(target, session)


# -- before a run


async def test_the_first_model_is_taken() -> None:
    """Without --model the server's first one is measured."""
    async with target_with(streaming(), models={"data": [{"id": "one"}, {"id": "two"}]}) as (client, session):
        assert await find_model(client.target, session) == "one"


@pytest.mark.parametrize("answer", [{"data": []}, {}, [], {"data": [{}]}, "text"])
async def test_a_server_without_models_asks_for_one(answer: object) -> None:
    """The remedy is in the message."""
    async with target_with(streaming(), models=answer) as (client, session):
        with pytest.raises(TargetError, match="set --model"):
            await find_model(client.target, session)


async def test_a_wrong_key_is_explained() -> None:
    """401 names the option and the variable."""
    refusal = web.json_response({"error": {"message": "no such key"}}, status=401)
    async with target_with(streaming(), models=refusal) as (client, session):
        with pytest.raises(TargetError, match=r"JOULEWAY_API_KEY.*no such key"):
            await find_model(client.target, session)


async def test_the_probe_learns_how_the_server_counts_words() -> None:
    """Two prompts of different length give template and tokens per word."""

    async def handle(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        num_words = len(asked["messages"][0]["content"].split())
        return await streaming(text("a"), usage(30 + 2 * num_words, 2), DONE)(request)

    async with target_with(handle) as (client, _):
        fit = await probe(client, Prompts(seed=0))
    assert fit == TokenFit(template_tokens=30, tokens_per_word=2.0, measured=True)


async def test_a_probe_without_usage_has_no_fit() -> None:
    """A server that counts nothing is asked in words."""
    async with target_with(streaming(text("a"), DONE)) as (client, _):
        assert await probe(client, Prompts(seed=0)) == TokenFit()


@pytest.mark.parametrize(
    ("status", "exact", "remedy"),
    [
        (400, True, "--no-exact-output"),
        (401, True, "JOULEWAY_API_KEY"),
        (404, True, "--model"),
        (500, True, "http_500"),
    ],
)
async def test_a_refused_probe_names_the_remedy(status: int, exact: bool, remedy: str) -> None:
    """The first request decides whether a run makes sense at all."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=status)

    async with target_with(handle, exact_output=exact) as (client, _):
        with pytest.raises(TargetError, match=remedy):
            await probe(client, Prompts(seed=0))
