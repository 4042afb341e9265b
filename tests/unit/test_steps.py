"""Values that change at known moments: what holds when, when the next change is, and how several become one."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.steps import Steps, combined
from tests.core_words import thorough

MOMENTS = st.lists(st.integers(-50, 50), unique=True, max_size=8).map(sorted)
DAY = Steps.of(1, [(10.0, 2), (20.0, 3)])


@st.composite
def steps(draw: st.DrawFn) -> Steps[int]:
    changes = [(float(at_s), draw(st.integers(-2, 2))) for at_s in draw(MOMENTS)]
    return Steps.of(draw(st.integers(-2, 2)), changes)


@pytest.mark.parametrize(("at_s", "value"), [(-1e9, 1), (9.99, 1), (10.0, 2), (19.99, 2), (20.0, 3), (1e9, 3)])
def test_a_change_counts_from_its_own_moment_on(at_s: float, value: int) -> None:
    """Before the first one and after the last one something holds as well."""
    assert value == DAY.at(at_s)


@pytest.mark.parametrize(("at_s", "next_s"), [(0.0, 10.0), (9.99, 10.0), (10.0, 20.0), (20.0, inf)])
def test_the_next_change_is_known(at_s: float, next_s: float) -> None:
    """It lies after the moment that is asked for."""
    assert next_s == DAY.next_s(at_s)


def test_changes_between_two_moments_exclude_both() -> None:
    """A stretch is cut where something changes inside it."""
    assert (10.0, 20.0) == DAY.between(9.0, 21.0)
    assert () == DAY.between(10.0, 20.0)


def test_what_never_changes_is_flat() -> None:
    """Also where it is said twice."""
    assert Steps.always(1).is_flat
    assert Steps.of(1, [(5.0, 1)]).is_flat
    assert not DAY.is_flat


def test_a_change_to_the_same_is_none() -> None:
    """Neighbours differ, so that the next change is one."""
    assert Steps((10.0,), (1, 2)) == Steps.of(1, [(5.0, 1), (10.0, 2), (15.0, 2)])
    assert Steps((20.0,), (False, True)) == DAY.map(lambda value: value > 2)


def test_moments_out_of_order_are_a_mistake_of_the_caller() -> None:
    """They are sorted where files are read."""
    with pytest.raises(AssertionError, match="not in order"):
        Steps((20.0, 10.0), (1, 2, 3))


def test_another_clock_shows_the_same_values_at_other_times() -> None:
    """And moments that its resolution cannot tell apart are one."""
    assert (2, 3) == (DAY.shifted(100.0).at(110.0), DAY.shifted(100.0).at(120.0))
    near = Steps.of(1, [(1e-9, 2), (2e-9, 3)]).shifted(1e9)
    assert (1, 3) == (near.values[0], near.values[-1])


@thorough
@given(steps(), steps(), st.integers(-60, 60))
def test_a_combination_is_at_every_moment_that_of_its_parts(one: Steps[int], other: Steps[int], at_s: int) -> None:
    """Wherever either of them changes."""
    both = combined(lambda left, right: (left, right), one, other)
    assert (one.at(at_s), other.at(at_s)) == both.at(at_s)
    assert both.next_s(at_s) == min(one.next_s(at_s), other.next_s(at_s))
