"""An attempt's bytes pass unread and in order; it is charged once, each prompt billed once."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.attempts import Attempt, OutputBuffer, drive, usage_of
from workers.engine import Message, Receive, Scope, Send
from workers.types import Call, Chunk, Ended, Outcome, SequenceUsage, Started


def attempt_of(attempt_id: str = "req-a-1", **fields: object) -> Attempt:
    call = Call(attempt_id=attempt_id, path="/v1/completions", body=b"{}")
    return Attempt(call=call, started_s=1.0, **fields)  # type: ignore[arg-type]


def sequence_of(prompt_index: int = 0, **fields: int) -> SequenceUsage:
    values = {
        "prompt_tokens": 10,
        "cached_tokens": 0,
        "computed_prompt_tokens": 10,
        "generated_tokens": 5,
        "scheduled_tokens": 14,
    } | fields
    return SequenceUsage(engine_request_id=f"cmpl-{prompt_index}", prompt_index=prompt_index, **values)  # type: ignore[arg-type]


class ScriptedEngine:
    """An engine whose app sends the messages given, then obeys ``ending``."""

    def __init__(self, messages: list[Message], ending: str = "return") -> None:
        self.messages = messages
        self.ending = ending
        self.disconnected = False

    def request(self, call: Call) -> tuple[Scope, bytes]:
        if self.ending == "bad-request":
            raise ValueError("a prompt that must not leave")
        return {"type": "http", "path": call.path}, call.body

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert {"type": "http.request", "body": b"{}", "more_body": False} == await receive()
        for message in self.messages:
            await send(message)
        if self.ending == "raise":
            raise RuntimeError("a prompt that must not leave")
        if self.ending == "wait":
            assert {"type": "http.disconnect"} == await receive()
            self.disconnected = True


START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def run_drive(attempt: Attempt, engine: ScriptedEngine, buffer: OutputBuffer) -> None:
    asyncio.run(drive(attempt, engine=engine, buffer=buffer, clock=lambda: 2.5, on_output=lambda: None))  # type: ignore[arg-type]


def test_bytes_of_one_attempt_leave_joined_and_in_order() -> None:
    """Everything since the last report is one chunk; the start comes before, the end after."""
    attempt, buffer = attempt_of(), OutputBuffer()
    run_drive(attempt, ScriptedEngine([START, body(b"a"), body(b"b"), body(b"")]), buffer)
    buffer.end(attempt)
    expected = [
        Started("req-a-1", 200, [(b"content-type", b"text/plain")]),
        Chunk("req-a-1", b"ab"),
        Ended("req-a-1", Outcome.COMPLETED),
    ]
    assert expected == buffer.take()
    assert buffer.is_empty
    assert 2.5 == attempt.first_byte_s


@pytest.mark.parametrize(
    ("status", "abort_reason", "failure", "outcome"),
    [
        (200, "", "", Outcome.COMPLETED),
        (400, "", "", Outcome.REFUSED),
        (500, "", "", Outcome.FAILED),
        (None, "", "", Outcome.FAILED),
        (200, "client_gone", "", Outcome.ABORTED),
        (200, "client_gone", "engine_error:X", Outcome.ABORTED),
        (200, "", "stalled", Outcome.FAILED),
    ],
)
def test_outcome_names_who_ended_it(status: int | None, abort_reason: str, failure: str, outcome: Outcome) -> None:
    """An abort we ordered stays an abort; a broken engine is a failure; its 4xx is a refusal."""
    assert outcome == attempt_of(status=status, abort_reason=abort_reason, failure=failure).outcome


def test_a_raising_engine_is_noted_by_type_only() -> None:
    """The text of an engine's exception may hold a prompt and never leaves."""
    attempt, buffer = attempt_of(), OutputBuffer()
    run_drive(attempt, ScriptedEngine([START], ending="raise"), buffer)
    assert "engine_error:RuntimeError" == attempt.failure
    assert "prompt" not in attempt.cause


def test_a_request_that_cannot_be_built_ends_as_a_failure() -> None:
    """Whoever waits gets an answer, also when the engine cannot even build the scope."""
    attempt, buffer = attempt_of(), OutputBuffer()
    run_drive(attempt, ScriptedEngine([], ending="bad-request"), buffer)
    assert Outcome.FAILED == attempt.outcome


def test_a_disconnect_reaches_the_engine() -> None:
    """Aborting sets the event; the app sees http.disconnect through receive()."""

    async def scenario() -> ScriptedEngine:
        attempt, engine = attempt_of(), ScriptedEngine([START], ending="wait")
        task = asyncio.create_task(
            drive(attempt, engine=engine, buffer=OutputBuffer(), clock=lambda: 0.0, on_output=lambda: None)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0)
        attempt.disconnect.set()
        await task
        return engine

    assert asyncio.run(scenario()).disconnected


def test_a_full_buffer_holds_the_engine_back() -> None:
    """While nobody reads, send() waits: memory is bounded by max_bytes and one message."""

    async def scenario() -> tuple[int, bool]:
        buffer = OutputBuffer(max_bytes=4)
        engine = ScriptedEngine([START, body(b"aaaa"), body(b"bbbb")])
        task = asyncio.create_task(
            drive(attempt_of(), engine=engine, buffer=buffer, clock=lambda: 0.0, on_output=lambda: None)  # type: ignore[arg-type]
        )
        for _ in range(5):
            await asyncio.sleep(0)
        first = buffer.take()
        waited = not task.done()
        await task
        return sum(len(output.body) for output in first if isinstance(output, Chunk)), waited

    assert (4, True) == asyncio.run(scenario())


def test_children_of_n_share_their_prompt_and_prompts_of_a_list_do_not() -> None:
    """n = 2 bills the prompt once, a list of two prompts bills both."""
    attempt = attempt_of(status=200, sequences=(sequence_of(0), sequence_of(0, cached_tokens=10), sequence_of(1)))
    usage = usage_of(attempt, provisional=(7, 8))
    assert (20, 0, 15) == (usage.input_tokens, usage.cached_tokens, usage.output_tokens)
    assert (7, 8) == (usage.provisional_mj, usage.provisional_gpu_us)


def test_a_refused_attempt_is_charged_nothing() -> None:
    """The engine's own 400 ran no sequence."""
    usage = usage_of(attempt_of(status=400, sequences=()), provisional=(0, 0))
    assert (Outcome.REFUSED, 0, 0) == (usage.outcome, usage.input_tokens, usage.output_tokens)


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=0, max_size=5)), max_size=40), st.integers(1, 7))
def test_no_byte_is_lost_or_moved_between_attempts(writes: list[tuple[int, bytes]], take_every: int) -> None:
    """Whenever reports are taken, each attempt's chunks join to what its engine sent."""
    buffer = OutputBuffer()
    attempts = [attempt_of(f"req-{index}-1") for index in range(4)]
    sent = {attempt.call.attempt_id: b"" for attempt in attempts}
    received = dict(sent)
    outputs = []
    for position, (index, data) in enumerate(writes):
        buffer.put(attempts[index], body(data))
        sent[attempts[index].call.attempt_id] += data
        if position % take_every == 0:
            outputs += buffer.take()
    outputs += buffer.take()
    for output in outputs:
        assert isinstance(output, Chunk)
        received[output.attempt_id] += output.body
    assert sent == received
