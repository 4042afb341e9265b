"""Every metric by name: its kind, its labels and its words. ``docs/operations.md`` repeats the table, a test compares.

Read by ``scheduler.metrics``. It must never know where a value comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric as documented: ``kind`` is counter, gauge or histogram."""

    kind: str
    labels: tuple[str, ...]
    help: str


METRIC_HELP: Mapping[str, MetricInfo] = {
    # Observed by the relay.
    "jouleway_requests_total": MetricInfo(
        "counter", ("tenant", "band", "outcome"),
        "Requests that passed the checks, by how they ended: completed, refused by the engine, rejected by us, "
        "aborted, failed.",
    ),
    "jouleway_errors_total": MetricInfo(
        "counter", ("status", "code"), "Error answers with a status, by status and the code in their body."
    ),
    "jouleway_queue_seconds": MetricInfo(
        "histogram", ("model", "band"), "From arrival to the (last) dispatch to a worker."
    ),
    "jouleway_time_to_first_token_seconds": MetricInfo(
        "histogram", ("model", "band"), "From arrival to the engine's first byte; streams only."
    ),
    "jouleway_time_per_output_token_seconds": MetricInfo(
        "histogram", ("model", "band"),
        "(End - first byte) / (output tokens of a sequence - 1); completed streams only.",
    ),
    "jouleway_request_seconds": MetricInfo(
        "histogram", ("model", "band"), "From arrival to the last byte, whatever the outcome."
    ),
    # Energy and GPU-time.
    "jouleway_meter_joules_total": MetricInfo(
        "counter", ("worker", "grade"), "Joules the meter counted since serving began; calibration is left out."
    ),
    "jouleway_energy_joules_total": MetricInfo(
        "counter", ("account", "worker", "grade"),
        "The same joules by account: requests, idle, overhead, unattributed. With what is in flight they sum to the "
        "meter. Unattributed alone may fall.",
    ),
    "jouleway_in_flight_joules": MetricInfo(
        "gauge", ("worker",), "Joules of closed windows whose requests are not posted yet; 0 when idle."
    ),
    "jouleway_gpu_seconds_total": MetricInfo(
        "counter", ("account",), "Step seconds x GPUs by account: requests, overhead; a CPU engine counts as one GPU."
    ),
    "jouleway_tenant_energy_joules_total": MetricInfo("counter", ("tenant",), "Joules posted to a payer's requests."),
    "jouleway_tenant_gpu_seconds_total": MetricInfo("counter", ("tenant",), "GPU-seconds posted to a payer."),
    "jouleway_tenant_cost_total": MetricInfo(
        "counter", ("tenant",),
        "Money charged to a payer, in currency units. Falls where a cost-plus estimate was too high.",
    ),
    "jouleway_energy_difference_joules": MetricInfo(
        "gauge", (), "Meter - all accounts: 0, or there is a bug."
    ),
    "jouleway_posting_difference_joules": MetricInfo(
        "gauge", (), "Sum of |posting - what its windows put in flight|."
    ),
    "jouleway_predicted_over_measured_ratio": MetricInfo(
        "gauge", (), "Predicted / measured busy energy over all measured windows; absent before the first."
    ),
    "jouleway_power_watts": MetricInfo("gauge", ("worker",), "Power as the worker's meter gave it last."),
    "jouleway_meter_up": MetricInfo("gauge", ("worker",), "1 while the worker's meter reads, 0 while it is modelled."),
    # Tokens.
    "jouleway_tokens_total": MetricInfo(
        "counter", ("tenant", "class"), "Tokens charged, by class: input (not cached), cached, output."
    ),
    "jouleway_token_identity_difference_tokens": MetricInfo(
        "gauge", (), "Sum of the token identity's differences over sequences counted on both sides; 0 when all is well."
    ),
    "jouleway_metered_token_difference_tokens": MetricInfo(
        "gauge", (), "Tokens by which energy was split, against those that usage counts; above 0: steps were lost."
    ),
    "jouleway_inexact_sequences_total": MetricInfo("counter", (), "Sequences counted on one side only."),
    # Workers.
    "jouleway_workers": MetricInfo("gauge", ("state",), "Workers by state; a link that is down counts as its phase."),
    "jouleway_workers_lost_total": MetricInfo("counter", (), "Workers that were lost with what ran on them."),
    "jouleway_worker_ready": MetricInfo("gauge", ("worker",), "1 while the worker takes new work."),
    "jouleway_worker_sequences": MetricInfo(
        "gauge", ("worker", "state"), "Sequences in the worker's engine: running, waiting."
    ),
    "jouleway_kv_used_tokens": MetricInfo("gauge", ("worker",), "Tokens in the engine's KV cache."),
    "jouleway_credit_tokens": MetricInfo(
        "gauge", ("worker", "class"), "Tokens owned on the worker: prefill, decode, context, kv."
    ),
    "jouleway_engine_steps_total": MetricInfo("counter", ("worker",), "Engine steps seen by the step hook."),
    "jouleway_step_records_dropped_total": MetricInfo(
        "counter", ("worker",), "Step records the hook could not send; their tokens are not attributed."
    ),
    "jouleway_outbox_depth": MetricInfo("gauge", ("worker",), "Records the worker keeps until they are durable."),
    "jouleway_outbox_dropped_total": MetricInfo("counter", ("worker",), "Records lost because the outbox was full."),
    # Queue and requests, as the core counts them.
    "jouleway_queue_requests": MetricInfo("gauge", ("band",), "Requests that wait, by priority band."),
    "jouleway_queue_bytes": MetricInfo("gauge", ("band",), "Bytes of the bodies that wait."),
    "jouleway_queue_tenant_requests": MetricInfo(
        "gauge", ("tenant", "band"), "Requests that wait, by tenant and priority band; absent where none do."
    ),
    "jouleway_open_requests": MetricInfo("gauge", (), "Requests without an answer."),
    "jouleway_running_attempts": MetricInfo("gauge", (), "Attempts that own credit on a worker."),
    "jouleway_open_attempts": MetricInfo("gauge", (), "Attempts that miss their charge or their posting."),
    "jouleway_requests_submitted_total": MetricInfo("counter", (), "Requests that reached the core."),
    "jouleway_requests_rejected_total": MetricInfo("counter", ("reason",), "Requests the core refused, by reason."),
    "jouleway_requests_finished_total": MetricInfo("counter", ("outcome",), "Requests the core ended, by outcome."),
    "jouleway_attempts_dispatched_total": MetricInfo("counter", (), "Attempts sent to workers."),
    "jouleway_attempts_retried_total": MetricInfo("counter", (), "Attempts repeated after a worker failed."),
    "jouleway_attempts_bounced_total": MetricInfo("counter", (), "Attempts a worker sent back because it was full."),
    "jouleway_attempts_preempted_total": MetricInfo(
        "counter", (), "Batch-class attempts ended to make room for a higher band, before any byte was sent."
    ),
    "jouleway_duplicate_records_total": MetricInfo("counter", (), "Records that arrived again and were not booked."),
    "jouleway_bad_windows_total": MetricInfo("counter", (), "Windows that did not add up and were not booked."),
    # Budgets.
    "jouleway_budget_held": MetricInfo(
        "gauge", ("measure",), "What requests hold on all budgets together, in the measure's own unit; 0 when idle."
    ),
    "jouleway_budgets_near_limit": MetricInfo(
        "gauge", ("level",), "Budgets used or held to 80 % or more, by level: tenant, project, key, task (at most 100)."
    ),
    "jouleway_budget_excess_total": MetricInfo(
        "counter", ("part",), "What attempts took beyond their holds and the operator paid, in the part's own unit."
    ),
    "jouleway_budget_excess_attempts_total": MetricInfo("counter", ("part",), "Attempts that took more than held."),
    # The ledger.
    "jouleway_ledger_up": MetricInfo("gauge", (), "1 while the ledger can be written, 0 while nothing new may begin."),
    "jouleway_ledger_rows": MetricInfo("gauge", (), "Rows that are durable."),
    "jouleway_ledger_pending_rows": MetricInfo("gauge", (), "Rows that wait to become durable."),
    "jouleway_ledger_wait_seconds": MetricInfo(
        "histogram", ("part",),
        "How long an answer's first_byte or end lay ready until its hold or its charge was durable: the time that the "
        "ledger adds.",
    ),
    "jouleway_draining": MetricInfo("gauge", (), "1 while the control plane stops."),
}  # fmt: skip
"""Every metric. Each sample is made from this list, so that a metric which is not described does not exist."""
