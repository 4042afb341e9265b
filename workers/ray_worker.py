"""Ray: the actor that hosts workers, and the control plane's link to it. The only file that imports ``ray``.

Called by ``scheduler.service``. It must never know a request, a tenant or a price: it moves encoded values.

One streaming generator a worker carries everything upward, one item an engine step. Ray bounds it: with
``_generator_backpressure_num_objects`` the actor waits while four items are unread. Downward, commands travel in
batches and nobody waits for their return: a dead worker shows in its stream. Ray does not promise exactly-once calls,
so every record is numbered and every attempt has its own id.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from workers.build import build_worker
from workers.errors import StaleEpoch, WireMismatch, WorkerDead, WorkerError
from workers.types import WIRE_VERSION, Command, Report, WorkerSpec
from workers.worker import Worker

logger = logging.getLogger("jouleway.ray")

TESTED_RAY = "2.60"
NAMESPACE = "jouleway"
ACTOR_PREFIX = "jouleway-host-"
MAX_UNREAD_ITEMS = 4
RAYLET_GONE_S = 15.0

TELEMETRY_OFF = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Set before any of the libraries is imported, here and in the actors."""

_encode_report = msgspec.msgpack.Encoder().encode
_decode_report = msgspec.msgpack.Decoder(Report).decode
_encode_commands = msgspec.msgpack.Encoder().encode
_decode_commands = msgspec.msgpack.Decoder(list[Command]).decode
_decode_specs = msgspec.msgpack.Decoder(list[WorkerSpec]).decode


class WorkerHost:
    """The actor's body: one or more workers in one process (many only when they are simulated)."""

    def __init__(self, encoded_specs: bytes) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        specs = _decode_specs(encoded_specs)
        self._specs = [_with_gpu_uuids(spec) for spec in specs]
        self._workers: dict[str, Worker] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._raylet_pid = os.getppid()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> list[str]:
        """Begins to start every worker and returns at once: the reports say how it goes."""
        if not self._workers:
            for spec in self._specs:
                worker = build_worker(spec)
                self._workers[spec.worker_id] = worker
                self._starting[spec.worker_id] = asyncio.create_task(self._start_one(worker))
            self._tasks.append(asyncio.create_task(self._leave_when_done()))
        return [spec.worker_id for spec in self._specs]

    async def _start_one(self, worker: Worker) -> None:
        try:
            await worker.start()
        except WorkerError as error:
            logger.error("worker %s did not start: %s", worker.spec.worker_id, error)
        except Exception as error:
            logger.error("worker %s did not start: %s: %s", worker.spec.worker_id, type(error).__name__, error)

    async def describe(self) -> dict[str, Any]:
        """Wire version and worker ids: what a control plane asks before it connects."""
        return {
            "wire_version": WIRE_VERSION,
            "worker_ids": [spec.worker_id for spec in self._specs],
            "pid": os.getpid(),
        }

    async def reports(self, worker_id: str, epoch: int, wire_version: int) -> AsyncIterator[bytes]:
        """Encoded reports of one worker. Being fenced off or unequal in version is said in the item's epoch:

        −1 = wire mismatch, any other foreign epoch = the newer connection's.
        """
        try:
            async for report in self._workers[worker_id].reports(epoch, wire_version):
                yield _encode_report(report)
        except StaleEpoch as error:
            yield _encode_report(Report(epoch=error.current))
        except WireMismatch:
            yield _encode_report(Report(epoch=-1))

    async def command(self, worker_id: str, epoch: int, encoded: bytes) -> None:
        try:
            self._workers[worker_id].command(epoch, _decode_commands(encoded))
        except StaleEpoch as error:
            logger.warning("commands for %s were refused: %s", worker_id, error)

    async def stop(self, worker_id: str, drain_s: float) -> None:
        if (worker := self._workers.get(worker_id)) is not None:
            starting = self._starting.get(worker_id)
            if starting is not None and not starting.done():
                starting.cancel()
            await worker.stop(drain_s=drain_s)

    async def _leave_when_done(self) -> None:
        """Ends the process when its last worker stopped by itself, or when its raylet is gone for 15 s."""
        gone_s = 0.0
        while True:
            await asyncio.sleep(1.0)
            gone_s = gone_s + 1.0 if os.getppid() != self._raylet_pid else 0.0
            if gone_s >= RAYLET_GONE_S:
                logger.error("the raylet is gone for %.0f s: stopping the engines", gone_s)
                await asyncio.gather(*(worker.stop(cause="raylet gone") for worker in self._workers.values()))
            if self._workers and all(worker.stopped.is_set() for worker in self._workers.values()):
                await asyncio.sleep(2.0)  # the last report leaves first
                os._exit(0)


def _with_gpu_uuids(spec: WorkerSpec) -> WorkerSpec:
    """Ray assigns GPUs by index; from here on they are named by UUID, which no restart or container reorders."""
    if spec.num_gpus == 0 or spec.gpu_uuids:
        return spec
    from workers.power.nvml import uuids_of_visible_devices

    uuids = uuids_of_visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    return msgspec.structs.replace(spec, gpu_uuids=uuids)


class RayLink:
    """The control plane's end of one worker."""

    def __init__(self, worker_id: str, actor: Any) -> None:
        self.worker_id = worker_id
        self._actor = actor
        self._epoch = 0
        self._command = actor.command.options(num_returns=0)

    async def reports(self, epoch: int) -> AsyncIterator[Report]:
        """Connects with an epoch. Raises: WorkerDead, StaleEpoch, WireMismatch."""
        import ray

        self._epoch = epoch
        stream = self._actor.reports.options(
            num_returns="streaming", _generator_backpressure_num_objects=MAX_UNREAD_ITEMS
        ).remote(self.worker_id, epoch, WIRE_VERSION)
        try:
            async for reference in stream:
                report = _decode_report(await reference)
                if report.epoch == -1:
                    raise WireMismatch(given=WIRE_VERSION, spoken=-1)
                if report.epoch != epoch:
                    raise StaleEpoch(given=epoch, current=report.epoch)
                yield report
        except ray.exceptions.RayError as error:
            raise WorkerDead(self.worker_id, _first_line(error)) from error
        raise WorkerDead(self.worker_id, "its report stream ended")

    async def send(self, commands: list[Command]) -> None:
        """Sends a batch and does not wait: a dead worker shows in ``reports``."""
        self._command.remote(self.worker_id, self._epoch, _encode_commands(commands))

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Stops engine and actor; returns when the worker said so or 30 s after its drain time."""
        import ray

        try:
            await asyncio.wait_for(_as_future(self._actor.stop.remote(self.worker_id, drain_s)), drain_s + 30.0)
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("worker %s did not stop in order: %s", self.worker_id, _first_line(error))
            ray.kill(self._actor, no_restart=True)


class RayCluster:
    """Starts, joins and leaves Ray; starts and finds workers.

    ``address`` None = a cluster of our own that dies with this process; otherwise a standing one, on which workers are
    detached: they outlive the control plane and are found again.
    """

    def __init__(self, *, address: str | None = None, namespace: str = NAMESPACE, num_cpus: int | None = None) -> None:
        self._address = address
        self._namespace = namespace
        self._num_cpus = num_cpus
        self._is_connected = False

    @property
    def is_standing(self) -> bool:
        return self._address is not None

    def connect(self) -> None:
        """Blocks while Ray starts or is joined (a few seconds). Raises: WorkerError, with the remedy."""
        os.environ.update(TELEMETRY_OFF)
        try:
            import ray
        except ImportError as error:
            raise WorkerError("Ray is not installed; remedy: install the extra 'ray' (make setup does)") from error
        check_ray_version(ray.__version__)
        try:
            if self._address is None:
                ray.init(
                    namespace=self._namespace,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    num_cpus=self._num_cpus,
                    _node_ip_address="127.0.0.1",
                    runtime_env={"env_vars": TELEMETRY_OFF},
                )
            else:
                ray.init(
                    address=self._address,
                    namespace=self._namespace,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    runtime_env={"env_vars": TELEMETRY_OFF},
                )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = self._address or "a cluster of our own"
            raise WorkerError(
                f"Ray at ray.address={where} cannot be reached: {_first_line(error)}; "
                "remedy: `ray status`, and RAY_AUTH_MODE=token with the cluster's token on both sides"
            ) from error
        self._is_connected = True

    def start(self, specs: list[WorkerSpec]) -> list[RayLink]:
        """Starts one actor for the specs given (several only for simulated engines); returns a link for each."""
        import ray

        first = specs[0]
        options: dict[str, Any] = {
            "name": f"{ACTOR_PREFIX}{first.worker_id}",
            "namespace": self._namespace,
            "num_cpus": sum(spec.num_cpus for spec in specs),
            "max_concurrency": 1000,
            "max_restarts": 0,
            "runtime_env": {"env_vars": {**TELEMETRY_OFF, **first.environment, "PYTHONPATH": _python_path()}},
        }
        if self.is_standing:
            options["lifetime"] = "detached"
        if first.num_gpus:
            options["num_gpus"] = first.num_gpus
        if first.num_gpus > 1:
            options["scheduling_strategy"] = self._tensor_parallel_group(first)
        actor = ray.remote(WorkerHost).options(**options).remote(msgspec.msgpack.encode(specs))
        actor.start.remote()
        return [RayLink(spec.worker_id, actor) for spec in specs]

    def _tensor_parallel_group(self, spec: WorkerSpec) -> Any:
        """All GPUs of one engine on one node, or none: a STRICT_PACK group with a single bundle."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        lifetime = "detached" if self.is_standing else None
        group = placement_group(
            [{"CPU": spec.num_cpus, "GPU": spec.num_gpus}],
            strategy="STRICT_PACK",
            name=f"{ACTOR_PREFIX}{spec.worker_id}",
            lifetime=lifetime,
        )
        return PlacementGroupSchedulingStrategy(placement_group=group)

    def find(self, *, timeout_s: float = 15.0) -> list[RayLink]:
        """Links to the workers that stand on the cluster from an earlier control plane.

        An actor that speaks another wire version is told to stop and is not returned: it will be replaced.
        """
        import ray
        from ray.util import list_named_actors

        links: list[RayLink] = []
        for entry in list_named_actors(all_namespaces=True):
            if entry["namespace"] != self._namespace or not entry["name"].startswith(ACTOR_PREFIX):
                continue
            try:
                actor = ray.get_actor(entry["name"], namespace=self._namespace)
                description = ray.get(actor.describe.remote(), timeout=timeout_s)
            except (ValueError, ray.exceptions.RayError, TimeoutError) as error:
                logger.warning("%s does not answer and is left out: %s", entry["name"], _first_line(error))
                continue
            if description["wire_version"] != WIRE_VERSION:
                logger.warning("%s speaks wire version %s: replacing it", entry["name"], description["wire_version"])
                for worker_id in description["worker_ids"]:
                    actor.stop.remote(worker_id, 30.0)
                continue
            links += [RayLink(worker_id, actor) for worker_id in description["worker_ids"]]
        return links

    def shutdown(self) -> None:
        """Leaves Ray; a cluster of our own ends with it, with every worker on it."""
        if not self._is_connected:
            return
        import ray

        ray.shutdown()
        self._is_connected = False


def check_ray_version(version: str) -> None:
    """Raises WorkerError outside the tested range: streaming generators and options here are not all public."""
    if version.rsplit(".", 1)[0] != TESTED_RAY:
        raise WorkerError(
            f"Ray {version} is installed, tested is {TESTED_RAY}.*; remedy: pip install 'ray=={TESTED_RAY}.*'"
        )


def _python_path() -> str:
    """Actors import ``workers`` from where this process does, installed or not."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys([root, *inherited]))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[-1][:300] if text else type(error).__name__


async def _as_future(reference: Any) -> Any:
    return await reference
