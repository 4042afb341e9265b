"""The engine's dummy work: its mix, its bound, nobody pays."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from workers.engines.vllm_calibration import run_mix
from workers.engines.vllm_ids import CALIBRATION_PREFIX


class Engine:
    """Puts a token out every millisecond; notes who asked for what."""

    def __init__(self, runner_type: str = "generate") -> None:
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 1000, runner_type=runner_type)
        self.asked: list[tuple[str, int, int]] = []
        self.running = 0
        self.most_running: list[int] = []

    async def generate(self, prompt: Any, params: Any, name: str) -> AsyncIterator[int]:
        self.asked.append((name, len(prompt), params.max_tokens))
        self.running += 1
        self.most_running.append(self.running)
        try:
            for number in range(params.max_tokens):
                await asyncio.sleep(0.001)
                yield number
        finally:
            self.running -= 1

    async def encode(self, prompt: Any, params: Any, name: str) -> AsyncIterator[int]:
        assert "embed" == params.task
        self.asked.append((name, len(prompt), 0))
        self.running += 1
        self.most_running.append(self.running)
        await asyncio.sleep(0.001)
        self.running -= 1
        yield 0

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("token_embed", "embed")


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names of vLLM's, without vLLM."""
    package, inputs = ModuleType("vllm"), ModuleType("vllm.inputs")
    package.SamplingParams = package.PoolingParams = SimpleNamespace  # type: ignore[attr-defined]
    inputs.tokens_input = list  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.inputs", inputs)


async def test_the_mix_is_small_batches_large_batches_and_prompts() -> None:
    """1, 4 and 16 sequences, then prompts; each under a name that nobody pays for; all ended in time."""
    engine = Engine()
    started_s = time.monotonic()
    await run_mix(engine, max_s=0.15, max_len_tokens=2048, kv_tokens=40_000)
    assert 0.14 < time.monotonic() - started_s < 0.6
    assert 16 == max(engine.most_running)
    assert [16] * 21 == [prompt for _, prompt, _ in engine.asked[:21]]
    assert {512} == {prompt for _, prompt, _ in engine.asked[21:]}
    assert all(name.startswith(CALIBRATION_PREFIX) for name, _, _ in engine.asked)
    assert len(engine.asked) == len({name for name, _, _ in engine.asked})
    assert 0 == engine.running


async def test_it_fits_the_engine() -> None:
    """Little KV, short contexts: prompts and outputs shrink, nothing is refused."""
    engine = Engine()
    await run_mix(engine, max_s=0.05, max_len_tokens=64, kv_tokens=160)
    assert all(prompt + output <= 64 for _, prompt, output in engine.asked)
    assert all(prompt + output <= 10 for _, prompt, output in engine.asked[5:21])


async def test_a_model_that_generates_nothing_is_asked_for_nothing() -> None:
    """Prompts in batches of 1, 4, 16 and two long ones, one batch after the other, within the same bound."""
    engine = Engine("pooling")
    started_s = time.monotonic()
    await run_mix(engine, max_s=0.15, max_len_tokens=256, kv_tokens=4096)
    assert 0.14 < time.monotonic() - started_s < 0.6
    assert (16, {16, 128}, {0}) == (
        max(engine.most_running), {prompt for _, prompt, _ in engine.asked}, {output for *_, output in engine.asked},
    )  # fmt: skip
    assert len(engine.asked) > 21 + 2
    assert all(name.startswith(CALIBRATION_PREFIX) for name, _, _ in engine.asked)
