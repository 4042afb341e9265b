"""Workers' durable records are booked: each once, usage to the core, energy and windows to the accounts.

Called by ``scheduler.dispatcher``. It must never know a stream or when what it booked is committed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from scheduler.accounting.charging import charge_of_stranger, sound
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.rows import request_id_of
from scheduler.accounting.settlement import Settlement
from scheduler.connection import Connection
from scheduler.core.actions import Action
from scheduler.core.scheduler import Scheduler
from workers.types import EnergyPosting, Numbered, UsageRecord, WindowRecord

logger = logging.getLogger("jouleway.dispatcher")


class Bookkeeper:
    """One per dispatcher; ``on_usage`` carries out what the core decides on a usage record."""

    def __init__(
        self,
        *,
        core: Scheduler,
        settlement: Settlement,
        on_usage: Callable[[list[Action], UsageRecord], None],
    ) -> None:
        self._core = core
        self._settlement = settlement
        self._on_usage = on_usage
        self.bad_windows = 0
        """Window records that did not add up and were not booked."""
        self._postponed: list[tuple[Connection, Numbered]] = []
        """Of attempts that nobody remembers, while the ledger cannot be asked for them; and what waits behind them."""

    def book(self, connection: Connection, records: Iterable[Numbered], now_s: float) -> None:
        """Books what is new; what is booked may be acknowledged after the next commit.

        Behind a record that is postponed only usage is booked, so that answers end: a window would say that every
        record before it is booked, and postings follow their windows.
        """
        worker_id = connection.worker_id
        postponed = [numbered for whose, numbered in self._postponed if whose is connection]
        self._postponed = [each for each in self._postponed if each[0].worker_id != worker_id]
        is_waiting = False
        for numbered in (*postponed, *records):
            if is_waiting and not isinstance(numbered.record, UsageRecord):
                self._postponed.append((connection, numbered))
                continue
            if not self._settlement.is_new(worker_id, numbered.number):
                continue
            try:
                self._book(connection, numbered, now_s)
            except LedgerError:
                self._settlement.put_back(worker_id, numbered.number)
                self._postponed.append((connection, numbered))
                is_waiting = True

    def _book(self, connection: Connection, numbered: Numbered, now_s: float) -> None:
        match numbered.record:
            case UsageRecord() as usage:
                self._book_usage(connection, usage, now_s)
            case EnergyPosting() as posting:
                self._book_posting(connection.worker_id, posting)
            case WindowRecord() as window:
                self._book_window(connection.worker_id, window, numbered.number)

    def _book_usage(self, connection: Connection, said: UsageRecord, now_s: float) -> None:
        usage = sound(said)
        if usage is not said:
            logger.error(
                "%s counted what cannot be for %s: booked as near as can be", connection.worker_id, said.attempt_id
            )
        if self._core.knows(usage.attempt_id):
            self._on_usage(self._core.on_finished(usage, now_s), usage)
        else:
            hold = self._settlement.orphans.get(request_id_of(usage.attempt_id))
            self._settlement.charge(
                charge_of_stranger(usage, worker_id=connection.worker_id, status=connection.status, hold=hold)
            )

    def _book_posting(self, worker_id: str, posting: EnergyPosting) -> None:
        self._settlement.post_energy(worker_id, posting)
        if not self._core.knows(posting.attempt_id):
            # Usage comes before its posting: an earlier control plane had it, and its charge with it.
            self._settlement.give_up(posting.attempt_id)

    def _book_window(self, worker_id: str, window: WindowRecord, number: int) -> None:
        try:
            self._settlement.window(worker_id, window, number=number)
        except ValueError as error:
            self.bad_windows += 1
            logger.error("a window was not booked: %s", error)
