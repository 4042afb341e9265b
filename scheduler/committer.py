"""One commit for everybody: answers begin and end, and workers may forget, only once what they rest on is durable.

Called by ``scheduler.dispatcher``. It must never know a request's way or what was booked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from scheduler.accounting.journal import MAX_PENDING_ROWS
from scheduler.accounting.settlement import Settlement
from scheduler.connection import Connection
from scheduler.streams import End, Stream
from workers.types import Outcome

logger = logging.getLogger("jouleway.dispatcher")

RETRY_S = 1.0
"""Wait after a commit that failed: answers and acknowledgements stay where they are until one succeeds."""

GATHER_S = 0.004
"""Between two commits: under load the next one gathers more, and a hundred requests cost little more than ten. After a
quiet moment a commit begins at once, and no engine's first token comes as soon as this."""

STUCK_S = 10.0
"""A commit that takes as long is a problem, though it may yet succeed: a disk that hangs raises nothing."""

NOT_COMMITTED = "not_committed"
"""Cause of an answer of which the charge could not be made durable."""


class Committer:
    """Collects what waits for the next commit; while one is under way the next one gathers (group commit)."""

    def __init__(
        self,
        settlement: Settlement,
        *,
        retry_s: float = RETRY_S,
        gather_s: float = GATHER_S,
        stuck_s: float = STUCK_S,
        on_problem: Callable[[str], None] = lambda words: None,
        on_wait: Callable[[str, float], None] = lambda part, wait_s: None,
    ) -> None:
        """``on_problem`` hears after each commit, and during one that hangs, what is wrong with the ledger; empty where
        nothing is. ``on_wait`` hears of each answer how long its ``first_byte`` and its ``end`` lay here, in seconds.
        """
        self._settlement = settlement
        self._on_problem = on_problem
        self._on_wait = on_wait
        self._retry_s = retry_s
        self._gather_s = gather_s
        self._stuck_s = stuck_s
        self._begins: list[Stream] = []
        self._ends: list[tuple[Stream, End, float]] = []
        self._connections: set[Connection] = set()
        self._has_pending = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def add_begin(self, stream: Stream) -> None:
        """The answer begins after the commit that holds its hold."""
        stream.hold_back()
        self._begins.append(stream)
        self._has_pending.set()
        if self._settlement.journal.is_full:
            self._on_problem(f"{MAX_PENDING_ROWS} rows wait for the disk")

    def add_end(self, stream: Stream, end: End) -> None:
        """The answer ends after the commit that holds its charge."""
        self._ends.append((stream, end, time.monotonic()))
        self._has_pending.set()

    def add_records(self, connection: Connection) -> None:
        """Records of this worker were booked: it may forget them after the commit."""
        self._connections.add(connection)
        self._has_pending.set()

    async def run(self) -> None:
        """Commits for ever; cancelled by its owner."""
        next_s = time.monotonic()
        while True:
            await self._has_pending.wait()
            if (early_s := next_s - time.monotonic()) > 0:
                await asyncio.sleep(early_s)
            try:
                await self.commit()
                next_s = time.monotonic() + self._gather_s
            except Exception:
                logger.exception("a commit failed; the next try follows in %g s", self._retry_s)
                await asyncio.sleep(self._retry_s)

    async def commit_last(self) -> None:
        """No further try follows: where the ledger refuses, answers end all the same, as failed."""
        try:
            await self.commit()
        except Exception:
            logger.exception("the last commit failed: %d answers end as not committed", len(self._ends))
            ends, self._ends = self._ends, []
            for stream, end, _ in ends:
                stream.put_end(replace(end, outcome=Outcome.FAILED, cause=NOT_COMMITTED))

    async def commit(self) -> None:
        """Everything booked until now becomes durable; then answers end and acknowledgements leave.

        A second caller waits for the first. Whatever keeps the ledger from committing is raised, and all waits on.
        """
        async with self._one_at_a_time:
            self._has_pending.clear()
            begins, self._begins = self._begins, []
            ends, self._ends = self._ends, []
            connections, self._connections = self._connections, set()
            numbers = {each: self._settlement.watermark(each.worker_id) or 0 for each in connections}
            words = f"a commit has been under way for {self._stuck_s:g} s"
            alarm = asyncio.get_running_loop().call_later(self._stuck_s, self._on_problem, words)
            try:
                await self._settlement.commit()
            except BaseException as error:
                if isinstance(error, Exception):  # a stop is no fault of the ledger
                    self._on_problem(f"{type(error).__name__}: {error}")
                self._begins[:0] = begins
                self._ends[:0] = ends
                self._connections |= connections
                self._has_pending.set()
                raise
            finally:
                alarm.cancel()
            self._on_problem("")
            for stream in begins:
                self._on_wait("first_byte", stream.let_go())
            now_s = time.monotonic()
            for stream, end, since_s in ends:
                stream.put_end(end)
                self._on_wait("end", now_s - since_s)
            for connection, number in numbers.items():
                connection.acknowledge(number)
