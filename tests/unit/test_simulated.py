"""The simulated engine's face: OpenAI's answers, steps and closing records, aborts, faults, its counter."""

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from workers.digests import stated_of
from workers.engines import simulated
from workers.engines.simulated import SimulatedEngine
from workers.engines.simulated_openai import WORDS, count_tokens, hash_blocks, text_of
from workers.errors import EngineStartError, MeterUnavailable
from workers.simulated_counter import CounterFile
from workers.steps import StepRecord
from workers.types import Call, MeterSpec, Progress, SequenceUsage, WorkerSpec

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
CANARY = "xylophone-canary"
SALT = bytes(range(16))


class Sink:
    """Keeps what an engine reports."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.closed: dict[str, tuple[SequenceUsage, ...]] = {}
        self.deaths: list[str] = []

    def on_step(self, step: StepRecord) -> None:
        self.steps.append(step)

    def on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        assert attempt_id not in self.closed, "closed twice"
        self.closed[attempt_id] = sequences

    def on_dropped(self, num_records: int) -> None:
        raise AssertionError("a simulated engine drops nothing")

    def on_engine_dead(self, cause: str) -> None:
        self.deaths.append(cause)

    def scheduled(self, attempt_id: str) -> int:
        """Tokens in the step records of an attempt."""
        return sum(
            int(step.prefill_tokens[row] + step.decode_tokens[row] + step.recomputed_tokens[row])
            for step in self.steps
            for row, payer in enumerate(step.payers)
            if payer == attempt_id
        )


class Reply:
    """What an ASGI client saw."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message.get("body")]

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.bodies))

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events of a stream, which must end with [DONE]."""
        events = b"".join(self.bodies).decode().removesuffix("\n\n").split("\n\n")
        assert events.pop() == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events]

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content", "") for chunk in self.chunks for choice in chunk["choices"])


class Client:
    """Drives one engine as a worker does."""

    def __init__(self, engine: SimulatedEngine, sink: Sink) -> None:
        self.engine = engine
        self.sink = sink
        self.num_calls = 0

    async def post(self, path: str, *, leave: asyncio.Event | None = None, priority: int = 0, **fields: Any) -> Reply:
        return await self.raw(path, json.dumps({"model": "sim", **fields}).encode(), leave=leave, priority=priority)

    async def chat(self, text: str = "Tell me. " * 20, **fields: Any) -> Reply:
        return await self.post(CHAT, messages=[{"role": "user", "content": text}], **fields)

    async def raw(self, path: str, body: bytes, *, leave: asyncio.Event | None = None, priority: int = 0) -> Reply:
        self.num_calls += 1
        attempt_id = f"req-{self.num_calls}-1"
        scope, given = self.engine.request(Call(attempt_id=attempt_id, path=path, body=body, priority=priority), SALT)
        reply = Reply()
        is_read = False

        async def receive() -> dict[str, Any]:
            nonlocal is_read
            if not is_read:
                is_read = True
                return {"type": "http.request", "body": given, "more_body": False}
            await (leave or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            reply.messages.append(dict(message))

        try:
            await self.engine.app(scope, receive, send)
        finally:
            self.engine.asgi_ended(attempt_id)
        return reply

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)


Start = Callable[..., Awaitable[Client]]


def spec(*, meter: MeterSpec | None = None, seed: int = 0, **engine_args: Any) -> WorkerSpec:
    arguments = {"fixed_step_s": 0.001, "refresh_s": 0.02, **engine_args}
    return WorkerSpec(
        worker_id="w1", engine="simulated", model="sim", seed=seed, engine_args=arguments, meter=meter or MeterSpec()
    )


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    engines: list[SimulatedEngine] = []

    async def starting(**changes: Any) -> Client:
        engine, sink = SimulatedEngine(spec(**changes)), Sink()
        engines.append(engine)
        await engine.start(sink)
        return Client(engine, sink)

    yield starting
    for engine in engines:
        await engine.stop()


# -- answers


async def test_streamed_chat_is_vllms(start: Start) -> None:
    """Role first, a chunk per token, the reason in the last, usage when asked for, then [DONE]."""
    client = await start()
    reply = await client.chat(max_tokens=5, ignore_eos=True, stream=True, stream_options={"include_usage": True})
    assert (reply.status, dict(reply.messages[0]["headers"])[b"content-type"]) == (
        200,
        b"text/event-stream; charset=utf-8",
    )
    *chunks, usage = reply.chunks
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["length"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-req-1-1"}
    assert [chunk["usage"] for chunk in chunks] == [None] * 6
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 5)


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/responses", {"input": "Tell me.", "max_output_tokens": 6}),
     ("/v1/messages", {"messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 6})],
)  # fmt: skip
async def test_the_other_routes_stream_the_text_of_their_whole_answer(
    start: Start, path: str, fields: dict[str, Any]
) -> None:
    """Named events; the tokens are those of the closing record."""
    client = await start()
    whole = await client.post(path, seed=4, ignore_eos=True, **fields)
    streamed = await client.post(path, seed=4, ignore_eos=True, stream=True, **fields)
    part = whole.json["output"][0] if "output" in whole.json else whole.json
    text = part["content"][0]["text"]
    events = [json.loads(event.split(b"data: ")[1]) for event in b"".join(streamed.bodies).split(b"\n\n") if event]
    deltas = [
        event["delta"] for event in events if event["type"].endswith((".delta", "_delta")) and "usage" not in event
    ]
    assert text == "".join(delta if isinstance(delta, str) else delta["text"] for delta in deltas)
    assert 6 == len(deltas) == whole.json["usage"]["output_tokens"]
    assert [6, 6] == [client.sink.closed[f"req-{call}-1"][0].generated_tokens for call in (1, 2)]


async def test_an_embedding_computes_its_prompts_and_generates_nothing(start: Start) -> None:
    """A sequence an input; what was scheduled is what was computed."""
    client = await start()
    reply = await client.post("/v1/embeddings", input=["one two", "three four five"])
    await client.until(lambda: "req-1-1" in client.sink.closed)
    records = client.sink.closed["req-1-1"]
    num_tokens = count_tokens(b"one two") + count_tokens(b"three four five")
    assert (200, 2, num_tokens) == (reply.status, len(reply.json["data"]), reply.json["usage"]["prompt_tokens"])
    assert num_tokens == client.sink.scheduled("req-1-1") == sum(each.computed_prompt_tokens for each in records)
    assert ([0, 0], ["stop", "stop"], [0, 0]) == (
        [each.generated_tokens for each in records], [each.finish_reason for each in records],
        [each.token_difference for each in records],
    )  # fmt: skip
    assert {(each.output_bytes, each.output_digest) for each in records} == {(0, "")}


@pytest.mark.parametrize(("path", "name"), [("/tokenize", "count"), ("/v1/messages/count_tokens", "input_tokens")])
async def test_tokens_can_be_counted(start: Start, path: str, name: str) -> None:
    """Nothing runs; both of vLLM's routes say the same of the same chat."""
    client = await start()
    reply = await client.post(path, messages=[{"role": "user", "content": "Tell me."}])
    assert (200, count_tokens(b"<|user|>Tell me.")) == (reply.status, reply.json[name])
    assert [] == client.sink.steps


async def test_one_message_per_token(start: Start) -> None:
    """The role travels with the first token, [DONE] with the last: 7 tokens are 7 sends."""
    client = await start()
    reply = await client.chat(max_tokens=7, ignore_eos=True, stream=True)
    assert len(reply.bodies) == 7
    assert [message.get("more_body") for message in reply.messages[1:]] == [True] * 6 + [False]


async def test_whole_chat_equals_its_stream(start: Start) -> None:
    """The same seed gives the same text, streamed or not."""
    client = await start()
    asked = {"max_tokens": 9, "ignore_eos": True, "seed": 4}
    whole, streamed = await client.chat(**asked), await client.chat(**asked, stream=True)
    assert whole.json["choices"][0]["message"] == {"role": "assistant", "content": streamed.text}
    assert whole.json["usage"]["completion_tokens"] == len(streamed.text.split()) == 9


async def test_completions_answer_each_prompt_and_choice(start: Start) -> None:
    """Two prompts with two choices: four sequences in order, each prompt counted once."""
    client = await start()
    reply = await client.post(COMPLETIONS, prompt=["one two", "three four five"], n=2, max_tokens=3, ignore_eos=True)
    assert [choice["index"] for choice in reply.json["choices"]] == [0, 1, 2, 3]
    assert reply.json["usage"]["prompt_tokens"] == count_tokens(b"one two") + count_tokens(b"three four five")
    assert [each.prompt_index for each in client.sink.closed["req-1-1"]] == [0, 0, 1, 1]


async def test_completion_stream_carries_text(start: Start) -> None:
    """Completions have no role and no delta."""
    client = await start()
    reply = await client.post(COMPLETIONS, prompt=[1, 2, 3], max_tokens=2, ignore_eos=True, stream=True)
    texts = [chunk["choices"][0]["text"] for chunk in reply.chunks]
    assert (len(texts), all(text.encode() in WORDS for text in texts)) == (2, True)


async def test_continuous_usage_counts_up(start: Start) -> None:
    """vLLM's benchmark client asks for it."""
    client = await start()
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await client.chat(max_tokens=4, ignore_eos=True, stream=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in reply.chunks if chunk["usage"]]
    assert counts == [1, 2, 3, 4]


async def test_answer_ends_by_itself_without_ignore_eos(start: Start) -> None:
    """A seeded draw, below the limit: reason stop."""
    client = await start(output_tokens_mean=3.0)
    reply = await client.chat(max_tokens=500)
    choice, usage = reply.json["choices"][0], reply.json["usage"]
    assert (choice["finish_reason"], usage["completion_tokens"] < 500) == ("stop", True)


async def test_min_tokens_is_kept(start: Start) -> None:
    """Benchmark clients fix the length with it."""
    client = await start(output_tokens_mean=1.0)
    reply = await client.chat(max_tokens=20, min_tokens=20)
    assert reply.json["usage"]["completion_tokens"] == 20


async def test_same_seed_gives_the_same_answers() -> None:
    """Deterministic across engines; another seed differs."""
    texts = []
    for seed in (1, 1, 2):
        engine = SimulatedEngine(spec(seed=seed))
        client = Client(engine, Sink())
        await engine.start(client.sink)
        replies = [await client.chat(max_tokens=30) for _ in range(3)]
        texts.append([reply.json["choices"][0]["message"]["content"] for reply in replies])
        await engine.stop()
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def digest_of(text: str) -> tuple[int, str]:
    """What is to be stated of a text, as its client computes it."""
    return stated_of(SALT, text.encode())


async def test_the_texts_that_clients_got_are_stated(start: Start) -> None:
    """Streamed and whole, of every choice and prompt, in their order."""
    client = await start()
    fields = {"prompt": ["one two", "three"], "n": 2, "max_tokens": 5, "ignore_eos": True}
    whole = await client.post(COMPLETIONS, **fields)
    streamed = await client.post(COMPLETIONS, **fields, stream=True)
    texts = dict.fromkeys(range(4), "")
    for chunk in streamed.chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    for name, got in (("req-1-1", [each["text"] for each in whole.json["choices"]]), ("req-2-1", list(texts.values()))):
        assert [digest_of(text) for text in got] == [
            (each.output_bytes, each.output_digest) for each in client.sink.closed[name]
        ]


async def test_nothing_of_the_prompt_comes_out(start: Start) -> None:
    """Not in the answer, not in the step records, not in an error."""
    client = await start()
    reply = await client.chat(CANARY * 5, max_tokens=20, ignore_eos=True, stream=True)
    refused = await client.chat(CANARY, max_tokens=0)
    seen = b"".join(reply.bodies) + b"".join(refused.bodies) + repr(client.sink.steps).encode()
    assert CANARY.encode() not in seen
    assert {" " + word for word in reply.text.split()} <= {word.decode() for word in WORDS}


async def test_other_routes(start: Start) -> None:
    """Models, health, tokenize; what is not there is 404 or 405."""
    client = await start()
    models = await client.raw("/v1/models", b"")
    assert [card["id"] for card in models.json["data"]] == ["sim"]
    assert (await client.raw("/health", b"")).status == 200
    assert (await client.post("/tokenize", prompt="12345678")).json["count"] == 2
    assert (await client.post("/tokenize", messages=[{"role": "user", "content": "hi"}])).json["count"] >= 3
    assert ((await client.raw("/nowhere", b"")).status, (await client.raw(CHAT, b"")).status) == (404, 405)
    assert client.engine.progress() == []


# -- refusals


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "JSON"),
        (b"[1]", 400, "object"),
        (b'{"messages":[{"role":"user","content":NaN}]}', 400, "JSON"),
        (b'{"a":' * 100_000, 400, "JSON"),
        (b'{"model":"other","messages":[{"role":"user","content":"x"}]}', 404, "other"),
        (b'{"messages":[]}', 400, "messages"),
        (b'{"messages":[{"content":"x"}]}', 400, "role"),
        (b'{"messages":[{"role":"user","content":5}]}', 400, "content"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":0}', 400, "max_tokens"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":-3}', 400, "max_tokens"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":"7"}', 400, "max_tokens"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":999999999}', 400, "maximum context length"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":5,"min_tokens":6}', 400, "min_tokens"),
        (b'{"messages":[{"role":"user","content":"x"}],"n":1000000000}', 400, "n must be at most"),
        (b'{"messages":[{"role":"user","content":"x"}],"n":true}', 400, "n must be an integer"),
        (b'{"messages":[{"role":"user","content":"x"}],"stream_options":5}', 400, "stream_options"),
    ],
)
async def test_refusal_is_shaped_like_vllms(start: Start, body: bytes, status: int, named: str) -> None:
    """An error object with message, type, param and a numeric code; no sequence ran."""
    client = await start()
    reply = await client.raw(CHAT, body)
    error = reply.json["error"]
    assert (reply.status, error["code"], named in error["message"]) == (status, status, True)
    assert set(error) == {"message", "type", "param", "code"}
    assert (client.sink.closed, client.sink.steps) == ({"req-1-1": ()}, [])


async def test_prompt_of_nothing_is_refused(start: Start) -> None:
    """Completions take text or token ids, not an empty list."""
    client = await start()
    for prompt in ([], [1, "a"], None, {}):
        assert (await client.post(COMPLETIONS, prompt=prompt)).status == 400


# -- steps and closing records


async def test_closing_record_balances_and_follows_the_end(start: Start) -> None:
    """The token identity, and the same count in the step records."""
    client = await start()
    await asyncio.gather(*[client.chat(f"{index} " * 40 * index, max_tokens=10 + index) for index in range(8)])
    assert len(client.sink.closed) == 8
    for attempt_id, sequences in client.sink.closed.items():
        assert [each.token_difference for each in sequences] == [0]
        assert sequences[0].exact
        assert client.sink.scheduled(attempt_id) == sequences[0].scheduled_tokens
    assert client.engine.load().num_running == 0


async def test_steps_are_in_order_and_do_not_overlap(start: Start) -> None:
    """One device: a step begins when the one before has ended."""
    client = await start()
    await asyncio.gather(*[client.chat(max_tokens=20) for _ in range(4)])
    steps = client.sink.steps
    assert [step.step for step in steps] == list(range(len(steps)))
    assert all(left.ended_s <= right.started_s for left, right in itertools.pairwise(steps))
    assert all(step.ended_s - step.started_s == pytest.approx(0.001) for step in steps)


async def test_repeated_prompt_hits_the_cache(start: Start) -> None:
    """Billed as cached, and said so in the usage."""
    client = await start()
    for _ in range(2):
        reply = await client.chat("the same words again and again " * 10, max_tokens=2, ignore_eos=True)
    cached = client.sink.closed["req-2-1"][0].cached_tokens
    assert (cached > 0, reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]) == (True, cached)


async def test_progress_tells_each_change_once(start: Start) -> None:
    """Cumulative counts of running attempts; nothing when nothing moved."""
    client = await start()
    task = asyncio.create_task(client.chat(max_tokens=10_000, ignore_eos=True, n=2))
    await client.until(lambda: len(client.sink.steps) >= 5)
    told = client.engine.progress()
    assert [type(each) for each in told] == [Progress]
    assert (told[0].attempt_id, told[0].output_tokens >= 8, client.engine.progress()) == ("req-1-1", True, [])
    task.cancel()


async def test_priority_reaches_the_scheduler(start: Start) -> None:
    """With one place, the urgent request overtakes those that wait."""
    client = await start(max_sequences=1)
    first = asyncio.create_task(client.chat(max_tokens=20, ignore_eos=True))
    await client.until(lambda: client.engine.load().num_running == 1)
    order: list[str] = []

    async def later(name: str, priority: int) -> None:
        await client.chat(max_tokens=2, ignore_eos=True, priority=priority)
        order.append(name)

    await asyncio.gather(first, later("patient", 9), later("urgent", 1))
    assert order == ["urgent", "patient"]


# -- aborts


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_aborts(start: Start, stream: bool) -> None:
    """The client leaves: its sequences end with the step in flight, their tokens are settled."""
    client, leave = await start(), asyncio.Event()
    task = asyncio.create_task(client.chat(max_tokens=100_000, ignore_eos=True, n=2, stream=stream, leave=leave))
    await client.until(lambda: len(client.sink.steps) >= 5)
    leave.set()
    await task
    await client.until(lambda: "req-1-1" in client.sink.closed)
    sequences = client.sink.closed["req-1-1"]
    assert [(each.finish_reason, each.token_difference, each.exact) for each in sequences] == [("abort", 0, True)] * 2
    assert client.sink.scheduled("req-1-1") == sum(each.scheduled_tokens for each in sequences)
    load = client.engine.load()
    assert (load.num_running, load.kv_used_tokens) == (0, 0)


async def test_of_an_aborted_stream_what_was_put_out_is_stated(start: Start) -> None:
    """Not the token of the step in flight; of a whole answer what was generated."""
    client, leave = await start(), asyncio.Event()
    fields: dict[str, Any] = {"prompt": "x", "max_tokens": 100_000, "ignore_eos": True, "leave": leave}
    tasks = [asyncio.create_task(client.post(COMPLETIONS, **fields, stream=is_stream)) for is_stream in (True, False)]
    await client.until(lambda: len(client.sink.steps) >= 5)
    leave.set()
    streamed, _ = await asyncio.gather(*tasks)
    await client.until(lambda: len(client.sink.closed) == 2)
    stated = {name: each[0] for name, each in client.sink.closed.items()}
    events = b"".join(streamed.bodies).decode().removesuffix("\n\n").split("\n\n")
    text = "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events)
    assert digest_of(text) == (stated["req-1-1"].output_bytes, stated["req-1-1"].output_digest)
    assert stated["req-2-1"].output_bytes > stated["req-2-1"].generated_tokens > 0


async def test_cancelled_task_aborts_too(start: Start) -> None:
    """The worker cancels what does not obey."""
    client = await start()
    task = asyncio.create_task(client.chat(max_tokens=100_000, ignore_eos=True, stream=True))
    await client.until(lambda: len(client.sink.steps) >= 3)
    task.cancel()
    await client.until(lambda: "req-1-1" in client.sink.closed)
    assert client.engine.load().num_running == 0


async def test_client_that_leaves_before_its_body_costs_nothing(start: Start) -> None:
    """No answer, no sequence."""
    client = await start()
    scope, _ = client.engine.request(Call(attempt_id="a", path=CHAT, body=b"{}"), SALT)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError(f"nobody is there to read {message}")

    await client.engine.app(scope, receive, send)
    client.engine.asgi_ended("a")
    assert client.sink.closed == {"a": ()}


async def test_slow_reader_gets_its_tokens_joined(start: Start) -> None:
    """While one send waits, later tokens gather; another stream is not held up."""
    client = await start()
    gate, bodies = asyncio.Event(), []
    scope, body = client.engine.request(
        Call(
            attempt_id="slow", path=COMPLETIONS, body=b'{"prompt":"x","max_tokens":30,"ignore_eos":true,"stream":true}'
        ),
        SALT,
    )
    is_read = False

    async def receive() -> dict[str, Any]:
        nonlocal is_read
        if is_read:
            await asyncio.Event().wait()
        is_read = True
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        if message.get("body"):
            bodies.append(message["body"])
            await gate.wait()

    slow = asyncio.create_task(client.engine.app(scope, receive, send))
    await client.until(lambda: len(bodies) == 1)
    fast = await client.chat(max_tokens=40, ignore_eos=True, stream=True)
    gate.set()
    await slow
    assert (len(fast.bodies), len(bodies)) == (40, 2)
    assert b"".join(bodies).count(b'"text":" ') == 30


# -- faults


async def test_hang_stops_steps_until_resumed(start: Start) -> None:
    """Nothing ends while the device hangs; afterwards everything does."""
    client = await start()
    task = asyncio.create_task(client.chat(max_tokens=30, ignore_eos=True))
    await client.until(lambda: len(client.sink.steps) >= 2)
    client.engine.hang()
    await asyncio.sleep(0.01)
    num_steps = len(client.sink.steps)
    await asyncio.sleep(0.02)
    assert (len(client.sink.steps), task.done()) == (num_steps, False)
    client.engine.resume()
    assert (await task).status == 200


async def test_lost_closing_record_is_declared(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung engine never closes the sequence: after a bound it is closed without it, and says so."""
    monkeypatch.setattr(simulated, "LOST_AFTER_S", 0.02)
    client, leave = await start(), asyncio.Event()
    task = asyncio.create_task(client.chat(max_tokens=1_000, ignore_eos=True, leave=leave))
    await client.until(lambda: len(client.sink.steps) >= 2)
    client.engine.hang()
    leave.set()
    await task
    await client.until(lambda: "req-1-1" in client.sink.closed)
    lost = client.sink.closed["req-1-1"][0]
    assert (lost.exact, lost.output_bytes > 0, len(lost.output_digest)) == (False, True, 64)
    client.engine.resume()
    await client.until(lambda: client.engine.load().num_running == 0)
    assert len(client.sink.closed) == 1


async def test_death_is_told_and_ends_everybody(start: Start) -> None:
    """Streams get an error chunk, others a 500; later requests a 500 at once; every attempt is closed."""
    client = await start()
    tasks = [asyncio.create_task(client.chat(max_tokens=9_000, ignore_eos=True, stream=is_stream))
             for is_stream in (True, False)]  # fmt: skip
    await client.until(lambda: len(client.sink.steps) >= 3)
    client.engine.die()
    streamed, whole = await asyncio.gather(*tasks)
    assert (streamed.status, streamed.chunks[-1]["error"]["code"], whole.status) == (200, 500, 500)
    assert (await client.chat()).status == 500
    assert ((await client.raw("/health", b"")).status, len(client.sink.deaths)) == (503, 1)
    assert sorted(client.sink.closed) == ["req-1-1", "req-2-1", "req-3-1", "req-4-1"]
    assert client.sink.closed["req-1-1"][0].exact is False


async def test_timed_faults_strike(start: Start) -> None:
    """The switches of engine_args: slow, then dead."""
    client = await start(slow_after_s=0.01, slow_ratio=5.0, die_after_s=0.06)
    await client.chat(max_tokens=9_000, ignore_eos=True)
    durations = [step.ended_s - step.started_s for step in client.sink.steps]
    assert (min(durations), max(durations)) == (pytest.approx(0.001), pytest.approx(0.005))
    assert client.sink.deaths


async def test_meter_faults_strike(start: Start) -> None:
    """A lost meter comes back; a reset counter begins anew."""
    client = await start(meter_lost_after_s=0.0, meter_lost_for_s=0.02)
    counter, clock = client.engine.counter, asyncio.get_running_loop().time
    await asyncio.sleep(0.005)
    with pytest.raises(MeterUnavailable):
        counter.read(clock())
    await client.chat(max_tokens=50, ignore_eos=True)
    before_mj = counter.read(clock()).counter_mj
    counter.reset(clock())
    assert 0 <= counter.read(clock()).counter_mj < before_mj


def test_process_death_leaves_the_counter(tmp_path: Path) -> None:
    """os._exit in the middle of work: an observer reads the file, the next engine continues it."""
    path = tmp_path / "counter"
    script = (
        "import asyncio, sys\n"
        "from workers.engines.simulated import SimulatedEngine, _NoSink\n"
        "from workers.types import MeterSpec, WorkerSpec\n"
        "spec = WorkerSpec(worker_id='w', engine='simulated', model='m', meter=MeterSpec(counter_path=sys.argv[1]),\n"
        "    engine_args={'die_after_s': 0.2, 'die_mode': 'process', 'refresh_s': 0.02})\n"
        "async def main():\n"
        "    engine = SimulatedEngine(spec)\n"
        "    await engine.start(_NoSink())\n"
        "    await engine.calibrate(60)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 137, run.stderr
    left_mj = CounterFile(path).read().counter_mj
    assert left_mj > 20_000  # 0.2 s at more than 100 W
    again = SimulatedEngine(spec(meter=MeterSpec(counter_path=str(path))))
    assert again.counter.publish(0.0).counter_mj == left_mj


async def test_failed_start_carries_last_lines() -> None:
    """As a real engine's would."""
    with pytest.raises(EngineStartError) as caught:
        await SimulatedEngine(spec(start_fails=True)).start(Sink())
    assert caught.value.last_lines == ("start_fails",)


# -- energy and calibration


async def test_counter_shows_idle_and_steps(start: Start) -> None:
    """Every step's true energy and the idle watts between: nothing else, nothing less."""
    client = await start(idle_watts=50.0, energy_noise_ratio=0.0)
    clock, counter = asyncio.get_running_loop().time, client.engine.counter
    began = counter.read(clock())
    await client.chat(max_tokens=40, ignore_eos=True)
    await asyncio.sleep(0.045)
    ended = counter.read(clock())
    true_joules = sum(
        client.engine.core.energy.step_joules(step.prefill_tokens, step.decode_tokens, step.context_tokens)
        for step in client.sink.steps
    )
    busy_s = sum(step.ended_s - step.started_s for step in client.sink.steps)
    expected_mj = 1000 * (true_joules + 50.0 * (ended.at_s - began.at_s - busy_s))
    assert ended.counter_mj - began.counter_mj == pytest.approx(expected_mj, abs=2)


async def test_calibration_pays_for_itself_and_ends_idle(start: Start) -> None:
    """1, 4 and 16 sequences, prefill chunks, then nothing: all without a payer."""
    client = await start(fixed_step_s=0.0005)
    await client.engine.calibrate(0.25)
    steps = client.sink.steps
    assert {payer for step in steps for payer in step.payers} == {None}
    assert {1, 4, 16} <= {len(step.payers) for step in steps}
    assert max(int(step.prefill_tokens.max()) for step in steps) >= 1_000
    await client.until(lambda: client.engine.load().num_running == 0)
    assert (client.engine.load().num_waiting, client.engine.load().kv_used_tokens) == (0, 0)
    assert (await client.chat(max_tokens=2, ignore_eos=True)).status == 200


async def test_late_loop_does_not_starve_the_device(start: Start) -> None:
    """The event loop stalls for 20 ms: the device goes on where its last step ended."""
    client = await start(fixed_step_s=0.005)
    task = asyncio.create_task(client.chat(max_tokens=20, ignore_eos=True))
    await client.until(lambda: len(client.sink.steps) >= 2)
    until_s = asyncio.get_running_loop().time() + 0.02
    while asyncio.get_running_loop().time() < until_s:
        pass
    await task
    steps = client.sink.steps
    assert all(left.ended_s == right.started_s for left, right in itertools.pairwise(steps))


# -- words and tokens


def test_tokens_are_four_bytes_and_at_least_one() -> None:
    """A deterministic split without a vocabulary."""
    assert [count_tokens(text) for text in (b"", b"a", b"abcd", b"abcde")] == [1, 1, 1, 2]


def test_block_hash_covers_everything_before_it() -> None:
    """Equal prefixes share their leading hashes; a change in the first block changes all."""
    left = hash_blocks(b"a" * 128 + b"left" * 16, block_tokens=16)
    right = hash_blocks(b"a" * 128 + b"rite" * 16, block_tokens=16)
    other = hash_blocks(b"b" + b"a" * 127 + b"left" * 16, block_tokens=16)
    assert (len(left), left[:2] == right[:2], left[2] == right[2]) == (3, True, False)
    assert not set(left) & set(other)


def test_words_are_the_same_everywhere() -> None:
    """Pinned: a change would change every recorded simulated answer."""
    assert (len(set(WORDS)), text_of(0, 3)) == (256, WORDS[0] + WORDS[37] + WORDS[74])
    assert all(word.decode().isascii() and word.startswith(b" ") for word in WORDS)


# -- parked and started again


async def test_a_parked_engine_counts_on_and_starts_with_an_empty_cache() -> None:
    """Its device draws parked and start watts meanwhile; the counter is one, and what was cached is gone."""
    now_s = 0.0
    options = {"start_s": 0.02, "start_watts": 200.0, "parked_watts": 60.0, "idle_watts": 100.0, "refresh_s": 0.1}
    engine, sink = SimulatedEngine(spec(**options), clock=lambda: now_s), Sink()
    starting = asyncio.create_task(engine.start(sink))
    await asyncio.sleep(0)
    now_s = 5.0
    info = await starting
    counter = engine.counter
    assert 1_000_000 == counter.read(5.0).counter_mj
    now_s = 10.0
    await engine.park()
    assert (1_500_000, 2_100_000) == (counter.read(10.0).counter_mj, counter.read(20.0).counter_mj)
    now_s = 20.0
    starting = asyncio.create_task(engine.start(sink))
    await asyncio.sleep(0)
    now_s = 30.0
    assert info == await starting
    assert 4_100_000 == counter.read(30.0).counter_mj
    await engine.stop()
    assert [] == sink.deaths


async def test_a_started_again_engine_serves_and_has_forgotten_what_it_cached(start: Start) -> None:
    """The same prompt is computed anew; identity and closing records are as in its first life."""
    client = await start()
    for cycle in range(3):
        first = await client.chat(max_tokens=4, ignore_eos=True)
        again = await client.chat(max_tokens=4, ignore_eos=True)
        cached = [
            reply.json["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0) for reply in (first, again)
        ]
        assert cached[0] == 0 < cached[1]
        await client.until(lambda cycle=cycle: len(client.sink.closed) == 2 * (cycle + 1))
        await client.engine.park()
        assert (0, 0) == (client.engine.load().num_running, client.engine.load().kv_used_tokens)
        await client.engine.start(client.sink)
    assert {0} == {usage.token_difference for usages in client.sink.closed.values() for usage in usages}


async def test_a_counters_file_moves_on_while_its_engine_is_parked(tmp_path: Path) -> None:
    """An observer in another process sees what a parked device draws."""
    path = tmp_path / "counter"
    engine = SimulatedEngine(spec(meter=MeterSpec(counter_path=str(path)), parked_watts=60.0))
    await engine.start(Sink())
    await engine.park()
    observer = CounterFile(path)
    before_mj = observer.read().counter_mj
    await asyncio.sleep(0.1)
    assert observer.read().counter_mj > before_mj
    await engine.start(Sink())
    await engine.stop()


async def test_faults_are_armed_by_each_start(start: Start) -> None:
    """Seconds after the start, as they say; a parked engine does not die."""
    client = await start(die_after_s=0.05)
    await client.engine.park()
    await asyncio.sleep(0.1)
    assert [] == client.sink.deaths
    await client.engine.start(client.sink)
    await client.until(lambda: bool(client.sink.deaths))
