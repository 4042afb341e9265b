"""Joules per good token of every policy, simulated: traces over fleets, at loads that mean the same to all of them.

Called by people and CI (``python benchmarks/energy.py quick|run``). Engines are simulated ones of the catalogue; what
decides for ``jouleway`` is the production core. Bounds are those of the must-show table; nothing is tuned to a slice.

quick    one case, load and seed, some minutes of simulated time: for work; nothing is recorded
run      cases × loads × seeds, whole slices, on two processes: one result file a case, ``energy_<case>.json``
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import ROOT, record
from scheduler.catalogue import load_catalogue
from scheduler.core.request import DEFAULT_SLO, Slo
from scheduler.intervals import ratio_of
from scheduler.limit_cache import Limit, limit_of
from scheduler.servegen import read_servegen
from scheduler.simulation.figures import Figures, summary_of
from scheduler.simulation.policies import ORACLE, POLICIES
from scheduler.study import Part, Study, prepare
from scheduler.trace_files import TraceRow, read_trace

FOLDER = Path(os.environ.get("JOULEWAY_TRACES", "../shared/data/traces"))
LOADS = (0.10, 0.25, 0.50, 0.75)
SEEDS = (1, 2, 3, 4, 5)
JOBS = 2
AUTOSCALES = ("autoscale-50", "autoscale-70", "autoscale-85")
ALL = (*POLICIES, *AUTOSCALES, ORACLE)
STRICT = DEFAULT_SLO._replace(ttft_s=0.5, tpot_s=0.025)
MAX_ATTAINMENT_LOSS = 0.01
SERVEGEN_RATE_PER_S = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A trace on a fleet. Bounds are (jouleway ÷ round robin) − 1, by load in the order of ``LOADS``."""

    trace: str
    fleet: str
    model: str
    slo: Slo = DEFAULT_SLO
    against_round_robin: tuple[float, ...] = ()
    against_autoscale: tuple[float, ...] = ()
    """Of the best of them."""
    without_parking: tuple[float, ...] = ()


CASES = {
    "conversation": Case(
        trace="azure2023_conv_dev.csv",
        fleet="h100x8",
        model="llama-3.1-8b",
        against_round_robin=(-0.68, -0.56, -0.36, -0.19),
        against_autoscale=(-0.26, -0.26, -0.22, -0.17),
        without_parking=(-0.57, -0.49, -0.33, -0.18),
    ),
    "conversation_strict": Case(
        trace="azure2023_conv_dev.csv",
        fleet="h100x8",
        model="llama-3.1-8b",
        slo=STRICT,
        against_round_robin=(-0.65, -0.55, -0.35, -0.18),
    ),
    "conversation_70b": Case(
        trace="azure2023_conv_dev.csv",
        fleet="h100x32",
        model="llama-3.1-70b",
        against_round_robin=(-0.63, -0.53, -0.32, -0.16),
    ),
    "conversation_qwen3_32b": Case(trace="azure2023_conv_dev.csv", fleet="h100x16", model="qwen3-32b"),
    "conversation_mixed": Case(trace="azure2023_conv_dev.csv", fleet="h100x4,b200x4", model="llama-3.1-8b"),
    "code": Case(trace="azure2023_code_dev.csv", fleet="h100x8", model="llama-3.1-8b"),
    "mooncake": Case(trace="mooncake_conversation_dev.jsonl", fleet="h100x8", model="llama-3.1-8b"),
    "servegen_small": Case(trace="servegen_m-small_day2_dev.json", fleet="h100x8", model="llama-3.1-8b"),
    "servegen_large": Case(trace="servegen_m-large_day2_dev.json", fleet="h100x8", model="llama-3.1-8b"),
    "servegen_reasoning": Case(trace="servegen_deepseek-r1_day0_dev.json", fleet="h100x8", model="llama-3.1-8b"),
}


@cache
def rows_of(trace: str, folder: Path) -> Sequence[TraceRow]:
    """Read once a process."""
    if trace.endswith(".json"):
        return read_servegen(folder / trace, rate_per_s=SERVEGEN_RATE_PER_S, seed=1)
    return read_trace(folder / trace, must_be_in_order=True)


def study_of(name: str, load: float, folder: Path, seconds: float | None) -> Study:
    """The limit is looked for where this machine does not have it yet."""
    case = CASES[name]

    def find_limit(*arguments: Any) -> Limit:
        limit = limit_of(*arguments)
        if not limit.is_known:
            print(f"round-robin limit of {case.model} on {case.fleet}: {limit.per_s:.4g} requests/s", file=sys.stderr)
        return limit

    return prepare(
        [Part(model=case.model, fleet=case.fleet, rows=rows_of(case.trace, folder), load=load)],
        load_catalogue(),
        slo=case.slo,
        until_s=float("inf") if seconds is None else seconds,
        find_limit=find_limit,
    )


Task = tuple[str, float, int, Path, float | None, tuple[str, ...]]


def runs_of(task: Task) -> list[Figures]:
    """One case, load and seed: every policy on the same arrivals."""
    name, load, seed, folder, seconds, policies = task
    study = study_of(name, load, folder, seconds)
    arrivals = study.arrivals(seed)
    found = []
    for policy in policies:
        began_s = time.process_time()
        figures = study.run(policy, seed, arrivals=arrivals)
        cpu_s = time.process_time() - began_s
        described = {"case": name, "load": load, "limit_per_s": study.limits[study.parts[0].model].per_s}
        found.append({**described, **figures, "cpu_s": round(cpu_s, 2)})
        print(line_of(found[-1]), file=sys.stderr, flush=True)
    return found


def line_of(run: Figures) -> str:
    """One run in a line."""

    def shown(key: str, form: str, factor: float = 1.0) -> str:
        return "-" if run[key] is None else format(factor * run[key], form)

    return (
        f"{run['case']:22} load {run['load']:.2f} seed {run['seed']} {run['policy']:19}"
        f" {shown('joules_per_good_token', '8.4f')} J  attained {shown('slo_attainment_ratio', '.4f')}"
        f"  TTFT p99 {shown('ttft_p99_s', '6.3f')} s  TPOT p99 {shown('tpot_p99_s', '5.1f', 1e3)} ms"
        f"  loaded {shown('mean_loaded_gpus', '5.2f')}  wakes {run['wakes']}  {run['cpu_s']:.1f} CPU s"
    )


def compared(case: Case, load: float, runs: Sequence[Figures]) -> dict[str, Any]:
    """The seeds of one load: means with their 95 % interval, and ratios seed by seed."""
    by_policy = {policy: [run for run in runs if run["policy"] == policy] for policy in ALL}
    by_policy = {policy: found for policy, found in by_policy.items() if found}
    kept = (
        "joules_per_good_token", "slo_attainment_ratio", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s",
        "mean_loaded_gpus", "wakes", "joules_by_state", "cached_ratio", "cost",
    )  # fmt: skip
    means = {
        policy: summary_of([{key: run[key] for key in kept if key in run} for run in found])
        for policy, found in by_policy.items()
    }

    def ratio(one: str, other: str) -> Any:
        if one not in by_policy or other not in by_policy:
            return None
        pairs = [
            (theirs["joules_per_good_token"], ours["joules_per_good_token"])
            for ours, theirs in zip(by_policy[one], by_policy[other], strict=True)
            if ours["joules_per_good_token"] and theirs["joules_per_good_token"]
        ]
        return msgspec.to_builtins(ratio_of(pairs))

    def joules(policy: str) -> float:
        value = means[policy]["joules_per_good_token"]
        return float(value["mean"]) if value else float("inf")

    best_scaled = min((policy for policy in AUTOSCALES if policy in means), key=joules, default=None)
    others = [policy for policy in means if not policy.startswith("jouleway") and policy != ORACLE]
    row = {
        "load": load,
        "round_robin_limit_requests_per_s": runs[0]["limit_per_s"],
        "best_baseline": min(others, key=joules, default=None),
        "best_autoscale": best_scaled,
        "jouleway_to_round_robin": ratio("jouleway", "round-robin"),
        "jouleway_to_best_autoscale": ratio("jouleway", best_scaled or ""),
        "placement_alone_to_round_robin": ratio("jouleway-noparking", "round-robin"),
        "parking_on_top_of_placement": ratio("jouleway", "jouleway-noparking"),
        "jouleway_to_oracle": ratio("jouleway", ORACLE),
        "oracle_to_round_robin": ratio(ORACLE, "round-robin"),
        "policies": means,
    }
    return row | passes_of(case, row)


def passes_of(case: Case, row: dict[str, Any]) -> dict[str, bool]:
    """Where the case has bounds at this load; else ours is to be better than every baseline that attains as much."""
    means, found = row["policies"], dict[str, bool]()
    if "jouleway" not in means or "round-robin" not in means:
        return found
    attained = {policy: each["slo_attainment_ratio"]["mean"] for policy, each in means.items()}
    found["pass_attainment"] = attained["jouleway"] >= attained["round-robin"] - MAX_ATTAINMENT_LOSS
    place = LOADS.index(row["load"]) if row["load"] in LOADS else None
    for key, bounds in (
        ("jouleway_to_round_robin", case.against_round_robin),
        ("jouleway_to_best_autoscale", case.against_autoscale),
        ("placement_alone_to_round_robin", case.without_parking),
    ):
        if place is not None and bounds and row[key] is not None:
            found[f"pass_{key}"] = row[key]["mean"] - 1.0 <= bounds[place]
    if not case.against_round_robin:
        rivals = [
            means[policy]["joules_per_good_token"]["mean"]
            for policy in means
            if not policy.startswith("jouleway") and policy != ORACLE and means[policy]["joules_per_good_token"]
            and attained[policy] >= attained["round-robin"] - MAX_ATTAINMENT_LOSS
        ]  # fmt: skip
        ours = means["jouleway"]["joules_per_good_token"]
        found["pass_every_baseline"] = ours is not None and ours["mean"] < min(rivals)
    return found


def run(arguments: argparse.Namespace) -> int:
    """Everything asked for, one result file a case."""
    is_good = True
    policies = tuple(arguments.policies or ALL)
    for name in arguments.cases:
        study_of(name, 1.0, arguments.folder, None)  # the limit, before two processes look for it
        tasks: list[Task] = [
            (name, load, seed, arguments.folder, arguments.seconds, policies)
            for load in arguments.loads
            for seed in arguments.seeds
        ]
        with ProcessPoolExecutor(max_workers=arguments.jobs) as pool:
            found = [figures for runs in pool.map(runs_of, tasks) for figures in runs]
        case = CASES[name]
        rows = [compared(case, load, [run for run in found if run["load"] == load]) for load in arguments.loads]
        passes = all(value for row in rows for key, value in row.items() if key.startswith("pass_"))
        is_good &= passes
        path = record(
            arguments.name or f"energy_{name}",
            {
                "pass": passes,
                "case": {**msgspec.to_builtins(case), "slo": case.slo[:3]},
                "seeds": list(arguments.seeds),
                "seconds": arguments.seconds,
                "rows": rows,
                "cpu_s": round(sum(each["cpu_s"] for each in found), 1),
            },
            what=f"simulated (grade D): joules per good token of {case.model} on {case.fleet}, {case.trace}; load ="
            " share of round robin's 99 % good rate; all pay from 0 to the end of the drain; ratios are geometric means"
            " seed by seed; oracle is a bound, no policy",
        )
        print(path.relative_to(ROOT), "pass" if passes else "MISSED")
    return 0 if is_good else 1


def quick(arguments: argparse.Namespace) -> int:
    """One case; its lines are the result."""
    policies = tuple(arguments.policies or ALL)
    for load in arguments.loads:
        for seed in arguments.seeds:
            found = runs_of((arguments.case, load, seed, arguments.folder, arguments.seconds, policies))
            row = compared(CASES[arguments.case], load, found)
            for key, value in row.items():
                if isinstance(value, dict) and "mean" in value:
                    print(f"  {key}: {value['mean'] - 1:+.1%}")
                elif key.startswith("pass_"):
                    print(f"  {key}: {value}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = root.add_subparsers(required=True)

    def command(name: str, what: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what.__doc__)
        added.set_defaults(what=what)
        added.add_argument("--folder", type=Path, default=FOLDER)
        added.add_argument("--seconds", type=float, help="of simulated time, at most (default: all)")
        added.add_argument("--policies", nargs="+")
        added.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
        added.add_argument("--loads", type=float, nargs="+", default=list(LOADS))
        return added

    one = command("quick", quick)
    one.add_argument("--case", choices=CASES, default="conversation")
    one.set_defaults(seconds=600.0, seeds=[1], loads=[0.25])
    many = command("run", run)
    many.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    many.add_argument("--jobs", type=int, default=JOBS)
    many.add_argument("--name", help="of the result, where there is one case")
    return root


def main() -> int:
    """Simulate, record, and fail when a bound is missed."""
    arguments = parser().parse_args()
    return int(arguments.what(arguments))


if __name__ == "__main__":
    sys.exit(main())
