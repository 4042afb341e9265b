"""The core on the real clock with live workers: carries actions out, passes on what happened, computes nothing.

Called by ``scheduler.api`` (submit, streams) and ``scheduler.service`` (links, stop). It must never know HTTP, Ray, a
price or why the core decided as it did.

What leaves in which order: an answer's first byte only after its hold is committed; its End only after the charge is;
a worker's acknowledgement only after the commit that holds its records. One task commits for all links (a durable
ledger groups them there), so that reading reports never waits for a disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from scheduler.accounting.charging import charge_of, hold_of
from scheduler.accounting.settlement import Settlement
from scheduler.answers import Answers
from scheduler.bookkeeper import Bookkeeper
from scheduler.committer import Committer
from scheduler.connection import Connection, Phase, WorkerLink
from scheduler.core.actions import Abort as AbortAttempt
from scheduler.core.actions import Action, Dispatch, Finish, Reject, Settle
from scheduler.core.actions import Park as ParkWorker
from scheduler.core.actions import Wake as WakeWorker
from scheduler.core.budget_accounts import BudgetState
from scheduler.core.cluster import DEFAULT_MAX_RUNNING, WorkerView
from scheduler.core.price_clock import EnergyPrices
from scheduler.core.request import Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.snapshot import Snapshot, take_snapshot
from scheduler.stories import with_costs
from scheduler.streams import Body, End, Head, Stream, Submission
from scheduler.underway import Live, Running
from workers.types import Abort, Call, Outcome, Park, Report, UsageRecord, Wake, WorkerState

__all__ = ["Body", "Dispatcher", "End", "Head", "Phase", "Snapshot", "Stream", "Submission", "WorkerLink"]

logger = logging.getLogger("jouleway.dispatcher")

TICK_S = 0.05
ABORT_GRACE_S = 5.0
"""How long a stop waits for aborted attempts to end and for workers' last records."""

RENDER_FAILED = "render_failed"
"""Cause of an attempt that never left this process."""


class Dispatcher:
    """One per control plane, on one event loop. ``start`` it, add links, submit; ``stop`` it once."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        settlement: Settlement,
        on_worker_down: Callable[[str, str], None] | None = None,
        on_ledger_wait: Callable[[str, float], None] = lambda part, wait_s: None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        tick_s: float = TICK_S,
    ) -> None:
        self._core = scheduler
        self.settlement = settlement
        settlement.on_settled = scheduler.holds.book_energy
        self._on_worker_down = on_worker_down
        self._clock = clock
        self._unix_clock = unix_clock
        self._tick_s = tick_s
        self._epoch = 0
        self._live: dict[str, Live] = {}
        self._running: dict[str, Running] = {}
        self._connections: dict[str, Connection] = {}
        self._reported_down: set[Connection] = set()
        self._answers = Answers(scheduler, self._running, apply=self._apply, clock=clock)
        self._committer = Committer(settlement, on_problem=self._on_ledger, on_wait=on_ledger_wait)
        self.ledger_problem = ""
        self._bookkeeper = Bookkeeper(
            core=scheduler, settlement=settlement, on_usage=lambda actions, usage: self._apply(actions, usage=usage)
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._num_links = 0
        self._is_draining = False

    # -- what the service calls

    async def start(self) -> None:
        """Starts the clock and the committer."""
        self._tasks = [
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._committer.run(), name="commit"),
        ]

    def add_link(self, link: WorkerLink, *, max_running: int = DEFAULT_MAX_RUNNING, incarnation: str = "") -> None:
        """Connects a worker. ``incarnation`` names its process (Ray: the actor's id); a new one counts records anew.

        Raises: ValueError while another link of the same worker is alive.
        """
        known = self._connections.get(link.worker_id)
        if known is not None and known.phase is not Phase.GONE:
            raise ValueError(f"worker {link.worker_id} has a link already ({known.phase.value}): remove it first")
        if known is not None:
            self._reported_down.discard(known)
        self._num_links += 1
        connection = Connection(
            link,
            max_running=max_running,
            incarnation=incarnation or f"link-{self._num_links}",
            next_epoch=self._next_epoch,
            on_report=self._on_report,
            on_lost=self._on_lost,
        )
        self._connections[link.worker_id] = connection
        self.settlement.open_worker(link.worker_id, incarnation=connection.incarnation)
        connection.start()

    async def remove_link(self, worker_id: str) -> None:
        """Forgets a worker: its attempts are retried or ended, its in-flight energy is settled."""
        connection = self._connections.get(worker_id)
        if connection is None:
            return
        await connection.close()
        if self._connections.get(worker_id) is not connection:
            return  # somebody else removed or replaced it meanwhile
        self._apply(self._core.on_worker_lost(worker_id, "worker_removed", self._clock()))
        del self._connections[worker_id]
        self._reported_down.discard(connection)
        self.settlement.close_worker(worker_id)

    async def stop(self, *, drain_s: float = 0.0, stop_workers: bool = False) -> None:
        """Refuses what waits, lets what runs end for ``drain_s``, aborts the rest, settles all, leaves the workers.

        ``stop_workers`` stops them too, reading on until their last windows and postings are booked.
        """
        self._is_draining = True
        self._apply(self._core.drain(self._clock()))
        await self._wait(lambda: not self._core.num_running, drain_s)
        self._apply(self._core.abort_all("shutting_down", self._clock()))
        await self._wait(lambda: not self._core.num_running, ABORT_GRACE_S)
        connections = list(self._connections.values())
        if stop_workers:
            await asyncio.gather(*(connection.stop_worker() for connection in connections))
            await self._wait(lambda: all(connection.has_said_all for connection in connections), ABORT_GRACE_S)
        await asyncio.sleep(0)
        await self._committer.commit_last()
        for connection in connections:
            await connection.flush()
            if stop_workers:
                await self.remove_link(connection.worker_id)
                continue
            await connection.close()
            self._apply(self._core.on_worker_lost(connection.worker_id, "shutting_down", self._clock()))
        await self._committer.commit_last()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what the relay calls

    def submit(self, submission: Submission) -> Stream:
        """Never blocks and never raises for load: a refusal is the stream's only item."""
        request = submission.request
        stream = Stream(request.request_id, on_close=self._on_close)
        self._live[request.request_id] = Live(submission, stream)
        self._apply(self._core.submit(request, self._clock()))
        return stream

    def reload(self, rules: Rules) -> None:
        """Other rules from now on; what runs goes on as it was admitted."""
        self._apply(self._core.reload(rules, self._clock()))

    def set_energy_prices(self, prices: EnergyPrices) -> None:
        """What energy costs from now on, over unix time; whoever waits for a cheaper hour is planned anew."""
        now_s = self._clock()
        self._apply(self._core.set_energy_prices(prices.shifted(now_s - self._unix_clock()), now_s))

    def _on_close(self, request_id: str, reason: str) -> None:
        if request_id in self._live:
            self._apply(self._core.cancel(request_id, reason, self._clock()))

    # -- what workers say

    def _on_report(self, connection: Connection, report: Report) -> None:
        now_s = self._clock()
        core = self._core
        if report.status is not None:
            view = WorkerView.of(report.status, max_running=connection.max_running)
            self._apply(core.on_worker_report(view, now_s))
            if report.status.state is WorkerState.STOPPED:
                self._report_down(connection, report.status.cause)
        if report.progress:
            core.on_progress(report.progress, now_s)
        self._answers.take(connection, report.outputs, now_s)
        if report.records:
            self._bookkeeper.book(connection, report.records, now_s)
            self._committer.add_records(connection)

    def _on_lost(self, connection: Connection, cause: str) -> None:
        self._apply(self._core.on_worker_lost(connection.worker_id, cause, self._clock()))
        if connection.phase in (Phase.GONE, Phase.FENCED):
            self.settlement.close_worker(connection.worker_id)
        if connection.phase is Phase.GONE:
            self._report_down(connection, connection.cause)

    def _report_down(self, connection: Connection, cause: str) -> None:
        """Says once that this worker will not come back by itself."""
        if connection not in self._reported_down and not self._is_draining:
            self._reported_down.add(connection)
            if self._on_worker_down is not None:
                self._on_worker_down(connection.worker_id, cause)

    # -- carrying out

    def _apply(self, actions: Iterable[Action], *, usage: UsageRecord | None = None) -> None:
        """Carries actions out in order; an order that fails here comes back to the core as a failed attempt."""
        waiting = deque(actions)
        while waiting:
            match waiting.popleft():
                case Dispatch() as dispatch:
                    waiting.extend(self._dispatch(dispatch))
                case AbortAttempt() as abort:
                    self._connections[abort.worker_id].send(Abort(attempt_id=abort.attempt_id, reason=abort.reason))
                case ParkWorker(worker_id=worker_id, reason=reason):
                    self._connections[worker_id].send(Park(reason=reason))
                case WakeWorker(worker_id=worker_id, reason=reason):
                    self._connections[worker_id].send(Wake(reason=reason))
                case Settle() as settle:
                    self._settle(settle, usage if usage and usage.attempt_id == settle.attempt_id else None)
                case Reject(request_id=request_id, rejection=rejection):
                    live = self._live.pop(request_id)
                    self.settlement.release(request_id, rejection.reason)
                    live.take_back()
                    self._end(live, End(rejection=rejection, cause=rejection.reason, charge=live.charge))
                case Finish() as finish:
                    live = self._live.pop(finish.request_id)
                    self.settlement.release(finish.request_id, finish.cause or finish.outcome.value)
                    if finish.outcome not in (Outcome.COMPLETED, Outcome.REFUSED):
                        live.take_back()
                    self._end(live, End(outcome=finish.outcome, cause=finish.cause, charge=live.charge))

    def _end(self, live: Live, end: End) -> None:
        """Once what was booked of it is durable; whoever was refused before anything was booked hears it at once."""
        if live.is_held or live.charge is not None or end.rejection is None:
            self._committer.add_end(live.stream, end)
        else:
            live.stream.put_end(end)

    def _dispatch(self, dispatch: Dispatch) -> list[Action]:
        live = self._live[dispatch.request_id]
        live.take_back()  # of an attempt before
        if not (live.is_held or live.submission.request.is_counting):
            live.is_held = True
            seq = self.settlement.hold(hold_of(live.submission.request, dispatch))
            if not self.settlement.is_durable(seq):
                self._committer.add_begin(live.stream)
        connection, attempt_id = self._connections[dispatch.worker_id], dispatch.attempt_id
        self._running[attempt_id] = Running(live, connection, dispatch.reason)
        try:
            body = live.submission.render(dispatch.max_output_tokens, dispatch.priority)
        except Exception as error:
            # The text of this error may hold a prompt: only its type leaves.
            logger.error("request %s could not be rendered: %s", dispatch.request_id, type(error).__name__)
            failed = UsageRecord(attempt_id=attempt_id, outcome=Outcome.FAILED, cause=RENDER_FAILED)
            return self._core.on_finished(failed, self._clock())
        call = Call(attempt_id=attempt_id, path=live.submission.path, body=body, priority=dispatch.priority)
        connection.send(call)
        return []

    def _settle(self, settle: Settle, usage: UsageRecord | None) -> None:
        running = self._running.pop(settle.attempt_id)
        live, connection = running.live, running.connection
        live.charge = charge_of(
            settle, live.submission.request, status=connection.status, usage=usage, decision=running.decision
        )
        self.settlement.charge(live.charge)
        if (not settle.is_exact and connection.phase is Phase.CONNECTED) or settle.cause == RENDER_FAILED:
            # Its worker lives and does not know it: no posting will come.
            self.settlement.give_up(settle.attempt_id)

    def _on_ledger(self, problem: str) -> None:
        """After each commit: what is wrong with the ledger. While anything is, nothing new begins."""
        if problem != self.ledger_problem:
            logger.log(logging.ERROR if problem else logging.INFO, "ledger: %s", problem or "writable again")
            self.ledger_problem = problem
            self._core.on_ledger(not problem)

    # -- clocks

    def _next_epoch(self) -> int:
        """Rises by every connection, and above those of every earlier control plane on this host's clock."""
        self._epoch = max(self._epoch + 1, int(self._unix_clock() * 1000))
        return self._epoch

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            try:
                self._apply(self._core.tick(self._clock()))
            except Exception:
                logger.exception("a tick failed; the next one follows")

    async def _wait(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        until_s = self._clock() + timeout_s
        while not is_done() and self._clock() < until_s:
            await asyncio.sleep(min(self._tick_s, 0.02))

    # -- what can be seen

    def explain(self, request_id: str, *, tenant: str | None = None) -> dict[str, Any] | None:
        """The life of a request and what it cost; None where it is unknown, too long ago or another ``tenant``'s."""
        story = self._core.explain(request_id)
        if story is None or tenant not in (None, story["tenant"]):
            return None
        return with_costs(story, self.settlement.details(request_id))

    def what_if(self, request: Request) -> dict[str, Any]:
        """What would become of this request now; nothing changes."""
        return self._core.what_if(request, self._clock())

    def connection(self, worker_id: str) -> Connection | None:
        """Its link, whatever its state."""
        return self._connections.get(worker_id)

    @property
    def worker_ids(self) -> tuple[str, ...]:
        """Of every link, whatever its state."""
        return tuple(self._connections)

    def quota(self, request: Request, at_unix_s: float, measures: Iterable[str]) -> list[BudgetState]:
        """How the tightest budget of each of these measures above a request stands; empty where it has none."""
        return self._core.holds.budgets.tightest(request, at_unix_s, measures)

    def snapshot(self) -> Snapshot:
        """Everything at this moment; costs workers × tenants, so at most once a second please."""
        return take_snapshot(
            self._core,
            self.settlement,
            self._connections.values(),
            now_unix_s=self._unix_clock(),
            bad_windows=self._bookkeeper.bad_windows,
            is_draining=self._is_draining,
            ledger_problem=self.ledger_problem,
        )
