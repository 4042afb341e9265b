"""The control plane put together: Ray, workers, dispatcher, relay, admin; started in order, stopped in order.

Called by the commands `serve` and `demo`. Configuration ends here. It must never decide anything about a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from scheduler.accounting.change_log import ChangeLog, MemoryChangeLog
from scheduler.accounting.changes import Change, Owner
from scheduler.accounting.settlement import Settlement
from scheduler.api.access import Hosts
from scheduler.api.admin import AdminApp
from scheduler.api.app import RelayApp
from scheduler.api.directory import directory_routes
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.config import Config, worker_specs
from scheduler.core.admission import Limits
from scheduler.core.queue import QueueLimits
from scheduler.core.scheduler import Scheduler
from scheduler.credentials import house_key_id, kept_key
from scheduler.directory_owner import DirectoryOwner
from scheduler.dispatcher import Dispatcher
from scheduler.fleet import RESTART_DELAYS_S, Fleet
from scheduler.listeners import Listener, Tls, bind
from scheduler.metrics import Metrics
from scheduler.policies import rates_of, slo_of, zone_names
from scheduler.snapshot import Snapshot, WorkerSnapshot
from workers.errors import WorkerError
from workers.ray_worker import RayCluster
from workers.types import WorkerState

logger = logging.getLogger("jouleway.service")

EXPANSIONS = {"none": 1, "nfc": 3, "nfkc": 11}
"""Characters that one can become in a tokenizer's normaliser, at most (design §4)."""

READY_POLL_S = 0.1

RESTART_SECTIONS = ("server", "admin", "ray", "limits", "models", "workers", "state_dir", "generate_keys", "directory")
"""What is read at the start only."""


class Service:
    """One control plane. ``start``, optionally ``wait_ready``, then ``stop`` on every way out, also after a failure."""

    def __init__(self, config: Config, *, change_log: ChangeLog | None = None, changes: Iterable[Change] = ()) -> None:
        """Binds both ports and reads the keys, so that mistakes show before Ray starts. ``changes``: all that the log
        holds; ``change_log`` None: one in memory.

        Raises: PortTaken, OSError, ConfigError.
        """
        self._config = config
        self.admin_key, was_made = kept_key(config.admin_key_path, where="admin.key_file")
        if was_made:
            logger.info("the admin key was made: %s", config.admin_key_path)
        # Kept, so that prefix caches of engines that outlive us stay warm, and each tenant's its own.
        self._cache_salt_key, _ = kept_key(config.state_dir / "cache-salt.key", where="state_dir")
        log = MemoryChangeLog() if change_log is None else change_log
        self._directory = DirectoryOwner(config, house_key=self.admin_key, log=log, logged=changes)
        self.generated_keys = self._directory.generated
        self._server_socket = bind("server", config.server.host, config.server.port)
        try:
            self._admin_socket = bind("admin", config.admin.host, config.admin.port)
        except BaseException:
            self._server_socket.close()
            raise
        self.cluster = RayCluster(
            address=config.ray.address, namespace=config.ray.namespace, num_cpus=config.ray.num_cpus
        )
        limits = config.limits
        self._core = Scheduler(
            models=config.models,
            limits=Limits(
                queue=QueueLimits(max_requests=limits.max_queued_requests, max_bytes=limits.max_queued_bytes),
                max_wait_s=limits.request_timeout_s,
            ),
            rules=self._directory.rules,
        )
        self.settlement = Settlement()
        self.dispatcher = Dispatcher(
            scheduler=self._core, settlement=self.settlement, on_worker_down=self._on_worker_down
        )
        self.fleet = Fleet(
            worker_specs(config),
            cluster=self.cluster,
            links=self.dispatcher,
            last_counter_mj=self.settlement.last_counter_mj,
            clock=time.monotonic,
            restart_delays_s=RESTART_DELAYS_S,
        )
        self._listeners: list[Listener] = []
        self.url = ""
        self.admin_url = ""

    # -- start and stop

    async def start(self, *, progress: Callable[[str], None] = lambda text: None) -> None:
        """Joins or starts Ray, adopts or starts the workers, then listens; returns while workers still load.

        Raises: WorkerError, with the remedy.
        """
        target = self._config.ray.address
        progress("starting Ray on this machine" if target is None else f"joining Ray at {target}")
        await asyncio.to_thread(self.cluster.connect)
        await self.dispatcher.start()
        self._directory.start(self.dispatcher.reload)
        await self._directory.commit()
        adopted, started = await self.fleet.start(adopt=self.cluster.is_standing)
        if adopted:
            progress(f"adopted {adopted} standing workers; no weights are loaded again")
        if started:
            progress(f"starting {started} workers")
        await self._listen()
        progress(f"listening on {self.url}, admin on {self.admin_url}")

    async def _listen(self) -> None:
        config = self._config
        metrics = Metrics()
        metrics.set_source(self.dispatcher.snapshot)
        now_unix_s = int(time.time())
        relay = RelayApp(
            dispatcher=self.dispatcher,
            keys=self._directory.keys,
            hosts=Hosts(config.server.allowed_hosts),
            models={
                name: ServedModel(
                    name=name,
                    default_output_tokens=model.default_output_tokens,
                    expansion=EXPANSIONS[model.normalizer],
                    created_unix_s=now_unix_s,
                    rates=rates_of(model, currency=config.currency),
                    slo=slo_of(model),
                )
                for name, model in config.models.items()
            },
            limits=RelayLimits(
                max_body_bytes=config.limits.max_body_bytes,
                max_output_tokens=config.limits.max_output_tokens,
                request_timeout_s=config.limits.request_timeout_s,
                keep_alive_s=config.limits.keep_alive_s,
                slow_reader_s=config.limits.slow_reader_s,
            ),
            metrics=metrics,
            cache_salt_key=self._cache_salt_key.encode(),
            zones=zone_names(config),
            denials=self._directory.tenancy,
        )
        admin = AdminApp(
            dispatcher=self.dispatcher,
            keys=self._directory.admin_keys,
            hosts=Hosts(),
            metrics=metrics,
            routes=directory_routes(self._directory.tenancy, house_key_id=house_key_id(self.admin_key)),
            denials=self._directory.tenancy,
        )
        server = config.server
        tls = None
        if server.tls_cert_file is not None and server.tls_key_file is not None:
            tls = Tls(cert_file=server.tls_cert_file, key_file=server.tls_key_file)
        # Admin first: whoever watches the start can ask before clients can.
        for listener in (
            Listener(admin, self._admin_socket),
            Listener(relay, self._server_socket, tls=tls, behind_proxy=server.behind_proxy),
        ):
            self._listeners.append(listener)
            await listener.start()
        self.admin_url, self.url = (listener.url for listener in self._listeners)

    async def wait_ready(self, *, progress: Callable[[str], None] = lambda text: None) -> None:
        """Until every configured worker takes work. Raises: WorkerError when one cannot, or not in time."""
        until_s = time.monotonic() + self._config.limits.start_timeout_s
        said: dict[str, str] = {}
        while True:
            workers = self.dispatcher.snapshot().workers
            for worker in workers:
                words = state_words(worker)
                if said.get(worker.worker_id) != words:
                    said[worker.worker_id] = words
                    progress(f"worker {worker.worker_id}: {words}")
                if worker.status is not None and worker.status.state is WorkerState.STOPPED:
                    raise WorkerError(f"worker {worker.worker_id} did not start: {worker.status.cause}")
            if workers and all(worker.is_ready for worker in workers):
                return
            if time.monotonic() > until_s:
                late = ", ".join(worker.worker_id for worker in workers if not worker.is_ready)
                raise WorkerError(
                    f"not ready after limits.start_timeout_s = {self._config.limits.start_timeout_s:g} s: {late}"
                )
            await asyncio.sleep(READY_POLL_S)

    async def stop(self, *, drain_s: float | None = None, stop_workers: bool | None = None) -> None:
        """Lets running requests end, then leaves in order. On a standing cluster the workers stay by default."""
        drain_s = self._config.limits.drain_s if drain_s is None else drain_s
        stop_workers = not self.cluster.is_standing if stop_workers is None else stop_workers
        await self.fleet.stop()
        await self.dispatcher.stop(drain_s=drain_s, stop_workers=stop_workers)
        for listener in self._listeners:
            await listener.stop()
        await self._directory.stop()
        self._server_socket.close()
        self._admin_socket.close()
        await asyncio.to_thread(self.cluster.shutdown)

    def reload(self, config: Config) -> list[str]:
        """Keys, budgets, weights, zones and scheduling as they are written now; running requests go on as admitted.

        Where the API owns tenants, keys and budgets, what the file says of them is ignored. Returns the sections that
        changed too and need a restart. Raises: ConfigError; nothing changes then.
        """
        self._directory.reload(config)
        before, self._config = self._config, config
        return [name for name in RESTART_SECTIONS if getattr(before, name) != getattr(config, name)]

    @property
    def directory_owner(self) -> Owner:
        """Who says which tenants there are; only a restart can change it."""
        return self._directory.owner

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""
        return self.dispatcher.snapshot()

    def _on_worker_down(self, worker_id: str, cause: str) -> None:
        self.fleet.on_worker_down(worker_id, cause)


def state_words(worker: WorkerSnapshot) -> str:
    """One worker's state for a person: ``starting (calibrating, at most 20 s)``."""
    status = worker.status
    if status is None:
        return f"{worker.phase}{f' ({worker.cause})' if worker.cause else ''}"
    return f"{status.state.value}{f' ({status.cause})' if status.cause else ''}"
