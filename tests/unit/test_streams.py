"""The stream of one answer: head, joined bodies, end; bounded, one wake an item, closed at any stage."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.actions import Rejection
from scheduler.streams import MAX_UNREAD_BYTES, Body, End, Head, Stream
from tests.scripted_link import settle_loop
from workers.types import Outcome

HEAD = Head(200, [(b"content-type", b"text/event-stream")])
DONE = End(outcome=Outcome.COMPLETED)


class Case:
    """A stream and everything it asked to be cancelled for."""

    def __init__(self, *, max_unread_bytes: int = MAX_UNREAD_BYTES) -> None:
        self.closed: list[tuple[str, str]] = []
        self.stream = Stream(
            "req-a", on_close=lambda *words: self.closed.append(words), max_unread_bytes=max_unread_bytes
        )


async def read_all(stream: Stream) -> list[Head | Body | End]:
    items: list[Head | Body | End] = []
    while not items or not isinstance(items[-1], End):
        item = await stream.next(1.0)
        assert item is not None, "nothing came"
        items.append(item)
    return items


async def test_items_come_in_order_whenever_they_are_read() -> None:
    """All that was put before the first read: the head, one body, the end, and the end again."""
    stream = Case().stream
    stream.put_head(HEAD)
    assert stream.put_body(b"one ")
    assert stream.put_body(b"two")
    stream.put_end(DONE)
    assert [HEAD, Body(b"one two"), DONE] == await read_all(stream)
    assert DONE is await stream.next()


async def test_the_end_can_be_seen_before_what_is_unread() -> None:
    """A refusal is there as soon as it was submitted."""
    stream = Case().stream
    stream.put_body(b"one")
    assert stream.end is None
    stream.put_end(DONE)
    assert DONE is stream.end
    assert Body(b"one") == await stream.next()


async def test_a_reader_that_keeps_up_gets_each_body_by_itself() -> None:
    """Bytes are joined only where nobody read them yet."""
    stream = Case().stream
    stream.put_head(HEAD)
    assert HEAD == await stream.next()
    for data in (b"a", b"b"):
        stream.put_body(data)
        assert Body(data) == await stream.next()


async def test_bytes_that_come_before_the_reader_wakes_are_one_item() -> None:
    """A step's chunks need one turn of the reader, not one each."""
    stream = Case().stream
    reader = asyncio.create_task(stream.next())
    await settle_loop()
    for data in (b"a", b"b", b"c"):
        stream.put_body(data)
    assert Body(b"abc") == await reader


async def test_a_waiting_reader_is_woken_once_an_item() -> None:
    """No turn of it finds nothing: each next returns an item or is the timeout's."""
    stream = Case().stream
    turns: list[object] = []

    async def read() -> None:
        while not isinstance(item := await stream.next(), End):
            turns.append(item)

    reader = asyncio.create_task(read())
    for put in (lambda: stream.put_head(HEAD), lambda: stream.put_body(b"a"), lambda: stream.put_body(b"b")):
        await settle_loop()
        put()
        put_again = stream._waiter
        assert put_again is None or put_again.done()
    await settle_loop()
    stream.put_end(DONE)
    await reader
    assert [HEAD, Body(b"a"), Body(b"b")] == turns


async def test_a_rejection_is_the_only_item() -> None:
    """Whoever was refused gets an answer, at once."""
    stream = Case().stream
    end = End(rejection=Rejection(reason="queue_full", status=503, message="full"), cause="queue_full")
    stream.put_end(end)
    assert [end] == await read_all(stream)


async def test_a_wait_ends_with_none_when_its_time_is_over() -> None:
    """And what comes later is not lost."""
    stream = Case().stream
    assert None is await stream.next(0.001)
    reader = asyncio.create_task(stream.next(10.0))
    await settle_loop()
    stream.put_body(b"late")
    assert Body(b"late") == await reader
    assert None is await stream.next(0.0)


async def test_a_timer_does_not_outlive_its_wait() -> None:
    """A timer of an earlier wait must not wake a later one."""
    stream = Case().stream
    early = asyncio.create_task(stream.next(0.002))
    await settle_loop()
    stream.put_body(b"a")
    assert Body(b"a") == await early
    late = asyncio.create_task(stream.next())
    await asyncio.sleep(0.004)
    assert not late.done()
    stream.put_end(DONE)
    assert DONE is await late


async def test_a_reader_that_is_cancelled_leaves_the_stream_usable() -> None:
    """The items belong to the stream, not to the wait."""
    stream = Case().stream
    reader = asyncio.create_task(stream.next())
    await settle_loop()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    stream.put_head(HEAD)
    assert HEAD == await stream.next()


async def test_a_slow_reader_is_told_by_the_return_value_and_costs_no_memory() -> None:
    """What would exceed the bound is dropped, what is unread stays as it was."""
    stream = Case(max_unread_bytes=10).stream
    assert stream.put_body(b"x" * 6)
    assert stream.put_body(b"y" * 4)
    assert not stream.put_body(b"z")
    assert Body(b"xxxxxxyyyy") == await stream.next()
    assert stream.put_body(b"z" * 10)


async def test_a_body_of_any_size_is_taken_when_nothing_else_is_unread() -> None:
    """A whole answer larger than the bound still arrives."""
    stream = Case(max_unread_bytes=10).stream
    assert stream.put_body(b"x" * 1000)
    assert not stream.put_body(b"y")
    assert Body(b"x" * 1000) == await stream.next()


@pytest.mark.parametrize("stage", ["nothing", "head", "body", "all read"])
async def test_closing_at_any_stage_cancels_once_and_drops_what_is_unread(stage: str) -> None:
    """The end still comes, since what was executed is settled all the same; nothing else does."""
    case = Case()
    stream = case.stream
    if stage != "nothing":
        stream.put_head(HEAD)
    if stage in ("body", "all read"):
        stream.put_body(b"secret")
    if stage == "all read":
        assert [HEAD, Body(b"secret")] == [await stream.next(), await stream.next()]
    stream.close("client_gone")
    stream.close("again")
    assert [("req-a", "client_gone")] == case.closed
    assert stream.is_closed
    stream.put_head(HEAD)
    assert stream.put_body(b"more"), "a closed stream is nobody's slow reader"
    stream.put_end(DONE)
    assert DONE is await stream.next()


async def test_closing_after_the_end_cancels_nothing() -> None:
    """The request is over; its client just leaves."""
    case = Case()
    case.stream.put_end(DONE)
    case.stream.close("client_gone")
    assert [] == case.closed


async def test_an_end_reaches_a_reader_that_waits_on_a_closed_stream() -> None:
    """Another task may close (a disconnect was heard) while the reader waits."""
    case = Case()
    reader = asyncio.create_task(case.stream.next())
    await settle_loop()
    case.stream.close("client_gone")
    await settle_loop()
    assert not reader.done()
    case.stream.put_end(DONE)
    assert DONE is await reader


def test_a_second_end_is_a_mistake_of_ours() -> None:
    """One end a request, whatever happened."""
    stream = Case().stream
    stream.put_end(DONE)
    with pytest.raises(AssertionError, match="ended twice"):
        stream.put_end(DONE)


@given(
    chunks=st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.booleans()), max_size=30),
    bound=st.integers(min_value=1, max_value=64),
)
@settings(max_examples=50, deadline=None)
def test_the_bytes_read_are_the_bytes_put(chunks: list[tuple[bytes, bool]], bound: int) -> None:
    """In order and whole, however reads and writes interleave; only what was refused is missing."""

    async def scene() -> None:
        stream = Case(max_unread_bytes=bound).stream
        stream.put_head(HEAD)
        taken, read, largest = b"", b"", 0
        for data, reads_now in chunks:
            taken += data if stream.put_body(data) else b""
            largest = max(largest, len(data))
            assert stream._unread_bytes <= max(bound, largest)
            if reads_now:
                item = await stream.next()
                read += item.data if isinstance(item, Body) else b""
        stream.put_end(DONE)
        read += b"".join(item.data for item in await read_all(stream) if isinstance(item, Body))
        assert taken == read

    asyncio.run(scene())


# -- held back


async def test_what_is_held_back_comes_when_it_is_let_go() -> None:
    """Head first, the bytes joined; nothing before."""
    stream = Case().stream
    stream.hold_back()
    stream.put_head(HEAD)
    assert stream.put_body(b"one ")
    assert stream.put_body(b"two")
    assert None is await stream.next(0.0)
    stream.let_go()
    assert [HEAD, Body(b"one two")] == [await stream.next(0.0), await stream.next(0.0)]


async def test_who_waits_for_what_is_held_back_is_not_woken_for_it() -> None:
    """None is the end of its time and nothing else: a relay would begin to keep the connection alive."""
    stream = Case().stream
    reader = asyncio.create_task(stream.next(60.0))
    await settle_loop()
    stream.hold_back()
    stream.put_head(HEAD)
    stream.put_body(b"one")
    await settle_loop()
    assert not reader.done()
    stream.let_go()
    assert HEAD == await reader


async def test_time_passes_while_it_is_held_back() -> None:
    """A wait has its end."""
    stream = Case().stream
    stream.hold_back()
    stream.put_body(b"one")
    assert None is await stream.next(0.001)


async def test_letting_go_says_how_long_the_first_of_it_lay(monkeypatch: pytest.MonkeyPatch) -> None:
    """From its head on; what came after the hold was durable waited for nothing, and so did what was taken back."""
    now_s = 100.0
    monkeypatch.setattr("scheduler.streams.time.monotonic", lambda: now_s)
    stream = Case().stream
    assert 0.0 == stream.let_go()
    stream.hold_back()
    assert 0.0 == stream.let_go()
    stream.hold_back()
    now_s = 101.0
    stream.put_head(HEAD)
    now_s = 101.5
    stream.put_body(b"one")
    now_s = 103.0
    assert 2.0 == stream.let_go()
    again = Case().stream
    again.hold_back()
    again.put_head(HEAD)
    again.take_back()
    assert 0.0 == again.let_go()


async def test_an_end_lets_go() -> None:
    """Of a refusal, or of a stop: whoever waits gets an answer."""
    stream = Case().stream
    stream.hold_back()
    reader = asyncio.create_task(stream.next())
    await settle_loop()
    stream.put_end(DONE)
    assert DONE == await reader
    stream.let_go()
    assert DONE == await stream.next(0.0)


async def test_letting_go_of_nothing_wakes_nobody() -> None:
    """Twice, or before anything came."""
    stream = Case().stream
    reader = asyncio.create_task(stream.next(60.0))
    await settle_loop()
    stream.let_go()
    stream.hold_back()
    stream.let_go()
    stream.let_go()
    await settle_loop()
    assert not reader.done()
    stream.put_body(b"one")
    assert Body(b"one") == await reader


async def test_what_is_held_back_is_bounded_too() -> None:
    """A disk that hangs costs no memory."""
    stream = Case(max_unread_bytes=5).stream
    stream.hold_back()
    assert stream.put_body(b"12345")
    assert not stream.put_body(b"6")
    stream.let_go()
    assert Body(b"12345") == await stream.next(0.0)
