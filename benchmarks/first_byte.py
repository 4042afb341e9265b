"""What the ledger adds to the time to the first byte, at half of the relay's maximum, against an older commit.

Called by hand: ``python benchmarks/first_byte.py --old COMMIT``. Both servers stand for the whole run with every gate
on, the new one with its ledger, where a first byte waits until the request's hold is durable. The simulated engine's
step takes 10 ms: with the shorter ones of ``old_and_new.py relay`` its own process fills the cores at any load, and
nothing but that is seen in a p99. The maximum is wrk's against the new one; then both are loaded in turns, open loop
(Poisson) at half of it, and at a tenth. A first byte counts from the moment its request was due. Bound (issue 5, row
4): at half of the maximum, p99 of the new one at most 5 ms above the old one's.

Beside it, without an older commit and without the queues of two full cores: how long first bytes lay ready in the
control plane until their hold was durable, by its own ``jouleway_ledger_wait_seconds``.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.canned import NUM_TOKENS
from benchmarks.engine_tax import FIXED_STEP_S
from benchmarks.jouleway_server import ADMIN_KEY, OPERATOR_KEY, simulated_configuration
from benchmarks.old_and_new import both_standing, with_gates
from benchmarks.record import ROOT, record
from benchmarks.relay_vs_litellm import load as wrk_load
from benchmarks.servers import Server, wait_quiet
from scheduler.bench.client import Target
from scheduler.bench.report import Quantiles
from scheduler.bench.session import Load, measure
from scheduler.bench.workload import Lengths

BOUND_ADDED_MS = 5.0
TURN_S = 20.0
CONNECTIONS = 256
"""A stream takes a third of a second here: so many at once keep the relay busy."""


def one_load(server: Server, rate_rps: float, seed: int) -> dict[str, float]:
    """First bytes of one turn. Raises: RuntimeError when a request failed, or the server fell behind."""
    lengths = Lengths(input_tokens=32, output_tokens=NUM_TOKENS)
    load = Load(rate_rps=rate_rps, lengths=lengths, duration_s=TURN_S, warmup_s=3.0, seed=seed)
    before_s = server.cpu_s()
    report, run = asyncio.run(measure(Target(base_url=server.url, api_key=OPERATOR_KEY), load))
    if report.requests.failed or run.num_unsent:
        raise RuntimeError(f"{server.name}: {report.requests.failed} failed: {report.requests.by_reason}")
    assert report.ttft is not None
    return {
        "requests": report.requests.measured,
        "ttft_p50_ms": _ms(report.ttft.p50_s),
        "ttft_p90_ms": _ms(report.ttft.p90_s),
        "ttft_p99_ms": _p99_ms(report.ttft),
        "client_lag_p99_ms": _p99_ms(report.client.lag),
        "client_cpu_ratio": round(report.client.cpu_ratio, 2),
        "server_cpu_s": round(server.cpu_s() - before_s, 2),
    }


def ledger_waits(server: Server) -> Counter[float]:
    """First bytes by the bucket of how long they lay ready for their hold, as the control plane counts them.

    By upper bounds in seconds; empty for one without such a metric.
    """
    ask = Request(f"{server.admin_url}/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    with urlopen(ask, timeout=30.0) as reply:
        page = reply.read().decode()
    below: dict[float, float] = {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "jouleway_ledger_wait_seconds_bucket" and sample.labels["part"] == "first_byte"
    }
    bounds = sorted(below)
    before = dict(zip(bounds, [0.0, *map(below.__getitem__, bounds)], strict=False))
    return Counter({bound: int(below[bound] - before[bound]) for bound in bounds})


def bucket_ms(waits: Counter[float], ratio: float) -> float:
    """The bound of the bucket with this quantile, in milliseconds; infinite beyond the last one."""
    seen, wanted = 0, ratio * waits.total()
    for bound_s in sorted(waits):
        seen += waits[bound_s]
        if seen >= wanted:
            return _ms(bound_s)
    return math.inf


def in_turns(servers: dict[str, Server], rate_rps: float, num_pairs: int) -> dict[str, Any]:
    """Both under the same load, one after the other, so many times; added: the new one's less the old one's."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    waits_before = ledger_waits(servers["new"])
    for pair in range(num_pairs):
        for name in sorted(servers, reverse=bool(pair % 2)):
            turns[name].append(one_load(servers[name], rate_rps, pair))
            words = f"{rate_rps:.0f}/s, pair {pair + 1}/{num_pairs} {name}: {turns[name][-1]}"
            print(words, file=sys.stderr, flush=True)
    added_ms = {
        quantile: [round(new[quantile] - old[quantile], 2) for new, old in zip(turns["new"], turns["old"], strict=True)]
        for quantile in ("ttft_p50_ms", "ttft_p99_ms")
    }
    waits = ledger_waits(servers["new"]) - waits_before
    return {
        "rate_rps": round(rate_rps, 1),
        "waited_for_hold": waits.total(),
        "waited_for_hold_at_most_ms": {f"p{100 * ratio:g}": bucket_ms(waits, ratio) for ratio in (0.5, 0.9, 0.99)},
        "waited_for_hold_by_bucket_ms": {f"{_ms(bound_s):g}": waits[bound_s] for bound_s in sorted(waits)},
        "added_p50_ms": round(statistics.median(added_ms["ttft_p50_ms"]), 2),
        "added_p99_ms": round(statistics.median(added_ms["ttft_p99_ms"]), 2),
        "added_of_pairs": added_ms,
        "turns": turns,
    }


def _ms(time_s: float) -> float:
    return round(1000 * time_s, 2)


def _p99_ms(quantiles: Quantiles | None) -> float:
    assert quantiles is not None
    assert quantiles.p99_s is not None
    return _ms(quantiles.p99_s)


def main() -> int:
    """Measure, record, and fail when the bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, help="the commit to compare with")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quiet-s", type=float, default=180.0, help="how long to wait for a quiet machine")
    arguments = parser.parse_args()
    load_1min = wait_quiet(max_load=0.6, timeout_s=arguments.quiet_s)
    gates = with_gates(simulated_configuration(FIXED_STEP_S))
    with both_standing(arguments.old, gates, gates) as servers:
        figures = wrk_load(servers["new"], "simulated", OPERATOR_KEY, duration_s=10, connections=CONNECTIONS)
        maximum = figures["requests_per_s"]
        at_half = in_turns(servers, maximum / 2, arguments.pairs)
        at_a_tenth = in_turns(servers, maximum / 10, arguments.pairs)
    added_ms = at_half["added_p99_ms"]
    path = record(
        "first_byte",
        {
            "added_p99_ms": added_ms,
            "bound_ms": BOUND_ADDED_MS,
            "pass": added_ms <= BOUND_ADDED_MS,
            "maximum_streams_per_s": maximum,
            "waited_for_hold_p99_at_most_ms": at_half["waited_for_hold_at_most_ms"]["p99"],
            "at_half": at_half,
            "at_a_tenth": at_a_tenth,
            "old_commit": arguments.old,
            "load_1min_before": round(load_1min, 2),
            "cores": sorted(os.sched_getaffinity(0)),
        },
        what="time to the first byte of streams at half of the relay's maximum, open loop, every gate on in both: this "
        "commit, whose holds are durable before a first byte, against an older one without a ledger; median over "
        "pairs. At a tenth of it the two cores, which client and engine share, have air: what is left is the ledger's",
    )
    print(path.relative_to(ROOT))
    return 0 if added_ms <= BOUND_ADDED_MS else 1


if __name__ == "__main__":
    sys.exit(main())
