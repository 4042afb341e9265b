"""The values between relay and dispatcher: what is submitted, and the stream of its answer.

Called by ``scheduler.dispatcher`` (which fills streams) and ``scheduler.api`` (which reads them; one reader a stream).
It must never know HTTP, a worker's link or what the bytes mean.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from scheduler.accounting.settlement import Charge
from scheduler.core.actions import Rejection
from scheduler.core.request import Request
from workers.types import Outcome

MAX_UNREAD_BYTES = 1024 * 1024
"""What a slow reader may leave unread before its request is aborted with the reason ``slow_reader``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request as the relay hands it over."""

    request: Request
    path: str
    """The engine's route: ``/v1/chat/completions``."""
    render: Callable[[int, int], bytes]
    """(max_output_tokens, engine_priority) -> the engine's JSON body."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of the engine; comes with its first byte, at most once, always first."""

    status: int
    headers: list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes of the engine; all that arrived since the last read, joined."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The last item, after the charge was recorded. Exactly one of ``outcome`` and ``rejection`` is set."""

    outcome: Outcome | None = None
    rejection: Rejection | None = None
    cause: str = ""
    """Empty unless it failed or was aborted: one word (worker_lost, engine_error, slow_reader, deadline_exceeded…)."""
    charge: Charge | None = None
    """Of the last attempt; None where no attempt ran."""


class Stream:
    """The answer of one request. One reader; everything happens on one event loop."""

    def __init__(
        self, request_id: str, *, on_close: Callable[[str, str], None], max_unread_bytes: int = MAX_UNREAD_BYTES
    ) -> None:
        self.request_id = request_id
        self._on_close = on_close
        self._max_unread_bytes = max_unread_bytes
        self._head: Head | None = None
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._end: End | None = None
        self._is_closed = False
        self.is_held = False
        """The reader is given nothing: its hold is not durable yet."""
        self.on_let_go: Callable[[], None] = lambda: None
        """Told once when what was held back becomes the reader's."""
        self._ready_s = math.inf
        """When the first of what is held back came."""
        self._waiter: asyncio.Future[None] | None = None

    # -- the reader's side

    async def next(self, timeout_s: float | None = None) -> Head | Body | End | None:
        """The next item: at most one Head, bodies, then End (again and again). None when ``timeout_s`` passed first."""
        if (item := self._take()) is not None:
            return item
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        return self._take()

    def close(self, reason: str) -> None:
        """Nobody reads on (the client is gone): the request is cancelled; what it executed is settled all the same."""
        if self._is_closed:
            return
        self._is_closed = True
        self._head = None
        self._parts.clear()
        self._unread_bytes = 0
        if self._end is None:
            self._on_close(self.request_id, reason)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def end(self) -> End | None:
        """The End where it is here already, whatever is still unread before it."""
        return self._end

    def _take(self) -> Head | Body | End | None:
        if self.is_held:
            return None
        if self._head is not None:
            head, self._head = self._head, None
            return head
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            self._unread_bytes = 0
            return Body(data)
        return self._end

    # -- the dispatcher's side

    def hold_back(self) -> None:
        """The reader is given nothing from now on, until ``let_go`` or the End: its hold is not durable yet."""
        self.is_held = True

    def let_go(self) -> float:
        """What came meanwhile is the reader's; for how many seconds the first of it lay here."""
        if not self.is_held:
            return 0.0
        self.is_held = False
        self.on_let_go()
        if self._head is not None or self._parts:
            self._wake()
        return max(time.monotonic() - self._ready_s, 0.0)

    def take_back(self) -> None:
        """What came while it is held was never said."""
        self.on_let_go = lambda: None
        self._ready_s = math.inf
        self._head = None
        self._parts.clear()
        self._unread_bytes = 0

    def put_head(self, head: Head) -> None:
        """Once, before any body."""
        if not self._is_closed:
            self._head = head
            if self.is_held:
                self._ready_s = time.monotonic()
            self._tell()

    def put_body(self, data: bytes) -> bool:
        """False if the reader is too slow: unread bytes are left and these would exceed the bound; they are dropped.

        A body of any size is taken when nothing else is unread.
        """
        if self._is_closed:
            return True
        if self._parts and self._unread_bytes + len(data) > self._max_unread_bytes:
            return False
        self._parts.append(data)
        self._unread_bytes += len(data)
        self._tell()
        return True

    def put_end(self, end: End) -> None:
        """Once; nothing may follow."""
        assert self._end is None, f"{self.request_id} ended twice"
        self._end = end
        self.is_held = False
        self._wake()

    def _tell(self) -> None:
        """Who is woken for nothing would take it for the end of its time."""
        if not self.is_held:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
