"""Amounts as text lose nothing."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.decimals import MICRO_PLACES, MILLI_PLACES, NANO_PLACES, decimal_text


@pytest.mark.parametrize(
    ("amount", "places", "text"),
    [
        (0, NANO_PLACES, "0.000000000"),
        (1, NANO_PLACES, "0.000000001"),
        (-1, MILLI_PLACES, "-0.001"),
        (1_500_000, MICRO_PLACES, "1.500000"),
        (-12_345, MILLI_PLACES, "-12.345"),
    ],
)
def test_the_text_of_an_amount(amount: int, places: int, text: str) -> None:
    """Every place is there; corrections may be negative."""
    assert text == decimal_text(amount, places)


@given(amount=st.integers(-(10**27), 10**27), places=st.integers(1, 9))
def test_it_is_exact(amount: int, places: int) -> None:
    """Read back, it is the same number."""
    assert Decimal(amount) == Decimal(decimal_text(amount, places)) * 10**places
