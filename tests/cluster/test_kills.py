"""SIGKILL at random instants: what a client saw end is in the ledger, once; every joule of the counter is booked."""

from collections.abc import Iterator

import pytest

from tests.cluster.kills import kill_under_load, simulated_workers
from tests.cluster.plane import MODEL
from tests.cluster.standing import Place, place, standing_ray


@pytest.fixture(scope="module")
def at() -> Iterator[Place]:
    with place() as made, standing_ray(made):
        yield made


@pytest.mark.timeout(600)
def test_ten_kills_lose_nothing_and_double_nothing(at: Place) -> None:
    """Control planes and workers, under load, SQLite."""
    prices = {MODEL: {"default_output_tokens": 64, "normalizer": "none", "price": {"input": 0.2, "output": 0.8}}}
    config = at.configuration(simulated_workers(at), models=prices)
    run = kill_under_load(at, config, num_kills=10, seed=0)
    assert [] == run.problems
    assert 10 == run.kills.total()
    assert len(run.ended) > 20
