"""The one door into the ledger: rows get their number and their time, must balance, and become durable in groups.

Called by ``scheduler.accounting.settlement`` (append) and the committer (commit), on the event loop. It must never know
a database: a store writes what it is given, in a thread, all or nothing.

Everything that is appended in one turn of the loop is one cut: what the store is handed is a prefix of all rows, so a
crash leaves a state in which the ledger really was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from scheduler.accounting.postings import differences
from scheduler.accounting.rows import Row

MAX_PENDING_ROWS = 200_000
"""Appended and not yet durable; beyond it nothing new may begin (``is_full``)."""

STATE_ROWS = 50_000
STATE_S = 30.0
"""A state is handed over after so many rows, or so long after the one before where there are any."""


UsageRows = list[tuple[object, ...]]


class State(NamedTuple):
    """What the rows before ``seq`` come to: recovery starts here."""

    seq: int
    data: bytes
    usage: list[tuple[int, UsageRows]]
    """Sums since the state before; one more entry, with its seq, for each try whose outcome is not known."""


class Store(Protocol):
    """Where rows become durable; called from one thread at a time."""

    def write(self, rows: list[Row], state: State | None) -> bool:
        """All of them or none; whether a state that was given is stored.

        Raises: whatever kept it from it; the same rows are then given again.
        """


class Journal:
    """Rows on their way into a store. Without one (tests, simulation) they are durable at once and forgotten."""

    def __init__(
        self,
        store: Store | None = None,
        *,
        next_seq: int = 0,
        state_seq: int = 0,
        last_at_us: int = 0,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._unix_clock = unix_clock
        self._pending: list[Row] = []
        self._one_at_a_time = asyncio.Lock()
        # A thread of its own: in the loop's pool a commit would wait behind whoever reads a receipt.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._last_at_us = last_at_us
        self._state_seq = state_seq
        self._state_unix_s = unix_clock()
        self.next_seq = next_seq
        self.durable_seq = next_seq
        """Rows below it are durable."""
        self.usage: list[tuple[int, UsageRows]] = []
        """Taken from the books and not known to be durable, each with its seq."""
        self.take_state: Callable[[], tuple[bytes, UsageRows]] | None = None
        """What all rows appended so far come to, and its usage since the last time: set by who recovers from it."""

    def append(self, row: Row) -> int:
        """Its number. Raises: ValueError where its legs do not balance; nothing is written then."""
        if row.legs and (wrong := differences(row.legs)):
            raise ValueError(f"a row of kind {row.kind} does not balance: {wrong}")
        row.seq = self.next_seq
        # A clock that was set back does not turn the ledger's time around.
        row.at_us = self._last_at_us = max(self._last_at_us, int(self._unix_clock() * 1_000_000))
        self.next_seq += 1
        if self._store is None:
            self.durable_seq = self.next_seq
        else:
            self._pending.append(row)
        return row.seq

    @property
    def is_full(self) -> bool:
        """Whether too much waits for the disk: nothing new may begin."""
        return len(self._pending) >= MAX_PENDING_ROWS

    async def commit(self, *, with_state: bool = False) -> None:
        """Returns when everything appended so far is durable. Raises: the store's error; all waits for the next try."""
        if self._store is None:
            return
        # A caller that gives up must not leave a write behind that another one overtakes.
        writing = asyncio.ensure_future(self._commit(self._store, with_state=with_state))
        writing.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(writing)

    async def run(self, change: Callable[[], None]) -> None:
        """Something else that is written, in a thread, between two commits."""
        async with self._one_at_a_time:
            await asyncio.get_running_loop().run_in_executor(self._thread, change)

    async def _commit(self, store: Store, *, with_state: bool) -> None:
        async with self._one_at_a_time:  # rows reach the store in their order
            if self._pending or with_state:
                await self._write(store, with_state=with_state)

    async def _write(self, store: Store, *, with_state: bool) -> None:
        rows, self._pending = self._pending, []
        state = self._state(with_state=with_state)
        try:
            is_state_stored = await asyncio.get_running_loop().run_in_executor(self._thread, store.write, rows, state)
        except BaseException:
            self._pending[:0] = rows
            if state is not None:
                self._state_seq = -STATE_ROWS  # at the next try
            raise
        if state is not None and is_state_stored:
            self.usage.clear()
        if rows:
            self.durable_seq = rows[-1].seq + 1

    def _state(self, *, with_state: bool) -> State | None:
        if self.take_state is None:
            return None
        now_s = self._unix_clock()
        is_due = self.next_seq - self._state_seq >= STATE_ROWS or (
            self.next_seq > self._state_seq and abs(now_s - self._state_unix_s) >= STATE_S  # a clock may be set back
        )
        if not (is_due or with_state):
            return None
        self._state_seq, self._state_unix_s = self.next_seq, now_s
        data, usage = self.take_state()
        self.usage.append((self.next_seq, usage))
        return State(self.next_seq, data, list(self.usage))
