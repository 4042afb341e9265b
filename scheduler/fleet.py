"""The workers that the configuration asks for: adopted where they stand, started where not, replaced when they die.

Called by ``scheduler.service``. It must never know a request; whether a worker is alive is the dispatcher's word.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from scheduler.accounting.errors import LedgerError
from scheduler.connection import WorkerLink
from workers.errors import WorkerError
from workers.types import WorkerSpec

logger = logging.getLogger("jouleway.fleet")

RESTART_DELAYS_S = (1.0, 5.0, 15.0, 60.0)
"""Waits before a dead worker is started again; the last one repeats."""
STEADY_S = 600.0
"""A worker that stood so long starts again with the first delay."""


class FleetLink(WorkerLink, Protocol):
    """A link that says which process it leads to."""

    incarnation: str


class Cluster(Protocol):
    """What starts and finds workers; ``workers.ray_worker.RayCluster`` is one."""

    def start(self, specs: list[WorkerSpec]) -> Sequence[FleetLink]:
        """Starts one process for all specs given. Blocks."""

    def find(self) -> Sequence[FleetLink]:
        """Workers that stand from an earlier control plane. Blocks."""


class Links(Protocol):
    """Who is told of links; the dispatcher."""

    def add_link(self, link: WorkerLink, *, max_running: int = ..., incarnation: str = "") -> None: ...

    async def remove_link(self, worker_id: str) -> None: ...


@dataclass(slots=True, kw_only=True)
class _Group:
    """Workers of one process: they live and die together."""

    specs: list[WorkerSpec]
    num_restarts: int = 0
    started_s: float = 0.0
    down: set[str] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


class Fleet:
    """Keeps every group of specs running. ``start`` it once, ``stop`` it before the dispatcher stops."""

    def __init__(
        self,
        groups: Sequence[Sequence[WorkerSpec]],
        *,
        cluster: Cluster,
        links: Links,
        last_counter_mj: Callable[[str], Awaitable[int | None]],
        counter_id: Callable[[str], str | None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        restart_delays_s: tuple[float, ...] = RESTART_DELAYS_S,
    ) -> None:
        """``last_counter_mj`` of a worker: its last durable reading. ``counter_id``: of which counter that is, as the
        worker that read it said; None where no living link knows.
        """
        self._groups = [_Group(specs=list(specs)) for specs in groups]
        self._by_worker = {spec.worker_id: group for group in self._groups for spec in group.specs}
        self._cluster = cluster
        self._links = links
        self._last_counter_mj = last_counter_mj
        self._counter_id = counter_id
        self._counter_ids: dict[str, str] = {}
        """Of each worker's last reading. In memory: what is down while no control plane is begins where it is."""
        self._clock = clock
        self._sleep = sleep
        self._restart_delays_s = restart_delays_s
        self._is_stopping = False
        self.num_restarts = 0

    async def start(self, *, adopt: bool) -> tuple[int, int]:
        """Adopts what stands (``adopt``), starts the rest: (adopted, started) workers. Raises: WorkerError."""
        found = await asyncio.to_thread(self._cluster.find) if adopt else ()
        standing: dict[str, FleetLink] = {}
        for link in found:
            if link.worker_id in self._by_worker:
                standing[link.worker_id] = link
            else:
                logger.warning("worker %s stands but is not configured: `jouleway down` ends it", link.worker_id)
        num_started = 0
        for group in self._groups:
            group.started_s = self._clock()
            links = [standing[spec.worker_id] for spec in group.specs if spec.worker_id in standing]
            if len(links) == len(group.specs):
                self._connect(group, links)
                continue
            if links:
                raise WorkerError(
                    f"only {len(links)} of {len(group.specs)} workers of {group.specs[0].worker_id}'s process stand: "
                    "the configuration changed; remedy: `jouleway down`, then serve again"
                )
            specs = [await self._successor(spec) for spec in group.specs]
            self._connect(group, await asyncio.to_thread(self._cluster.start, specs))
            num_started += len(group.specs)
        return len(standing), num_started

    def on_worker_down(self, worker_id: str, cause: str) -> None:
        """A worker will not come back by itself: its process is started again, later each time."""
        group = self._by_worker.get(worker_id)
        if group is None or self._is_stopping:
            return
        group.down.add(worker_id)
        if (known := self._counter_id(worker_id)) is not None:
            self._counter_ids[worker_id] = known
        if group.task is None and len(group.down) == len(group.specs):
            group.task = asyncio.create_task(self._restart(group), name=f"restart {worker_id}")
        logger.error("worker %s is down: %s", worker_id, cause.splitlines()[0] if cause else "no cause was given")

    async def stop(self) -> None:
        """No worker is started from here on."""
        self._is_stopping = True
        tasks = [group.task for group in self._groups if group.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connect(self, group: _Group, links: Sequence[FleetLink]) -> None:
        limits = {spec.worker_id: spec.max_running for spec in group.specs}
        for link in links:
            self._links.add_link(link, max_running=limits[link.worker_id], incarnation=link.incarnation)

    async def _successor(self, spec: WorkerSpec) -> WorkerSpec:
        """With the last durable reading, where the same counter goes on without the process that read it.

        A modelled counter begins anew, and Ray may pick other GPUs than before: the worker, which will know its own,
        goes on from a reading of the same ones only.
        """
        known = self._counter_ids.get(spec.worker_id, "")
        if not known and spec.meter.counter_path is None:
            return spec
        last_counter_mj = await self._last_counter_mj(spec.worker_id)
        return msgspec.structs.replace(spec, last_counter_mj=last_counter_mj, last_counter_id=known)

    async def _restart(self, group: _Group) -> None:
        """Tries until the process could be asked for; whether it then comes up, the dispatcher says again."""
        try:
            while True:
                if self._clock() - group.started_s > STEADY_S:
                    group.num_restarts = 0
                delays_s = self._restart_delays_s
                delay_s = delays_s[min(group.num_restarts, len(delays_s) - 1)]
                group.num_restarts += 1
                await self._sleep(delay_s)
                for spec in group.specs:
                    await self._links.remove_link(spec.worker_id)
                try:
                    specs = [await self._successor(spec) for spec in group.specs]
                    links = await asyncio.to_thread(self._cluster.start, specs)
                except (WorkerError, LedgerError) as error:
                    logger.error("worker %s could not be started again: %s", group.specs[0].worker_id, error)
                    continue
                self.num_restarts += 1
                group.started_s = self._clock()
                group.down.clear()
                self._connect(group, links)
                return
        finally:
            group.task = None
