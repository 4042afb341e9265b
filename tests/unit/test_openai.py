"""The relay: what is submitted, what is answered, what is counted, on every way a request can end."""

import asyncio
import json
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from scheduler.api.access import Caller
from scheduler.api.errors import ApiError
from scheduler.api.exchange import Exchange, Message
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.api.openai import MODEL_MISSING, Relay, failure_of
from scheduler.core.actions import Rejection
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
        self.clock = Clock()
        self.client = Client()
        self.relay = Relay(
            dispatcher=self.dispatcher,
            models={"m": ServedModel(name="m", default_output_tokens=50, expansion=3)},
            limits=RelayLimits(**limits),
            metrics=self.metrics,
            clock=self.clock,
            unix_clock=lambda: 1_700_000_000.5,
            cache_salt_key=b"salt",
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
        raw = [(name.encode(), value.encode()) for name, value in headers]
        scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
        exchange = Exchange(scope, self.client.receive, self.client.send, request_id="req-a")
        caller = Caller(tenant=tenant, project="p", key_id="key-1", best_band=best_band)
        data = json.dumps(HELLO if body is None else body).encode()
        return asyncio.create_task(self.relay.answer(exchange, data, caller=caller, arrival_s=self.clock.now_s))

    async def stream(self) -> Stream:
        return await self.dispatcher.stream()

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


async def test_without_a_limit_of_its_own_the_models_default_applies() -> None:
    """Never the whole context."""
    bench = Bench()
    bench.ask()
    await bench.stream()
    assert 50 == bench.dispatcher.submissions[0].request.max_output_tokens
    bench.client.gone.set()


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


@pytest.mark.parametrize(
    ("tier", "best_band", "expected"),
    [
        (None, Band.PRIORITY, Band.DEFAULT),
        ("auto", Band.PRIORITY, Band.DEFAULT),
        ("priority", Band.PRIORITY, Band.PRIORITY),
        ("priority", Band.DEFAULT, Band.DEFAULT),
        (None, Band.FLEX, Band.FLEX),
        ("flex", Band.PRIORITY, Band.FLEX),
    ],
)
async def test_service_tier_is_a_band_that_the_caller_may_have(
    tier: str | None, best_band: Band, expected: Band
) -> None:
    """A higher tier than the key allows is lowered, as OpenAI does, not refused."""
    bench = Bench()
    bench.ask({**HELLO, **({"service_tier": tier} if tier else {})}, best_band=best_band)
    await bench.stream()
    assert expected == bench.dispatcher.submissions[0].request.band
    bench.client.gone.set()


@pytest.mark.parametrize(("asked", "expected_s"), [("2.5", 102.5), ("1e9", 160.0)])
async def test_a_deadline_can_only_be_tightened(asked: str, expected_s: float) -> None:
    """The operator's bound holds whatever the client says."""
    bench = Bench(request_timeout_s=60.0)
    bench.ask(headers=[("x-jouleway-deadline-s", asked)])
    await bench.stream()
    assert expected_s == bench.dispatcher.submissions[0].request.deadline_s
    bench.client.gone.set()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "", "1" * 40])
async def test_a_deadline_that_is_none_is_refused(value: str) -> None:
    """A wrong header is an error that names it, never a silent default."""
    bench = Bench()
    error = await bench.refused(headers=[("x-jouleway-deadline-s", value)])
    assert (400, "x-jouleway-deadline-s") == (error.status, error.param)
    assert [] == bench.dispatcher.submissions


async def test_a_deadline_given_twice_is_refused() -> None:
    """Nobody could say which one was meant."""
    error = await Bench().refused(headers=[("x-jouleway-deadline-s", "1"), ("x-jouleway-deadline-s", "2")])
    assert 400 == error.status


async def test_a_metering_header_that_is_neither_0_nor_1_is_refused() -> None:
    """The same."""
    error = await Bench().refused(headers=[("x-jouleway-metering", "yes")])
    assert (400, "x-jouleway-metering") == (error.status, error.param)


async def test_an_unknown_model_is_not_found() -> None:
    """Before it takes a place in a queue."""
    bench = Bench()
    error = await bench.refused({**HELLO, "model": "gpt-x"})
    assert (404, "model_not_found", "model", MODEL_MISSING) == (error.status, error.code, error.param, error.message)
    assert [] == bench.dispatcher.submissions


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
        "energy_joules": 1.5, "gpu_seconds": 0.25, "grade": "A", "provisional": True, "request_id": "req-a",
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
    bench = Bench(FakeDispatcher(rejection=rejection))
    error = await bench.refused(body)
    assert (503, "queue_full", 7, "Full.", None) == (
        error.status, error.code, error.retry_after_s, error.message, error.should_retry,
    )  # fmt: skip
    assert "rejected" == bench.metrics.observed[0]["outcome"]
    assert [] == bench.dispatcher.closed


@pytest.mark.parametrize(
    ("end", "status", "code", "retry_after_s", "should_retry"),
    [
        (End(outcome=Outcome.FAILED, cause="worker_lost"), 503, "worker_lost", 1, None),
        (End(outcome=Outcome.FAILED, cause="stalled"), 503, "stalled", 1, None),
        (End(outcome=Outcome.FAILED, cause="engine_error:ValueError"), 500, "engine_error", None, None),
        (End(outcome=Outcome.FAILED, cause=""), 500, "engine_error", None, None),
        (End(outcome=Outcome.FAILED, cause="render_failed"), 500, "render_failed", None, None),
        (End(outcome=Outcome.ABORTED, cause="deadline_exceeded"), 504, "deadline_exceeded", None, False),
        (End(outcome=Outcome.ABORTED, cause="shutting_down"), 503, "shutting_down", 1, None),
        (
            End(rejection=Rejection(reason="deadline_infeasible", status=504, message="Late.")),
            504, "deadline_infeasible", None, False,
        ),
    ],
)  # fmt: skip
def test_every_end_without_an_answer_has_a_status(
    end: End, status: int, code: str, retry_after_s: int | None, should_retry: bool | None
) -> None:
    """Whoever lost a worker may try again; whoever is late need not."""
    error = failure_of(end)
    assert (status, code, retry_after_s, should_retry) == (
        error.status, error.code, error.retry_after_s, error.should_retry,
    )  # fmt: skip


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
