"""The control plane put together: Ray, workers, dispatcher, relay, admin; started in order, stopped in order.

Called by the commands `serve` and `demo`. Configuration ends here. It must never decide anything about a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from scheduler.accounting.change_rows import LedgerChangeLog
from scheduler.accounting.changes import Owner
from scheduler.accounting.compaction import Compactor
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.growth import Growth, make_growth
from scheduler.accounting.prices import NO_PRICES, NoPrice, PriceBook
from scheduler.accounting.receipts import Receipt, make_receipt
from scheduler.accounting.recovery import recover
from scheduler.accounting.rows import Prices
from scheduler.accounting.usage_log import LedgerOutcomes, LedgerUsage
from scheduler.api.access import Hosts
from scheduler.api.admin import AdminApp
from scheduler.api.app import RelayApp
from scheduler.api.directory import directory_routes
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.api.outcomes import OutcomeDesk
from scheduler.api.usage import UsageDesk
from scheduler.catalogue import with_published_curves
from scheduler.config import Config, worker_specs
from scheduler.core.admission import Limits
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Band, Rates
from scheduler.core.scheduler import Scheduler
from scheduler.credentials import house_key_id, kept_key
from scheduler.directory_owner import DirectoryOwner
from scheduler.dispatcher import Dispatcher
from scheduler.energy_feed import EnergyFeed
from scheduler.fleet import RESTART_DELAYS_S, Fleet
from scheduler.ledger_files import open_ledger, open_spool
from scheduler.listeners import Listener, Tls, bind
from scheduler.metrics import Metrics
from scheduler.policies import check_currency, check_same_currency, prices_of, slo_of, zone_names
from scheduler.snapshot import Snapshot, is_up, state_words
from scheduler.statement import STATEMENT, software_version
from workers.errors import WorkerError
from workers.ray_worker import RayCluster
from workers.types import WorkerState

logger = logging.getLogger("jouleway.service")

EXPANSIONS = {"none": 1, "nfc": 3, "nfkc": 11}
"""Characters that one can become in a tokenizer's normaliser, at most (design §4)."""

READY_POLL_S = 0.1
RETAIN_EVERY_S = 3600.0

RESTART_SECTIONS = (
    "server",
    "admin",
    "ray",
    "ledger",
    "limits",
    "models",
    "workers",
    "catalogue",
    "state_dir",
    "generate_keys",
    "directory",
)
"""What is read at the start only."""


class Service:
    """One control plane. ``start``, optionally ``wait_ready``, then ``stop`` on every way out, also after a failure."""

    def __init__(self, config: Config) -> None:
        """Binds both ports, opens the ledger and reads the keys, so that mistakes show before Ray starts.

        Raises: PortTaken, OSError, ConfigError, LedgerError.
        """
        self._config = config
        self.admin_key, was_made = kept_key(config.admin_key_path, where="admin.key_file")
        if was_made:
            logger.info("the admin key was made: %s", config.admin_key_path)
        # Kept, so that prefix caches of engines that outlive us stay warm, and each tenant's its own.
        self._cache_salt_key, _ = kept_key(config.state_dir / "cache-salt.key", where="state_dir")
        self._book = NO_PRICES
        self._noted_prices: set[str] = set()
        self._relay: RelayApp | None = None
        self._retaining: asyncio.Task[None] | None = None
        specs = with_published_curves(worker_specs(config), config.models, config.catalogue)
        self._server_socket = bind("server", config.server.host, config.server.port)
        try:
            self._admin_socket = bind("admin", config.admin.host, config.admin.port)
        except BaseException:
            self._server_socket.close()
            raise
        try:
            self.ledger = open_ledger(config)
            self._open_books(config)
        except BaseException:
            self._close_sockets()
            raise
        self.cluster = RayCluster(
            address=config.ray.address, namespace=config.ray.namespace, num_cpus=config.ray.num_cpus
        )
        self._metrics = Metrics()
        self.dispatcher = Dispatcher(
            scheduler=self._core,
            settlement=self.settlement,
            on_worker_down=self._on_worker_down,
            on_ledger_wait=self._metrics.observe_ledger_wait,
        )
        self._metrics.set_source(self.dispatcher.snapshot)
        self._energy = EnergyFeed(config, on_prices=self.dispatcher.set_energy_prices, books=self.settlement)
        self.fleet = Fleet(
            specs,
            cluster=self.cluster,
            links=self.dispatcher,
            last_counter_mj=self.settlement.durable_counter_mj,
            counter_id=self._counter_id,
            clock=time.monotonic,
            restart_delays_s=RESTART_DELAYS_S,
        )
        self._listeners: list[Listener] = []
        self.url = ""
        self.admin_url = ""

    def _open_books(self, config: Config) -> None:
        """Tenants, core and settlement as the ledger has them. Raises: ConfigError, LedgerError."""
        try:
            self.spool = open_spool(config, self.ledger)  # first: what it delivers may be a key that was revoked
            log = LedgerChangeLog(self.ledger)
            self._directory = DirectoryOwner(config, house_key=self.admin_key, log=log, logged=log.changes())
            self.generated_keys = self._directory.generated
            limits = config.limits
            self._core = Scheduler(
                models=config.models,
                limits=Limits(
                    queue=QueueLimits(max_requests=limits.max_queued_requests, max_bytes=limits.max_queued_bytes),
                    max_wait_s=limits.request_timeout_s,
                ),
                rules=self._directory.rules,
            )
            self.settlement, self.recovered = recover(
                self.ledger,
                self._core,
                store=self.spool,
                statement=STATEMENT,
                version=software_version(),
                now_s=time.monotonic(),
                is_away=lambda: self.spool is not None and self.spool.num_rows > 0,
            )
            check_currency(config, self.settlement.books.balances)
        except BaseException:
            self.ledger.close()
            raise
        log.attach(self.settlement, self.ledger)
        self.settlement.carbon_ug_per_mj = self._core.rules.carbon_ug_per_mj

    # -- start and stop

    async def start(self, *, progress: Callable[[str], None] = lambda text: None) -> None:
        """Joins or starts Ray, adopts or starts the workers, then listens; returns while workers still load.

        Raises: WorkerError, with the remedy.
        """
        target = self._config.ray.address
        progress("starting Ray on this machine" if target is None else f"joining Ray at {target}")
        await asyncio.to_thread(self.cluster.connect)
        await self.settlement.commit()  # who opened the ledger, and what was voided, before anything new
        await self.dispatcher.start()
        self._directory.start(self.dispatcher.reload)
        await self._energy.start()
        await self._directory.commit()
        adopted, started = await self.fleet.start(adopt=self.cluster.is_standing)
        if adopted:
            progress(f"adopted {adopted} standing workers; no weights are loaded again")
        if started:
            progress(f"starting {started} workers")
        self.settlement.give_up_workers(others_than=self.dispatcher.worker_ids)
        self._retaining = asyncio.create_task(self._retain(), name="retention")
        await self._listen()
        progress(f"listening on {self.url}, admin on {self.admin_url}")

    async def _listen(self) -> None:
        config = self._config
        now_unix_s = int(time.time())
        source = LedgerUsage(self.ledger, self.settlement)
        book = prices_of(config)
        self._set_prices(book, self._unknown_prices(book))
        usage = UsageDesk(source, prices=self._rates_now)
        relay = self._relay = RelayApp(
            dispatcher=self.dispatcher,
            keys=self._directory.keys,
            hosts=Hosts(config.server.allowed_hosts),
            models={
                name: ServedModel(
                    name=name,
                    default_output_tokens=model.default_output_tokens,
                    expansion=EXPANSIONS[model.normalizer],
                    created_unix_s=now_unix_s,
                    slo=slo_of(model),
                )
                for name, model in config.models.items()
            },
            limits=RelayLimits(
                max_body_bytes=config.limits.max_body_bytes,
                max_output_tokens=config.limits.max_output_tokens,
                request_timeout_s=config.limits.request_timeout_s,
                max_window_s=config.limits.max_window_s,
                keep_alive_s=config.limits.keep_alive_s,
                slow_reader_s=config.limits.slow_reader_s,
            ),
            metrics=self._metrics,
            cache_salt_key=self._cache_salt_key.encode(),
            zones=zone_names(config),
            receipts=self._receipt,
            growths=self._growth,
            prices=book,
            usage=usage,
            outcomes=OutcomeDesk(LedgerOutcomes(self.ledger, self.settlement, source)),
            denials=self._directory.tenancy,
        )
        admin = AdminApp(
            dispatcher=self.dispatcher,
            keys=self._directory.admin_keys,
            hosts=Hosts(),
            metrics=self._metrics,
            routes=directory_routes(self._directory.tenancy, house_key_id=house_key_id(self.admin_key)),
            recall=self._directory.tenancy.recall,
            denials=self._directory.tenancy,
            receipts=self._receipt,
            growths=self._growth,
            usage=usage,
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
        """Until every configured worker is up. Raises: WorkerError when one cannot, or not in time."""
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
            if workers and all(is_up(worker) for worker in workers):
                return
            if time.monotonic() > until_s:
                late = ", ".join(worker.worker_id for worker in workers if not is_up(worker))
                raise WorkerError(
                    f"not ready after limits.start_timeout_s = {self._config.limits.start_timeout_s:g} s: {late}"
                )
            await asyncio.sleep(READY_POLL_S)

    async def stop(self, *, drain_s: float | None = None, stop_workers: bool | None = None) -> None:
        """Lets running requests end, then leaves in order. On a standing cluster the workers stay by default."""
        drain_s = self._config.limits.drain_s if drain_s is None else drain_s
        stop_workers = not self.cluster.is_standing if stop_workers is None else stop_workers
        await self.fleet.stop()
        await self._energy.stop()
        await self.dispatcher.stop(drain_s=drain_s, stop_workers=stop_workers)
        for listener in self._listeners:
            await listener.stop()
        if self._retaining is not None:
            self._retaining.cancel()
        await self._directory.stop()
        self._close_sockets()
        await self._close_ledger()
        await asyncio.to_thread(self.cluster.shutdown)

    def reload(self, config: Config) -> list[str]:
        """Keys, budgets, prices, weights, zones and scheduling as they are written; running requests go on as admitted.

        Where the API owns tenants, keys and budgets, what the file says of them is ignored. Returns the sections that
        changed too and need a restart. Raises: ConfigError, LedgerError; nothing changes then.
        """
        check_same_currency(self._config, config)
        prices = prices_of(config)
        unknown = self._unknown_prices(prices)
        self._directory.reload(config)  # the last that may raise
        before, self._config = self._config, config
        self._set_prices(prices, unknown)
        self._energy.reload(config)
        if self._relay is not None:
            self._relay.reload(prices)
        return [name for name in RESTART_SECTIONS if _read_at_start(before, name) != _read_at_start(config, name)]

    def _unknown_prices(self, book: PriceBook) -> list[Prices]:
        """Rows of the versions that the ledger does not have yet. Raises: LedgerError."""
        versions = {version.version_id(): version for version in book.versions}
        return [
            Prices(version=version_id, text=version.text())
            for version_id, version in versions.items()
            if version_id not in self._noted_prices and self.ledger.find("prices", version_id) is None
        ]

    def _set_prices(self, book: PriceBook, unknown: list[Prices]) -> None:
        """In force from now on: its new versions are noted, and what an operator should know of it is said."""
        for row in unknown:
            self.settlement.note(row)
        self._noted_prices.update(version.version_id() for version in book.versions)
        for words in book.warnings(self._config.models, time.time()):
            logger.warning("prices: %s", words)
        self._book = book

    async def _retain(self) -> None:
        """Once in a while what is too old is compacted; for ever."""
        compactor = Compactor(self.ledger, self.settlement)
        while True:
            days = self._config.ledger.retention_days
            if days is not None:
                try:
                    await compactor.compact(before_us=int((time.time() - days * 86_400) * 1_000_000))
                except LedgerError as error:
                    logger.warning("ledger: nothing was compacted: %s", error)
            await asyncio.sleep(RETAIN_EVERY_S)

    def _rates_now(self) -> dict[str, Rates]:
        """What each model costs at this moment, at the default tier; models without a price are left out."""
        found, book = {}, self._book
        for model in self._config.models:
            try:
                found[model] = book.rates(model, Band.DEFAULT, time.time())
            except NoPrice:
                continue
        return found

    def _receipt(self, request_id: str, tenant: str | None) -> Receipt | None:
        return make_receipt(self.ledger, request_id, statement=STATEMENT, tenant=tenant)

    def _growth(self, from_size: int) -> Growth:
        return make_growth(self.ledger, from_size)

    def _close_sockets(self) -> None:
        self._server_socket.close()
        self._admin_socket.close()

    async def _close_ledger(self) -> None:
        """With a state and a checkpoint of all of it, so that the next start replays nothing."""
        try:
            await self.settlement.journal.commit(with_state=True)
        except LedgerError as error:
            logger.error("ledger: not closed in order, the next start replays its last rows: %s", error)
        if self.spool is not None:
            self.spool.close()
        self.ledger.close()

    @property
    def directory_owner(self) -> Owner:
        """Who says which tenants there are; only a restart can change it."""
        return self._directory.owner

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""
        return self.dispatcher.snapshot()

    def _counter_id(self, worker_id: str) -> str | None:
        """Of the counter of this worker's last booked window, where the process that read it is still linked."""
        incarnation, _ = self.settlement.books.last_numbers.get(worker_id, ("", 0))
        connection = self.dispatcher.connection(worker_id)
        if connection is None or connection.incarnation != incarnation or connection.status is None:
            return None
        return connection.status.counter_id

    def _on_worker_down(self, worker_id: str, cause: str) -> None:
        self.fleet.on_worker_down(worker_id, cause)


def _read_at_start(config: Config, section: str) -> object:
    """A section without what is read at each reload."""
    if section == "models":
        return {name: model.model_copy(update={"price": None}) for name, model in config.models.items()}
    return getattr(config, section)
