"""What an operator may see at one moment: workers, queue, requests, accounts. Frozen values, safe to hand on.

Taken by ``scheduler.dispatcher``, read by admin routes and metrics. It must never hold a prompt, an answer or a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

from scheduler.accounting.accounts import Balance, TenantRow, WorkerEnergy
from scheduler.accounting.settlement import Settlement
from scheduler.connection import Connection
from scheduler.core.budget_accounts import BudgetState
from scheduler.core.budget_holds import Excess
from scheduler.core.cluster import Cluster
from scheduler.core.queue import BANDS
from scheduler.core.scheduler import Scheduler
from workers.types import WorkerState, WorkerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditSnapshot:
    """What is owned on one worker, in tokens (sequences: counted)."""

    sequences: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    context_tokens: int = 0
    kv_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSnapshot:
    """One worker: how its link stands, what it said last, what is owned there."""

    worker_id: str
    phase: str
    cause: str
    epoch: int
    is_ready: bool
    """Takes new work now."""
    num_attempts: int
    credit: CreditSnapshot
    status: WorkerStatus | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BandSnapshot:
    """One priority band of the queue."""

    band: str
    num_requests: int
    num_bytes: int
    retry_after_s: int
    tenants: tuple[tuple[str, int], ...] = ()
    """Requests that wait, by tenant, in the order of names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSnapshot:
    """How one budget stands. Amounts are in the measure's own unit."""

    level: str
    """``tenant acme``, ``project acme/search``, ``key key-0123456789``, ``task acme/nightly``."""
    measure: str
    window: str
    limit: int
    used: int
    held: int
    left: int
    resets_unix_s: float | None

    @staticmethod
    def of(state: BudgetState) -> BudgetSnapshot:
        """With the words that people and programs read."""
        words = {"level": str(state.level), "measure": state.measure.value}
        return BudgetSnapshot(**{**state._asdict(), **words})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything at one moment."""

    workers: tuple[WorkerSnapshot, ...]
    queue: tuple[BandSnapshot, ...]
    models: tuple[str, ...]
    """Configured or ever served."""
    ready_models: tuple[str, ...]
    """Of which a worker is ready, or parked and could be woken."""
    num_open: int
    """Requests without an answer."""
    num_running: int
    """Attempts that own credit."""
    submitted: int
    dispatched: int
    retried: int
    bounced: int
    preempted: int
    lost_workers: int
    rejected: dict[str, int]
    finished: dict[str, int]
    balance: Balance
    tenants: tuple[TenantRow, ...]
    worker_energy: tuple[WorkerEnergy, ...]
    duplicate_records: int
    bad_windows: int
    open_attempts: int
    """Attempts that miss their charge or their posting."""
    budget_held: dict[str, int]
    """On all budgets together, by measure."""
    budgets_near_limit: tuple[BudgetSnapshot, ...]
    """Used or held to 80 % or more, the fullest first; at most 100."""
    budget_excess: Excess
    is_draining: bool
    ledger_problem: str = ""
    """Why nothing can be booked, and so nothing new begins; empty where all is well."""
    ledger_rows: int = 0
    """That are durable."""
    ledger_pending_rows: int = 0


def take_snapshot(
    core: Scheduler,
    settlement: Settlement,
    connections: Iterable[Connection],
    *,
    now_unix_s: float,
    bad_windows: int,
    is_draining: bool,
    ledger_problem: str = "",
) -> Snapshot:
    """Everything at this moment; costs workers × tenants, so at most once a second please."""
    accounts, stats, budgets = settlement.accounts, core.stats, core.holds.budgets
    return Snapshot(
        workers=tuple(
            _worker(core.cluster, each) for each in sorted(connections, key=lambda connection: connection.worker_id)
        ),
        queue=tuple(
            BandSnapshot(
                band=band.name.lower(),
                num_requests=core.queue.num_waiting[band],
                num_bytes=core.queue.num_bytes[band],
                retry_after_s=core.retry_after_s(band),
                tenants=tuple(core.fairness.waiting(band)),
            )
            for band in BANDS
        ),
        models=tuple(sorted(core.admission.models)),
        ready_models=tuple(sorted(filter(core.admission.can_serve, core.admission.models))),
        num_open=core.num_open,
        num_running=core.num_running,
        submitted=stats.submitted,
        dispatched=stats.dispatched,
        retried=stats.retried,
        bounced=stats.bounced,
        preempted=stats.preempted,
        lost_workers=stats.lost_workers,
        rejected=dict(stats.rejected),
        finished=dict(stats.finished),
        balance=accounts.balance(),
        tenants=accounts.tenant_rows(),
        worker_energy=accounts.worker_rows(),
        duplicate_records=settlement.duplicates_total,
        bad_windows=bad_windows,
        open_attempts=settlement.num_open,
        budget_held={measure.value: held for measure, held in budgets.held_total().items()},
        budgets_near_limit=tuple(map(BudgetSnapshot.of, budgets.near_limit(now_unix_s))),
        budget_excess=deepcopy(budgets.excess),
        is_draining=is_draining,
        ledger_problem=ledger_problem,
        ledger_rows=settlement.journal.durable_seq,
        ledger_pending_rows=settlement.journal.next_seq - settlement.journal.durable_seq,
    )


def _worker(cluster: Cluster, connection: Connection) -> WorkerSnapshot:
    worker = cluster.workers.get(connection.worker_id)
    credit = cluster.credit(connection.worker_id)._asdict() if worker is not None else {}
    return WorkerSnapshot(
        worker_id=connection.worker_id,
        phase=connection.phase.value,
        cause=connection.cause,
        epoch=connection.epoch,
        is_ready=worker is not None and cluster.is_ready(worker),
        num_attempts=len(worker.claims) if worker is not None else 0,
        credit=CreditSnapshot(**credit),
        status=connection.status,
    )


def state_words(worker: WorkerSnapshot) -> str:
    """One worker's state for a person: ``starting (calibrating, at most 20 s)``."""
    status = worker.status
    if status is None:
        return f"{worker.phase}{f' ({worker.cause})' if worker.cause else ''}"
    return f"{status.state.value}{f' ({status.cause})' if status.cause else ''}"


def is_up(worker: WorkerSnapshot) -> bool:
    """Whether it came up; one that was found parked is woken when it is needed."""
    return worker.is_ready or (worker.status is not None and worker.status.state is WorkerState.PARKED)
