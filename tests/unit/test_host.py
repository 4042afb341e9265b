"""A process of workers without Ray: commands in order, workers found and fenced, and an end that loses nothing."""

import asyncio
import itertools
import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import host as host_module
from workers.errors import StaleEpoch
from workers.host import MAX_BATCHES_AHEAD, Inbox, WorkerHost
from workers.types import WIRE_VERSION, Abort, Ack, Command, MeterSpec, Report, WorkerSpec, WorkerState

encode = msgspec.msgpack.encode
decode_report = msgspec.msgpack.Decoder(Report).decode


class Obedient:
    """A worker that keeps what it was told."""

    spec = WorkerSpec(worker_id="w", engine="simulated", model="m")

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.told: list[Command] = []
        self.num_beats = 0

    def command(self, epoch: int, commands: list[Command]) -> None:
        if epoch != self.epoch:
            raise StaleEpoch(given=epoch, current=self.epoch)
        self.num_beats += not commands
        self.told += commands

    @property
    def numbers(self) -> list[int]:
        return [command.number for command in self.told if isinstance(command, Ack)]


def inbox_of(worker: Obedient) -> Inbox:
    return Inbox(worker)  # type: ignore[arg-type]


# -- the inbox


@given(st.permutations(list(range(1, 9))))
def test_batches_are_carried_out_in_the_order_they_were_sent(order: list[int]) -> None:
    """However Ray delivers them, each once."""

    async def scenario() -> list[int]:
        worker = Obedient()
        inbox = inbox_of(worker)
        for number in order:
            inbox.put(1, number, [Ack(number=number)])
            inbox.put(1, number, [Ack(number=number)])
        return worker.numbers

    assert [*range(1, 9)] == asyncio.run(scenario())


async def test_a_heartbeat_waits_for_nobody() -> None:
    """Number 0: it says only that the control plane lives."""
    worker = Obedient()
    inbox = inbox_of(worker)
    inbox.put(1, 2, [Ack(number=2)])
    inbox.put(1, 0, [])
    assert (1, []) == (worker.num_beats, worker.numbers)
    inbox.put(1, 1, [Ack(number=1)])
    assert [1, 2] == worker.numbers


async def test_a_batch_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those after it are carried out without it; if it comes at last it is too late."""
    monkeypatch.setattr(host_module, "GAP_S", 0.01)
    worker = Obedient()
    inbox = inbox_of(worker)
    for number in (2, 3, 5):
        inbox.put(1, number, [Ack(number=number)])
    await asyncio.sleep(0.05)
    assert [2, 3, 5] == worker.numbers
    inbox.put(1, 1, [Ack(number=1)])
    inbox.put(1, 6, [Ack(number=6)])
    assert [2, 3, 5, 6] == worker.numbers


async def test_what_waits_behind_a_gap_is_bounded() -> None:
    """Memory does not grow with a lost batch."""
    worker = Obedient()
    inbox = inbox_of(worker)
    for number in range(2, MAX_BATCHES_AHEAD + 3):
        inbox.put(1, number, [Ack(number=number)])
    assert MAX_BATCHES_AHEAD + 1 == len(worker.numbers)


async def test_each_connection_counts_from_one() -> None:
    """What waited for the one before is dropped, what comes from it is refused."""
    worker = Obedient()
    inbox = inbox_of(worker)
    inbox.put(1, 2, [Ack(number=99)])
    worker.epoch = 7
    inbox.put(7, 1, [Ack(number=1)])
    with pytest.raises(StaleEpoch):
        inbox.put(1, 1, [Ack(number=98)])
    inbox.put(7, 2, [Ack(number=2)])
    assert [1, 2] == worker.numbers


# -- the process


def specs_of(*worker_ids: str, **fields: Any) -> bytes:
    return encode(
        [
            WorkerSpec(
                worker_id=worker_id,
                engine="simulated",
                model="m",
                calibration_s=0.0,
                window_s=0.05,
                meter=MeterSpec(kind="simulated"),
                **fields,
            )
            for worker_id in worker_ids
        ]
    )


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes asked for; time in the host runs fast."""
    codes: list[int] = []
    monkeypatch.setattr(host_module, "POLL_S", 0.01)
    monkeypatch.setattr(host_module, "LEAVE_GRACE_S", 0.05)
    monkeypatch.setattr(host_module.os, "_exit", codes.append)
    return codes


async def until(is_true: Any, timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_true():
            await asyncio.sleep(0.002)


class Ear:
    def __init__(self, host: WorkerHost, worker_id: str, epoch: int, *, wire: int = WIRE_VERSION) -> None:
        self.heard: list[Report] = []
        self.task = asyncio.create_task(self._read(host, worker_id, epoch, wire))

    async def _read(self, host: WorkerHost, worker_id: str, epoch: int, wire: int) -> None:
        numbers = itertools.count(1)
        async for item in host.reports(worker_id, epoch, wire):
            self.heard.append(report := decode_report(item))
            if report.records and report.epoch == epoch:
                acks = encode([Ack(number=report.records[-1].number)])
                await host.command(worker_id, epoch, next(numbers), acks)

    def has_said(self, state: WorkerState) -> bool:
        return any(report.status is not None and report.status.state is state for report in self.heard)


async def test_all_workers_of_a_process_are_started_once_and_described(exits: list[int]) -> None:
    """Also by whoever only asks: who made the process may have been killed before it said start."""
    host = WorkerHost(specs_of("a", "b"))
    first = await host.describe()
    await host.start()
    assert first == await host.describe()
    assert (WIRE_VERSION, ["a", "b"], os.getpid()) == (first["wire_version"], first["worker_ids"], first["pid"])
    ears = [Ear(host, worker_id, 1) for worker_id in "ab"]
    await until(lambda: all(ear.has_said(WorkerState.READY) for ear in ears))
    await asyncio.gather(host.stop("a", 0.0), host.stop("b", 0.0), host.stop("unknown", 0.0))
    await until(lambda: exits)
    assert [0] == exits
    for ear in ears:
        ear.task.cancel()


async def test_a_process_leaves_only_when_its_last_worker_stopped_and_was_heard(exits: list[int]) -> None:
    """A neighbour that still serves keeps it; then the last state and record leave first."""
    host = WorkerHost(specs_of("a", "b"))
    ears = [Ear(host, worker_id, 1) for worker_id in "ab"]
    await until(lambda: all(ear.has_said(WorkerState.READY) for ear in ears))
    await host.stop("a", 0.0)
    await asyncio.sleep(0.05)
    assert [] == exits
    await host.stop("b", 0.0)
    await until(lambda: exits)
    assert all(ear.has_said(WorkerState.STOPPED) for ear in ears)
    for ear in ears:
        ear.task.cancel()


async def test_a_process_whose_workers_cannot_start_leaves_although_nobody_asked(exits: list[int]) -> None:
    """It would hold its GPUs for ever."""
    host = WorkerHost(specs_of("a", engine_args={"start_fails": True}))
    await host.start()
    await until(lambda: exits)


async def test_workers_stop_when_their_raylet_is_gone(exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that is gone cannot stop them: they do so themselves."""
    monkeypatch.setattr(host_module, "RAYLET_GONE_S", 0.03)
    host = WorkerHost(specs_of("a"))
    ear = Ear(host, "a", 1)
    await until(lambda: ear.has_said(WorkerState.READY))
    monkeypatch.setattr(host_module.os, "getppid", lambda: 1)
    await until(lambda: exits)
    await until(lambda: ear.has_said(WorkerState.STOPPED))
    assert any(report.status is not None and "raylet gone" in report.status.cause for report in ear.heard)
    ear.task.cancel()


async def test_who_is_fenced_off_hears_the_epoch_of_the_newer_connection(exits: list[int]) -> None:
    """As the last item of the stream, for an exception would lose its numbers on the way."""
    host = WorkerHost(specs_of("a"))
    old = Ear(host, "a", 5)
    await until(lambda: old.heard)
    new = Ear(host, "a", 6)
    await old.task
    assert 6 == old.heard[-1].epoch
    late = Ear(host, "a", 4)
    await late.task
    assert [6] == [report.epoch for report in late.heard]
    await host.command("a", 5, 1, encode([Abort(attempt_id="x", reason="y")]))  # refused, and no exception
    await host.stop("a", 0.0)
    new.task.cancel()
    await until(lambda: exits)


async def test_who_speaks_another_version_hears_which_one_is_spoken(exits: list[int]) -> None:
    """Below zero, where no epoch lies."""
    host = WorkerHost(specs_of("a"))
    ear = Ear(host, "a", 1, wire=WIRE_VERSION + 1)
    await ear.task
    assert [-WIRE_VERSION] == [report.epoch for report in ear.heard]
    await host.stop("a", 0.0)
    await until(lambda: exits)


@pytest.mark.parametrize(("engine", "is_guarded"), [("simulated", False), ("vllm", True)])
async def test_engines_with_processes_of_their_own_are_guarded(
    engine: str, is_guarded: bool, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulated engine has none: sixty of them need no sixty guardians."""
    markers: list[str] = []
    monkeypatch.setattr(host_module, "start_guardian", markers.append)
    monkeypatch.setattr(host_module, "build_worker", lambda spec: build_simulated(spec))
    monkeypatch.setenv("JOULEWAY_HOST", "host-1")
    host = WorkerHost(encode([WorkerSpec(worker_id="a", engine=engine, model="m", calibration_s=0.0)]))  # type: ignore[arg-type]
    await host.start()
    assert (["host-1"] if is_guarded else []) == markers
    await host.stop("a", 0.0)
    await until(lambda: exits)


def build_simulated(spec: WorkerSpec) -> Any:
    from workers.build import build_worker

    return build_worker(msgspec.structs.replace(spec, engine="simulated", meter=MeterSpec(kind="simulated")))
