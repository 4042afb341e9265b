"""The demo's client notes what each request met: whole, streamed, hung up, refused, broken; and keeps no text."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from scheduler.commands.demo_drive import Met, drive, send
from scheduler.commands.demo_requests import DemoRequest, plan_requests

SECRET = "CANARY-TEXT"
EVENT = b'data: {"choices":[{"text":"' + SECRET.encode() + b'"}]}\n\n'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def request_of(**changes: object) -> DemoRequest:
    values: dict[str, object] = {
        "index": 0, "tenant": "atlas", "api_key": "key", "is_chat": False, "is_stream": True, "is_long": False,
        "tier": "default", "prompt": SECRET, "max_tokens": 8, "abort_after_chunks": None, "starts_after_s": 0.0,
    }  # fmt: skip
    return DemoRequest(**(values | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def server_of(raw: bytes, bodies: list[bytes] | None = None) -> AsyncIterator[str]:
    """Answers every request with ``raw``, then closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("Content-Length"))
        body = await reader.readexactly(length)
        if bodies is not None:
            bodies.append(body)
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def met_with(raw: bytes, **changes: object) -> Met:
    async with server_of(raw) as url:
        return await send(url, request_of(**changes), "m", clock=time.monotonic)


async def test_a_stream_to_its_end() -> None:
    """Events are counted, the first one is timed, [DONE] ends it."""
    met = await met_with(STREAM_HEAD + EVENT * 3 + b"data: [DONE]\n\n")
    assert (200, 3, False, "") == (met.status, met.num_events, met.was_aborted, met.error)
    assert met.ttft_s is not None
    assert 0 <= met.ttft_s <= met.took_s


async def test_hanging_up_on_purpose() -> None:
    """The plan's abort is no error."""
    met = await met_with(STREAM_HEAD + EVENT * 9 + b"data: [DONE]\n\n", abort_after_chunks=2)
    assert (2, True, "") == (met.num_events, met.was_aborted, met.error)


async def test_a_whole_answer() -> None:
    """Without a stream there is one body and no first token to time."""
    met = await met_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", is_stream=False)
    assert (200, 1, None, "") == (met.status, met.num_events, met.ttft_s, met.error)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (STREAM_HEAD + EVENT, "the stream ended without [DONE]"),
        (STREAM_HEAD + b'data: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n', "an error event in the stream"),
        (b"", "BadAnswer: the connection closed before an answer"),
        (b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n", "status 429"),
        (b'HTTP/1.1 503 No\r\n\r\n{"error":{"code":"queue_full","message":"CANARY-TEXT"}}', "status 503, queue_full"),
        (b'HTTP/1.1 400 No\r\n\r\n{"error":"CANARY-TEXT"}', "status 400"),
        (b"HTTP/1.1 400 No\r\n\r\n[]", "status 400"),
    ],
    ids=["cut", "error event", "closed", "no body", "code", "odd error", "no object"],
)
async def test_what_goes_wrong_has_a_reason(raw: bytes, expected: str) -> None:
    """A reason is a name or a number, never a message that may repeat the prompt."""
    met = await met_with(raw)
    assert expected == met.error
    assert SECRET not in met.error


async def test_nobody_listens() -> None:
    """A refused connection is a reason like any other."""
    met = await send("http://127.0.0.1:1", request_of(), "m", clock=time.monotonic)
    assert met.status == 0
    assert met.error.startswith("ConnectionRefusedError")


async def test_no_text_is_kept() -> None:
    """Neither prompt nor answer is in what the client notes, apart from the plan itself."""
    met = await met_with(STREAM_HEAD + EVENT + b"data: [DONE]\n\n")
    noted = {name: getattr(met, name) for name in met.__slots__ if name != "request"}
    assert SECRET not in repr(noted)


async def test_the_whole_plan_in_its_order() -> None:
    """Every request is sent once with its own key's body; results come in the plan's order, calls as they end."""
    plan = plan_requests([("a", "ka"), ("b", "kb"), ("c", "kc")], num_requests=12, seed=3)
    bodies: list[bytes] = []
    ended: list[int] = []
    raw = STREAM_HEAD + EVENT * 12 + b"data: [DONE]\n\n"
    async with server_of(raw, bodies) as url:
        met = await drive(
            url, plan, "m", clock=time.monotonic, on_met=lambda one: ended.append(one.request.index), speed=1000.0
        )
    assert list(range(12)) == [one.request.index for one in met]
    assert sorted(ended) == list(range(12))
    sent = sorted(json.dumps(json.loads(body), sort_keys=True) for body in bodies)
    assert sent == sorted(json.dumps(each.payload("m"), sort_keys=True) for each in plan)
    assert sum(one.was_aborted for one in met) == 2
