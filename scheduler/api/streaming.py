"""A streamed answer on its way to one client: empty events while it waits, opaque bytes, the end only after the charge.

Called by ``scheduler.api.openai``. It must never parse a chunk; it knows where events end and how the last one begins.

What leaves: whole events only, so that an error can follow at any time; the last event of the route's dialect (such as
``data: [DONE]``) is held back until the End came, which the dispatcher sends after the charge is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scheduler.accounting.settlement import Charge
from scheduler.api.errors import ApiError, engine_error
from scheduler.api.exchange import JSON, Exchange, Header, Message, Send
from scheduler.streams import Body, End, Head, Stream
from workers.types import Outcome

KEEP_ALIVE = b"\n\n"
"""An event of nothing, which no client is told of. A comment would be as good by the standard, but vLLM's serving
benchmark strips what arrives, and then takes a comment and the event behind it for one comment."""
EVENT_STREAM = b"text/event-stream; charset=utf-8"
STREAM_HEADERS: list[Header] = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
"""Nothing between us and the client may keep events back."""
MAX_EVENT_BYTES = 1 << 20
"""A longer event is passed on in pieces."""
CHECKS = 4
"""How often a blocked write is looked at within the time that it may block."""


class SlowReader(Exception):
    """One write to the client blocked too long."""


class EventHold:
    """Passes whole events on and keeps back what is not one yet, and the last event of a stream."""

    __slots__ = ("_last_events", "held")

    def __init__(self, last_events: tuple[bytes, ...]) -> None:
        """``last_events``: how those begin after which a client takes its answer for whole."""
        self._last_events = last_events
        self.held = b""

    def take(self, data: bytes) -> bytes:
        """What may leave now of all that came so far."""
        if self.held:
            data = self.held + data
        cut = data.rfind(b"\n\n") + 2  # behind the last whole event; 1: there is none
        if cut == 1:
            cut = 0
        elif cut == len(data):
            start = data.rfind(b"\n\n", 0, -2) + 2
            if data.startswith(self._last_events, start if start > 1 else 0):
                cut = start if start > 1 else 0
        if len(data) - cut > MAX_EVENT_BYTES and not data.startswith(self._last_events, cut):
            cut = len(data)
        self.held = data[cut:]
        return data[:cut]


class PatientSend:
    """``send`` with a bound on how long one write may block; one timer for all writes of an answer.

    Use as a context manager around the writes. Raises: SlowReader, out of the write that blocks.
    """

    def __init__(self, send: Send, *, longest_s: float) -> None:
        self._send = send
        self._longest_s = longest_s
        self._period_s = longest_s / CHECKS
        self._num_begun = 0
        self._is_blocked = False
        self._seen = 0
        self._num_checks = 0
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> PatientSend:
        await self._limit.__aenter__()
        self._arm()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        assert self._timer is not None
        self._timer.cancel()
        try:
            await self._limit.__aexit__(kind, error, trace)  # type: ignore[arg-type]
        except TimeoutError:
            raise SlowReader from None

    async def __call__(self, message: Message) -> None:
        self._num_begun += 1
        self._is_blocked = True
        await self._send(message)
        self._is_blocked = False

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period_s, self._check)

    def _check(self) -> None:
        """The same write blocks at each of several looks in a row: enough."""
        if not self._is_blocked or self._num_begun != self._seen:
            self._seen, self._num_checks = self._num_begun, 0
        else:
            self._num_checks += 1
            if self._num_checks >= CHECKS:
                self._limit.reschedule(asyncio.get_running_loop().time())
                return
        self._arm()


class EventStream:
    """One streamed answer. ``run`` it once; afterwards its fields say how it went."""

    def __init__(
        self,
        stream: Stream,
        exchange: Exchange,
        *,
        keep_alive_s: float,
        clock: Callable[[], float],
        failure: Callable[[End], ApiError],
        last_event: Callable[[Charge], bytes] | None = None,
    ) -> None:
        """``failure`` says an End without an answer; ``last_event`` is written before the engine's last one."""
        self._stream = stream
        self._exchange = exchange
        self._keep_alive_s = keep_alive_s
        self._clock = clock
        self._failure = failure
        self._last_event = last_event
        self.first_byte_s: float | None = None
        self.end: End | None = None

    async def run(self) -> None:
        """Everything up to the End. Raises: ApiError while there is still a status to set; what ``send`` raises."""
        item = await self._first()
        if isinstance(item, End):
            await self._fail(item)
        elif item.status >= 400:
            await self._refuse(item)
        else:
            self.first_byte_s = self._clock()
            if not self._exchange.is_begun:
                await self._begin(_content_type(item))
            await self._pass_on()

    async def _first(self) -> Head | End:
        """The engine's head or the end; empty events while neither comes."""
        while True:
            item = await self._stream.next(self._keep_alive_s)
            if isinstance(item, Head | End):
                return item
            if not self._stream.is_closed:
                if not self._exchange.is_begun:
                    await self._begin(EVENT_STREAM)
                await self._exchange.write(KEEP_ALIVE, more=True)

    async def _pass_on(self) -> None:
        """The hot path: one write for all that came since the last one."""
        stream, send = self._stream, self._exchange.send
        hold = EventHold(self._exchange.dialect.last_events)
        while True:
            item = await stream.next()
            if type(item) is Body:
                data = hold.take(item.data)
                if data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            elif isinstance(item, End):
                break
        if item.outcome is not Outcome.COMPLETED:
            await self._fail(item)
            return
        self.end = item
        last = self._last_event(item.charge) if self._last_event is not None and item.charge is not None else b""
        await self._exchange.write(last + hold.held, more=False)

    async def _refuse(self, head: Head) -> None:
        """The engine answered with an error of its own: a whole body, never a stream."""
        parts: list[bytes] = []
        while not isinstance(item := await self._stream.next(), End):
            if isinstance(item, Body):
                parts.append(item.data)
        self.end = item
        if self._stream.is_closed:
            return
        error = engine_error(head.status, b"".join(parts))
        dialect = self._exchange.dialect
        if self._exchange.is_begun:
            await self._exchange.write(dialect.error_event(error), more=False)
        else:
            await self._exchange.respond(head.status, dialect.error_body(error), [JSON])

    async def _fail(self, end: End) -> None:
        """An error event and no last one; before the first byte an error with a status."""
        self.end = end
        if self._stream.is_closed:
            return
        error = self._failure(end)
        if not self._exchange.is_begun:
            raise error
        await self._exchange.write(self._exchange.dialect.error_event(error), more=False)

    async def _begin(self, content_type: bytes) -> None:
        await self._exchange.start(200, [(b"content-type", content_type), *STREAM_HEADERS])


def _content_type(head: Head) -> bytes:
    for name, value in head.headers:
        if name.lower() == b"content-type":
            return value
    return EVENT_STREAM
