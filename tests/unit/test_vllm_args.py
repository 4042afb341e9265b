"""From engine_args to a command line of vLLM's; the parser itself is asked in ``tests/engine/test_vllm_start.py``."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from workers.engines.vllm_args import (
    check_names,
    check_weights,
    command_line,
    computes_bfloat16,
    describe,
    known_names,
)
from workers.errors import EngineStartError
from workers.types import WorkerSpec


def spec(num_gpus: int = 0, **engine_args: Any) -> WorkerSpec:
    return WorkerSpec(worker_id="w", engine="vllm", model="m", engine_args=engine_args, num_gpus=num_gpus)


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """A few options of each kind that vLLM's parser has."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--tensor-parallel-size", type=int)
    parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    parser.add_argument("--disable-log-stats", action="store_true")
    parser.add_argument("--lora-modules", nargs="+")
    parser.add_argument("--enable-log-requests", action="store_true")
    parser.add_argument("--data-parallel-size", type=int)
    return parser


def test_values_become_words(parser: argparse.ArgumentParser) -> None:
    """Switches and their negatives, lists, numbers, text that begins with a dash; None leaves out."""
    words = command_line(
        {"max_model_len": 5, "enforce_eager": False, "disable_log_stats": True, "lora_modules": ["a=b", "c=d"],
         "model": "-odd", "tensor_parallel_size": None},
        parser,
    )  # fmt: skip
    assert ["--max-model-len=5", "--no-enforce-eager", "--disable-log-stats"] == words[:3]
    parsed = parser.parse_args(words)
    assert (5, False, True, ["a=b", "c=d"], "-odd") == (
        parsed.max_model_len, parsed.enforce_eager, parsed.disable_log_stats, parsed.lora_modules, parsed.model,
    )  # fmt: skip
    assert [] == command_line({"disable_log_stats": False}, parser)


@pytest.mark.parametrize(
    ("engine_args", "words"),
    [
        ({"max_modell_len": 5}, "engine_args.max_modell_len is not an argument of vLLM; did you mean max_model_len?"),
        ({"qqq": 5}, "engine_args.qqq .* names are those of `vllm serve`"),
        ({"max-model-len": 5}, "engine_args.max-model-len is not an argument"),
        ({"enable_log_requests": True}, "engine_args.enable_log_requests may not be set: prompts must not be logged"),
        ({"data_parallel_size": 2}, "engine_args.data_parallel_size may not be set: write `count`"),
    ],
)
def test_a_name_that_is_unknown_or_reserved_is_named(
    parser: argparse.ArgumentParser, engine_args: dict[str, Any], words: str
) -> None:
    """With the nearest that is known, or where to turn instead."""
    with pytest.raises(EngineStartError, match=words):
        check_names(spec(**engine_args), known_names(parser))


def test_reserved_arguments_may_be_off(parser: argparse.ArgumentParser) -> None:
    """What they would be anyway harms nobody."""
    given = spec(enable_log_requests=False, data_parallel_size=1, max_model_len=7)
    check_names(given, known_names(parser))


def test_tensor_parallel_follows_the_gpus(parser: argparse.ArgumentParser) -> None:
    """Two numbers that say the same thing must not differ."""
    check_names(spec(num_gpus=2, tensor_parallel_size=2), known_names(parser))
    with pytest.raises(EngineStartError, match=r"engine_args.tensor_parallel_size is 4, .* num_gpus: 2"):
        check_names(spec(num_gpus=2, tensor_parallel_size=4), known_names(parser))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """No model, no folder, a folder that holds none; a hub's name is left to vLLM."""
    with pytest.raises(EngineStartError, match=r"engine_args\.model is missing"):
        check_weights(spec())
    with pytest.raises(EngineStartError, match=r"engine_args.model: the weights folder .*/gone is missing.*make setup"):
        check_weights(spec(model=str(tmp_path / "gone")))
    with pytest.raises(EngineStartError, match=r"engine_args.model: .* no config.json"):
        check_weights(spec(model=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    check_weights(spec(model=str(tmp_path)))
    check_weights(spec(model="org/model"))


@pytest.mark.parametrize(
    ("complaint", "start"),
    [
        ("argument --max-model-len: invalid int value: 'x'", "engine_args.max_model_len is refused by vLLM"),
        ("1 validation error\nmax_model_len\n  too large", "engine_args.max_model_len is refused by vLLM"),
        ("something else", "vLLM refuses engine_args: something else"),
        ("--other-option is wrong", "vLLM refuses engine_args: --other-option"),
    ],
)
def test_a_complaint_is_brought_home(complaint: str, start: str) -> None:
    """vLLM speaks of options or of fields; the operator wrote engine_args."""
    assert describe(spec(max_model_len=5), complaint).startswith(start)


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx avx2\nbugs\t: bf16", False),
        ("vendor_id\t: nobody", True),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it(tmp_path: Path, text: str, does: bool) -> None:
    """Flags of x86, features of ARM; where nothing is said vLLM decides."""
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor\t: 0\n{text}\n")
    assert does == computes_bfloat16(cpu_info)
    assert computes_bfloat16(tmp_path / "missing")
