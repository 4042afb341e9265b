"""What is said to Ray and how its words are taken, on a Ray of three dozen lines; tests/cluster has the real one."""

import asyncio
import os
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from workers import ray_worker
from workers.errors import StaleEpoch, WireMismatch, WorkerDead, WorkerError
from workers.guardian import MARKER
from workers.ray_worker import (
    ACTOR_PREFIX,
    MAX_UNREAD_ITEMS,
    TELEMETRY_OFF,
    RayCluster,
    RayLink,
    check_ray_version,
    check_room,
    in_a_line,
    python_path,
)
from workers.types import WIRE_VERSION, Ack, Command, Report, WorkerSpec

encode = msgspec.msgpack.encode
decode_commands = msgspec.msgpack.Decoder(list[Command]).decode


class RayError(Exception): ...


class ActorDiedError(RayError): ...


class Remote:
    """An actor's method: remembers each call and its options."""

    def __init__(self, answer: Callable[..., Any] = lambda *arguments: None) -> None:
        self.calls: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        self.answer = answer
        self._options: dict[str, Any] = {}

    def options(self, **options: Any) -> "Remote":
        bound = Remote(self.answer)
        bound.calls, bound._options = self.calls, options
        return bound

    def remote(self, *arguments: Any) -> Any:
        self.calls.append((self._options, arguments))
        return self.answer(*arguments)


class Reference:
    """A reference: may be awaited, need not be."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __await__(self) -> Generator[None, None, Any]:
        yield
        if isinstance(self.of, Exception):
            raise self.of
        return self.of


class Actor:
    """One process: says ``items`` when it is connected to, and itself when it is asked."""

    def __init__(self, name: str = "actor", *items: bytes | Exception, said: Any = None) -> None:
        self._actor_id = types.SimpleNamespace(hex=lambda: f"id-of-{name}")
        self.name = name
        self.said = said

        async def stream(*arguments: Any) -> AsyncIterator[Awaitable[bytes]]:
            for item in items:
                yield Reference(item)

        self.reports = Remote(stream)
        self.command = Remote()
        self.stop = Remote(lambda *arguments: Reference(None))
        self.start = Remote()
        self.describe = Remote(lambda: self)


def description(*worker_ids: str, wire: int = WIRE_VERSION, started: float = 0.0) -> dict[str, Any]:
    return {"wire_version": wire, "worker_ids": list(worker_ids), "pid": 1, "started_unix_s": started}


class FakeRay(types.ModuleType):
    """As much of Ray as is used."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__version__ = "2.60.0"
        self.exceptions = types.SimpleNamespace(RayError=RayError, ActorDiedError=ActorDiedError)
        self.inits: list[dict[str, Any]] = []
        self.init_error: Exception | None = None
        self.actors: dict[str, Actor] = {}
        self.namespace = "jouleway"
        self.killed: list[str] = []
        self.made: list[tuple[dict[str, Any], bytes]] = []
        self.is_shut_down = False
        self.groups: dict[str, str] = {}
        self.util = types.ModuleType("ray.util")
        self.util.list_named_actors = lambda all_namespaces: [  # type: ignore[attr-defined]
            {"name": name, "namespace": self.namespace} for name in self.actors
        ]
        self.util.placement_group_table = lambda: {  # type: ignore[attr-defined]
            str(number): {"name": name, "state": state} for number, (name, state) in enumerate(self.groups.items())
        }
        self.util.get_placement_group = lambda name: name  # type: ignore[attr-defined]
        self.util.remove_placement_group = self.groups.pop  # type: ignore[attr-defined]

    def init(self, **options: Any) -> None:
        if self.init_error is not None:
            raise self.init_error
        self.inits.append(options)

    def shutdown(self) -> None:
        self.is_shut_down = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, body: type) -> Any:
        def options(**given: Any) -> Any:
            def make(specs: bytes) -> Actor:
                self.made.append((given, specs))
                return Actor(given["name"])

            return types.SimpleNamespace(remote=make)

        return types.SimpleNamespace(options=options)

    def get_actor(self, name: str, namespace: str) -> Actor:
        assert namespace == self.namespace
        return self.actors[name]

    def wait(self, references: list[Any], *, num_returns: int, timeout: float) -> None:
        assert num_returns == len(references)

    def get(self, actor: Actor, *, timeout: float) -> Any:
        if isinstance(actor.said, Exception):
            raise actor.said
        return actor.said

    def kill(self, actor: Actor, *, no_restart: bool) -> None:
        assert no_restart
        self.killed.append(actor.name)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.util", fake.util)
    return fake


def spec_of(worker_id: str = "w-0", **fields: Any) -> WorkerSpec:
    return WorkerSpec(worker_id=worker_id, model="m", **{"engine": "simulated", **fields})


def stand(ray: FakeRay, name: str, said: Any) -> Actor:
    actor = ray.actors[f"{ACTOR_PREFIX}{name}"] = Actor(f"{ACTOR_PREFIX}{name}", said=said)
    return actor


# -- a link


async def heard(link: RayLink, epoch: int = 3) -> tuple[list[Report], Exception]:
    """What came, and how it ended (a stream never ends well)."""
    reports: list[Report] = []
    try:
        async for report in link.reports(epoch):
            reports.append(report)
    except WorkerError as error:
        return reports, error
    raise AssertionError("a stream ended without a word")


async def test_a_link_reads_one_bounded_stream(ray: FakeRay) -> None:
    """With epoch and wire version; Ray holds the actor back at four unread items. Its end is the worker's."""
    actor = Actor("a", encode(Report(epoch=3)), encode(Report(epoch=3)))
    link = RayLink("w", actor)
    reports, error = await heard(link)
    assert 2 == len(reports)
    assert isinstance(error, WorkerDead)
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": MAX_UNREAD_ITEMS}
    assert [(options, ("w", 3, WIRE_VERSION))] == actor.reports.calls
    assert "id-of-a" == link.incarnation


@pytest.mark.parametrize(
    ("error", "is_final"),
    [(ActorDiedError("a long\n\nThe actor is dead"), True), (RayError("the node is not reachable"), False)],
)
async def test_rays_errors_become_ours(ray: FakeRay, error: Exception, is_final: bool) -> None:
    """A process that ended is final, a broken line is not: the connection is tried again."""
    _, dead = await heard(RayLink("w", Actor("a", error)))
    assert isinstance(dead, WorkerDead)
    assert ("w", in_a_line(error), is_final) == (dead.worker_id, dead.cause, dead.is_final)


async def test_a_foreign_epoch_in_the_stream_means_fenced_off(ray: FakeRay) -> None:
    """Nothing of that item is taken."""
    reports, error = await heard(RayLink("w", Actor("a", encode(Report(epoch=9)))))
    assert [] == reports
    assert isinstance(error, StaleEpoch)
    assert (3, 9) == (error.given, error.current)


async def test_another_wire_version_is_told_to_drain(ray: FakeRay) -> None:
    """It will be replaced; what runs on it may end."""
    actor = Actor("a", encode(Report(epoch=-7)))
    _, error = await heard(RayLink("w", actor))
    assert isinstance(error, WireMismatch)
    assert (WIRE_VERSION, 7) == (error.given, error.spoken)
    assert [({}, ("w", ray_worker.REPLACE_DRAIN_S))] == actor.stop.calls


async def test_batches_are_numbered_from_one_with_every_connection(ray: FakeRay) -> None:
    """And nobody waits for their return."""
    actor = Actor("a")
    link = RayLink("w", actor)
    for epoch in (3, 4):
        await heard(link, epoch)
        for number in (1, 2):
            await link.send([Ack(number=number)])
    sent = [(options, *arguments[:3], decode_commands(arguments[3])) for options, arguments in actor.command.calls]
    assert sent == [
        ({"num_returns": 0}, "w", epoch, number, [Ack(number=number)]) for epoch in (3, 4) for number in (1, 2)
    ]


async def test_a_read_stream_carries_heartbeats(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is no sign of life, for Ray reads on when its reader is dead."""
    monkeypatch.setattr(ray_worker, "HEARTBEAT_S", 0.0)
    actor = Actor("a", *[encode(Report(epoch=3))] * 3)
    await heard(RayLink("w", actor))
    assert [("w", 3, 0, [])] * 3 == [(*call[:3], decode_commands(call[3])) for _, call in actor.command.calls]


@pytest.mark.parametrize(
    ("answer", "is_killed"), [(None, False), (ActorDiedError("dead"), False), (RayError("unreachable"), True)]
)
async def test_a_stop_that_is_not_obeyed_kills(ray: FakeRay, answer: Exception | None, is_killed: bool) -> None:
    """Who is dead already needs no killing."""
    actor = Actor("a")
    actor.stop.answer = lambda *arguments: Reference(answer)
    await RayLink("w", actor).stop(drain_s=2.5)
    assert [({}, ("w", 2.5))] == actor.stop.calls
    assert (["a"] if is_killed else []) == ray.killed


async def test_a_stop_that_never_returns_kills(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the drain time and a grace."""
    monkeypatch.setattr(ray_worker, "STOP_GRACE_S", 0.01)
    actor = Actor("a")
    actor.stop.answer = lambda *arguments: asyncio.sleep(60)
    await RayLink("w", actor).stop()
    assert ["a"] == ray.killed


# -- a cluster


def test_an_own_cluster_is_local_and_says_nothing_to_anybody(ray: FakeRay) -> None:
    """Loopback, no dashboard, no telemetry; without "local" Ray would join what was last started here."""
    RayCluster(num_cpus=3).connect()
    (options,) = ray.inits
    assert ("local", "127.0.0.1", False, 3) == (
        options["address"],
        options["_node_ip_address"],
        options["include_dashboard"],
        options["num_cpus"],
    )
    assert TELEMETRY_OFF == options["runtime_env"]["env_vars"]
    assert TELEMETRY_OFF.items() <= os.environ.items()
    assert ("1", "0") == (os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"], os.environ["RAY_ENABLE_AUTO_CONNECT"])


def test_a_standing_cluster_is_joined_as_it_is(ray: FakeRay) -> None:
    """Its size is not ours to say."""
    RayCluster(address="auto", namespace="blue", num_cpus=3).connect()
    (options,) = ray.inits
    assert ("auto", "blue") == (options["address"], options["namespace"])
    assert "num_cpus" not in options


@pytest.mark.parametrize("error", [ConnectionError("no GCS"), RuntimeError("no GCS"), Exception("no GCS")])
def test_a_ray_that_cannot_be_reached_names_its_key_and_remedy(ray: FakeRay, error: Exception) -> None:
    """The cause in a line, and the token, which is forgotten most."""
    ray.init_error = error
    with pytest.raises(WorkerError, match=r"ray\.address=10\.0\.0\.1:6379 .* no GCS; remedy: .*RAY_AUTH_MODE=token"):
        RayCluster(address="10.0.0.1:6379").connect()
    assert ray.is_shut_down, "half a cluster must not stay"


def test_a_missing_ray_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match="install the extra 'ray'"):
        RayCluster().connect()


@pytest.mark.parametrize("version", ["2.59.3", "2.6.0", "3.0.0", "2.60"])
def test_another_ray_is_refused(version: str) -> None:
    """Options that are not public were tried with one minor version."""
    with pytest.raises(WorkerError, match=f"Ray {version} is installed, tested is 2.60"):
        check_ray_version(version)
    check_ray_version("2.60.1")


def test_workers_of_one_process_share_an_actor(ray: FakeRay) -> None:
    """Enough CPUs for all, no restart by Ray, our own code, telemetry off, and a marker for its guardian."""
    links = RayCluster().start([spec_of("a-0", num_cpus=0.5, environment={"X": "1"}), spec_of("a-1", num_cpus=0.25)])
    assert ["a-0", "a-1"] == [link.worker_id for link in links]
    assert 1 == len({link.incarnation for link in links})
    ((options, specs),) = ray.made
    assert ["a-0", "a-1"] == [spec.worker_id for spec in msgspec.msgpack.decode(specs, type=list[WorkerSpec])]
    assert (0.75, 0, 0) == (options["num_cpus"], options["max_restarts"], options["num_gpus"])
    assert "lifetime" not in options
    environment = options["runtime_env"]["env_vars"]
    assert TELEMETRY_OFF.items() | {("X", "1"), (MARKER, options["name"])} <= environment.items()
    assert python_path() == environment["PYTHONPATH"]


def test_a_successor_has_another_name(ray: FakeRay) -> None:
    """Ray gives a dead actor's name back only some time after its death; on a standing cluster actors are detached."""
    cluster = RayCluster(address="auto")
    first, second = (cluster.start([spec_of()])[0] for _ in range(2))
    assert first.incarnation != second.incarnation
    names = [options["name"] for options, _ in ray.made]
    assert all(name.startswith(f"{ACTOR_PREFIX}w-0.") for name in names)
    assert {"detached"} == {options["lifetime"] for options, _ in ray.made}


def test_what_can_never_be_placed_is_refused_at_once(ray: FakeRay) -> None:
    """Ray would wait for ever; a successor counts once."""
    cluster = RayCluster()
    for _ in range(3):
        cluster.start([spec_of("a-0", num_cpus=1.5)])
    with pytest.raises(
        WorkerError, match=r"ask for 3 CPUs and this machine gives Ray 2; remedy: lower workers\[\].cpus"
    ):
        cluster.start([spec_of("b-0", num_cpus=1.5)])
    with pytest.raises(WorkerError, match="ask for 1 GPUs and this machine gives Ray 0"):
        RayCluster().start([spec_of("c-0", engine="vllm", num_gpus=1)])
    check_room({"a": (2.0, 8)}, {"CPU": 2.0, "GPU": 8.0})


def test_standing_workers_are_found_and_what_cannot_be_adopted_is_ended(ray: FakeRay) -> None:
    """The newest life of each worker; older ones and other versions stop, the silent are killed."""
    stand(ray, "a-0.11", description("a-0", "a-1", started=100.0))
    old = stand(ray, "a-0.22", description("a-0", "a-1", started=50.0))
    other = stand(ray, "b-0.33", description("b-0", wire=WIRE_VERSION + 1))
    stand(ray, "c-0.44", TimeoutError("no answer"))
    stand(ray, "d-0.55", ActorDiedError("dead"))
    ray.actors["somebody-else"] = Actor("somebody-else", said=description("e-0"))
    links = RayCluster(address="auto").find()
    assert {("a-0", f"id-of-{ACTOR_PREFIX}a-0.11"), ("a-1", f"id-of-{ACTOR_PREFIX}a-0.11")} == {
        (link.worker_id, link.incarnation) for link in links
    }
    assert [("a-0", 0.0), ("a-1", 0.0)] == [arguments for _, arguments in old.stop.calls]
    assert [("b-0", ray_worker.REPLACE_DRAIN_S)] == [arguments for _, arguments in other.stop.calls]
    assert [f"{ACTOR_PREFIX}c-0.44"] == ray.killed


def test_workers_of_another_namespace_are_nobodys_business(ray: FakeRay) -> None:
    """Two installations share a cluster."""
    stand(ray, "a-0.11", description("a-0"))
    ray.namespace = "green"
    assert [] == RayCluster(address="auto", namespace="blue").find()


async def test_down_ends_everything_of_the_namespace(ray: FakeRay) -> None:
    """In order where it answers, whatever it speaks; then by force; placement groups too."""
    actors = [stand(ray, "a-0.11", description("a-0")), stand(ray, "b-0.22", description("b-0", wire=99))]
    stand(ray, "c-0.33", TimeoutError("no answer"))
    ray.groups |= {f"{ACTOR_PREFIX}a-0.11": "CREATED", f"{ACTOR_PREFIX}z-0.00": "REMOVED", "somebody-else": "CREATED"}
    said: list[str] = []
    stopped = await RayCluster(address="auto").remove_all(drain_s=1.5, progress=said.append)
    assert ["a-0", "b-0", "c-0"] == stopped
    assert [[("a-0", 1.5)], [("b-0", 1.5)]] == [[arguments for _, arguments in actor.stop.calls] for actor in actors]
    assert {f"{ACTOR_PREFIX}{name}" for name in ("a-0.11", "b-0.22", "c-0.33")} == set(ray.killed)
    assert {f"{ACTOR_PREFIX}z-0.00", "somebody-else"} == ray.groups.keys()
    assert ["stopping a-0", "stopping b-0", f"killing {ACTOR_PREFIX}c-0.33, which does not answer"] == said


def test_ray_is_left_once_and_only_where_it_was_joined(ray: FakeRay) -> None:
    """A failed start stops what it began, nothing else."""
    cluster = RayCluster()
    cluster.shutdown()
    assert not ray.is_shut_down
    cluster.connect()
    cluster.shutdown()
    assert ray.is_shut_down


def test_actors_import_us_from_where_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours first, what was inherited after it, nothing twice."""
    root = str(Path(ray_worker.__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/x", root, "", "/y"]))
    assert [root, "/x", "/y"] == python_path().split(os.pathsep)


def test_long_messages_become_a_line() -> None:
    """Ray's last line names the cause; an empty one is named by its kind."""
    assert "cause" == in_a_line(RayError("The actor died\nlong story\ncause\n"))
    assert "RayError" == in_a_line(RayError())
    assert 300 == len(in_a_line(RayError("x" * 1_000)))
