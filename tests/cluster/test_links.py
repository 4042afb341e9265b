"""A link to a worker on real Ray: order, fences, back-pressure, heartbeats, and what becomes of a worker left alone."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import pytest

from tests.cluster.plane import MODEL, host_pids, is_alive, kill, spec_of
from workers import ray_worker
from workers.attempts import MAX_BUFFER_BYTES
from workers.errors import StaleEpoch, WireMismatch, WorkerDead
from workers.ray_worker import MAX_UNREAD_ITEMS, RayCluster, RayLink
from workers.types import (
    WIRE_VERSION,
    Abort,
    Ack,
    Call,
    Chunk,
    Ended,
    Outcome,
    Park,
    Report,
    UsageRecord,
    Wake,
    WorkerSpec,
    WorkerState,
)


def body_of(*, max_tokens: int, prompt: str = "hello") -> bytes:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    return json.dumps(body).encode()


def call(attempt_id: str, *, max_tokens: int = 5, prompt: str = "hello") -> Call:
    return Call(attempt_id=attempt_id, path="/v1/completions", body=body_of(max_tokens=max_tokens, prompt=prompt))


class Ear:
    """Reads a link and keeps what it heard."""

    def __init__(self, link: RayLink, epoch: int) -> None:
        self.link = link
        self.epoch = epoch
        self.heard: list[Report] = []
        self.error: Exception | None = None
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for report in self.link.reports(self.epoch):
                self.heard.append(report)
                if report.records:
                    await self.link.send([Ack(number=report.records[-1].number)])
        except (WorkerDead, StaleEpoch) as error:
            self.error = error

    @property
    def states(self) -> list[WorkerState]:
        return [report.status.state for report in self.heard if report.status is not None]

    @property
    def chunks(self) -> list[Chunk]:
        return [each for report in self.heard for each in report.outputs if isinstance(each, Chunk)]

    @property
    def ends(self) -> dict[str, Ended]:
        outputs = [each for report in self.heard for each in report.outputs]
        return {each.attempt_id: each for each in outputs if isinstance(each, Ended)}

    async def until(self, is_true: object, *, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not is_true():  # type: ignore[operator]
                await asyncio.sleep(0.02)

    async def ready(self) -> None:
        await self.until(lambda: WorkerState.READY in self.states)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@contextlib.asynccontextmanager
async def started(cluster: RayCluster, spec: WorkerSpec) -> AsyncIterator[tuple[RayLink, int]]:
    """A link and its worker's process; the process is gone afterwards."""
    (link,) = cluster.start([spec])
    pids: list[int] = []
    try:
        async with asyncio.timeout(20.0):
            while not pids:
                await asyncio.sleep(0.05)
                pids = [pid for pid, name in host_pids().items() if f"-{spec.worker_id}." in name]
        yield link, pids[0]
    finally:
        for pid in pids:
            if is_alive(pid):
                kill(pid)


async def test_an_abort_does_not_overtake_its_call(cluster: RayCluster) -> None:
    """Ray ships a large call through its object store, and a small one behind it arrives first."""
    async with started(cluster, spec_of("o-0", engine_args={"fixed_step_s": 0.05})) as (link, _):
        ear = Ear(link, 1)
        await ear.ready()
        for number in range(20):
            await link.send([call(f"a-{number}", max_tokens=10_000, prompt="x" * 400_000)])
            await link.send([Abort(attempt_id=f"a-{number}", reason="client_gone")])
        await ear.until(lambda: len(ear.ends) == 20)
        assert {(Outcome.ABORTED, "client_gone")} == {(end.outcome, end.cause) for end in ear.ends.values()}
        await ear.close()


async def test_only_the_newest_connection_is_served(cluster: RayCluster) -> None:
    """Two control planes at once: the older hears that it is fenced off, its commands do nothing, its work ends."""
    async with started(cluster, spec_of("f-0")) as (link, _):
        old = Ear(link, 10)
        await old.ready()
        await link.send([call("old-1", max_tokens=10_000)])
        await old.until(lambda: old.chunks)
        other = RayLink("f-0", link._actor)
        new = Ear(other, 11)
        await new.ready()
        await link.send([call("old-2")])
        await old.until(lambda: old.error is not None)
        assert isinstance(old.error, StaleEpoch)
        assert (10, 11) == (old.error.given, old.error.current)
        num_chunks = len(old.chunks)
        await other.send([call("new-1", max_tokens=50)])
        await new.until(lambda: "new-1" in new.ends)
        said = b"".join(each.body for each in new.chunks if each.attempt_id == "new-1")
        assert (num_chunks, 50) == (len(old.chunks), said.count(b"data: {"))
        assert ("orphaned", False) == (new.ends["old-1"].cause, "old-2" in new.ends)
        usages = [
            each.record for report in new.heard for each in report.records if isinstance(each.record, UsageRecord)
        ]
        assert sum(usage.output_tokens for usage in usages if usage.attempt_id == "old-1") > 0
        late = Ear(link, 9)
        await late.until(lambda: late.error is not None)
        assert isinstance(late.error, StaleEpoch)
        await new.close()


async def test_a_reader_that_stops_reading_holds_the_stream_back(cluster: RayCluster) -> None:
    """Four items and one buffer wait for it, not one item a step; nothing is lost when it goes on."""
    spec = spec_of("m-0", engine_args={"fixed_step_s": 0.001}, max_running=128, window_s=5.0)
    async with started(cluster, spec) as (link, _):
        reports = link.reports(1)
        while True:
            report = await anext(reports)
            if report.status is not None and report.status.state is WorkerState.READY:
                break
        await link.send([call(f"a-{number}", max_tokens=3_000) for number in range(100)])
        await asyncio.sleep(2.5)
        num_ends = 0
        num_tokens: dict[str, int] = {}
        sizes: list[int] = []
        async with asyncio.timeout(60.0):
            while num_ends < 100:
                report = await anext(reports)
                sizes.append(sum(len(each.body) for each in report.outputs if isinstance(each, Chunk)))
                for output in report.outputs:
                    num_ends += isinstance(output, Ended)
                    if isinstance(output, Chunk):
                        seen = num_tokens.get(output.attempt_id, 0)
                        num_tokens[output.attempt_id] = seen + output.body.count(b"data: {")
        assert {3_000} == set(num_tokens.values())
        caught_up = next(place for place, size in enumerate(sizes) if size > 1 << 20)
        assert caught_up <= 2 * MAX_UNREAD_ITEMS, sizes[: caught_up + 1]
        assert max(sizes) < MAX_BUFFER_BYTES + 100 * 64 * 1024


async def test_a_worker_left_alone_ends_itself(cluster: RayCluster) -> None:
    """An idle control plane keeps it by heartbeats; a dead one's stream, which Ray goes on reading, does not."""
    async with started(cluster, spec_of("u-0", orphan_timeout_s=5.0, window_s=60.0)) as (link, pid):
        ear = Ear(link, 1)
        await ear.ready()
        await asyncio.sleep(6.5)
        assert WorkerState.READY is ear.states[-1]
        await ear.close()
        until_s = time.monotonic() + 25.0
        while is_alive(pid) and time.monotonic() < until_s:
            await asyncio.sleep(0.2)
        assert not is_alive(pid)


async def test_a_worker_of_another_wire_version_drains_and_ends(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to stop by whoever finds out, so that its successor finds room."""
    async with started(cluster, spec_of("v-0")) as (link, pid):
        ear = Ear(link, 1)
        await ear.ready()
        monkeypatch.setattr(ray_worker, "WIRE_VERSION", WIRE_VERSION + 1)
        with pytest.raises(WireMismatch) as caught:
            await anext(RayLink("v-0", link._actor).reports(2))
        assert (WIRE_VERSION + 1, WIRE_VERSION) == (caught.value.given, caught.value.spoken)
        await ear.until(lambda: WorkerState.STOPPED in ear.states)
        await ear.until(lambda: not is_alive(pid))


async def test_a_worker_that_cannot_start_says_why_and_leaves(cluster: RayCluster) -> None:
    """Its cause reaches whoever started it; its process does not stay."""
    async with started(cluster, spec_of("w-0", engine_args={"no_such_option": 1})) as (link, pid):
        ear = Ear(link, 1)
        await ear.until(lambda: WorkerState.STOPPED in ear.states)
        (cause,) = {r.status.cause for r in ear.heard if r.status is not None and r.status.state is WorkerState.STOPPED}
        assert "engine_args.no_such_option is not an option" in cause
        await ear.until(lambda: ear.error is not None)
        assert isinstance(ear.error, WorkerDead)
        await ear.until(lambda: not is_alive(pid))


@pytest.mark.parametrize("is_killed", [True, False])
async def test_the_stop_of_a_link_ends_the_process(cluster: RayCluster, is_killed: bool) -> None:
    """In order where the worker answers; a worker that is gone already is no error."""
    async with started(cluster, spec_of(f"x-{int(is_killed)}")) as (link, pid):
        ear = Ear(link, 1)
        await ear.ready()
        if is_killed:
            kill(pid)
        await link.stop()
        await ear.until(lambda: ear.error is not None)
        assert is_killed or WorkerState.STOPPED in ear.states
        await ear.until(lambda: not is_alive(pid))


async def test_a_parked_worker_is_found_and_woken_by_the_next_control_plane(cluster: RayCluster) -> None:
    """It is still parked, says so first, and serves after its wake: by the same process."""
    async with started(cluster, spec_of("s-0", engine_args={"start_s": 0.3})) as (link, pid):
        ear = Ear(link, 1)
        await ear.ready()
        await link.send([Park(reason="quiet")])
        await ear.until(lambda: WorkerState.PARKED in ear.states)
        await ear.close()
        (found,) = [each for each in await asyncio.to_thread(cluster.find) if each.worker_id == "s-0"]
        next_ear = Ear(found, 2)
        await next_ear.until(lambda: next_ear.states)
        assert WorkerState.PARKED is next_ear.states[0]
        await found.send([Wake(reason="busy"), call("a-1")])
        await next_ear.until(lambda: "a-1" in next_ear.ends)
        assert (Outcome.FAILED, "worker_starting") == (next_ear.ends["a-1"].outcome, next_ear.ends["a-1"].cause)
        await next_ear.ready()
        await found.send([call("a-2")])
        await next_ear.until(lambda: "a-2" in next_ear.ends)
        assert Outcome.COMPLETED is next_ear.ends["a-2"].outcome
        assert (found.incarnation, True) == (link.incarnation, is_alive(pid))
        await next_ear.close()
