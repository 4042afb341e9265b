"""What an operator may see at one moment: workers, queue, requests, accounts. Frozen values, safe to hand on.

Taken by ``scheduler.dispatcher``, read by admin routes and metrics. It must never hold a prompt, an answer or a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.accounting.accounts import Balance, TenantRow, WorkerEnergy
from scheduler.accounting.settlement import Settlement
from scheduler.connection import Connection
from scheduler.core.cluster import Cluster
from scheduler.core.queue import BANDS
from scheduler.core.scheduler import Scheduler
from workers.types import WorkerStatus


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything at one moment."""

    workers: tuple[WorkerSnapshot, ...]
    queue: tuple[BandSnapshot, ...]
    models: tuple[str, ...]
    """Configured or ever served."""
    ready_models: tuple[str, ...]
    num_open: int
    """Requests without an answer."""
    num_running: int
    """Attempts that own credit."""
    submitted: int
    dispatched: int
    retried: int
    bounced: int
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
    is_draining: bool


def take_snapshot(
    core: Scheduler, settlement: Settlement, connections: Iterable[Connection], *, bad_windows: int, is_draining: bool
) -> Snapshot:
    """Everything at this moment; costs workers × tenants, so at most once a second please."""
    accounts, stats = settlement.accounts, core.stats
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
            )
            for band in BANDS
        ),
        models=tuple(sorted(core.models)),
        ready_models=tuple(sorted(model for model in core.models if core.cluster.has_ready(model))),
        num_open=core.num_open,
        num_running=core.num_running,
        submitted=stats.submitted,
        dispatched=stats.dispatched,
        retried=stats.retried,
        bounced=stats.bounced,
        lost_workers=stats.lost_workers,
        rejected=dict(stats.rejected),
        finished=dict(stats.finished),
        balance=accounts.balance(),
        tenants=accounts.tenant_rows(),
        worker_energy=accounts.worker_rows(),
        duplicate_records=settlement.duplicates_total,
        bad_windows=bad_windows,
        open_attempts=settlement.num_open,
        is_draining=is_draining,
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
