"""Pacing on a clock that jumps: open loop keeps its due times, closed loop its slots, and nothing is hidden."""

import asyncio
import selectors
from collections.abc import Coroutine, Iterator
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.bench.client import Exchange
from scheduler.bench.drive import Driver, Run, Tally
from scheduler.bench.prompts import Prompts
from scheduler.bench.workload import Planned

Result = TypeVar("Result")
PROMPTS = Prompts(seed=0)


class JumpingSelector(selectors.SelectSelector):
    """Instead of waiting it moves the clock: a run of minutes takes milliseconds, always the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        self.now_s += 1e-9  # time never stands quite still, or a nap of rounding size would last for ever
        if not ready and timeout and timeout > 0:
            self.now_s += timeout
        return ready


def jumped(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on a clock that jumps to the next timer."""
    selector = JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


class SlowServer:
    """Stands in for the client: each request takes ``service_s`` of the loop's clock, one at a time if ``serial``."""

    def __init__(self, *, service_s: float, serial: bool = False, fail_at: int | None = None) -> None:
        self.service_s = service_s
        self.lock = asyncio.Semaphore(1 if serial else 10_000)
        self.fail_at = fail_at
        self.num_open = 0
        self.most_open = 0
        self.order: list[int] = []

    def clock(self) -> float:
        return asyncio.get_running_loop().time()

    def payload(self, text: str, output_tokens: int) -> bytes:
        return text.encode()

    async def exchange(self, seen: Exchange, payload: bytes, *, origin_s: float) -> Exchange:
        seen.sent_s = self.clock() - origin_s
        self.order.append(seen.planned.index)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        if self.fail_at == seen.planned.index:
            raise RuntimeError("a bug in the client")
        async with self.lock:
            await asyncio.sleep(self.service_s)
        self.num_open -= 1
        seen.token_s.append(self.clock() - origin_s)
        seen.ended_s = self.clock() - origin_s
        seen.output_tokens = 1
        return seen


def plan(*due_s: float) -> list[Planned]:
    return [Planned(index=i, due_s=due, input_tokens=3, output_tokens=1) for i, due in enumerate(due_s)]


def endless() -> Iterator[Planned]:
    return (Planned(index=i, due_s=None, input_tokens=3, output_tokens=1) for i in count())


def driver(server: SlowServer, *, max_in_flight: int = 1000, **options: Any) -> Driver:
    return Driver(server, PROMPTS, max_in_flight=max_in_flight, **options)  # type: ignore[arg-type]


@settings(max_examples=15)
@given(due=st.lists(st.floats(0, 20), max_size=20), service_s=st.floats(0.001, 30))
def test_open_loop_sends_on_time_however_slow_the_server(due: list[float], service_s: float) -> None:
    """Every request leaves at its due time, in order, and is answered service_s later."""

    async def main() -> Run:
        server = SlowServer(service_s=service_s)
        return await driver(server).open_loop(plan(*sorted(due)), warmup_s=0, duration_s=21)

    run = jumped(main())
    assert [seen.due_s for seen in run.exchanges] == sorted(due)
    for seen in run.exchanges:
        assert seen.sent_s == pytest.approx(seen.due_s, abs=1e-6)
        assert seen.e2e_s == pytest.approx(service_s, abs=1e-6)
    assert (run.num_unsent, run.interrupted) == (0, False)


def test_a_server_that_stalls_is_charged_with_all_that_waited() -> None:
    """One at a time, a second each, due every 0.1 s: the tenth waits for the nine before it."""

    async def main() -> Run:
        server = SlowServer(service_s=1.0, serial=True)
        return await driver(server).open_loop(plan(*(i / 10 for i in range(10))), warmup_s=0, duration_s=2)

    latencies = [seen.e2e_s for seen in jumped(main()).exchanges]
    assert latencies == pytest.approx([1 + 0.9 * i for i in range(10)])


def test_the_limit_of_open_requests_shows_as_late_sends() -> None:
    """What waits for a free slot keeps its due time, so the wait is in its latency and in its send delay."""

    async def main() -> tuple[Run, int]:
        server = SlowServer(service_s=1.0)
        run = await driver(server, max_in_flight=2).open_loop(plan(0, 0, 0, 0), warmup_s=0, duration_s=5)
        return run, server.most_open

    run, most_open = jumped(main())
    assert most_open == 2
    assert [(seen.sent_s or 0.0) - seen.due_s for seen in run.exchanges] == pytest.approx([0, 0, 1, 1], abs=1e-6)
    assert [seen.e2e_s for seen in run.exchanges] == pytest.approx([1, 1, 2, 2])


def test_closed_loop_keeps_its_slots_full_until_the_end() -> None:
    """Three slots, a second each, for ten seconds: thirty requests, never more than three open."""

    async def main() -> tuple[Run, int]:
        server = SlowServer(service_s=1.0)
        run = await driver(server).closed_loop(endless(), concurrency=3, warmup_s=2, duration_s=7.5)
        return run, server.most_open

    run, most_open = jumped(main())
    assert most_open == 3
    assert len(run.exchanges) == 30
    assert run.ended_s == pytest.approx(10)
    assert 100.0 == pytest.approx(run.origin_s)
    assert sorted(seen.planned.index for seen in run.exchanges) == list(range(30))


def test_only_what_was_due_in_the_span_is_measured() -> None:
    """The warm-up is sent and left out; what is due at the end of the span is not part of it."""

    async def main() -> Run:
        return await driver(SlowServer(service_s=0.1)).open_loop(plan(0, 1, 2, 3, 4), warmup_s=1, duration_s=3)

    assert [seen.due_s for seen in jumped(main()).measured] == [1, 2, 3]


def test_a_stop_sends_nothing_more_and_gives_up_what_is_open() -> None:
    """After two of five seconds: what was sent is kept, what was open is interrupted, the rest was never sent."""

    async def main() -> Run:
        pacing = driver(SlowServer(service_s=1.5))
        asyncio.get_running_loop().call_later(2.1, pacing.stop.set)
        return await pacing.open_loop(plan(0, 1, 2, 3, 4), warmup_s=0, duration_s=5)

    run = jumped(main())
    assert (run.interrupted, run.num_unsent) == (True, 2)
    assert [(seen.due_s, seen.reason) for seen in run.exchanges] == [(0, None), (1, "interrupted"), (2, "interrupted")]
    assert run.ended_s < 3
    assert all(seen.ended_s >= seen.due_s for seen in run.exchanges)


def test_a_stop_ends_a_closed_loop_too() -> None:
    """No slot takes another request."""

    async def main() -> Run:
        pacing = driver(SlowServer(service_s=1.0))
        asyncio.get_running_loop().call_later(1.5, pacing.stop.set)
        return await pacing.closed_loop(endless(), concurrency=2, warmup_s=0, duration_s=60)

    run = jumped(main())
    assert run.interrupted
    assert run.ended_s < 3
    assert [seen.reason for seen in run.exchanges] == [None, None, "interrupted", "interrupted"]


def test_a_stop_during_the_drain_does_not_wait_for_the_last_answer() -> None:
    """A server that never ends cannot hold the client."""

    async def main() -> Run:
        pacing = driver(SlowServer(service_s=1e6))
        asyncio.get_running_loop().call_later(5, pacing.stop.set)
        return await pacing.open_loop(plan(0), warmup_s=0, duration_s=1)

    run = jumped(main())
    assert run.ended_s == pytest.approx(5)
    assert [seen.reason for seen in run.exchanges] == ["interrupted"]


def test_a_bug_is_not_counted_as_a_failed_request() -> None:
    """An exception that is no failure of the exchange comes out of the run."""

    async def main() -> Run:
        return await driver(SlowServer(service_s=1.0, fail_at=1)).open_loop(plan(0, 1, 2), warmup_s=0, duration_s=4)

    with pytest.raises(RuntimeError, match="a bug in the client"):
        jumped(main())


def test_the_tally_adds_up() -> None:
    """The progress bar's last word: all sent, all done, none open."""
    tallies: list[tuple[int, int, int]] = []

    def note(tally: Tally) -> None:
        tallies.append((tally.num_sent, tally.num_done, tally.num_open))

    async def main() -> Run:
        pacing = driver(SlowServer(service_s=0.5), on_change=note)
        return await pacing.open_loop(plan(0, 1, 2), warmup_s=0, duration_s=3)

    jumped(main())
    assert tallies[-1] == (3, 3, 0)
    assert all(sent - done == num_open >= 0 for sent, done, num_open in tallies)


def test_the_clients_own_lag_is_sampled() -> None:
    """On a clock that wakes exactly the lag is nothing, and it is watched all along."""

    async def main() -> Run:
        return await driver(SlowServer(service_s=0.5)).open_loop(plan(0, 4), warmup_s=0, duration_s=5)

    run = jumped(main())
    assert len(run.lag_s) > 100
    assert max(run.lag_s) < 1e-6


def test_a_blocked_loop_shows_as_lag() -> None:
    """A callback that holds the loop for half a second is seen by the watch."""

    async def main() -> Run:
        loop = asyncio.get_running_loop()
        selector: JumpingSelector = loop._selector  # type: ignore[attr-defined]

        def block() -> None:
            selector.now_s += 0.5

        loop.call_later(1.0, block)
        return await driver(SlowServer(service_s=0.5)).open_loop(plan(0, 4), warmup_s=0, duration_s=5)

    assert max(jumped(main()).lag_s) == pytest.approx(0.5, abs=0.03)


def test_bodies_are_written_ahead_of_time() -> None:
    """While it waits for a due time the client writes the next bodies, up to its bound."""
    written: list[float] = []

    class Noting(SlowServer):
        def payload(self, text: str, output_tokens: int) -> bytes:
            written.append(self.clock())
            return b"x"

    async def main() -> Run:
        return await driver(Noting(service_s=0.1)).open_loop(plan(*range(300)), warmup_s=0, duration_s=300)

    jumped(main())
    first_s = written[0]
    assert sum(moment < first_s + 0.001 for moment in written) in range(100, 140)
    assert len(written) == 300
