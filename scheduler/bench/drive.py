"""Paces a plan against the clock: open loop by due time, or closed loop by free slots; watches the client itself.

Called by ``scheduler.bench.command``. It must never know what a figure means; it returns every exchange.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from scheduler.bench.client import Client, Exchange
from scheduler.bench.prompts import Prompts
from scheduler.bench.workload import Planned

LAG_PERIOD_S = 0.02
MAX_LAG_SAMPLES = 200_000
LOOKAHEAD_REQUESTS = 128
LOOKAHEAD_BYTES = 32 << 20
"""Bodies are written ahead of their due time, so that a long prompt delays no send."""
SPARE_S = 0.005
"""Time before a due time in which no body is written any more."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What happened so far, for a progress bar."""

    num_sent: int = 0
    num_done: int = 0
    num_failed: int = 0
    now_s: float = 0.0

    @property
    def num_open(self) -> int:
        """Requests sent and not ended."""
        return self.num_sent - self.num_done


@dataclass(slots=True, kw_only=True)
class Run:
    """All that one run left behind; the measured span is ``[warmup_s, warmup_s + duration_s)`` of its clock."""

    exchanges: list[Exchange] = field(default_factory=list)
    warmup_s: float
    duration_s: float
    origin_s: float = 0.0
    """The client's clock when the run began: what its seconds count from."""
    ended_s: float = 0.0
    lag_s: list[float] = field(default_factory=list)
    """How late the client's own event loop woke, sampled every 20 ms."""
    cpu_ratio: float = 0.0
    """CPU time of the client ÷ wall time; near 1 the client is the bottleneck."""
    num_unsent: int = 0
    """Planned requests that were never sent, because the run was interrupted."""
    interrupted: bool = False

    @property
    def measured(self) -> list[Exchange]:
        """Exchanges that were due inside the measured span, in order of due time."""
        end_s = self.warmup_s + self.duration_s
        inside = [seen for seen in self.exchanges if self.warmup_s <= seen.due_s < end_s]
        return sorted(inside, key=lambda seen: seen.due_s)


class Driver:
    """Runs one plan, once. ``max_in_flight`` bounds open requests; what waits for it is counted as sent late."""

    def __init__(
        self,
        client: Client,
        prompts: Prompts,
        *,
        max_in_flight: int,
        on_change: Callable[[Tally], None] = lambda tally: None,
    ) -> None:
        self.stop = asyncio.Event()
        """Set by a signal handler: nothing more is sent, what is open is given up."""
        self._client = client
        self._prompts = prompts
        self._slots = asyncio.Semaphore(max_in_flight)
        self._on_change = on_change
        self._tally = Tally()
        self._origin_s = 0.0
        self._run = Run(warmup_s=0.0, duration_s=0.0)
        self._tasks: list[asyncio.Task[None]] = []

    async def open_loop(self, plan: Iterable[Planned], *, warmup_s: float, duration_s: float) -> Run:
        """Send each request at its due time whatever the server does; wait for the last one's end."""
        self._run = Run(warmup_s=warmup_s, duration_s=duration_s)
        return await self._watched(self._send_due(iter(plan)))

    async def closed_loop(
        self, plan: Iterator[Planned], *, concurrency: int, warmup_s: float, duration_s: float
    ) -> Run:
        """Keep ``concurrency`` requests open until the span is over; what is open then runs to its end."""
        self._run = Run(warmup_s=warmup_s, duration_s=duration_s)
        return await self._watched(self._send_free(plan, concurrency, warmup_s + duration_s))

    async def _watched(self, sending: Awaitable[None]) -> Run:
        """Run the sender beside the lag watch, then wait for what is open (each request has its own time limit)."""
        run, watch = self._run, asyncio.create_task(self._watch())
        self._origin_s = run.origin_s = self._client.clock()
        cpu_s = time.process_time()
        try:
            await sending
            await self._drain()
        finally:
            watch.cancel()
            for task in self._tasks:
                task.cancel()
            outcomes = await asyncio.gather(*self._tasks, watch, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        run.ended_s = self._now_s()
        run.cpu_ratio = (time.process_time() - cpu_s) / max(run.ended_s, 1e-9)
        run.interrupted = self.stop.is_set()
        return run

    async def _drain(self) -> None:
        stopped = asyncio.create_task(self.stop.wait())
        open_tasks: set[asyncio.Task[None]] = set(self._tasks)
        while open_tasks and not stopped.done():
            done, _ = await asyncio.wait({*open_tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
            open_tasks.difference_update(done)
        stopped.cancel()

    async def _send_due(self, plan: Iterator[Planned]) -> None:
        ahead: deque[tuple[Planned, bytes]] = deque()
        while not self.stop.is_set():
            if not ahead and not self._write_ahead(plan, ahead):
                return
            planned, payload = ahead.popleft()
            due_s = planned.due_s or 0.0
            while self._has_room(ahead) and due_s - self._now_s() > SPARE_S and self._write_ahead(plan, ahead):
                await asyncio.sleep(0)
            await self._sleep_until(due_s)
            if self.stop.is_set():
                ahead.appendleft((planned, payload))
                break
            self._spawn(Exchange(planned=planned, due_s=due_s), payload)
            await asyncio.sleep(0)  # a burst must not keep its own first request from leaving
        self._run.num_unsent = len(ahead) + sum(1 for _ in plan)

    async def _send_free(self, plan: Iterator[Planned], concurrency: int, end_s: float) -> None:
        async def occupy() -> None:
            while not self.stop.is_set() and (now_s := self._now_s()) < end_s:
                planned = next(plan)
                seen = Exchange(planned=planned, due_s=now_s)
                self._run.exchanges.append(seen)
                await self._one(seen, self._payload(planned))

        self._tasks += [asyncio.create_task(occupy()) for _ in range(concurrency)]
        while not self.stop.is_set() and self._now_s() < end_s:
            await self._sleep_until(end_s)

    def _write_ahead(self, plan: Iterator[Planned], ahead: deque[tuple[Planned, bytes]]) -> bool:
        planned = next(plan, None)
        if planned is None:
            return False
        ahead.append((planned, self._payload(planned)))
        return True

    @staticmethod
    def _has_room(ahead: deque[tuple[Planned, bytes]]) -> bool:
        return len(ahead) < LOOKAHEAD_REQUESTS and sum(len(payload) for _, payload in ahead) < LOOKAHEAD_BYTES

    def _payload(self, planned: Planned) -> bytes:
        return self._client.payload(self._prompts.text(planned), planned.output_tokens)

    async def _sleep_until(self, due_s: float) -> None:
        """Wait for a due time in naps, so that a stop is seen soon."""
        while not self.stop.is_set() and (wait_s := due_s - self._now_s()) > 0:
            await asyncio.sleep(min(wait_s, 0.25))

    def _spawn(self, seen: Exchange, payload: bytes) -> None:
        self._run.exchanges.append(seen)
        self._tasks.append(asyncio.create_task(self._one(seen, payload)))

    async def _one(self, seen: Exchange, payload: bytes) -> None:
        self._tally.num_sent += 1
        try:
            async with self._slots:
                await self._client.exchange(seen, payload, origin_s=self._origin_s)
        except asyncio.CancelledError:
            seen.reason, seen.ended_s = "interrupted", self._now_s()
            raise
        finally:
            self._tally.num_done += 1
            self._tally.num_failed += seen.reason is not None
            self._changed()

    def _changed(self) -> None:
        self._tally.now_s = self._now_s()
        self._on_change(self._tally)

    async def _watch(self) -> None:
        """Sample how late this event loop wakes: the client's own share of every latency."""
        clock = self._client.clock
        while len(self._run.lag_s) < MAX_LAG_SAMPLES:
            asked_s = clock()
            await asyncio.sleep(LAG_PERIOD_S)
            self._run.lag_s.append(max(0.0, clock() - asked_s - LAG_PERIOD_S))
            self._changed()

    def _now_s(self) -> float:
        return self._client.clock() - self._origin_s
