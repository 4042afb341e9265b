"""openai-python, unmodified, against the relay on a loopback port: answers, streams, errors, hang-ups."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import openai
import pytest
import pytest_asyncio
import uvicorn

from scheduler.api.limits import RelayLimits
from scheduler.core.admission import Limits
from scheduler.core.queue import QueueLimits
from tests.local_link import FAST_ENGINE, KEYS, MODEL, ControlPlane, control_plane, simulated_spec

MESSAGES = [{"role": "user", "content": "Say something."}]
ENDLESS = {"ignore_eos": True}
"""The answer has all its tokens."""


@contextlib.asynccontextmanager
async def served(plane: ControlPlane) -> AsyncIterator[str]:
    """The relay behind uvicorn as the service runs it; yields its URL. Sockets hold little: they fill at once."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
    server = uvicorn.Server(
        uvicorn.Config(plane.relay, http="httptools", log_level="warning", access_log=False, lifespan="off")
    )
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await task


def client_of(url: str, *, key: str = KEYS["alpha"], max_retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=max_retries, timeout=20.0)


class Served:
    """A control plane, its URL, and a client of tenant alpha."""

    def __init__(self, plane: ControlPlane, url: str, client: openai.AsyncOpenAI) -> None:
        self.plane = plane
        self.url = url
        self.client = client


@pytest_asyncio.fixture
async def relay() -> AsyncIterator[Served]:
    """Fast simulated engine."""
    async with control_plane() as plane, served(plane) as url, client_of(url) as client:
        yield Served(plane, url, client)


async def until(is_so: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.005)


# -- answers


async def test_models(relay: Served) -> None:
    """What can be asked for."""
    assert [MODEL] == [model.id async for model in relay.client.models.list()]
    assert MODEL == (await relay.client.models.retrieve(MODEL)).id


async def test_a_chat(relay: Served) -> None:
    """Text, finish reason, usage, and our request id."""
    answer = await relay.client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=7)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert ("length", 7) == (answer.choices[0].finish_reason, answer.usage.completion_tokens)
    assert answer._request_id is not None
    assert answer._request_id.startswith("req-")


async def test_a_completion_with_choices(relay: Served) -> None:
    """Several prompts, several choices."""
    answer = await relay.client.completions.create(model=MODEL, prompt=["one", "two"], n=2, max_tokens=3)
    assert answer.usage is not None
    assert (4, 12) == (len(answer.choices), answer.usage.completion_tokens)


async def test_a_streamed_chat(relay: Served) -> None:
    """Piece by piece, the same text as whole; usage in the last chunk."""
    whole = await relay.client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=9, seed=5)
    stream = await relay.client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=9, seed=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.choices[0].message.content == text
    assert chunks[-1].usage is not None
    assert ([], 9) == (chunks[-1].choices, chunks[-1].usage.completion_tokens)


async def test_a_streamed_completion(relay: Served) -> None:
    """The other route."""
    stream = await relay.client.completions.create(model=MODEL, prompt="one two", max_tokens=5, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "length" == chunks[-1].choices[0].finish_reason
    assert "".join(chunk.choices[0].text for chunk in chunks)


async def test_the_streaming_helper() -> None:
    """``chat.completions.stream`` accumulates what came. (It raises on an answer cut by length: this one stops.)"""
    spec = simulated_spec(engine_args={**FAST_ENGINE, "output_tokens_mean": 3.0})
    async with (
        control_plane([spec]) as plane,
        served(plane) as url,
        client_of(url) as client,
        client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream,
    ):
        final = await stream.get_final_completion()
    assert ("stop", True) == (final.choices[0].finish_reason, bool(final.choices[0].message.content))


async def test_joules_are_read_like_any_extra_field(relay: Served) -> None:
    """With the metering header: whole and streamed."""
    headers = {"x-jouleway-metering": "1"}
    whole = await relay.client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, extra_headers=headers
    )
    stream = await relay.client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, stream=True, extra_headers=headers
    )
    last = [chunk async for chunk in stream][-1]
    for answer in (whole, last):
        assert answer.usage is not None
        assert answer.model_extra is not None
        metering = answer.model_extra["jouleway"]
        assert (5, True, "D") == (answer.usage.completion_tokens, metering["provisional"], metering["grade"])
        assert metering["gpu_seconds"] > 0


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "priority"])
async def test_service_tiers(relay: Served, tier: str) -> None:
    """All of OpenAI's that are served here."""
    answer = await relay.client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2, service_tier=tier)
    assert answer.usage is not None


# -- errors


async def test_a_wrong_key(relay: Served) -> None:
    """401 is AuthenticationError."""
    async with client_of(relay.url, key="wrong-key-0123456789") as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            await stranger.models.list()
    assert ("invalid_api_key", 401) == (caught.value.code, caught.value.status_code)
    assert caught.value.request_id is not None


async def test_a_missing_model(relay: Served) -> None:
    """404 is NotFoundError."""
    with pytest.raises(openai.NotFoundError) as caught:
        await relay.client.chat.completions.create(model="gpt-x", messages=MESSAGES)
    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)


async def test_a_bad_field(relay: Served) -> None:
    """400 is BadRequestError, and names the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        await relay.client.chat.completions.create(model=MODEL, messages=MESSAGES, n=10**9)
    assert ("invalid_value", "n", "invalid_request_error") == (caught.value.code, caught.value.param, caught.value.type)


async def test_an_operator_only_field(relay: Served) -> None:
    """Also by ``extra_body``."""
    with pytest.raises(openai.BadRequestError) as caught:
        await relay.client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"priority": -1})
    assert "operator_only_parameter" == caught.value.code


async def test_a_body_too_large() -> None:
    """413 is APIStatusError, however large the body."""
    async with (
        control_plane(limits=RelayLimits(max_body_bytes=10_000)) as plane,
        served(plane) as url,
        client_of(url) as client,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await client.completions.create(model=MODEL, prompt="x" * 20_000)
    assert (413, "body_too_large") == (caught.value.status_code, caught.value.code)


async def test_a_context_that_is_too_long() -> None:
    """The engine's refusal has OpenAI's word."""
    spec = simulated_spec(engine_args={**FAST_ENGINE, "max_model_len": 32})
    async with control_plane([spec]) as plane, served(plane) as url, client_of(url) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model=MODEL, prompt="x" * 1000, max_tokens=4)
    assert "context_length_exceeded" == caught.value.code


async def test_a_full_queue_is_retried_by_the_client() -> None:
    """503 is InternalServerError; with retries the client comes back after Retry-After and is served."""
    spec = simulated_spec(engine_args={"fixed_step_s": 0.02, "max_sequences": 1}, max_running=1)
    limits = Limits(queue=QueueLimits(max_requests=1))
    async with control_plane([spec], core_limits=limits) as plane, served(plane) as url, client_of(url) as client:
        busy = [
            asyncio.create_task(client.completions.create(model=MODEL, prompt="x", max_tokens=10)) for _ in range(2)
        ]
        await until(lambda: sum(band.num_requests for band in plane.dispatcher.snapshot().queue) == 1)
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model=MODEL, prompt="x", max_tokens=1)
        assert (503, "queue_full") == (caught.value.status_code, caught.value.code)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        async with client_of(url, max_retries=3) as patient:
            assert (await patient.completions.create(model=MODEL, prompt="x", max_tokens=1)).choices
        await asyncio.gather(*busy)


async def test_an_error_within_a_stream() -> None:
    """An error chunk is APIError, with our word."""
    spec = simulated_spec(engine_args={"fixed_step_s": 0.02})
    async with control_plane([spec]) as plane, served(plane) as url, client_of(url) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=1000, stream=True,
            extra_headers={"x-jouleway-deadline-s": "0.2"}, extra_body=ENDLESS,
        )  # fmt: skip
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
    assert "deadline_exceeded" == caught.value.code


# -- hang-ups


async def test_a_client_that_leaves_a_stream_ends_its_request() -> None:
    """Closing the stream aborts the attempt; what was computed is charged; the next request is served."""
    spec = simulated_spec(engine_args={"fixed_step_s": 0.005})
    async with control_plane([spec]) as plane, served(plane) as url, client_of(url) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=5000, stream=True, extra_body=ENDLESS
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        await stream.close()
        await until(lambda: plane.dispatcher.snapshot().num_running == 0)
        found = plane.dispatcher.snapshot()
        assert ({"aborted": 1}, 1) == (found.finished, found.tenants[0].aborted)
        assert 1 <= found.tenants[0].output_tokens < 2000
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2)
        assert answer.choices


async def test_a_client_that_leaves_while_it_waits_ends_its_request() -> None:
    """A cancelled call is a hang-up before the first byte."""
    spec = simulated_spec(engine_args={"fixed_step_s": 0.02})
    async with control_plane([spec]) as plane, served(plane) as url, client_of(url) as client:
        asked = client.completions.create(model=MODEL, prompt="x", max_tokens=5000, extra_body=ENDLESS)
        call = asyncio.create_task(asked)
        await until(lambda: plane.dispatcher.snapshot().num_running == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: plane.dispatcher.snapshot().num_running == 0)
        assert {"aborted": 1} == plane.dispatcher.snapshot().finished


async def test_a_reader_that_does_not_read_is_cut_off() -> None:
    """A real socket fills; after ``slow_reader_s`` the connection ends and the engine goes on to others."""
    spec = simulated_spec(engine_args={"fixed_step_s": 0.002, "kv_tokens": 2_000_000, "max_model_len": 1_000_000})
    limits = RelayLimits(slow_reader_s=0.3, max_output_tokens=1_000_000)
    async with control_plane([spec], limits=limits) as plane, served(plane) as url:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 10)
        plain.connect((host, int(port)))
        reader, writer = await asyncio.open_connection(sock=plain, limit=1024)
        body = b'{"model":"%b","prompt":"x","max_tokens":900000,"stream":true,"n":8,"ignore_eos":true}' % MODEL.encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (KEYS["alpha"].encode(), len(body), body)
        )
        await until(lambda: plane.dispatcher.snapshot().num_running == 1)
        await until(lambda: plane.dispatcher.snapshot().num_running == 0, timeout_s=30.0)
        assert {"aborted": 1} == plane.dispatcher.snapshot().finished
        rest = await asyncio.wait_for(reader.read(-1), 5)
        assert rest.startswith(b"HTTP/1.1 200 OK")
        assert not rest.endswith(b"0\r\n\r\n")
        writer.close()
