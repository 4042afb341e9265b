"""Outcomes: a repeat changes nothing, a correction moves a result, and the value of an accepted one is bounded."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting import outcomes
from scheduler.accounting.outcomes import (
    MAX_OUTCOMES,
    Facts,
    IdReused,
    Outcome,
    Tally,
    TooMany,
    Verdict,
    decide,
    id_of,
    rounded,
    tally_of,
    value_of,
    wilson,
)
from scheduler.accounting.usage import UsageRow

FACTS = Facts(tenant="alpha", project="p", model="m", bucket_us=60_000_000)
GOOD = Verdict(request_id="req-1", accepted=True)
BAD = Verdict(request_id="req-1", accepted=False, score_ppm=100_000, label="wrong-language")


class Memory:
    """One request or task of one tenant, as a log keeps it."""

    def __init__(self, facts: Facts = FACTS) -> None:
        self.facts = facts
        self.rows: list[Outcome] = []
        self.sums = Tally(0, 0, 0)

    def post(self, verdict: Verdict, given_id: str | None = None, at_us: int = 0) -> Outcome:
        ids = {outcome.outcome_id: outcome for outcome in self.rows}
        same_id = None if given_id is None else ids.get(id_of(self.facts.tenant, given_id))
        outcome, change = decide(
            verdict,
            self.facts,
            given_id=given_id,
            same_id=same_id,
            latest=self.rows[-1] if self.rows else None,
            at_us=at_us,
        )
        if change is not None:
            assert outcome.outcome_id not in ids, "an id is used once"
            self.rows.append(outcome)
            self.sums = Tally(*(one + other for one, other in zip(self.sums, change, strict=True)))
        return outcome


# -- what is kept


def test_a_first_outcome_is_kept() -> None:
    """With when it came and where it counts."""
    outcome = Memory().post(GOOD, at_us=7)
    assert (GOOD, FACTS, 7, None, 1) == (
        outcome.verdict, outcome.facts, outcome.at_us, outcome.replaces, outcome.number,
    )  # fmt: skip


@pytest.mark.parametrize("given_id", [None, "job-1"])
def test_a_repeat_is_the_same_outcome(given_id: str | None) -> None:
    """With an id of its sender or without."""
    log = Memory()
    first = log.post(GOOD, given_id, at_us=1)
    assert first == log.post(GOOD, given_id, at_us=2)
    assert (1, Tally(1, 0, 1)) == (len(log.rows), log.sums)


def test_a_correction_is_a_row_of_its_own() -> None:
    """The latest counts; there and back again are two corrections."""
    log = Memory()
    first, second, third = log.post(GOOD), log.post(BAD), log.post(GOOD)
    assert [None, first.outcome_id, second.outcome_id] == [each.replaces for each in (first, second, third)]
    assert ([1, 2, 3], Tally(1, 0, 1)) == ([each.number for each in log.rows], log.sums)
    assert 3 == len({each.outcome_id for each in log.rows})


def test_a_late_repeat_of_what_was_corrected_changes_nothing() -> None:
    """Where its sender gave ids: a queue may deliver it an hour later."""
    log = Memory()
    first = log.post(GOOD, "a")
    log.post(BAD, "b")
    assert first == log.post(GOOD, "a")
    assert (2, Tally(0, 1, 1)) == (len(log.rows), log.sums)


def test_an_equal_verdict_with_a_new_id_is_kept() -> None:
    """Else a late repeat of it would not be known."""
    log = Memory()
    for given_id in "ab":
        log.post(GOOD, given_id)
    log.post(BAD, "c")
    log.post(GOOD, "b")
    assert (3, Tally(0, 1, 1)) == (len(log.rows), log.sums)


def test_one_id_is_one_verdict() -> None:
    """Another one under it is refused, and so is another request."""
    log = Memory()
    log.post(GOOD, "a")
    for other in (BAD, Verdict(request_id="req-2", accepted=True), Verdict(task="req-1", accepted=True)):
        with pytest.raises(IdReused):
            log.post(other, "a")
    assert 1 == len(log.rows)


def test_ids_of_two_tenants_are_two() -> None:
    """Nor can a tenant's name be mixed with an id."""
    ids = {id_of("a", "bc"), id_of("ab", "c"), id_of("abc", ""), id_of("", "abc")}
    assert 4 == len(ids)
    assert all(each.startswith("out-") and len(each) == 36 for each in ids)


def test_corrections_have_a_bound() -> None:
    """A ledger does not grow by one request for ever; what is known is still answered."""
    log = Memory()
    for number in range(MAX_OUTCOMES):
        log.post(GOOD if number % 2 else BAD, f"id-{number}")
    with pytest.raises(TooMany):
        log.post(BAD)
    assert log.rows[0] == log.post(BAD, "id-0")
    assert log.rows[-1] == log.post(GOOD)


def test_a_correction_counts_where_the_first_one_did() -> None:
    """A task that went on meanwhile: its requests grow, its place stays."""
    log = Memory(Facts(tenant="alpha", task="t", model="m", bucket_us=60_000_000, requests=10))
    log.post(Verdict(task="t", accepted=True))
    log.facts = Facts(tenant="alpha", task="t", model="n", bucket_us=120_000_000, requests=12)
    outcome = log.post(Verdict(task="t", accepted=False))
    assert Facts(tenant="alpha", task="t", model="m", bucket_us=60_000_000, requests=12) == outcome.facts
    assert Tally(0, 1, 12) == log.sums


@given(st.lists(st.tuples(st.booleans(), st.sampled_from((None, "a", "b", "c"))), max_size=20))
def test_the_sums_are_those_of_the_latest(posts: list[tuple[bool, str | None]]) -> None:
    """Whatever is posted, repeated, corrected or refused."""
    log = Memory()
    for accepted, given_id in posts:
        try:
            log.post(Verdict(request_id="r", accepted=accepted), given_id)
        except IdReused:
            continue
    assert log.sums == (tally_of(log.rows[-1]) if log.rows else Tally(0, 0, 0))


@pytest.mark.parametrize(
    "wrong",
    [{}, {"request_id": "a", "task": "b"}, {"task": "b", "score_ppm": -1}, {"task": "b", "score_ppm": 10**6 + 1}],
)
def test_a_verdict_is_of_one_thing_and_its_score_a_share(wrong: dict[str, object]) -> None:
    """What users write is checked before."""
    with pytest.raises(AssertionError):
        Verdict(accepted=True, **wrong)  # type: ignore[arg-type]


# -- value


def test_wilson_by_its_published_values() -> None:
    """Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (accepted, results), (low, high) in published.items():
        assert (low, high) == tuple(round(bound, 4) for bound in wilson(accepted, results))


@given(results=st.integers(1, 10**9), share=st.floats(0, 1))
def test_the_interval_holds_the_share_and_mirrors(results: int, share: float) -> None:
    """Within 0 and 1; accepted and rejected are alike."""
    accepted = min(int(results * share), results)
    low, high = wilson(accepted, results)
    assert 0.0 <= low <= accepted / results + 1e-12
    assert accepted / results - 1e-12 <= high <= 1.0
    mirrored = wilson(results - accepted, results)
    assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-9)
    assert math.isclose(high, 1 - mirrored[0], abs_tol=1e-9)


def test_nothing_judged_is_no_value() -> None:
    """None, and not 0: it cannot be told."""
    value = value_of(UsageRow(bucket_us=0, requests=5, cost_nano=100))
    assert (0, 0.0, None, None, None) == (
        value.results, value.covered_ratio, value.accepted_ratio, value.cost_nano, value.cost_nano_low,
    )  # fmt: skip


def test_what_an_accepted_result_cost() -> None:
    """All judged: all the money over what was accepted, rejected tries included; bounds by the share's interval."""
    value = value_of(UsageRow(bucket_us=0, requests=10, accepted=8, rejected=2, cost_nano=4_000, energy_mj=80_000))
    assert (1.0, 0.8, 500, 10_000) == (value.covered_ratio, value.accepted_ratio, value.cost_nano, value.energy_mj)
    low, high = wilson(8, 10)
    assert (round(400 / high), round(400 / low)) == (value.cost_nano_low, value.cost_nano_high)
    assert (round(8_000 / high), round(8_000 / low)) == (value.energy_mj_low, value.energy_mj_high)


def test_requests_that_nobody_judged_do_not_make_results_dearer() -> None:
    """Two models compare though one is judged more often."""
    often = value_of(UsageRow(bucket_us=0, requests=10, accepted=8, rejected=2, cost_nano=4_000))
    seldom = value_of(UsageRow(bucket_us=0, requests=1_000, accepted=8, rejected=2, cost_nano=400_000))
    assert (often.cost_nano, 0.01) == (seldom.cost_nano, seldom.covered_ratio)


def test_a_task_is_one_result_of_many_requests() -> None:
    """What all of them cost."""
    value = value_of(UsageRow(bucket_us=0, requests=100, accepted=2, judged=50, cost_nano=10_000))
    assert (0.5, 2_500) == (value.covered_ratio, value.cost_nano)


def test_nothing_accepted_has_a_lower_bound_only() -> None:
    """Ten failures: an accepted one costs at least that much, and nobody can say how much at most."""
    value = value_of(UsageRow(bucket_us=0, requests=10, rejected=10, cost_nano=1_000))
    assert (None, None) == (value.cost_nano, value.cost_nano_high)
    assert value.cost_nano_low == round(100 / wilson(0, 10)[1])


def test_outcomes_without_their_requests_have_a_share_and_no_cost() -> None:
    """Of a row that was filtered apart."""
    value = value_of(UsageRow(bucket_us=0, accepted=1, cost_nano=5))
    assert (1.0, None, None) == (value.accepted_ratio, value.covered_ratio, value.cost_nano)


@pytest.mark.parametrize(("amount", "whole"), [(Fraction(1, 2), 1), (Fraction(-1, 2), 0), (Fraction(7, 3), 2)])
def test_halves_go_up(amount: Fraction, whole: int) -> None:
    """Of 10⁻⁹ units: nobody is hurt, and all do the same."""
    assert whole == rounded(amount)


def test_the_interval_is_of_95_percent() -> None:
    """The quantile that is written down is that of the normal distribution."""
    assert math.isclose(0.95, math.erf(outcomes.Z_95 / math.sqrt(2)), abs_tol=1e-12)
