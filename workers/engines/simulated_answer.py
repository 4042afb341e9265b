"""One HTTP request to a simulated engine: routes, bodies, and its tokens on their way out.

Called by ``workers.engines.simulated``. It must never know steps, energy or a meter.

The step loop puts ready-made bytes into an answer and wakes its task, which sends all that waits in one message: one
message per token while the reader keeps up, fewer when it does not, and a slow reader holds back nobody else.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol

import msgspec

from workers.digests import NOTHING, Stated, stated_of
from workers.engine import Receive, Scope, Send
from workers.engines.simulated_openai import (
    CHAT_PATH,
    COMPLETION_PATH,
    COUNT_PATH,
    PATHS,
    Ask,
    BadRequest,
    count_tokens,
    hash_blocks,
    parse_ask,
    text_of,
    word,
)
from workers.engines.simulated_options import SimulatedOptions
from workers.engines.simulated_plan import SimulatedSequence
from workers.engines.simulated_writers import DONE, WRITERS, Counts, Writer, Written

MAX_BODY_BYTES = 64 * 1024 * 1024
TOKENIZE_PATH = "/tokenize"
DEAD = "the engine died"
JSON_HEADERS = [(b"content-type", b"application/json")]
STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Generator(Protocol):
    """What an answer needs of its engine."""

    options: SimulatedOptions
    models: tuple[str, ...]
    seed: int
    num_answers: int
    dead_cause: str

    @property
    def max_len_tokens(self) -> int: ...

    def open(self, attempt_id: str, answer: Answer) -> None: ...

    def abort(self, answer: Answer) -> None: ...


class _Choice:
    """Where one sequence's tokens go; mutable, owned by its answer."""

    __slots__ = ("frame", "index", "phase", "position", "text")

    def __init__(self, index: int, phase: int, frame: tuple[bytes, bytes]) -> None:
        self.index = index
        self.phase = phase
        self.position = 0
        self.frame = frame
        self.text = b""
        """Once its sequence is closed: what the client was given of it."""


class Answer:
    """The sequences of one request and the bytes that wait to be sent."""

    def __init__(
        self, ask: Ask, *, attempt_id: str, writer: Writer, sequences: list[SimulatedSequence], phases: list[int]
    ) -> None:
        self.ask = ask
        self.attempt_id = attempt_id
        self.writer = writer
        self.sequences = sequences
        self.is_stream = ask.is_stream
        self.is_gone = False
        self.is_failed = False
        self._num_open = len(sequences)
        self._pending: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._choices = {
            sequence.sequence_id: _Choice(index, phase, writer.frame(index))
            for index, (sequence, phase) in enumerate(zip(sequences, phases, strict=True))
        }

    # -- the step loop's side

    def put_token(self, sequence: SimulatedSequence) -> None:
        """One more token of a sequence that goes on."""
        choice = self._choices[sequence.sequence_id]
        position = choice.position
        choice.position = position + 1
        text = word(choice.phase, position)
        if position == 0:
            self._pending.append(self.writer.first(choice.index, self.counts()))
        counts = self.counts() if self.ask.continuous_usage else None
        self._pending.append(self.writer.token(choice.frame, text, counts))
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def end(self, sequence: SimulatedSequence) -> None:
        """A sequence is closed: its last token, and after the last of all what follows the text."""
        self._num_open -= 1
        choice = self._choices[sequence.sequence_id]
        if self.is_stream and not sequence.is_aborted:
            if choice.position == 0:
                self._pending.append(self.writer.first(choice.index, self.counts()))
            text = word(choice.phase, choice.position)
            choice.position += 1
            self._pending.append(self.writer.last(choice.index, text, sequence.finish_reason))
        choice.text = self._text(sequence)
        if self.is_stream and not sequence.is_aborted and not self._num_open:
            self._pending.append(self.writer.close(self._written(), self.counts()))
        self.wake()

    def fail(self) -> None:
        """The engine died."""
        self.is_failed = True
        self.wake()

    # -- the request's side

    @property
    def is_whole(self) -> bool:
        """Every sequence is closed."""
        return self._num_open == 0

    def wake(self) -> None:
        """The request's task looks again."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Returns at the next thing that happens to this answer."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def take(self) -> bytes:
        """What waits to be sent."""
        pending, self._pending = self._pending, []
        return pending[0] if len(pending) == 1 else b"".join(pending)

    @property
    def has_bytes(self) -> bool:
        return bool(self._pending)

    def counts(self) -> Counts:
        """Each prompt once, all outputs."""
        prompts = {sequence.prompt_index: sequence for sequence in reversed(self.sequences)}.values()
        return Counts(
            sum(sequence.prompt_tokens for sequence in prompts),
            sum(sequence.num_generated for sequence in self.sequences)
            if self.is_whole
            else sum(choice.position for choice in self._choices.values()),
            sum(sequence.cached_tokens for sequence in prompts),
        )

    def whole(self) -> bytes:
        """The body of an answer that is not streamed."""
        return self.writer.whole(self._written(), self.counts())

    def stated(self, sequence: SimulatedSequence, salt: bytes) -> Stated:
        """Of what the client was given of a sequence; empty where nothing is to be generated."""
        if not sequence.target_tokens:
            return NOTHING
        is_closed = sequence.is_closed
        return stated_of(salt, self._choices[sequence.sequence_id].text if is_closed else self._text(sequence))

    def _text(self, sequence: SimulatedSequence) -> bytes:
        """Of a stream what was put out, of a whole answer what was generated."""
        choice = self._choices[sequence.sequence_id]
        return text_of(choice.phase, choice.position if self.is_stream else sequence.num_generated)

    def _written(self) -> list[Written]:
        return [
            Written(choice.text, sequence.finish_reason)
            for sequence, choice in zip(self.sequences, self._choices.values(), strict=True)
        ]


async def serve(engine: Generator, scope: Scope, receive: Receive, send: Send) -> None:
    """One ASGI request."""
    if scope["type"] != "http":
        raise ValueError(f"the simulated engine speaks HTTP only, not {scope['type']!r}")
    path: str = scope["path"]
    method: str = scope["method"]
    if path in PATHS and method == "POST":
        await _generate(engine, scope, receive, send)
    elif path in (TOKENIZE_PATH, COUNT_PATH) and method == "POST":
        await _count(engine, path, receive, send)
    elif path == "/v1/models" and method == "GET":
        cards: list[dict[str, object]] = [
            {
                "id": model,
                "object": "model",
                "created": 0,
                "owned_by": "jouleway",
                "root": model,
                "parent": None,
                "max_model_len": engine.max_len_tokens,
                "permission": [],
            }
            for model in engine.models
        ]
        await _reply(send, 200, msgspec.json.encode({"object": "list", "data": cards}))
    elif path in ("/health", "/ping"):
        await _reply(send, 503 if engine.dead_cause else 200, b"")
    elif path == "/version":
        await _reply(send, 200, b'{"version":"simulated"}')
    else:
        status = 405 if path in (*PATHS, TOKENIZE_PATH, COUNT_PATH, "/v1/models") else 404
        await _reply(send, status, b'{"detail":"%b"}' % (b"Method Not Allowed" if status == 405 else b"Not Found"))


async def _generate(engine: Generator, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        body = await _read_body(receive)
        if body is None:
            return
        if engine.dead_cause:
            raise BadRequest(engine.dead_cause, status=500, kind="InternalServerError")
        answer = _answer(engine, scope, parse_ask(scope["path"], body, models=engine.models))
    except BadRequest as refusal:
        await _reply(send, refusal.status, refusal.body(scope["path"]))
        return
    engine.open(answer.attempt_id, answer)
    watch = asyncio.create_task(_watch(receive, answer))
    try:
        if answer.is_stream:
            await _send_stream(answer, send)
        else:
            await _send_whole(answer, send)
    finally:
        watch.cancel()
        engine.abort(answer)


async def _send_stream(answer: Answer, send: Send) -> None:
    """Status and headers go with the first token."""
    has_started = False
    while True:
        if answer.has_bytes:
            if not has_started:
                has_started = True
                await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
            is_last = answer.is_whole
            await send({"type": "http.response.body", "body": answer.take(), "more_body": not is_last})
            if is_last:
                return
        elif answer.is_gone or answer.is_whole:
            return
        elif answer.is_failed:
            if has_started:
                body = b"data: %b\n\n%b" % (_dead(answer.ask.path), DONE)
                await send({"type": "http.response.body", "body": body})
            else:
                await _reply(send, 500, _dead(answer.ask.path))
            return
        else:
            await answer.wait()


async def _send_whole(answer: Answer, send: Send) -> None:
    while not (answer.is_whole or answer.is_gone or answer.is_failed):
        await answer.wait()
    if answer.is_failed:
        await _reply(send, 500, _dead(answer.ask.path))
    elif not answer.is_gone:
        await _reply(send, 200, answer.whole())


def _dead(path: str) -> bytes:
    return BadRequest(DEAD, kind="InternalServerError", status=500).body(path)


async def _watch(receive: Receive, answer: Answer) -> None:
    """The client left: whatever else arrives after the body has no meaning."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.is_gone = True
    answer.wake()


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client left while sending it."""
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part: bytes = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > MAX_BODY_BYTES:
            raise BadRequest(f"the body is larger than {MAX_BODY_BYTES} bytes", status=413)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _answer(engine: Generator, scope: Scope, ask: Ask) -> Answer:
    """Draws lengths and words for every sequence of the request."""
    engine.num_answers += 1
    headers: dict[bytes, bytes] = dict(scope["headers"])
    request_id = headers.get(b"x-request-id", b"sim-%d" % engine.num_answers).decode("latin-1")
    try:
        priority = int(headers.get(b"x-vllm-priority", b"0"))
    except ValueError:
        priority = 0
    writer = WRITERS[ask.path](ask, request_id=request_id, model=engine.models[0], created=int(time.time()))
    # The n-th request draws the same in every run; one with its own seed draws the same wherever it stands.
    draw = random.Random(f"{engine.seed}/{engine.num_answers if ask.seed is None else f'seed-{ask.seed}'}")
    options = engine.options
    sequences: list[SimulatedSequence] = []
    phases: list[int] = []
    for prompt_index, prompt in enumerate(ask.prompts):
        prompt_tokens = count_tokens(prompt)
        max_tokens = _max_tokens(ask, prompt_tokens=prompt_tokens, max_len_tokens=engine.max_len_tokens)
        hashes = hash_blocks(prompt, block_tokens=options.block_tokens) if options.prefix_caching else ()
        for choice in range(ask.num_choices):
            length = 1 + int(draw.expovariate(1 / max(options.output_tokens_mean, 1.0)))
            target_tokens = max_tokens if ask.ignore_eos else max(min(length, max_tokens), ask.min_tokens)
            sequences.append(
                SimulatedSequence(
                    sequence_id=f"{writer.answer_id}-{prompt_index}-{choice}-{engine.num_answers}",
                    payer=request_id,
                    prompt_tokens=prompt_tokens,
                    target_tokens=target_tokens,
                    priority=priority,
                    prompt_index=prompt_index,
                    block_hashes=hashes,
                    finish_reason="length" if target_tokens >= max_tokens > 0 else "stop",
                )
            )
            phases.append(draw.randrange(256))
    return Answer(ask, attempt_id=request_id, writer=writer, sequences=sequences, phases=phases)


def _max_tokens(ask: Ask, *, prompt_tokens: int, max_len_tokens: int) -> int:
    """Output bound of one sequence. Raises: BadRequest where prompt and outputs exceed the context."""
    wanted = ask.max_tokens if ask.max_tokens is not None else max(max_len_tokens - prompt_tokens, 1)
    if prompt_tokens + wanted > max_len_tokens:
        raise BadRequest(
            f"This model's maximum context length is {max_len_tokens} tokens. However, you requested {wanted} output "
            f"tokens and your prompt contains {prompt_tokens} input tokens, for a total of {prompt_tokens + wanted} "
            "tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
            param="input_tokens",
        )
    if ask.min_tokens > wanted:
        raise BadRequest(f"min_tokens must be less than or equal to max_tokens={wanted}, got {ask.min_tokens}.")
    return wanted


async def _count(engine: Generator, path: str, receive: Receive, send: Send) -> None:
    """How many tokens the prompt has; nothing is computed."""
    try:
        body = await _read_body(receive)
        if body is None:
            return
        as_path = path
        if path == TOKENIZE_PATH:
            as_path = CHAT_PATH if b'"messages"' in body else COMPLETION_PATH
        count = sum(count_tokens(prompt) for prompt in parse_ask(as_path, body, models=engine.models).prompts)
    except BadRequest as refusal:
        await _reply(send, refusal.status, refusal.body(path))
        return
    fields: dict[str, object] = {"input_tokens": count}
    if path == TOKENIZE_PATH:
        fields = {"count": count, "max_model_len": engine.max_len_tokens, "tokens": list(range(count))}
    await _reply(send, 200, msgspec.json.encode(fields))


async def _reply(send: Send, status: int, body: bytes) -> None:
    headers = [*JSON_HEADERS, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
