"""A catalogue's keys: what two spellings share, and how few GPUs hold a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.catalogue_sections import USABLE_RATIO, GpuConfig, ModelFactsConfig, key_of

GPU = GpuConfig(
    memory_gb=80,
    board_watts=700,
    loaded_idle_watts=119,
    parked_watts=60,
    start_watts=200,
    usd_per_gpu_hour=1,
    source="a",
)


def model(weights_gb: float) -> ModelFactsConfig:
    return ModelFactsConfig(parameters_billions=1, weights_gb=weights_gb, layers=1, kv_bytes_per_token=1)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidiah10080gbhbm3"),
        ("org/Name-1.5B", "name15b"),
        ("a/b/C", "c"),
        ("--", ""),
        ("", ""),
    ],
)
def test_what_two_spellings_share(name: str, key: str) -> None:
    assert key == key_of(name)


@pytest.mark.parametrize(("weights_gb", "num_gpus"), [(0.1, 1), (72, 1), (72.1, 2), (144, 2), (145, 4), (500, 8)])
def test_gpus_that_hold_a_model(weights_gb: float, num_gpus: int) -> None:
    """Worked by hand: 72 usable GB each."""
    assert num_gpus == model(weights_gb).fewest_gpus(GPU)


@given(st.floats(0.1, 5000))
def test_half_as_many_would_not_hold_it(weights_gb: float) -> None:
    num_gpus, usable_gb = model(weights_gb).fewest_gpus(GPU), USABLE_RATIO * GPU.memory_gb
    assert weights_gb <= num_gpus * usable_gb * (1 + 1e-9)
    assert 1 == num_gpus or num_gpus * usable_gb / 2 < weights_gb * (1 + 1e-9)
