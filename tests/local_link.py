"""Workers in this process, without Ray: a link onto a Worker, and a whole control plane over simulated engines.

Used by tests of the dispatcher, the relay and the admin routes (``from tests.local_link import LocalLink``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from scheduler.accounting.changes import Role
from scheduler.accounting.settlement import Settlement
from scheduler.api.access import AdminCaller, Caller, Hosts, Key, Keys, digest_of, key_id_of
from scheduler.api.admin import AdminApp
from scheduler.api.app import RelayApp
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.core.admission import Limits
from scheduler.core.request import FREE, Band, Rates
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.dispatcher import Dispatcher
from scheduler.metrics import Metrics
from tests.price_words import book_of_one
from workers.build import build_worker
from workers.errors import WorkerDead
from workers.types import Command, MeterSpec, Report, WorkerSpec
from workers.worker import Worker

MODEL = "simulated"
ADMIN_KEY = "admin-key-of-the-tests"
KEYS = {"alpha": "key-of-alpha-0123456789", "beta": "key-of-beta-0123456789"}
"""Tenant -> its key. ``beta`` gets no better band than flex."""

FAST_ENGINE: dict[str, str | int | float | bool | None | list[str]] = {"fixed_step_s": 0.0005, "refresh_s": 0.005}


class LocalLink:
    """``scheduler.connection.WorkerLink`` onto a Worker of this process. ``cut`` it to play a death."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.worker_id = worker.spec.worker_id
        self._epoch = 0
        self._is_cut = False

    async def reports(self, epoch: int) -> AsyncIterator[Report]:
        if self._is_cut:
            raise WorkerDead(self.worker_id, "cut by the test")
        self._epoch = epoch
        async for report in self.worker.reports(epoch):
            if self._is_cut:
                break
            yield report
        raise WorkerDead(self.worker_id, "its report stream ended")

    async def send(self, commands: list[Command]) -> None:
        if self._is_cut:
            raise WorkerDead(self.worker_id, "cut by the test")
        self.worker.command(self._epoch, commands)

    async def stop(self, *, drain_s: float = 0.0) -> None:
        await self.worker.stop(drain_s=drain_s)

    def cut(self) -> None:
        """From now on nothing arrives in either direction."""
        self._is_cut = True


def simulated_spec(
    worker_id: str = "sim-0",
    engine_args: Mapping[str, str | int | float | bool | None | list[str]] = FAST_ENGINE,
    **values: object,
) -> WorkerSpec:
    """A simulated worker that is ready at once."""
    fields: dict[str, object] = {"window_s": 0.1, "calibration_s": 0.0, **values}
    return WorkerSpec(
        worker_id=worker_id,
        engine="simulated",
        model=MODEL,
        engine_args=dict(engine_args),
        meter=MeterSpec(kind="simulated"),
        **fields,  # type: ignore[arg-type]
    )


@dataclass(slots=True, kw_only=True)
class ControlPlane:
    """Everything but Ray and sockets."""

    relay: RelayApp
    admin: AdminApp
    dispatcher: Dispatcher
    settlement: Settlement
    metrics: Metrics
    links: list[LocalLink]


def admin_keys() -> Keys[AdminCaller]:
    """``ADMIN_KEY``, which may everything."""
    return Keys([Key(digest=digest_of(ADMIN_KEY), caller=AdminCaller(key_id="adm-tests", role=Role.ADMIN))])


def caller_keys() -> Keys[Caller]:
    """The keys of ``KEYS``."""
    bands = {"alpha": Band.PRIORITY, "beta": Band.FLEX}
    return Keys(
        Key(
            digest=digest_of(key),
            caller=Caller(tenant=tenant, project="p", key_id=key_id_of(digest_of(key)), best_band=bands[tenant]),
        )
        for tenant, key in KEYS.items()
    )


@contextlib.asynccontextmanager
async def control_plane(
    specs: list[WorkerSpec] | None = None,
    *,
    limits: RelayLimits | None = None,
    core_limits: Limits | None = None,
    rules: Rules | None = None,
    rates: Rates = FREE,
) -> AsyncIterator[ControlPlane]:
    """Dispatcher, core, settlement and simulated workers, started; relay and admin on top. Stopped on the way out."""
    settlement, metrics = Settlement(), Metrics()
    scheduler = Scheduler(models=[MODEL], limits=core_limits or Limits(), rules=rules)
    dispatcher = Dispatcher(scheduler=scheduler, settlement=settlement, tick_s=0.01)
    metrics.set_source(dispatcher.snapshot)
    links: list[LocalLink] = []
    await dispatcher.start()
    try:
        for spec in [simulated_spec()] if specs is None else specs:
            link = LocalLink(build_worker(spec))
            await link.worker.start()
            links.append(link)
            dispatcher.add_link(link, max_running=spec.max_running)
        async with asyncio.timeout(5):
            while not all(worker.is_ready for worker in dispatcher.snapshot().workers):
                await asyncio.sleep(0.001)
        yield ControlPlane(
            relay=RelayApp(
                dispatcher=dispatcher,
                keys=caller_keys(),
                hosts=Hosts(),
                models={
                    MODEL: ServedModel(
                        name=MODEL,
                        default_output_tokens=64,
                        expansion=1,
                        created_unix_s=1_700_000_000,
                    )
                },
                limits=limits or RelayLimits(),
                metrics=metrics,
                prices=book_of_one(MODEL, rates),
            ),
            admin=AdminApp(
                dispatcher=dispatcher,
                keys=admin_keys(),
                hosts=Hosts(),
                metrics=metrics,
            ),
            dispatcher=dispatcher,
            settlement=settlement,
            metrics=metrics,
            links=links,
        )
    finally:
        await dispatcher.stop(stop_workers=True)
