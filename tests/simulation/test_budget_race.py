"""A hundred tenants on sixteen connections each race their last tokens and cents through the production core.

The judge keeps a book of its own, from requests, actions and what engines counted: it never reads an account. Every
grant, cap and refusal is compared with that book at its moment.
"""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from scheduler.core.actions import Action, Dispatch, Finish, Payer, Reject, Settle
from scheduler.core.budget_accounts import Budget, Level, Measure
from scheduler.core.budget_windows import Window
from scheduler.core.request import Rates, Request
from scheduler.core.rules import Rules
from scheduler.core.scheduler import Scheduler
from tests.core_words import MODEL, assert_idle, progress, usage, view
from workers.step_curves import StepCurves
from workers.types import Outcome

NUM_TENANTS, NUM_CONNECTIONS = 100, 16
NUM_WORKERS, MAX_RUNNING = 4, 150
CURVES = StepCurves(time_s=(0.01, 1e-4, 1e-3, 0.0), energy_joules=(2.0, 0.01, 0.1, 0.0), idle_watts=50.0)
PRICE = {"uncached": 7_300_000, "cached": 1_100_000, "output": 31_700_000}
"""Nano-units per million tokens; odd enough that every cost is rounded."""
RATES = Rates(PRICE["uncached"], PRICE["cached"], PRICE["output"])
MEASURES = ("tokens", "output_tokens", "money_nano", "requests")
STEP_S = 1e-5
TOTAL = Window.parse("total")

Book = dict[tuple[str, str], int]
"""Amounts by level and measure."""


def amounts_of(prompt: int, cached: int, output: int) -> dict[str, int]:
    """What so many tokens are in each measure. By the price list, written anew: the judge does not ask the accused."""
    parts = (prompt - cached) * PRICE["uncached"] + cached * PRICE["cached"] + output * PRICE["output"]
    return dict(zip(MEASURES, (prompt + output, output, -(-parts // 1_000_000), 1), strict=True))


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request as the judge sees it."""

    connection: int
    request: Request
    levels: tuple[str, ...]
    prompt_tokens: int
    """What the engine will count."""
    is_counted: bool = False
    granted: int = 0
    is_charged: bool = False
    stage: int = 0
    """How far its attempt is: dispatched, counted, first byte, about to end."""

    @property
    def tenant(self) -> str:
        return self.request.tenant

    def worst(self) -> dict[str, int]:
        """What must be kept for it until it is charged."""
        prompt = self.prompt_tokens if self.is_counted else self.request.prompt_tokens_bound
        return dict.fromkeys(MEASURES, 0) if self.is_charged else amounts_of(prompt, 0, self.granted)


@dataclass(slots=True, kw_only=True)
class Judge:
    """The book: what was charged, what must be kept, and whether each decision was right."""

    limits: Book
    used: Book = field(default_factory=lambda: defaultdict(int))
    holding: dict[str, dict[str, Asked]] = field(default_factory=lambda: defaultdict(dict))
    """By tenant: its requests that were admitted and are not over."""
    num_capped: int = 0
    num_final: int = 0
    num_soon: int = 0

    def left(self, asked: Asked, *, with_held: bool) -> Book:
        """Of every limit above the request: not charged and, ``with_held``, not kept for others either."""
        left = {}
        for level in asked.levels:
            others = [other for other in self.holding[asked.tenant].values() if level in other.levels]
            for measure in MEASURES:
                if (level, measure) in self.limits:
                    held = sum(other.worst()[measure] for other in others) if with_held else 0
                    left[level, measure] = self.limits[level, measure] - self.used[level, measure] - held
        return left

    def admit(self, asked: Asked, granted: int) -> None:
        """It fits every limit above it, and one token more would not."""
        left, most = self.left(asked, with_held=True), asked.request.max_output_tokens
        assert 1 <= granted <= most
        bound = asked.request.prompt_tokens_bound
        assert self._fits(amounts_of(bound, 0, granted), left), f"{asked.tenant} could be overspent"
        assert granted == most or not self._fits(amounts_of(bound, 0, granted + 1), left), "capped for nothing"
        asked.granted = granted
        self.num_capped += granted < most
        self.holding[asked.tenant][asked.request.request_id] = asked

    def charge(self, asked: Asked, settle: Settle) -> None:
        """Paid once, and never beyond a limit."""
        assert not asked.is_charged, f"{settle.request_id} paid twice"
        asked.is_charged = True
        tokens = settle.tokens
        amounts = amounts_of(tokens.input_tokens, tokens.cached_tokens, tokens.output_tokens)
        assert amounts["money_nano"] == settle.cost_nano
        for level in asked.levels:
            for measure, amount in amounts.items():
                self.used[level, measure] += amount
                limit = self.limits.get((level, measure))
                assert limit is None or self.used[level, measure] <= limit, f"{level} overspent its {measure}"

    def refuse(self, asked: Asked, reject: Reject) -> bool:
        """The loser's error is right: a budget that is short, by how much, and whether waiting helps. True: it may."""
        rejection, least = reject.rejection, amounts_of(asked.request.prompt_tokens_bound, 0, 1)
        shortage = rejection.shortage
        assert shortage is not None, rejection
        place = shortage.level, shortage.measure
        left = self.left(asked, with_held=True)
        assert (429, self.limits[place], left[place], least[shortage.measure]) == (
            rejection.status,
            shortage.limit,
            shortage.left,
            shortage.needed,
        )
        assert left[place] < least[shortage.measure]
        if self._fits(least, self.left(asked, with_held=False)):
            # Only what others hold is in the way.
            expected: tuple[str, int | None, bool | None] = ("rate_limit_exceeded", 1, None)
            self.num_soon += 1
        else:
            expected = ("insufficient_quota", None, False)
            self.num_final += 1
        assert expected == (rejection.reason, rejection.retry_after_s, rejection.should_retry)
        return rejection.should_retry is None

    def _fits(self, amounts: dict[str, int], left: Book) -> bool:
        return all(amounts[measure] <= amount for (_, measure), amount in left.items())


@dataclass(slots=True, kw_only=True)
class Race:
    """Connections that ask again and again, engines that answer, and the core between them."""

    chance: random.Random
    core: Scheduler
    judge: Judge
    now_s: float = 0.0
    num_requests: int = 0
    ready: list[int] = field(default_factory=lambda: list(range(NUM_TENANTS * NUM_CONNECTIONS)))
    blocked: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By tenant: connections that come again when one of its requests is over."""
    asked: dict[str, Asked] = field(default_factory=dict)
    """Open requests."""
    running: list[tuple[str, Asked]] = field(default_factory=list)
    unbooked: list[tuple[str, int]] = field(default_factory=list)

    def run(self) -> None:
        """Until every connection was told that what is left is not enough for it."""
        while self.ready or self.running:
            self.now_s += STEP_S
            if self.chance.random() < 0.01:
                self.report()
            if self.ready and (not self.running or self.chance.random() < 0.4):
                place = self.chance.randrange(len(self.ready))
                self.ready[place], self.ready[-1] = self.ready[-1], self.ready[place]
                self.submit(self.ready.pop())
            else:
                self.step(*self.running[self.chance.randrange(len(self.running))])

    def report(self) -> None:
        """Workers are heard of."""
        for number in range(NUM_WORKERS):
            seen = view(
                f"w{number}", curves=CURVES, max_running=MAX_RUNNING, max_sequences=MAX_RUNNING, kv_tokens=10**6
            )
            self.carry_out(self.core.on_worker_report(seen, self.now_s))

    def submit(self, connection: int) -> None:
        """A connection asks; a few clients go away before their turn comes."""
        self.num_requests += 1
        chance, tenant = self.chance, f"t{connection // NUM_CONNECTIONS}"
        bound, key = chance.randint(20, 120), f"{tenant}-k{connection % 2}"
        request = Request(
            request_id=f"r{self.num_requests}",
            tenant=tenant,
            project="p",
            key_id=key,
            task="nightly",
            model=MODEL,
            prompt_tokens_bound=bound,
            max_output_tokens=chance.randint(1, 60),
            arrival_s=self.now_s,
            arrival_unix_s=1e9 + self.now_s,
            rates=RATES,
        )
        asked = self.asked[request.request_id] = Asked(
            connection=connection,
            request=request,
            levels=(f"tenant {tenant}", f"project {tenant}/p", f"key {key}", f"task {tenant}/nightly"),
            prompt_tokens=chance.randint(1, bound),
        )
        actions = self.core.submit(request, self.now_s)
        if not any(isinstance(action, Reject) for action in actions):
            story = self.core.explain(request.request_id)
            assert story is not None
            self.judge.admit(asked, story["granted_output_tokens"])
        self.carry_out(actions)
        if chance.random() < 0.03:
            self.carry_out(self.core.cancel(request.request_id, "client_gone", self.now_s))

    def step(self, attempt_id: str, asked: Asked) -> None:
        """One attempt goes on. Some never show a byte and fail: they are tried again, or end in vain."""
        chance, asked.stage = self.chance, asked.stage + 1
        prompt = asked.prompt_tokens
        if asked.stage == 1:
            asked.is_counted = True
            self.core.on_progress([progress(attempt_id, prompt=prompt, computed=prompt)], self.now_s)
        elif asked.stage == 2 and chance.random() < 0.9:
            self.core.on_first_byte(attempt_id, self.now_s)
        elif asked.stage == 3 and chance.random() < 0.1:
            self.carry_out(self.core.cancel(asked.request.request_id, "client_gone", self.now_s))
        elif asked.stage == 4:
            self.running.remove((attempt_id, asked))
            has_failed = chance.random() < 0.15
            record = usage(
                attempt_id,
                Outcome.FAILED if has_failed else Outcome.COMPLETED,
                "engine_error" if has_failed else "",
                input_tokens=prompt,
                cached_tokens=chance.randint(0, prompt),
                output_tokens=chance.choice([asked.granted, chance.randint(1, asked.granted)]),
            )
            self.carry_out(self.core.on_finished(record, self.now_s))

    def carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            asked = self.asked.get(getattr(action, "request_id", ""))
            if asked is None:
                continue  # an abort: the attempt ends by itself
            match action:
                case Dispatch():
                    assert asked.granted == action.max_output_tokens
                    asked.stage = 0
                    self.running.append((action.attempt_id, asked))
                case Settle():
                    self.unbooked.append((action.attempt_id, asked.prompt_tokens))
                    if action.payer is Payer.REQUEST:
                        self.judge.charge(asked, action)
                case Reject():
                    del self.asked[action.request_id]
                    if self.judge.refuse(asked, action):
                        self.blocked[asked.tenant].append(asked.connection)
                case Finish():
                    del self.asked[action.request_id], self.judge.holding[asked.tenant][action.request_id]
                    self.ready += [asked.connection, *self.blocked.pop(asked.tenant, [])]


def rules(chance: random.Random) -> tuple[Rules, Book]:
    """Hard limits on every level, each of which can be the one that bites; joules on top, for their holds."""
    budgets: dict[Level, tuple[Budget, ...]] = {}
    tasks: dict[str, tuple[Budget, ...]] = {}
    limits: Book = {}

    def some(kind: str, name: str, *of: tuple[Measure, int, int]) -> tuple[Budget, ...]:
        made = tuple(Budget(measure, chance.randint(least, most), TOTAL) for measure, least, most in of)
        limits.update({(f"{kind} {name}", each.measure.value): each.limit for each in made})
        return made

    for number in range(NUM_TENANTS):
        tenant = f"t{number}"
        joules = Budget(Measure.ENERGY_MJ, 10**15, TOTAL)
        budgets[Level("tenant", tenant)] = (
            *some("tenant", tenant, (Measure.TOKENS, 800, 2000), (Measure.MONEY_NANO, 10_000, 35_000)),
            joules,
        )
        project = f"{tenant}/p"
        budgets[Level("project", project)] = some("project", project, (Measure.MONEY_NANO, 10_000, 35_000))
        for key in (f"{tenant}-k0", f"{tenant}-k1"):
            budgets[Level("key", key)] = some("key", key, (Measure.OUTPUT_TOKENS, 200, 750))
        tasks[tenant] = some("task", f"{tenant}/nightly", (Measure.REQUESTS, 10, 30))
    return Rules(budgets=budgets, task_budgets=tasks), limits


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
def test_nobody_wins_more_than_there_is(seed: int) -> None:
    """No limit on any level is overspent, every loser is told the truth, and afterwards nothing is held."""
    chance = random.Random(seed)
    of_operators, limits = rules(chance)
    race = Race(chance=chance, core=Scheduler(models=[MODEL], rules=of_operators), judge=Judge(limits=limits))
    race.report()
    race.run()

    judge, budgets = race.judge, race.core.holds.budgets
    assert not any(race.blocked.values())
    assert NUM_TENANTS * NUM_CONNECTIONS == judge.num_final
    assert min(judge.num_capped, judge.num_soon) > NUM_TENANTS
    assert_idle(race.core)
    held = {measure.value: amount for measure, amount in budgets.held_total().items() if amount}
    assert {"energy_mj"} == set(held)
    for attempt_id, took in race.unbooked:
        race.core.holds.book_energy(attempt_id, energy_mj=took, gpu_us=took)
    assert (0, {}) == (budgets.num_holds, {name: amount for name, amount in budgets.held_total().items() if amount})
