"""What people write for a fleet, ``h100x32`` or ``h100x4,b200x4``, made into simulated engines by the catalogue.

Called by the commands and benchmarks. It must never know a request or a policy.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from scheduler.catalogue import Catalogue, CatalogueError
from scheduler.simulation.fleet import FleetWorker

PART = re.compile(r"(?P<gpu>[\w.\- ]+?)\s*[x×](?P<count>\d+)", re.IGNORECASE)
MAX_GPUS = 100_000


class FleetError(ValueError):
    """The words are no fleet, or it cannot hold the model; they say which part, and what to write instead."""


def parse(fleet: str) -> list[tuple[str, int]]:
    """(GPU, how many) for each part. Raises: FleetError."""
    parts: list[tuple[str, int]] = []
    for text in fleet.split(","):
        found = PART.fullmatch(text.strip())
        if found is None or not 0 < int(found["count"]) <= MAX_GPUS:
            raise FleetError(
                f"fleet {fleet!r}: {text.strip()!r} is no GPU and a count; write h100x8, or h100x4,b200x4 (they are"
                f" GPUs, not engines, from 1 to {MAX_GPUS:,})"
            )
        parts.append((found["gpu"], int(found["count"])))
    return parts


def workers_of(catalogue: Catalogue, fleet: str, model: str, *, first_number: int = 0) -> list[FleetWorker]:
    """The model's engines on the fleet's GPUs, numbered from ``first_number``. Raises: FleetError."""
    workers: list[FleetWorker] = []
    for gpu, count in parse(fleet):
        try:
            kind = catalogue.engine(gpu, model, num_gpus=count)
        except CatalogueError as error:
            raise FleetError(f"fleet {fleet!r}: {error}") from None
        size = kind.gpus_per_engine
        if count % size:
            fewer = count - count % size
            raise FleetError(
                f"fleet {fleet!r}: an engine of {kind.model} takes {size} × {kind.gpu}, so {count % size} of {count}"
                f" would be left over; write {gpu}x{fewer} or {gpu}x{fewer + size}"
            )
        workers += [
            FleetWorker(
                worker_id=f"{kind.gpu.lower()}-{first_number + len(workers) + number:03}",
                options=kind.options,
                draw=kind.draw,
                model=kind.model,
                num_gpus=size,
            )
            for number in range(count // size)
        ]
    return workers


def with_blocks(workers: Sequence[FleetWorker], block_tokens: int) -> list[FleetWorker]:
    """The same engines, whose prefix caches know a trace's blocks."""
    return [
        dataclasses.replace(worker, options=dataclasses.replace(worker.options, block_tokens=block_tokens))
        for worker in workers
    ]
