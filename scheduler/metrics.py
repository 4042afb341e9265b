"""Prometheus metrics from one registry of our own: a snapshot read at each scrape, histograms fed once a request.

Called by ``scheduler.api`` (observe, count_error, render) and ``scheduler.service`` (set_source); the only file that
imports prometheus_client. It must never hold a request id, and nothing here runs per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from scheduler.accounting.rows import OPERATOR
from scheduler.metric_table import METRIC_HELP
from scheduler.snapshot import Snapshot, WorkerSnapshot
from workers.types import WorkerState, WorkerStatus

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OTHER = "other"
MAX_MODELS = 200
MAX_CODES = 200

WAIT_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
COMMIT_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0)
TOKEN_BUCKETS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0)
REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 3600.0)


class Labels:
    """Bounds the values of a label: the first ``max_values`` keep their names, the rest share ``other``."""

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        """The label that stands for ``value``; the same one every time, so that no counter ever falls."""
        if value in self._known:
            return value
        if len(self._known) >= self._max_values:
            return OTHER
        self._known.add(value)
        return value


class Metrics:
    """One per control plane."""

    def __init__(self, *, max_tenants: int = 200) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        self._tenants = Labels(max_tenants)
        self._tenants.of(OPERATOR)
        self._models = Labels(MAX_MODELS)
        self._codes = Labels(MAX_CODES)
        self._source: Callable[[], Snapshot] | None = None
        self._requests = self._counter("jouleway_requests_total")
        self._errors = self._counter("jouleway_errors_total")
        self._queue = self._histogram("jouleway_queue_seconds", WAIT_BUCKETS_S)
        self._ttft = self._histogram("jouleway_time_to_first_token_seconds", WAIT_BUCKETS_S)
        self._tpot = self._histogram("jouleway_time_per_output_token_seconds", TOKEN_BUCKETS_S)
        self._e2e = self._histogram("jouleway_request_seconds", REQUEST_BUCKETS_S)
        self._ledger_wait = self._histogram("jouleway_ledger_wait_seconds", COMMIT_BUCKETS_S)
        self._registry.register(_SnapshotCollector(self))

    def set_source(self, source: Callable[[], Snapshot]) -> None:
        """Where a scrape reads what the control plane knows; called once a scrape."""
        self._source = source

    def observe(
        self,
        *,
        tenant: str,
        model: str,
        band: str,
        outcome: str,
        e2e_s: float,
        queue_s: float | None = None,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
    ) -> None:
        """One request is over. None: there was no such moment."""
        model = self._models.of(model)
        self._requests.labels(self._tenants.of(tenant), band, outcome).inc()
        self._e2e.labels(model, band).observe(e2e_s)
        for histogram, value_s in ((self._queue, queue_s), (self._ttft, ttft_s), (self._tpot, tpot_s)):
            if value_s is not None:
                histogram.labels(model, band).observe(value_s)

    def observe_ledger_wait(self, part: str, wait_s: float) -> None:
        """Of one answer: how long its ``first_byte`` or its ``end`` lay ready before it was durable."""
        self._ledger_wait.labels(part).observe(wait_s)

    def count_error(self, *, status: int, code: str) -> None:
        """An error answer left with this status."""
        self._errors.labels(str(status), self._codes.of(code)).inc()

    def render(self) -> bytes:
        """The text exposition; its type is ``CONTENT_TYPE``."""
        return generate_latest(self._registry)

    def collect_snapshot(self) -> Iterator[Metric]:
        """What one snapshot shows; nothing without a source."""
        if self._source is not None:
            yield from _families(self._source(), self._tenants)

    def _counter(self, name: str) -> Counter:
        info = METRIC_HELP[name]
        return Counter(name, info.help, info.labels, registry=self._registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        info = METRIC_HELP[name]
        return Histogram(name, info.help, info.labels, registry=self._registry, buckets=buckets)


class _SnapshotCollector:
    """prometheus_client's face of a scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect_snapshot()

    def describe(self) -> Iterable[Metric]:
        """Nothing: reading a snapshot to register would need a source."""
        return []


Sample = tuple[tuple[str, ...], float]


def _families(snapshot: Snapshot, tenants: Labels) -> Iterator[Metric]:
    """Metric families of a snapshot. Samples with equal labels (tenants beyond the cap) are summed."""
    for values in (_energy(snapshot), _payers(snapshot, tenants), _workers(snapshot), _core(snapshot)):
        for name, samples in values.items():
            info = METRIC_HELP[name]
            sums: dict[tuple[str, ...], float] = {}
            for labels, value in samples:
                sums[labels] = sums.get(labels, 0.0) + value
            family: Metric
            if info.kind == "counter":
                family = CounterMetricFamily(name, info.help, labels=info.labels)
            else:
                family = GaugeMetricFamily(name, info.help, labels=info.labels)
            for labels, value in sums.items():
                family.add_metric(labels, value)
            yield family


def _energy(snapshot: Snapshot) -> dict[str, list[Sample]]:
    balance = snapshot.balance
    meter: list[Sample] = []
    accounts: list[Sample] = []
    in_flight: list[Sample] = []
    for row in snapshot.worker_energy:
        worker, grade = row.worker_id, row.windows.grade.value
        meter.append(((worker, grade), row.meter_mj / 1000))
        in_flight.append(((worker,), row.in_flight_mj / 1000))
        for account, energy_mj in (
            ("requests", row.requests_mj),
            ("idle", row.idle_mj),
            ("overhead", row.overhead_mj),
            ("unattributed", row.unattributed_mj),
        ):
            accounts.append(((account, worker, grade), energy_mj / 1000))
    ratio = balance.predicted_over_measured
    return {
        "jouleway_meter_joules_total": meter,
        "jouleway_energy_joules_total": accounts,
        "jouleway_in_flight_joules": in_flight,
        "jouleway_gpu_seconds_total": [
            (("requests",), balance.requests_gpu_us / 1e6),
            (("overhead",), balance.overhead_gpu_us / 1e6),
        ],
        "jouleway_energy_difference_joules": [((), balance.difference_mj / 1000)],
        "jouleway_posting_difference_joules": [((), balance.posting_difference_mj / 1000)],
        "jouleway_predicted_over_measured_ratio": [] if ratio is None else [((), ratio)],
        "jouleway_token_identity_difference_tokens": [((), balance.token_difference)],
        "jouleway_metered_token_difference_tokens": [((), balance.metered_token_difference)],
        "jouleway_inexact_sequences_total": [((), balance.inexact_sequences)],
    }


def _payers(snapshot: Snapshot, tenants: Labels) -> dict[str, list[Sample]]:
    tokens: list[Sample] = []
    joules: list[Sample] = []
    gpu_seconds: list[Sample] = []
    cost: list[Sample] = []
    for row in snapshot.tenants:
        tenant = tenants.of(row.tenant)
        tokens.append(((tenant, "input"), row.input_tokens - row.cached_tokens))
        tokens.append(((tenant, "cached"), row.cached_tokens))
        tokens.append(((tenant, "output"), row.output_tokens))
        joules.append(((tenant,), row.energy_mj / 1000))
        gpu_seconds.append(((tenant,), row.gpu_us / 1e6))
        cost.append(((tenant,), row.cost_nano / 1e9))
    return {
        "jouleway_tokens_total": tokens,
        "jouleway_tenant_energy_joules_total": joules,
        "jouleway_tenant_gpu_seconds_total": gpu_seconds,
        "jouleway_tenant_cost_total": cost,
        "jouleway_queue_tenant_requests": [
            ((tenants.of(tenant), band.band), num_requests)
            for band in snapshot.queue
            for tenant, num_requests in band.tenants
        ],
    }


LEVEL_KINDS = ("tenant", "project", "key", "task")
LINK_STATES = ("connecting", "lost", "gone", "fenced")


def _workers(snapshot: Snapshot) -> dict[str, list[Sample]]:
    states: dict[str, float] = dict.fromkeys((*LINK_STATES, *(state.value for state in WorkerState)), 0.0)
    for worker in snapshot.workers:
        states[_state_of(worker)] += 1
    values: dict[str, list[Sample]] = {
        "jouleway_workers": [((state,), count) for state, count in states.items()],
        "jouleway_workers_lost_total": [((), snapshot.lost_workers)],
        "jouleway_worker_ready": [((each.worker_id,), each.is_ready) for each in snapshot.workers],
        "jouleway_credit_tokens": [
            ((each.worker_id, name), tokens)
            for each in snapshot.workers
            for name, tokens in (
                ("prefill", each.credit.prefill_tokens),
                ("decode", each.credit.decode_tokens),
                ("context", each.credit.context_tokens),
                ("kv", each.credit.kv_tokens),
            )
        ],
    }
    for worker in snapshot.workers:
        if worker.status is not None:
            for name, sample in _status(worker.status):
                values.setdefault(name, []).append(sample)
    return values


def _state_of(worker: WorkerSnapshot) -> str:
    if worker.phase == "connected" and worker.status is not None:
        return worker.status.state.value
    return worker.phase if worker.phase in LINK_STATES else "connecting"


def _status(status: WorkerStatus) -> Iterator[tuple[str, Sample]]:
    """What a worker said of itself."""
    worker = (status.worker_id,)
    yield "jouleway_meter_up", (worker, status.meter_up)
    if status.power_watts is not None:
        yield "jouleway_power_watts", (worker, status.power_watts)
    yield "jouleway_worker_sequences", ((*worker, "running"), status.num_running)
    yield "jouleway_worker_sequences", ((*worker, "waiting"), status.num_waiting)
    yield "jouleway_kv_used_tokens", (worker, status.kv_used_tokens)
    yield "jouleway_engine_steps_total", (worker, status.steps_total)
    yield "jouleway_step_records_dropped_total", (worker, status.dropped_step_records_total)
    yield "jouleway_outbox_depth", (worker, status.outbox_depth)
    yield "jouleway_outbox_dropped_total", (worker, status.outbox_dropped_total)


def _core(snapshot: Snapshot) -> dict[str, list[Sample]]:
    def one(value: float) -> list[Sample]:
        return [((), value)]

    return {
        "jouleway_queue_requests": [((band.band,), band.num_requests) for band in snapshot.queue],
        "jouleway_queue_bytes": [((band.band,), band.num_bytes) for band in snapshot.queue],
        "jouleway_open_requests": one(snapshot.num_open),
        "jouleway_running_attempts": one(snapshot.num_running),
        "jouleway_open_attempts": one(snapshot.open_attempts),
        "jouleway_requests_submitted_total": one(snapshot.submitted),
        "jouleway_requests_rejected_total": [((reason,), count) for reason, count in snapshot.rejected.items()],
        "jouleway_requests_finished_total": [((outcome,), count) for outcome, count in snapshot.finished.items()],
        "jouleway_attempts_dispatched_total": one(snapshot.dispatched),
        "jouleway_attempts_retried_total": one(snapshot.retried),
        "jouleway_attempts_bounced_total": one(snapshot.bounced),
        "jouleway_attempts_preempted_total": one(snapshot.preempted),
        "jouleway_duplicate_records_total": one(snapshot.duplicate_records),
        "jouleway_bad_windows_total": one(snapshot.bad_windows),
        "jouleway_ledger_up": one(not snapshot.ledger_problem),
        "jouleway_ledger_rows": one(snapshot.ledger_rows),
        "jouleway_ledger_pending_rows": one(snapshot.ledger_pending_rows),
        "jouleway_draining": one(snapshot.is_draining),
        **_budgets(snapshot),
    }


def _budgets(snapshot: Snapshot) -> dict[str, list[Sample]]:
    near = [budget.level.partition(" ")[0] for budget in snapshot.budgets_near_limit]
    excess = snapshot.budget_excess
    return {
        "jouleway_budget_held": [((measure,), held) for measure, held in snapshot.budget_held.items()],
        "jouleway_budgets_near_limit": [((kind,), near.count(kind)) for kind in LEVEL_KINDS],
        "jouleway_budget_excess_total": [((part,), amount) for part, amount in excess.amounts.items()],
        "jouleway_budget_excess_attempts_total": [((part,), times) for part, times in excess.times.items()],
    }
