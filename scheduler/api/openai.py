"""The relay: an admitted body becomes a submission, the stream of its answer becomes an HTTP answer.

Called by ``scheduler.api.app`` for ``/v1/chat/completions`` and ``/v1/completions``. It must never know a worker, a
queue or a price, and it never keeps, logs or counts a text.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from scheduler.accounting.settlement import Charge
from scheduler.api.access import Caller
from scheduler.api.errors import ApiError, engine_error_body
from scheduler.api.exchange import JSON, Exchange, Receive, Send
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.api.schemas import CHAT_PATH, Ask, parse
from scheduler.api.streaming import EventStream, PatientSend, SlowReader
from scheduler.core.attempts import is_workers_fault
from scheduler.core.request import Band, Request
from scheduler.metrics import Metrics
from scheduler.streams import Body, End, Head, Stream, Submission
from workers.types import Outcome

logger = logging.getLogger("jouleway.api")

DEADLINE_HEADER = b"x-jouleway-deadline-s"
METERING_HEADER = b"x-jouleway-metering"

MODEL_MISSING = "This model does not exist here: see /v1/models."
CLIENT_GONE = "client_gone"
SLOW_READER = "slow_reader"
LOST_RETRY_AFTER_S = 1


class Submits(Protocol):
    """What the relay needs of a dispatcher."""

    def submit(self, submission: Submission) -> Stream: ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """One request on its way, and what is observed of it."""

    request: Request
    ask: Ask
    is_metered: bool
    created_unix_s: int
    dispatched_s: float | None = None
    first_byte_s: float | None = None
    end: End | None = None


class Relay:
    """Answers completions. One per control plane, on the dispatcher's event loop."""

    def __init__(
        self,
        *,
        dispatcher: Submits,
        models: Mapping[str, ServedModel],
        limits: RelayLimits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        cache_salt_key: bytes | None = None,
    ) -> None:
        """``cache_salt_key`` None: a new one, so that prefix caches are not shared with the process before."""
        self._dispatcher = dispatcher
        self._models = models
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._unix_clock = unix_clock
        self._salt_key = secrets.token_bytes(32) if cache_salt_key is None else cache_salt_key
        self._salts: dict[str, bytes] = {}

    async def answer(self, exchange: Exchange, body: bytes, *, caller: Caller, arrival_s: float) -> None:
        """From an admitted caller's body to the last byte. Raises: ApiError while nothing was sent."""
        call = self._call(exchange, body, caller=caller, arrival_s=arrival_s)
        salt = self._salt_of(caller.tenant)

        def render(max_output_tokens: int, priority: int) -> bytes:
            call.dispatched_s = self._clock()
            return b'%b,"cache_salt":"%b"}' % (call.ask.render(max_output_tokens)[:-1], salt)

        stream = self._dispatcher.submit(Submission(request=call.request, path=exchange.path, render=render))
        watch = asyncio.create_task(_watch(exchange.receive, stream), name=f"watch-{exchange.request_id}")
        plain_send = exchange.send
        try:
            async with PatientSend(plain_send, longest_s=self._limits.slow_reader_s) as exchange.send:
                await (self._stream if call.ask.is_stream else self._whole)(call, stream, exchange)
        except SlowReader:
            _abort_connection(plain_send)
            await self._give_up(call, stream, SLOW_READER)
        except OSError:  # how servers of ASGI 2.4 say that the client left
            await self._give_up(call, stream, CLIENT_GONE)
        finally:
            exchange.send = plain_send
            stream.close(CLIENT_GONE)
            watch.cancel()
            self._observe(call)

    # -- in

    def _call(self, exchange: Exchange, body: bytes, *, caller: Caller, arrival_s: float) -> _Call:
        limits = self._limits
        deadline_s = arrival_s + min(limits.request_timeout_s, _deadline(exchange.headers) or limits.request_timeout_s)
        is_metered = _is_metered(exchange.headers)
        ask = parse(exchange.path, body, max_output_tokens=limits.max_output_tokens)
        model = self._models.get(ask.model)
        if model is None:
            raise ApiError(404, MODEL_MISSING, code="model_not_found", param="model")
        request = Request(
            request_id=exchange.request_id,
            tenant=caller.tenant,
            project=caller.project,
            key_id=caller.key_id,
            model=model.name,
            band=max(Band.of_service_tier(ask.service_tier), caller.best_band),
            prompt_tokens_bound=ask.prompt_tokens_bound(model.expansion),
            max_output_tokens=ask.max_output_tokens or model.default_output_tokens,
            num_sequences=ask.num_sequences,
            arrival_s=arrival_s,
            deadline_s=deadline_s,
            body_bytes=len(ask.body),
        )
        return _Call(request=request, ask=ask, is_metered=is_metered, created_unix_s=int(self._unix_clock()))

    def _salt_of(self, tenant: str) -> bytes:
        """Keeps tenants' prefix caches apart (design §8): nobody can learn from timing what another one asked."""
        salt = self._salts.get(tenant)
        if salt is None:
            salt = hmac.new(self._salt_key, tenant.encode(), hashlib.sha256).hexdigest()[:32].encode()
            self._salts[tenant] = salt  # as many as there are configured tenants
        return salt

    # -- out

    async def _stream(self, call: _Call, stream: Stream, exchange: Exchange) -> None:
        events = EventStream(
            stream,
            exchange,
            keep_alive_s=self._limits.keep_alive_s,
            clock=self._clock,
            failure=failure_of,
            last_event=(lambda charge: _metering_event(call, charge)) if call.is_metered else None,
        )
        try:
            await events.run()
        finally:
            call.first_byte_s, call.end = events.first_byte_s, events.end

    async def _whole(self, call: _Call, stream: Stream, exchange: Exchange) -> None:
        """Head and body are held until the End: then the charge is durable and the status is sure."""
        head: Head | None = None
        parts: list[bytes] = []
        num_bytes = 0
        while not isinstance(item := await stream.next(), End):
            if isinstance(item, Body):
                parts.append(item.data)
                num_bytes += len(item.data)
                if num_bytes > self._limits.max_answer_bytes:
                    await self._give_up(call, stream, "answer_too_large")
                    raise ApiError(500, "The answer is too large: ask for a stream.", code="answer_too_large")
            elif isinstance(item, Head):
                head = item
        call.end = item
        if stream.is_closed:
            return
        if head is None or item.outcome not in (Outcome.COMPLETED, Outcome.REFUSED):
            raise failure_of(item)
        body = b"".join(parts)
        if head.status >= 400:
            body = engine_error_body(head.status, body)
        elif call.is_metered and item.charge is not None:
            body = _with_metering(body, item.charge)
        content_type = next(((b"content-type", value) for name, value in head.headers if name == b"content-type"), JSON)
        await exchange.respond(head.status, body, [content_type])

    async def _give_up(self, call: _Call, stream: Stream, reason: str) -> None:
        """Cancels the request and waits for its settlement, which the core bounds."""
        stream.close(reason)
        while not isinstance(item := await stream.next(), End):
            pass
        call.end = item

    # -- after

    def _observe(self, call: _Call) -> None:
        """One look at the whole exchange when it is over: nothing is measured per token."""
        request, end, arrival_s = call.request, call.end, call.request.arrival_s
        ended_s = self._clock()
        outcome = _outcome_of(end)
        ttft_s = tpot_s = None
        if call.first_byte_s is not None:
            ttft_s = call.first_byte_s - arrival_s
            charge = end.charge if end is not None else None
            if charge is not None and outcome == "completed":
                per_sequence = charge.output_tokens / request.num_sequences
                if per_sequence > 1:
                    tpot_s = (ended_s - call.first_byte_s) / (per_sequence - 1)
        self._metrics.observe(
            tenant=request.tenant,
            model=request.model,
            band=Band(request.band).name.lower(),
            outcome=outcome,
            queue_s=None if call.dispatched_s is None else call.dispatched_s - arrival_s,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_s=ended_s - arrival_s,
        )
        if outcome not in ("completed", "refused", "rejected"):
            cause = end.cause if end is not None else "broken_off"
            logger.info("request %s of %s ended: %s, %s", request.request_id, request.tenant, outcome, cause)


def _outcome_of(end: End | None) -> str:
    """completed, refused (by the engine), rejected (by us), aborted or failed."""
    if end is None:
        return "aborted"
    if end.rejection is not None:
        return "rejected"
    return end.outcome.value if end.outcome is not None else "failed"


async def _watch(receive: Receive, stream: Stream) -> None:
    """Hears the client leave, at any time."""
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.close(CLIENT_GONE)


def failure_of(end: End) -> ApiError:
    """Why there is no (whole) answer, in the client's terms; the word is the one that the log and metrics have."""
    if (rejection := end.rejection) is not None:
        is_late = rejection.reason.startswith("deadline")
        return ApiError(
            rejection.status,
            rejection.message,
            code=rejection.reason,
            param="model" if rejection.reason == "model_not_found" else None,
            retry_after_s=rejection.retry_after_s,
            should_retry=False if is_late else None,
        )
    cause = end.cause.partition(":")[0] or "engine_error"
    if cause == "deadline_exceeded":
        return ApiError(504, "The deadline passed before the answer was complete.", code=cause, should_retry=False)
    if cause == "shutting_down":
        return ApiError(503, "The service is shutting down.", code=cause, retry_after_s=LOST_RETRY_AFTER_S)
    if is_workers_fault(cause):
        message = "The worker that computed this answer was lost."
        return ApiError(503, message, code=cause, retry_after_s=LOST_RETRY_AFTER_S)
    return ApiError(500, "The engine failed on this request.", code=cause)


# -- headers of ours


def _deadline(headers: Mapping[bytes, list[bytes]]) -> float | None:
    """Seconds that the client gives, if it says so. Raises: ApiError 400."""
    values = headers.get(DEADLINE_HEADER)
    if values is None:
        return None
    try:
        seconds = float(values[0]) if len(values) == 1 and len(values[0]) <= 32 else math.nan
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        name = DEADLINE_HEADER.decode()
        raise ApiError(400, f"{name}: expected seconds above 0, once.", code="invalid_value", param=name)
    return seconds


def _is_metered(headers: Mapping[bytes, list[bytes]]) -> bool:
    """Whether the answer shall state joules. Raises: ApiError 400."""
    values = headers.get(METERING_HEADER)
    if values is None or values == [b"0"]:
        return False
    if values != [b"1"]:
        name = METERING_HEADER.decode()
        raise ApiError(400, f"{name}: expected 0 or 1, once.", code="invalid_value", param=name)
    return True


# -- joules so far


def _metering(charge: Charge) -> dict[str, Any]:
    """What the answer says of its energy: predicted so far; the posting will say what was measured."""
    return {
        "energy_joules": charge.provisional_mj / 1000,
        "gpu_seconds": charge.provisional_gpu_us / 1_000_000,
        "grade": charge.grade.value,
        "provisional": True,
        "request_id": charge.request_id,
    }


def _metering_event(call: _Call, charge: Charge) -> bytes:
    """One more chunk in OpenAI's shape, without choices, as the usage chunk is: every client reads it."""
    is_chat = call.ask.path == CHAT_PATH
    chunk: dict[str, Any] = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{charge.attempt_id}",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": call.created_unix_s,
        "model": call.request.model,
        "choices": [],
        "usage": {
            "prompt_tokens": charge.input_tokens,
            "completion_tokens": charge.output_tokens,
            "total_tokens": charge.input_tokens + charge.output_tokens,
            "prompt_tokens_details": {"cached_tokens": charge.cached_tokens},
        },
        "jouleway": _metering(charge),
    }
    return b"data: %b\n\n" % msgspec.json.encode(chunk)


def _with_metering(body: bytes, charge: Charge) -> bytes:
    """A whole answer with its joules beside the usage; a body that is no JSON object is left alone."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body
    return msgspec.json.encode({**fields, "jouleway": _metering(charge)})


def _abort_connection(send: Send) -> None:
    """Ends a connection whose client does not read: what waits in its buffer would otherwise hold it for ever.

    ASGI has no word for it; uvicorn's ``send`` is a method of the cycle that holds the transport.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
