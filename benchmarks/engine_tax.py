"""Tokens per second through Jouleway divided by those of the bare engine server, alternated in one run.

Called by hand: ``python benchmarks/engine_tax.py simulated|vllm``. Both servers stand for the whole run and are loaded
in turns (A B, B A, …), so that drift of the machine meets both; the CPU that the idle one uses meanwhile is recorded.
Bounds (issue 3, row 5): vLLM, 16 at once, two shared cores: at least 0.90; simulated engine with a fixed step of
10 ms, 64 at once: at least 0.99.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.jouleway_server import OPERATOR_KEY, serving, simulated_configuration, vllm_configuration
from benchmarks.record import ROOT, record
from benchmarks.servers import Server, command_name, free_port, running, tree, wait_quiet
from scheduler.bench.client import Target
from scheduler.bench.report import Report
from scheduler.bench.session import Load, measure
from scheduler.bench.workload import Lengths

FIXED_STEP_S = 0.01
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "2",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""The same for both servers: two compute threads, none bound, as on any shared two-core machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is loaded, and what must come out."""

    name: str
    bound_ratio: float
    concurrency: int
    lengths: Lengths
    turn_s: float
    warmup_s: float


COMPARISONS = {
    "simulated": Comparison(
        name="engine_tax_simulated",
        bound_ratio=0.99,
        concurrency=64,
        lengths=Lengths(input_tokens=128, output_tokens=256),
        turn_s=12.0,
        warmup_s=4.0,
    ),
    "vllm": Comparison(
        name="engine_tax_vllm",
        bound_ratio=0.90,
        concurrency=16,
        lengths=Lengths(input_tokens=64, output_tokens=128),
        turn_s=40.0,
        warmup_s=10.0,
    ),
}


@contextmanager
def bare_simulated(logs: Path) -> Iterator[Server]:
    """The simulated engine's own server."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "workers.engines.simulated",
        "--port",
        str(port),
        "--fixed-step-s",
        str(FIXED_STEP_S),
    ]
    url = f"http://127.0.0.1:{port}"
    with running("simulated, bare", command, url=url, ready_path="/v1/models", log=logs / "bare.log") as server:
        yield server


@contextmanager
def bare_vllm(logs: Path, arguments: Mapping[str, object]) -> Iterator[Server]:
    """vLLM's own server with the same arguments as the worker's."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        command += [flag] if value is True else [] if value in (False, None) else [flag, str(value)]
    url = f"http://127.0.0.1:{port}"
    with running(
        "vllm, bare", command, url=url, ready_path="/health", log=logs / "bare.log", environment=VLLM_ENVIRONMENT,
        timeout_s=300,
    ) as server:  # fmt: skip
        yield server


async def turn(server: Server, comparison: Comparison, key: str | None, seed: int) -> Report:
    """One closed-loop run against one server. Raises: RuntimeError when requests failed."""
    load = Load(
        concurrency=comparison.concurrency,
        lengths=comparison.lengths,
        duration_s=comparison.turn_s,
        warmup_s=comparison.warmup_s,
        seed=seed,
    )
    report, _ = await measure(Target(base_url=server.url, api_key=key), load)
    if report.requests.failed:
        raise RuntimeError(f"{server.name}: {report.requests.failed} failed: {report.requests.by_reason}")
    return report


def alternate(bare: Server, ours: Server, comparison: Comparison, num_pairs: int) -> dict[str, object]:
    """Turns in the order A B, B A, …; the ratio of each pair and the medians."""
    systems = {"bare": (bare, None), "jouleway": (ours, OPERATOR_KEY)}
    turns: dict[str, list[dict[str, object]]] = {name: [] for name in systems}
    for pair in range(num_pairs):
        order = ["bare", "jouleway"] if pair % 2 == 0 else ["jouleway", "bare"]
        for name in order:
            (server, key), other = systems[name], systems["jouleway" if name == "bare" else "bare"][0]
            before_s, idle_before_s = server.cpu_s(), other.cpu_s()
            report = asyncio.run(turn(server, comparison, key, seed=pair))
            elapsed_s = comparison.turn_s + comparison.warmup_s
            turns[name].append(
                {
                    "output_tokens_per_s": round(report.rates.output_tokens_per_s, 2),
                    "ttft_p50_ms": _ms(report.ttft.p50_s if report.ttft else None),
                    "tpot_p50_ms": _ms(report.tpot.p50_s if report.tpot else None),
                    "itl_p99_ms": _ms(report.itl.p99_s if report.itl else None),
                    "requests": report.requests.completed,
                    "server_cpu_s": round(server.cpu_s() - before_s, 2),
                    "idle_server_cpu_ratio": round((other.cpu_s() - idle_before_s) / elapsed_s, 4),
                    "client_cpu_ratio": round(report.client.cpu_ratio, 4),
                }
            )
            print(f"pair {pair + 1}/{num_pairs} {name}: {turns[name][-1]}", file=sys.stderr, flush=True)
    rates = {name: [_number(entry, "output_tokens_per_s") for entry in entries] for name, entries in turns.items()}
    ratios = [ours_rate / bare_rate for ours_rate, bare_rate in zip(rates["jouleway"], rates["bare"], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "ratio": round(ratio, 4),
        "bound_ratio": comparison.bound_ratio,
        "pass": ratio >= comparison.bound_ratio,
        "ratio_of_pairs": [round(value, 4) for value in ratios],
        "output_tokens_per_s_median": {name: statistics.median(values) for name, values in rates.items()},
        "concurrency": comparison.concurrency,
        "input_tokens": comparison.lengths.input_tokens,
        "output_tokens": comparison.lengths.output_tokens,
        "turns": turns,
    }


def compute_threads(server: Server) -> dict[str, object]:
    """How many threads the engine's busiest process runs on and where they may run, as /proc says."""
    busiest, seconds = 0, -1.0
    for pid in tree(server.process.pid):
        with contextlib.suppress(OSError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[11]) > seconds:
                busiest, seconds = pid, int(fields[11])
    allowed: dict[str, int] = {}
    busy = 0
    for task in Path(f"/proc/{busiest}/task").iterdir():
        with contextlib.suppress(OSError, IndexError):
            status = (task / "status").read_text()
            cpus = status.partition("Cpus_allowed_list:")[2].split()[0]
            allowed[cpus] = allowed.get(cpus, 0) + 1
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            busy += int(fields[11]) + int(fields[12]) > 500
    return {
        "process": command_name(busiest),
        "threads_with_over_5_s_of_cpu": busy,
        "threads_by_allowed_cpus": allowed,
    }


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s * 1000, 2)


def _number(entry: Mapping[str, object], name: str) -> float:
    value = entry[name]
    assert isinstance(value, float)
    return value


def main() -> int:
    """Measure, record, and fail when the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=sorted(COMPARISONS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--name", help="name of the result; default engine_tax_<engine>")
    arguments = parser.parse_args()
    comparison = COMPARISONS[arguments.engine]
    load_1min = wait_quiet(max_load=0.6, timeout_s=180)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        logs = Path(folder)
        if arguments.engine == "simulated":
            bare = stack.enter_context(bare_simulated(logs))
            ours = stack.enter_context(serving(simulated_configuration(FIXED_STEP_S), logs))
        else:
            configuration, engine_arguments = vllm_configuration()
            bare = stack.enter_context(bare_vllm(logs, engine_arguments))
            ours = stack.enter_context(serving(configuration, logs, environment=VLLM_ENVIRONMENT, timeout_s=300))
        values = alternate(bare, ours, comparison, arguments.pairs)
        values["threads"] = {"bare": compute_threads(bare), "jouleway": compute_threads(ours)}
        values["environment"] = VLLM_ENVIRONMENT if arguments.engine == "vllm" else {}
        values["bare_command"] = bare.shown()
    path = record(
        arguments.name or comparison.name,
        {**values, "load_1min_before": round(load_1min, 2), "cores": sorted(os.sched_getaffinity(0))},
        what=f"closed loop, {comparison.concurrency} at once, both servers standing, loaded in turns of "
        f"{comparison.turn_s:g} s after {comparison.warmup_s:g} s of warm-up; output tokens/s through Jouleway "
        "divided by the bare server's, median over pairs",
    )
    print(path.relative_to(ROOT))
    return 0 if values["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
