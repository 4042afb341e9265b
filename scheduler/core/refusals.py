"""The words of refusal: one reason each, the same in response, metric and log.

Called by ``scheduler.core.admission``. It must never know why a request was refused, only how to say it.
"""

from __future__ import annotations

from scheduler.core.actions import Rejection

NO_WORKER_RETRY_AFTER_S = 30


def queue_full(retry_after_s: int) -> Rejection:
    return Rejection(
        reason="queue_full",
        status=503,
        retry_after_s=retry_after_s,
        message="The queue of this priority is full; try again later or with another service_tier.",
    )


def queue_timeout(waited_s: float, retry_after_s: int) -> Rejection:
    return Rejection(
        reason="queue_timeout",
        status=503,
        retry_after_s=retry_after_s,
        message=f"No worker had room within {waited_s:g} s.",
    )


def no_worker(model: str, waited_s: float) -> Rejection:
    return Rejection(
        reason="no_worker",
        status=503,
        retry_after_s=NO_WORKER_RETRY_AFTER_S,
        message=f"No worker that serves {model!r} was ready within {waited_s:g} s.",
    )


def model_not_found(model: str) -> Rejection:
    return Rejection(reason="model_not_found", status=404, message=f"The model {model!r} does not exist here.")


def shutting_down() -> Rejection:
    return Rejection(
        reason="shutting_down",
        status=503,
        retry_after_s=NO_WORKER_RETRY_AFTER_S,
        message="The service is shutting down.",
    )


def ledger_unavailable() -> Rejection:
    return Rejection(
        reason="ledger_unavailable",
        status=503,
        retry_after_s=NO_WORKER_RETRY_AFTER_S,
        message="What is used cannot be booked at the moment: nothing is served unmetered.",
    )


def deadline_exceeded(waited_s: float) -> Rejection:
    return Rejection(
        reason="deadline_exceeded",
        status=504,
        message=f"The deadline passed after {waited_s:.1f} s, before a worker had room.",
    )


def deadline_infeasible(left_s: float, least_wait_s: float) -> Rejection:
    return Rejection(
        reason="deadline_infeasible",
        status=504,
        message=f"{left_s:.3f} s are left; the fastest idle worker needs about {least_wait_s:.3f} s to begin.",
    )


def data_residency_mismatch(zones: list[str]) -> Rejection:
    where = f"Workers of this model are in {', '.join(zones)}" if zones else "No zone of this service may hold it"
    return Rejection(
        reason="data_residency_mismatch",
        status=403,
        should_retry=False,
        message=f"{where}: none of them may run a request of this data class and these zones.",
    )
