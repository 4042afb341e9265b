"""The relay: an admitted body becomes a submission, the stream of its answer becomes an HTTP answer.

Called by ``scheduler.api.app`` for every route that generates. It must never know a worker, a queue or a price, and it
never keeps, logs or counts a text.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from scheduler.accounting.settlement import Charge
from scheduler.api.access import Caller
from scheduler.api.counting import Counting, fits_prompt_tokens
from scheduler.api.errors import ApiError, engine_error
from scheduler.api.exchange import JSON, Exchange, Header, Receive, Send
from scheduler.api.failures import failure_of
from scheduler.api.idempotency import Idempotency, Run
from scheduler.api.intake import Admitted, Intake
from scheduler.api.limits import RelayLimits
from scheduler.api.metering_note import note_event, usage_body, usage_stream, with_note
from scheduler.api.quota_headers import SHOWN, Standing, quota_headers
from scheduler.api.streaming import EVENT_STREAM, EventStream, PatientSend, SlowReader
from scheduler.core.request import Band, Request
from scheduler.metrics import Metrics
from scheduler.streams import Body, End, Head, Stream, Submission
from workers.types import Outcome

logger = logging.getLogger("jouleway.api")

CLIENT_GONE = "client_gone"
SLOW_READER = "slow_reader"
REPLAYED: Header = (b"x-jouleway-replayed", b"1")


class Submits(Protocol):
    """What the relay needs of a dispatcher."""

    def submit(self, submission: Submission) -> Stream: ...

    def quota(self, request: Request, at_unix_s: float, measures: Iterable[str]) -> Iterable[Standing]: ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Call:
    """One request on its way, and what is observed of it."""

    admitted: Admitted
    created_unix_s: int
    dispatched_s: float | None = None
    first_byte_s: float | None = None
    end: End | None = None

    @property
    def request(self) -> Request:
        return self.admitted.request


class Relay:
    """Answers completions. One per control plane, on the dispatcher's event loop."""

    def __init__(
        self,
        *,
        dispatcher: Submits,
        intake: Intake,
        limits: RelayLimits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._dispatcher = dispatcher
        self._intake = intake
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._unix_clock = unix_clock
        self._counting = Counting(submit=dispatcher.submit, clock=clock)
        self._idempotency = Idempotency(clock=clock)

    async def answer(self, exchange: Exchange, body: bytes, *, caller: Caller, arrival_s: float) -> None:
        """From an admitted caller's body to the last byte. Raises: ApiError while nothing was sent."""
        admitted = self._intake.admit(
            exchange.path, exchange.headers, body, caller=caller, arrival_s=arrival_s, request_id=exchange.request_id
        )
        call = _Call(admitted=admitted, created_unix_s=int(self._unix_clock()))
        run = self._begin_run(admitted, body)
        if run is None:
            await self._run(call, exchange)
        elif run.charge is not None:
            await self._replay(call, run.charge, exchange)
        else:
            try:
                await self._run(call, exchange)
            finally:
                self._idempotency.end(run, _charge_of(call.end))

    async def _run(self, call: _Call, exchange: Exchange) -> None:
        exchange.late_headers = lambda: self._quota_headers(call.request)
        stream = await self._submit(call)
        watch = asyncio.create_task(_watch(exchange.receive, stream), name=f"watch-{exchange.request_id}")
        plain_send = exchange.send
        try:
            async with PatientSend(plain_send, longest_s=self._limits.slow_reader_s) as exchange.send:
                await (self._stream if call.admitted.ask.is_stream else self._whole)(call, stream, exchange)
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

    def _begin_run(self, admitted: Admitted, body: bytes) -> Run | None:
        """None where the client gave no key. Raises: ApiError 409, 422, 503."""
        key = admitted.wishes.idempotency_key
        if key is None:
            return None
        return self._idempotency.begin(admitted.request.tenant, key, admitted.ask.path, body, salt=admitted.salt)

    async def _submit(self, call: _Call) -> Stream:
        """Where a budget refused the bound of the prompt but not every prompt, its real tokens decide."""
        stream = self._dispatcher.submit(self._submission(call))
        if fits_prompt_tokens(stream.end) is None:
            return stream
        request = call.request
        counted = await self._counting.prompt_tokens(call.admitted)
        if counted is None or counted >= request.prompt_tokens_bound:
            return stream
        request = dataclasses.replace(request, prompt_tokens_bound=counted)
        call.admitted = dataclasses.replace(call.admitted, request=request)
        return self._dispatcher.submit(self._submission(call))

    def _submission(self, call: _Call) -> Submission:
        ask, salt = call.admitted.ask, call.admitted.salt

        def render(max_output_tokens: int, priority: int) -> bytes:
            call.dispatched_s = self._clock()
            return b'%b,"cache_salt":"%b"}' % (ask.render(max_output_tokens)[:-1], salt)

        return Submission(request=call.request, path=ask.path, render=render)

    def _quota_headers(self, request: Request) -> list[Header]:
        """How its budgets stand when the answer begins, which may be in another window than its arrival."""
        now_unix_s = self._unix_clock()
        return quota_headers(self._dispatcher.quota(request, now_unix_s, SHOWN), now_unix_s)

    # -- out

    async def _replay(self, call: _Call, charge: Charge, exchange: Exchange) -> None:
        """This key ran before: its usage and the id of its receipt; the text is not kept."""
        path, currency = call.admitted.ask.path, call.request.rates.currency
        if call.admitted.ask.is_stream:
            body = usage_stream(charge, path=path, currency=currency, created_unix_s=call.created_unix_s)
            await exchange.respond(200, body, [(b"content-type", EVENT_STREAM), REPLAYED])
        else:
            body = usage_body(charge, path=path, currency=currency, created_unix_s=call.created_unix_s)
            await exchange.respond(200, body, [JSON, REPLAYED])

    async def _stream(self, call: _Call, stream: Stream, exchange: Exchange) -> None:
        events = EventStream(
            stream,
            exchange,
            keep_alive_s=self._limits.keep_alive_s,
            clock=self._clock,
            failure=failure_of,
            last_event=self._note_of(call),
        )
        try:
            await events.run()
        finally:
            call.first_byte_s, call.end = events.first_byte_s, events.end

    def _note_of(self, call: _Call) -> Callable[[Charge], bytes] | None:
        """What is written before the last event, where the client asked for it."""
        if not call.admitted.wishes.is_metered:
            return None
        path, currency = call.admitted.ask.path, call.request.rates.currency
        return lambda charge: note_event(charge, path=path, currency=currency, created_unix_s=call.created_unix_s)

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
            body = exchange.dialect.error_body(engine_error(head.status, body))
        elif call.admitted.wishes.is_metered and item.charge is not None:
            body = with_note(body, item.charge, currency=call.request.rates.currency)
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


def _charge_of(end: End | None) -> Charge | None:
    """Of a whole answer; None where there was none, so that it may be asked again."""
    return end.charge if end is not None and end.outcome is Outcome.COMPLETED else None


async def _watch(receive: Receive, stream: Stream) -> None:
    """Hears the client leave, at any time."""
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.close(CLIENT_GONE)


def _abort_connection(send: Send) -> None:
    """Ends a connection whose client does not read: what waits in its buffer would otherwise hold it for ever.

    ASGI has no word for it; uvicorn's ``send`` is a method of the cycle that holds the transport.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.abort()
