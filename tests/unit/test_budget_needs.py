"""The worst case of a request, and the largest output that accounts cover."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.budget_accounts import Account, Budget, Level, Measure
from scheduler.core.budget_needs import least_output, most_covered, needed, plus_of, short
from scheduler.core.budget_windows import Window
from scheduler.core.energy_bounds import EnergyBound
from scheduler.core.request import CostPlus, Rates
from tests.core_words import request, thorough

RATES = Rates(input_nano=1_000_000, cached_nano=2_000_000, output_nano=4_000_000)


def account(measure: Measure, limit: int) -> Account:
    window = None if measure is Measure.CONCURRENCY else Window.parse("1h")
    return Account(Level("tenant", "t"), Budget(measure, limit, window), 0)


def bound(prompt_tokens: int, output_tokens: int) -> EnergyBound:
    """1 mJ a token, 2 µs, 3 µg."""
    tokens = prompt_tokens + output_tokens
    return EnergyBound(tokens, 2 * tokens, 3 * tokens)


def never(prompt_tokens: int, output_tokens: int) -> EnergyBound:
    raise AssertionError("energy was asked")


def test_the_worst_case_of_every_part() -> None:
    """All of the prompt at its dearer rate, found cached or not; the output of every sequence; one request."""
    asked = request(rates=RATES, num_sequences=3)
    assert [100, 100, 60, 2 * 100 + 4 * 60, 120, 240, 360, 1, 1] == needed(asked, 100, 20, bound)
    assert [0, 0, 0] == needed(asked, 100, 20, None)[4:7]


@thorough
@given(tokens=st.tuples(st.integers(0, 500), st.integers(0, 500)), cached=st.integers(0, 500))
def test_no_cost_is_above_the_worst_case(tokens: tuple[int, int], cached: int) -> None:
    """Whatever part of the prompt is found cached, and however the cost is rounded."""
    odd = Rates(7, 300_001, 999_983)
    prompt, output = tokens
    cost = odd.cost_nano(input_tokens=prompt, cached_tokens=min(cached, prompt), output_tokens=output)
    assert cost <= needed(request(rates=odd), prompt, output, None)[3]


def test_nothing_is_asked_for_where_nothing_is_generated() -> None:
    """Else a token of each sequence is the least."""
    assert [0, 1] == [least_output(request(max_output_tokens=most)) for most in (0, 7)]


@pytest.mark.parametrize(("limit", "most"), [(1_000, 50), (130, 30), (101, 1), (100, None)])
def test_the_largest_output_that_is_covered(limit: int, most: int | None) -> None:
    """By hard accounts and by those of energy alike."""
    for measure in (Measure.TOKENS, Measure.ENERGY_MJ):
        one, is_energy = [account(measure, limit)], measure is Measure.ENERGY_MJ
        covered = most_covered([] if is_energy else one, one if is_energy else [], request(), 100, bound)
        assert most == (None if covered is None else covered.output_tokens)
        if covered is not None:
            energy = None if measure is Measure.TOKENS else bound
            assert (energy, needed(request(), 100, covered.output_tokens, energy)) == (covered.bound, covered.needs)


def test_energy_is_asked_only_where_the_rest_is_covered() -> None:
    """It costs more than all the others."""
    few, enough = account(Measure.TOKENS, 10), account(Measure.TOKENS, 1_000)
    assert most_covered([few], [account(Measure.GPU_US, 1)], request(), 100, never) is None
    covered = most_covered([enough], [], request(), 100, never)
    assert covered is not None
    assert (50, None) == (covered.output_tokens, covered.bound)
    assert short(few, request(), 100, never) is not None


def test_a_shortage_says_what_is_needed_and_which_prompt_would_do() -> None:
    """None where the least is covered; no prompt where the prompt is not what counts."""
    few = account(Measure.TOKENS, 80)
    assert (few, 101, 79) == short(few, request(), 100, bound)
    assert short(few, request(), 79, bound) is None
    assert None is short(account(Measure.REQUESTS, 1), request(), 100, bound)
    requests = short(account(Measure.REQUESTS, 0), request(), 100, bound)
    assert requests is not None
    assert (1, None) == (requests.needed, requests.fits_prompt_tokens)


PAID = Rates(1_000_000, plus=CostPlus(gpu_nano_per_s=10_000_000))
"""A nano a prompt token, ten a GPU-microsecond."""


def test_energy_that_is_paid_for_is_held_as_money() -> None:
    """By the bound that budgets of energy hold by, whether or not there is one."""
    needs = needed(request(rates=PAID), 100, 20, bound)
    assert (100 + 10 * 240, 10 * 240) == (needs[3], plus_of(request(rates=PAID), needs))
    assert 0 == plus_of(request(rates=RATES), needs)
    for soft in ([], [account(Measure.GPU_US, 10**6)]):
        covered = most_covered([account(Measure.MONEY_NANO, 2_500)], soft, request(rates=PAID), 100, bound)
        assert covered is not None
        assert (20, 2_500, bound) == (covered.output_tokens, covered.needs[3], covered.bound)


def test_a_shortage_of_money_counts_the_energy() -> None:
    """A prompt that needs less of it would fit."""
    few = account(Measure.MONEY_NANO, 1_000)
    assert (few, 100 + 10 * 202, 46) == short(few, request(rates=PAID), 100, bound)
    assert most_covered([few], [], request(rates=PAID), 100, bound) is None
