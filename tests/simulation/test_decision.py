"""A decision stays fast at 100 and 1,000 workers with 10,000 requests queued; figures: benchmarks/decision.py."""

import pytest

from benchmarks.decision import BOUNDS_MS, measure

ROOM_FOR_A_BUSY_MACHINE = 4


@pytest.mark.parametrize("num_workers", sorted(BOUNDS_MS))
def test_a_decision_is_within_its_bound(num_workers: int) -> None:
    """The median, four times as long as on a quiet machine: it catches a loop over requests, not a busy neighbour."""
    figures = measure(num_workers, num_decisions=300)
    decision = figures["decision"]
    assert isinstance(decision, dict)
    assert decision["p50_ms"] <= ROOM_FOR_A_BUSY_MACHINE * BOUNDS_MS[num_workers], figures
