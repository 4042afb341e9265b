"""Small whole units as exact decimal text: 10⁻⁹ currency units as currency units, millijoules as joules.

Called by whatever shows or exports amounts. Pure. It must never make a float of them.
"""

from __future__ import annotations

NANO_PLACES = 9
MICRO_PLACES = 6
MILLI_PLACES = 3


def decimal_text(amount: int, places: int) -> str:
    """``amount`` × 10^-``places``, with all its places, zeros too."""
    whole, rest = divmod(abs(amount), 10**places)
    return f"{'-' if amount < 0 else ''}{whole}.{rest:0{places}d}"
