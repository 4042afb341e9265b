"""A hundred tenants race for the last tokens and cents of their budgets, sixteen connections each, over HTTP.

Run by people and by a test with fewer tenants. Simulated engines behind a real `jouleway serve` and Ray; whole and
streamed requests, and clients that hang up. What was spent is taken from the accounts, which count every attempt, and
compared with the limits; what losers were told, with what was left. It must never look inside the service.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.jouleway_server import ADMIN_KEY, Configuration, serving
from benchmarks.record import ROOT, record
from scheduler.commands.http_client import BadAnswer, fetch, open_request

MODEL = "simulated"
CONNECTIONS = 16
TASK = "race"
SETTLE_S = 60.0
REQUEST_TIMEOUT_S = 60.0
MAX_REQUESTS_PER_CONNECTION = 80
REFUSALS_TO_STOP = 3
"""So many in a row say that nothing will come back."""
LAST_TRIES = 40
"""Of the smallest request, after the race, until the budget refuses that too."""
PRICE = {"input": 100, "cached_input": 10, "output": 400}
"""Currency units per million tokens: a request costs about a cent."""
WORDS = ("whole", "whole", "stream", "hang_up")
"""What each connection chooses from, request by request."""
SERVED = ("whole", "stream", "hung_up_at_once", "hung_up_in_stream", "last_try")
"""Endings of which a budget of requests counts one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One budget of a racer, as it must be named in a refusal. Amounts in the measure's own unit."""

    level: str
    measure: str
    window: str
    limit: int


@dataclass(slots=True, kw_only=True, eq=False)
class Racer:
    """One tenant, and what its connections saw."""

    name: str
    key: str
    limits: tuple[Limit, ...]
    ended: Counter[str] = field(default_factory=Counter)
    output_tokens: int = 0
    """Of whole answers: what clients were given."""
    wrong: list[str] = field(default_factory=list)
    """What a refusal said that was not so."""
    last: dict[str, Any] = field(default_factory=dict)
    """The budget in the refusal that ended it, when nothing ran any more."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}", "x-jouleway-task": TASK}


# -- who races for what


def racers(num_tenants: int) -> list[Racer]:
    """Five kinds of budgets, at every level, alone and together."""
    found = []
    for index in range(num_tenants):
        name = f"tenant-{index:03d}"
        key = f"jw-race-key-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
        key_id = f"key-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
        found.append(Racer(name=name, key=key, limits=_limits(index % 5, name, key_id)))
    return found


def _limits(kind: int, name: str, key_id: str) -> tuple[Limit, ...]:
    tenant, project, key, task = f"tenant {name}", f"project {name}/p", f"key {key_id}", f"task {name}/{TASK}"
    tokens = Limit(level=tenant, measure="tokens", window="total", limit=4_000)
    money = Limit(level=tenant, measure="money_nano", window="total", limit=700_000_000)
    return {
        0: (tokens,),
        1: (money,),
        2: (money, Limit(level=key, measure="tokens", window="calendar day", limit=3_700)),
        3: (Limit(level=task, measure="output_tokens", window="total", limit=1_500),),
        4: (
            Limit(level=project, measure="tokens", window="30d", limit=6_000),
            Limit(level=key, measure="requests", window="1d", limit=90),
        ),
    }[kind]


def race_configuration(who: list[Racer]) -> Configuration:
    """Two simulated engines, any free ports, every budget as an operator writes it."""
    worker = {
        "name": "sim",
        "engine": "simulated",
        "model": MODEL,
        "count": 2,
        "cpus": 0.1,
        "meter": {"kind": "simulated"},
        "calibration_s": 0,
        "window_s": 1,
        "max_running": 512,
        "engine_args": {"fixed_step_s": 0.004, "output_tokens_mean": 1e9},
    }
    model = {"default_output_tokens": 64, "normalizer": "none", "price": PRICE}
    return {
        "server": {"port": 0},
        "admin": {"port": 0},
        "models": {MODEL: model},
        "workers": [worker],
        "tenants": [_tenant(racer) for racer in who],
    }


def _tenant(racer: Racer) -> dict[str, Any]:
    at: dict[str, list[dict[str, Any]]] = {"tenant": [], "project": [], "key": [], "task": []}
    for limit in racer.limits:
        amount = limit.limit / 1e9 if limit.measure == "money_nano" else limit.limit
        name = "money" if limit.measure == "money_nano" else limit.measure
        at[limit.level.partition(" ")[0]].append({name: amount, "per": limit.window})
    return {
        "name": racer.name,
        "max_tier": "priority",
        "project": "p",
        "keys": [{"sha256": hashlib.sha256(racer.key.encode()).hexdigest(), "budgets": at["key"]}],
        "budgets": at["tenant"],
        "projects": {"p": {"budgets": at["project"]}},
        "task_budgets": at["task"],
    }


# -- the race


async def connection(url: str, racer: Racer, chance: random.Random) -> None:
    """One request after the other until the budget is spent."""
    refusals = 0
    for _ in range(MAX_REQUESTS_PER_CONNECTION):
        payload = {
            "model": MODEL,
            "prompt": "w" * chance.randint(4, 400),
            "max_tokens": chance.randint(1, 48),
            "ignore_eos": True,
            "service_tier": chance.choice(("priority", "default", "flex")),
        }
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                ended = await _one(url, racer, payload, chance.choice(WORDS), chance)
        except (OSError, BadAnswer, asyncio.IncompleteReadError, ValueError) as error:
            ended = f"broken:{type(error).__name__}"
        except TimeoutError:
            ended = "timeout"
        racer.ended[ended] += 1
        refusals = refusals + 1 if ended == "insufficient_quota" else 0
        if refusals == REFUSALS_TO_STOP:
            return
        if ended == "rate_limit_exceeded":
            await asyncio.sleep(chance.uniform(0.02, 0.2))  # sooner than we were asked to: this is a race


async def _one(url: str, racer: Racer, payload: dict[str, Any], kind: str, chance: random.Random) -> str:
    """How it ended, in a word."""
    body = json.dumps({**payload, "stream": kind != "whole"}).encode()
    async with open_request(f"{url}/v1/completions", method="POST", body=body, headers=racer.headers) as opened:
        answer, chunks = opened
        if kind == "hang_up" and answer.status == 200:
            if chance.random() < 0.5:
                return "hung_up_at_once"
            async for _ in chunks:
                return "hung_up_in_stream"
        whole = b"".join([chunk async for chunk in chunks])
    if answer.status == 429:
        return check_refusal(racer, json.loads(whole)["error"], answer.headers)
    if answer.status != 200:
        return f"status:{answer.status}"
    if kind == "whole":
        racer.output_tokens += json.loads(whole)["usage"]["completion_tokens"]
        return "whole"
    return "stream" if whole.endswith(b"data: [DONE]\n\n") else "cut"


def check_refusal(racer: Racer, error: dict[str, Any], headers: Any) -> str:
    """The code of a 429, after a look at everything that it says."""
    budget, code = error.get("budget", {}), error["code"]
    names = ("level", "measure", "window", "limit")
    named = Limit(**{name: budget[name] for name in names}) if budget.keys() >= set(names) else None
    is_quota = code == "insufficient_quota"
    for is_right, words in (
        (named in racer.limits, f"names {budget}"),
        (budget.get("needed", 0) > budget.get("left", 0) >= 0, f"needs {budget}"),
        (code in ("insufficient_quota", "rate_limit_exceeded"), f"code {code}"),
        ((error["type"] == "insufficient_quota") == is_quota, f"type {error['type']} of {code}"),
        ((headers.get("x-should-retry") == "false") == is_quota, "x-should-retry"),
        (is_quota or headers.get("retry-after", "").isdigit(), "retry-after"),
        (bool(budget.get("level")) and budget["level"] in error["message"], "message"),
    ):
        if not is_right:
            racer.wrong.append(words)
    return str(code)


async def last_tries(url: str, racer: Racer) -> None:
    """Nothing runs any more: the smallest request is served while there is room for it, and then refused."""
    payload = {"model": MODEL, "prompt": "w", "max_tokens": 1, "ignore_eos": True}
    for _ in range(LAST_TRIES):
        reply = await fetch(
            f"{url}/v1/completions", method="POST", payload=payload, headers=racer.headers, timeout_s=REQUEST_TIMEOUT_S
        )
        if reply.status == 429:
            value = reply.json()
            assert isinstance(value, dict)
            check_refusal(racer, value["error"], reply.headers)
            racer.last = value["error"]["budget"]
            return
        racer.ended["last_try"] += 1


async def drained(admin_url: str) -> dict[str, Any]:
    """The snapshot once nothing is open and every posting is there, or the last one after ``SETTLE_S``."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        reply = await fetch(f"{admin_url}/v1/jouleway/snapshot", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
        snapshot = reply.json()
        assert isinstance(snapshot, dict)
        is_over = not (snapshot["num_open"] or snapshot["num_running"] or snapshot["open_attempts"])
        if is_over or time.monotonic() > deadline_s:
            return snapshot
        await asyncio.sleep(0.5)


async def race(url: str, admin_url: str, who: list[Racer], seed: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the race, and the snapshots after it and after the last tries."""
    begun_s = time.monotonic()
    chance = random.Random(seed)
    lanes = [(racer, random.Random(chance.random())) for racer in who for _ in range(CONNECTIONS)]
    await asyncio.gather(*(connection(url, racer, own) for racer, own in lanes))
    took_s = time.monotonic() - begun_s
    after_race = await drained(admin_url)
    for first in range(0, len(who), CONNECTIONS):
        await asyncio.gather(*(last_tries(url, racer) for racer in who[first : first + CONNECTIONS]))
    return took_s, [after_race, await drained(admin_url)]


# -- judging


def spent(racer: Racer, limit: Limit, row: dict[str, Any]) -> int:
    """By the accounts, in the measure's unit. Requests are counted by their answers."""
    match limit.measure:
        case "tokens":
            return int(row["input_tokens"] + row["output_tokens"])
        case "output_tokens":
            return int(row["output_tokens"])
        case "money_nano":
            return int(row["cost_nano"])
    return sum(racer.ended[word] for word in SERVED)


def judged(who: list[Racer], snapshots: list[dict[str, Any]]) -> dict[str, Any]:
    """Every figure, and the list of what must not be."""
    problems: list[str] = []
    overspent: Counter[str] = Counter()
    used_ratios: list[float] = []
    rows = {row["tenant"]: row for row in snapshots[-1]["tenants"]}
    for racer in who:
        used = {limit: spent(racer, limit, rows[racer.name]) for limit in racer.limits}
        for limit, amount in used.items():
            overspent[limit.measure] += max(amount - limit.limit, 0)
        used_ratios.append(max(amount / limit.limit for limit, amount in used.items()))
        problems += [f"{racer.name}: a refusal {words}" for words in racer.wrong]
        if racer.output_tokens > rows[racer.name]["output_tokens"]:
            problems.append(f"{racer.name}: clients were given more tokens than were charged")
        if not racer.last:
            problems.append(f"{racer.name}: never refused")
            continue
        named = next(limit for limit in racer.limits if limit.level == racer.last["level"])
        if named.limit - used[named] != racer.last["left"]:
            problems.append(f"{racer.name}: told {racer.last['left']} left of {named}, {used[named]} were spent")
    ended: Counter[str] = sum((racer.ended for racer in who), Counter())
    odd = {word: count for word, count in ended.items() if word.startswith(("broken", "status", "timeout", "cut"))}
    problems += [f"{count} requests ended {word}" for word, count in odd.items()]
    problems += [f"{amount} {measure} overspent" for measure, amount in overspent.items() if amount]
    for name, snapshot in zip(("race", "last_tries"), snapshots, strict=True):
        problems += [f"after the {name} {what} is {count}" for what, count in _left_open(snapshot)]
    return {
        "tenants": len(who),
        "connections": len(who) * CONNECTIONS,
        "requests": sum(ended.values()),
        "ended": dict(sorted(ended.items())),
        "overspent": dict(overspent),
        "used_of_the_tightest_budget_ratio_median": round(statistics.median(used_ratios), 4),
        "used_of_the_tightest_budget_ratio_min": round(min(used_ratios), 4),
        "held_after": [snapshot["budget_held"] for snapshot in snapshots],
        "wrong_refusals": sum(len(racer.wrong) for racer in who),
        "problems": problems[:50],
        "num_problems": len(problems),
    }


def _left_open(snapshot: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name in ("num_open", "num_running", "open_attempts"):
        if snapshot[name]:
            yield name, snapshot[name]
    yield from ((f"held {name}", amount) for name, amount in snapshot["budget_held"].items() if amount)


def run(*, num_tenants: int, seed: int) -> dict[str, Any]:
    """The whole race."""
    who = racers(num_tenants)
    with tempfile.TemporaryDirectory() as folder, serving(race_configuration(who), Path(folder)) as server:
        took_s, snapshots = asyncio.run(race(server.url, server.admin_url, who, seed))
    values = judged(who, snapshots)
    rate = values["requests"] / took_s
    return {"simulated": True, "seed": seed, "took_s": round(took_s, 2), "requests_per_s": round(rate, 1), **values}


def main() -> int:
    """Race, record, and fail where a budget was overspent, a refusal was wrong or something stayed held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="budget_race")
    arguments = parser.parse_args()
    values = run(num_tenants=arguments.tenants, seed=arguments.seed)
    path = record(
        arguments.name,
        values,
        what=f"{arguments.tenants} tenants × {CONNECTIONS} connections race for the last tokens, cents and requests of "
        "budgets at every level, over HTTP through `jouleway serve` and Ray on simulated engines; a quarter of the "
        "requests hang up",
    )
    print(path.relative_to(ROOT), *values["problems"], sep="\n")
    return 1 if values["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
