"""Rounded amounts add up, whatever they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.rounding import largest_remainder

AMOUNTS = st.lists(st.floats(0, 1e12, allow_nan=False), min_size=1, max_size=60)


@given(AMOUNTS, st.integers(-(10**12), 10**12))
def test_the_parts_add_up_to_the_total(amounts: list[float], total: int) -> None:
    """To the last unit, for either sign."""
    assert total == int(largest_remainder(np.array(amounts), total).sum())


@given(AMOUNTS, st.integers(0, 10**9))
def test_no_part_is_a_unit_or_more_from_its_quota(amounts: list[float], total: int) -> None:
    """Rounding is fair: nobody is rounded twice."""
    values = np.array(amounts)
    if values.sum() <= 0:
        return
    quotas = values / values.sum() * total
    assert np.all(np.abs(largest_remainder(values, total) - quotas) < 1 + 1e-3)


@given(AMOUNTS, st.integers(0, 10**9))
def test_an_amount_of_nothing_gets_nothing(amounts: list[float], total: int) -> None:
    """A null player stays one, as long as somebody else is there."""
    values = np.array([*amounts, 0.0, 1.0])
    assert 0 == largest_remainder(values, total)[-2]


def test_the_largest_remainders_get_the_missing_units() -> None:
    """1.6, 0.7 and 0.7 of 3: the two sevens go up, then the six does not."""
    assert [1, 1, 1] == largest_remainder(np.array([1.6, 0.7, 0.7]), 3).tolist()


def test_ties_go_to_the_earlier() -> None:
    """The same input gives the same output, always."""
    assert [1, 1, 0] == largest_remainder(np.array([1.0, 1.0, 1.0]), 2).tolist()


def test_without_any_weight_all_goes_to_the_first() -> None:
    """The first is overhead where this is used: energy without a payer is never lost."""
    assert [7, 0] == largest_remainder(np.zeros(2), 7).tolist()
    assert [-7, 0] == largest_remainder(np.array([np.inf, 1.0]), -7).tolist()
    assert [] == largest_remainder(np.zeros(0), 0).tolist()


@pytest.mark.parametrize("total", [2**60 + 12_345, -(2**60) - 1])
def test_totals_beyond_a_floats_integers_add_up(total: int) -> None:
    """Above 2**53 quotas are off by whole units; the sum is not."""
    assert total == sum(int(part) for part in largest_remainder(np.array([1.0, 2.0, 3.0, 1e-9]), total))
