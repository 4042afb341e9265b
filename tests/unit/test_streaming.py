"""Streamed answers: whole events only, [DONE] after the End, comments while waiting, slow readers ended."""

import asyncio
import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.settlement import Charge
from scheduler.api.errors import ApiError
from scheduler.api.exchange import Exchange, Message
from scheduler.api.streaming import KEEP_ALIVE, MAX_EVENT_BYTES, EventHold, EventStream, PatientSend, SlowReader
from scheduler.streams import End, Stream
from tests.fake_dispatcher import JSON, completed, head
from workers.types import Outcome

DONE = b"data: [DONE]\n\n"
LAST = (b"data: [DONE]", b"event: message_stop")


class Client:
    """Reads an answer; ``may_read`` cleared stands for a full socket."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def send(self, message: Message) -> None:
        await self.may_read.wait()
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False


async def nobody() -> Message:
    raise AssertionError("nobody receives here")


def answer(
    client: Client, *, keep_alive_s: float = 5.0, last_event: Callable[[Charge], bytes] | None = None
) -> tuple[Stream, EventStream]:
    """A stream to fill, and the answer that passes it on."""
    scope = {"type": "http", "method": "POST", "path": "/x", "headers": []}
    stream = Stream("req-1", on_close=lambda request_id, reason: None)
    events = EventStream(
        stream,
        Exchange(scope, nobody, client.send, request_id="req-1"),
        keep_alive_s=keep_alive_s,
        clock=lambda: 42.0,
        failure=lambda end: ApiError(503, "Lost.", code=end.cause or "unknown"),
        last_event=last_event,
    )
    return stream, events


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


# -- what may leave


STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


@given(st.integers(0, 6), st.sampled_from([b"", DONE, STOP]), st.randoms(use_true_random=False))
def test_however_a_stream_is_cut_whole_events_leave_and_the_last_one_stays(
    num_events: int, last: bytes, random_cut: random.Random
) -> None:
    """At every moment what left ends between two events, nothing is lost, and the last event is what is held."""
    names = [b"", b"event: x\n"]
    events = [b"%bdata: %d\n\n" % (random_cut.choice(names), random_cut.randrange(10**6)) for _ in range(num_events)]
    whole = b"".join(events) + last
    hold, left, start = EventHold(LAST), b"", 0
    while start < len(whole):
        size = random_cut.randint(1, 30)
        left += hold.take(whole[start : start + size])
        assert not left or left.endswith(b"\n\n")
        start += size
    assert (b"".join(events), last) == (left, hold.held)


def test_a_long_last_event_is_held_as_well() -> None:
    """The last event of a response repeats its whole text: no piece of it leaves before the charge."""
    hold = EventHold((b"event: response.completed",))
    data = b"event: response.completed\ndata: " + b"x" * MAX_EVENT_BYTES
    assert b"data: 1\n\n" == hold.take(b"data: 1\n\n" + data)
    assert b"" == hold.take(b"x" * 100) + hold.take(b"\n\n")
    assert data + b"x" * 100 + b"\n\n" == hold.held


def test_an_event_without_an_end_is_bounded() -> None:
    """A broken engine cannot make the relay keep its output for ever."""
    hold = EventHold(LAST)
    data = b"x" * (MAX_EVENT_BYTES + 1)
    assert data == hold.take(data)
    assert b"" == hold.held


def test_done_in_the_middle_of_what_came_is_data() -> None:
    """Only the last event can be the end."""
    hold = EventHold(LAST)
    data = DONE + b"data: 1\n\n"
    assert data == hold.take(DONE) + hold.take(b"data: 1\n\n")


# -- a whole answer


async def test_status_headers_events_and_the_end_after_the_charge() -> None:
    """[DONE] waits for the End, everything before it does not."""
    client = Client()
    stream, events = answer(client)
    running = asyncio.create_task(events.run())
    stream.put_head(head())
    stream.put_body(b"data: 1\n\n")
    await settle()
    start = client.messages[0]
    headers = dict(start["headers"])
    assert (200, b"text/event-stream; charset=utf-8") == (start["status"], headers[b"content-type"])
    assert (b"no-cache", b"req-1") == (headers[b"cache-control"], headers[b"x-request-id"])
    assert b"data: 1\n\n" == client.body
    stream.put_body(b"data: 2\n\n" + DONE)
    await settle()
    assert b"data: 1\n\ndata: 2\n\n" == client.body
    assert not client.is_complete
    stream.put_end(completed())
    await running
    assert b"data: 1\n\ndata: 2\n\n" + DONE == client.body
    assert client.is_complete
    assert (42.0, completed()) == (events.first_byte_s, events.end)


async def test_what_came_together_leaves_in_one_write() -> None:
    """A slow turn of the event loop costs one write, not one a token."""
    client = Client()
    stream, events = answer(client)
    stream.put_head(head())
    for number in range(100):
        stream.put_body(b"data: %d\n\n" % number)
    stream.put_end(completed())
    await events.run()
    assert 3 == len(client.messages)


async def test_an_event_of_ours_stands_before_done() -> None:
    """Clients stop reading at [DONE]."""
    client = Client()
    stream, events = answer(client, last_event=lambda charge: b"data: %d mJ\n\n" % charge.provisional_mj)
    stream.put_head(head())
    stream.put_body(b"data: 1\n\n" + DONE)
    stream.put_end(completed())
    await events.run()
    assert b"data: 1\n\ndata: 1500 mJ\n\n" + DONE == client.body


# -- while it waits


async def test_a_long_wait_begins_the_answer_with_empty_events() -> None:
    """Proxies in between see life; the status is 200 from then on."""
    client = Client()
    stream, events = answer(client, keep_alive_s=0.005)
    running = asyncio.create_task(events.run())
    while client.body.count(KEEP_ALIVE) < 2:
        await asyncio.sleep(0.001)
    stream.put_head(head())
    stream.put_body(b"data: 1\n\n" + DONE)
    stream.put_end(completed())
    await running
    assert 200 == client.messages[0]["status"]
    assert client.body.endswith(KEEP_ALIVE + b"data: 1\n\n" + DONE)
    assert 1 == sum(message["type"] == "http.response.start" for message in client.messages)


async def test_a_refusal_after_empty_events_is_an_event() -> None:
    """There is no status left to set; the error reads as OpenAI's."""
    client = Client()
    stream, events = answer(client, keep_alive_s=0.002)
    running = asyncio.create_task(events.run())
    while not client.body:
        await asyncio.sleep(0.001)
    stream.put_end(End(outcome=Outcome.FAILED, cause="worker_lost"))
    await running
    error = json.loads(client.body.split(b"data: ")[1])["error"]
    assert ("worker_lost", "server_error") == (error["code"], error["type"])
    assert client.is_complete
    assert DONE not in client.body


async def test_a_failure_before_the_first_byte_is_an_error_with_a_status() -> None:
    """Nothing was sent yet: the application answers."""
    client = Client()
    stream, events = answer(client)
    stream.put_end(End(outcome=Outcome.FAILED, cause="worker_lost"))
    with pytest.raises(ApiError) as caught:
        await events.run()
    assert (503, "worker_lost", []) == (caught.value.status, caught.value.code, client.messages)
    assert events.end is not None


async def test_a_failure_after_the_first_byte_is_an_error_chunk_without_done() -> None:
    """The client can tell a broken answer from a finished one; half an event is dropped."""
    client = Client()
    stream, events = answer(client)
    stream.put_head(head())
    stream.put_body(b"data: 1\n\ndata: hal")
    stream.put_end(End(outcome=Outcome.FAILED, cause="worker_lost"))
    await events.run()
    first, error = client.body.split(b"\n\n")[:2]
    assert b"data: 1" == first
    assert "worker_lost" == json.loads(error.removeprefix(b"data: "))["error"]["code"]
    assert client.is_complete
    assert DONE not in client.body


async def test_done_of_an_answer_that_failed_after_all_does_not_leave() -> None:
    """What a client saw end is charged; what is not charged in order does not end."""
    client = Client()
    stream, events = answer(client)
    stream.put_head(head())
    stream.put_body(b"data: 1\n\n" + DONE)
    stream.put_end(End(outcome=Outcome.ABORTED, cause="deadline_exceeded"))
    await events.run()
    assert DONE not in client.body
    assert b"deadline_exceeded" in client.body


# -- the engine says no


ENGINE_ERROR = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'


async def test_an_engines_refusal_keeps_its_status_and_gets_our_shape() -> None:
    """vLLM's code is a number; ours is a word or null."""
    client = Client()
    stream, events = answer(client)
    stream.put_head(head(400, JSON))
    stream.put_body(ENGINE_ERROR[:20])
    stream.put_body(ENGINE_ERROR[20:])
    stream.put_end(End(outcome=Outcome.REFUSED))
    await events.run()
    assert 400 == client.messages[0]["status"]
    expected = {"message": "too long", "type": "invalid_request_error", "param": None, "code": None}
    assert {"error": expected} == json.loads(client.body)
    assert events.first_byte_s is None


async def test_an_engines_refusal_after_comments_is_an_event() -> None:
    """The same body, inside the stream."""
    client = Client()
    stream, events = answer(client, keep_alive_s=0.002)
    running = asyncio.create_task(events.run())
    while not client.body:
        await asyncio.sleep(0.001)
    stream.put_head(head(400, JSON))
    stream.put_body(ENGINE_ERROR)
    stream.put_end(End(outcome=Outcome.REFUSED))
    await running
    assert "too long" == json.loads(client.body.split(b"data: ")[1])["error"]["message"]


# -- who is gone


@pytest.mark.parametrize("is_begun", [False, True])
async def test_nothing_is_written_to_a_client_that_left(is_begun: bool) -> None:
    """The End is waited for all the same: it says what was charged."""
    client = Client()
    stream, events = answer(client)
    running = asyncio.create_task(events.run())
    if is_begun:
        stream.put_head(head())
        stream.put_body(b"data: 1\n\n")
    await settle()
    num_before = len(client.messages)
    stream.close("client_gone")
    await settle()
    stream.put_end(End(outcome=Outcome.ABORTED, cause="client_gone"))
    await running
    assert num_before == len(client.messages)
    assert events.end is not None


# -- slow readers


async def test_a_write_that_blocks_too_long_ends_the_answer() -> None:
    """One client that does not read holds nothing for ever."""
    client = Client()
    client.may_read.clear()
    with pytest.raises(SlowReader):
        async with PatientSend(client.send, longest_s=0.02) as send:
            await send({"type": "http.response.body"})


async def test_a_slow_reader_that_reads_is_borne() -> None:
    """Each write has the time for itself: ten slow ones together may take longer than the bound."""
    client = Client()

    async def slow(message: Message) -> None:
        await asyncio.sleep(0.004)
        client.messages.append(message)

    async with PatientSend(slow, longest_s=0.02) as send:
        for _ in range(10):
            await send({"type": "http.response.body"})
    assert 10 == len(client.messages)


async def test_waiting_for_the_engine_is_not_slow_reading() -> None:
    """The bound is on writes alone."""
    client = Client()
    async with PatientSend(client.send, longest_s=0.004) as send:
        await send({"type": "http.response.body"})
        await asyncio.sleep(0.015)
        await send({"type": "http.response.body"})
    assert 2 == len(client.messages)


async def test_other_errors_pass_the_bound_unchanged() -> None:
    """A TimeoutError of somebody else is not a slow reader."""
    with pytest.raises(TimeoutError):
        async with PatientSend(Client().send, longest_s=5.0):
            raise TimeoutError
