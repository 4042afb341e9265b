"""Joules, GPU-time and tokens in accounts: integers, two sides to every movement, nothing made and nothing lost.

Changed by ``scheduler.accounting.books``, read by admin and metrics. It must never know a link, a file or a clock.

Energy is booked like money (design §5). A window moves meter -> idle, overhead, unattributed and in flight, all of one
worker; the posting of an attempt moves in flight -> requests of a tenant. The meter account is the source and goes
negative by what was taken from it, so the sum over all accounts is 0 in each unit, always. GPU-time is booked by the
same moves: its source is the measured step time × GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from scheduler.accounting.rows import OPERATOR
from workers.balance import measured_busy_mj
from workers.types import Grade, Outcome, WindowRecord

MAX_CAUSES = 64


class Kind(StrEnum):
    """The kinds of account; see the module's head for who feeds whom."""

    METER = "meter"
    IDLE = "idle"
    OVERHEAD = "overhead"
    UNATTRIBUTED = "unattributed"
    IN_FLIGHT = "in_flight"
    REQUESTS = "requests"

    __hash__ = str.__hash__
    """Part of the key of every account: an enumeration's own is ten times as slow."""


class Account(NamedTuple):
    """One account: of a worker, and for ``REQUESTS`` of a tenant on that worker."""

    kind: Kind
    worker_id: str
    tenant: str = ""


class Book:
    """Balances of accounts in mJ and GPU-µs, and their sums. Not thread-safe.

    A move changes two accounts and the sums above them, so that no question walks through workers × tenants.
    """

    def __init__(self) -> None:
        self._balances: dict[Account, list[int]] = {}
        self._sums: dict[tuple[Kind, str | None, str | None], list[int]] = {}
        """By kind, and of it by worker or by tenant; None = all of them."""

    def move(self, source: Account, target: Account, *, energy_mj: int, gpu_us: int = 0) -> None:
        """Takes from one and gives to the other; amounts may be negative (unattributed can be)."""
        self._add(source, -energy_mj, -gpu_us)
        self._add(target, energy_mj, gpu_us)

    def _add(self, account: Account, energy_mj: int, gpu_us: int) -> None:
        kind, worker_id, tenant = account.kind, account.worker_id, account.tenant
        changed = [self._balances.setdefault(account, [0, 0])]
        for key in ((kind, None, None), (kind, worker_id, None), (kind, None, tenant)):
            changed.append(self._sums.setdefault(key, [0, 0]))
        for balance in changed:
            balance[0] += energy_mj
            balance[1] += gpu_us

    def put(self, account: Account, *, energy_mj: int, gpu_us: int) -> None:
        """An account as it was saved; all of them together balance."""
        self._add(account, energy_mj, gpu_us)

    def balance(self, account: Account) -> tuple[int, int]:
        """(mJ, GPU-µs) of one account."""
        energy_mj, gpu_us = self._balances.get(account, (0, 0))
        return energy_mj, gpu_us

    def total(self, kind: Kind, *, worker_id: str | None = None, tenant: str | None = None) -> tuple[int, int]:
        """(mJ, GPU-µs) over all accounts of a kind, of one worker, of one tenant or of both."""
        if worker_id is not None and tenant is not None:
            return self.balance(Account(kind, worker_id, tenant))
        energy_mj, gpu_us = self._sums.get((kind, worker_id, tenant), (0, 0))
        return energy_mj, gpu_us

    def difference(self) -> tuple[int, int]:
        """(mJ, GPU-µs) by which the accounts do not add up: (0, 0), or there is a bug. Walks through all of them."""
        balances = self._balances.values()
        return sum(balance[0] for balance in balances), sum(balance[1] for balance in balances)

    def accounts(self) -> Iterator[tuple[Account, int, int]]:
        """(account, mJ, GPU-µs) of each."""
        for account, (energy_mj, gpu_us) in self._balances.items():
            yield account, energy_mj, gpu_us


@dataclass(slots=True, kw_only=True)
class TokenTotals:
    """What attempts of one payer executed. ``requests`` counts each dispatched request once, with its own tenant."""

    requests: int = 0
    attempts: int = 0
    aborted: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    estimated: int = 0
    """Charges taken from the last progress because the worker could not say any more."""

    def add(
        self, *, input_tokens: int, cached_tokens: int, output_tokens: int, cost_nano: int, outcome: Outcome
    ) -> None:
        self.attempts += 1
        self.aborted += outcome is Outcome.ABORTED
        self.failed += outcome is Outcome.FAILED
        self.input_tokens += input_tokens
        self.cached_tokens += cached_tokens
        self.output_tokens += output_tokens
        self.cost_nano += cost_nano


@dataclass(slots=True, kw_only=True)
class WindowTotals:
    """The windows of one worker, calibration aside."""

    num_windows: int = 0
    num_steps: int = 0
    predicted_mj: int = 0
    """Of windows that were measured."""
    measured_mj: int = 0
    """Meter − idle of the same windows: what ``predicted_mj`` is compared with."""
    absolute_unattributed_mj: int = 0
    grade: Grade = Grade.A
    """The worst of all windows."""
    meters: set[str] = field(default_factory=set)
    causes: dict[str, int] = field(default_factory=dict)
    """Cause -> mJ (0 where a cause is only a note)."""
    counter_mj: int | None = None
    """The last reading that is accounted for."""

    def add(self, record: WindowRecord) -> None:
        self.num_windows += 1
        self.num_steps += record.num_steps
        self.absolute_unattributed_mj += abs(record.unattributed_mj)
        self.grade = Grade.worst(self.grade, record.grade)
        if len(self.meters) < MAX_CAUSES:
            self.meters.add(record.meter)
        busy_mj = measured_busy_mj(record)
        if busy_mj is not None:
            self.predicted_mj += record.predicted_mj
            self.measured_mj += busy_mj
        for cause, energy_mj in record.causes:
            if cause in self.causes or len(self.causes) < MAX_CAUSES:
                self.causes[cause] = self.causes.get(cause, 0) + energy_mj


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """All energy since serving began (calibration aside), in integer mJ; the grade and the meters it rests on."""

    meter_mj: int
    requests_mj: int
    """Of all tenants and of the operator's own account."""
    operator_mj: int
    """Named part of ``requests_mj``: repeated and failed work."""
    idle_mj: int
    overhead_mj: int
    unattributed_mj: int
    in_flight_mj: int
    difference_mj: int
    """meter − (requests + idle + overhead + unattributed + in flight): 0, always."""
    busy_gpu_us: int
    requests_gpu_us: int
    overhead_gpu_us: int
    in_flight_gpu_us: int
    absolute_unattributed_mj: int
    predicted_mj: int
    measured_mj: int
    predicted_over_measured: float | None
    num_windows: int
    grade: str
    meters: tuple[str, ...]
    causes: tuple[tuple[str, int], ...]
    token_difference: int
    """Σ |left − right| of the token identity over sequences counted on both sides."""
    inexact_sequences: int
    posting_difference_mj: int
    """Σ |posting − what its windows had put in flight|; above 0 only after a lost control plane."""
    metered_token_difference: int
    """Σ tokens that engines scheduled and no attempt's energy was split by; above 0 where step records were lost."""
    calibration_mj: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRow:
    """One payer: tokens of its charges, energy of its postings."""

    tenant: str
    requests: int
    attempts: int
    aborted: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    """Money of its charges, in 10⁻⁹ currency units."""
    energy_mj: int
    gpu_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnergy:
    """One worker's accounts in mJ, calibration aside; meter == the sum of the others."""

    worker_id: str
    meter_mj: int
    requests_mj: int
    idle_mj: int
    overhead_mj: int
    unattributed_mj: int
    in_flight_mj: int
    requests_gpu_us: int
    output_tokens: int = 0
    """Of its charges: joules of requests ÷ these is its J/token."""
    windows: WindowTotals


class Accounts:
    """All balances of one control plane. Memory grows with workers × tenants, never with requests."""

    def __init__(self) -> None:
        self.serving = Book()
        self.calibration = Book()
        self.tokens: dict[str, TokenTotals] = {}
        self.windows: dict[str, WindowTotals] = {}
        self.generated: Counter[str] = Counter()
        """Output tokens of the charges, by worker."""
        self.token_difference = 0
        self.inexact_sequences = 0
        self.posting_difference_mj = 0
        self.metered_token_difference = 0

    def tokens_of(self, tenant: str) -> TokenTotals:
        totals = self.tokens.get(tenant)
        if totals is None:
            totals = self.tokens[tenant] = TokenTotals()
        return totals

    def windows_of(self, worker_id: str) -> WindowTotals:
        totals = self.windows.get(worker_id)
        if totals is None:
            totals = self.windows[worker_id] = WindowTotals()
        return totals

    @staticmethod
    def check_window(worker_id: str, record: WindowRecord) -> None:
        """Raises: ValueError where the record does not add up."""
        parts_mj = record.idle_mj + record.overhead_mj + record.unattributed_mj + record.in_flight_mj
        if parts_mj != record.meter_mj:
            raise ValueError(f"window {record.window} of {worker_id} does not add up to its {record.meter_mj} mJ")
        if sum(energy_mj for _, energy_mj, _ in record.shares) != record.in_flight_mj:
            raise ValueError(f"the shares of window {record.window} of {worker_id} are not its in-flight part")
        if record.overhead_gpu_us + sum(gpu_us for _, _, gpu_us in record.shares) != record.busy_gpu_us:
            raise ValueError(f"the GPU-time of window {record.window} of {worker_id} does not add up")
        if record.overhead_gpu_us < 0:  # unlike energy, nothing of it is a difference of two measurements
            raise ValueError(f"window {record.window} of {worker_id} gives more GPU-time than was busy")
        if any(energy_mj < 0 or gpu_us < 0 for _, energy_mj, gpu_us in record.shares):
            raise ValueError(f"window {record.window} of {worker_id} takes from an attempt instead of giving to it")

    @staticmethod
    def is_calibration(record: WindowRecord) -> bool:
        """Nothing is in flight while a worker calibrates; if something is, it belongs with the requests."""
        return record.calibrating and not record.shares

    def add_window(self, worker_id: str, record: WindowRecord) -> None:
        """Meter -> idle, overhead, unattributed, in flight. Raises: ValueError where the record does not add up."""
        self.check_window(worker_id, record)
        parts = {
            Kind.IDLE: (record.idle_mj, 0),
            Kind.OVERHEAD: (record.overhead_mj, record.overhead_gpu_us),
            Kind.UNATTRIBUTED: (record.unattributed_mj, 0),
            Kind.IN_FLIGHT: (record.in_flight_mj, sum(gpu_us for _, _, gpu_us in record.shares)),
        }
        book = self.calibration if self.is_calibration(record) else self.serving
        meter = Account(Kind.METER, worker_id)
        for kind, (energy_mj, gpu_us) in parts.items():
            book.move(meter, Account(kind, worker_id), energy_mj=energy_mj, gpu_us=gpu_us)
        totals = self.windows_of(worker_id)
        totals.counter_mj = record.counter_mj
        if book is self.serving:
            totals.add(record)

    def add_posting(self, worker_id: str, tenant: str, *, energy_mj: int, gpu_us: int) -> None:
        """In flight -> requests."""
        self.tokens_of(tenant)  # every payer has a row
        self.windows_of(worker_id)
        source = Account(Kind.IN_FLIGHT, worker_id)
        target = Account(Kind.REQUESTS, worker_id, tenant)
        self.serving.move(source, target, energy_mj=energy_mj, gpu_us=gpu_us)

    def balance(self, worker_id: str | None = None) -> Balance:
        """The balance of one worker, or of all."""
        total = {kind: self.serving.total(kind, worker_id=worker_id) for kind in Kind}
        meter_mj, busy_gpu_us = -total[Kind.METER][0], -total[Kind.METER][1]
        accounted_mj = sum(total[kind][0] for kind in Kind if kind is not Kind.METER)
        windows = [totals for name, totals in self.windows.items() if worker_id in (None, name)]
        used = [totals for totals in windows if totals.num_windows]
        predicted_mj = sum(totals.predicted_mj for totals in used)
        measured_mj = sum(totals.measured_mj for totals in used)
        causes: dict[str, int] = {}
        for totals in used:
            for cause, energy_mj in totals.causes.items():
                causes[cause] = causes.get(cause, 0) + energy_mj
        return Balance(
            meter_mj=meter_mj,
            requests_mj=total[Kind.REQUESTS][0],
            operator_mj=self.serving.total(Kind.REQUESTS, worker_id=worker_id, tenant=OPERATOR)[0],
            idle_mj=total[Kind.IDLE][0],
            overhead_mj=total[Kind.OVERHEAD][0],
            unattributed_mj=total[Kind.UNATTRIBUTED][0],
            in_flight_mj=total[Kind.IN_FLIGHT][0],
            difference_mj=meter_mj - accounted_mj,
            busy_gpu_us=busy_gpu_us,
            requests_gpu_us=total[Kind.REQUESTS][1],
            overhead_gpu_us=total[Kind.OVERHEAD][1],
            in_flight_gpu_us=total[Kind.IN_FLIGHT][1],
            absolute_unattributed_mj=sum(totals.absolute_unattributed_mj for totals in used),
            predicted_mj=predicted_mj,
            measured_mj=measured_mj,
            predicted_over_measured=predicted_mj / measured_mj if measured_mj > 0 else None,
            num_windows=sum(totals.num_windows for totals in used),
            grade=Grade.worst(*(totals.grade for totals in used)).value if used else Grade.D.value,
            meters=tuple(sorted(set().union(*(totals.meters for totals in used)))),
            causes=tuple(sorted(causes.items())),
            token_difference=self.token_difference,
            inexact_sequences=self.inexact_sequences,
            posting_difference_mj=self.posting_difference_mj,
            metered_token_difference=self.metered_token_difference,
            calibration_mj=-self.calibration.total(Kind.METER, worker_id=worker_id)[0],
        )

    def tenant_rows(self) -> tuple[TenantRow, ...]:
        """Every payer, by name; the operator's own row is among them."""
        rows = []
        for tenant, tokens in sorted(self.tokens.items()):
            energy_mj, gpu_us = self.serving.total(Kind.REQUESTS, tenant=tenant)
            rows.append(
                TenantRow(
                    tenant=tenant,
                    requests=tokens.requests,
                    attempts=tokens.attempts,
                    aborted=tokens.aborted,
                    failed=tokens.failed,
                    input_tokens=tokens.input_tokens,
                    cached_tokens=tokens.cached_tokens,
                    output_tokens=tokens.output_tokens,
                    cost_nano=tokens.cost_nano,
                    energy_mj=energy_mj,
                    gpu_us=gpu_us,
                )
            )
        return tuple(rows)

    def worker_rows(self) -> tuple[WorkerEnergy, ...]:
        """Every worker that ever closed a window or had a posting, by id."""
        rows = []
        for worker_id, windows in sorted(self.windows.items()):
            total = {kind: self.serving.total(kind, worker_id=worker_id) for kind in Kind}
            rows.append(
                WorkerEnergy(
                    worker_id=worker_id,
                    meter_mj=-total[Kind.METER][0],
                    requests_mj=total[Kind.REQUESTS][0],
                    idle_mj=total[Kind.IDLE][0],
                    overhead_mj=total[Kind.OVERHEAD][0],
                    unattributed_mj=total[Kind.UNATTRIBUTED][0],
                    in_flight_mj=total[Kind.IN_FLIGHT][0],
                    requests_gpu_us=total[Kind.REQUESTS][1],
                    output_tokens=self.generated[worker_id],
                    windows=replace(windows, meters=set(windows.meters), causes=dict(windows.causes)),
                )
            )
        return tuple(rows)
