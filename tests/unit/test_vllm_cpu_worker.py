"""The CPU worker over a stand-in for vLLM's: a token that is thrown away costs a seed no draw. Real: tests/engine."""

import importlib
import random
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


class Runner:
    """vLLM's model runner as far as it samples: a row with a generator draws from it, and gives it back by offset."""

    def __init__(self, *thrown_away: bool) -> None:
        self.seeded = {row: random.Random(row) for row in range(len(thrown_away))}
        self.input_batch = SimpleNamespace(generators=dict(self.seeded))
        self.discard_request_mask = SimpleNamespace(np=np.array(thrown_away))
        self.drawn: list[list[int]] = []

    def sample_tokens(self, grammar_output: Any) -> str:
        self.drawn.append(sorted(self.input_batch.generators))
        for row, generator in self.input_batch.generators.items():
            if self.discard_request_mask.np[row]:
                raise RuntimeError("CPU Generator does not use offset")
            generator.random()
        return f"sampled under {grammar_output}"


class CPUWorker:
    """vLLM's worker: it passes on."""

    def __init__(self, runner: Any) -> None:
        self.model_runner = runner

    def sample_tokens(self, grammar_output: Any) -> Any:
        return self.model_runner.sample_tokens(grammar_output)


@pytest.fixture
def worker_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, imported over the stand-in."""
    for name in ("vllm", "vllm.v1", "vllm.v1.worker", "vllm.v1.worker.cpu_worker"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm.v1.worker.cpu_worker"].CPUWorker = CPUWorker  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "workers.engines.vllm_cpu_worker", raising=False)
    module = importlib.import_module("workers.engines.vllm_cpu_worker")
    monkeypatch.delitem(sys.modules, "workers.engines.vllm_cpu_worker")
    return module


def test_without_it_the_engine_dies() -> None:
    """The stand-in fails as vLLM does."""
    with pytest.raises(RuntimeError, match="does not use offset"):
        CPUWorker(Runner(True)).sample_tokens(None)


def test_an_unfinished_prompt_draws_nothing(worker_module: ModuleType) -> None:
    """Its generator is away for the step and back after it, untouched; whoever gets a token draws."""
    runner = Runner(True, False, True)
    assert "sampled under grammar" == worker_module.SeededCPUWorker(runner).sample_tokens("grammar")
    assert [[1]] == runner.drawn
    assert runner.seeded == runner.input_batch.generators
    draws = [random.Random(row).random() for row in range(3)]
    assert [draws[0], draws[2]] == [runner.seeded[row].random() for row in (0, 2)]
    assert draws[1] != runner.seeded[1].random()


def test_a_seed_answers_the_same_however_its_prompt_was_cut(worker_module: ModuleType) -> None:
    """Three parts or one: the first token that counts is drawn by the first draw."""
    cut, whole = Runner(True), Runner(False)
    worker = worker_module.SeededCPUWorker(cut)
    for is_thrown_away in (True, True, False):
        cut.discard_request_mask.np[0] = is_thrown_away
        worker.sample_tokens(None)
    worker_module.SeededCPUWorker(whole).sample_tokens(None)
    assert whole.seeded[0].getstate() == cut.seeded[0].getstate()


def test_a_step_that_fails_gives_the_generators_back(worker_module: ModuleType) -> None:
    """Its error is vLLM's to tell."""
    runner = Runner(True, False)

    def fail(grammar_output: Any) -> Any:
        raise MemoryError

    runner.sample_tokens = fail  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        worker_module.SeededCPUWorker(runner).sample_tokens(None)
    assert runner.seeded == runner.input_batch.generators


@pytest.mark.parametrize("batch", [None, SimpleNamespace(), SimpleNamespace(generators={})])
def test_a_batch_without_generators_is_left_alone(worker_module: ModuleType, batch: Any) -> None:
    """No request has a seed, or vLLM's other runner, which keeps none."""
    runner = SimpleNamespace(input_batch=batch, sample_tokens=lambda grammar_output: "sampled")
    assert "sampled" == worker_module.SeededCPUWorker(runner).sample_tokens(None)
