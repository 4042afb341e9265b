"""Amounts are written in the units that people use, and none is rounded away."""

import pytest

from scheduler.commands.amounts import amount, unit
from scheduler.core.budget_accounts import Measure


@pytest.mark.parametrize(
    ("measure", "value", "expected"),
    [
        ("tokens", 1_234_567, "1,234,567 tokens"),
        ("input_tokens", 5, "5 input tokens"),
        ("requests", 0, "0 requests"),
        ("money_nano", 1_500_000_000, "1.5 money"),
        ("money_nano", 1, "1e-09 money"),
        ("energy_mj", 1_234_567, "1,234.57 J"),
        ("gpu_us", 250_000, "0.25 GPU-seconds"),
        ("carbon_ug", 3, "3e-06 gCO2e"),
    ],
)
def test_an_amount_and_its_unit(measure: str, value: int, expected: str) -> None:
    """Six digits of what is kept in small units, all of a count."""
    assert expected == f"{amount(measure, value)} {unit(measure)}"


def test_every_small_unit_of_the_core_is_known() -> None:
    """A measure with a unit at its end is never shown as a bare count."""
    small = {measure for measure in Measure if measure.rpartition("_")[2] in ("nano", "mj", "us", "ug")}
    assert 4 == len(small)
    assert all("_" not in unit(measure) and unit(measure) != measure.replace("_", " ") for measure in small)
