"""The soak's counting: what happened in a run of seeds, and every breach with its seed."""

import pytest

from benchmarks import simulation
from scheduler.simulation.trace import Event


def test_seeds_are_run_and_counted() -> None:
    """Two seeds of twenty requests; each request ends once, if it was not cut off by a restart."""
    counts, breaches = simulation.run_seeds(1, 2, 20)
    assert ([], 2) == (breaches, counts["seeds"])
    assert counts["requests"] == 60, "the second seed presses on shares: it has twice as many"
    assert 20 < sum(num for word, num in counts.items() if word.split(":")[0] in ENDS) <= 60


ENDS = {"completed", "refused", "failed", "aborted"}


def test_a_breach_is_told_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be run again."""

    def found(trace: list[Event]) -> list[str]:
        return ["1.000 s: wrong"]

    monkeypatch.setattr(simulation, "check", found)
    _, breaches = simulation.run_seeds(7, 1, 5)
    assert ["seed 7: 1.000 s: wrong"] == breaches
