"""A real worker on its own event loop and thread, and what a control plane would see of it.

Called by the benchmarks and tests that run vLLM without Ray. It must never look inside the worker.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from workers.build import build_worker
from workers.engines.smollm2 import SMOLLM2
from workers.types import (
    Abort,
    Ack,
    Call,
    Chunk,
    Ended,
    EnergyPosting,
    Progress,
    Record,
    Started,
    UsageRecord,
    WindowRecord,
    WorkerSpec,
    WorkerStatus,
)

T = TypeVar("T")
START_TIMEOUT_S = 280.0
"""vLLM starts in 30 s on two idle cores."""
MODEL = "smollm2-135m"


def demo_spec(**changes: Any) -> WorkerSpec:
    """vLLM's CPU build with the demo's weights; ``engine_args`` are added to the demo's."""
    engine_args = {
        "model": str(SMOLLM2.default_folder()),
        "max_model_len": 1024,
        "max_num_seqs": 32,
        "enforce_eager": True,
        **changes.pop("engine_args", {}),
    }
    fields: dict[str, Any] = {
        "worker_id": "real",
        "engine": "vllm",
        "model": MODEL,
        "engine_args": engine_args,
        "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        "calibration_s": 0.0,
        **changes,
    }
    return WorkerSpec(**fields)


class Reply:
    """What arrived for one attempt."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = b""
        self.num_chunks = 0
        self.ended: Ended | None = None
        self.usage: UsageRecord | None = None
        self.posting: EnergyPosting | None = None
        self.progress: list[Progress] = []

    @property
    def events(self) -> list[Any]:
        """The JSON of each event of a stream."""
        lines = self.body.decode().split("\n\n")
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


class WorkerRun:
    """Starts a worker; calls it; keeps everything it says. Use as a context manager."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="worker-run", daemon=True)
        self._reader: Any = None
        self.replies: dict[str, Reply] = {}
        self.records: list[Record] = []
        self.status: WorkerStatus | None = None
        self.worker: Any = None
        self._changed = threading.Condition()

    def __enter__(self) -> WorkerRun:
        self._thread.start()
        try:
            self.worker = self.run(self._build(), timeout_s=START_TIMEOUT_S)
        except BaseException:
            self._end_loop()
            raise
        self._reader = asyncio.run_coroutine_threadsafe(self._read(), self.loop)
        self.wait(lambda: self.status is not None, what="the first status")
        return self

    def __exit__(self, *exception: object) -> None:
        self.run(self.worker.stop(), timeout_s=60)
        self._reader.cancel()
        self.run(asyncio.sleep(0))  # the reader ends before its loop
        self._end_loop()

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float = 30.0) -> T:
        """Runs a coroutine on the worker's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def call(self, attempt_id: str, path: str = "/v1/completions", *, priority: int = 0, **body: Any) -> Reply:
        """Sends one call; returns at once."""
        reply = self.replies[attempt_id] = Reply()
        encoded = json.dumps({"model": MODEL, **body}).encode()
        call = Call(attempt_id=attempt_id, path=path, body=encoded, priority=priority)
        self.loop.call_soon_threadsafe(self.worker.command, 1, [call])
        return reply

    def abort(self, attempt_id: str, reason: str = "client_gone") -> None:
        self.loop.call_soon_threadsafe(self.worker.command, 1, [Abort(attempt_id=attempt_id, reason=reason)])

    def wait(self, is_so: Any, *, what: str, timeout_s: float = 60.0) -> None:
        """Until it is so. Raises: TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(is_so, timeout_s):
                raise TimeoutError(f"{what} did not come within {timeout_s:g} s")

    def wait_ended(self, *attempt_ids: str, timeout_s: float = 60.0) -> None:
        """Until every attempt named has its end and its charge."""
        self.wait(
            lambda: all(self.replies[name].ended and self.replies[name].usage for name in attempt_ids),
            what="the end of " + ", ".join(name for name in attempt_ids if not self.replies[name].usage)[:200],
            timeout_s=timeout_s,
        )

    def wait_posted(self, timeout_s: float = 30.0) -> None:
        """Until every attempt that was charged has its energy posting."""
        self.wait(
            lambda: all(reply.posting for reply in self.replies.values() if reply.usage),
            what="every energy posting",
            timeout_s=timeout_s,
        )

    @property
    def windows(self) -> list[WindowRecord]:
        return [record for record in self.records if isinstance(record, WindowRecord)]

    @property
    def usages(self) -> list[UsageRecord]:
        return [record for record in self.records if isinstance(record, UsageRecord)]

    @property
    def postings(self) -> list[EnergyPosting]:
        return [record for record in self.records if isinstance(record, EnergyPosting)]

    async def _build(self) -> Any:
        worker = build_worker(self.spec)
        await worker.start()
        return worker

    async def _read(self) -> None:
        async for report in self.worker.reports(1):
            with self._changed:
                for output in report.outputs:
                    self._note(output)
                for progress in report.progress:
                    if progress.attempt_id in self.replies:
                        self.replies[progress.attempt_id].progress.append(progress)
                for numbered in report.records:
                    self._keep(numbered.record)
                self.status = report.status or self.status
                self._changed.notify_all()
            if report.records:
                self.worker.command(1, [Ack(number=report.records[-1].number)])

    def _note(self, output: Started | Chunk | Ended) -> None:
        reply = self.replies.setdefault(output.attempt_id, Reply())
        if isinstance(output, Started):
            reply.status = output.status
        elif isinstance(output, Chunk):
            reply.body += output.body
            reply.num_chunks += 1
        else:
            reply.ended = output

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if isinstance(record, UsageRecord):
            self.replies.setdefault(record.attempt_id, Reply()).usage = record
        elif isinstance(record, EnergyPosting):
            self.replies.setdefault(record.attempt_id, Reply()).posting = record

    def _end_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
