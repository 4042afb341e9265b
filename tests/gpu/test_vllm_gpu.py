"""A worker with the CUDA build of vLLM, metered by NVML: needs a GPU, ``vllm`` and a model on disk.

The model is JOULEWAY_GPU_MODEL, a folder or hub name of a chat model that fits the board.
"""

import asyncio
import importlib.util
import json
import os
from typing import Any

import pytest

from workers.build import build_worker
from workers.types import Call, Grade, MeterSpec, Report, UsageRecord, WindowRecord, WorkerSpec

pytestmark = pytest.mark.gpu

NUM_REQUESTS = 64


@pytest.fixture(scope="module")
def model() -> str:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    name = os.environ.get("JOULEWAY_GPU_MODEL", "")
    if not name:
        pytest.skip("JOULEWAY_GPU_MODEL names no model for the CUDA build of vLLM")
    return name


def spec(model: str) -> WorkerSpec:
    import torch

    return WorkerSpec(
        worker_id="gpu-0",
        engine="vllm",
        model="gpu-model",
        engine_args={"model": model, "max_model_len": 2048, "gpu_memory_utilization": 0.6},
        meter=MeterSpec(kind="nvml"),
        num_gpus=1,
        gpu_uuids=(f"GPU-{torch.cuda.get_device_properties(0).uuid}",),
        window_s=5.0,
    )


async def served(model: str) -> list[Any]:
    """Every record of a worker that answered ``NUM_REQUESTS`` chats and stopped."""
    worker = build_worker(spec(model))
    records: list[Any] = []
    await worker.start()

    async def follow() -> None:
        async for report in worker.reports(1):
            assert isinstance(report, Report)
            records.extend(numbered.record for numbered in report.records)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.1)
    worker.command(1, [call(index) for index in range(NUM_REQUESTS)])
    async with asyncio.timeout(300):
        while sum(isinstance(record, UsageRecord) for record in records) < NUM_REQUESTS:
            await asyncio.sleep(0.1)
    await worker.stop()
    await asyncio.sleep(1.5)
    following.cancel()
    return records


def call(index: int) -> Call:
    body = {
        "model": "gpu-model",
        "messages": [{"role": "user", "content": f"Count from {index} upwards, in words."}],
        "max_tokens": 200,
        "ignore_eos": True,
        "stream": True,
    }
    return Call(attempt_id=f"req-{index}-1", path="/v1/chat/completions", body=json.dumps(body).encode())


def test_joules_of_a_gpu_worker_add_up(model: str) -> None:
    """Grade A, the balance exact in every window, and no token counted twice under asynchronous scheduling."""
    records = asyncio.run(served(model))
    windows = [record for record in records if isinstance(record, WindowRecord)]
    usages = [record for record in records if isinstance(record, UsageRecord)]
    serving = [window for window in windows if not window.calibrating]
    assert {window.grade for window in serving} == {Grade.A}
    for window in windows:
        parts_mj = window.idle_mj + window.overhead_mj + window.unattributed_mj + window.in_flight_mj
        assert window.meter_mj == parts_mj
    differences = [sequence.token_difference for usage in usages for sequence in usage.sequences]
    assert differences == [0] * NUM_REQUESTS
    assert [usage.output_tokens for usage in usages] == [200] * NUM_REQUESTS
