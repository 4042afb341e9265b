"""The relay: what is submitted, what is answered, what is counted, on every way a request can end."""

import asyncio
import dataclasses
import json
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.api.exchange import Exchange, Message
from scheduler.api.intake import Intake
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.api.openai import Relay
from scheduler.core.actions import Rejection, Shortage
from scheduler.core.budget_accounts import BudgetState, Level, Measure
from scheduler.core.request import Band
from scheduler.metrics import Metrics
from scheduler.streams import End, Stream
from tests.fake_dispatcher import JSON, FakeDispatcher, completed, head
from workers.types import Outcome

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = b'{"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}'


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Seen(Metrics):
    """Keeps what was observed."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: list[dict[str, Any]] = []

    def observe(self, **values: Any) -> None:  # type: ignore[override]
        self.observed.append(values)
        super().observe(**values)


class Client:
    """Sends a body, reads what comes, hangs up when told."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.messages: list[Message] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.error_on_send: OSError | None = None

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.error_on_send is not None:
            raise self.error_on_send
        await self.may_read.wait()
        self.messages.append(message)

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


class Bench:
    """A relay over a fake dispatcher."""

    def __init__(self, dispatcher: FakeDispatcher | None = None, **limits: Any) -> None:
        self.dispatcher = dispatcher or FakeDispatcher()
        self.metrics = Seen()
        self.clock, self.unix_clock = Clock(), Clock()
        self.unix_clock.now_s = 1_700_000_000.5
        self.client = Client()
        self.relay = Relay(
            dispatcher=self.dispatcher,
            intake=Intake(
                models={"m": ServedModel(name="m", default_output_tokens=50, expansion=3)},
                limits=RelayLimits(**limits),
                salt_key=b"salt",
                unix_clock=self.unix_clock,
            ),
            limits=RelayLimits(**limits),
            metrics=self.metrics,
            clock=self.clock,
            unix_clock=self.unix_clock,
        )

    def ask(
        self,
        body: dict[str, Any] | None = None,
        *,
        path: str = CHAT,
        headers: Iterable[tuple[str, str]] = (),
        best_band: Band = Band.PRIORITY,
        tenant: str = "alpha",
    ) -> asyncio.Task[None]:
        """Begins a request."""
        return self.exchange_and_task(body, path=path, headers=headers, best_band=best_band, tenant=tenant)[1]

    def exchange_and_task(
        self,
        body: dict[str, Any] | None = None,
        *,
        path: str = CHAT,
        headers: Iterable[tuple[str, str]] = (),
        best_band: Band = Band.PRIORITY,
        tenant: str = "alpha",
    ) -> tuple[Exchange, asyncio.Task[None]]:
        raw = [(name.encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
        exchange = Exchange(scope, self.client.receive, self.client.send, request_id="req-a")
        caller = Caller(tenant=tenant, project="p", key_id="key-1", best_band=best_band)
        data = json.dumps(HELLO if body is None else body).encode()
        answer = self.relay.answer(exchange, data, caller=caller, arrival_s=self.clock.now_s)
        return exchange, asyncio.create_task(answer)

    async def stream(self) -> Stream:
        return await self.dispatcher.stream()

    async def stream_number(self, index: int) -> Stream:
        """Once there is one."""
        async with asyncio.timeout(5):
            while len(self.dispatcher.streams) <= index:
                await asyncio.sleep(0)
        return self.dispatcher.streams[index]

    async def refused(self, body: dict[str, Any] | None = None, **ask: Any) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await asyncio.wait_for(self.ask(body, **ask), 5)
        return caught.value


# -- what is submitted


async def test_a_body_becomes_a_request_of_its_caller() -> None:
    """Everything the core needs, nothing of the text."""
    bench = Bench(request_timeout_s=60.0)
    task = bench.ask({**HELLO, "max_tokens": 9, "n": 2})
    (await bench.stream()).put_end(completed())
    await asyncio.gather(task, return_exceptions=True)
    submission = bench.dispatcher.submissions[0]
    request = submission.request
    assert ("req-a", "alpha", "p", "key-1", "m") == (
        request.request_id, request.tenant, request.project, request.key_id, request.model,
    )  # fmt: skip
    assert (9, 2, 100.0, 160.0) == (
        request.max_output_tokens, request.num_sequences, request.arrival_s, request.deadline_s,
    )  # fmt: skip
    assert request.prompt_tokens_bound >= 3 * len("hello")
    assert CHAT == submission.path


async def test_the_engine_gets_the_cap_and_the_tenants_salt() -> None:
    """The engine itself ends the text; prefix caches of tenants are apart, those of one tenant are shared."""
    bench = Bench()
    for tenant in ("alpha", "alpha", "beta"):
        bench.dispatcher._submitted.clear()
        bench.ask({**HELLO, "max_tokens": 9, "service_tier": "flex"}, tenant=tenant)
        await bench.stream()
    bodies = [json.loads(each.render(5, 2)) for each in bench.dispatcher.submissions]
    assert [5, 5, 5] == [body["max_completion_tokens"] for body in bodies]
    first, second, other = (body["cache_salt"] for body in bodies)
    assert first == second != other
    assert "service_tier" not in bodies[0]
    bench.client.gone.set()


# -- whole answers


async def test_a_whole_answer_waits_for_its_charge() -> None:
    """Head and body are here; nothing leaves before the End."""
    bench = Bench()
    task = bench.ask()
    stream = await bench.stream()
    stream.put_head(head(200, JSON, (b"server", b"engine"), (b"x-request-id", b"req-a-1")))
    stream.put_body(ANSWER[:30])
    await asyncio.sleep(0)
    stream.put_body(ANSWER[30:])
    await asyncio.sleep(0.002)
    assert [] == bench.client.messages
    stream.put_end(completed())
    await task
    expected = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    assert [*expected, (b"x-request-id", b"req-a")] == bench.client.messages[0]["headers"]
    assert (200, ANSWER) == (bench.client.status, bench.client.body)


async def test_joules_so_far_stand_beside_the_usage() -> None:
    """On request, marked provisional, with their grade."""
    bench = Bench()
    task = bench.ask(headers=[("x-jouleway-metering", "1")])
    stream = await bench.stream()
    stream.put_head(head(200, JSON))
    stream.put_body(ANSWER)
    stream.put_end(completed(request_id="req-a"))
    await task
    fields = json.loads(bench.client.body)
    assert {
        "cost_nano": 0, "currency": "USD", "energy_joules": 1.5, "gpu_seconds": 0.25, "grade": "A", "provisional": True,
        "request_id": "req-a",
    } == fields.pop("jouleway")  # fmt: skip
    assert json.loads(ANSWER) == fields


async def test_a_metered_answer_that_is_no_object_is_left_alone() -> None:
    """What an engine says is passed on, whatever it is."""
    bench = Bench()
    task = bench.ask(headers=[("x-jouleway-metering", "1")])
    stream = await bench.stream()
    stream.put_head(head(200, JSON))
    stream.put_body(b"[1]")
    stream.put_end(completed())
    await task
    assert b"[1]" == bench.client.body


async def test_an_engines_refusal_is_passed_in_our_shape() -> None:
    """A context that is too long is said with OpenAI's word for it."""
    bench = Bench()
    task = bench.ask()
    stream = await bench.stream()
    stream.put_head(head(400, JSON))
    message = "This model's maximum context length is 2048 tokens."
    stream.put_body(json.dumps({"error": {"message": message, "type": "BadRequestError", "code": 400}}).encode())
    stream.put_end(End(outcome=Outcome.REFUSED))
    await task
    error = json.loads(bench.client.body)["error"]
    assert (400, "context_length_exceeded", message) == (bench.client.status, error["code"], error["message"])
    assert "refused" == bench.metrics.observed[0]["outcome"]


async def test_a_body_whose_attempt_failed_after_all_is_not_sent() -> None:
    """Half an answer is no answer."""
    bench = Bench()
    task = bench.ask()
    stream = await bench.stream()
    stream.put_head(head(200, JSON))
    stream.put_body(ANSWER[:30])
    stream.put_end(End(outcome=Outcome.FAILED, cause="worker_lost"))
    with pytest.raises(ApiError) as caught:
        await task
    assert (503, "worker_lost") == (caught.value.status, caught.value.code)
    assert ("failed", []) == (bench.metrics.observed[0]["outcome"], bench.client.messages)


async def test_an_answer_too_large_to_hold_is_ended() -> None:
    """Memory is bounded; a stream would have no such bound."""
    bench = Bench(max_answer_bytes=100)
    task = bench.ask()
    stream = await bench.stream()
    stream.put_head(head(200, JSON))
    stream.put_body(b"x" * 101)
    with pytest.raises(ApiError) as caught:
        await task
    assert (500, "answer_too_large") == (caught.value.status, caught.value.code)
    assert [("req-a", "answer_too_large")] == bench.dispatcher.closed


# -- streams


STREAM = {**HELLO, "stream": True}


async def test_a_metered_stream_ends_with_a_usage_chunk_in_openais_shape() -> None:
    """Clients read it as they read the usage chunk: no choices, then [DONE]."""
    bench = Bench()
    task = bench.ask(STREAM, headers=[("x-jouleway-metering", "1")])
    stream = await bench.stream()
    stream.put_head(head())
    stream.put_body(b"data: {}\n\ndata: [DONE]\n\n")
    stream.put_end(completed(attempt_id="req-a-1"))
    await task
    first, last, done = [event.removeprefix(b"data: ") for event in bench.client.body.split(b"\n\n")[:3]]
    assert (b"{}", b"[DONE]") == (first, done)
    chunk = json.loads(last)
    assert ("chatcmpl-req-a-1", "chat.completion.chunk", 1_700_000_000, "m", []) == (
        chunk["id"], chunk["object"], chunk["created"], chunk["model"], chunk["choices"],
    )  # fmt: skip
    assert {
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4},
    } == chunk["usage"]  # fmt: skip
    assert (1.5, True) == (chunk["jouleway"]["energy_joules"], chunk["jouleway"]["provisional"])


async def test_a_metered_completion_says_text_completion() -> None:
    """The other route has its own words."""
    bench = Bench()
    body = {"model": "m", "prompt": "x", "stream": True}
    task = bench.ask(body, path="/v1/completions", headers=[("x-jouleway-metering", "1")])
    stream = await bench.stream()
    stream.put_head(head())
    stream.put_body(b"data: [DONE]\n\n")
    stream.put_end(completed(attempt_id="req-a-1"))
    await task
    chunk = json.loads(bench.client.body.split(b"\n\n")[0].removeprefix(b"data: "))
    assert ("cmpl-req-a-1", "text_completion") == (chunk["id"], chunk["object"])


async def test_times_are_observed_once_per_request() -> None:
    """Queue to the dispatch, first token to the first byte, per token over the rest."""
    bench = Bench()
    task = bench.ask(STREAM)
    stream = await bench.stream()
    bench.clock.now_s = 102.0
    bench.dispatcher.submissions[0].render(5, 1)
    bench.clock.now_s = 103.0
    stream.put_head(head())
    stream.put_body(b"data: 1\n\n")
    await asyncio.sleep(0.002)
    bench.clock.now_s = 105.0
    stream.put_end(completed())
    await task
    assert [
        {
            "tenant": "alpha", "model": "m", "band": "default", "outcome": "completed",
            "queue_s": 2.0, "ttft_s": 3.0, "tpot_s": 1.0, "e2e_s": 5.0,
        }
    ] == bench.metrics.observed  # fmt: skip


# -- refusals and failures


@pytest.mark.parametrize("body", [HELLO, STREAM])
async def test_a_rejection_is_an_error_with_status_reason_and_retry(body: dict[str, Any]) -> None:
    """The reason is the code, the same word as in metrics and log."""
    rejection = Rejection(reason="queue_full", status=503, retry_after_s=7, message="Full.")
    bench = Bench(FakeDispatcher(rejections=[rejection]))
    error = await bench.refused(body)
    assert (503, "queue_full", 7, "Full.", None) == (
        error.status, error.code, error.retry_after_s, error.message, error.should_retry,
    )  # fmt: skip
    assert "rejected" == bench.metrics.observed[0]["outcome"]
    assert [] == bench.dispatcher.closed


# -- budgets


def short(fits_prompt_tokens: int | None, *, needed: int = 5000) -> Rejection:
    """A budget of 100 tokens refused."""
    shortage = Shortage(
        level="tenant alpha", measure="tokens", window="1d", limit=100, left=60, needed=needed,
        fits_prompt_tokens=fits_prompt_tokens,
    )  # fmt: skip
    return Rejection(reason="insufficient_quota", status=429, message=f"Needs {needed}.", shortage=shortage)


async def test_an_answer_says_how_its_budgets_stand_when_it_begins() -> None:
    """Asked at that moment, which may be in another window than the arrival."""
    bench = Bench()
    level = Level("tenant", "alpha")
    task = bench.ask()
    stream = await bench.stream()
    bench.unix_clock.now_s += 60
    bench.dispatcher.states = [
        BudgetState(level, Measure.TOKENS, "1h", 100, 40, 20, 40, bench.unix_clock.now_s + 90),
    ]
    stream.put_head(head(200, JSON))
    stream.put_body(ANSWER)
    stream.put_end(completed())
    await task
    found = {name: value for name, value in bench.client.messages[0]["headers"] if name.startswith(b"x-ratelimit-")}
    assert {
        b"x-ratelimit-limit-tokens": b"100",
        b"x-ratelimit-remaining-tokens": b"40",
        b"x-ratelimit-reset-tokens": b"1m30s",
    } == found
    assert [1_700_000_060.5] == bench.dispatcher.quota_asked_at_unix_s


async def test_a_refusal_by_budget_has_the_headers_too() -> None:
    """Whoever is refused needs them most; they are asked when the error is sent."""
    bench = Bench(FakeDispatcher(rejections=[short(None)]))
    bench.dispatcher.states = [BudgetState(Level("tenant", "alpha"), Measure.REQUESTS, "1m", 5, 5, 0, 0, None)]
    exchange, task = bench.exchange_and_task()
    with pytest.raises(ApiError) as caught:
        await task
    await exchange.fail(caught.value)
    assert (b"x-ratelimit-remaining-requests", b"0") in bench.client.messages[0]["headers"]
    assert (b"x-should-retry", b"false") in bench.client.messages[0]["headers"]


async def test_where_only_the_bound_was_refused_an_engine_counts() -> None:
    """The request is submitted again with its real tokens, under the same id."""
    bench = Bench(FakeDispatcher(rejections=[short(40)]))
    task = bench.ask()
    question = await bench.stream_number(1)
    assert ("/tokenize", True) == (
        (asked := bench.dispatcher.submissions[1]).path, asked.request.is_counting,
    )  # fmt: skip
    question.put_head(head(200, JSON))
    question.put_body(b'{"count":12}')
    question.put_end(completed())
    stream = await bench.stream_number(2)
    first, again = bench.dispatcher.submissions[0].request, bench.dispatcher.submissions[2].request
    assert dataclasses.replace(first, prompt_tokens_bound=12) == again
    stream.put_head(head(200, JSON))
    stream.put_body(ANSWER)
    stream.put_end(completed())
    await asyncio.wait_for(task, 5)
    assert 200 == bench.client.status
    assert ["completed"] == [seen["outcome"] for seen in bench.metrics.observed]


async def test_a_prompt_that_is_too_long_is_refused_with_its_real_figures() -> None:
    """The second refusal names what it really needs."""
    bench = Bench(FakeDispatcher(rejections=[short(40), None, short(40, needed=95)]))
    task = bench.ask()
    question = await bench.stream_number(1)
    question.put_head(head(200, JSON))
    question.put_body(b'{"count":45}')
    question.put_end(completed())
    with pytest.raises(ApiError) as caught:
        await asyncio.wait_for(task, 5)
    assert (429, "Needs 95.") == (caught.value.status, caught.value.message)
    assert 3 == len(bench.dispatcher.submissions)


@pytest.mark.parametrize("count", [b'{"count":1000000}', b"{}"])
async def test_a_count_that_does_not_help_leaves_the_refusal(count: bytes) -> None:
    """No better bound, or none at all."""
    bench = Bench(FakeDispatcher(rejections=[short(40)]))
    task = bench.ask()
    question = await bench.stream_number(1)
    question.put_head(head(200, JSON))
    question.put_body(count)
    question.put_end(completed())
    with pytest.raises(ApiError) as caught:
        await asyncio.wait_for(task, 5)
    assert (429, 2) == (caught.value.status, len(bench.dispatcher.submissions))


async def test_a_budget_that_no_prompt_fits_asks_no_engine() -> None:
    """The refusal is final."""
    bench = Bench(FakeDispatcher(rejections=[short(None)]))
    assert 429 == (await bench.refused()).status
    assert 1 == len(bench.dispatcher.submissions)


# -- idempotency keys


KEY = [("idempotency-key", "k-1")]


async def answered(bench: Bench, body: dict[str, Any] = HELLO, end: End | None = None) -> None:
    """One whole run under the key."""
    num_before = len(bench.dispatcher.streams)
    task = bench.ask(body, headers=KEY)
    stream = await bench.stream_number(num_before)
    stream.put_head(head(200) if body.get("stream") else head(200, JSON))
    stream.put_body(b"data: {}\n\ndata: [DONE]\n\n" if body.get("stream") else ANSWER)
    stream.put_end(end or completed(attempt_id="req-a-1"))
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("body", [HELLO, STREAM])
async def test_a_key_that_ran_answers_with_its_usage(body: dict[str, Any]) -> None:
    """Status, tokens and the id of the receipt in the shape of the route; nothing runs, and no text comes back."""
    bench = Bench()
    await answered(bench, body)
    bench.client.messages.clear()
    await bench.ask(body, headers=KEY)
    assert (200, 1) == (bench.client.status, len(bench.dispatcher.submissions))
    assert (b"x-jouleway-replayed", b"1") in bench.client.messages[0]["headers"]
    events = bench.client.body.split(b"\n\n")
    fields = json.loads(events[0].removeprefix(b"data: "))
    assert ("chatcmpl-req-a-1", [], 10, "req-x") == (
        fields["id"], fields["choices"], fields["usage"]["total_tokens"], fields["jouleway"]["request_id"],
    )  # fmt: skip
    if body is STREAM:
        assert ("chat.completion.chunk", b"data: [DONE]") == (fields["object"], events[1])
    else:
        assert "chat.completion" == fields["object"]


async def test_a_key_in_flight_conflicts() -> None:
    """The first run goes on; another body is told apart at once."""
    bench = Bench()
    bench.ask(headers=KEY)
    await bench.stream()
    assert 409 == (await bench.refused(headers=KEY)).status
    assert 422 == (await bench.refused({**HELLO, "seed": 1}, headers=KEY)).status
    assert 1 == len(bench.dispatcher.submissions)
    bench.client.gone.set()


@pytest.mark.parametrize(
    "end",
    [
        End(outcome=Outcome.FAILED, cause="worker_lost"),
        End(outcome=Outcome.ABORTED, cause="deadline_exceeded"),
        End(rejection=Rejection(reason="queue_full", status=503, message="Full."), cause="queue_full"),
    ],
)
async def test_what_was_not_answered_may_run_again(end: End) -> None:
    """A failure is not remembered."""
    bench = Bench()
    await answered(bench, end=end)
    bench.client.messages.clear()
    await answered(bench)
    assert (200, ANSWER, 2) == (bench.client.status, bench.client.body, len(bench.dispatcher.submissions))


async def test_a_client_that_left_before_the_end_may_ask_again() -> None:
    """Its key is free once the request was settled."""
    bench = Bench()
    task = bench.ask(headers=KEY)
    await bench.stream()
    bench.client.gone.set()
    await task
    bench.client.gone.clear()
    await answered(bench)
    assert 200 == bench.client.status


async def test_keys_of_tenants_do_not_meet() -> None:
    """The same words, two requests."""
    bench = Bench()
    bench.ask(headers=KEY)
    await bench.stream_number(0)
    bench.ask(headers=KEY, tenant="beta")
    await bench.stream_number(1)
    bench.client.gone.set()


# -- who leaves


@pytest.mark.parametrize("body", [HELLO, STREAM])
@pytest.mark.parametrize("when", ["queued", "prefill", "begun"])
async def test_a_client_that_leaves_cancels_its_request(body: dict[str, Any], when: str) -> None:
    """Queued, in prefill or while it reads: the stream is closed at once and the exchange ends with the End."""
    bench = Bench(FakeDispatcher(ends_on_close=False))
    task = bench.ask(body)
    stream = await bench.stream()
    if when != "queued":
        bench.dispatcher.submissions[0].render(5, 1)
    if when == "begun":
        stream.put_head(head())
        stream.put_body(b"data: 1\n\n")
        await asyncio.sleep(0.002)
    bench.client.gone.set()
    await asyncio.sleep(0.002)
    assert [("req-a", "client_gone")] == bench.dispatcher.closed
    assert not task.done()
    stream.put_end(End(outcome=Outcome.ABORTED, cause="client_gone"))
    await asyncio.wait_for(task, 1)
    assert "aborted" == bench.metrics.observed[0]["outcome"]


async def test_a_client_that_leaves_after_the_end_changes_nothing() -> None:
    """The request is over: there is nothing to cancel."""
    bench = Bench()
    task = bench.ask(STREAM)
    stream = await bench.stream()
    stream.put_head(head())
    stream.put_body(b"data: 1\n\ndata: [DONE]\n\n")
    stream.put_end(completed())
    await task
    bench.client.gone.set()
    await asyncio.sleep(0.002)
    assert [] == bench.dispatcher.closed
    assert "completed" == bench.metrics.observed[0]["outcome"]


async def test_a_send_that_says_the_client_left_cancels_too() -> None:
    """ASGI 2.4 servers raise OSError out of send."""
    bench = Bench()
    task = bench.ask(STREAM)
    stream = await bench.stream()
    bench.client.error_on_send = BrokenPipeError()
    stream.put_head(head())
    stream.put_body(b"data: 1\n\n")
    await asyncio.wait_for(task, 1)
    assert [("req-a", "client_gone")] == bench.dispatcher.closed
    assert "aborted" == bench.metrics.observed[0]["outcome"]


async def test_a_slow_reader_is_cancelled_and_its_connection_ended() -> None:
    """What waits in the socket's buffer would hold the connection for ever."""
    bench = Bench(slow_reader_s=0.02)
    bench.client.may_read.clear()
    aborted: list[bool] = []

    class Transport:
        def abort(self) -> None:
            aborted.append(True)

    bench.client.transport = Transport()  # type: ignore[attr-defined]
    task = bench.ask(STREAM)
    stream = await bench.stream()
    stream.put_head(head())
    stream.put_body(b"data: 1\n\n")
    await asyncio.wait_for(task, 1)
    assert [("req-a", "slow_reader")] == bench.dispatcher.closed
    assert [True] == aborted
    assert "aborted" == bench.metrics.observed[0]["outcome"]


async def test_a_relay_that_is_cancelled_cancels_its_request() -> None:
    """A server that stops leaves nothing running for nobody."""
    bench = Bench()
    task = bench.ask(STREAM)
    await bench.stream()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [("req-a", "client_gone")] == bench.dispatcher.closed


async def test_what_went_wrong_is_one_line_with_the_id(caplog: pytest.LogCaptureFixture) -> None:
    """A failed request can be found; a completed one says nothing."""
    caplog.set_level(logging.DEBUG, logger="jouleway.api")
    for end in (completed(), End(outcome=Outcome.FAILED, cause="worker_lost")):
        bench = Bench()
        task = bench.ask(STREAM)
        (await bench.stream()).put_head(head())
        bench.dispatcher.streams[0].put_end(end)
        await task
    assert ["request req-a of alpha ended: failed, worker_lost"] == [record.message for record in caplog.records]
