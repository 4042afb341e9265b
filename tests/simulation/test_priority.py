"""A flood of batch work leaves the priority band its place, in seconds; ``benchmarks/priority.py`` measures it long."""

import numpy as np
import pytest

from benchmarks import priority
from scheduler.core.request import Band
from scheduler.core.rules import Rules
from scheduler.simulation.traces import Arrival


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority, "WARM_UP_S", 15.0)
    monkeypatch.setattr(priority, "SPAN_S", 15.0)


def arrivals(band: Band, rate_per_s: float, seed: int) -> list[Arrival]:
    """Evenly drawn times and lengths."""
    chance = np.random.default_rng(seed)
    times_s = np.sort(chance.uniform(0.0, 30.0, size=round(30.0 * rate_per_s)))
    return [
        Arrival(
            arrival_s=float(at_s),
            prompt_tokens=int(chance.integers(500, 1_500)),
            output_tokens=int(chance.integers(100, 300)),
            prompt_tokens_bound=1_500,
            tenant=band.name.lower(),
            band=band,
        )
        for at_s in times_s
    ]


def test_a_flood_delays_no_priority_request_in_the_core() -> None:
    """Its reserve is there when it comes, nobody has to be preempted for it, and the flood goes on."""
    high = arrivals(Band.PRIORITY, 12.0, 1)
    both = sorted(high + arrivals(Band.FLEX, 200.0, 2), key=lambda each: each.arrival_s)
    found = priority.run(both, Rules())
    assert found.high_queue_s_p99 <= found.step_s_p95
    assert found.low_ended > 100
    assert found.preempted == 0


def test_a_flood_of_a_better_band_leaves_a_worse_one_only_its_age() -> None:
    """Without it nothing of the worse one starts."""
    low = [each for each in arrivals(Band.FLEX, 200.0, 2) if each.arrival_s > 5.0]
    flood = sorted([*arrivals(Band.DEFAULT, 200.0, 3), *low], key=lambda each: each.arrival_s)
    assert priority.run(flood, Rules(ageing_s=1e9)).low_ended == 0
    assert priority.run(flood, Rules(ageing_s=5.0)).low_ended > 0
