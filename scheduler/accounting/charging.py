"""From what ended to what is charged: the core's decision and the worker's usage become one charge.

Called by ``scheduler.dispatcher``. Pure. It must never know an account's balance or a link.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler.accounting.settlement import Charge, request_id_of
from scheduler.core.actions import Payer, Settle
from scheduler.core.request import Request
from workers.types import Grade, UsageRecord, WorkerStatus


def charge_of(settle: Settle, request: Request, *, status: WorkerStatus | None, usage: UsageRecord | None) -> Charge:
    """The charge of an attempt of ours. ``usage`` is None where the worker could not say any more."""
    tokens = settle.tokens
    charge = Charge(
        request_id=settle.request_id,
        attempt_id=settle.attempt_id,
        attempt_number=int(settle.attempt_id.rpartition("-")[2]),
        tenant=request.tenant,
        project=request.project,
        key_id=request.key_id,
        model=request.model,
        worker_id=settle.worker_id,
        payer=settle.payer,
        outcome=settle.outcome,
        cause=settle.cause,
        input_tokens=tokens.input_tokens,
        cached_tokens=tokens.cached_tokens,
        output_tokens=tokens.output_tokens,
        cost_nano=settle.cost_nano,
        rates=request.rates,
        plus_nano=settle.plus_nano,
        most_plus_nano=settle.most_plus_nano,
        grade=_grade(status),
        is_exact=settle.is_exact,
    )
    return charge if usage is None else _with_usage(charge, usage)


def charge_of_stranger(usage: UsageRecord, *, worker_id: str, status: WorkerStatus | None) -> Charge:
    """Usage of an attempt that nobody here owns (of an earlier control plane): executed in vain, the operator pays."""
    charge = Charge(
        request_id=request_id_of(usage.attempt_id),
        attempt_id=usage.attempt_id,
        attempt_number=0,
        tenant="",
        model="",
        worker_id=worker_id,
        payer=Payer.OPERATOR,
        outcome=usage.outcome,
        cause=usage.cause,
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        grade=_grade(status),
    )
    return _with_usage(charge, usage)


def _with_usage(charge: Charge, usage: UsageRecord) -> Charge:
    """With what the worker counted beside the tokens."""
    exact = [sequence for sequence in usage.sequences if sequence.exact]
    is_exact = len(exact) == len(usage.sequences)
    return replace(
        charge,
        provisional_mj=usage.provisional_mj,
        provisional_gpu_us=usage.provisional_gpu_us,
        token_difference=sum(abs(sequence.token_difference) for sequence in exact),
        inexact_sequences=len(usage.sequences) - len(exact),
        scheduled_tokens=sum(sequence.scheduled_tokens for sequence in exact) if is_exact else None,
        overrun_tokens=sum(sequence.overrun_tokens for sequence in exact),
        started_s=usage.started_s,
        first_byte_s=usage.first_byte_s,
        ended_s=usage.ended_s,
    )


def _grade(status: WorkerStatus | None) -> Grade:
    return Grade.D if status is None else status.grade
