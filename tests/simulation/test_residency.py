"""No data is placed where it may not be: random worlds; 100,000 of them in ``benchmarks/residency.py``."""

import numpy as np
import pytest

from benchmarks.residency import run
from scheduler.core.data_policy import DataPolicy
from scheduler.core.request import Request

NUM_CASES = 3_000


def test_no_data_leaves_its_zones() -> None:
    """First tries, retries and what goes on after a preemption; and whoever may run nowhere is told so at once."""
    counts, bad = run(NUM_CASES)
    assert [] == bad, f"seeds {bad[:20]}: {dict(counts)}"
    assert all(counts[how] >= 20 for how in ("first tries", "retries", "after preemption", "refused", "workers lost"))


@pytest.mark.parametrize("name", ["may", "mismatch"])
def test_the_judge_sees_a_policy_that_looks_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that finds nothing must be one that would."""

    def everywhere(self: DataPolicy, request: Request, zones: object) -> object:
        return True if isinstance(zones, str) else np.ones(len(zones), dtype=np.bool_)  # type: ignore[arg-type]

    monkeypatch.setattr(DataPolicy, "may", everywhere)
    monkeypatch.setattr(DataPolicy, "mask", everywhere)
    if name == "mismatch":
        monkeypatch.setattr(DataPolicy, "mismatch", lambda self, request: False)
    counts, bad = run(200)
    assert bad
    assert counts["outside"] > 0
    assert name != "mismatch" or counts["not refused"] > 0
