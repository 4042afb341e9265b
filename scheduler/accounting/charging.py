"""From what begins to what is held, and from what ended to what is charged: the core's decisions become rows.

Called by ``scheduler.dispatcher``. Pure. It must never know an account's balance or a link.
"""

from __future__ import annotations

import msgspec

from scheduler.accounting.rows import HELD_FACTS, Charge, Hold, request_id_of
from scheduler.core.actions import Dispatch, Payer, Settle, Tokens
from scheduler.core.budget_needs import needed
from scheduler.core.request import Band, DataClass, Request
from workers.types import UsageRecord, WorkerStatus

MICRO = 1_000_000
MAX_DECISION_CHARS = 200
UNBOUNDED_COUNTS = (
    "image_tokens", "audio_tokens", "input_bytes", "output_bytes", "provisional_mj", "provisional_gpu_us",
)  # fmt: skip
"""Of a usage record, beside those that are parts of another."""


def sound(usage: UsageRecord) -> UsageRecord:
    """The record itself where its counts can be: none below 0, no part above its whole. Else the nearest that can.

    The ledger refuses to be read where a row says otherwise, and a worker must not be able to write such a one.
    """
    input_tokens, output_tokens = max(usage.input_tokens, 0), max(usage.output_tokens, 0)
    counts = {
        "input_tokens": input_tokens,
        "cached_tokens": min(max(usage.cached_tokens, 0), input_tokens),
        "output_tokens": output_tokens,
        "reasoning_tokens": min(max(usage.reasoning_tokens, 0), output_tokens),
        **{name: max(getattr(usage, name), 0) for name in UNBOUNDED_COUNTS},
    }
    if all(getattr(usage, name) == count for name, count in counts.items()):
        return usage
    return msgspec.structs.replace(usage, **counts)


def hold_of(request: Request, dispatch: Dispatch) -> Hold:
    """The worst case of a request that starts now, at the rates that were pinned at its admission."""
    input_tokens, _, output_tokens, cost_nano = needed(
        request, request.prompt_tokens_bound, dispatch.max_output_tokens, None
    )[:4]
    return Hold(
        request_id=request.request_id,
        tenant=request.tenant,
        project=request.project,
        key_id=request.key_id,
        task=request.task,
        model=request.model,
        tier=Band(request.band).name.lower(),
        data_class=DataClass(request.data_class).name.lower(),
        zones=None if request.zones is None else sorted(request.zones),
        arrived_us=int(request.arrival_unix_s * MICRO),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_nano=cost_nano,
        rates=request.rates,
    )


def charge_of(
    settle: Settle,
    request: Request,
    *,
    status: WorkerStatus | None,
    usage: UsageRecord | None,
    decision: str = "",
) -> Charge:
    """The charge of an attempt of ours. ``usage`` is None where the worker could not say any more."""
    tokens = settle.tokens
    charge = Charge(
        request_id=settle.request_id,
        attempt_id=settle.attempt_id,
        attempt_number=int(settle.attempt_id.rpartition("-")[2]),
        tenant=request.tenant,
        project=request.project,
        key_id=request.key_id,
        task=request.task,
        model=request.model,
        tier=Band(request.band).name.lower(),
        data_class=DataClass(request.data_class).name.lower(),
        decision=decision[:MAX_DECISION_CHARS],
        worker_id=settle.worker_id,
        payer=settle.payer,
        outcome=settle.outcome,
        cause=settle.cause,
        input_tokens=tokens.input_tokens,
        cached_tokens=tokens.cached_tokens,
        output_tokens=tokens.output_tokens,
        arrived_us=int(request.arrival_unix_s * MICRO),
        cost_nano=settle.cost_nano,
        rates=request.rates,
        plus_nano=settle.plus_nano,
        most_plus_nano=settle.most_plus_nano,
        is_exact=settle.is_exact,
    )
    return _with_facts(charge, status=status, usage=usage)


def charge_of_stranger(
    usage: UsageRecord, *, worker_id: str, status: WorkerStatus | None, hold: Hold | None = None
) -> Charge:
    """Usage of an attempt that nobody here owns (of an earlier control plane): executed in vain, the operator pays.

    ``hold``: what the earlier control plane wrote of its request, where that is still known.
    """
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
    )
    if hold is not None:
        # Whose it was, when and at which rates, as of any other charge: a row of usage is kept by all of these.
        for name in HELD_FACTS:
            setattr(charge, name, getattr(hold, name))
    return _with_facts(charge, status=status, usage=usage)


def request_of(charge: Charge, *, arrival_s: float) -> Request:
    """As much of a charge's request as budgets and the fair order ask for, when they are rebuilt from the ledger."""
    return Request(
        request_id=charge.request_id,
        tenant=charge.tenant,
        project=charge.project,
        key_id=charge.key_id,
        model=charge.model,
        band=Band[charge.tier.upper()],
        prompt_tokens_bound=charge.input_tokens,
        max_output_tokens=charge.output_tokens,
        arrival_s=arrival_s,
        arrival_unix_s=charge.arrived_us / MICRO,
        task=charge.task,
        data_class=DataClass[charge.data_class.upper()],
    )


def tokens_of(charge: Charge) -> Tokens:
    """What it charged."""
    return Tokens(
        input_tokens=charge.input_tokens, cached_tokens=charge.cached_tokens, output_tokens=charge.output_tokens
    )


def _with_facts(charge: Charge, *, status: WorkerStatus | None, usage: UsageRecord | None) -> Charge:
    """With what the worker says of itself, and what it counted beside the tokens."""
    if status is not None:
        charge.zone, charge.grade = status.zone, status.grade
        charge.tokenizer = "" if status.info is None else status.info.tokenizer_digest
    if usage is None:
        return charge
    exact = [sequence for sequence in usage.sequences if sequence.exact]
    is_exact = len(exact) == len(usage.sequences)
    charge.provisional_mj = usage.provisional_mj
    charge.provisional_gpu_us = usage.provisional_gpu_us
    charge.token_difference = sum(abs(sequence.token_difference) for sequence in exact)
    charge.inexact_sequences = len(usage.sequences) - len(exact)
    charge.scheduled_tokens = sum(sequence.scheduled_tokens for sequence in exact) if is_exact else None
    charge.reasoning_tokens = usage.reasoning_tokens
    charge.image_tokens, charge.audio_tokens = usage.image_tokens, usage.audio_tokens
    charge.input_bytes, charge.output_bytes = usage.input_bytes, usage.output_bytes
    charge.salt, charge.input_digest = usage.salt, usage.input_digest
    charge.output_digests = list(usage.output_digests)
    charge.computed_prompt_tokens = sum(sequence.computed_prompt_tokens for sequence in exact)
    charge.num_generating = sum(sequence.generated_tokens > 0 for sequence in exact)
    charge.recomputed_tokens = sum(sequence.recomputed_tokens for sequence in exact)
    charge.rejected_tokens = sum(sequence.rejected_tokens for sequence in exact)
    charge.overrun_tokens = sum(sequence.overrun_tokens for sequence in exact)
    charge.started_s, charge.first_byte_s, charge.ended_s = usage.started_s, usage.first_byte_s, usage.ended_s
    return charge
