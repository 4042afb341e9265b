"""The relay and the engine tax with every gate on, divided by those of an older commit, alternated in one run.

Called by hand: ``python benchmarks/old_and_new.py --old COMMIT relay|simulated|vllm``. The older commit is checked out
into a temporary folder and served from there, under its own plain configuration; the new one has budgets of every
measure on every level above each request, prices, zones, a data class and a weight. Bound (issue 4, row 10): ≥ 0.95.

With ``--same-gates`` both have them all: what is between two commits is then what the newer one does more. Since the
ledger is (issue 5, row 10) that is every hold, charge and energy posting made durable: relay ≥ 0.90, engines ≥ 0.97.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine_tax import COMPARISONS, FIXED_STEP_S, VLLM_ENVIRONMENT, turn
from benchmarks.jouleway_server import (
    OPERATOR_KEY,
    Configuration,
    relay_configuration,
    serving,
    simulated_configuration,
    vllm_configuration,
)
from benchmarks.record import ROOT, record
from benchmarks.relay_vs_litellm import check, load
from benchmarks.servers import Server, wait_quiet

BOUND_RATIO = 0.95
LEDGER_BOUNDS = {"relay": 0.90, "simulated": 0.97, "vllm": 0.97}
WRK_S = 8
LARGE = 10**9
"""Of everything: no gate refuses, every gate computes."""


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The older commit's files, gone on leaving."""
    path = folder / "old"
    subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(path), commit], cwd=ROOT, check=True)
    try:
        yield path
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=True)


def with_gates(configuration: Configuration) -> Configuration:
    """The same service with everything on that can refuse, hold, price or order a request."""
    settings: dict[str, Any] = dict(configuration)
    (tenant,) = settings["tenants"]
    (key,) = tenant["keys"]
    budgets: list[dict[str, Any]] = [
        {measure: LARGE, "per": window}
        for measure, window in (
            ("tokens", "1h"), ("output_tokens", "1m"), ("money", "calendar month"), ("joules", "calendar day"),
            ("gpu_seconds", "1h"), ("gco2e", "calendar month"), ("requests", "1m"),
        )
    ]  # fmt: skip
    budgets.append({"concurrency": LARGE})
    settings["tenants"] = [
        {
            **tenant,
            "weight": 2,
            "data_class": "important",
            "zones": ["local"],
            "budgets": budgets,
            "projects": {"default": {"budgets": budgets}},
            "keys": [{"sha256": key.removeprefix("sha256:"), "budgets": budgets}],
        }
    ]
    settings["zones"] = {"local": {"data_class": "core", "gco2e_per_kwh": 300}}
    price = {"input": 0.2, "cached_input": 0.05, "output": 0.6}
    settings["models"] = {name: {**model, "price": price} for name, model in settings["models"].items()}
    return settings


@contextmanager
def both_standing(
    commit: str, old: Configuration, new: Configuration, *, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Server]]:
    """An older commit's server and this one's, by the names ``old`` and ``new``, for as long as the context is open."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        roots = {"old": stack.enter_context(checked_out(commit, folder)), "new": ROOT}
        yield {
            which: stack.enter_context(
                serving(settings, folder / which, environment=environment, timeout_s=300, root=roots[which])
            )
            for which, settings in (("old", old), ("new", new))
        }


def configuration_of(what: str) -> tuple[Configuration, dict[str, str]]:
    """The plain configuration, and the engine's environment."""
    if what == "relay":
        return relay_configuration(), {}
    if what == "simulated":
        return simulated_configuration(FIXED_STEP_S), {}
    return vllm_configuration()[0], VLLM_ENVIRONMENT


def one_turn(what: str, server: Server, model: str, seed: int) -> dict[str, float]:
    """``rate`` (streams or output tokens a second), and the server's CPU meanwhile."""
    before_s = server.cpu_s()
    if what == "relay":
        check(server, model, OPERATOR_KEY)
        load(server, model, OPERATOR_KEY, duration_s=2)
        figures = load(server, model, OPERATOR_KEY, duration_s=WRK_S)
        return {"rate": figures["requests_per_s"], "server_cpu_s": round(server.cpu_s() - before_s, 2)}
    report = asyncio.run(turn(server, COMPARISONS[what], OPERATOR_KEY, seed))
    return {
        "rate": round(report.rates.output_tokens_per_s, 2),
        "ttft_p50_ms": round(1000 * report.ttft.p50_s, 2) if report.ttft else 0.0,
        "server_cpu_s": round(server.cpu_s() - before_s, 2),
    }


def alternate(what: str, servers: dict[str, Server], num_pairs: int, *, bound_ratio: float) -> dict[str, object]:
    """Both stand for the whole run and are loaded in turns, old new, new old…: drift of the machine meets both."""
    model = {"relay": "simulated", "simulated": "simulated", "vllm": "smollm2-135m"}[what]
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for pair in range(num_pairs):
        for name in sorted(servers, reverse=bool(pair % 2)):
            turns[name].append(one_turn(what, servers[name], model, pair))
            print(f"pair {pair + 1}/{num_pairs} {name}: {turns[name][-1]}", file=sys.stderr, flush=True)
    ratios = [new["rate"] / old["rate"] for new, old in zip(turns["new"], turns["old"], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "ratio": round(ratio, 4),
        "bound_ratio": bound_ratio,
        "pass": ratio >= bound_ratio,
        "ratio_of_pairs": [round(each, 4) for each in ratios],
        "unit": "streams/s" if what == "relay" else "output tokens/s",
        "turns": turns,
    }


def main() -> int:
    """Measure, record, and fail when the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["relay", "simulated", "vllm"])
    parser.add_argument("--old", required=True, help="the commit to compare with")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--same-gates", action="store_true", help="every gate on in both")
    parser.add_argument("--quiet-s", type=float, default=180.0, help="how long to wait for a quiet machine")
    arguments = parser.parse_args()
    load_1min = wait_quiet(max_load=0.6, timeout_s=arguments.quiet_s)
    configuration, environment = configuration_of(arguments.what)
    gates = with_gates(configuration)
    old = gates if arguments.same_gates else configuration
    with both_standing(arguments.old, old, gates, environment=environment) as servers:
        bound_ratio = LEDGER_BOUNDS[arguments.what] if arguments.same_gates else BOUND_RATIO
        values = alternate(arguments.what, servers, arguments.pairs, bound_ratio=bound_ratio)
    path = record(
        f"old_and_new_{arguments.what}{'_ledger' if arguments.same_gates else ''}",
        {
            **values,
            "old_commit": arguments.old,
            "load_1min_before": round(load_1min, 2),
            "cores": sorted(os.sched_getaffinity(0)),
        },
        what="an older commit and this one, both standing, loaded in turns; "
        + ("both have" if arguments.same_gates else "new has")
        + " every gate on: budgets of every measure on tenant, project and key, prices, zones, data class, weight; "
        "rate of the new one divided by the old one's, median over pairs",
    )
    print(path.relative_to(ROOT))
    return 0 if values["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
