"""Requests on real Ray: streamed, aborted, retried after a kill; every millijoule and every credit is accounted for."""

import asyncio
import time
from pathlib import Path

from scheduler.accounting.accounts import OPERATOR
from scheduler.dispatcher import Body, End
from tests.cluster.plane import Plane, answer_of, host_pids, kill, plane, spec_of
from workers.ray_worker import RayCluster
from workers.simulated_counter import CounterFile
from workers.types import Outcome

LONG_PROMPT = "a prompt of many steps " * 40
"""About 230 tokens: with 16 tokens a step its first byte is 14 steps away."""


def tenant_tokens(made: Plane, tenant: str) -> tuple[int, int]:
    totals = made.settlement.accounts.tokens_of(tenant)
    return totals.input_tokens, totals.output_tokens


async def test_streams_aborts_and_choices_add_up(cluster: RayCluster) -> None:
    """Three workers in two processes, 40 requests: the answers are whole, tokens are the engines', the balance is 0."""
    groups = [[spec_of("a-0"), spec_of("a-1")], [spec_of("b-0")]]
    async with plane(cluster, groups) as made:
        assert 2 == len({made.pid_of("a-0"), made.pid_of("b-0")})
        whole = [asyncio.create_task(answer_of(made.submit(tenant="whole", max_tokens=5 + k))) for k in range(30)]
        double = [asyncio.create_task(answer_of(made.submit(tenant="double", n=2))) for _ in range(5)]
        broken = [made.submit(tenant="broken", max_tokens=2_000) for _ in range(5)]
        for stream in broken:
            while not isinstance(await stream.next(), Body):
                pass
            stream.close("client_gone")
        answers = [*await asyncio.gather(*whole), *await asyncio.gather(*double)]
        for answer in answers:
            assert answer.end is not None
            assert (Outcome.COMPLETED, 1, 200) == (answer.end.outcome, len(answer.heads), answer.heads[0].status)
            assert answer.data.endswith(b"data: [DONE]\n\n")
        await made.settled()
        for tenant, some in (("whole", answers[:30]), ("double", answers[30:])):
            said = [answer.usage for answer in some]
            expected = sum(use["prompt_tokens"] for use in said), sum(use["completion_tokens"] for use in said)
            assert expected == tenant_tokens(made, tenant)
        assert sum(5 + k for k in range(30)) == tenant_tokens(made, "whole")[1]
        assert 5 * 2 * 20 == tenant_tokens(made, "double")[1]
        assert 0 < tenant_tokens(made, "broken")[1] < 5 * 2_000
        balance = made.settlement.accounts.balance()
        assert (0, 0, 0) == (balance.token_difference, balance.inexact_sequences, balance.posting_difference_mj)
        assert balance.requests_mj > 0


async def test_a_worker_killed_before_the_first_byte_is_retried_once_elsewhere(cluster: RayCluster) -> None:
    """The client sees nothing but a later answer; what the killed attempt computed is the operator's."""
    groups = [[spec_of(name, engine_args={"max_batched_tokens": 16, "fixed_step_s": 0.1})] for name in ("k-0", "k-1")]
    async with plane(cluster, groups) as made:
        reading = asyncio.create_task(answer_of(made.submit(tenant="t", prompt=LONG_PROMPT, max_tokens=4)))
        await made.until(lambda: any(worker.num_attempts for worker in made.dispatcher.snapshot().workers))
        (worker,) = [worker for worker in made.dispatcher.snapshot().workers if worker.num_attempts]
        attempt = next(iter(made.core._running._attempts.values()))
        await made.until(lambda: attempt.computed_prompt_tokens > 0)
        assert not attempt.has_first_byte
        kill(made.pid_of(worker.worker_id))
        answer = await reading
        assert answer.end is not None
        assert (Outcome.COMPLETED, 1) == (answer.end.outcome, len(answer.heads))
        assert answer.end.charge is not None
        assert worker.worker_id != answer.end.charge.worker_id
        assert (1, 2) == (made.core.stats.retried, made.core.stats.dispatched)
        assert (answer.usage["prompt_tokens"], 4) == tenant_tokens(made, "t")
        vain = tenant_tokens(made, OPERATOR)
        assert 0 < vain[0] < answer.usage["prompt_tokens"]
        await made.until(lambda: made.is_ready(2))
        await made.settled()


async def test_a_worker_killed_after_the_first_byte_ends_its_answers_with_an_error(cluster: RayCluster) -> None:
    """Bytes that were sent cannot be taken back: the request pays for what was executed, nobody computes it again."""
    async with plane(cluster, [[spec_of("k-2")], [spec_of("k-3")]]) as made:
        stream = made.submit(tenant="t", max_tokens=2_000)
        seen = b""
        while len(seen) < 2_000:
            item = await stream.next()
            assert not isinstance(item, End), item
            seen += item.data if isinstance(item, Body) else b""
        (worker,) = [worker for worker in made.dispatcher.snapshot().workers if worker.num_attempts]
        await asyncio.sleep(0.3)  # a word on progress comes four times a second
        kill(made.pid_of(worker.worker_id))
        answer = await answer_of(stream)
        assert answer.end is not None
        assert (Outcome.FAILED, "worker_lost") == (answer.end.outcome, answer.end.cause)
        assert (0, 1) == (made.core.stats.retried, made.core.stats.dispatched)
        assert tenant_tokens(made, "t")[1] > 0
        assert (0, 0) == tenant_tokens(made, OPERATOR)
        await made.until(lambda: made.is_ready(2))
        await made.settled()


async def test_the_energy_of_a_killed_worker_is_accounted_for(cluster: RayCluster, tmp_path: Path) -> None:
    """An observer of the counter's file saw every millijoule that was booked, over three lives and two kills."""
    path = tmp_path / "counter"
    async with plane(cluster, [[spec_of("e-0", counter_path=str(path))]]) as made:
        observer = CounterFile(path)
        first = made.settlement
        for _ in range(2):
            pid = made.pid_of("e-0")
            streams = [made.submit(max_tokens=500) for _ in range(4)]
            booked = len(first.windows)
            await made.until(lambda booked=booked: len(first.windows) > booked + 1)
            await asyncio.sleep(0.2)  # the counter moves on, unread
            kill(pid)
            answers = await asyncio.gather(*map(answer_of, streams))
            assert all(answer.end is not None and answer.end.outcome is Outcome.FAILED for answer in answers)
            await made.until(lambda pid=pid: made.is_ready(1) and made.pid_of("e-0") != pid)
        assert Outcome.COMPLETED is (await answer_of(made.submit())).end.outcome  # type: ignore[union-attr]
        await made.settled()
    windows = [window for _, window in made.settlement.windows]
    lost_mj = [dict(window.causes).get("worker_lost", 0) for window in windows]
    assert 2 == sum(energy_mj > 0 for energy_mj in lost_mj)
    start_mj = windows[0].counter_mj - windows[0].meter_mj
    assert windows[-1].counter_mj - start_mj == sum(window.meter_mj for window in windows)
    assert 0 <= observer.read().counter_mj - windows[-1].counter_mj < 0.5 * 119_000 + 20_000
    assert start_mj < 3.0 * 119_000, "what came before the first window was idle start-up"
    observer.close()
    balance = made.settlement.accounts.balance()
    assert sum(lost_mj) == dict(balance.causes)["worker_lost"]


async def test_a_stalled_engine_loses_its_requests_to_another(cluster: RayCluster) -> None:
    """No step with work running: the worker is sick, its request is answered elsewhere; steps make it well again."""
    hanging = spec_of("s-0", stall_timeout_s=1.5, engine_args={"hang_after_s": 1.0, "hang_for_s": 5.0})
    async with plane(cluster, [[hanging]]) as made:
        stream = made.submit(prompt=LONG_PROMPT, max_tokens=300)
        await made.until(lambda: made.dispatcher.snapshot().workers[0].num_attempts)
        reading = asyncio.create_task(answer_of(stream))
        states: set[str] = set()

        def is_sick() -> bool:
            status = made.dispatcher.snapshot().workers[0].status
            states.add("" if status is None else status.state.value)
            return "sick" in states

        await made.until(is_sick)
        answer = await reading
        assert answer.end is not None
        assert (Outcome.FAILED, "stalled") == (answer.end.outcome, answer.end.cause)
        await made.until(lambda: made.is_ready(1))
        assert Outcome.COMPLETED is (await answer_of(made.submit())).end.outcome  # type: ignore[union-attr]
        await made.settled()


async def test_nothing_is_left_when_a_control_plane_stops_its_workers(cluster: RayCluster) -> None:
    """Processes leave by themselves once their last record was acknowledged."""
    async with plane(cluster, [[spec_of("l-0")]]) as made:
        pid = made.pid_of("l-0")
        await answer_of(made.submit())
    assert not made.settlement.num_open
    until_s = time.monotonic() + 10.0
    while pid in host_pids() and time.monotonic() < until_s:
        await asyncio.sleep(0.1)
    assert pid not in host_pids()
