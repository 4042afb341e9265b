"""The dispatcher on real workers of this process: many streams, aborts, a death; then every account is exact."""

import asyncio
import json
import random
from collections import Counter

from scheduler.accounting.accounts import OPERATOR
from scheduler.core.request import Request
from scheduler.streams import Body, End, Head, Stream, Submission
from tests.local_link import FAST_ENGINE, MODEL, ControlPlane, control_plane, simulated_spec
from tests.scripted_link import until
from workers.types import Outcome

SEED = 20261125


def submit(plane: ControlPlane, number: int, *, tenant: str, tokens: int, is_stream: bool = True) -> Stream:
    """A completion of exactly so many tokens."""

    def render(max_output_tokens: int, priority: int) -> bytes:
        return json.dumps({
            "model": MODEL, "prompt": f"request {number} " * 5, "max_tokens": max_output_tokens, "ignore_eos": True,
            "stream": is_stream,
        }).encode()  # fmt: skip

    request = Request(
        request_id=f"req-{number}",
        tenant=tenant,
        model=MODEL,
        prompt_tokens_bound=100,
        max_output_tokens=tokens,
        arrival_s=asyncio.get_running_loop().time(),
    )
    return plane.dispatcher.submit(Submission(request=request, path="/v1/completions", render=render))


async def read(stream: Stream, *, leave_after: int | None = None) -> tuple[int | None, bytes, End]:
    """(status, bytes, end); ``leave_after`` so many bodies the client is gone."""
    status, data, num_bodies = None, b"", 0
    while not isinstance(item := await stream.next(10.0), End):
        assert item is not None, "nothing came"
        if isinstance(item, Head):
            status = item.status
        elif isinstance(item, Body):
            data += item.data
            num_bodies += 1
        if leave_after is not None and num_bodies >= leave_after:
            stream.close("client_gone")
    return status, data, item


def assert_exact(plane: ControlPlane) -> None:
    """After the stop: nothing runs, nothing in flight, each attempt one charge and one posting, all of it adds up."""
    found = plane.dispatcher.snapshot()
    balance, rows = found.balance, found.tenants
    assert (0, 0, 0) == (found.num_open, found.num_running, found.open_attempts)
    assert (0, 0, 0, 0) == (
        balance.difference_mj, balance.in_flight_mj, balance.in_flight_gpu_us, balance.token_difference
    )  # fmt: skip
    assert balance.meter_mj == balance.requests_mj + balance.idle_mj + balance.overhead_mj + balance.unattributed_mj
    assert balance.busy_gpu_us == balance.requests_gpu_us + balance.overhead_gpu_us
    assert balance.requests_mj == sum(row.energy_mj for row in rows)
    assert found.dispatched == sum(row.attempts for row in rows)
    assert (0, 0) == (found.bad_windows, len(plane.settlement.books.open))


async def test_many_streams_and_aborts_leave_exact_accounts() -> None:
    """60 requests of three tenants on two engines, every fifth left by its client."""
    rng = random.Random(SEED)
    async with control_plane([simulated_spec("sim-0", seed=1), simulated_spec("sim-1", seed=2)]) as plane:
        tokens = [rng.randint(1, 40) for _ in range(60)]
        tokens = [max(count, 400) if number % 5 == 0 else count for number, count in enumerate(tokens)]
        streams = [
            submit(plane, number, tenant=f"tenant-{number % 3}", tokens=count, is_stream=number % 4 != 1)
            for number, count in enumerate(tokens)
        ]
        answers = await asyncio.gather(
            *(read(stream, leave_after=1 if number % 5 == 0 else None) for number, stream in enumerate(streams))
        )
        outcomes = Counter(end.outcome for _, _, end in answers)
        assert 48 <= outcomes[Outcome.COMPLETED], f"seed {SEED}: {outcomes}"
        assert 60 == outcomes[Outcome.COMPLETED] + outcomes[Outcome.ABORTED]
        for number, (status, data, end) in enumerate(answers):
            assert end.charge is not None
            if end.outcome is Outcome.COMPLETED:
                assert (200, tokens[number]) == (status, end.charge.output_tokens)
                assert data.endswith(b"data: [DONE]\n\n") == (number % 4 != 1)
            else:
                assert end.charge.output_tokens < tokens[number], f"seed {SEED}: request {number} was not cut"
        assert [0, 0] == [worker.credit.kv_tokens for worker in plane.dispatcher.snapshot().workers]
    assert_exact(plane)
    found = plane.dispatcher.snapshot()
    assert 0 == found.balance.metered_token_difference + found.balance.posting_difference_mj
    assert {"tenant-0": 20, "tenant-1": 20, "tenant-2": 20} == {row.tenant: row.requests for row in found.tenants}
    assert sum(end.charge.output_tokens for _, _, end in answers if end.charge) == sum(
        row.output_tokens for row in found.tenants
    )
    for number in range(60):
        details = plane.settlement.details(f"req-{number}")
        assert details is not None
        assert details.is_final
        assert all(posting.complete for posting in details.postings.values())


async def test_a_worker_that_dies_under_load_leaves_exact_accounts() -> None:
    """Who had seen no byte is served by the other one; what the dead one computed has a payer, to the millijoule."""
    specs = [
        simulated_spec(f"sim-{number}", engine_args={**FAST_ENGINE, "fixed_step_s": 0.004}, window_s=0.05)
        for number in range(2)
    ]
    async with control_plane(specs) as plane:
        streams = [submit(plane, number, tenant="alpha", tokens=30) for number in range(20)]
        reads = [asyncio.create_task(read(stream)) for stream in streams]
        await until(lambda: plane.settlement.accounts.balance().in_flight_mj > 0, 10.0)
        late = [submit(plane, number, tenant="alpha", tokens=5) for number in range(20, 30)]
        reads += [asyncio.create_task(read(stream)) for stream in late]
        plane.links[0].cut()
        await plane.dispatcher.remove_link("sim-0")
        await plane.links[0].worker.stop()
        ends = [end for _, _, end in await asyncio.gather(*reads)]
        outcomes = Counter((end.outcome, end.cause) for end in ends)
        assert 30 == outcomes[Outcome.COMPLETED, ""] + outcomes[Outcome.FAILED, "worker_removed"], outcomes
        assert outcomes[Outcome.FAILED, "worker_removed"] > 0
        assert plane.dispatcher.snapshot().retried > 0
    assert_exact(plane)
    rows = {row.tenant: row for row in plane.dispatcher.snapshot().tenants}
    assert (30, 0) == (rows["alpha"].requests, rows[OPERATOR].requests)
    assert rows[OPERATOR].attempts == plane.dispatcher.snapshot().retried


def has_first_byte(plane: ControlPlane, stream: Stream) -> bool:
    story = plane.dispatcher.explain(stream.request_id)
    return story is not None and any(attempt["first_byte_s"] is not None for attempt in story["attempts"])


async def test_a_link_that_breaks_and_comes_back_loses_no_record() -> None:
    """The outbox is replayed: what ran is aborted by the worker, and each record is booked once."""
    async with control_plane([simulated_spec(window_s=0.05)]) as plane:
        plane.dispatcher._connections["sim-0"]._reconnect_delays_s = (0.0,) * 3
        streams = [submit(plane, number, tenant="alpha", tokens=500) for number in range(8)]
        reads = [asyncio.create_task(read(stream)) for stream in streams]
        await until(lambda: all(has_first_byte(plane, stream) for stream in streams), 10.0)  # no try is repeated
        await until(lambda: plane.settlement.accounts.balance().in_flight_mj > 0, 10.0)
        epoch = plane.links[0].worker.epoch
        plane.links[0].cut()
        await until(lambda: plane.dispatcher.snapshot().num_running == 0, 10.0)
        plane.links[0]._is_cut = False
        assert {(Outcome.FAILED, "worker_lost")} == {
            (end.outcome, end.cause) for _, _, end in await asyncio.gather(*reads)
        }
        await until(lambda: plane.dispatcher.snapshot().workers[0].is_ready, 10.0)
        assert epoch < plane.links[0].worker.epoch
        assert Outcome.COMPLETED is (await read(submit(plane, 99, tenant="beta", tokens=5)))[2].outcome
        await until(lambda: plane.dispatcher.snapshot().open_attempts == 0, 10.0)
    assert_exact(plane)
    rows = {row.tenant: row for row in plane.dispatcher.snapshot().tenants}
    assert (8, 1) == (rows["alpha"].attempts, rows["beta"].attempts)
    assert 0 == plane.dispatcher.snapshot().balance.posting_difference_mj
