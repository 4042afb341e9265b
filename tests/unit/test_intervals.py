"""Intervals against figures from a table and by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.intervals import T_95, mean_of, ratio_of


def test_no_value_has_no_mean_and_one_has_no_interval() -> None:
    """Nothing is claimed of a single run."""
    assert mean_of([]) is None
    found = mean_of([3.0])
    assert found is not None
    assert (3.0, None, None, 1) == (found.mean, found.low, found.high, found.num)


def test_three_values_by_hand() -> None:
    """Mean 10, deviation 1, t of two degrees 4.303: ± 4.303 ÷ √3."""
    found = mean_of([9.0, 10.0, 11.0])
    assert found is not None
    assert 10 == found.mean
    assert found.low == pytest.approx(10 - 4.303 / math.sqrt(3))
    assert found.high == pytest.approx(10 + 4.303 / math.sqrt(3))


def test_the_table_falls_towards_the_normal_quantile_and_never_below() -> None:
    """1.960 is its limit."""
    assert 30 == len(T_95)
    assert list(T_95) == sorted(T_95, reverse=True)
    assert 1.960 < T_95[-1] < 2.05
    many = mean_of([0.0, 1.0] * 500)
    assert many is not None
    assert many.high == pytest.approx(0.5 + 2.042 * 0.50025 / math.sqrt(1000), rel=1e-4)


def test_a_ratio_by_hand() -> None:
    """2 and 8 have the geometric mean 4."""
    found = ratio_of([(1.0, 2.0), (2.0, 16.0)])
    assert found is not None
    assert 4 == pytest.approx(found.mean)
    assert found.low is not None
    assert found.high is not None
    assert 16 == pytest.approx(found.low * found.high)


def test_pairs_without_a_ratio_are_left_out() -> None:
    """Zero joules are no denominator."""
    assert ratio_of([(0.0, 1.0), (1.0, 0.0)]) is None
    found = ratio_of([(0.0, 1.0), (2.0, 3.0)])
    assert found is not None
    assert (1, 1.5) == (found.num, pytest.approx(found.mean))


positive = st.floats(0.01, 1000)


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=40))
def test_which_of_two_comes_first_does_not_matter(pairs: list[tuple[float, float]]) -> None:
    """B ÷ A is one over A ÷ B, and so are the bounds, crosswise."""
    one, other = ratio_of(pairs), ratio_of([(second, first) for first, second in pairs])
    assert one is not None
    assert other is not None
    assert one.low is not None
    assert other.high is not None
    assert 1 == pytest.approx(one.mean * other.mean)
    assert 1 == pytest.approx(one.low * other.high, rel=1e-6)
    assert one.low <= one.mean <= (one.high or 0) * (1 + 1e-12)
