"""One HTTP exchange: bodies within bounds, framing that cannot be misread, our id on every answer."""

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest

from scheduler.api.errors import ApiError
from scheduler.api.exchange import ClientGone, Exchange, Message, new_request_id


class Wire:
    """What an exchange receives and sends. After the given messages nothing more arrives."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.messages = list(messages)
        self.num_read = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self.messages:
            await asyncio.Event().wait()
        self.num_read += 1
        return self.messages.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def exchange(wire: Wire, *headers: tuple[str, str], method: str = "POST") -> Exchange:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return Exchange(
        {"type": "http", "method": method, "path": "/x", "headers": raw}, wire.receive, wire.send, request_id="req-1"
    )


async def read(wire: Wire, *headers: tuple[str, str], max_bytes: int = 10, timeout_s: float = 5.0) -> bytes:
    return await exchange(wire, *headers).read_body(max_bytes=max_bytes, timeout_s=timeout_s)


async def refused(wire: Wire, *headers: tuple[str, str], **limits: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await read(wire, *headers, **limits)
    return caught.value


def test_query_and_source_are_those_of_the_scope() -> None:
    """As far as a server knows them; an address is short."""
    wire, fields = Wire(), {"method": "GET", "path": "/x", "headers": []}
    plain = Exchange(dict(fields), wire.receive, wire.send, request_id="r")
    assert (b"", "unknown") == (plain.query, plain.source)
    full = {**fields, "query_string": b"a=1", "client": ("f" * 100, 7)}
    asked = Exchange(full, wire.receive, wire.send, request_id="r")
    assert (b"a=1", "f" * 64) == (asked.query, asked.source)


def test_request_ids_are_long_random_and_plain() -> None:
    """26 base32 characters are 130 bits, 90 of them random; engines and logs take them without quoting."""
    ids = {new_request_id(1_764_000_000.0) for _ in range(1000)}
    assert 1000 == len({each[12:] for each in ids})
    assert all(re.fullmatch(r"req-[a-z2-7]{26}", each) for each in ids)


def test_request_ids_of_one_time_lie_side_by_side() -> None:
    """An index over them is written where it was written last, until the year 4147."""
    now, soon, later = (new_request_id(1_764_000_000.0 + after_s) for after_s in (0, 0.01, 1.0))
    assert now[:12] == soon[:12] != later[:12]
    assert "req-aaaaaaaa" == new_request_id(0.0)[:12] == new_request_id(2.0**36)[:12]


def test_headers_keep_every_value_in_order() -> None:
    """A header given twice is seen twice: which one counts is not left to chance."""
    given = exchange(Wire(), ("host", "a"), ("accept", "x"), ("host", "b"))
    assert {b"host": [b"a", b"b"], b"accept": [b"x"]} == given.headers


def test_the_query_is_kept_as_it_was_written() -> None:
    """Whoever reads it decides what it may hold; a server may leave it out."""
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    wire = Wire()
    for query in (b"", b"a=%C3%A9&b[]=1"):
        told = Exchange({**scope, "query_string": query}, wire.receive, wire.send, request_id="r")
        assert query == told.query
    assert b"" == Exchange(scope, wire.receive, wire.send, request_id="r").query


async def test_a_body_in_one_part() -> None:
    """The ordinary case."""
    assert b"hello" == await read(Wire([part(b"hello")]), ("content-length", "5"))


async def test_a_body_in_parts_is_joined() -> None:
    """Chunked bodies have no length."""
    wire = Wire([part(b"he", more=True), part(b"", more=True), part(b"llo")])
    assert b"hello" == await read(wire, ("transfer-encoding", "chunked"))


async def test_a_body_of_exactly_the_limit_passes() -> None:
    """The bound is inclusive."""
    assert b"0123456789" == await read(Wire([part(b"01234", more=True), part(b"56789")]))


async def test_a_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    """Nobody uploads a gigabyte in order to be told no."""
    wire = Wire([part(b"0" * 11)])
    error = await refused(wire, ("content-length", "11"))
    assert (413, "body_too_large", 0) == (error.status, error.code, wire.num_read)


async def test_a_body_that_grows_over_the_limit_is_refused_at_once() -> None:
    """Without a length the bytes themselves are counted, and reading stops."""
    wire = Wire([part(b"012345", more=True), part(b"6789a", more=True), part(b"never read")])
    error = await refused(wire)
    assert (413, 2) == (error.status, wire.num_read)


async def test_a_single_part_over_the_limit_is_refused() -> None:
    """Whatever the server's buffer was."""
    assert 413 == (await refused(Wire([part(b"0" * 11)]))).status


async def test_a_body_that_does_not_come_ends_the_wait() -> None:
    """A client that sends half a body holds a connection for seconds, not for ever."""
    error = await refused(Wire([part(b"0", more=True)]), timeout_s=0.01)
    assert (408, "body_timeout") == (error.status, error.code)


@pytest.mark.parametrize("messages", [[], [part(b"0", more=True)]])
async def test_a_client_that_leaves_while_it_is_read_is_gone(messages: list[Message]) -> None:
    """There is nobody to answer."""
    with pytest.raises(ClientGone):
        await read(Wire([*messages, {"type": "http.disconnect"}]))


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "5"), ("content-length", "5")],
        [("content-length", "5"), ("content-length", "6")],
        [("content-length", "5"), ("transfer-encoding", "chunked")],
        [("content-length", "-5")],
        [("content-length", "5.0")],
        [("content-length", "0x5")],
        [("content-length", "")],
        [("content-length", "9" * 19)],
    ],
)
async def test_framing_that_two_servers_could_read_in_two_ways_is_refused(headers: list[tuple[str, str]]) -> None:
    """Request smuggling begins with two lengths."""
    wire = Wire([part(b"hello")])
    error = await refused(wire, *headers)
    assert (400, "bad_framing", 0) == (error.status, error.code, wire.num_read)


async def test_a_compressed_body_is_refused() -> None:
    """A small gzip can be a large body."""
    error = await refused(Wire([part(b"hello")]), ("content-encoding", "gzip"))
    assert (415, "unsupported_content_encoding") == (error.status, error.code)
    assert b"hello" == await read(Wire([part(b"hello")]), ("content-encoding", "identity"))


async def test_a_whole_answer_carries_length_and_id() -> None:
    """What was asked for can be found in the log."""
    wire = Wire()
    await exchange(wire).respond(200, b"{}", [(b"content-type", b"application/json")])
    start, body = wire.sent
    expected = [(b"content-type", b"application/json"), (b"content-length", b"2"), (b"x-request-id", b"req-1")]
    assert ("http.response.start", 200, expected) == (start["type"], start["status"], start["headers"])
    assert {"type": "http.response.body", "body": b"{}", "more_body": False} == body


async def test_an_answer_has_begun_once_its_status_left() -> None:
    """From then on an error can only be a part of the body."""
    wire = Wire()
    given = exchange(wire)
    assert not given.is_begun
    await given.start(200, [])
    assert given.is_begun


async def test_an_error_is_openais_and_closes_the_connection_while_a_body_is_unread() -> None:
    """The rest of a refused body must not be read as the next request."""
    wire = Wire()
    await exchange(wire).fail(ApiError(503, "Full.", code="queue_full", retry_after_s=7))
    headers = dict(wire.sent[0]["headers"])
    assert (503, b"7", b"req-1", b"close") == (
        wire.sent[0]["status"], headers[b"retry-after"], headers[b"x-request-id"], headers[b"connection"],
    )  # fmt: skip
    assert {"error": {"message": "Full.", "type": "server_error", "param": None, "code": "queue_full"}} == json.loads(
        wire.sent[1]["body"]
    )


async def test_an_error_after_the_body_was_read_keeps_the_connection() -> None:
    """A client with a typing error does not pay for a new connection each time."""
    wire = Wire([part(b"{}")])
    given = exchange(wire)
    await given.read_body(max_bytes=10, timeout_s=1.0)
    await given.fail(ApiError(400, "No.", code="invalid_value"))
    assert b"connection" not in dict(wire.sent[0]["headers"])


async def test_a_get_has_no_body_to_wait_for() -> None:
    """Its connection stays usable after a 404."""
    wire = Wire()
    await exchange(wire, method="GET").fail(ApiError(404, "No.", code="route_not_found"))
    assert b"connection" not in dict(wire.sent[0]["headers"])


@pytest.mark.parametrize("is_failure", [True, False])
async def test_late_headers_are_asked_once_when_the_answer_begins(is_failure: bool) -> None:
    """Of an error as of an answer: they say what is true then, not at the arrival."""
    wire = Wire()
    asked = exchange(wire)
    state = [b"early"]
    asked.late_headers = lambda: [(b"x-state", state.pop())]
    state[0] = b"late"
    if is_failure:
        await asked.fail(ApiError(429, "No.", code=None))
    else:
        await asked.respond(200, b"{}", [])
    assert (b"x-state", b"late") in wire.sent[0]["headers"]
    assert [] == state
