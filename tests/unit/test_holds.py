"""Holds: taken whole before anything starts, trimmed by the count, turned into use, and nothing stays held."""

import pytest

from scheduler.core.actions import Rejection, Tokens
from scheduler.core.attempts import Attempt, Entry, settle_of
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.cluster import Cluster
from scheduler.core.holds import Holds
from scheduler.core.request import CostPlus, Rates
from scheduler.core.rules import Rules
from tests.core_words import progress, request, view
from workers.step_curves import StepCurves
from workers.types import Outcome

TENANT = Level("tenant", "t")
HOUR = Window.parse("1h")
CURVES = StepCurves(time_s=(0.01, 1e-4, 1e-3, 0.0), energy_joules=(1.0, 0.01, 0.1, 0.0), idle_watts=50.0)


def holds(**limits: int) -> Holds:
    """Budgets of one tenant, by measure; one worker whose curves are known."""
    budgets = tuple(Budget(Measure(name), limit, HOUR) for name, limit in limits.items())
    made = Holds(Rules(budgets={TENANT: budgets}, carbon_ug_per_mj={"north": 2.0}))
    made.hear(view(curves=CURVES))
    return made


def entry_of(**values: object) -> Entry:
    return Entry(request=request(**values), place=1, waits_since_s=0.0)  # type: ignore[arg-type]


def settled(
    entry: Entry, *, outcome: Outcome = Outcome.COMPLETED, zone: str = "north", output: int = 20, gpu_us: int = 0
) -> Attempt:
    """Its only attempt, as it ended."""
    worker = Cluster().update(view(zone=zone), 0.0)
    attempt = Attempt(
        attempt_id="r-1", entry=entry, worker=worker, started_s=0.0, prompt_tokens=80, expected_tokens=20,
        last_sign_s=0.0, outcome=outcome, gpu_us=gpu_us,
    )  # fmt: skip
    entry.attempt = attempt
    tokens = Tokens(input_tokens=80, output_tokens=output)
    attempt.settled = settle_of(attempt, outcome, tokens, is_exact=True)
    return attempt


def held(made: Holds) -> dict[str, int]:
    """What is held of anything."""
    return {measure.value: amount for measure, amount in made.budgets.held_total().items() if amount}


def test_a_hold_is_the_worst_case_and_comes_back_as_far_as_it_was_not_used() -> None:
    """100 + 50 tokens held; 80 counted; 100 used at the end."""
    made, entry = holds(tokens=1000), entry_of()
    assert made.hold(entry) is None
    assert (50, {"tokens": 150}) == (entry.granted_tokens, held(made))
    attempt = settled(entry)
    attempt.advance(progress("r-1", prompt=80), 1.0)
    made.counted(attempt)
    assert {"tokens": 130} == held(made)
    made.settled(attempt)
    made.end(entry)
    assert {} == held(made)
    (state,) = made.budgets.states(entry.request)
    assert (100, 0) == (state.used, state.held)
    assert entry.hold is not None
    (told,) = entry.hold.told()
    assert ("tenant t", "tokens", "1h", 1000, 150, 100) == tuple(told.values())


def test_the_engine_is_capped_to_what_the_hold_covers() -> None:
    """And a request of which not even one token fits is refused, holding nothing."""
    made, entry = holds(tokens=120), entry_of()
    assert made.hold(entry) is None
    assert 20 == entry.granted_tokens
    answer = made.hold(entry_of(request_id="second"))
    assert isinstance(answer, Rejection)
    assert {"tokens": 120} == held(made)


def test_energy_stays_held_until_it_is_booked() -> None:
    """And is then what was measured, in the zone of the worker, once."""
    made, entry = holds(energy_mj=10**9, carbon_ug=10**9), entry_of()
    assert made.hold(entry) is None
    attempt = settled(entry)
    made.settled(attempt)
    made.end(entry)
    assert {"energy_mj", "carbon_ug"} == set(held(made))
    for _ in range(2):
        made.book_energy("r-1", energy_mj=500, gpu_us=7)
    assert ({}, 0) == (held(made), made.num_unbooked)
    assert entry.hold is not None
    assert {"energy_mj": 500, "carbon_ug": 1000} == {each["measure"]: each["settled"] for each in entry.hold.told()}


def test_what_exceeds_its_bound_is_not_the_tenants() -> None:
    """Joules depend on strangers in the batch: the budget pays what was held, the rest is counted."""
    made, entry = holds(energy_mj=10**9), entry_of()
    made.hold(entry)
    bound_mj = held(made)["energy_mj"]
    made.settled(settled(entry))
    made.end(entry)
    made.book_energy("r-1", energy_mj=bound_mj + 9, gpu_us=0)
    (state,) = made.budgets.states(entry.request)
    assert (bound_mj, 9) == (state.used, made.budgets.excess.amounts["energy_mj"])


@pytest.mark.parametrize(("took_us", "paid_nano"), [(7, 80 + 7), (10**9, None)])
def test_what_energy_costs_is_corrected_when_it_is_booked(took_us: int, paid_nano: int | None) -> None:
    """Charged by the estimate first; in the end by what was measured, and never more than was held."""
    rates = Rates(input_nano=1_000_000, plus=CostPlus(gpu_nano_per_s=1_000_000))
    made, entry = holds(money_nano=10**9), entry_of(rates=rates)
    assert made.hold(entry) is None
    assert entry.hold is not None
    most_nano = entry.hold.plus_nano
    assert {"money_nano": 100 + most_nano} == held(made)
    attempt = settled(entry, gpu_us=20)
    assert attempt.settled is not None
    assert (80 + 20, 20, most_nano) == (
        attempt.settled.cost_nano, attempt.settled.plus_nano, attempt.settled.most_plus_nano
    )  # fmt: skip
    made.settled(attempt)
    made.end(entry)
    made.book_energy("r-1", energy_mj=0, gpu_us=took_us)
    (state,) = made.budgets.states(entry.request)
    assert (paid_nano or 80 + most_nano, 0) == (state.used, state.held)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.ABORTED])
def test_work_in_vain_uses_nothing_of_a_budget(outcome: Outcome) -> None:
    """The operator pays tokens and joules."""
    made, entry = holds(tokens=1000, energy_mj=10**9), entry_of()
    made.hold(entry)
    made.settled(settled(entry, outcome=outcome))
    made.end(entry)
    assert {} == held(made)
    made.book_energy("r-1", energy_mj=500, gpu_us=7)
    assert [0, 0] == [state.used for state in made.budgets.states(entry.request)]
    assert 0 == made.num_unbooked


def test_a_question_about_tokens_holds_nothing() -> None:
    """Even where nothing is left."""
    made, entry = holds(tokens=0), entry_of(is_counting=True, prompt_tokens_bound=0, max_output_tokens=0)
    assert made.hold(entry) is None
    made.settled(settled(entry))
    made.end(entry)
    assert 0 == made.num_unbooked


def test_several_sequences_keep_the_bound_of_their_prompts() -> None:
    """Whether they share one prompt is known at the end only."""
    made, entry = holds(tokens=1000), entry_of(num_sequences=2)
    made.hold(entry)
    made.counted(settled(entry))
    assert {"tokens": 200} == held(made)


def test_other_limits_leave_what_is_held() -> None:
    """And count for the next one."""
    made, entry = holds(tokens=1000), entry_of()
    made.hold(entry)
    made.reload(Rules(budgets={TENANT: (Budget(Measure.TOKENS, 160, HOUR),)}))
    assert {"tokens": 150} == held(made)
    assert isinstance(made.hold(entry_of(request_id="second")), Rejection)


# -- of an earlier life


def test_energy_of_what_was_charged_in_an_earlier_life_is_carried_by_its_budgets() -> None:
    """All of it, with the carbon of its zone, once; nothing is held for it and nobody's bound learns from it."""
    made = holds(energy_mj=10**6, gpu_us=10**6, carbon_ug=10**6)
    made.owe("r-1", request(), "north")
    for _ in range(2):
        assert None is made.book_energy("r-1", energy_mj=50, gpu_us=7)
        assert [50, 7, 100] == [state.used for state in made.budgets.states(request())]
    assert ({}, 0) == (held(made), made.num_unbooked)


def test_money_that_waits_for_a_measurement_is_held_meanwhile() -> None:
    """The most it may be; then the difference is used, and the rest is free."""
    made = holds(money_nano=1_000)
    made.owe("r-1", request(), "", most_nano=300, difference_nano=lambda energy_mj, gpu_us: energy_mj + gpu_us)
    assert {"money_nano": 300} == held(made)
    made.book_energy("r-1", energy_mj=100, gpu_us=20)
    (state,) = made.budgets.states(request())
    assert (120, 0, 880) == (state.used, state.held, state.left)


def test_energy_of_nobodys_attempt_changes_nothing() -> None:
    """An earlier control plane's, of which nothing is known."""
    made = holds(energy_mj=10**6)
    assert None is made.book_energy("r-9", energy_mj=50, gpu_us=7)
    assert [0] == [state.used for state in made.budgets.states(request())]
