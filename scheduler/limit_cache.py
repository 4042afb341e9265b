"""Round-robin limits that were found before, kept below the user's cache folder.

Called by the commands and benchmarks. It must never find a limit in another way than ``scheduler.simulation.replay``.

A limit is kept under the hash of all it depends on: the slice's first ten minutes, the engines, the objective, and the
text of the modules that simulate. A file that is damaged, or a folder that cannot be written, costs time and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scheduler.core.request import Slo
from scheduler.simulation import baselines, closed_form, fleet, replay, results, traces
from scheduler.simulation.fleet import FleetWorker
from scheduler.simulation.traces import TraceRow
from workers.engines import simulated_cache, simulated_options

SIMULATING = (baselines, closed_form, fleet, replay, results, traces, simulated_cache, simulated_options)


class Limit(NamedTuple):
    per_s: float
    """Requests; 0 where round robin is never good enough."""
    is_known: bool
    """It was found before."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/jouleway/round-robin-limits``, else below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "jouleway" / "round-robin-limits"


def limit_of(
    workers: Sequence[FleetWorker], rows: Sequence[TraceRow], slo: Slo, *, folder: Path | None = None
) -> Limit:
    """The round-robin limit of one model's engines on a trace, looked up or looked for."""
    path = (folder or cache_folder()) / f"{key_of(workers, rows, slo)}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["requests_per_s"]
        if isinstance(known, int | float) and known >= 0:
            return Limit(float(known), True)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    per_s = replay.round_robin_limit_per_s(workers, rows, slo=slo)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps({"requests_per_s": per_s}) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError:
        pass
    return Limit(per_s, False)


def key_of(workers: Sequence[FleetWorker], rows: Sequence[TraceRow], slo: Slo) -> str:
    """Hexadecimal; equal where the limit must be equal."""
    beginning = traces.first(rows, replay.LIMIT_S)
    parts = {
        "rows": [
            (row.arrival_s - rows[0].arrival_s, row.input_tokens, row.output_tokens, row.blocks) for row in beginning
        ],
        "engines": [dataclasses.asdict(worker.options) for worker in workers],
        "slo": slo[:3],
        "code": [Path(str(module.__file__)).read_text(encoding="utf-8") for module in SIMULATING],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
