"""Sends one streaming request to an OpenAI server and stamps what comes back.

Called by ``scheduler.bench.drive``; the only file of the benchmark that imports aiohttp, when it is used. It must
never know how requests are paced or judged.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from scheduler.bench.prompts import Endpoint, Prompts, TokenFit, body
from scheduler.bench.workload import Planned

if TYPE_CHECKING:
    import aiohttp

MAX_EVENT_BYTES = 4 << 20
"""Longest server-sent event that is buffered."""
MAX_DETAIL_CHARS = 300
PATHS: dict[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
PROBE_WORDS = (16, 272)
"""Prompt sizes by which the words-to-tokens line is measured before a run."""


class TargetError(Exception):
    """The server under test cannot be benchmarked as asked; the message says what it answered and the remedy."""


class BadStream(Exception):
    """The stream broke the protocol; ``reason`` is the name it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server under test and how it is asked."""

    base_url: str
    model: str = ""
    api_key: str | None = None
    endpoint: Endpoint = "chat"
    exact_output: bool = True
    temperature: float | None = None
    service_tier: str | None = None
    timeout_s: float = 300.0
    extra_headers: tuple[tuple[str, str], ...] = ()

    def headers(self) -> dict[str, str]:
        """Headers of every request; ``x-jouleway-metering`` is ignored by servers that do not know it."""
        headers = {"Content-Type": "application/json", "x-jouleway-metering": "1", **dict(self.extra_headers)}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request as the client saw it. Times are seconds of the run's clock.

    ``due_s`` is when it was scheduled: every latency counts from there, so that a client or server that falls behind
    cannot hide it (no coordinated omission).
    """

    planned: Planned
    due_s: float
    sent_s: float | None = None
    """None: it never left."""
    ended_s: float = 0.0
    token_s: array[float] = field(default_factory=lambda: array("d"))
    """Arrival of each piece of output text; several tokens may come in one piece."""
    reason: str | None = None
    """Why it failed, as a name; None = completed."""
    detail: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    counted_by_server: bool = False
    """False: the server sent no usage and the pieces were counted instead."""
    energy_joules: float | None = None
    gpu_seconds: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """Scheduled send to first output text."""
        return self.token_s[0] - self.due_s if self.token_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None below two tokens."""
        if len(self.token_s) < 2 or self.output_tokens < 2:
            return None
        return (self.token_s[-1] - self.token_s[0]) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Scheduled send to the end of the stream."""
        return self.ended_s - self.due_s


# -- what a stream says


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None

    def has_text(self) -> bool:
        """Whether the model said something in this piece."""
        delta = self.delta
        if delta is None:
            return bool(self.text)
        return bool(delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls)


class _Metering(msgspec.Struct):
    energy_joules: float | None = None
    gpu_seconds: float | None = None


class _Piece(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    jouleway: _Metering | None = None
    error: msgspec.Raw = msgspec.Raw()


_DECODER = msgspec.json.Decoder(_Piece)


class EventReader:
    """Splits a byte stream into the data of server-sent events; comments and other fields are skipped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events completed by ``data``. Raises: BadStream when one grows beyond the bound."""
        text = self._rest + data if self._rest else data
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n")
        *whole, rest = text.split(b"\n\n")
        self._rest = rest + held
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadStream("event_too_large", f"one event has more than {MAX_EVENT_BYTES} bytes")
        return [event for block in whole if (event := self._data(block)) is not None]

    @staticmethod
    def _data(block: bytes) -> bytes | None:
        if block.startswith(b"data: ") and b"\n" not in block:
            return block[6:]
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        return b"\n".join(lines) if lines else None


class Client:
    """One HTTP session to the target, and the run's clock."""

    def __init__(
        self,
        target: Target,
        session: aiohttp.ClientSession,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.target = target
        self.clock = clock
        self._session = session
        self._url = target.base_url + PATHS[target.endpoint]

    def payload(self, text: str, output_tokens: int) -> bytes:
        """The body for one prompt."""
        target = self.target
        return body(
            text,
            endpoint=target.endpoint,
            model=target.model,
            output_tokens=output_tokens,
            exact_output=target.exact_output,
            temperature=target.temperature,
            service_tier=target.service_tier,
        )

    async def exchange(self, seen: Exchange, payload: bytes, *, origin_s: float) -> Exchange:
        """Send, read to the end, fill in ``seen``. Failures are named in ``seen.reason``, never raised."""
        import aiohttp

        clock = self.clock
        seen.sent_s = clock() - origin_s
        try:
            async with self._session.post(self._url, data=payload) as response:
                if response.status != 200:
                    text = await response.content.read(MAX_DETAIL_CHARS * 4)
                    raise BadStream(f"http_{response.status}", text.decode("utf-8", "replace"))
                await self._read(response, seen, origin_s)
        except BadStream as error:
            seen.reason, seen.detail = error.reason, error.detail[:MAX_DETAIL_CHARS]
        except TimeoutError:
            seen.reason, seen.detail = "timeout", f"no end within {self.target.timeout_s:g} s"
        except aiohttp.ClientConnectorError as error:
            seen.reason, seen.detail = "connection_refused", str(error)[:MAX_DETAIL_CHARS]
        except (aiohttp.ClientError, OSError) as error:
            seen.reason, seen.detail = "connection_lost", f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]
        seen.ended_s = clock() - origin_s
        return seen

    async def _read(self, response: aiohttp.ClientResponse, seen: Exchange, origin_s: float) -> None:
        reader, clock, token_s = EventReader(), self.clock, seen.token_s
        done = False
        async for data in response.content.iter_any():
            now_s = clock() - origin_s
            for event in reader.feed(data):
                if event == b"[DONE]":
                    done = True
                    continue
                piece = _decode(event)
                if piece.usage is not None:
                    _take_usage(seen, piece.usage)
                if piece.jouleway is not None:
                    seen.energy_joules = piece.jouleway.energy_joules
                    seen.gpu_seconds = piece.jouleway.gpu_seconds
                if any(choice.has_text() for choice in piece.choices):
                    token_s.append(now_s)
        if not done:
            raise BadStream("truncated", f"the stream ended without [DONE] after {len(token_s)} pieces of text")
        if not seen.counted_by_server:
            seen.output_tokens = len(token_s)
        if not token_s:
            raise BadStream("no_text", "the stream carried no output text")


def _decode(event: bytes) -> _Piece:
    try:
        piece = _DECODER.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadStream("bad_event", f"{error}") from error
    if bytes(piece.error) not in (b"", b"null"):
        raise BadStream("error_event", bytes(piece.error).decode("utf-8", "replace"))
    return piece


def _take_usage(seen: Exchange, usage: _Usage) -> None:
    seen.input_tokens = usage.prompt_tokens or 0
    if usage.prompt_tokens_details is not None:
        seen.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0
    if usage.completion_tokens is not None:
        seen.output_tokens = usage.completion_tokens
        seen.counted_by_server = True


@asynccontextmanager
async def open_session(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    """A session without a connection limit of its own: what waits for a connection would look like the server."""
    try:
        import aiohttp
    except ImportError as error:
        raise TargetError("aiohttp is missing: pip install 'jouleway[bench]'") from error
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=target.headers()) as session:
        yield session


async def find_model(target: Target, session: aiohttp.ClientSession) -> str:
    """The first model of ``GET /v1/models``. Raises: TargetError when there is none or the server refuses."""
    import aiohttp

    url = f"{target.base_url}/v1/models"
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=15)) as response:
            answer = await response.content.read(1 << 20)
            if response.status != 200:
                text = answer.decode("utf-8", "replace")[:MAX_DETAIL_CHARS]
                remedy = " (set --api-key or JOULEWAY_API_KEY)" if response.status in (401, 403) else ""
                raise TargetError(f"GET {url} answered {response.status}{remedy}: {text}")
            models = msgspec.json.decode(answer)["data"]
            return str(models[0]["id"])
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TargetError(f"{target.base_url} cannot be reached: {error or type(error).__name__}") from error
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
        raise TargetError(f"GET {url} names no model; set --model") from error


async def probe(client: Client, prompts: Prompts) -> TokenFit:
    """Two small requests: the server answers as asked, and how it counts words. Raises: TargetError when it refuses."""
    counts: list[int] = []
    for num_words in PROBE_WORDS:
        text = prompts.unique(f"probe {num_words}", num_words)
        planned = Planned(index=-1, due_s=0.0, input_tokens=num_words, output_tokens=2)
        seen = await client.exchange(Exchange(planned=planned, due_s=0.0), client.payload(text, 2), origin_s=0.0)
        if seen.reason is not None:
            raise TargetError(_probe_message(client.target, seen))
        counts.append(seen.input_tokens)
    if not all(counts):
        return TokenFit()
    return TokenFit.through((PROBE_WORDS[0], counts[0]), (PROBE_WORDS[1], counts[1]))


def _probe_message(target: Target, seen: Exchange) -> str:
    url = target.base_url + PATHS[target.endpoint]
    remedy = ""
    if seen.reason == "http_400" and target.exact_output:
        remedy = " (if it refuses ignore_eos or min_tokens: --no-exact-output)"
    elif seen.reason in ("http_401", "http_403"):
        remedy = " (set --api-key or JOULEWAY_API_KEY)"
    elif seen.reason == "http_404":
        remedy = f" (model {target.model!r}: see --model and --endpoint)"
    return f"the first request to {url} failed: {seen.reason}{remedy}: {seen.detail}"
