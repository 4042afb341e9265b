"""Ray: actors around processes of workers, and the control plane's links to them. The only file that imports ``ray``.

Called by ``scheduler.service``. It must never know a request, a tenant or a price: it moves encoded values.

One streaming generator a worker carries everything upward, one item an engine step. Ray bounds it: with
``_generator_backpressure_num_objects`` the actor waits while four items are unread. Downward, commands travel in
numbered batches and nobody waits for their return: a dead worker shows in its stream. Ray does not promise
exactly-once calls, so every record is numbered and every attempt has its own id.

An actor's name ends with a number of its own: a name is free again only some time after its actor died.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import msgspec

from workers.errors import StaleEpoch, WireMismatch, WorkerDead, WorkerError
from workers.guardian import MARKER
from workers.host import WorkerHost
from workers.types import WIRE_VERSION, Command, Report, WorkerSpec

logger = logging.getLogger("jouleway.ray")

TESTED_RAY = "2.60"
NAMESPACE = "jouleway"
ACTOR_PREFIX = "jouleway-host-"
MAX_UNREAD_ITEMS = 4
HEARTBEAT_S = 2.0
"""How often a worker hears that its control plane lives, whatever else is said."""
STOP_GRACE_S = 30.0
"""What a worker gets beyond its drain time; then its process is killed."""
DESCRIBE_TIMEOUT_S = 60.0
"""How long a standing worker may take to say who it is: loading an engine blocks it for half a minute."""
REPLACE_DRAIN_S = 30.0
"""What runs on a worker of another wire version gets before it is stopped."""

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

RAY_RESTRAINED = {
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}
"""Read by Ray when it is imported: a late call after our end must not start another cluster, and Ray's own handler of
SIGTERM aborts the process 3 s later, while we let running requests end."""

_encode_specs = msgspec.msgpack.Encoder().encode
_encode_commands = msgspec.msgpack.Encoder().encode
_decode_report = msgspec.msgpack.Decoder(Report).decode


class RayLink:
    """The control plane's end of one worker."""

    def __init__(self, worker_id: str, actor: Any) -> None:
        self.worker_id = worker_id
        self.incarnation: str = actor._actor_id.hex()
        """Names the process: a successor under the same worker id has another."""
        self._actor = actor
        self._epoch = 0
        self._num_batches = 0
        self._command = actor.command.options(num_returns=0)

    async def reports(self, epoch: int) -> AsyncIterator[Report]:
        """Connects with an epoch. Raises: WorkerDead, StaleEpoch, WireMismatch."""
        import ray

        self._epoch, self._num_batches = epoch, 0
        stream = self._actor.reports.options(
            num_returns="streaming", _generator_backpressure_num_objects=MAX_UNREAD_ITEMS
        ).remote(self.worker_id, epoch, WIRE_VERSION)
        next_beat_s = time.monotonic() + HEARTBEAT_S
        try:
            async for reference in stream:
                yield self._checked(_decode_report(await reference), epoch)
                if time.monotonic() >= next_beat_s:  # a report a second at least drives it
                    next_beat_s = time.monotonic() + HEARTBEAT_S
                    self._command.remote(self.worker_id, epoch, 0, _encode_commands([]))
        except ray.exceptions.RayError as error:
            is_final = isinstance(error, ray.exceptions.ActorDiedError)
            raise WorkerDead(self.worker_id, in_a_line(error), is_final=is_final) from error
        raise WorkerDead(self.worker_id, "its report stream ended")

    def _checked(self, report: Report, epoch: int) -> Report:
        if report.epoch < 0:
            # Too old or too new to talk to: it ends as soon as what runs there has ended.
            self._actor.stop.remote(self.worker_id, REPLACE_DRAIN_S)
            raise WireMismatch(given=WIRE_VERSION, spoken=-report.epoch)
        if report.epoch != epoch:
            raise StaleEpoch(given=epoch, current=report.epoch)
        return report

    async def send(self, commands: list[Command]) -> None:
        """Sends a batch and does not wait: a dead worker shows in ``reports``."""
        self._num_batches += 1
        self._command.remote(self.worker_id, self._epoch, self._num_batches, _encode_commands(commands))

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Stops engine and worker; returns when the worker said so, or killed its process 30 s after its drain time."""
        await _stop(self._actor, [self.worker_id], drain_s=drain_s)


class RayCluster:
    """Starts, joins and leaves Ray; starts, finds and ends workers.

    ``address`` None = a cluster of our own that dies with this process; otherwise a standing one, on which workers are
    detached: they outlive the control plane and are found again.
    """

    def __init__(self, *, address: str | None = None, namespace: str = NAMESPACE, num_cpus: int | None = None) -> None:
        self._address = address
        self._namespace = namespace
        self._num_cpus = num_cpus
        self._is_connected = False
        self._asked: dict[str, tuple[float, int]] = {}
        """CPUs and GPUs of each process asked for, by its first worker."""

    @property
    def is_standing(self) -> bool:
        return self._address is not None

    def connect(self) -> None:
        """Blocks while Ray starts or is joined (a few seconds). Raises: WorkerError, with the remedy."""
        os.environ.update(TELEMETRY_OFF)
        os.environ.update(RAY_RESTRAINED)
        try:
            import ray
        except ImportError as error:
            raise WorkerError("Ray is not installed; remedy: install the extra 'ray' (make setup does)") from error
        check_ray_version(ray.__version__)
        options: dict[str, Any] = {"address": self._address}
        if self._address is None:
            # "local": without it Ray would join whatever cluster was last started on this machine.
            options = {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": self._num_cpus,
                "_node_ip_address": "127.0.0.1",
            }
        try:
            ray.init(
                namespace=self._namespace,
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env={"env_vars": TELEMETRY_OFF},
                **options,
            )
        except Exception as error:  # Ray raises a bare Exception, too, where its own start takes too long
            where = self._address or "a cluster of our own"
            ray.shutdown()  # what did start of it
            raise WorkerError(
                f"Ray at ray.address={where} cannot be reached: {in_a_line(error)}; "
                "remedy: `ray status`, and RAY_AUTH_MODE=token with the cluster's token on both sides"
            ) from error
        self._is_connected = True

    def start(self, specs: list[WorkerSpec]) -> list[RayLink]:
        """Starts one actor for the specs given (several only for simulated engines); returns a link for each.

        Raises: WorkerError where it could never be placed, or Ray refuses it.
        """
        import ray

        first = specs[0]
        name = f"{ACTOR_PREFIX}{first.worker_id}.{secrets.token_hex(4)}"
        num_cpus = sum(spec.num_cpus for spec in specs)
        environment = {**TELEMETRY_OFF, **first.environment, "PYTHONPATH": python_path(), MARKER: name}
        options: dict[str, Any] = {
            "name": name,
            "namespace": self._namespace,
            "num_cpus": num_cpus,
            "num_gpus": first.num_gpus if first.engine != "simulated" else 0,
            "max_concurrency": 1000,
            "max_restarts": 0,
            "runtime_env": {"env_vars": environment},
        }
        if self.is_standing:
            options["lifetime"] = "detached"
        self._asked[first.worker_id] = (num_cpus, options["num_gpus"])
        try:
            if not self.is_standing:
                check_room(self._asked, ray.cluster_resources())
            if options["num_gpus"] > 1:
                options["scheduling_strategy"] = self._tensor_parallel_group(first, name)
            actor = ray.remote(WorkerHost).options(**options).remote(_encode_specs(specs))
        except (ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise WorkerError(f"worker {first.worker_id} cannot be started: {in_a_line(error)}") from error
        actor.start.remote()
        return [RayLink(spec.worker_id, actor) for spec in specs]

    def _tensor_parallel_group(self, spec: WorkerSpec, name: str) -> Any:
        """All GPUs of one engine on one node, or none: a STRICT_PACK group with a single bundle."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._remove_groups(self._actor_names())  # an earlier life's group would keep its GPUs for ever
        lifetime = "detached" if self.is_standing else None
        group = placement_group(
            [{"CPU": spec.num_cpus, "GPU": spec.num_gpus}], strategy="STRICT_PACK", name=name, lifetime=lifetime
        )
        return PlacementGroupSchedulingStrategy(placement_group=group)

    def _remove_groups(self, names_in_use: Iterable[str]) -> None:
        """Placement groups of ours whose actor is gone."""
        from ray.util import get_placement_group, placement_group_table, remove_placement_group

        in_use = set(names_in_use)
        for entry in placement_group_table().values():
            name = entry["name"]
            if entry["state"] == "REMOVED" or not name.startswith(ACTOR_PREFIX) or name in in_use:
                continue
            try:
                remove_placement_group(get_placement_group(name))
            except ValueError:
                continue  # of another namespace, or gone meanwhile

    def _actor_names(self) -> list[str]:
        from ray.util import list_named_actors

        return [
            entry["name"]
            for entry in list_named_actors(all_namespaces=True)
            if entry["namespace"] == self._namespace and entry["name"].startswith(ACTOR_PREFIX)
        ]

    def _describe_all(self, timeout_s: float) -> tuple[list[tuple[Any, dict[str, Any]]], list[tuple[str, Any]]]:
        """(actors with what they say of themselves, names and actors that do not answer), asked side by side."""
        import ray

        asked = []
        for name in self._actor_names():
            try:
                actor = ray.get_actor(name, namespace=self._namespace)
            except ValueError:
                continue  # it ended meanwhile
            asked.append((name, actor, actor.describe.remote()))
        if asked:
            ray.wait([reference for _, _, reference in asked], num_returns=len(asked), timeout=timeout_s)
        described, silent = [], []
        for name, actor, reference in asked:
            try:
                described.append((actor, ray.get(reference, timeout=0)))
            except ray.exceptions.ActorDiedError:
                continue
            except (ray.exceptions.RayError, TimeoutError) as error:
                logger.warning("%s does not answer: %s", name, in_a_line(error))
                silent.append((name, actor))
        return described, silent

    def find(self, *, timeout_s: float = DESCRIBE_TIMEOUT_S) -> list[RayLink]:
        """Links to the workers that stand on the cluster from an earlier control plane. Blocks.

        What cannot be adopted is ended, so that its successor finds room: actors that do not answer are killed; those
        that speak another wire version, or were replaced already, are told to stop.
        """
        import ray

        described, silent = self._describe_all(timeout_s)
        for _, actor in silent:
            ray.kill(actor, no_restart=True)
        links: dict[str, RayLink] = {}
        for actor, said in sorted(described, key=lambda pair: -float(pair[1]["started_unix_s"])):
            is_other = said["wire_version"] != WIRE_VERSION
            if is_other or any(worker_id in links for worker_id in said["worker_ids"]):
                why = f"speaks wire version {said['wire_version']}" if is_other else "has a successor"
                logger.warning("the process of %s %s: it is stopped", ", ".join(said["worker_ids"]), why)
                for worker_id in said["worker_ids"]:
                    actor.stop.remote(worker_id, REPLACE_DRAIN_S if is_other else 0.0)
                continue
            links.update({worker_id: RayLink(worker_id, actor) for worker_id in said["worker_ids"]})
        return list(links.values())

    async def remove_all(
        self, *, drain_s: float = 0.0, timeout_s: float = DESCRIBE_TIMEOUT_S, progress: Callable[[str], None] = print
    ) -> list[str]:
        """Ends every worker in the namespace, whatever it speaks and whether it answers; returns their ids."""
        import ray

        described, silent = await asyncio.to_thread(self._describe_all, timeout_s)
        worker_ids = sorted({worker_id for _, said in described for worker_id in said["worker_ids"]})
        for worker_id in worker_ids:
            progress(f"stopping {worker_id}")
        await asyncio.gather(*(_stop(actor, said["worker_ids"], drain_s=drain_s) for actor, said in described))
        for name, actor in [*((None, actor) for actor, _ in described), *silent]:
            if name is not None:
                progress(f"killing {name}, which does not answer")
                worker_ids.append(name.removeprefix(ACTOR_PREFIX).rpartition(".")[0])
            ray.kill(actor, no_restart=True)
        await asyncio.to_thread(self._remove_groups, ())
        return worker_ids

    def shutdown(self) -> None:
        """Leaves Ray; a cluster of our own ends with it, with every worker on it."""
        if not self._is_connected:
            return
        import ray

        ray.shutdown()
        self._is_connected = False


async def _stop(actor: Any, worker_ids: list[str], *, drain_s: float) -> None:
    """Stops workers of one process in order; kills the process where that does not end in time."""
    import ray

    try:
        stops = [_as_future(actor.stop.remote(worker_id, drain_s)) for worker_id in worker_ids]
        await asyncio.wait_for(asyncio.gather(*stops), drain_s + STOP_GRACE_S)
    except ray.exceptions.ActorDiedError:
        return
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("%s did not stop in order: %s; its process is killed", ", ".join(worker_ids), in_a_line(error))
        ray.kill(actor, no_restart=True)


def check_ray_version(version: str) -> None:
    """Raises WorkerError outside the tested range: streaming generators and options here are not all public."""
    if version.rsplit(".", 1)[0] != TESTED_RAY:
        raise WorkerError(
            f"Ray {version} is installed, tested is {TESTED_RAY}.*; remedy: pip install 'ray=={TESTED_RAY}.*'"
        )


def check_room(asked: dict[str, tuple[float, int]], resources: dict[str, float]) -> None:
    """Raises WorkerError where a cluster of our own can never hold all that was asked for: Ray would wait for ever."""
    for place, (what, key) in enumerate((("CPU", "workers[].cpus"), ("GPU", "workers[].gpus"))):
        wanted, total = sum(demand[place] for demand in asked.values()), resources.get(what, 0.0)
        if wanted > total:
            raise WorkerError(
                f"the workers ask for {wanted:g} {what}s and this machine gives Ray {total:g}; remedy: lower {key}, "
                f"{'ray.num_cpus' if what == 'CPU' else 'or nvidia-smi must show the missing ones'}"
            )


def python_path() -> str:
    """Actors import ``workers`` from where this process does, installed or not."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys([root, *inherited]))


def in_a_line(error: BaseException) -> str:
    """The last line of a message, which in Ray's long ones names the cause."""
    text = str(error).strip()
    return text.splitlines()[-1][:300] if text else type(error).__name__


async def _as_future(reference: Any) -> Any:
    return await reference
