"""The race of the last cent, and the control plane is killed in the middle: what is durable counts, to the token.

As ``test_budget_race``, on a ledger. The judge keeps a book of its own of what was durably charged; after each kill the
recovered core must know just that: each grant, cap and refusal is compared with it. Nothing is ever overspent.
"""

import random
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scheduler.accounting.charging import charge_of, hold_of
from scheduler.accounting.ledger_reader import Reader
from scheduler.accounting.rows import Charge
from scheduler.accounting.verify import verify
from scheduler.core.actions import Action, Dispatch, Finish, Payer, Reject, Settle
from scheduler.core.rules import Rules
from tests.core_words import assert_idle
from tests.ledger_words import Life, living, rows_of
from tests.scripted_link import posting_of, window_of
from tests.simulation.test_budget_race import (
    NUM_CONNECTIONS,
    NUM_TENANTS,
    Asked,
    Book,
    Judge,
    Race,
    amounts_of,
    rules,
)

KILLS = 12
COMMIT_RATIO = 0.004
"""Of the steps; a commit takes everything that happened since the one before."""


@dataclass(slots=True, kw_only=True)
class RestartedRace(Race):
    """Writes what the core decides; dies now and then, and begins again with what the ledger has."""

    life: Life
    rules: Rules
    url: str
    kill_at: list[int]
    """Numbers of requests."""
    held: set[str] = field(default_factory=set)
    undurable: list[tuple[Asked, Settle]] = field(default_factory=list)
    """Charged since the last commit."""
    num_lost: int = 0
    num_windows: int = 0

    def submit(self, connection: int) -> None:
        """Whoever comes meets a control plane that may have just begun."""
        if self.kill_at and self.num_requests >= self.kill_at[0]:
            self.kill_at.pop(0)
            self.kill()
        Race.submit(self, connection)

    def report(self) -> None:
        Race.report(self)
        if self.chance.random() < COMMIT_RATIO / 0.01:  # asked at every hundredth step
            self.life.commit(with_state=self.chance.random() < 0.2)
            self.undurable.clear()

    def carry_out(self, actions: Iterable[Action]) -> None:
        """As the dispatcher does it: a hold before the first attempt, a charge, what is left given back."""
        settlement = self.life.settlement
        for action in actions:
            asked = self.asked.get(getattr(action, "request_id", ""))
            if asked is not None:
                match action:
                    case Dispatch() if action.request_id not in self.held:
                        self.held.add(action.request_id)
                        settlement.hold(hold_of(asked.request, action))
                    case Settle():
                        settlement.charge(charge_of(action, asked.request, status=None, usage=None))
                        if action.payer is Payer.REQUEST:
                            self.undurable.append((asked, action))
                    case Finish() | Reject():
                        settlement.release(action.request_id, "over")
                        self.held.discard(action.request_id)
            Race.carry_out(self, [action])

    def kill(self) -> None:
        """What was not durable never was: nobody saw it end. Clients come again; their requests are new ones."""
        self.life.kill()
        for asked, settle in self.undurable:
            tokens = settle.tokens
            for level in asked.levels:
                for measure, amount in amounts_of(
                    tokens.input_tokens, tokens.cached_tokens, tokens.output_tokens
                ).items():
                    self.judge.used[level, measure] -= amount
        self.num_lost += len(self.undurable)
        self.undurable.clear()
        self.ready += [asked.connection for asked in self.asked.values()]
        self.ready += [connection for blocked in self.blocked.values() for connection in blocked]
        for left in (self.blocked, self.asked, self.running, self.unbooked, self.held, self.judge.holding):
            left.clear()
        self.begin()

    def begin(self) -> None:
        self.life = Life(self.url, rules=self.rules)
        self.core = self.life.core
        assert self.judge.limits.keys() == known(self.life, self.judge.limits).keys()
        used = {place: self.judge.used[place] for place in self.judge.limits}
        assert used == known(self.life, self.judge.limits), "recovered to the token"
        Race.report(self)

    def measure(self) -> None:
        """Every attempt that was charged, in this life or an earlier one, gets its energy."""
        settlement = self.life.settlement
        for attempt_id, attempt in list(settlement.books.open.items()):
            self.num_windows += 1
            settlement.window(attempt.worker_id, window_of((attempt_id, 7, 7)), number=self.num_windows)
            settlement.post_energy(attempt.worker_id, posting_of(attempt_id, 7, 7))


def known(life: Life, limits: Book) -> Book:
    """What the core knows to be used of each limit; nothing where nothing was."""
    used = {
        (f"{kind} {name}", measure): sum(slots.values())
        for kind, name, measure, _, slots in life.core.holds.budgets.used()
    }
    return {place: used.get(place, 0) for place in limits}


def charged(url: str) -> Book:
    """Counted anew from the rows, by nobody who took part."""
    book: Book = defaultdict(int)
    for row in rows_of(url):
        if isinstance(row, Charge) and row.payer is Payer.REQUEST:
            levels = (
                f"tenant {row.tenant}",
                f"project {row.tenant}/p",
                f"key {row.key_id}",
                f"task {row.tenant}/nightly",
            )
            for level in levels:
                for measure, amount in amounts_of(row.input_tokens, row.cached_tokens, row.output_tokens).items():
                    book[level, measure] += amount
    return book


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
def test_nobody_wins_more_by_a_kill(seed: int, tmp_path: Path) -> None:
    """No limit on any level is overspent over all lives together; every loser is told the truth in each of them."""
    chance = random.Random(seed)
    of_operators, limits = rules(chance)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    life = Life(url, rules=of_operators)
    race = RestartedRace(
        chance=chance,
        core=life.core,
        judge=Judge(limits=limits),
        life=life,
        rules=of_operators,
        url=url,
        kill_at=sorted(chance.randrange(200, 5_500) for _ in range(KILLS)),
    )
    race.report()
    race.run()

    judge = race.judge
    assert [] == race.kill_at, "all of them were in the middle"
    assert race.num_lost > KILLS
    assert not any(race.blocked.values())
    assert NUM_TENANTS * NUM_CONNECTIONS == judge.num_final
    assert min(judge.num_capped, judge.num_soon) > NUM_TENANTS
    assert_idle(race.core)
    race.measure()
    race.life.commit()
    assert {} == {measure: amount for measure, amount in race.core.holds.budgets.held_total().items() if amount}
    race.life.kill()

    counted = charged(url)
    assert {place: judge.used[place] for place in limits} == {place: counted[place] for place in limits}
    assert all(counted[place] <= limit for place, limit in limits.items()), "overspent"
    with closing(Reader(url)) as reader:
        assert 0 == verify(reader).num_open_holds
    with living(url, rules=of_operators) as last:
        assert {place: counted[place] for place in limits} == known(last, limits)
