"""Draws scenarios: workers, rules, load and faults, all from one seed, in kinds that each press on another promise.

Called by tests. It must never know the core's decisions: what is drawn here is fixed before the first of them.
"""

from __future__ import annotations

import dataclasses
import random
from enum import StrEnum

from scheduler.core.admission import Limits
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.queue import QueueLimits
from scheduler.core.request import Band, DataClass, Rates, Request
from scheduler.core.rules import Rules
from scheduler.simulation.scenario import (
    SHORT_LIMITS,
    Arrival,
    ClockJump,
    Fault,
    FaultAt,
    Messages,
    Reload,
    Restart,
    Scenario,
    Stage,
    WorkerSetup,
)
from workers.engines.simulated_options import SimulatedOptions

ZONES = {"core": DataClass.CORE, "near": DataClass.IMPORTANT}
"""``far`` and ``local`` hold general data only."""

RATES = (
    Rates(),
    Rates(input_nano=2_000_000_000, cached_nano=500_000_000, output_nano=8_000_000_000),
    Rates(input_nano=1_234_567, cached_nano=123_457, output_nano=9_876_543),
)
"""Nothing; whole units a token; little more than one unit a token, so that each rounding shows."""

MIDNIGHT_UNIX_S = 1_796_083_200.0
"""2026-12-01T00:00:00Z: a minute, an hour, a day and a month begin."""


class Kind(StrEnum):
    """What a scenario presses on."""

    MIXED = "mixed"
    """Everything a little, two models, bursts that overload."""
    BUDGETS = "budgets"
    """Many requests for the last tokens and money, at one instant."""
    FAIR = "fair"
    """One queue, backlogged tenants of unlike weights, some of whom come late or write long."""
    FLOOD = "flood"
    """High bands over low ones on few workers: ageing, preemption."""
    ZONES = "zones"
    """Workers of unlike zones that die, move and hang; data that may not go everywhere."""


KINDS = tuple(Kind)


def draw_scenario(seed: int, *, num_requests: int = 70, has_faults: bool = True, kind: Kind | None = None) -> Scenario:
    """A scenario; its kind follows from the seed where none is asked for. Faults change nothing else that is drawn."""
    kind = kind or KINDS[seed % len(KINDS)]
    chance = random.Random(f"scenario-{seed}")
    workers = _draw_workers(chance, kind)
    arrivals = _draw_arrivals(chance, kind, num_requests * (2 if kind is Kind.FAIR else 1))
    last_s = arrivals[-1].request.arrival_s if arrivals else 0.0
    scenario = Scenario(
        seed=seed,
        workers=workers,
        arrivals=arrivals,
        rules=_draw_rules(chance, kind),
        start_unix_s=MIDNIGHT_UNIX_S - chance.choice([0.4, 1.0, 0.3]) * last_s,
        limits=_draw_limits(chance, kind),
    )
    return _with_faults(chance, kind, scenario, last_s) if has_faults else scenario


# -- workers and rules


def _draw_workers(chance: random.Random, kind: Kind) -> tuple[WorkerSetup, ...]:
    num_workers = {Kind.FAIR: [1, 2], Kind.FLOOD: [1, 1, 2], Kind.ZONES: [2, 3, 4]}.get(kind, [1, 2, 3, 4])
    return tuple(_draw_worker(chance, kind, number) for number in range(chance.choice(num_workers)))


def _draw_worker(chance: random.Random, kind: Kind, number: int) -> WorkerSetup:
    is_even = kind in (Kind.FAIR, Kind.FLOOD)
    options = SimulatedOptions(
        time_t0_s=chance.choice([0.01, 0.03]),
        kv_tokens=20_000 if is_even else chance.choice([3_000, 20_000]),
        max_sequences=32 if is_even else chance.choice([4, 32]),
        max_batched_tokens=512,
        prefix_caching=chance.random() < 0.5,
    )
    models = chance.choice([("x",), ("y",), ("x", "y")]) if number and not is_even else ("x", "y")
    zone = ("core", "near", "far")[(number + chance.randrange(2)) % 3] if kind is Kind.ZONES else "local"
    if kind is Kind.MIXED:
        zone = chance.choice(["core", "local", "local"])
    max_running = chance.choice([2, 4]) if is_even else chance.choice([1, 4, 16])
    return WorkerSetup(worker_id=f"w{number}", models=models, max_running=max_running, options=options, zone=zone)


def _draw_limits(chance: random.Random, kind: Kind) -> Limits:
    if kind is Kind.FAIR:
        return dataclasses.replace(SHORT_LIMITS, queue=QueueLimits(max_requests=400), max_wait_s=120.0)
    queue = QueueLimits(max_requests=chance.choice([10, 40]), max_total_requests=chance.choice([20, 100]))
    return dataclasses.replace(SHORT_LIMITS, queue=queue)


def _draw_rules(chance: random.Random, kind: Kind) -> Rules:
    levels, tasks = _draw_budgets(chance, kind)
    return Rules(
        budgets=levels,
        task_budgets=tasks,
        weights={f"t{number}": chance.choice([0.5, 1.0, 2.0, 4.0]) for number in range(3)},
        zones=ZONES,
        carbon_ug_per_mj={"core": 0.1, "near": 0.02, "local": 0.15},
        reserve_ratio=chance.choice([0.1, 0.3]),
        ageing_s=chance.choice([2.0, 10.0]),
        ageing_every=chance.choice([2, 4, 16]),
    )


Budgets = dict[Level, tuple[Budget, ...]]


def _draw_budgets(chance: random.Random, kind: Kind) -> tuple[Budgets, dict[str, tuple[Budget, ...]]]:
    """Few and wide ones for everybody, many and narrow ones where budgets are pressed on, none where shares are."""
    levels: Budgets = {}
    tasks: dict[str, tuple[Budget, ...]] = {}
    is_tight = kind is Kind.BUDGETS
    num_budgets = chance.randrange(4, 14) if is_tight else chance.randrange(0, 5)
    for _ in range(0 if kind is Kind.FAIR else num_budgets):
        tenant = f"t{chance.randrange(4)}"
        level = chance.choice(
            [
                Level("tenant", tenant),
                Level("project", f"{tenant}/p{chance.randrange(2)}"),
                Level("key", f"key-{tenant}-{chance.randrange(2)}"),
                Level("task", tenant),
            ]
        )
        measure, limits = chance.choice(_LIMITS)
        limit = chance.choice(limits) * (1 if is_tight else 10)
        window = None if measure is Measure.CONCURRENCY else Window.parse(chance.choice(_WINDOWS))
        budget = Budget(measure, limit, window)
        if level.kind == "task":
            tasks[tenant] = _with(tasks.get(tenant, ()), budget)
        else:
            levels[level] = _with(levels.get(level, ()), budget)
    return levels, tasks


def _with(budgets: tuple[Budget, ...], budget: Budget) -> tuple[Budget, ...]:
    """One limit per measure and window."""
    others = [each for each in budgets if (each.measure, each.window) != (budget.measure, budget.window)]
    return (*others, budget)


_LIMITS: tuple[tuple[Measure, tuple[int, ...]], ...] = (
    (Measure.TOKENS, (900, 5_000, 20_000)),
    (Measure.TOKENS, (0, 700, 3_000)),
    (Measure.INPUT_TOKENS, (300, 4_000)),
    (Measure.CACHED_TOKENS, (200, 2_000)),
    (Measure.OUTPUT_TOKENS, (40, 500, 4_000)),
    (Measure.MONEY_NANO, (5_000, 100_000, 40_000_000)),
    (Measure.MONEY_NANO, (2_000_000, 9_000_000)),
    (Measure.REQUESTS, (3, 20)),
    (Measure.CONCURRENCY, (1, 3)),
    (Measure.ENERGY_MJ, (2_000, 100_000)),
    (Measure.GPU_US, (300_000, 9_000_000)),
    (Measure.CARBON_UG, (500, 9_000)),
)
_WINDOWS = ("10s", "1m", "1h", "calendar minute", "calendar hour", "calendar day", "calendar month", "total")


# -- load


def _draw_arrivals(chance: random.Random, kind: Kind, num_requests: int) -> tuple[Arrival, ...]:
    now_s, rate_per_s, arrivals = 0.0, 20.0, []
    for number in range(num_requests):
        if number % 20 == 0:
            rate_per_s = chance.choice([3.0, 20.0, 300.0])
        is_instant = kind is Kind.BUDGETS and number % 20 < 15
        if not is_instant:
            now_s += chance.expovariate(rate_per_s)
        arrivals.append(_DRAWS[kind](chance, number, now_s))
    if kind is Kind.FAIR:
        arrivals.sort(key=lambda arrival: (arrival.request.arrival_s, arrival.request.request_id))
    return tuple(arrivals)


def _draw_any(chance: random.Random, number: int, now_s: float) -> Arrival:
    prompt_tokens = chance.choice([5, 60, 700])
    tenant = f"t{chance.randrange(4)}"
    request = Request(
        request_id=f"req-{number:05}",
        tenant=tenant,
        project=f"p{chance.randrange(2)}" if chance.random() < 0.7 else "",
        key_id=f"key-{tenant}-{chance.randrange(2)}",
        task="night" if chance.random() < 0.3 else "",
        model=chance.choice(["x", "y"]),
        band=chance.choice([0, 1, 1, 2, 2]),
        prompt_tokens_bound=prompt_tokens * chance.choice([1, 4]),
        max_output_tokens=chance.choice([1, 20, 200, 2000]),
        num_sequences=chance.choice([1, 1, 1, 2]),
        arrival_s=now_s,
        deadline_s=now_s + chance.choice([0.5, 5.0, 30.0]) if chance.random() < 0.2 else None,
        body_bytes=prompt_tokens * 4,
        rates=RATES[int(tenant[1]) % 3],
        data_class=chance.choice([DataClass.GENERAL] * 6 + [DataClass.CORE]),
        prefix_blocks=_draw_prefix(chance, tenant, number, prompt_tokens),
    )
    return Arrival(
        request=request,
        prompt_tokens=prompt_tokens,
        output_tokens=chance.choice([1, 15, 120, 1500]),
        is_streaming=chance.random() < 0.7,
        cancel_after_s=chance.choice([0.0, 0.2, 2.0]) if chance.random() < 0.12 else None,
        cancel_on=chance.choice(list(Stage)) if chance.random() < 0.1 else None,
    )


def _draw_prefix(chance: random.Random, tenant: str, number: int, prompt_tokens: int) -> tuple[int, ...]:
    """Of long prompts: the first parts are those of one of the tenant's two templates, the last its own."""
    if prompt_tokens < 60:
        return ()
    template, num_shared = chance.randrange(2), chance.choice([0, 2, 3])
    shared = [hash((int(tenant[1]), template, part)) for part in range(num_shared)]
    return (*shared, *(hash((number, part)) for part in range(num_shared, 4)))


def _draw_budget_race(chance: random.Random, number: int, now_s: float) -> Arrival:
    """Short prompts whose bounds overstate, outputs that run into their caps."""
    arrival = _draw_any(chance, number, now_s)
    request = dataclasses.replace(arrival.request, data_class=DataClass.GENERAL, tenant="t1", project="p0")
    if chance.random() < 0.5:
        request = dataclasses.replace(request, key_id="key-t1-0", task="night", rates=RATES[1 + number % 2])
        return dataclasses.replace(arrival, request=request)
    return arrival


def _draw_fair(chance: random.Random, number: int, now_s: float) -> Arrival:
    """One line: a tenant that is there first, others that join it with much or a little, one that writes long."""
    tenant = chance.choice([0, 0, 0, 1, 1, 2])
    is_long = tenant == 2
    prompt_tokens = 120 if tenant == 1 else 20
    output_tokens = 60 if is_long else 10
    request = Request(
        request_id=f"req-{number:05}",
        tenant=f"t{tenant}",
        model="x",
        band=Band.DEFAULT,
        prompt_tokens_bound=prompt_tokens,
        max_output_tokens=output_tokens,
        arrival_s=(0.0, 5.0, 2.0)[tenant] + chance.random() / 10,
        body_bytes=prompt_tokens * 4,
    )
    return Arrival(
        request=request,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        is_streaming=False,
        cancel_after_s=0.5 if chance.random() < 0.03 else None,
    )


def _draw_flood(chance: random.Random, number: int, now_s: float) -> Arrival:
    """Small and alike, so that nothing but order decides; flex work that has not spoken yet may be preempted."""
    band = Band.FLEX if number % 20 < 6 else chance.choice([Band.PRIORITY, Band.PRIORITY, Band.DEFAULT, Band.FLEX])
    request = Request(
        request_id=f"req-{number:05}",
        tenant=f"t{chance.randrange(3)}",
        model="x",
        band=band,
        prompt_tokens_bound=60,
        max_output_tokens=100,
        arrival_s=now_s,
        body_bytes=240,
    )
    return Arrival(
        request=request,
        prompt_tokens=60,
        output_tokens=100 if band is Band.FLEX else 20,
        is_streaming=chance.random() < 0.3,
        cancel_after_s=chance.choice([0.2, 2.0]) if chance.random() < 0.05 else None,
    )


def _draw_bound(chance: random.Random, number: int, now_s: float) -> Arrival:
    """Data of every class; some requests name zones themselves."""
    arrival = _draw_any(chance, number, now_s)
    zones = chance.choice([None, None, frozenset({"core"}), frozenset({"near", "far"}), frozenset({"nowhere"})])
    request = dataclasses.replace(
        arrival.request,
        data_class=chance.choice(list(DataClass)),
        zones=zones,
        max_output_tokens=min(arrival.request.max_output_tokens, 200),
    )
    return dataclasses.replace(arrival, request=request, is_streaming=chance.random() < 0.2)


_DRAWS = {
    Kind.MIXED: _draw_any,
    Kind.BUDGETS: _draw_budget_race,
    Kind.FAIR: _draw_fair,
    Kind.FLOOD: _draw_flood,
    Kind.ZONES: _draw_bound,
}


# -- what goes wrong


def _with_faults(chance: random.Random, kind: Kind, scenario: Scenario, last_s: float) -> Scenario:
    if kind is Kind.FAIR:
        return scenario if chance.random() < 0.5 else dataclasses.replace(scenario, messages=_draw_messages(chance))
    faults = [
        FaultAt(
            at_s=chance.uniform(0.0, last_s),
            worker_id=chance.choice(scenario.workers).worker_id,
            fault=chance.choice(list(Fault)),
            for_s=chance.choice([0.5, 5.0, 25.0]),
            zone=chance.choice(["core", "near", "far"]),
        )
        for _ in range(chance.randrange(1, 9))
    ]
    reloads = [
        Reload(at_s=chance.uniform(0.0, last_s), rules=_draw_rules(chance, kind))
        for _ in range(chance.choice([0, 0, 1, 2]))
    ]
    jumps = [
        ClockJump(
            at_s=chance.uniform(0.0, last_s),
            monotonic_s=chance.choice([0.0, -5.0, 0.5, 8.0]),
            wall_s=chance.choice([0.0, -30.0, 3.0, 70.0]),
        )
        for _ in range(chance.choice([0, 0, 1, 2]))
    ]
    restarts = [Restart(at_s=chance.uniform(0.0, last_s)) for _ in range(chance.choice([0, 0, 0, 1]))]
    return dataclasses.replace(
        scenario,
        faults=tuple(sorted(faults, key=lambda fault: (fault.at_s, fault.worker_id))),
        reloads=tuple(reloads),
        jumps=tuple(jumps),
        restarts=tuple(restarts),
        messages=_draw_messages(chance),
    )


def _draw_messages(chance: random.Random) -> Messages:
    return Messages(
        late_ratio=chance.choice([0.0, 0.05]),
        twice_ratio=chance.choice([0.0, 0.1]),
        lost_ratio=chance.choice([0.0, 0.03]),
    )
