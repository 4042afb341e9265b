"""An attempt's bytes pass unread and in order; it is charged once, each prompt billed once."""

import asyncio
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.attempts import Attempt, Attempts, OutputBuffer, drive, new_salt, usage_of
from workers.digests import SALT_BYTES, Stated
from workers.engine import Message, Receive, Scope, Send
from workers.types import Call, Chunk, Ended, Outcome, SequenceUsage, Started

SALT = bytes(range(SALT_BYTES))


def attempt_of(attempt_id: str = "req-a-1", **fields: object) -> Attempt:
    call = Call(attempt_id=attempt_id, path="/v1/completions", body=b"{}")
    return Attempt(call=call, started_s=1.0, **fields)  # type: ignore[arg-type]


def sequence_of(prompt_index: int = 0, **fields: object) -> SequenceUsage:
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
        self.salts: list[bytes] = []

    def request(self, call: Call, salt: bytes) -> tuple[Scope, bytes]:
        self.salts.append(salt)
        if self.ending == "bad-request":
            raise ValueError("a prompt that must not leave")
        return {"type": "http", "path": call.path}, call.body

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        assert ("http.request", False) == (message["type"], message["more_body"])
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


def test_parts_are_summed_as_their_wholes_are() -> None:
    """Media once a prompt, reasoning and bytes of every choice; digests in order, without those that have no text."""
    sequences = (
        sequence_of(0, image_tokens=3, reasoning_tokens=2, output_bytes=7, output_digest="aa"),
        sequence_of(0, image_tokens=3, reasoning_tokens=1, output_bytes=5, output_digest="bb"),
        sequence_of(1, audio_tokens=4, output_digest=""),
    )
    attempt = attempt_of(status=200, sequences=sequences, salt=SALT, asked=Stated(11, "cc"))
    usage = usage_of(attempt, provisional=(0, 0))
    assert (3, 4, 3) == (usage.image_tokens, usage.audio_tokens, usage.reasoning_tokens)
    assert (11, 12, "cc", ("aa", "bb")) == (
        usage.input_bytes, usage.output_bytes, usage.input_digest, usage.output_digests,
    )  # fmt: skip
    assert SALT.hex() == usage.salt


class House:
    """Attempts on a scripted engine, with salts that rise by one."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.final: list[Attempt] = []
        self.num_salts = 0
        self.attempts = Attempts(
            engine=engine,  # type: ignore[arg-type]
            buffer=OutputBuffer(),
            clock=lambda: 0.0,
            on_output=lambda: None,
            on_final=self.final.append,
            make_salt=self.make_salt,
        )
        engine.asgi_ended = lambda attempt_id: self.attempts.close(attempt_id, ())  # type: ignore[attr-defined]

    def make_salt(self) -> bytes:
        self.num_salts += 1
        return self.num_salts.to_bytes(SALT_BYTES)


async def test_each_attempt_has_a_salt_of_its_own_and_the_engine_knows_it() -> None:
    """What was asked is stated under it; equal bodies of two attempts have different digests."""
    engine = ScriptedEngine([START, body(b"a")])
    house = House(engine)
    for number in (1, 2):
        house.attempts.begin(Call(attempt_id=f"a-{number}", path="/v1/completions", body=b'{"prompt": "xy"}'))
        await house.attempts.wait_empty(1.0)
    one, two = (usage_of(attempt, provisional=(0, 0)) for attempt in house.final)
    assert [one.salt, two.salt] == [salt.hex() for salt in engine.salts] == [f"{1:032x}", f"{2:032x}"]
    assert (2, hashlib.sha256(engine.salts[0] + b'"xy"').hexdigest()) == (one.input_bytes, one.input_digest)
    assert one.input_digest != two.input_digest


async def test_of_an_attempt_that_is_refused_nothing_is_stated() -> None:
    """The engine was never asked: there is nothing to prove."""
    house = House(ScriptedEngine([]))
    house.attempts.begin(Call(attempt_id="a", path="/v1/completions", body=b'{"prompt": "xy"}'), refusal="worker_busy")
    usage = usage_of(house.final[0], provisional=(0, 0))
    assert ("", 0, "", ()) == (usage.salt, usage.input_bytes, usage.input_digest, usage.output_digests)
    assert 0 == house.num_salts


def test_salts_are_random_where_nobody_gives_them() -> None:
    """Sixteen bytes each."""
    salts = {new_salt() for _ in range(100)}
    assert (100, {SALT_BYTES}) == (len(salts), set(map(len, salts)))


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
