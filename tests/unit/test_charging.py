"""What ended becomes one charge: tokens from the core's decision, everything else from the worker's usage."""

import dataclasses

import msgspec
import pytest

from scheduler.accounting.accounts import OPERATOR
from scheduler.accounting.charging import charge_of, charge_of_stranger, sound
from scheduler.accounting.rows import Hold, decode, encode
from scheduler.core.actions import Payer, Settle, Tokens
from scheduler.core.request import CostPlus, Rates, Request
from tests.scripted_link import status_of, usage_of
from workers.types import Grade, Outcome, UsageRecord

REQUEST = Request(
    request_id="req-a", tenant="alpha", project="p", key_id="k", model="m", prompt_tokens_bound=9, max_output_tokens=5,
    arrival_s=0.0,
)  # fmt: skip


def settle(**fields: object) -> Settle:
    values: dict[str, object] = {
        "request_id": "req-a",
        "attempt_id": "req-a-2",
        "worker_id": "w-0",
        "payer": Payer.REQUEST,
        "outcome": Outcome.COMPLETED,
        "cause": "",
        "tokens": Tokens(input_tokens=7, cached_tokens=2, output_tokens=3),
        "cost_nano": 123,
        **fields,
    }
    return Settle(**values)  # type: ignore[arg-type]


def with_sequence(usage: UsageRecord, **fields: object) -> UsageRecord:
    """With a further sequence that differs from its first as told."""
    more = msgspec.structs.replace(usage.sequences[0], **fields)
    return msgspec.structs.replace(usage, sequences=(*usage.sequences, more))


def test_a_charge_says_whose_it_is_and_what_was_decided() -> None:
    """Request, attempt, payer, outcome and tokens as the core settled them; the worker's counts beside them."""
    usage = usage_of("req-a-2", started_s=1.0, first_byte_s=1.5, ended_s=2.0, provisional_mj=11, provisional_gpu_us=22)
    charge = charge_of(settle(), REQUEST, status=status_of(grade=Grade.B), usage=usage)
    assert ("req-a", "req-a-2", 2, "alpha", "p", "k", "m", "w-0") == (
        charge.request_id, charge.attempt_id, charge.attempt_number, charge.tenant, charge.project, charge.key_id,
        charge.model, charge.worker_id,
    )  # fmt: skip
    assert (7, 2, 3, 123) == (charge.input_tokens, charge.cached_tokens, charge.output_tokens, charge.cost_nano)
    assert (1.0, 1.5, 2.0, 11, 22, Grade.B) == (
        charge.started_s, charge.first_byte_s, charge.ended_s, charge.provisional_mj, charge.provisional_gpu_us,
        charge.grade,
    )  # fmt: skip
    assert (True, 0, 0, 9, 0) == (
        charge.is_exact, charge.token_difference, charge.inexact_sequences, charge.scheduled_tokens,
        charge.overrun_tokens,
    )  # fmt: skip


def test_a_charge_names_its_price() -> None:
    """The rates of its admission with their version, and what of its money is an estimate."""
    rates = Rates(1, 2, 3, "EUR", version="v/0123abcd")
    charge = charge_of(
        settle(plus_nano=23, most_plus_nano=50), dataclasses.replace(REQUEST, rates=rates), status=None, usage=None
    )
    assert (rates, 123, 23, 50) == (charge.rates, charge.cost_nano, charge.plus_nano, charge.most_plus_nano)


@pytest.mark.parametrize(
    ("most_nano", "gpu_us", "difference"), [(None, 40, 30), (25, 40, 15), (25, 4, -6), (None, 10, 0)]
)
def test_one_difference_corrects_what_was_charged_by_the_estimate(
    most_nano: int | None, gpu_us: int, difference: int
) -> None:
    """To what was measured, at most what was held; the operator's attempts have none."""
    request = dataclasses.replace(REQUEST, rates=Rates(plus=CostPlus(gpu_nano_per_s=1_000_000)))
    settled = settle(cost_nano=10, plus_nano=10, most_plus_nano=most_nano)
    charge = charge_of(settled, request, status=None, usage=None)
    assert difference == charge.difference_nano(energy_mj=9, gpu_us=gpu_us)
    operators = msgspec.structs.replace(charge, payer=Payer.OPERATOR, cost_nano=0, plus_nano=0)
    assert 0 == operators.difference_nano(energy_mj=9, gpu_us=gpu_us)


@pytest.mark.parametrize(("payer", "account"), [(Payer.REQUEST, "alpha"), (Payer.OPERATOR, OPERATOR)])
def test_the_account_follows_the_payer(payer: Payer, account: str) -> None:
    """The tenant is named either way."""
    charge = charge_of(settle(payer=payer), REQUEST, status=None, usage=None)
    assert (account, "alpha") == (charge.account, charge.tenant)


def test_without_usage_it_is_the_last_progress() -> None:
    """Marked as not exact; nothing is claimed about tokens that nobody counted."""
    lost = settle(is_exact=False, outcome=Outcome.FAILED, cause="worker_lost")
    charge = charge_of(lost, REQUEST, status=status_of(), usage=None)
    assert (False, None, "worker_lost", 3) == (
        charge.is_exact, charge.scheduled_tokens, charge.cause, charge.output_tokens
    )  # fmt: skip


def test_a_worker_that_said_nothing_has_the_lowest_grade() -> None:
    """Never a better one by default."""
    assert Grade.D is charge_of(settle(), REQUEST, status=None, usage=None).grade


def test_differences_of_the_token_identity_do_not_cancel() -> None:
    """One token too many here and one too few there are two."""
    usage = usage_of("req-a-2")
    usage = with_sequence(usage, scheduled_tokens=10)
    usage = with_sequence(usage, scheduled_tokens=8)
    charge = charge_of(settle(), REQUEST, status=None, usage=usage)
    assert (2, 27) == (charge.token_difference, charge.scheduled_tokens)


def test_sequences_counted_on_one_side_only_are_named_and_not_compared() -> None:
    """The scheduler's side is missing: no difference, and no sum to hold the energy's tokens against."""
    usage = with_sequence(usage_of("req-a-2"), exact=False, scheduled_tokens=0, overrun_tokens=5)
    charge = charge_of(settle(), REQUEST, status=None, usage=usage)
    assert (0, 1, None, 0) == (
        charge.token_difference, charge.inexact_sequences, charge.scheduled_tokens, charge.overrun_tokens
    )  # fmt: skip


def test_a_strangers_usage_is_the_operators() -> None:
    """Executed in vain for an earlier control plane: no tenant, no request counted."""
    usage = usage_of("req-z-1", outcome=Outcome.ABORTED, cause="orphaned")
    charge = charge_of_stranger(usage, worker_id="w-1", status=status_of("w-1"))
    assert (OPERATOR, "", "req-z", 0, "w-1", "orphaned", 7, 3, 9) == (
        charge.account, charge.tenant, charge.request_id, charge.attempt_number, charge.worker_id, charge.cause,
        charge.input_tokens, charge.output_tokens, charge.scheduled_tokens,
    )  # fmt: skip


def test_a_strangers_usage_is_told_with_what_its_hold_says() -> None:
    """Whose it was, in which tier, when, and in the house's currency: else its row of usage would be in another one."""
    hold = Hold(
        request_id="req-z", tenant="alpha", project="p", key_id="k", task="night", model="m", tier="flex",
        data_class="core", arrived_us=77, input_tokens=9, output_tokens=5, cost_nano=123, rates=Rates(1, 1, 1, "EUR"),
    )  # fmt: skip
    charge = charge_of_stranger(usage_of("req-z-1"), worker_id="w-1", status=None, hold=hold)
    assert (OPERATOR, 0, 0) == (charge.account, charge.attempt_number, charge.cost_nano)
    assert ("alpha", "p", "k", "night", "m", "flex", "core", 77, "EUR") == (
        charge.tenant, charge.project, charge.key_id, charge.task, charge.model, charge.tier, charge.data_class,
        charge.arrived_us, charge.rates.currency,
    )  # fmt: skip


def test_a_charge_says_why_its_worker_was_chosen() -> None:
    """In one line of bounded length: the proof that a policy was kept stands beside the bill."""
    charge = charge_of(settle(), REQUEST, status=None, usage=None, decision="w-1: cheapest of 3" + "!" * 500)
    assert charge.decision.startswith("w-1: cheapest of 3")
    assert 200 == len(charge.decision)


def test_a_record_that_can_be_is_left_alone() -> None:
    """Nothing is made anew for nearly all of them."""
    usage = usage_of("req-a-2", cached_tokens=7, reasoning_tokens=3, image_tokens=2)
    assert usage is sound(usage)


@pytest.mark.parametrize(
    ("said", "booked"),
    [
        ({"input_tokens": -5}, {"input_tokens": 0, "cached_tokens": 0}),
        ({"cached_tokens": 8}, {"cached_tokens": 7}),
        ({"cached_tokens": -1}, {"cached_tokens": 0}),
        ({"output_tokens": -1, "reasoning_tokens": 2}, {"output_tokens": 0, "reasoning_tokens": 0}),
        ({"reasoning_tokens": 4}, {"reasoning_tokens": 3}),
        ({"image_tokens": -1, "audio_tokens": -1}, {"image_tokens": 0, "audio_tokens": 0}),
        ({"input_bytes": -1, "output_bytes": -1}, {"input_bytes": 0, "output_bytes": 0}),
        ({"provisional_mj": -1, "provisional_gpu_us": -1}, {"provisional_mj": 0, "provisional_gpu_us": 0}),
    ],
    ids=lambda each: " ".join(each),
)
def test_what_cannot_be_is_booked_as_near_as_can_be(said: dict[str, int], booked: dict[str, int]) -> None:
    """Else one worker could write a row that no start can read."""
    usage = sound(msgspec.structs.replace(usage_of("req-a-2"), **said))
    assert booked == {name: getattr(usage, name) for name in booked}
    charge = charge_of_stranger(usage, worker_id="w-0", status=None)
    assert charge == decode(encode(charge).decode())
