"""Placement of the production core against routing by requests, on small made-up traces; figures:
benchmarks/placement.py."""

import random

import numpy as np
import pytest

from scheduler.catalogue import load_catalogue
from scheduler.core.request import DEFAULT_SLO
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from scheduler.core.score import PlacementRules
from scheduler.simulation.baselines import LeastRequests, PowerOfTwo, RoundRobin
from scheduler.simulation.core_router import CoreRouter
from scheduler.simulation.fleet import Fleet, FleetWorker, Router
from scheduler.simulation.replay import fleet_of, pooled_cached_ratio, run
from scheduler.simulation.traces import MODEL, Arrival, scaled
from scheduler.trace_files import TraceRow
from workers.engines.simulated_options import SimulatedOptions

BASELINES = ("round-robin", "least-requests", "power-of-two")
FAST = SimulatedOptions(block_tokens=512)
SLOW = SimulatedOptions(block_tokens=512, time_t0_s=0.0167, time_prefill_s=8.1e-5, time_decode_s=2.2e-4)


def chat(rate_per_s: float, seed: int = 1) -> list[Arrival]:
    """A minute of prompts and answers of very unequal lengths."""
    chance = random.Random(seed)
    rows = [
        TraceRow(
            arrival_s=0.2 * number,
            input_tokens=1 + int(chance.expovariate(1 / 1_000)),
            output_tokens=1 + int(chance.expovariate(1 / 150)),
            blocks=(),
        )
        for number in range(300)
    ]
    return scaled(rows, rate_per_s=rate_per_s, seed=seed)


def p99_s(policy: str, workers: list[FleetWorker], arrivals: list[Arrival]) -> float:
    return float(np.quantile(run(policy, workers, arrivals, seed=1).ttft_s, 0.99))


@pytest.mark.parametrize("rate_per_s", [8.0, 20.0])
def test_first_tokens_come_no_later_than_with_the_best_of_the_others(rate_per_s: float) -> None:
    """Two engines, light and busy: the p99 of the core is within 3 % of the best."""
    workers, arrivals = fleet_of((2, "h100", FAST)), chat(rate_per_s)
    assert p99_s("jouleway", workers, arrivals) <= 1.03 * min(p99_s(name, workers, arrivals) for name in BASELINES)


def test_unlike_engines_are_used_by_what_they_can() -> None:
    """One fast, two slow: whoever counts requests only keeps people waiting for the slow ones."""
    workers, arrivals = fleet_of((1, "h100", FAST), (2, "slow", SLOW)), chat(12.0)
    ours, theirs = (run(name, workers, arrivals) for name in ("jouleway", "least-requests"))
    assert np.quantile(ours.ttft_s, 0.99) < 0.9 * np.quantile(theirs.ttft_s, 0.99)
    assert ours.is_good(DEFAULT_SLO).mean() > 0.99


def test_conversations_stay_where_their_beginning_is() -> None:
    """Each turn of twenty conversations repeats all before it: nine tenths of what one pooled cache would find."""
    chance, arrivals = random.Random(3), []
    for conversation in range(20):
        at_s, num_blocks = chance.uniform(0.0, 20.0), 0
        for _ in range(8):
            num_blocks += chance.randint(1, 4)
            blocks = tuple(1_000 * conversation + number for number in range(num_blocks + 1))
            tokens = 512 * num_blocks + chance.randint(1, 511)
            arrivals.append(
                Arrival(
                    arrival_s=at_s, prompt_tokens=tokens, output_tokens=chance.randint(20, 200),
                    prompt_tokens_bound=4 * tokens, blocks=blocks, full_blocks=blocks[:num_blocks],
                )
            )  # fmt: skip
            at_s += chance.uniform(5.0, 15.0)
    arrivals.sort(key=lambda arrival: arrival.arrival_s)
    workers = fleet_of((4, "h100", FAST))
    room_tokens = sum(worker.options.kv_tokens for worker in workers)
    pooled = pooled_cached_ratio(arrivals, kv_tokens=room_tokens, block_tokens=512)
    assert pooled > 0.5
    assert run("jouleway", workers, arrivals).cached_ratio >= 0.9 * pooled
    assert run("least-requests", workers, arrivals).cached_ratio < 0.9 * pooled


def unlike_workers(num_each: int) -> list[FleetWorker]:
    """H100 and B200 engines of Llama-3.1-8B by the catalogue, with all their watts."""
    kinds = [load_catalogue().engine(gpu, "llama-3.1-8b") for gpu in ("H100", "B200")]
    return [
        FleetWorker(worker_id=f"{kind.gpu.lower()}-{number}", options=kind.options, draw=kind.draw)
        for kind in kinds
        for number in range(num_each)
    ]


def joules_per_good_token(router: Router, arrivals: list[Arrival]) -> tuple[float, float]:
    """And the share of good requests."""
    found = Fleet(unlike_workers(2), arrivals, router).run()
    return found.joules_per_good_token(DEFAULT_SLO), float(found.is_good(DEFAULT_SLO).mean())


@pytest.mark.parametrize("rate_per_s", [4.0, 30.0])
def test_unlike_gpus_take_fewer_joules_than_by_turns_or_by_counting(rate_per_s: float) -> None:
    """Two H100s and two B200s, quiet and busy, engines always loaded: at 0.15 a kWh the core's placement takes fewer
    joules a good token than each baseline, idle watts included, and keeps as many requests good."""
    arrivals = chat(rate_per_s)
    rules = Rules(placement=PlacementRules(nano_per_joule={"local": 41.7}))
    ours, ours_good = joules_per_good_token(CoreRouter(Scheduler(models=(MODEL,), rules=rules), model=MODEL), arrivals)
    for router in (RoundRobin(), LeastRequests(), PowerOfTwo(seed=1)):
        theirs, theirs_good = joules_per_good_token(router, arrivals)
        assert ours < theirs
        assert ours_good >= theirs_good - 0.01
