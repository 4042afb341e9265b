"""From ``engine_args`` of the configuration to the arguments of ``vllm serve``, checked by vLLM's own parser.

Called by ``workers.engines.vllm``. It must never start anything; every error names ``engine_args.<name>``.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from workers.errors import EngineStartError
from workers.types import WorkerSpec

Value = str | int | float | bool | None | list[str]

DEFAULTS: Mapping[str, Value] = {
    "scheduling_policy": "priority",
    "enable_prompt_tokens_details": True,
    "disable_log_stats": True,
    "disable_uvicorn_access_log": True,
    "disable_fastapi_docs": True,
}
"""What we set unless the configuration says otherwise."""

OWNED: Mapping[str, str] = {
    "served_model_name": "it is the worker's `model`",
    "enable_log_requests": "prompts must not be logged",
    "enable_log_outputs": "answers must not be logged",
    "api_key": "the engine has no port; keys belong to the tenants",
    "headless": "the engine runs inside the worker",
    "api_server_count": "the engine has no port",
    "grpc": "the engine has no port",
    "config": "write its keys under engine_args",
    "middleware": "the engine has no port",
    "data_parallel_size": "write `count` at the worker: each replica is metered on its own",
}
"""Arguments that would break the worker's promises, and where to turn instead; off, or 1, they may be written."""


CPU_INFO = Path("/proc/cpuinfo")

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx10_2", "bf16"})
"""Of an x86 or ARM processor that multiplies bfloat16 in hardware."""


class _Wrong(Exception):
    """vLLM's parser refused something."""


def parse(spec: WorkerSpec) -> argparse.Namespace:
    """vLLM's parsed and validated serve arguments. Imports vLLM (many seconds). Raises: EngineStartError."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise _Wrong(message)

        def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
            raise _Wrong(message or f"exit {status}")

    parser = make_arg_parser(Parser(prog="vllm serve", add_help=False))
    check_names(spec, known_names(parser))
    check_weights(spec)
    given = {**DEFAULTS, **spec.engine_args, "served_model_name": [spec.model]}
    if not spec.num_gpus and not computes_bfloat16(CPU_INFO):
        given.setdefault("dtype", "float32")
    if spec.num_gpus > 1:
        given.setdefault("tensor_parallel_size", spec.num_gpus)
    words = command_line(given, parser)
    try:
        args = parser.parse_args(words)
        validate_parsed_serve_args(args)
    except (_Wrong, ValueError, TypeError, argparse.ArgumentError) as error:
        raise EngineStartError(describe(spec, str(error))) from error
    assert isinstance(args, argparse.Namespace)
    return args


def computes_bfloat16(cpu_info: Path) -> bool:
    """Whether the processor multiplies bfloat16 itself; yes where nothing is known of it.

    Elsewhere it is emulated: on AVX2 a product of matrices takes eight times as long as in float32.
    """
    try:
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return True
    flags = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    return not flags or not BFLOAT16_FLAGS.isdisjoint(flags[0])


def known_names(parser: argparse.ArgumentParser) -> frozenset[str]:
    """Long names with underscores."""
    return frozenset(
        option[2:].replace("-", "_") for option in parser._option_string_actions if option.startswith("--")
    )


def check_names(spec: WorkerSpec, known: frozenset[str]) -> None:
    """Raises: EngineStartError that names the first unknown or reserved argument."""
    for name, value in spec.engine_args.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; names are those of `vllm serve`, with underscores"
            raise EngineStartError(f"engine_args.{name} is not an argument of vLLM{hint}")
        is_harmless = value is None or value is False or (value == 1 and value is not True)
        if name in OWNED and not is_harmless:
            raise EngineStartError(f"engine_args.{name} may not be set: {OWNED[name]}")
    wanted = spec.engine_args.get("tensor_parallel_size")
    if spec.num_gpus and isinstance(wanted, int) and wanted != spec.num_gpus:
        raise EngineStartError(
            f"engine_args.tensor_parallel_size is {wanted}, but the worker has num_gpus: {spec.num_gpus}; "
            "remedy: leave it out, it follows num_gpus"
        )


def check_weights(spec: WorkerSpec) -> None:
    """Raises: EngineStartError where ``model`` is a folder that is missing or no model."""
    model = spec.engine_args.get("model")
    if not isinstance(model, str) or not model:
        raise EngineStartError("engine_args.model is missing; remedy: write `weights` at the model")
    folder = Path(model).expanduser()
    if not (model.startswith((".", "~")) or folder.is_absolute()):
        return  # the name of a model on a hub, or a relative folder: vLLM finds out
    if not folder.is_dir():
        raise EngineStartError(
            f"engine_args.model: the weights folder {folder} is missing; "
            "remedy: `make setup` builds the demo's weights, for other models check the path"
        )
    if not (folder / "config.json").is_file() and not (folder / "params.json").is_file():
        raise EngineStartError(f"engine_args.model: the folder {folder} holds no config.json; it is no model's folder")


def command_line(given: Mapping[str, Value], parser: argparse.ArgumentParser) -> list[str]:
    """The words of a command line; None leaves an argument out."""
    options = parser._option_string_actions
    words: list[str] = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if option not in options:
            option = "--" + name
        if value is None:
            continue
        if isinstance(value, bool) and _is_switch(options[option]):
            negative = "--no-" + name.replace("_", "-")
            if value:
                words.append(option)
            elif negative in options:
                words.append(negative)
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={value}")
    return words


def _is_switch(action: argparse.Action) -> bool:
    return action.nargs == 0


def describe(spec: WorkerSpec, complaint: str) -> str:
    """A complaint of vLLM's, with the argument that it is about where that can be told."""
    complaint = " ".join(complaint.split())[:600]
    option = re.search(r"--([a-z0-9][a-z0-9-]*)", complaint)
    names = [option.group(1).replace("-", "_")] if option else []
    names += [name for name in spec.engine_args if re.search(rf"\b{re.escape(name)}\b", complaint)]
    named = next((name for name in names if name in spec.engine_args), None)
    if named is None:
        return f"vLLM refuses engine_args: {complaint}"
    return f"engine_args.{named} is refused by vLLM: {complaint}"
