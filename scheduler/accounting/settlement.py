"""Exactly once: charges, energy postings and windows arrive again, late and by two ways, and are booked one time.

Called by ``scheduler.dispatcher``. It must never know a link, a stream or a price's currency.

Two keys make it idempotent. A worker's outbox records carry numbers that rise by one: what is at or below the worker's
contiguous watermark was booked. And an attempt is charged once and posted once, by whichever way comes first: its own
usage record, or the dispatcher when the worker died. An attempt stays in the table until both happened; a bounded
memory of closed attempts then answers stragglers, and energy that still arrives for one goes where the rest went.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.accounting.accounts import OPERATOR, Accounts
from scheduler.core.actions import Payer
from scheduler.core.request import FREE, Rates
from workers.balance import metered_token_difference
from workers.types import EnergyPosting, Grade, Outcome, WindowRecord

MAX_DETAILS = 10_000
"""Requests of which the details are kept in memory."""

MAX_CLOSED = 65_536
"""Settled attempts that are remembered by id, so that a straggler is recognised."""

MAX_AHEAD = 10_000
"""Outbox numbers that may be known beyond a gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Tokens of one attempt. Times are the worker machine's monotonic seconds; energy is provisional until posted."""

    request_id: str
    attempt_id: str
    attempt_number: int = 1
    tenant: str
    """Whose request it was; who pays is ``payer``."""
    project: str = ""
    key_id: str = ""
    model: str
    worker_id: str
    payer: Payer = Payer.REQUEST
    outcome: Outcome
    cause: str = ""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int = 0
    """Money by the rates that were pinned at admission, in 10⁻⁹ units; what the operator pays for costs nobody."""
    rates: Rates = FREE
    """Those rates, with the price version that they are from."""
    plus_nano: int = 0
    """Of ``cost_nano``: for energy and GPU-time as they were estimated (cost-plus)."""
    most_plus_nano: int | None = None
    """The most that these may cost it, measured or not; None: nothing was held for it."""
    provisional_mj: int = 0
    provisional_gpu_us: int = 0
    grade: Grade = Grade.D
    """Of the worker's meter at the time of the charge."""
    is_exact: bool = True
    """False: taken from the last progress, the worker could not say any more."""
    token_difference: int = 0
    inexact_sequences: int = 0
    scheduled_tokens: int | None = None
    """What the engine scheduled for it; None where not every sequence was counted on both sides."""
    overrun_tokens: int = 0
    started_s: float = 0.0
    first_byte_s: float | None = None
    ended_s: float = 0.0

    @property
    def account(self) -> str:
        """Name of the account that pays."""
        return OPERATOR if self.payer is Payer.OPERATOR else self.tenant

    def difference_nano(self, *, energy_mj: int, gpu_us: int) -> int:
        """What is posted once, when its energy is measured: cost-plus by the measurement less what was charged by the
        estimate; negative where less was taken, never more than was held, 0 where it pays for tokens only.
        """
        if self.payer is Payer.OPERATOR:
            return 0
        cost_nano = self.rates.cost_plus_nano(energy_mj=energy_mj, gpu_us=gpu_us, most_nano=self.most_plus_nano)
        return cost_nano - self.plus_nano


@dataclass(slots=True, kw_only=True)
class RequestDetails:
    """What is known of one request: its charges and their postings, by attempt."""

    request_id: str
    tenant: str
    charges: dict[str, Charge] = field(default_factory=dict)
    postings: dict[str, EnergyPosting] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Every charged attempt has its posting."""
        return bool(self.charges) and self.charges.keys() == self.postings.keys()


@dataclass(slots=True)
class _OpenAttempt:
    """An attempt that is not yet both charged and posted; what its windows put in flight."""

    worker_id: str
    energy_mj: int = 0
    gpu_us: int = 0
    account: str | None = None
    """Who pays; None until it is charged."""
    charge: Charge | None = None
    is_own: bool = False
    """Charged here, and not begun by an earlier control plane: every window of it was booked here."""
    posting: EnergyPosting | None = None
    grade: Grade = Grade.A
    scheduled_tokens: int | None = None
    """Of its charge: the tokens that its engine scheduled."""
    overrun_tokens: int = 0


@dataclass(slots=True)
class _Source:
    """The outbox of one worker's life: everything up to ``watermark`` was booked, and what lies beyond a gap."""

    incarnation: str
    watermark: int | None = None
    ahead: set[int] = field(default_factory=set)


class Settlement:
    """Books what workers report. In memory; ``commit`` is where a durable ledger waits for its disk."""

    def __init__(
        self, accounts: Accounts | None = None, *, max_details: int = MAX_DETAILS, max_closed: int = MAX_CLOSED
    ) -> None:
        self.accounts = accounts or Accounts()
        self.on_settled: Callable[[str, int, int], None] = lambda attempt_id, energy_mj, gpu_us: None
        """Hears of every attempt once what it took is booked: (id, mJ, GPU-µs), after its charge and exactly once."""
        self._max_details = max_details
        self._max_closed = max_closed
        self._open: dict[str, _OpenAttempt] = {}
        self._closed: OrderedDict[str, str] = OrderedDict()
        self._details: OrderedDict[str, RequestDetails] = OrderedDict()
        self._sources: dict[str, _Source] = {}
        self.duplicates_total = 0

    # -- the outbox's numbers

    def open_worker(self, worker_id: str, *, incarnation: str) -> None:
        """A worker connects. Another incarnation (a new process under the old id) counts its records from anew."""
        source = self._sources.get(worker_id)
        if source is None or source.incarnation != incarnation:
            self._sources[worker_id] = _Source(incarnation)

    def is_new(self, worker_id: str, number: int) -> bool:
        """Whether this outbox record was not booked yet; from this call on it counts as booked."""
        source = self._sources[worker_id]
        if source.watermark is None:
            source.watermark = number - 1  # what came before was acknowledged to an earlier control plane
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

    def watermark(self, worker_id: str) -> int | None:
        """Every record up to this number is booked: what may be acknowledged. None before the first."""
        source = self._sources.get(worker_id)
        return None if source is None else source.watermark

    # -- the three records

    def charge(self, charge: Charge) -> bool:
        """Tokens to whoever pays; False if this attempt was charged before."""
        attempt_id = charge.attempt_id
        attempt = self._open.get(attempt_id)
        if attempt_id in self._closed or (attempt is not None and attempt.account is not None):
            self.duplicates_total += 1
            return False
        if attempt is None:
            attempt = self._open[attempt_id] = _OpenAttempt(charge.worker_id)
        attempt.account, attempt.is_own, attempt.charge = charge.account, charge.attempt_number > 0, charge
        attempt.scheduled_tokens, attempt.overrun_tokens = charge.scheduled_tokens, charge.overrun_tokens
        totals = self.accounts.tokens_of(charge.account)
        totals.add(
            input_tokens=charge.input_tokens,
            cached_tokens=charge.cached_tokens,
            output_tokens=charge.output_tokens,
            cost_nano=charge.cost_nano,
            outcome=charge.outcome,
        )
        totals.estimated += not charge.is_exact
        self.accounts.generated[charge.worker_id] += charge.output_tokens
        if charge.attempt_number == 1:
            self.accounts.tokens_of(charge.tenant).requests += 1
        self.accounts.token_difference += charge.token_difference
        self.accounts.inexact_sequences += charge.inexact_sequences
        self._details_of(charge).charges[attempt_id] = charge
        if attempt.posting is not None:
            self._settle(attempt_id, attempt)
        return True

    def post_energy(self, worker_id: str, posting: EnergyPosting) -> bool:
        """In flight -> whoever pays; False if this attempt was posted before.

        What moves is what the windows put in flight: a posting that says otherwise is counted, never believed, for the
        accounts must add up to the meter. (A stranger's first windows may stand in an earlier control plane's book.)
        """
        attempt_id = posting.attempt_id
        attempt = self._open.get(attempt_id)
        if attempt_id in self._closed or (attempt is not None and attempt.posting is not None):
            self.duplicates_total += 1
            return False
        if attempt is None:
            attempt = self._open[attempt_id] = _OpenAttempt(worker_id)
        attempt.posting = posting
        if attempt.account is not None:
            self._settle(attempt_id, attempt)
        return True

    def window(self, worker_id: str, record: WindowRecord) -> None:
        """Meter -> the worker's accounts. Idempotent by the outbox number alone: ask ``is_new`` first.

        Raises: ValueError where the record does not add up; nothing is booked then.
        """
        self.accounts.add_window(worker_id, record)
        for attempt_id, energy_mj, gpu_us in record.shares:
            attempt = self._open.get(attempt_id)
            if attempt is None and (account := self._closed.get(attempt_id)) is not None:
                self.accounts.add_posting(worker_id, account, energy_mj=energy_mj, gpu_us=gpu_us)
                continue
            if attempt is None:
                attempt = self._open[attempt_id] = _OpenAttempt(worker_id)
            attempt.energy_mj += energy_mj
            attempt.gpu_us += gpu_us
            attempt.grade = Grade.worst(attempt.grade, record.grade)

    def give_up(self, attempt_id: str) -> None:
        """No posting will come: what is in flight goes to whoever pays (nobody charged: the operator), incomplete.

        If its worker speaks again after all, energy that still arrives follows to the same account.
        """
        attempt = self._open.get(attempt_id)
        if attempt is None:
            return
        attempt.account = attempt.account or OPERATOR
        if attempt.posting is None:
            attempt.posting = EnergyPosting(
                attempt_id=attempt_id,
                energy_mj=attempt.energy_mj,
                gpu_us=attempt.gpu_us,
                grade=attempt.grade,
                policy="given_up",
                complete=False,
            )
        self._settle(attempt_id, attempt)

    def close_worker(self, worker_id: str) -> int:
        """The worker is given up, and with it every attempt that waits for its posting; returns how many."""
        left = [attempt_id for attempt_id, attempt in self._open.items() if attempt.worker_id == worker_id]
        for attempt_id in left:
            self.give_up(attempt_id)
        return len(left)

    async def commit(self) -> None:
        """Returns when everything booked so far is durable (here: at once)."""

    # -- what others read

    def is_charged(self, attempt_id: str) -> bool:
        attempt = self._open.get(attempt_id)
        return attempt_id in self._closed or (attempt is not None and attempt.account is not None)

    def details(self, request_id: str) -> RequestDetails | None:
        """None: never seen, or too long ago."""
        return self._details.get(request_id)

    def last_counter_mj(self, worker_id: str) -> int | None:
        """The last booked reading of this worker's counter: where its successor's first window starts."""
        totals = self.accounts.windows.get(worker_id)
        return None if totals is None else totals.counter_mj

    @property
    def num_open(self) -> int:
        """Attempts that miss their charge or their posting."""
        return len(self._open)

    # -- inside

    def _settle(self, attempt_id: str, attempt: _OpenAttempt) -> None:
        """Both sides are here: in flight -> requests, and the attempt is only remembered."""
        posting = attempt.posting
        assert attempt.account is not None
        assert posting is not None
        del self._open[attempt_id]
        if (details := self._details.get(request_id_of(attempt_id))) is not None:
            details.postings[attempt_id] = posting
        if attempt.is_own:
            self.accounts.posting_difference_mj += abs(posting.energy_mj - attempt.energy_mj)
        if posting.complete and posting.computed_tokens is not None and attempt.scheduled_tokens is not None:
            # Steps that never reached the meter's side: the split over the others hides them, this sum does not.
            self.accounts.metered_token_difference += metered_token_difference(
                computed=posting.computed_tokens, scheduled=attempt.scheduled_tokens, overrun=attempt.overrun_tokens
            )
        self.accounts.add_posting(
            attempt.worker_id, attempt.account, energy_mj=attempt.energy_mj, gpu_us=attempt.gpu_us
        )
        if attempt.charge is not None:
            self.accounts.tokens_of(attempt.account).cost_nano += attempt.charge.difference_nano(
                energy_mj=attempt.energy_mj, gpu_us=attempt.gpu_us
            )
        self._closed[attempt_id] = attempt.account
        while len(self._closed) > self._max_closed:
            self._closed.popitem(last=False)
        self.on_settled(attempt_id, attempt.energy_mj, attempt.gpu_us)

    def _details_of(self, charge: Charge) -> RequestDetails:
        details = self._details.get(charge.request_id)
        if details is None:
            details = RequestDetails(request_id=charge.request_id, tenant=charge.tenant)
            self._details[charge.request_id] = details
            while len(self._details) > self._max_details:
                self._details.popitem(last=False)
        return details


def request_id_of(attempt_id: str) -> str:
    """``req-abc-2`` -> ``req-abc``."""
    return attempt_id.rpartition("-")[0]
