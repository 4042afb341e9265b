"""Rounds amounts to integers that still add up.

Called by ``workers.attribution``. It must never know what the amounts are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest_remainder(amounts: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Integers proportional to ``amounts`` (≥ 0) that add up to ``total`` (either sign), shape of ``amounts``.

    Each is its quota rounded down, and those with the largest remainders get one more; ties go to the earlier one, an
    amount of 0 gets nothing. All of the total goes to the first where the amounts add up to 0.
    """
    result = np.zeros(len(amounts), dtype=np.int64)
    weight = float(amounts.sum())
    if weight <= 0 or not np.isfinite(weight):
        result[:1] = total
        return result
    shares = amounts / weight
    quotas = shares * total
    result[:] = np.floor(quotas)
    missing = total - sum(int(value) for value in result)
    if missing:
        # Above 2**53 a float's own step exceeds 1: the first pass brings the error below one per amount.
        paying = np.flatnonzero(amounts > 0)
        whole = int(missing / len(paying))
        result[paying] += whole
        missing -= whole * len(paying)
        order = paying[np.argsort(-(quotas - np.floor(quotas))[paying], kind="stable")]
        chosen = order[:missing] if missing >= 0 else order[::-1][:-missing]
        result[chosen] += 1 if missing >= 0 else -1
    return result
