"""What all rows come to: balances, open holds and attempts, usage. Changes only by applying a row, live or replayed.

Owned by ``scheduler.accounting.settlement``, which decides which rows there are. It must never decide, refuse or know
a clock: the same rows in the same order lead to the same books.

An attempt stays in the table until it was charged and its energy was booked; a bounded memory of closed attempts then
answers stragglers, and energy that still arrives for one goes where the rest went.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from scheduler.accounting.accounts import Accounts
from scheduler.accounting.rows import OPERATOR, Charge, Daily, Energy, Hold, Judged, Row, Void, Window, request_id_of
from scheduler.accounting.usage_book import Key, UsageBook, key_of_facts, usage_key
from workers.types import EnergyPosting, Grade

MAX_DETAILS = 10_000
"""Requests of which the details are kept in memory."""

MAX_CLOSED = 65_536
"""Settled attempts that are remembered by id, so that a straggler is recognised."""


@dataclass(slots=True, kw_only=True)
class RequestDetails:
    """What is known of one request: its charges and their postings, by attempt."""

    request_id: str
    tenant: str
    charges: dict[str, Charge] = field(default_factory=dict)
    postings: dict[str, EnergyPosting] = field(default_factory=dict)
    differences: dict[str, int] = field(default_factory=dict)
    """10⁻⁹ currency units that a posting changed of its charge's price (cost-plus)."""

    @property
    def is_final(self) -> bool:
        """Every charged attempt has its posting."""
        return bool(self.charges) and self.charges.keys() == self.postings.keys()


@dataclass(slots=True)
class OpenAttempt:
    """An attempt that is not yet both charged and posted; what its windows put in flight."""

    worker_id: str
    energy_mj: int = 0
    gpu_us: int = 0
    grade: Grade = Grade.A
    charge: Charge | None = None
    posting: EnergyPosting | None = None
    """Came before its charge; not booked yet."""


class Books:
    """Not thread-safe. Memory grows with workers × tenants and with what is open, never with requests."""

    def __init__(
        self, accounts: Accounts | None = None, *, max_details: int = MAX_DETAILS, max_closed: int = MAX_CLOSED
    ) -> None:
        self.accounts = accounts or Accounts()
        self.usage = UsageBook()
        self.open: dict[str, OpenAttempt] = {}
        self.closed: OrderedDict[str, tuple[str, Key | None]] = OrderedDict()
        """Who paid, and where it counts as usage."""
        self.holds: dict[str, Hold] = {}
        self.details: OrderedDict[str, RequestDetails] = OrderedDict()
        self.last_numbers: dict[str, tuple[str, int]] = {}
        """Incarnation and outbox number of each worker's last window."""
        self.balances: dict[tuple[str, str], int] = {}
        """By account and unit, over all legs of all rows."""
        self._max_details = max_details
        self._max_closed = max_closed

    def apply(self, row: Row) -> None:
        """One more row, which was checked before it was written."""
        if not isinstance(row, Daily):
            balances = self.balances
            for account, unit, amount in row.legs:
                balances[account, unit] = balances.get((account, unit), 0) + amount
        match row:
            case Charge():
                self._charged(row)
            case Energy():
                self._measured(row)
            case Window():
                self._metered(row)
            case Hold():
                self.holds[row.request_id] = row
            case Void():
                self.holds.pop(row.request_id, None)
            case Judged():
                change = row.change
                self.usage.add_outcome(
                    key_of_facts(row.outcome.facts),
                    accepted=change.accepted,
                    rejected=change.rejected,
                    judged=change.judged,
                )
            case _:
                pass  # says something, moves nothing that is kept here

    def total(self, kind: str, unit: str) -> int:
        """Over all accounts whose first word is ``kind``."""
        prefix = f"{kind}/"
        return sum(
            amount for (account, of), amount in self.balances.items() if of == unit and account.startswith(prefix)
        )

    # -- inside

    def _charged(self, charge: Charge) -> None:
        if charge.account != OPERATOR:
            self.holds.pop(charge.request_id, None)
        attempt = self.open.get(charge.attempt_id)
        if attempt is None:
            attempt = self.open[charge.attempt_id] = OpenAttempt(charge.worker_id)
        attempt.charge = charge
        accounts = self.accounts
        totals = accounts.tokens_of(charge.account)
        totals.add(
            input_tokens=charge.input_tokens,
            cached_tokens=charge.cached_tokens,
            output_tokens=charge.output_tokens,
            cost_nano=charge.cost_nano,
            outcome=charge.outcome,
        )
        totals.estimated += not charge.is_exact
        accounts.generated[charge.worker_id] += charge.output_tokens
        if charge.attempt_number == 1:
            accounts.tokens_of(charge.tenant).requests += 1
        accounts.token_difference += charge.token_difference
        accounts.inexact_sequences += charge.inexact_sequences
        self.usage.add_charge(charge)
        self._details_of(charge).charges[charge.attempt_id] = charge

    def _measured(self, row: Energy) -> None:
        """In flight -> requests, and the attempt is only remembered."""
        attempt = self.open.pop(row.attempt_id, None)
        charge = None if attempt is None else attempt.charge
        key = None if charge is None else usage_key(charge)
        self.accounts.add_posting(row.worker_id, row.account, energy_mj=row.energy_mj, gpu_us=row.gpu_us)
        if row.cost_nano:
            self.accounts.tokens_of(row.account).cost_nano += row.cost_nano
        if key is not None:
            self.usage.add_energy(
                key, energy_mj=row.energy_mj, gpu_us=row.gpu_us, carbon_ug=row.carbon_ug, cost_nano=row.cost_nano
            )
        if row.posted_mj is not None and charge is not None and charge.attempt_number > 0:
            self.accounts.posting_difference_mj += abs(row.posted_mj - row.energy_mj)
        self.accounts.metered_token_difference += row.token_difference
        if (details := self.details.get(request_id_of(row.attempt_id))) is not None:
            details.differences[row.attempt_id] = row.cost_nano
            details.postings[row.attempt_id] = EnergyPosting(
                attempt_id=row.attempt_id,
                energy_mj=row.energy_mj if row.posted_mj is None else row.posted_mj,
                gpu_us=row.gpu_us if row.posted_gpu_us is None else row.posted_gpu_us,
                grade=row.grade,
                policy=row.policy,
                complete=row.complete,
                computed_tokens=row.computed_tokens,
            )
        self.closed[row.attempt_id] = (row.account, key)
        while len(self.closed) > self._max_closed:
            self.closed.popitem(last=False)

    def _metered(self, row: Window) -> None:
        worker_id = row.worker_id
        self.accounts.add_window(worker_id, row.window)
        for attempt_id, energy_mj, gpu_us in row.window.shares:
            attempt = self.open.get(attempt_id)
            if attempt is None and (closed := self.closed.get(attempt_id)) is not None:
                account, key = closed
                self.accounts.add_posting(worker_id, account, energy_mj=energy_mj, gpu_us=gpu_us)
                if key is not None:
                    self.usage.add_energy(key, energy_mj=energy_mj, gpu_us=gpu_us)
                continue
            if attempt is None:
                attempt = self.open[attempt_id] = OpenAttempt(worker_id)
            attempt.energy_mj += energy_mj
            attempt.gpu_us += gpu_us
            attempt.grade = Grade.worst(attempt.grade, row.window.grade)
        self.last_numbers[worker_id] = (row.incarnation, row.number)

    def _details_of(self, charge: Charge) -> RequestDetails:
        details = self.details.get(charge.request_id)
        if details is None:
            details = RequestDetails(request_id=charge.request_id, tenant=charge.tenant)
            self.details[charge.request_id] = details
            while len(self.details) > self._max_details:
                self.details.popitem(last=False)
        return details
