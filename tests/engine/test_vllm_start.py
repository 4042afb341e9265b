"""What can be wrong with vLLM before it serves: each a clear error that names the key, and nothing left running."""

import asyncio
import multiprocessing
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from benchmarks.worker_run import demo_spec
from workers.engines import vllm_step_hook
from workers.engines.vllm import VllmEngine
from workers.engines.vllm_args import parse
from workers.errors import EngineStartError
from workers.steps import StepRecord
from workers.types import SequenceUsage


class NoSink:
    """Nothing is reported by an engine that does not start."""

    def on_step(self, step: StepRecord) -> None: ...

    def on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None: ...

    def on_dropped(self, num_records: int) -> None: ...

    def on_engine_dead(self, cause: str) -> None: ...


def start(**engine_args: Any) -> EngineStartError:
    """Starts an engine that cannot; returns the error."""
    engine = VllmEngine(demo_spec(engine_args=engine_args))
    before = multiprocessing.active_children()
    with pytest.raises(EngineStartError) as caught:
        asyncio.run(engine.start(NoSink()))
    assert before == multiprocessing.active_children()
    return caught.value


@pytest.mark.parametrize(
    ("engine_args", "words"),
    [
        ({"max_modell_len": 5}, ["engine_args.max_modell_len", "did you mean max_model_len"]),
        ({"max_model_len": "many"}, ["engine_args.max_model_len", "many"]),
        ({"scheduling_policy": "random"}, ["engine_args.scheduling_policy", "random"]),
        ({"enable_log_requests": True}, ["engine_args.enable_log_requests", "prompts must not be logged"]),
        ({"api_key": ["secret"]}, ["engine_args.api_key", "no port"]),
        ({"data_parallel_size": 2}, ["engine_args.data_parallel_size", "count"]),
        ({"model": "/no/such/weights"}, ["engine_args.model", "/no/such/weights", "make setup"]),
        ({"gpu_memory_utilization": 7.5}, ["engine_args.gpu_memory_utilization", "7.5"]),
        ({"enable_auto_tool_choice": True}, ["engine_args.enable_auto_tool_choice", "tool-call-parser"]),
    ],
)
def test_a_wrong_argument_is_named(weights: Path, engine_args: dict[str, Any], words: list[str]) -> None:
    """Unknown, wrong type, wrong value, reserved: found before any weight is read."""
    error = str(start(**engine_args))
    assert [] == [word for word in words if word not in error], error
    assert "secret" not in error


def test_good_arguments_reach_vllm(weights: Path) -> None:
    """Switches, their negatives, lists, text and numbers; ours are set unless the operator says otherwise."""
    given = {"enable_prefix_caching": False, "max_num_seqs": 7, "scheduling_policy": "fcfs", "lora_modules": None}
    args = parse(demo_spec(engine_args=given))
    assert (False, 7, "fcfs") == (args.enable_prefix_caching, args.max_num_seqs, args.scheduling_policy)
    assert (["smollm2-135m"], True, True) == (
        args.served_model_name, args.enable_prompt_tokens_details, args.disable_log_stats,
    )  # fmt: skip
    assert "priority" == parse(demo_spec()).scheduling_policy
    assert not args.enable_log_requests


def test_a_version_outside_the_tested_range_is_refused(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways into vLLM are not public: the error names both versions and the remedy."""
    monkeypatch.setattr(metadata, "version", lambda name: "0.33.1")
    assert "0.33.1 is installed, tested is 0.32.*; remedy: pip install" in str(start())


def test_a_failure_in_the_engines_process_carries_its_last_lines(weights: Path) -> None:
    """Out of memory is found there: what the child printed is in the error, and the child is gone."""
    error = start(num_gpu_blocks_override=1, block_size=32)
    assert "vLLM did not start" in str(error)
    assert any("No available memory" in line for line in error.last_lines), "\n".join(error.last_lines)


def test_the_installed_vllm_has_the_signatures_that_the_hook_expects() -> None:
    """Otherwise the engine would start without exact steps; a difference is named."""
    assert () == vllm_step_hook.probe()


def test_changed_signatures_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter more, a method less: both named."""

    def schedule(self: object, throttle_prefills: bool = False, more: int = 0) -> None: ...

    monkeypatch.setattr(vllm_step_hook.Scheduler, "schedule", schedule)
    monkeypatch.setattr(vllm_step_hook.Scheduler, "get_kv_cache_usage", None)
    differences = vllm_step_hook.probe()
    assert 2 == len(differences)
    assert "Scheduler.schedule" in differences[0]
    assert "Scheduler.get_kv_cache_usage is missing" in differences[1]
