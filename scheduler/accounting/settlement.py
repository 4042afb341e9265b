"""Exactly once: charges, energy postings and windows arrive again, late and by two ways, and become one row each.

Called by ``scheduler.dispatcher`` and ``scheduler.bookkeeper``. It must never know a link, a stream or a disk: what is
booked is durable when ``commit`` returns.

Two keys make it idempotent. A worker's outbox records carry numbers that rise by one: what is at or below the worker's
contiguous watermark was booked. And an attempt is charged once and posted once, by whichever way comes first: its own
usage record, or the dispatcher when the worker died.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from scheduler.accounting import postings
from scheduler.accounting.accounts import Accounts
from scheduler.accounting.books import MAX_CLOSED, MAX_DETAILS, Books, OpenAttempt, RequestDetails
from scheduler.accounting.errors import LedgerError
from scheduler.accounting.journal import Journal
from scheduler.accounting.rows import OPERATOR, Charge, Energy, Hold, Row, Void, Window, request_id_of
from workers.balance import metered_token_difference
from workers.types import EnergyPosting, WindowRecord

__all__ = ["Charge", "RequestDetails", "Settlement", "request_id_of"]

logger = logging.getLogger("jouleway.dispatcher")

MAX_AHEAD = 100_000
"""Outbox numbers that may be known beyond a gap: it lasts while a stranger cannot be looked up."""


@dataclass(slots=True)
class _Source:
    """The outbox of one worker's life: everything up to ``watermark`` was booked, and what lies beyond a gap."""

    incarnation: str
    recovered: int = 0
    """Its last window that an earlier control plane booked: nothing up to it is new."""
    watermark: int | None = None
    """None before the first record."""
    ahead: set[int] = field(default_factory=set)


class Settlement:
    """Decides what is booked, writes it as rows, keeps the books that rows come to."""

    def __init__(
        self,
        accounts: Accounts | None = None,
        *,
        journal: Journal | None = None,
        books: Books | None = None,
        max_details: int = MAX_DETAILS,
        max_closed: int = MAX_CLOSED,
    ) -> None:
        """``journal`` None: rows are forgotten at once. ``books``: as they were recovered."""
        self.journal = journal or Journal()
        self.books = books or Books(accounts, max_details=max_details, max_closed=max_closed)
        self.accounts = self.books.accounts
        self.on_settled: Callable[[str, int, int], tuple[int, int, int] | None] = lambda attempt_id, energy, gpu: None
        """Hears of every attempt once what it took is booked: (id, mJ, GPU-µs), after its charge and exactly once.
        Answers with what its budgets carry of mJ, GPU-µs and µgCO₂e where that is less than all of it.
        """
        self.is_booked: Callable[[str, str], bool] = lambda kind, row_id: False
        """Whether the ledger has a row of this kind and id; asked only of attempts that are not remembered. May raise
        LedgerError: ``charge`` and ``post_energy`` then do so too, and have booked nothing.
        """
        self.carbon_ug_per_mj: Mapping[str, float] = {}
        """By zone."""
        self.orphans: Mapping[str, Hold] = {}
        """What was open when an earlier control plane ended, by request: whose usage may still come."""
        self._sources: dict[str, _Source] = {}
        self.duplicates_total = 0

    # -- the outbox's numbers

    def open_worker(self, worker_id: str, *, incarnation: str) -> None:
        """A worker connects. Another incarnation (a new process under the old id) counts its records from anew."""
        source = self._sources.get(worker_id)
        if source is None or source.incarnation != incarnation:
            known, number = self.books.last_numbers.get(worker_id, ("", 0))
            if known and known != incarnation:  # without a window of anybody it may be the same one
                self.close_worker(worker_id)  # nobody will speak for the process before
            self._sources[worker_id] = _Source(incarnation, number if known == incarnation else 0)

    def is_new(self, worker_id: str, number: int) -> bool:
        """Whether this outbox record was not booked yet; from this call on it counts as booked."""
        source = self._sources[worker_id]
        if source.watermark is None:
            # A worker begins with what nobody acknowledged: what came before is an earlier control plane's.
            source.watermark = max(number - 1, source.recovered)
        if number <= source.watermark or number in source.ahead:
            self.duplicates_total += 1
            return False
        source.ahead.add(number)
        if len(source.ahead) > MAX_AHEAD:
            # A hole that never fills would grow for ever: what is missing there is given up.
            source.watermark = min(source.ahead) - 1
        while source.watermark + 1 in source.ahead:
            source.watermark += 1
            source.ahead.discard(source.watermark)
        return True

    def put_back(self, worker_id: str, number: int) -> None:
        """This record could not be booked after all, and will be given again: nothing from it on is acknowledged."""
        source = self._sources[worker_id]
        source.ahead.discard(number)
        if source.watermark is not None and number <= source.watermark:
            source.ahead.update(range(number + 1, source.watermark + 1))
            source.watermark = number - 1

    def watermark(self, worker_id: str) -> int | None:
        """Every record up to this number is booked: what may be acknowledged. None before the first."""
        source = self._sources.get(worker_id)
        return None if source is None else source.watermark

    def note(self, row: Row) -> int:
        """A row that moves nothing: who opened the ledger, what was changed, how a result was judged."""
        return self._book(row)

    # -- one request's rows

    def hold(self, hold: Hold) -> int:
        """The worst case of a request is held; the number of its row, which is durable as ``is_durable`` says."""
        assert hold.request_id not in self.books.holds, f"{hold.request_id} holds already"
        hold.legs = postings.hold_legs(hold)
        return self._book(hold)

    def release(self, request_id: str, cause: str) -> None:
        """The request is over: what it held and was never charged for goes back."""
        hold = self.books.holds.get(request_id)
        if hold is not None:
            void = Void(request_id=request_id, tenant=hold.tenant, cause=cause, legs=postings.void_legs(hold))
            self._book(void)

    def charge(self, charge: Charge) -> bool:
        """Tokens to whoever pays; False if this attempt was charged before."""
        attempt_id = charge.attempt_id
        attempt = self.books.open.get(attempt_id)
        if attempt_id in self.books.closed or (attempt is not None and attempt.charge is not None):
            self.duplicates_total += 1
            return False
        # Also where windows opened it again: it may have been settled, or given up, and forgotten, long ago. A charge
        # after its energy would leave the price of that open for ever.
        if not charge.attempt_number and (self.is_booked("charge", attempt_id) or self.is_booked("energy", attempt_id)):
            self.duplicates_total += 1
            return False
        hold = None if charge.account == OPERATOR else self.books.holds.get(charge.request_id)
        charge.legs = postings.charge_legs(charge, hold)
        self._book(charge)
        attempt = self.books.open[attempt_id]
        if attempt.posting is not None:
            self._settle(attempt_id, attempt, charge.account, attempt.posting)
        return True

    def post_energy(self, worker_id: str, posting: EnergyPosting) -> bool:
        """In flight -> whoever pays; False if this attempt was posted before.

        What moves is what the windows put in flight: a posting that says otherwise is counted, never believed, for the
        accounts must add up to the meter. (A stranger's first windows may stand in an earlier control plane's book.)
        """
        attempt_id = posting.attempt_id
        attempt = self.books.open.get(attempt_id)
        if attempt_id in self.books.closed or (attempt is not None and attempt.posting is not None):
            self.duplicates_total += 1
            return False
        if (attempt is None or attempt.charge is None) and self.is_booked("energy", attempt_id):
            self.duplicates_total += 1
            return False
        if attempt is None:
            attempt = self.books.open[attempt_id] = OpenAttempt(worker_id)
        attempt.posting = posting
        if attempt.charge is not None:
            self._settle(attempt_id, attempt, attempt.charge.account, posting)
        return True

    def window(self, worker_id: str, record: WindowRecord, *, number: int = 0) -> None:
        """Meter -> the worker's accounts. Idempotent by the outbox number alone: ask ``is_new`` first.

        Raises: ValueError where the record does not add up; nothing is booked then.
        """
        self.accounts.check_window(worker_id, record)
        legs = postings.window_legs(worker_id, record, is_calibration=self.accounts.is_calibration(record))
        for attempt_id, energy_mj, gpu_us in record.shares:
            if attempt_id not in self.books.open and attempt_id in self.books.closed:
                account, _ = self.books.closed[attempt_id]
                legs += postings.energy_legs(worker_id, account, energy_mj=energy_mj, gpu_us=gpu_us)
        source = self._sources.get(worker_id)
        incarnation = "" if source is None else source.incarnation
        self._book(Window(worker_id=worker_id, incarnation=incarnation, number=number, window=record, legs=legs))

    def give_up(self, attempt_id: str) -> None:
        """No posting will come: what is in flight goes to whoever pays (nobody charged: the operator), incomplete.

        If its worker speaks again after all, energy that still arrives follows to the same account. What windows gave
        a stranger whose energy may be booked already (settled so long ago that it is forgotten) stays in flight: one
        attempt has one posting.
        """
        attempt = self.books.open.get(attempt_id)
        if attempt is None:
            return
        if attempt.charge is None and self._may_be_posted(attempt_id):
            logger.error(
                "ledger: %s keeps %d mJ in flight, for its energy was booked before", attempt_id, attempt.energy_mj
            )
            return
        posting = attempt.posting or EnergyPosting(
            attempt_id=attempt_id,
            energy_mj=attempt.energy_mj,
            gpu_us=attempt.gpu_us,
            grade=attempt.grade,
            policy="given_up",
            complete=False,
        )
        self._settle(attempt_id, attempt, OPERATOR if attempt.charge is None else attempt.charge.account, posting)

    def close_worker(self, worker_id: str) -> int:
        """The worker is given up, and with it every attempt that waits for its posting; returns how many."""
        left = [attempt_id for attempt_id, attempt in self.books.open.items() if attempt.worker_id == worker_id]
        for attempt_id in left:
            self.give_up(attempt_id)
        return len(left)

    def give_up_workers(self, *, others_than: Iterable[str]) -> None:
        """Of an earlier life, and not there any more."""
        kept = set(others_than)
        for worker_id in {attempt.worker_id for attempt in self.books.open.values()} - kept:
            self.close_worker(worker_id)

    async def commit(self) -> None:
        """Returns when everything booked so far is durable."""
        await self.journal.commit()

    # -- what others read

    def is_durable(self, seq: int) -> bool:
        """Whether a row survives whatever happens to this process."""
        return seq < self.journal.durable_seq

    def is_charged(self, attempt_id: str) -> bool:
        attempt = self.books.open.get(attempt_id)
        return attempt_id in self.books.closed or (attempt is not None and attempt.charge is not None)

    def details(self, request_id: str) -> RequestDetails | None:
        """None: never seen, or too long ago."""
        return self.books.details.get(request_id)

    def last_counter_mj(self, worker_id: str) -> int | None:
        """The last booked reading of this worker's counter: where its successor's first window starts."""
        totals = self.accounts.windows.get(worker_id)
        return None if totals is None else totals.counter_mj

    async def durable_counter_mj(self, worker_id: str) -> int | None:
        """The same once it is durable: a successor that began at one that is lost would leave a gap for ever.

        Raises: LedgerError.
        """
        counter_mj = self.last_counter_mj(worker_id)
        await self.commit()
        return counter_mj

    @property
    def num_open(self) -> int:
        """Attempts that miss their charge or their posting."""
        return len(self.books.open)

    # -- inside

    def _book(self, row: Row) -> int:
        seq = self.journal.append(row)
        self.books.apply(row)
        return seq

    def _may_be_posted(self, attempt_id: str) -> bool:
        try:
            return self.is_booked("energy", attempt_id)
        except LedgerError:
            return True

    def _settle(self, attempt_id: str, attempt: OpenAttempt, account: str, posting: EnergyPosting) -> None:
        """Both sides are here: in flight -> requests."""
        charge, energy_mj, gpu_us = attempt.charge, attempt.energy_mj, attempt.gpu_us
        zone = "" if charge is None else charge.zone
        row = Energy(
            attempt_id=attempt_id,
            account=account,
            worker_id=attempt.worker_id,
            energy_mj=energy_mj,
            gpu_us=gpu_us,
            carbon_ug=math.ceil(energy_mj * self.carbon_ug_per_mj.get(zone, 0.0)),
            grade=posting.grade,
            policy=posting.policy,
            complete=posting.complete,
            posted_mj=posting.energy_mj if posting.energy_mj != energy_mj else None,
            posted_gpu_us=posting.gpu_us if posting.gpu_us != gpu_us else None,
            computed_tokens=posting.computed_tokens,
        )
        if posting.complete and posting.computed_tokens is not None and charge and charge.scheduled_tokens is not None:
            # Steps that never reached the meter's side: the split over the others hides them, this sum does not.
            row.token_difference = metered_token_difference(
                computed=posting.computed_tokens, scheduled=charge.scheduled_tokens, overrun=charge.overrun_tokens
            )
        if charge is not None:
            row.cost_nano = charge.difference_nano(energy_mj=energy_mj, gpu_us=gpu_us)
            row.currency = charge.rates.currency
        row.legs = postings.energy_legs(
            attempt.worker_id,
            account,
            energy_mj=energy_mj,
            gpu_us=gpu_us,
            carbon_ug=row.carbon_ug,
            cost_nano=row.cost_nano,
            currency=row.currency,
        )
        carried = self.on_settled(attempt_id, energy_mj, gpu_us)
        if carried is not None:
            row.budget_mj, row.budget_gpu_us, row.budget_ug = carried
        self._book(row)
