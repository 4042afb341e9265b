"""`jouleway down`: stops every worker that stands on a Ray cluster, and their engines.

Called by ``scheduler.cli``. It must never touch anything outside the configured namespace.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from scheduler.commands import configuration
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import Progress, print_json
from workers.errors import WorkerError
from workers.ray_worker import RayCluster


def run(config_path: Path, *, drain_s: float, as_json: bool) -> ExitCode:
    """Find, stop side by side, say which. Nothing standing is fine."""
    config = configuration.load(config_path)
    address, namespace = configuration.ray_target(config)
    if address is None:
        raise CommandError(
            "ray.address is not set: workers of an own Ray cluster end with `jouleway serve`",
            code=ExitCode.USAGE,
            remedy="name the standing cluster in ray.address",
        )
    progress = Progress()
    cluster = RayCluster(address=address, namespace=namespace)
    try:
        cluster.connect()
    except WorkerError as error:
        raise CommandError(str(error), code=ExitCode.UNAVAILABLE) from None
    try:
        stopped = asyncio.run(cluster.remove_all(drain_s=drain_s, progress=progress))
    finally:
        cluster.shutdown()
    if as_json:
        print_json({"namespace": namespace, "stopped": stopped})
    else:
        progress(f"{len(stopped)} workers stopped in namespace {namespace}")
    return ExitCode.OK
