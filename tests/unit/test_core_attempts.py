"""Attempts: what they own, what they executed, who pays, and whether their request is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.actions import Payer, Tokens
from scheduler.core.attempts import (
    MAX_PREEMPTIONS,
    NOT_UP_CAUSES,
    WORKER_CAUSES,
    Attempt,
    Entry,
    Fate,
    dispatch_of,
    ending_of,
    fate_of,
    is_workers_fault,
    settle_of,
    tokens_of,
    work_of,
)
from scheduler.core.cluster import Claim, Cluster
from scheduler.core.request import Band, Slo
from scheduler.core.slack import UNDERWAY, Promise
from tests.core_words import progress, request, thorough, usage, view
from workers.types import Outcome, Progress


def an_attempt(*, prompt: int = 100, expected: int = 20, **values: object) -> Attempt:
    """The answering attempt of a fresh request."""
    entry = Entry(request=request(**values), place=1, waits_since_s=0.0)  # type: ignore[arg-type]
    attempt = Attempt(
        attempt_id="r-1", entry=entry, worker=Cluster().update(view(), 0.0), started_s=0.0, last_sign_s=0.0,
        prompt_tokens=prompt, expected_tokens=expected,
    )  # fmt: skip
    entry.attempt = attempt
    return attempt


def ended(outcome: Outcome = Outcome.FAILED, cause: str = "", **marks: object) -> Attempt:
    """An attempt whose bytes are over; ``marks`` are set on it or on its request's entry."""
    attempt = an_attempt()
    attempt.outcome, attempt.cause = outcome, cause
    for name, value in marks.items():
        setattr(attempt if hasattr(attempt, name) else attempt.entry, name, value)
    return attempt


def fate(attempt: Attempt, *, has_other: bool = True) -> Fate:
    return fate_of(attempt, has_other=has_other, max_retries=1, max_bounces=3)


# -- credit


def test_a_fresh_attempt_owns_its_prompt_and_what_it_is_expected_to_put_out() -> None:
    """The KV of both, and nothing read yet."""
    assert an_attempt().claim() == Claim(
        sequences=1, prefill_tokens=100, decode_tokens=20, context_tokens=0, kv_tokens=120
    )


def test_progress_trues_credit_up() -> None:
    """The engine's count replaces the bound; what is computed or cached is read at each step from now on."""
    attempt = an_attempt()
    attempt.advance(progress("r-1", prompt=60, cached=10, computed=30, output=0), 1.0)
    assert attempt.claim() == Claim(sequences=1, prefill_tokens=20, decode_tokens=20, context_tokens=40, kv_tokens=80)
    attempt.advance(progress("r-1", prompt=60, cached=10, computed=50, output=5), 1.0)
    assert attempt.claim() == Claim(sequences=1, prefill_tokens=0, decode_tokens=15, context_tokens=65, kv_tokens=80)


def test_an_output_that_exceeds_what_was_expected_doubles_it_up_to_the_limit() -> None:
    """A long answer claims room before it needs it."""
    attempt, seen = an_attempt(expected=4, max_output_tokens=20), []
    for output in (3, 4, 8, 16, 20, 25):
        attempt.advance(progress("r-1", output=output), 1.0)
        seen.append(attempt.expected_tokens)
    assert [4, 8, 16, 20, 20, 25] == seen


COUNTS = st.integers(0, 300)


@thorough
@given(st.lists(st.builds(Progress, st.just("r-1"), COUNTS, COUNTS, COUNTS, COUNTS), min_size=1, max_size=12))
def test_late_and_repeated_progress_takes_nothing_back(messages: list[Progress]) -> None:
    """Numbers are cumulative: any order and any repetition ends at the same place, and no credit is negative."""
    orders = (messages, messages[::-1], messages + messages)
    ends = []
    for order in orders:
        attempt = an_attempt()
        for message in order:
            attempt.advance(message, 1.0)
            assert min(attempt.claim()) >= 0
        ends.append(
            (attempt.prompt_tokens, attempt.cached_tokens, attempt.computed_prompt_tokens, attempt.output_tokens)
        )
        executed = attempt.executed()
        assert executed.cached_tokens <= executed.input_tokens <= attempt.prompt_tokens
    assert 1 == len(set(ends))


def test_without_progress_nothing_is_known_to_have_run() -> None:
    """A call that was lost on the way costs nobody anything."""
    assert Tokens() == an_attempt().executed()


def test_executed_tokens_are_what_was_computed_not_what_was_asked() -> None:
    """A prompt that was cut short is billed as far as it came."""
    attempt = an_attempt()
    attempt.advance(progress("r-1", prompt=100, cached=16, computed=40, output=0), 1.0)
    assert Tokens(input_tokens=56, cached_tokens=16, output_tokens=0) == attempt.executed()


def test_work_is_per_sequence_and_rounded_up() -> None:
    """Expected outputs come summed over all sequences."""
    work = work_of(request(num_sequences=3), prompt_tokens=10, output_tokens=100)
    assert (10, 34, 3) == (work.prompt_tokens, work.output_tokens, work.num_sequences)


# -- who pays


@pytest.mark.parametrize(
    ("attempt", "payer"),
    [
        (ended(Outcome.COMPLETED), Payer.REQUEST),
        (ended(Outcome.REFUSED), Payer.REQUEST),
        (ended(Outcome.FAILED), Payer.OPERATOR),
        (ended(Outcome.FAILED, has_first_byte=True), Payer.REQUEST),
        (ended(Outcome.ABORTED, cancel_reason="client_gone", is_cancelled_by_client=True), Payer.REQUEST),
        (ended(Outcome.ABORTED, cancel_reason="deadline_exceeded"), Payer.OPERATOR),
        (ended(Outcome.FAILED, attempt=None, cancel_reason="gone", is_cancelled_by_client=True), Payer.OPERATOR),
    ],
    ids=["answered", "refused", "in vain", "seen", "client gone", "deadline", "superseded, then client gone"],
)
def test_who_pays(attempt: Attempt, payer: Payer) -> None:
    """The request what it was given and what its client broke off, the operator what was in vain."""
    assert attempt.outcome is not None
    assert payer is attempt.payer(attempt.outcome)


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.REFUSED])
def test_what_completes_after_its_request_was_taken_from_it_is_the_operators(outcome: Outcome) -> None:
    """An abort and a completion cross: another attempt answers, and only that one is paid."""
    attempt = an_attempt()
    assert Payer.REQUEST == attempt.payer(outcome)
    attempt.entry.attempt = None
    assert Payer.OPERATOR == attempt.payer(outcome)


@pytest.mark.parametrize(("by_client", "payer"), [(True, Payer.REQUEST), (False, Payer.OPERATOR)])
def test_what_completes_after_a_cancellation_is_paid_by_whoever_cancelled(by_client: bool, payer: Payer) -> None:
    """A deadline and an answer cross before any byte was sent: the client gets 504, and pays nothing."""
    attempt = an_attempt()
    attempt.entry.cancel_reason, attempt.entry.is_cancelled_by_client = "deadline_exceeded", by_client
    assert payer == attempt.payer(Outcome.COMPLETED)


def test_batch_work_makes_room_only_while_nobody_saw_a_byte_and_not_for_ever() -> None:
    """Whoever ends already, answers visibly, was cancelled or made room often enough stays."""
    assert not an_attempt(band=Band.DEFAULT).is_preemptable
    assert an_attempt(band=Band.FLEX).is_preemptable
    for name, value in (("has_first_byte", True), ("outcome", Outcome.FAILED)):
        attempt = an_attempt(band=Band.FLEX)
        setattr(attempt, name, value)
        assert not attempt.is_preemptable
    for name, value in (
        ("cancel_reason", "deadline_exceeded"),
        ("num_preemptions", MAX_PREEMPTIONS),
        ("attempt", None),
    ):
        attempt = an_attempt(band=Band.FLEX)
        setattr(attempt.entry, name, value)
        assert not attempt.is_preemptable


# -- what becomes of the request


@pytest.mark.parametrize("cause", [*sorted(WORKER_CAUSES), "worker_lost", "worker_sick"])
def test_a_worker_s_fault_is_tried_again_even_where_no_other_is_ready(cause: str) -> None:
    """The request may wait for one."""
    assert is_workers_fault(cause)
    assert Fate.RETRY is fate(ended(cause=cause), has_other=False)


def test_an_engine_s_error_is_tried_again_only_elsewhere() -> None:
    """The same engine would say the same."""
    assert not is_workers_fault("engine_error:ValueError")
    assert Fate.RETRY is fate(ended(cause="engine_error:ValueError"))
    assert Fate.END is fate(ended(cause="engine_error:ValueError"), has_other=False)


@pytest.mark.parametrize(
    "attempt",
    [
        ended(Outcome.COMPLETED),
        ended(Outcome.REFUSED),
        ended(cause="worker_lost", has_first_byte=True),
        ended(cause="worker_lost", cancel_reason="client_gone"),
        ended(cause="worker_lost", attempt=None),
        ended(cause="worker_lost", num_losses=1),
        ended(cause="worker_busy", num_bounces=3),
    ],
    ids=["answered", "refused", "byte seen", "cancelled", "superseded", "retried before", "bounced too often"],
)
def test_what_is_not_tried_again(attempt: Attempt) -> None:
    """Never after a byte, never for nobody, never without end."""
    assert Fate.END is fate(attempt)


def test_a_busy_worker_is_no_loss() -> None:
    """Bounces and retries are counted apart."""
    assert Fate.BOUNCE is fate(ended(cause="worker_busy", num_bounces=2, num_losses=1))


@pytest.mark.parametrize("cause", sorted(NOT_UP_CAUSES))
def test_an_engine_that_was_parked_meanwhile_is_no_loss_and_no_limit(cause: str) -> None:
    """Nothing ran there; each worker can say so once only before it is known, so that this ends by itself."""
    assert Fate.BOUNCE is fate(ended(cause=cause, num_bounces=99, num_losses=1), has_other=False)
    assert Fate.END is fate(ended(cause=cause, cancel_reason="client_gone"))


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (ended(Outcome.COMPLETED), (Outcome.COMPLETED, "")),
        (ended(Outcome.COMPLETED, cause="usage_missing"), (Outcome.COMPLETED, "")),
        (ended(Outcome.FAILED), (Outcome.FAILED, "engine_error")),
        (ended(Outcome.FAILED, cause="stalled"), (Outcome.FAILED, "stalled")),
        (ended(Outcome.ABORTED, cause="worker_stopped"), (Outcome.FAILED, "worker_stopped")),
        (ended(Outcome.COMPLETED, cancel_reason="client_gone"), (Outcome.ABORTED, "client_gone")),
    ],
)
def test_how_a_request_ends(attempt: Attempt, expected: tuple[Outcome, str]) -> None:
    """An abort nobody here ordered is a failure; what was cancelled is aborted whatever came after."""
    assert attempt.outcome is not None
    assert expected == ending_of(attempt, attempt.outcome)


# -- promises


def test_a_promise_is_a_place_before_the_first_token_and_a_pace_after_it() -> None:
    """Prompts go by band until they are begun; then the last token is due at the pace that was promised."""
    attempt = an_attempt(expected=21, band=2, slo=Slo(tpot_s=0.1, value_nano_per_s=7.0))
    assert Promise(rank=2) == attempt.promise()
    attempt.advance(progress("r-1", prompt=60, computed=30, output=0), 1.0)
    assert Promise(rank=UNDERWAY) == attempt.promise()
    attempt.advance(progress("r-1", prompt=60, computed=60, output=1), 2.0)
    attempt.advance(progress("r-1", prompt=60, computed=60, output=6), 2.5)
    assert Promise(rank=UNDERWAY, due_s=4.0, left_tokens=15.0, value_nano_per_s=7.0, token_s=0.1) == attempt.promise()


def test_what_is_expected_of_a_cache_gives_way_to_what_it_had() -> None:
    """The index of prefixes is approximate: the engine says what it found."""
    attempt = an_attempt(prompt=100)
    attempt.cached_tokens = 64
    assert 36 == attempt.claim().prefill_tokens
    attempt.advance(progress("r-1", prompt=100, cached=0, computed=10, output=0), 1.0)
    assert 90 == attempt.claim().prefill_tokens


def test_giving_way_takes_the_request_from_its_attempt() -> None:
    """It waits anew, keeps its place, and what was executed is the operator's."""
    attempt = an_attempt(band=Band.FLEX)
    attempt.give_way(9.0)
    entry = attempt.entry
    assert (None, 1, 9.0, 1) == (entry.attempt, entry.num_preemptions, entry.waits_since_s, entry.place)
    assert ("preempted", Payer.OPERATOR) == (attempt.cause, attempt.payer(Outcome.COMPLETED))


# -- actions made of attempts


def test_a_dispatch_carries_the_cap_the_band_and_the_reason() -> None:
    """What the engine is given, and why there."""
    attempt = an_attempt(band=0, max_output_tokens=7)
    dispatch = dispatch_of(attempt, "least of 2 scores")
    assert ("r", "r-1", "w", 7, 0) == (
        dispatch.request_id, dispatch.attempt_id, dispatch.worker_id, dispatch.max_output_tokens, dispatch.priority,
    )  # fmt: skip
    assert "least of 2 scores" == dispatch.reason


def test_a_settlement_carries_the_worker_s_count() -> None:
    """To whom, how much, how it ended."""
    attempt = ended(Outcome.COMPLETED)
    settle = settle_of(attempt, Outcome.COMPLETED, tokens_of(usage("r-1", cached_tokens=4)), is_exact=True)
    assert Tokens(input_tokens=10, cached_tokens=4, output_tokens=5) == settle.tokens
    assert ("r", "r-1", "w", Payer.REQUEST, Outcome.COMPLETED, "", True) == (
        settle.request_id, settle.attempt_id, settle.worker_id, settle.payer, settle.outcome, settle.cause,
        settle.is_exact,
    )  # fmt: skip
