"""An inference engine without a GPU: vLLM's HTTP face and step feed around ``simulated_core``, on the real clock.

Called by ``workers.build``, and as a bare server by ``python -m workers.engines.simulated``. It must never know
windows, attribution or Ray. What it burns is read through ``counter`` and is always graded D.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.engine import EngineLoad, EngineSink, Receive, Scope, Send
from workers.engines.simulated_answer import Answer, serve
from workers.engines.simulated_core import SimulatedCore
from workers.engines.simulated_faults import arm_faults
from workers.engines.simulated_options import SimulatedOptions, parse_options
from workers.engines.simulated_plan import Finished, SimulatedSequence
from workers.errors import EngineStartError
from workers.simulated_counter import SimulatedCounter
from workers.steps import StepRecord
from workers.types import Call, EngineInfo, MeterSpec, Progress, SequenceUsage, WorkerSpec

if TYPE_CHECKING:
    import uvicorn

VERSION = "1"
CATCH_UP_S = 0.05
"""A device goes on while its host is late: up to this much the next step starts when the last one ended, not when the
event loop noticed. Beyond it the device was starved, and the time is idle."""
LOST_AFTER_S = 5.0
"""How long a closing record may be missing after the request ended before it is declared lost."""


@dataclass(slots=True)
class _Attempt:
    """What ran for one attempt."""

    salt: bytes
    sequences: list[SimulatedSequence] = field(default_factory=list)
    answer: Answer | None = None
    num_open: int = 0
    is_ended: bool = False
    told: tuple[int, int, int, int] = (0, 0, 0, 0)
    timer: asyncio.TimerHandle | None = None


class SimulatedEngine:
    """Implements ``workers.engine.Engine``. Everything runs on the event loop's thread; fault methods too."""

    def __init__(self, spec: WorkerSpec, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises: EngineStartError where ``engine_args`` holds an unknown or wrong option."""
        self.options: SimulatedOptions = parse_options(spec.engine_args)
        self.models: tuple[str, ...] = (spec.model,)
        # Workers that share a seed are still different devices.
        self.seed = zlib.crc32(f"{spec.seed}/{spec.worker_id}".encode())
        self.core = SimulatedCore(self.options, seed=self.seed)
        self.counter = SimulatedCounter(
            idle_watts=self.options.idle_watts,
            refresh_s=self.options.refresh_s,
            started_s=clock(),
            path=spec.meter.counter_path,
        )
        self._is_counter_shared = spec.meter.counter_path is not None
        self._num_gpus = max(spec.num_gpus, 1)
        self._clock = clock
        self._sink: EngineSink | None = None
        self._answers: dict[str, Answer] = {}
        """By sequence id."""
        self._attempts: dict[str, _Attempt] = {}
        self._work = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._publishing: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self.num_answers = 0
        self.dead_cause = ""

    # -- the face

    async def start(self, sink: EngineSink) -> EngineInfo:
        """Raises: EngineStartError by the switch ``start_fails``."""
        options = self.options
        self.counter.draw(options.start_watts, self._clock())
        if options.start_s:
            await asyncio.sleep(options.start_s)
        if options.start_fails:
            raise EngineStartError(
                "the simulated engine did not start: engine_args.start_fails is set", last_lines=("start_fails",)
            )
        self.counter.draw(options.idle_watts, self._clock())
        self._sink = sink
        self._tasks.append(asyncio.create_task(self._drive(), name="simulated-steps"))
        if self._is_counter_shared and self._publishing is None:
            self._publishing = asyncio.create_task(self._publish(), name="simulated-counter")
        self._timers = arm_faults(self, clock=self._clock)
        return EngineInfo(
            engine="simulated",
            version=VERSION,
            models=self.models,
            max_model_len_tokens=self.max_len_tokens,
            kv_tokens=options.kv_tokens,
            max_sequences=options.max_sequences,
            num_gpus=self._num_gpus,
            simulated=True,
            tokenizer_digest="simulated:4-bytes",
        )

    @property
    def max_len_tokens(self) -> int:
        """Longest prompt and output together that can run at all."""
        return min(self.options.max_model_len, self.options.kv_tokens)

    def request(self, call: Call, salt: bytes) -> tuple[Scope, bytes]:
        self._attempts[call.attempt_id] = _Attempt(salt)
        headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", call.attempt_id.encode()),
            (b"x-vllm-priority", str(call.priority).encode()),
        ]
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST" if call.body else "GET",
            "scheme": "http",
            "path": call.path,
            "raw_path": call.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
        }
        return scope, call.body

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """OpenAI's ASGI app."""
        await serve(self, scope, receive, send)

    def asgi_ended(self, attempt_id: str) -> None:
        """``on_closed`` follows: at once if nothing runs any more, else when the step in flight ends, or in 5 s."""
        attempt = self._attempts.setdefault(attempt_id, _Attempt(b""))
        attempt.is_ended = True
        if attempt.num_open and not self.dead_cause:
            attempt.timer = asyncio.get_running_loop().call_later(LOST_AFTER_S, self._close_attempt, attempt_id)
        else:
            self._close_attempt(attempt_id)

    def progress(self) -> list[Progress]:
        """Tokens so far of attempts that moved since the last call."""
        moved = []
        for attempt_id, attempt in self._attempts.items():
            prompts = {sequence.prompt_index: sequence for sequence in reversed(attempt.sequences)}
            now = (
                sum(sequence.prompt_tokens for sequence in prompts.values()),
                sum(sequence.cached_tokens for sequence in prompts.values()),
                sum(sequence.computed_prompt_tokens for sequence in attempt.sequences),
                sum(self.core.num_generated(sequence) for sequence in attempt.sequences),
            )
            if now != attempt.told and (now[2] or now[3]):
                attempt.told = now
                moved.append(Progress(attempt_id, *now))
        return moved

    def load(self) -> EngineLoad:
        core = self.core
        return EngineLoad(
            num_running=core.num_running, num_waiting=core.num_waiting, kv_used_tokens=core.kv_used_tokens
        )

    async def calibrate(self, max_s: float) -> None:
        """Own dummy work without a payer, in equal spans: 1, 4, 16 decoding sequences, prefill chunks, idle."""
        span_s = max_s / 5
        for num_sequences in (1, 4, 16):
            await self._dummy(num_sequences, prompt_tokens=16, target_tokens=1_000_000, span_s=span_s)
        until_s = self._clock() + span_s
        while self._clock() < until_s:
            await self._dummy(2, prompt_tokens=1_024, target_tokens=2, span_s=until_s - self._clock())
        await asyncio.sleep(max(max_s - 4 * span_s, 0.0))

    async def park(self) -> None:
        """The device goes on counting; what was cached is gone."""
        await self._end()
        self.core = SimulatedCore(self.options, seed=self.seed)
        self.counter.draw(self.options.parked_watts, self._clock())

    async def stop(self) -> None:
        await self._end()
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        self._die_softly("the engine was stopped")
        self.counter.publish(self._clock())
        self.counter.close()

    async def _end(self) -> None:
        """Until it is started again."""
        tasks, self._tasks = self._tasks, []
        for timer in self._timers:
            timer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- sequences in and out, for ``simulated_answer``

    def open(self, attempt_id: str, answer: Answer) -> None:
        """Submits an answer's sequences."""
        for sequence in answer.sequences:
            self.core.submit(sequence)
            self._answers[sequence.sequence_id] = answer
        attempt = self._attempts.get(attempt_id)  # None behind a bare server: nobody asks for closing records
        if attempt is not None:
            attempt.answer, attempt.sequences, attempt.num_open = answer, answer.sequences, len(answer.sequences)
        self._work.set()

    def abort(self, answer: Answer) -> None:
        """Ends what still runs of an answer; a sequence in the step in flight is closed when that step ends."""
        for sequence in answer.sequences:
            if sequence.sequence_id in self._answers and self.core.abort(sequence):
                self._close(sequence)

    # -- steps

    async def _drive(self) -> None:
        """One step after the other, for as long as there is work."""
        free_s = float("-inf")
        core, counter = self.core, self.counter
        while True:
            now_s = self._clock()
            plan = core.begin(free_s if now_s - free_s < CATCH_UP_S else now_s)
            if plan is None:
                self._work.clear()
                await self._work.wait()
                free_s = float("-inf")
                continue
            counter.add_step(plan.started_s, plan.ended_s, plan.joules)
            await asyncio.sleep(max(plan.ended_s - self._clock(), 0.0))
            if not self._gate.is_set():
                await self._gate.wait()
            free_s = plan.ended_s
            self._book(core.finish())

    def _book(self, finished: Finished) -> None:
        """Reports a step, hands out its tokens, closes what ended."""
        assert self._sink is not None
        for record in finished.records():
            self._sink.on_step(record)
        answers = self._answers
        ended = {sequence.sequence_id for sequence in finished.closed}
        for sequences in (finished.started_decoding, finished.plan.decoding):
            for sequence in sequences:
                answer = answers.get(sequence.sequence_id)
                if answer is not None and answer.is_stream and sequence.sequence_id not in ended:
                    answer.put_token(sequence)
        for sequence in finished.closed:
            self._close(sequence)

    def _close(self, sequence: SimulatedSequence) -> None:
        answer = self._answers.pop(sequence.sequence_id, None)
        if answer is None:
            return
        answer.end(sequence)
        attempt = self._attempts.get(answer.attempt_id)
        if attempt is not None:
            attempt.num_open -= 1
            if attempt.is_ended and not attempt.num_open:
                self._close_attempt(answer.attempt_id)

    def _close_attempt(self, attempt_id: str) -> None:
        """The closing records of an attempt; what is still open is declared lost."""
        attempt = self._attempts.pop(attempt_id, None)
        if attempt is None or self._sink is None:
            return
        if attempt.timer is not None:
            attempt.timer.cancel()
        self._sink.on_closed(attempt_id, tuple(self._usage(attempt, sequence) for sequence in attempt.sequences))

    def _usage(self, attempt: _Attempt, sequence: SimulatedSequence) -> SequenceUsage:
        assert attempt.answer is not None
        is_closed = self._answers.pop(sequence.sequence_id, None) is None
        return sequence.usage(attempt.answer.stated(sequence, attempt.salt), exact=is_closed)

    async def _dummy(self, num_sequences: int, *, prompt_tokens: int, target_tokens: int, span_s: float) -> None:
        """Runs sequences that nobody pays for until they end or ``span_s`` is over."""
        target_tokens = min(target_tokens, self.max_len_tokens - prompt_tokens, self.options.kv_tokens // num_sequences)
        sequences = [
            SimulatedSequence(
                sequence_id=f"calibration-{index}", payer=None, prompt_tokens=prompt_tokens, target_tokens=target_tokens
            )
            for index in range(num_sequences)
        ]
        for sequence in sequences:
            self.core.submit(sequence)
        self._work.set()
        until_s = self._clock() + span_s
        while self._clock() < until_s and not all(sequence.is_closed for sequence in sequences):
            await asyncio.sleep(0.005)
        for sequence in sequences:
            self.core.abort(sequence)

    async def _publish(self) -> None:
        """Keeps the counter's file moving while the engine is idle."""
        while True:
            self.counter.publish(self._clock())
            await asyncio.sleep(self.options.refresh_s)

    # -- faults

    def hang(self) -> None:
        """The step in flight, or the next one, does not end any more."""
        self._gate.clear()

    def resume(self) -> None:
        """Ends a hang."""
        self._gate.set()

    def slow(self, ratio: float) -> None:
        """Steps take ``ratio`` times as long from the next one on; 1 = as before."""
        self.core.slow_ratio = ratio

    def die(self, *, mode: str = "engine") -> None:
        """``process``: this process exits at once with code 137, as after SIGKILL. ``engine``: it says that it died."""
        if mode == "process":
            os._exit(137)
        for task in self._tasks:
            task.cancel()
        self._die_softly("the simulated engine died (fault switch)")
        if self._sink is not None:
            self._sink.on_engine_dead(self.dead_cause)

    def _die_softly(self, cause: str) -> None:
        self.dead_cause = self.dead_cause or cause
        for answer in list(self._answers.values()):
            answer.fail()


class _NoSink:
    """Where a bare server's steps go."""

    def on_step(self, step: StepRecord) -> None: ...

    def on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None: ...

    def on_dropped(self, num_records: int) -> None: ...

    def on_engine_dead(self, cause: str) -> None: ...


async def _serve(engine: SimulatedEngine, server: uvicorn.Server) -> None:
    await engine.start(_NoSink())
    await server.serve()
    await engine.stop()


def main(arguments: list[str] | None = None) -> None:
    """``python -m workers.engines.simulated``: the engine alone behind uvicorn, on loopback, as a baseline."""
    parser = argparse.ArgumentParser(prog="python -m workers.engines.simulated", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="simulated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixed-step-s", type=float, default=None)
    parser.add_argument("--max-sequences", type=int, default=512)
    parser.add_argument("--counter-path", default=None, help="file in which the energy counter lives")
    given = parser.parse_args(arguments)
    spec = WorkerSpec(
        worker_id="bare",
        engine="simulated",
        model=given.model,
        seed=given.seed,
        engine_args={"fixed_step_s": given.fixed_step_s, "max_sequences": given.max_sequences},
        meter=MeterSpec(kind="simulated", counter_path=given.counter_path),
    )
    import uvicorn  # 0.2 s that a worker does not need

    engine = SimulatedEngine(spec)
    config = uvicorn.Config(
        engine.app,
        interface="asgi3",  # a bound method is not recognised as such
        host="127.0.0.1",
        port=given.port,
        log_level="warning",
        lifespan="off",
        access_log=False,
    )
    # The loop that uvicorn itself would take (uvloop where it is installed), as any server to compare with has it.
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(engine, uvicorn.Server(config)))


if __name__ == "__main__":
    main()
