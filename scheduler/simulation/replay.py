"""What becomes of a trace on a fleet under a policy, the limit by turns, and the bound on prefix hits.

Called by benchmarks and planning. It must never know how a policy decides. All of it is simulated.

Load is a share of the *round-robin limit*: the highest rate at which round robin over the same fleet still has 99 %
good requests in the first ten minutes of the trace. So two schedulers at one load got the same requests a second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from scheduler.core.request import DEFAULT_SLO, Slo
from scheduler.simulation.fleet import Fleet, FleetWorker, Loss, Watch
from scheduler.simulation.policies import Setting, router_of
from scheduler.simulation.results import Results
from scheduler.simulation.traces import Arrival, TraceRow, first, scaled
from workers.engines.simulated_options import SimulatedOptions

LIMIT_S = 600.0
"""The part of a trace on which the limit is looked for."""
LIMIT_GOOD_RATIO = 0.99
LIMIT_STEP_RATIO = 0.01
"""How exactly it is found."""


def fleet_of(*kinds: tuple[int, str, SimulatedOptions]) -> list[FleetWorker]:
    """Workers from (how many, name of the kind, engine)."""
    return [
        FleetWorker(worker_id=f"{name}-{number:03}", options=options)
        for count, name, options in kinds
        for number in range(count)
    ]


def simulate(
    policy: str,
    setting: Setting,
    arrivals: Sequence[Arrival],
    *,
    losses: Sequence[Loss] = (),
    watch: Watch | None = None,
) -> Results:
    """Every request through one policy, from 0 to the last end. Raises: UnknownPolicy."""
    router = router_of(policy, setting)
    return Fleet(setting.workers, arrivals, router, losses=losses, watch=watch).run()


def run(policy: str, workers: Sequence[FleetWorker], arrivals: Sequence[Arrival], *, seed: int = 0) -> Results:
    """The same where energy has no price."""
    return simulate(policy, Setting(workers=workers, seed=seed, price_per_kwh=0.0), arrivals)


def round_robin_limit_per_s(
    workers: Sequence[FleetWorker], rows: Sequence[TraceRow], *, slo: Slo = DEFAULT_SLO, seed: int = 0
) -> float:
    """The limit that loads are shares of, in requests a second."""
    return limit_of("round-robin", workers, rows, slo=slo, seed=seed)


def limit_of(
    policy: str,
    workers: Sequence[FleetWorker],
    rows: Sequence[TraceRow],
    *,
    slo: Slo = DEFAULT_SLO,
    seed: int = 0,
    seconds: float = LIMIT_S,
) -> float:
    """The highest rate at which 99 % are good under a policy, in requests a second, by bisection; 0 where not even a
    hundredth of what the engines could compute is good. ``seconds`` of the trace's beginning are tried."""
    beginning = first(rows, seconds)

    def is_good(rate_per_s: float) -> bool:
        arrivals = scaled(beginning, rate_per_s=rate_per_s, seed=seed, model=workers[0].model)
        return not arrivals or bool(run(policy, workers, arrivals).is_good(slo).mean() >= LIMIT_GOOD_RATIO)

    # Above what the engines can compute with all steps full, nothing is good for long.
    high = sum(1.0 / _least_busy_s(beginning, worker.options) for worker in workers)
    low, least = high / 2, high / 100
    while not is_good(low):
        low, high = low / 2, low
        if low < least:
            return 0.0
    while is_good(high):
        low, high = high, high * 2
    while high - low > LIMIT_STEP_RATIO * low:
        middle = (low + high) / 2
        low, high = (middle, high) if is_good(middle) else (low, middle)
    return low


def _least_busy_s(rows: Sequence[TraceRow], options: SimulatedOptions) -> float:
    """Mean engine time of a request without the fixed part of steps."""
    prefill_s = options.time_prefill_s * sum(row.input_tokens for row in rows)
    decode_s = options.time_decode_s * sum(row.output_tokens for row in rows)
    return max((prefill_s + decode_s) / len(rows), 1e-9)


def pooled_cached_ratio(arrivals: Sequence[Arrival], *, kv_tokens: int | None, block_tokens: int) -> float:
    """Prompt tokens that one prefix cache before all workers would have had ÷ prompt tokens; see below."""
    cached_tokens = pooled_cached_tokens(arrivals, kv_tokens=kv_tokens, block_tokens=block_tokens)
    return sum(cached_tokens) / sum(arrival.prompt_tokens for arrival in arrivals)


def pooled_cached_tokens(arrivals: Sequence[Arrival], *, kv_tokens: int | None, block_tokens: int) -> list[int]:
    """What one prefix cache before all workers would have had of each prompt.

    It is the least recently used blocks that go, every prompt is there the moment it arrives, and nothing else needs
    the room: no fleet of caches of the same total size can have more. ``kv_tokens`` None: nothing ever goes.
    """
    blocks: OrderedDict[int, None] = OrderedDict()
    max_blocks = kv_tokens // block_tokens if kv_tokens is not None else None
    cached_tokens: list[int] = []
    for arrival in arrivals:
        num_hits, wanted = 0, arrival.full_blocks
        # The last token is always computed: it yields the first output.
        for block in wanted[: (arrival.prompt_tokens - 1) // block_tokens]:
            if block not in blocks:
                break
            num_hits += 1
        cached_tokens.append(num_hits * block_tokens)
        for block in reversed(wanted):  # a prompt's first blocks serve more prompts: they go last
            blocks[block] = None
            blocks.move_to_end(block)
        while max_blocks is not None and len(blocks) > max_blocks:
            blocks.popitem(last=False)
    return cached_tokens
