"""One real vLLM for all tests of this folder: starting it takes most of their time."""

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are modules of the checkout

from benchmarks.token_identity import small_kv_spec
from benchmarks.worker_run import WorkerRun
from workers.engines.smollm2 import SMOLLM2

PART_TOKENS = 384


@pytest.fixture(scope="session")
def weights() -> Path:
    """The demo's weights, which `make setup` built."""
    folder = SMOLLM2.default_folder()
    if not SMOLLM2.is_complete(folder):
        pytest.skip("the demo's weights are not built: run `make setup`")
    return folder


@pytest.fixture(scope="session")
def shared_run(weights: Path) -> Iterator[WorkerRun]:
    """A worker with real vLLM and little KV room, on its own thread; ``test_vllm_z_death.py`` kills it at the end."""
    spec = small_kv_spec(calibration_s=3.0, window_s=2.0)
    # Beside other requests longer prompts are computed in parts.
    spec = msgspec.structs.replace(spec, engine_args={**spec.engine_args, "long_prefill_token_threshold": PART_TOKENS})
    with WorkerRun(spec) as run:
        yield run


@pytest.fixture
def run(shared_run: WorkerRun) -> Iterator[WorkerRun]:
    """The shared worker; a test that leaves calls behind fails."""
    yield shared_run
    left = [name for name, reply in shared_run.replies.items() if reply.usage is None]
    assert [] == left, "calls without an end were left behind"
