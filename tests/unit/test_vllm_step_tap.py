"""The hook's half in the engine process, and with the feed behind it: what a scheduler does arrives to the token.

A scheduler of its own makes random lives of requests (chunks, prefix hits, preemptions, aborts between and during
steps, stop strings, two steps in flight); every engine request must keep the token identity, and must lose it when
something is lost on the way.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engines import vllm_step_tap
from workers.engines.vllm_feed import StepFeed
from workers.engines.vllm_messages import SOCKET_VARIABLE, StepMessage, decode
from workers.engines.vllm_sequences import Sequence
from workers.engines.vllm_step_tap import StepSocket, StepTap, open_tap
from workers.steps import StepRecord


@dataclass(eq=False)
class Request:
    """A request as the scripted scheduler knows it; names are those of vLLM's Request."""

    request_id: str
    prompt: int
    max_tokens: int
    num_computed_tokens: int = 0
    num_in_flight_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    is_running: bool = False
    has_run: bool = False

    @property
    def known(self) -> int:
        return self.prompt + self.num_output_tokens


@dataclass
class New:
    req_id: str
    num_computed_tokens: int
    prompt_len: int


@dataclass
class Cached:
    req_ids: list[str] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)
    num_computed_tokens: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Output:
    """Names are those of vLLM's SchedulerOutput."""

    scheduled_new_reqs: list[New] = field(default_factory=list)
    scheduled_cached_reqs: Cached = field(default_factory=Cached)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    finished_req_ids: set[str] = field(default_factory=set)

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())


class Registry:
    """Both sides' sequences by engine id, as ``Attempts`` keeps them."""

    def __init__(self) -> None:
        self.sequences: dict[str, Sequence] = {}

    def find_or_adopt(self, engine_id: str, prompt_tokens: int) -> Sequence:
        return self.sequences.setdefault(
            engine_id, Sequence(engine_id=engine_id, payer=None, prompt_tokens=prompt_tokens)
        )

    def ended_there(self, sequence: Sequence) -> None: ...


class Engine:
    """A scheduler, its tap, the feed behind it, and the outputs' way; ``depth`` steps may be in flight."""

    def __init__(self, *, depth: int = 1, budget: int = 64, drafts: int = 0) -> None:
        self.now_s = 0.0
        self.depth, self.budget, self.drafts = depth, budget, drafts
        self.waiting: list[Request] = []
        self.requests: dict[str, Request] = {}
        self.in_flight: deque[Output] = deque()
        self.finished: set[str] = set()
        self.registry = Registry()
        self.steps: list[StepRecord] = []
        self.dropped = 0
        self.messages: list[StepMessage] = []
        self.feed = StepFeed(self.registry, on_step=self.steps.append, on_dropped=self._count_dropped)
        self.lets_through: Callable[[bytes], bool] = lambda message: True
        self.loses: Callable[[StepMessage], bool] = lambda message: False
        self.tap = StepTap(self._send, clock=self._tick)
        self.tokens_by_payer: dict[str, int] = {}

    def _tick(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def _count_dropped(self, num_records: int) -> None:
        self.dropped += num_records

    def _send(self, message: bytes) -> bool:
        if not self.lets_through(message):
            return False
        self.messages.append(decode(message))
        if not self.loses(self.messages[-1]):
            self.feed.take(message)
        return True

    # -- the scheduler

    def add(self, name: str, prompt: int, max_tokens: int) -> Sequence:
        self.requests[name] = request = Request(name, prompt, max_tokens)
        self.waiting.append(request)
        self.registry.sequences[name] = Sequence(engine_id=name, payer=f"attempt-{name}", prompt_tokens=prompt)
        return self.registry.sequences[name]

    def schedule(self, *, cached: Callable[[Request], int] = lambda request: 0) -> Output:
        output = Output()
        room = self.budget
        for request in [r for r in self.requests.values() if r.is_running]:
            tokens = min(request.known - request.num_computed_tokens, room)
            ahead = request.num_in_flight_tokens and request.num_computed_tokens >= request.known
            if ahead and request.num_output_tokens + 1 < request.max_tokens:
                tokens = min(1, room)  # one step ahead of its own output
            if tokens <= 0:
                continue
            if self.drafts and request.num_computed_tokens >= request.prompt and not ahead:
                output.scheduled_spec_decode_tokens[request.request_id] = [0] * self.drafts
                tokens += self.drafts
            output.scheduled_cached_reqs.req_ids.append(request.request_id)
            self._put(output, request, tokens)
            room -= tokens
        while self.waiting and room > 0:
            request = self.waiting.pop(0)
            start = min(cached(request), request.known - 1)
            request.num_computed_tokens, request.is_running = start, True
            if request.has_run:
                output.scheduled_cached_reqs.req_ids.append(request.request_id)
                output.scheduled_cached_reqs.resumed_req_ids.add(request.request_id)
            else:
                output.scheduled_new_reqs.append(New(request.request_id, start, request.prompt))
                self.registry.sequences[request.request_id].cached_tokens = start
            request.has_run = True
            tokens = min(request.known - start, room)
            self._put(output, request, tokens)
            room -= tokens
        output.finished_req_ids, self.finished = self.finished, set()
        self.in_flight.append(output)
        self.tap.scheduled(output)
        return output

    @staticmethod
    def _put(output: Output, request: Request, tokens: int) -> None:
        if not any(new.req_id == request.request_id for new in output.scheduled_new_reqs):
            output.scheduled_cached_reqs.num_computed_tokens.append(request.num_computed_tokens)
        output.num_scheduled_tokens[request.request_id] = tokens
        request.num_computed_tokens += tokens
        request.num_in_flight_tokens += tokens

    def book(self, *, accepts: Callable[[str], int] = lambda name: 0) -> None:
        """The oldest step comes back; its outputs arrive at the other side before its message."""
        output = self.in_flight.popleft()
        self.tap.returned()
        sampled: dict[str, int] = {}
        emitted: dict[str, int] = {}
        for name, tokens in output.num_scheduled_tokens.items():
            request = self.requests.get(name)
            if request is None:
                continue
            request.num_in_flight_tokens -= tokens
            if request.num_computed_tokens - request.num_in_flight_tokens < request.known:
                continue  # the prompt is not whole yet
            drafts = len(output.scheduled_spec_decode_tokens.get(name, ()))
            sampled[name] = 1 + min(accepts(name), drafts)
            request.num_computed_tokens -= drafts + 1 - sampled[name]
            emitted[name] = min(sampled[name], request.max_tokens - request.num_output_tokens)
            request.num_output_tokens += emitted[name]
            is_over = request.num_output_tokens >= request.max_tokens
            self.arrive(name, emitted[name], is_final=is_over)
            if is_over:
                del self.requests[name]
                self.finished.add(name)
        self.tap.booked(
            output,
            finished=self.finished,
            sampled=lambda name: sampled.get(name, 0),
            emitted=lambda name: emitted.get(name, 0),
            counts=(len(self.requests), len(self.waiting)),
            kv_used_ratio=0.5,
        )

    def arrive(self, name: str, tokens: int, *, is_final: bool) -> None:
        """Outputs reach the other side; what comes after its end there is late."""
        sequence = self.registry.sequences[name]
        if sequence.is_ended_here:
            sequence.late_tokens += tokens
        else:
            sequence.generated_tokens += tokens
        sequence.is_prefill_over = sequence.is_prefill_over or tokens > 0
        sequence.has_final_output = sequence.has_final_output or is_final
        sequence.is_ended_here = sequence.is_ended_here or is_final

    def preempt(self, name: str) -> None:
        request = self.requests[name]
        request.num_computed_tokens, request.is_running = 0, False
        request.num_preemptions += 1
        self.waiting.insert(0, request)

    def abort(self, name: str, *, is_known_here: bool = True) -> None:
        """The engine is told to stop a request; the other side had let go of it before."""
        if is_known_here:
            self.registry.sequences[name].is_ended_here = True
        request = self.requests.pop(name)
        if request in self.waiting:
            self.waiting.remove(request)
        self.finished.add(name)
        self.tap.stopped([request])

    def step(self) -> None:
        self.schedule()
        if len(self.in_flight) >= self.depth or not any(r.is_running for r in self.requests.values()):
            self.book()

    def drain(self) -> None:
        for _ in range(10_000):
            if not self.requests and not self.in_flight and not self.finished:
                return
            if self.requests or self.finished:
                self.schedule()
            while len(self.in_flight) >= self.depth or (self.in_flight and not self.requests):
                self.book()
        raise AssertionError("the scripted scheduler does not come to an end")


def differences(engine: Engine) -> list[int]:
    return [sequence.usage().token_difference for sequence in engine.registry.sequences.values()]


def live(rng: random.Random, engine: Engine, *, num_rounds: int) -> None:
    """A random life of many requests."""
    for number in range(num_rounds):
        if rng.random() < 0.4:
            engine.add(f"r{number}", rng.randint(1, 150), rng.randint(1, 12))
        if engine.requests and rng.random() < 0.12 and not engine.in_flight:
            running = [name for name, request in engine.requests.items() if request.is_running]
            if running:
                engine.preempt(rng.choice(running))
        if engine.requests and rng.random() < 0.1:
            engine.abort(rng.choice(list(engine.requests)))
        engine.schedule(cached=lambda request: rng.choice([0, 0, 16, 48]))
        if engine.requests and rng.random() < 0.08:
            engine.abort(rng.choice(list(engine.requests)))  # while the step is in flight
        if engine.requests and rng.random() < 0.08:
            # The other side found a stop string or lost its client; the engine hears of it a step later.
            name = rng.choice(list(engine.requests))
            engine.registry.sequences[name].is_ended_here = True
            if len(engine.in_flight) >= engine.depth:
                engine.book(accepts=lambda name: rng.randint(0, engine.drafts))
            if name in engine.requests:
                engine.abort(name)
        while len(engine.in_flight) >= engine.depth:
            engine.book(accepts=lambda name: rng.randint(0, engine.drafts))
    engine.drain()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), depth=st.sampled_from([1, 2]), drafts=st.sampled_from([0, 3]))
def test_the_token_identity_holds_whatever_happens(seed: int, depth: int, drafts: int) -> None:
    """Chunks, prefix hits, preemptions, aborts, stop strings, drafts, two steps in flight: difference 0, all closed."""
    engine = Engine(depth=depth, drafts=drafts if depth == 1 else 0)
    live(random.Random(seed), engine, num_rounds=40)
    assert [0] * len(engine.registry.sequences) == differences(engine)
    assert all(sequence.is_closed for sequence in engine.registry.sequences.values())
    assert all(sequence.usage().exact for sequence in engine.registry.sequences.values())
    assert 0 == engine.dropped


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_step_records_hold_the_tokens_that_are_charged(seed: int) -> None:
    """Per attempt: scheduled − overrun ≤ tokens in its rows ≤ scheduled; what recomputes says so."""
    engine = Engine()
    live(random.Random(seed), engine, num_rounds=40)
    rows: dict[str | None, int] = {}
    recomputed = 0
    for step in engine.steps:
        assert len(step.payers) == len(step.context_tokens)
        assert step.ended_s > step.started_s
        tokens = step.prefill_tokens + step.decode_tokens + step.recomputed_tokens
        recomputed += int(step.recomputed_tokens.sum())
        for payer, number in zip(step.payers, tokens, strict=True):
            rows[payer] = rows.get(payer, 0) + int(number)
    for sequence in engine.registry.sequences.values():
        usage = sequence.usage()
        charged = rows.get(sequence.payer, 0)
        assert usage.scheduled_tokens - usage.overrun_tokens <= charged <= usage.scheduled_tokens
    assert recomputed == sum(sequence.recomputed_tokens for sequence in engine.registry.sequences.values())


@pytest.mark.parametrize("seed", range(3))
def test_a_lost_step_breaks_the_identity(seed: int) -> None:
    """Bites: one message that vanishes unseen (its number is forged) leaves a difference."""
    engine = Engine()
    engine.add("a", 20, 8)
    lost = 2 + seed

    def loses(message: StepMessage) -> bool:
        if message.number == lost:
            engine.feed._next_number += 1  # as if it had been read
            return True
        return False

    engine.loses = loses
    engine.drain()
    assert [1] == differences(engine)


def test_a_lost_output_breaks_the_identity() -> None:
    """Bites: an output that never reached this process leaves a difference of the other sign."""
    engine = Engine()
    sequence = engine.add("a", 20, 8)
    engine.drain()
    sequence.generated_tokens -= 1
    assert [-1] == differences(engine)


def test_a_drop_is_counted_and_told_anew() -> None:
    """The reader was behind: nobody is exact who ran meanwhile, everybody after it is; no ending is lost."""
    engine = Engine()
    before = engine.add("before", 8, 30)
    over = engine.add("over", 8, 4)
    for _ in range(3):
        engine.step()
    engine.lets_through = lambda message: False
    for _ in range(4):
        engine.step()  # "over" ends here
    engine.lets_through = lambda message: True
    engine.step()
    assert engine.messages[-1].is_whole
    assert 4 == engine.dropped
    after = engine.add("after", 8, 4)
    engine.drain()
    assert [False, False, True] == [sequence.usage().exact for sequence in (before, over, after)]
    assert [True] * 3 == [sequence.is_closed for sequence in (before, over, after)]
    assert 0 == after.usage().token_difference


def test_a_steady_batch_costs_next_to_nothing() -> None:
    """Only changes travel: while nobody comes or goes, a message says no name and no slot."""
    engine = Engine()
    for number in range(50):
        engine.add(f"chatcmpl-{number:032x}", 1, 20)
    sizes = []
    engine.lets_through = lambda message: sizes.append(len(message)) or True
    for _ in range(10):
        engine.step()
    assert [50] * 10 == [len(step.payers) for step in engine.steps]
    assert max(sizes[1:]) < 60 < 1000 < sizes[0]
    assert all(not (m.joined or m.left or m.tokens or m.newcomers) for m in engine.messages[1:])


def test_a_request_that_comes_or_goes_is_all_that_is_told() -> None:
    """No row is looked at one by one: newcomers and those that ended explain the whole difference."""
    engine = Engine()
    for number in range(20):
        engine.add(f"r{number}", 4, 3 + number)
    for number in range(12):
        engine.add(f"late{number}", 30, 3)
        engine.step()
    assert all(not message.left for message in engine.messages)
    engine.drain()
    assert {0} == set(differences(engine))


def test_step_times_with_two_steps_in_flight_do_not_overlap() -> None:
    """t_done(n) − max(t_done(n−1), t_scheduled(n)): a step that waited for its turn counts from then on."""
    engine = Engine(depth=2)
    engine.add("a", 4, 20)
    engine.add("b", 4, 20)
    engine.drain()
    for before, after in zip(engine.steps, engine.steps[1:], strict=False):
        assert before.ended_s <= after.started_s < after.ended_s
    assert any(b.ended_s == a.started_s for b, a in zip(engine.steps, engine.steps[1:], strict=False))


def test_a_request_stopped_with_a_step_in_flight_ends_after_that_step() -> None:
    """Two deep: its end is told with the last step that holds it, whose row nobody pays."""
    engine = Engine(depth=2)
    sequence = engine.add("a", 4, 20)
    engine.add("b", 4, 20)
    for _ in range(4):
        engine.schedule()
        if len(engine.in_flight) == 2:
            engine.book()
    engine.schedule()
    engine.abort("a")
    engine.book()
    assert not sequence.is_ended_there
    engine.schedule()
    engine.book()
    assert sequence.is_ended_there
    assert 2 == sequence.dropped_tokens
    assert 0 == sequence.usage().token_difference
    assert [None, None] == [step.payers[0] for step in engine.steps[-2:]]


def test_a_request_that_never_ran_is_told_to_have_ended() -> None:
    """Aborted in the queue: it closes at once instead of waiting for a step that never comes."""
    engine = Engine(budget=4)
    engine.add("a", 4, 2)
    waiting = engine.add("w", 4, 2)
    engine.schedule()
    engine.abort("w")
    engine.book()
    assert waiting.is_closed
    assert (0, 0) == (waiting.usage().scheduled_tokens, waiting.usage().token_difference)


# -- the socket


def listen(folder: Path) -> tuple[str, socket.socket]:
    path = str(folder / "s")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(1)
    return path, listener


def test_the_socket_never_waits(tmp_path: Path) -> None:
    """A reader that does not read: sending says no instead of holding the engine up; borders are kept."""
    path, listener = listen(tmp_path)
    sender = StepSocket(path)
    reader, _ = listener.accept()
    assert sender.send(b"one")
    assert sender.send(b"two")
    assert (b"one", b"two") == (reader.recv(100), reader.recv(100))
    num_sent = 0
    while sender.send(b"x" * 1000):
        num_sent += 1
        assert num_sent < 100_000
    assert num_sent > 10
    reader.close()
    assert not sender.send(b"nobody reads")
    sender.close()
    listener.close()


def test_a_message_beyond_the_bound_is_not_sent(tmp_path: Path) -> None:
    """It would be cut at the reader: it counts as dropped."""
    path, listener = listen(tmp_path)
    sender = StepSocket(path)
    assert not sender.send(b"x" * (vllm_step_tap.MAX_MESSAGE_BYTES + 1))
    sender.close()
    listener.close()


def test_without_a_listener_there_is_no_tap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM runs on without the hook, and says so once."""
    monkeypatch.delenv(SOCKET_VARIABLE, raising=False)
    assert open_tap() is None
    monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "nobody"))
    assert open_tap() is None
    assert "the step hook does not run: FileNotFoundError" in caplog.text
    path, listener = listen(tmp_path)
    monkeypatch.setenv(SOCKET_VARIABLE, path)
    opened = open_tap()
    assert opened is not None
    opened[1].close()
    listener.close()
