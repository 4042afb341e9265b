"""Losses at seeded times: as many as asked, within the span, the same for the same seed."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.simulation.faults import losses
from tests.core_words import thorough


@thorough
@given(st.integers(0, 50), st.integers(1, 20), st.floats(0.1, 1e5), st.integers(0, 1_000))
def test_losses_fall_in_the_run_and_on_its_engines(num: int, num_workers: int, span_s: float, seed: int) -> None:
    found = losses(num, num_workers=num_workers, span_s=span_s, seed=seed)
    assert num == len(found)
    assert sorted(found) == found
    assert all(0 <= loss.at_s <= span_s and 0 <= loss.worker < num_workers for loss in found)
    assert losses(num, num_workers=num_workers, span_s=span_s, seed=seed) == found


def test_another_seed_loses_others() -> None:
    assert losses(5, num_workers=8, span_s=100.0, seed=1) != losses(5, num_workers=8, span_s=100.0, seed=2)
