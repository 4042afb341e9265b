"""The attempts that run on one worker: their bytes on the way out, their two endings, and their end by force.

Called by ``workers.worker``. It must never know Ray, a meter or a price; bytes pass through unread.

An attempt is final when both its ASGI end and its closing step record arrived, in whatever order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.digests import NOTHING, SALT_BYTES, Stated, asked_of
from workers.engine import Engine, Message
from workers.types import Call, Chunk, Ended, Outcome, Output, SequenceUsage, Started, UsageRecord

logger = logging.getLogger("jouleway.worker")

MAX_BUFFER_BYTES = 8 * 1024 * 1024
"""Bytes that may wait for the reader; beside them four items of at most this size are on their way."""

ABORT_GRACE_S = 5.0
"""How long an engine may take to obey a disconnect before its task is cancelled."""


def new_salt() -> bytes:
    """An attempt's own."""
    return secrets.token_bytes(SALT_BYTES)


async def wait_at_most(timeout_s: float, event: asyncio.Event) -> None:
    """Until the event, or that long. Python 3.11's wait_for forgets a cancellation that comes together with it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


@dataclass(slots=True, kw_only=True)
class Attempt:
    """The one mutable record of an attempt."""

    call: Call
    started_s: float
    salt: bytes = b""
    """Empty where the engine is never asked."""
    asked: Stated = NOTHING
    disconnect: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    status: int | None = None
    first_byte_s: float | None = None
    ended_s: float | None = None
    abort_reason: str = ""
    failure: str = ""
    is_asgi_done: bool = False
    sequences: tuple[SequenceUsage, ...] | None = None

    @property
    def outcome(self) -> Outcome:
        """How it ended; an abort we ordered is an abort, whatever the engine made of it."""
        if self.abort_reason:
            return Outcome.ABORTED
        if self.failure or self.status is None or self.status >= 500:
            return Outcome.FAILED
        return Outcome.REFUSED if self.status >= 400 else Outcome.COMPLETED

    @property
    def cause(self) -> str:
        return self.abort_reason or self.failure or ("" if self.status is not None else "no_reply")


def usage_of(attempt: Attempt, *, provisional: tuple[int, int]) -> UsageRecord:
    """The charge of a final attempt: each prompt billed once, cached as its first sequence found it."""
    sequences = attempt.sequences or ()
    first_of_prompt: dict[int, SequenceUsage] = {}
    for sequence in sequences:
        first_of_prompt.setdefault(sequence.prompt_index, sequence)
    prompts = first_of_prompt.values()
    return UsageRecord(
        attempt_id=attempt.call.attempt_id,
        outcome=attempt.outcome,
        cause=attempt.cause,
        sequences=sequences,
        input_tokens=sum(sequence.prompt_tokens for sequence in prompts),
        cached_tokens=sum(sequence.cached_tokens for sequence in prompts),
        output_tokens=sum(sequence.generated_tokens for sequence in sequences),
        reasoning_tokens=sum(sequence.reasoning_tokens for sequence in sequences),
        image_tokens=sum(sequence.image_tokens for sequence in prompts),
        audio_tokens=sum(sequence.audio_tokens for sequence in prompts),
        input_bytes=attempt.asked.num_bytes,
        output_bytes=sum(sequence.output_bytes for sequence in sequences),
        salt=attempt.salt.hex(),
        input_digest=attempt.asked.digest,
        output_digests=tuple(sequence.output_digest for sequence in sequences if sequence.output_digest),
        started_s=attempt.started_s,
        first_byte_s=attempt.first_byte_s,
        ended_s=attempt.ended_s or attempt.started_s,
        provisional_mj=provisional[0],
        provisional_gpu_us=provisional[1],
    )


class OutputBuffer:
    """What attempts produced since the last report; the bytes of one attempt are joined into one chunk.

    Bounded: ``wait_for_room`` holds an engine's ``send`` back while more than ``max_bytes`` wait for a reader.
    """

    def __init__(self, *, max_bytes: int = MAX_BUFFER_BYTES) -> None:
        self._started: dict[str, Started] = {}
        self._bodies: dict[str, list[bytes]] = {}
        self._ended: dict[str, Ended] = {}
        self._num_bytes = 0
        self._max_bytes = max_bytes
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_empty(self) -> bool:
        return not (self._started or self._bodies or self._ended)

    @property
    def has_room(self) -> bool:
        return self._num_bytes < self._max_bytes

    async def wait_for_room(self) -> None:
        """Returns once the reader has taken enough; nobody waits here while the reader keeps up."""
        while not self.has_room:
            self._room.clear()
            await self._room.wait()

    def put(self, attempt: Attempt, message: Message) -> None:
        """One ASGI message of the engine's app."""
        attempt_id = attempt.call.attempt_id
        if message["type"] == "http.response.body":
            body: bytes = message.get("body", b"")
            if body:
                self._bodies.setdefault(attempt_id, []).append(body)
                self._num_bytes += len(body)
        elif message["type"] == "http.response.start":
            attempt.status = message["status"]
            self._started[attempt_id] = Started(attempt_id, message["status"], list(message.get("headers", ())))

    def end(self, attempt: Attempt) -> None:
        """The attempt's ASGI side is over."""
        attempt_id = attempt.call.attempt_id
        self._ended[attempt_id] = Ended(attempt_id, attempt.outcome, attempt.cause)

    def take(self) -> list[Output]:
        """Everything so far, each attempt's start before its bytes before its end."""
        outputs: list[Output] = [*self._started.values()]
        outputs += [
            Chunk(attempt_id, bodies[0] if len(bodies) == 1 else b"".join(bodies))
            for attempt_id, bodies in self._bodies.items()
        ]
        outputs += self._ended.values()
        self.clear()
        return outputs

    def clear(self) -> None:
        """Drops everything (a new connection does not want the bytes of the one before)."""
        self._started.clear()
        self._bodies.clear()
        self._ended.clear()
        self._num_bytes = 0
        self._room.set()


async def drive(
    attempt: Attempt,
    *,
    engine: Engine,
    buffer: OutputBuffer,
    clock: Callable[[], float],
    on_output: Callable[[], None],
) -> None:
    """Calls the engine's ASGI app for one attempt and passes on what it sends; never raises, it notes the failure."""
    is_body_read = False

    async def receive() -> Message:
        nonlocal is_body_read
        if not is_body_read:
            is_body_read = True
            return {"type": "http.request", "body": body, "more_body": False}
        await attempt.disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if not buffer.has_room:
            await buffer.wait_for_room()
        if attempt.first_byte_s is None and message.get("body"):
            attempt.first_byte_s = clock()
        buffer.put(attempt, message)
        on_output()

    try:
        attempt.asked = asked_of(attempt.salt, attempt.call.body)
        scope, body = engine.request(attempt.call, attempt.salt)
        await engine.app(scope, receive, send)
    except asyncio.CancelledError:
        attempt.failure = attempt.failure or "cancelled"
    except Exception as error:
        # The text of an engine's exception may hold a prompt: only its type leaves.
        logger.warning("attempt %s failed in the engine: %s", attempt.call.attempt_id, type(error).__name__)
        attempt.failure = attempt.failure or f"engine_error:{type(error).__name__}"


class Attempts:
    """Everything that runs on one worker. ``on_final`` is called once for each, when both its endings are here."""

    def __init__(
        self,
        *,
        engine: Engine,
        buffer: OutputBuffer,
        clock: Callable[[], float],
        on_output: Callable[[], None],
        on_final: Callable[[Attempt], None],
        make_salt: Callable[[], bytes] = new_salt,
    ) -> None:
        self._engine = engine
        self._buffer = buffer
        self._clock = clock
        self._on_output = on_output
        self._on_final = on_final
        self._make_salt = make_salt
        self._by_id: dict[str, Attempt] = {}
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, attempt_id: str) -> bool:
        return attempt_id in self._by_id

    @property
    def num_running(self) -> int:
        """Those of which the engine's answer has not ended."""
        return sum(not attempt.is_asgi_done for attempt in self._by_id.values())

    async def wait_empty(self, timeout_s: float) -> None:
        """Until none is left, at most ``timeout_s``."""
        await wait_at_most(timeout_s, self._is_empty)

    def begin(self, call: Call, *, refusal: str = "") -> None:
        """Starts it, or ends it at once for the reason given."""
        attempt = Attempt(call=call, started_s=self._clock(), failure=refusal)
        self._by_id[call.attempt_id] = attempt
        self._is_empty.clear()
        if refusal:
            self._close(attempt)
            return
        attempt.salt = self._make_salt()
        attempt.task = asyncio.create_task(self._run(attempt), name=call.attempt_id)

    def close(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        """Its closing step record arrived; a second one changes nothing."""
        attempt = self._by_id.get(attempt_id)
        if attempt is not None and attempt.sequences is None:
            attempt.sequences = sequences
            self._finish(attempt)

    def abort(self, attempt_id: str, reason: str) -> None:
        """Somebody does not want it any more; an attempt that is unknown or over is left alone."""
        if (attempt := self._by_id.get(attempt_id)) is not None:
            attempt.abort_reason = attempt.abort_reason or reason
            self._disconnect(attempt)

    def abort_all(self, reason: str) -> None:
        """Aborts everything; what has failed already only hears that nobody listens."""
        for attempt_id, attempt in list(self._by_id.items()):
            if attempt.failure:
                self._disconnect(attempt)
            else:
                self.abort(attempt_id, reason)

    def fail_all(self, cause: str) -> None:
        """The engine is to blame: what runs has failed, and hears it."""
        for attempt in list(self._by_id.values()):
            if not attempt.is_asgi_done:
                attempt.failure = attempt.failure or cause
                self._disconnect(attempt)

    def close_by_force(self) -> None:
        """The engine does not end them: what is known of them is charged."""
        for attempt in list(self._by_id.values()):
            if attempt.task is not None:
                attempt.task.cancel()
            attempt.failure = attempt.failure or "not_closed"
            self._close(attempt)

    async def _run(self, attempt: Attempt) -> None:
        """Drives the engine for one attempt, and ends it on every path."""
        try:
            await drive(attempt, engine=self._engine, buffer=self._buffer, clock=self._clock, on_output=self._on_output)
        finally:
            attempt.is_asgi_done = True
            attempt.ended_s = attempt.ended_s or self._clock()
            self._buffer.end(attempt)
            self._engine.asgi_ended(attempt.call.attempt_id)
            self._finish(attempt)
            self._on_output()

    def _close(self, attempt: Attempt) -> None:
        """Both endings at once, by our own word."""
        attempt.ended_s = attempt.ended_s or self._clock()
        attempt.is_asgi_done, attempt.sequences = True, attempt.sequences or ()
        self._buffer.end(attempt)
        self._finish(attempt)

    def _finish(self, attempt: Attempt) -> None:
        attempt_id = attempt.call.attempt_id
        if not attempt.is_asgi_done or attempt.sequences is None or self._by_id.get(attempt_id) is not attempt:
            return
        del self._by_id[attempt_id]
        if not self._by_id:
            self._is_empty.set()
        self._on_final(attempt)

    def _disconnect(self, attempt: Attempt) -> None:
        if attempt.disconnect.is_set():
            return
        attempt.disconnect.set()
        if attempt.task is not None and not attempt.task.done():
            asyncio.get_running_loop().call_later(ABORT_GRACE_S, attempt.task.cancel)
