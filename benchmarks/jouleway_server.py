"""Starts ``jouleway serve`` for a comparison, as an operator would: a configuration file, a key, a Ray of its own.

Called by the comparisons in this folder. It must never know what is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.servers import ROOT, Server, ServerError, stop, tail
from scheduler.config import BUILTIN_WEIGHTS, weights_folder
from workers.engines.vllm_args import CPU_INFO, computes_bfloat16

OPERATOR_KEY = "jw-benchmark-key-of-loopback-only"
ADMIN_KEY = "jw-benchmark-admin-key-of-loopback"
Configuration = dict[str, object]


def configuration(worker: Mapping[str, object], models: Mapping[str, object]) -> Configuration:
    """One worker kind, one tenant, any free ports. JSON is YAML."""
    return {
        "server": {"port": 0},
        "admin": {"port": 0},
        "models": dict(models),
        "workers": [dict(worker)],
        "tenants": [{"name": "bench", "keys": ["sha256:" + hashlib.sha256(OPERATOR_KEY.encode()).hexdigest()]}],
    }


def simulated_configuration(fixed_step_s: float) -> Configuration:
    """One simulated engine whose steps take exactly so long, and whose answers end at ``max_tokens`` only."""
    worker = {
        "name": "simulated",
        "engine": "simulated",
        "model": "simulated",
        "meter": {"kind": "simulated"},
        "calibration_s": 1,
        "max_running": 512,
        "engine_args": {"fixed_step_s": fixed_step_s, "output_tokens_mean": 1e9},
    }
    return configuration(worker, {"simulated": {"default_output_tokens": 256, "normalizer": "none"}})


def relay_configuration() -> Configuration:
    """Tokens as fast as a canned backend gives them: the relay is what is measured."""
    return simulated_configuration(0.0005)


def vllm_arguments() -> dict[str, object]:
    """The engine's arguments, the same for the bare server and for the worker."""
    folder = weights_folder(BUILTIN_WEIGHTS)
    return {
        "model": str(folder),
        "served_model_name": "smollm2-135m",
        "max_model_len": 2048,
        "max_num_seqs": 32,
        "enforce_eager": True,
        # Said to both sides: left alone, a bare server emulates bfloat16 where ours computes in float32.
        "dtype": "bfloat16" if computes_bfloat16(CPU_INFO) else "float32",
    }


def vllm_configuration() -> tuple[Configuration, dict[str, object]]:
    """Real vLLM with the demo's model, and the arguments that the bare server gets."""
    arguments = vllm_arguments()
    worker = {
        "name": "cpu",
        "engine": "vllm",
        "model": "smollm2-135m",
        "engine_args": {name: value for name, value in arguments.items() if name not in ("model", "served_model_name")},
        "calibration_s": 10,
    }
    models = {"smollm2-135m": {"weights": BUILTIN_WEIGHTS, "default_output_tokens": 256, "normalizer": "none"}}
    return configuration(worker, models), arguments


@contextmanager
def serving(
    configuration: Configuration,
    logs: Path,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
    root: Path = ROOT,
) -> Iterator[Server]:
    """A service that is ready; ended with its Ray and its engines on leaving. ``root``: the checkout that serves.

    Raises: ServerError when it ends or is not ready in time, with the last lines of its log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    path, log = logs / "jouleway.yaml", logs / "jouleway.log"
    settings = {**configuration, "state_dir": str(logs / "state")}
    if environment:
        settings["workers"] = [{**worker, "environment": dict(environment)} for worker in _workers(configuration)]
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (logs / "state").mkdir(exist_ok=True, mode=0o700)
    key_path = logs / "state" / "admin.key"
    key_path.touch(mode=0o600)
    key_path.write_text(ADMIN_KEY + "\n", encoding="ascii")
    command = [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(path), "--json"]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), **(environment or {})},
            start_new_session=True,
        )
    try:
        ready = _ready(process, log, timeout_s)
        yield Server(
            name="jouleway",
            url=ready["url"],
            process=process,
            command=tuple(command),
            log=log,
            admin_url=ready["admin_url"],
        )
    finally:
        stop(process, patience_s=60.0)
        assert process.stdout is not None
        process.stdout.close()


def _workers(configuration: Configuration) -> list[Mapping[str, object]]:
    workers = configuration["workers"]
    assert isinstance(workers, list)
    return workers


def _ready(process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> dict[str, str]:
    """The line that `serve --json` prints when every worker is up."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    deadline_s = time.monotonic() + timeout_s
    said = b""
    while time.monotonic() < deadline_s:
        said += process.stdout.read() or b""
        if b"\n" in said:
            ready: dict[str, str] = json.loads(said.split(b"\n", 1)[0])
            return ready
        if process.poll() is not None:
            raise ServerError(f"jouleway ended with {process.returncode}:\n{tail(log)}")
        time.sleep(0.1)
    raise ServerError(f"jouleway was not ready within {timeout_s:g} s:\n{tail(log)}")
