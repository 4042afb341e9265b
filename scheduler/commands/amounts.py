"""Amounts of a budget's measure as people write them: joules and not millijoules, currency units and not 10⁻⁹ of them.

Called by the commands that show budgets. Pure. It must never round an amount away: six digits, or all of a count.
"""

from __future__ import annotations

SMALL_UNITS = {
    "money_nano": (1_000_000_000, "money"),
    "energy_mj": (1_000, "J"),
    "gpu_us": (1_000_000, "GPU-seconds"),
    "carbon_ug": (1_000_000, "gCO2e"),
}
"""Measures that are kept in small whole units: how many make one of what people write, and its name."""


def unit(measure: str) -> str:
    """``J``, ``tokens``, ``input tokens``."""
    return SMALL_UNITS[measure][1] if measure in SMALL_UNITS else measure.replace("_", " ")


def amount(measure: str, value: int) -> str:
    """In that unit, without it."""
    if measure not in SMALL_UNITS:
        return f"{value:,}"
    return f"{value / SMALL_UNITS[measure][0]:,.6g}"
