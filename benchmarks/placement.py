"""Placement against what others do, simulated: a trace over a fleet, at loads that mean the same to every policy.

Called by people and CI (``python benchmarks/placement.py quick|traces|mixed|speed``). Engines are simulated; what
decides is the production core. Energy has no price here.

quick    one load of one trace in seconds, every policy: for work on the placement itself
traces   8 × H100 / Llama-3.1-8B, all loads, five seeds, whole slices: TTFT, attainment, prefix hits
mixed    2 × H100 and 4 × a synthetic GPU with time and energy × 2.5 at load 0.7: p95 by tenant, goodput
speed    100 × H100 at load 0.5: requests a second of wall time through the production core
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import json
import os
import pstats
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import RESULTS, ROOT, record
from scheduler.core.request import DEFAULT_SLO
from scheduler.simulation.replay import fleet_of, limit_of, pooled_cached_ratio, round_robin_limit_per_s, run
from scheduler.simulation.results import Results
from scheduler.simulation.traces import Arrival, TraceRow, first, scaled
from scheduler.trace_files import read_trace
from workers.engines.simulated_options import SimulatedOptions

TRACES = {
    "conversation": "azure2023_conv_dev.csv",
    "code": "azure2023_code_dev.csv",
    "mooncake": "mooncake_conversation_dev.jsonl",
}
BLOCK_TOKENS = 512
"""Of the Mooncake trace, and so of the engines' caches."""
MIN_S = 2400.0
"""Slices shorter than this are repeated."""
LOADS = (0.3, 0.5, 0.7, 0.85, 0.95)
SEEDS = (1, 2, 3, 4, 5)
BASELINES = ("round-robin", "least-requests", "power-of-two")
POLICIES = ("jouleway", *BASELINES)

H100 = SimulatedOptions(block_tokens=BLOCK_TOKENS, max_model_len=262_144)
SLOW_RATIO = 2.5
SLOW = dataclasses.replace(
    H100,
    **{
        name: getattr(H100, name) * SLOW_RATIO
        for name in (
            "time_t0_s", "time_decode_s", "time_prefill_s", "energy_e0_joules", "energy_decode_joules",
            "energy_prefill_joules", "energy_context_joules",
        )
    },
)  # fmt: skip
"""No GPU on sale: the H100's curve, 2.5 times as slow and as hungry."""

FLEETS = {
    "8xh100": fleet_of((8, "h100", H100)),
    "mixed": fleet_of((2, "h100", H100), (4, "slow", SLOW)),
    "100xh100": fleet_of((100, "h100", H100)),
}

MAX_TTFT_RATIO = 1.03
MIN_HITS_RATIO = 0.9
MIN_GOODPUT_RATIO = 1.15
MIN_REQUESTS_PER_S = 3_000


def limit_per_s(trace: str, fleet: str, rows: Sequence[TraceRow]) -> float:
    """The fleet's round-robin limit on the trace, looked for once: it is kept beside the results."""
    path = RESULTS / "round_robin_limits.json"
    known = json.loads(path.read_text(encoding="utf-8"))["values"] if path.exists() else {}
    key = f"{trace} {fleet}"
    if key not in known:
        known[key] = round(round_robin_limit_per_s(FLEETS[fleet], rows), 4)
        record(
            "round_robin_limits",
            known,
            what="simulated: requests/s at which round robin still has 99 % good requests (TTFT <= max(1 s, 3 x alone) "
            "and mean TPOT <= 50 ms), first ten minutes of the development slice, within 1 %",
            command=f"python benchmarks/placement.py quick --trace {trace} --fleet {fleet}",
        )
    print(f"round-robin limit of {fleet} on {trace}: {known[key]} requests/s", file=sys.stderr)
    return float(known[key])


def figures(results: Results) -> dict[str, Any]:
    """What one run yields. Seconds, ratios; good tokens are output tokens of good requests."""
    ttft_s, good = results.ttft_s, results.is_good(DEFAULT_SLO)
    span_s = float(np.nanmax(results.ended_s))
    by_tenant = {
        str(tenant): (
            round(float(np.quantile(ttft_s[results.tenants == tenant], 0.95)), 4),
            round(float(np.quantile(results.e2e_s[results.tenants == tenant], 0.95)), 4),
        )
        for tenant in np.unique(results.tenants)
    }
    return {
        "requests": len(results.arrivals),
        "refused": int((results.worker < 0).sum()),
        "ttft_s_p50": round(float(np.quantile(ttft_s, 0.5)), 4),
        "ttft_s_p95": round(float(np.quantile(ttft_s, 0.95)), 4),
        "ttft_s_p99": round(float(np.quantile(ttft_s, 0.99)), 4),
        "tpot_s_p99": round(float(np.quantile(results.tpot_s, 0.99)), 5),
        "slo_attainment_ratio": round(float(good.mean()), 5),
        "good_tokens_per_s": round(float(results.output_tokens[good].sum()) / span_s, 2),
        "cached_ratio": round(results.cached_ratio, 4),
        "preemptions": int(results.num_preemptions.sum()),
        "attempts": results.num_attempts,
        "ttft_and_e2e_s_p95_by_tenant": by_tenant,
        "requests_per_cpu_s": round(len(results.arrivals) / results.cpu_s, 1),
    }


def arrivals_of(
    trace: str, fleet: str, *, load: float, seed: int, folder: Path, seconds: float | None
) -> list[Arrival]:
    """Of the whole slice, or of its first seconds. ``load`` × limit is the mean rate of what is replayed."""
    rows: Sequence[TraceRow] = read_trace(folder / TRACES[trace])
    # A hundred engines by turns get what eight get, engine by engine: no need to search for ten minutes.
    size, known = (len(FLEETS[fleet]) / 8, "8xh100") if fleet == "100xh100" else (1.0, fleet)
    rate_per_s = load * size * limit_per_s(trace, known, rows)
    if seconds is not None:
        rows = first(rows, seconds)
    return scaled(rows, rate_per_s=rate_per_s, seed=seed, min_s=MIN_S if seconds is None else 0.0)


def case(arguments: tuple[str, str, float, int, Path, float | None, tuple[str, ...]]) -> dict[str, Any]:
    """One trace, fleet, load and seed: every policy on the same arrivals."""
    trace, fleet, load, seed, folder, seconds, policies = arguments
    workers = FLEETS[fleet]
    arrivals = arrivals_of(trace, fleet, load=load, seed=seed, folder=folder, seconds=seconds)
    found: dict[str, Any] = {"trace": trace, "load": load, "seed": seed}
    if any(arrival.blocks for arrival in arrivals):
        room_tokens = sum(worker.options.kv_tokens for worker in workers)
        found["pooled_lru_cached_ratio"] = round(
            pooled_cached_ratio(arrivals, kv_tokens=room_tokens, block_tokens=BLOCK_TOKENS), 4
        )
        found["unbounded_cached_ratio"] = round(
            pooled_cached_ratio(arrivals, kv_tokens=None, block_tokens=BLOCK_TOKENS), 4
        )
    found["policies"] = {policy: figures(run(policy, workers, arrivals, seed=seed)) for policy in policies}
    return found


def cases(
    traces: Sequence[str], fleet: str, loads: Sequence[float], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """All of them, on as many processes as asked for."""
    for trace in traces:  # before the processes begin: they only read it
        limit_per_s(trace, fleet, read_trace(arguments.folder / TRACES[trace]))
    policies = tuple(POLICIES)
    wanted = [
        (trace, fleet, load, seed, arguments.folder, arguments.seconds, policies)
        for trace in traces
        for load in loads
        for seed in arguments.seeds
    ]
    with ProcessPoolExecutor(max_workers=arguments.jobs) as pool:
        return list(pool.map(case, wanted))


def mean(found: Sequence[dict[str, Any]], policy: str, figure: str) -> float:
    """Over the seeds of one trace and load."""
    return float(np.mean([each["policies"][policy][figure] for each in found]))


def compared(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The seeds of one trace and load: ours against the best of the others, and the bounds."""
    ttft_s = {policy: mean(found, policy, "ttft_s_p99") for policy in POLICIES}
    attained = {policy: mean(found, policy, "slo_attainment_ratio") for policy in POLICIES}
    ratios = [
        each["policies"]["jouleway"]["ttft_s_p99"] / min(each["policies"][policy]["ttft_s_p99"] for policy in BASELINES)
        for each in found
    ]
    best_s, best_attained = min(ttft_s[name] for name in BASELINES), max(attained[name] for name in BASELINES)
    load = found[0]["load"]
    row = {
        "trace": found[0]["trace"],
        "load": load,
        "ttft_s_p99": {policy: round(value, 4) for policy, value in ttft_s.items()},
        "ttft_p99_ratio": round(ttft_s["jouleway"] / best_s, 4),
        "ttft_p99_ratio_by_seed": [round(ratio, 4) for ratio in ratios],
        "slo_attainment_ratio": {policy: round(value, 5) for policy, value in attained.items()},
        "tpot_s_p99": {policy: round(mean(found, policy, "tpot_s_p99"), 5) for policy in POLICIES},
        "pass_ttft": ttft_s["jouleway"] <= MAX_TTFT_RATIO * best_s,
        # Where nobody misses there is nothing to be higher than.
        "pass_attainment": load < 0.7 or attained["jouleway"] > best_attained or attained["jouleway"] == 1.0,
    }
    if "pooled_lru_cached_ratio" in found[0]:
        pooled = float(np.mean([each["pooled_lru_cached_ratio"] for each in found]))
        cached = mean(found, "jouleway", "cached_ratio")
        row |= {
            "cached_ratio": {policy: round(mean(found, policy, "cached_ratio"), 4) for policy in POLICIES},
            "pooled_lru_cached_ratio": round(pooled, 4),
            "unbounded_cached_ratio": round(float(np.mean([each["unbounded_cached_ratio"] for each in found])), 4),
            "pass_hits": cached >= MIN_HITS_RATIO * pooled,
        }
    return row


def show(found: dict[str, Any]) -> None:
    """One case as a table."""
    beside = "".join(f", {key} {found[key]}" for key in found if key.endswith("cached_ratio"))
    print(f"{found['trace']} load {found['load']} seed {found['seed']}{beside}")
    for policy, row in found["policies"].items():
        print(
            f"  {policy:15} TTFT p50 {row['ttft_s_p50']:8.3f} p95 {row['ttft_s_p95']:8.3f} p99 {row['ttft_s_p99']:8.3f}"
            f" TPOT p99 {1000 * row['tpot_s_p99']:6.1f} ms  attained {row['slo_attainment_ratio']:.4f}  "
            f"good tok/s {row['good_tokens_per_s']:8.0f}  cached {row['cached_ratio']:.3f}  "
            f"refused {row['refused']}  preempted {row['preemptions']}  {row['requests_per_cpu_s']:.0f} a CPU second"
        )


def quick(arguments: argparse.Namespace) -> int:
    """Every policy at one load; nothing is recorded."""
    for seed in arguments.seeds:
        policies = tuple(arguments.policies or POLICIES)
        show(
            case(
                (arguments.trace, arguments.fleet, arguments.load, seed, arguments.folder, arguments.seconds, policies)
            )
        )
    return 0


def traces(arguments: argparse.Namespace) -> int:
    """Row by row, with the bounds."""
    found = cases(arguments.traces, "8xh100", arguments.loads, arguments)
    rows = []
    for trace in arguments.traces:
        for load in arguments.loads:
            rows.append(compared([each for each in found if (each["trace"], each["load"]) == (trace, load)]))
            print(rows[-1])
    passes = all(value for row in rows for key, value in row.items() if key.startswith("pass_"))
    path = record(
        arguments.name or "placement",
        {
            "pass": passes,
            "bounds": {"ttft_p99_ratio": MAX_TTFT_RATIO, "hits_ratio": MIN_HITS_RATIO},
            "seeds": list(arguments.seeds),
            "seconds": arguments.seconds,
            "rows": rows,
            "runs": [{**each, "policies": _short(each["policies"])} for each in found],
        },
        what="simulated: 8 x H100 / Llama-3.1-8B, the production core against routing by turns and by requests on the "
        "Azure and Mooncake development slices; load = share of round robin's 99 % good rate; energy price 0",
    )
    print(path.relative_to(ROOT), "pass" if passes else "MISSED")
    return 0 if passes else 1


def _short(policies: dict[str, Any]) -> dict[str, Any]:
    """Without what is only read by tenant."""
    return {
        policy: {key: value for key, value in row.items() if key != "ttft_and_e2e_s_p95_by_tenant"}
        for policy, row in policies.items()
    }


def mixed(arguments: argparse.Namespace) -> int:
    """Unlike GPUs in one pool: every tenant's p95, and goodput, against least requests."""
    found = cases(arguments.traces, "mixed", (0.7,), arguments)
    rows = []
    for trace in arguments.traces:
        seeds = [each["policies"] for each in found if each["trace"] == trace]
        goodput = {policy: float(np.mean([each[policy]["good_tokens_per_s"] for each in seeds])) for policy in POLICIES}
        tenants = sorted(seeds[0]["jouleway"]["ttft_and_e2e_s_p95_by_tenant"])
        p95_s = {
            policy: {
                tenant: np.mean([each[policy]["ttft_and_e2e_s_p95_by_tenant"][tenant] for each in seeds], axis=0)
                for tenant in tenants
            }
            for policy in ("jouleway", "least-requests")
        }
        ratios = {
            tenant: (p95_s["jouleway"][tenant] / p95_s["least-requests"][tenant]).round(4).tolist()
            for tenant in tenants
        }
        goodput_ratio = goodput["jouleway"] / goodput["least-requests"]
        rows_of_trace = read_trace(arguments.folder / TRACES[trace])
        most = {
            policy: limit_of(policy, FLEETS["mixed"], rows_of_trace, seconds=arguments.limit_seconds)
            for policy in ("jouleway", "least-requests", "round-robin")
        }
        rows.append(
            {
                "trace": trace,
                "good_tokens_per_s": {policy: round(value, 1) for policy, value in goodput.items()},
                "goodput_ratio_at_load": round(goodput_ratio, 4),
                "limit_requests_per_s": {policy: round(value, 3) for policy, value in most.items()},
                "goodput_ratio": round(most["jouleway"] / most["least-requests"], 4),
                "ttft_and_e2e_p95_ratio_by_tenant": ratios,
                "slo_attainment_ratio": {
                    policy: round(float(np.mean([each[policy]["slo_attainment_ratio"] for each in seeds])), 5)
                    for policy in POLICIES
                },
                # At this load nearly all is good under both; what tells them apart is how much either could take.
                "pass_goodput": most["jouleway"] >= MIN_GOODPUT_RATIO * most["least-requests"],
                "pass_tenants": all(max(both) <= 1.0 for both in ratios.values()),
            }
        )
        print(rows[-1])
    passes = all(row["pass_goodput"] and row["pass_tenants"] for row in rows)
    path = record(
        arguments.name or "placement_mixed",
        {
            "pass": passes,
            "load": 0.7,
            "seeds": list(arguments.seeds),
            "seconds": arguments.seconds,
            "bounds": {"goodput_ratio": MIN_GOODPUT_RATIO, "tenant_p95_ratio": 1.0},
            "rows": rows,
        },
        what="simulated: 2 x H100 / Llama-3.1-8B and 4 x a synthetic GPU (the H100's curve, time and energy x 2.5), "
        "the production core against least requests; p95 ratios below 1: the core is faster; goodput: the most "
        "requests/s of which 99 % are good; energy price 0",
    )
    print(path.relative_to(ROOT), "pass" if passes else "MISSED")
    return 0 if passes else 1


def speed(arguments: argparse.Namespace) -> int:
    """The production core at 100 workers; with ``--profile`` where the time goes instead."""
    arrivals = arrivals_of(
        "conversation", "100xh100", load=0.5, seed=1, folder=arguments.folder, seconds=arguments.seconds
    )
    if arguments.profile:
        profile = cProfile.Profile()
        profile.runcall(run, "jouleway", FLEETS["100xh100"], arrivals)
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)
        return 0
    results = run("jouleway", FLEETS["100xh100"], arrivals)
    rate_per_s, cpu_rate_per_s = len(arrivals) / results.wall_s, len(arrivals) / results.cpu_s
    path = record(
        arguments.name or "simulator_speed",
        {
            "pass": rate_per_s >= MIN_REQUESTS_PER_S,
            "bound_requests_per_s": MIN_REQUESTS_PER_S,
            "requests_per_wall_s": round(rate_per_s, 1),
            "seconds": arguments.seconds,
            "virtual_s": round(float(np.nanmax(results.ended_s)), 1),
            **{key: value for key, value in figures(results).items() if "tenant" not in key},
        },
        what="simulated: 100 x H100 / Llama-3.1-8B at load 0.5 of the Azure conversation development slice, one "
        "process, the production core with all terms, first arrival to last finish",
    )
    print(f"{rate_per_s:.0f} requests/s of wall time, {cpu_rate_per_s:.0f} of CPU time; {path.relative_to(ROOT)}")
    return 0 if rate_per_s >= MIN_REQUESTS_PER_S else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = root.add_subparsers(required=True)

    def command(name: str, what: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what.__doc__)
        added.set_defaults(what=what)
        folder = Path(os.environ.get("JOULEWAY_TRACES", "../shared/data/traces"))
        added.add_argument("--folder", type=Path, default=folder)
        added.add_argument("--seconds", type=float, help="only the first seconds of the slice (default: all of it)")
        added.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
        added.add_argument("--name", help="of the result")
        added.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
        return added

    one = command("quick", quick)
    one.add_argument("--trace", choices=TRACES, default="conversation")
    one.add_argument("--fleet", choices=FLEETS, default="8xh100")
    one.add_argument("--load", type=float, default=0.7)
    one.add_argument("--policies", nargs="+", choices=POLICIES)
    one.set_defaults(seconds=300.0, seeds=[1])
    many = command("traces", traces)
    many.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    many.add_argument("--loads", type=float, nargs="+", default=list(LOADS))
    unlike = command("mixed", mixed)
    unlike.add_argument("--traces", nargs="+", choices=TRACES, default=["conversation", "mooncake"])
    unlike.add_argument("--limit-seconds", type=float, default=600.0, help="of the slice, to look for limits on")
    command("speed", speed).add_argument("--profile", action="store_true")
    return root


def main() -> int:
    """Measure, record, and fail when a bound is missed."""
    arguments = parser().parse_args()
    return int(arguments.what(arguments))


if __name__ == "__main__":
    sys.exit(main())
