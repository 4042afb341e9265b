"""Requests per second of our relay beside LiteLLM's proxy and a bare uvicorn server, in one run, by wrk.

Called by hand (``python benchmarks/relay_vs_litellm.py``). Streams of 32 tokens, 32 connections, one server process
each. Ours carries more: the stream runs through a Ray actor, placement, metering and settlement; LiteLLM's through
its key check and spend counting to a canned backend. Bound (issue 3, row 6): at least 20 times LiteLLM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import wrk
from benchmarks.canned import NUM_TOKENS
from benchmarks.jouleway_server import OPERATOR_KEY, relay_configuration, serving
from benchmarks.record import ROOT, record
from benchmarks.sampling import SamplerMissing, sample
from benchmarks.servers import Server, command_name, free_port, own_cpu_s, running, tree, wait_quiet

LITELLM = "litellm[proxy]==1.106.*"
MASTER_KEY = "sk-throwaway-benchmark-key"
BOUND_RATIO = 20.0
CONNECTIONS = 32
DURATION_S = 8

LITELLM_CONFIG = """
model_list:
  - model_name: canned
    litellm_params: {{model: openai/canned, api_base: "{backend}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false}}
"""


def body(model: str) -> dict[str, object]:
    """The request that every server gets."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Say thirty-two words."}],
        "max_tokens": NUM_TOKENS,
        "stream": True,
    }


def litellm_environment(folder: Path) -> Path:
    """A virtual environment of its own with LiteLLM's proxy and py-spy, made once; returns its bin folder."""
    if not (folder / "bin" / "litellm").exists():
        print(f"installing {LITELLM} into {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", LITELLM, "uvloop", "httptools"], check=True)
    if not (folder / "bin" / "py-spy").exists():
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", "py-spy"], check=True)
    return folder / "bin"


def litellm_version(programs: Path) -> str:
    """The installed version of LiteLLM."""
    code = "from importlib.metadata import version; print(version('litellm'))"
    return subprocess.run(
        [str(programs / "python"), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@contextmanager
def bare_uvicorn(logs: Path) -> Iterator[Server]:
    """uvicorn writing the canned events."""
    port = free_port()
    command = [sys.executable, "benchmarks/canned.py", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running("uvicorn", command, url=url, ready_path="/v1/models", log=logs / "uvicorn.log") as server:
        yield server


@contextmanager
def litellm_proxy(programs: Path, logs: Path) -> Iterator[Server]:
    """LiteLLM's proxy, one worker, in front of the canned backend."""
    with bare_uvicorn(logs) as backend:
        port = free_port()
        config = logs / "litellm.yaml"
        config.write_text(LITELLM_CONFIG.format(backend=backend.url, key=MASTER_KEY), encoding="utf-8")
        command = [str(programs / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        with running(
            "litellm",
            [*command, "--num_workers", "1"],
            url=f"http://127.0.0.1:{port}",
            ready_path="/health/liveliness",
            log=logs / "litellm.log",
            environment={"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"},
        ) as server:
            yield server


def check(server: Server, model: str, key: str) -> int:
    """Tokens in one streamed answer, so that nobody wins by sending less. Raises: RuntimeError unless it is 32."""
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        data=json.dumps(body(model)).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk.get("choices", [])]
    num_tokens = sum(bool(text) for text in texts)
    if num_tokens != NUM_TOKENS or lines[-1] != "[DONE]":
        raise RuntimeError(f"{server.name} sent {num_tokens} pieces of text, not {NUM_TOKENS}")
    return num_tokens


def one_round(server: Server, model: str, key: str) -> dict[str, object]:
    """wrk against one server, with the CPU seconds each of its processes used per request."""
    check(server, model, key)
    load(server, model, key, duration_s=2)
    before = {pid: own_cpu_s(pid) for pid in tree(server.process.pid)}
    figures = load(server, model, key, duration_s=DURATION_S)
    spent = {pid: own_cpu_s(pid) - before.get(pid, 0.0) for pid in tree(server.process.pid)}
    busiest = sorted(spent.items(), key=lambda item: -item[1])[:5]
    requests = max(figures["requests"], 1)
    return {
        **figures,
        "server_cpu_ms_per_request": round(1000 * sum(spent.values()) / requests, 3),
        "cpu_ms_per_request_by_process": {
            f"{command_name(pid)} #{place}": round(1000 * cpu_s / requests, 3)
            for place, (pid, cpu_s) in enumerate(busiest)
            if cpu_s > 0
        },
    }


def load(server: Server, model: str, key: str, *, duration_s: int, connections: int = CONNECTIONS) -> dict[str, float]:
    """wrk with the same request for everybody."""
    return wrk.load(
        f"{server.url}/v1/chat/completions",
        body=body(model),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        connections=connections,
        duration_s=duration_s,
    )


def profile(server: Server, py_spy: Path, model: str, key: str) -> dict[str, object]:
    """Where the CPU time of a server's first process goes while wrk loads it."""
    import threading

    loading = threading.Thread(target=load, args=(server, model, key), kwargs={"duration_s": DURATION_S})
    loading.start()
    try:
        return sample(server.process.pid, py_spy=py_spy, duration_s=DURATION_S - 2)
    except SamplerMissing as error:
        return {"missing": str(error)}
    finally:
        loading.join()


def measure(arguments: argparse.Namespace, logs: Path) -> tuple[dict[str, object], dict[str, str]]:
    """All systems, one after the other, in each round; medians over the rounds."""
    programs = litellm_environment(arguments.litellm_venv)
    systems: Mapping[str, tuple[Callable[[], contextlib.AbstractContextManager[Server]], str, str]] = {
        "bare_uvicorn": (lambda: bare_uvicorn(logs), "canned", "none"),
        "litellm": (lambda: litellm_proxy(programs, logs), "canned", MASTER_KEY),
        "jouleway": (lambda: serving(relay_configuration(), logs), "simulated", OPERATOR_KEY),
    }
    rounds: dict[str, list[dict[str, object]]] = {name: [] for name in systems if name not in arguments.without}
    profiled: dict[str, object] = {}
    for number in range(arguments.rounds):
        for name, entries in rounds.items():
            start, model, key = systems[name]
            with start() as server:
                entries.append(one_round(server, model, key))
                print(f"round {number + 1}: {name} {entries[-1]}", file=sys.stderr, flush=True)
                if name == "jouleway" and number == arguments.rounds - 1:
                    profiled = profile(server, programs / "py-spy", model, key)
    medians = {name: statistics.median(_rate(entry) for entry in entries) for name, entries in rounds.items()}
    values: dict[str, object] = {"requests_per_s_median": medians, "rounds": rounds, "connections": CONNECTIONS}
    if "litellm" in medians and "jouleway" in medians:
        ratio = medians["jouleway"] / medians["litellm"]
        values |= {"ratio_to_litellm": round(ratio, 2), "bound_ratio": BOUND_RATIO, "pass": ratio >= BOUND_RATIO}
    if "bare_uvicorn" in medians and "jouleway" in medians:
        values["ratio_to_bare_uvicorn"] = round(medians["jouleway"] / medians["bare_uvicorn"], 3)
    return values | {"profile_of_our_relay": profiled}, {"litellm": litellm_version(programs)}


def _rate(entry: Mapping[str, object]) -> float:
    value = entry["requests_per_s"]
    assert isinstance(value, float)
    return value


def main() -> int:
    """Measure, record, and fail when the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", action="append", default=[], choices=["bare_uvicorn", "litellm", "jouleway"])
    parser.add_argument("--litellm-venv", type=Path, default=ROOT / ".jouleway" / "litellm")
    parser.add_argument("--name", default="relay_vs_litellm")
    arguments = parser.parse_args()
    load_1min = wait_quiet(max_load=0.6, timeout_s=120)
    with tempfile.TemporaryDirectory() as folder:
        values, versions = measure(arguments, Path(folder))
    path = record(
        arguments.name,
        {**values, "load_1min_before": round(load_1min, 2)},
        what="wrk, 32 connections, 8 s, streaming chat of 32 tokens, one server process each, systems one after the "
        "other in each round; ours runs the simulated engine behind the Ray actor, placement, metering and settlement",
        versions=versions,
    )
    print(path.relative_to(ROOT))
    return 0 if values.get("pass", True) else 1


if __name__ == "__main__":
    sys.exit(main())
