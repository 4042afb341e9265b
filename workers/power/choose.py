"""Which meter a worker gets: the one asked for, or the best that is there, with every step down named.

Called by ``workers.build`` and by ``jouleway doctor``. It must never know an engine or a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from workers.errors import MeterUnavailable
from workers.power.modelled import CpuSecondsMeter
from workers.power.nvml import open_nvml
from workers.power.rapl import RaplMeter
from workers.power.simulated import SimulatedMeter
from workers.simulated_counter import SimulatedCounter
from workers.types import MeterSpec
from workers.windows import PowerMeter


def open_meter(
    spec: MeterSpec,
    *,
    gpu_uuids: tuple[str, ...],
    pids: tuple[int, ...],
    counter: SimulatedCounter | None,
) -> tuple[PowerMeter, tuple[str, ...]]:
    """A meter and the notes that led to it: one for each better meter that could not be had.

    ``kind`` auto: a simulated engine's own counter (no real device burns what it claims to); else NVML where the engine
    has GPUs; else RAPL where it is readable; else modelled. A kind that is named is used or fails: a worker that was
    told to measure must not silently model.

    Raises: MeterUnavailable, with what was tried and why it failed.
    """
    openers: dict[str, Callable[[], PowerMeter]] = {
        "nvml": lambda: open_nvml(gpu_uuids),
        "rapl": RaplMeter,
        "modelled": lambda: _open_modelled(spec, pids),
        "simulated": lambda: _open_simulated(spec, counter),
    }
    if spec.kind != "auto":
        return openers[spec.kind](), ()
    if counter is not None:
        kinds = ["simulated"]
    elif gpu_uuids:
        # RAPL knows nothing of a GPU; a model that says so (grade D, named) at least lets the engine serve.
        kinds = ["nvml", "modelled"]
    else:
        kinds = ["rapl", "modelled"]
    notes: list[str] = []
    for kind in kinds:
        try:
            return openers[kind](), tuple(notes)
        except MeterUnavailable as error:
            notes.append(f"meter_downgrade: no {kind} meter: {error}")
    raise MeterUnavailable("no meter can be had: " + "; ".join(notes))


def _open_modelled(spec: MeterSpec, pids: tuple[int, ...]) -> PowerMeter:
    return CpuSecondsMeter(
        pids or (os.getpid(),), watts_per_cpu_second=spec.watts_per_cpu_second, idle_watts=spec.idle_watts
    )


def _open_simulated(spec: MeterSpec, counter: SimulatedCounter | None) -> PowerMeter:
    source = counter if counter is not None else spec.counter_path
    if source is None:
        raise MeterUnavailable("meter.kind simulated needs a simulated engine or meter.counter_path")
    return SimulatedMeter(source)
