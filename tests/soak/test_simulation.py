"""A million requests through simulated faults, and no promise of the core is broken.

JOULEWAY_SOAK_REQUESTS says how many; a whole run is recorded in ``benchmarks/results/simulation.json``.
"""

import os

import pytest

from benchmarks.record import record
from benchmarks.simulation import run

MILLION = 1_000_000
NUM_REQUESTS = int(os.environ.get("JOULEWAY_SOAK_REQUESTS", str(MILLION)))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(60 + NUM_REQUESTS / 50)]


def test_a_million_requests_see_no_breach() -> None:
    """Budgets, shares, order, residency, one settlement each: recomputed from every trace."""
    values = run(num_requests=NUM_REQUESTS)
    if NUM_REQUESTS >= MILLION:
        record(
            "simulation",
            values,
            command="make soak-simulation",
            what="the production core on virtual time under simulated faults, checked from its traces alone",
        )
    assert [] == values["breaches"]
    assert values["counts"]["requests"] >= NUM_REQUESTS
    assert values["counts"]["completed"] > NUM_REQUESTS / 4
