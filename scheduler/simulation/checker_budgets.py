"""Budgets, counted again: nothing is granted that is not there, nothing is refused that is, nothing stays held.

A judge of ``scheduler.simulation.checker``. It must never read the core's state: it knows the rules, what requests ask
for, what they were granted and what they were charged.

What only the core knows is judged from both sides. Of a rolling window of length L, what was admitted within L counts,
what was admitted earlier than L and a sixtieth does not, what lies between may or may not. Of a request that never
started, the cap lies between the least and the most that was there. Joules, GPU-time and carbon are held at bounds: of
them no more than was booked may be used, never more than the limit, and nothing may stay held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from scheduler.core.actions import Finish, Payer, Reject, Rejection, Settle, Shortage
from scheduler.core.budget_accounts import Budget, BudgetState, Level, Measure
from scheduler.core.budget_windows import NUM_BUCKETS, Kind, Window
from scheduler.core.request import Request
from scheduler.core.rules import Rules
from scheduler.simulation.checker_books import Books
from scheduler.simulation.trace import Configured, Counted, Decided, Event, Posted, Restarted, Stopped, Submitted

SOFT = frozenset({Measure.ENERGY_MJ, Measure.GPU_US, Measure.CARBON_UG})
BY_BUDGET = ("rate_limit_exceeded", "insufficient_quota")
BEFORE_BUDGETS = (
    "data_residency_mismatch",
    "deadline_exceeded",
    "deadline_infeasible",
    "model_not_found",
    "shutting_down",
)
"""Refused for what no budget is asked for."""
RATE_WINDOW_S = 3600


class Amount(NamedTuple):
    """What a request needs, holds or has used, of what is hard."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    money_nano: int = 0
    requests: int = 0
    concurrency: int = 0

    def of(self, measure: Measure) -> int:
        if measure is Measure.TOKENS:
            return self.input_tokens + self.output_tokens
        return 0 if measure in SOFT else int(getattr(self, measure.value))


NOTHING = Amount()


@dataclass(slots=True, eq=False)
class _Hold:
    """What one request has of every budget above it."""

    request: Request
    least: Amount
    """Held at least and at most, as known so far; nothing once it is over."""
    most: Amount
    used: Amount = NOTHING
    soft: dict[Measure, int] = field(default_factory=dict)
    """Booked: no budget can have taken more."""
    accounts: list[_Account] = field(default_factory=list)

    def set(self, held: Amount) -> None:
        self.least = self.most = held


class _Share(NamedTuple):
    """A hold of one account, and when it was taken by the account's own time."""

    at_unix_s: float
    hold: _Hold


@dataclass(slots=True, eq=False)
class _Account:
    """One budget of one level since it exists."""

    level: Level
    budget: Budget
    most: int
    """The highest limit it ever had."""
    at_unix_s: float = float("-inf")
    """Its time never goes back."""
    shares: list[_Share] = field(default_factory=list)

    def counted(self, at_unix_s: float, *, is_strict: bool) -> Iterator[_Share]:
        """Shares that count at a moment; ``is_strict``: and those that may."""
        begin = _begin(self.budget.window, at_unix_s, is_strict=is_strict)
        return (share for share in self.shares if begin(share.at_unix_s))

    def taken(self, at_unix_s: float, *, is_strict: bool) -> int:
        """Used and held."""
        measure = self.budget.measure
        holds = (share.hold for share in self.counted(at_unix_s, is_strict=is_strict))
        return sum(hold.used.of(measure) + (hold.most if is_strict else hold.least).of(measure) for hold in holds)

    def used(self, at_unix_s: float, *, is_strict: bool) -> int:
        measure = self.budget.measure
        return sum(share.hold.used.of(measure) for share in self.counted(at_unix_s, is_strict=is_strict))

    def soft(self, at_unix_s: float) -> int:
        measure = self.budget.measure
        return sum(share.hold.soft.get(measure, 0) for share in self.counted(at_unix_s, is_strict=True))


def _begin(window: Window | None, at_unix_s: float, *, is_strict: bool) -> Callable[[float], bool]:
    """Whether an admission at some time counts at ``at_unix_s``."""
    if window is None or window.kind is Kind.TOTAL:
        return lambda admitted_s: True
    if window.kind is Kind.ROLLING:
        length_s = window.length_s * (1 + 1 / NUM_BUCKETS if is_strict else 1)
        return lambda admitted_s: admitted_s > at_unix_s - length_s
    if window.kind is Kind.CALENDAR:
        return lambda admitted_s: admitted_s // window.length_s == at_unix_s // window.length_s
    return lambda admitted_s: _month(admitted_s) == _month(at_unix_s)


def _month(unix_s: float) -> tuple[int, int]:
    day = datetime.fromtimestamp(unix_s, tz=UTC)
    return day.year, day.month


class Budgets:
    """Keeps every budget's account from grants and charges."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._rules = Rules()
        self._accounts: dict[tuple[Level, Measure, Window | None], _Account] = {}
        self._holds: dict[str, _Hold] = {}
        """By request, over or not."""

    def see(self, event: Event) -> None:
        match event:
            case Configured(rules=rules):
                self._configure(rules)
            case Restarted():
                self._accounts.clear()
                self._holds.clear()
            case Submitted(request=request):
                self._submit(request)
            case Counted(attempt_id=attempt_id, prompt_tokens=prompt_tokens):
                self._count(attempt_id, prompt_tokens)
            case Posted():
                self._post(event)
            case Decided(action=Settle() as settle):
                self._settle(settle)
            case Decided(action=Reject(request_id=request_id) | Finish(request_id=request_id)):
                if (hold := self._holds.get(request_id)) is not None:
                    hold.set(NOTHING)
            case Stopped():
                self._stop(event)
            case _:
                pass

    # -- rules

    def _configure(self, rules: Rules) -> None:
        """Budgets that are gone are forgotten; those that come count from now on."""
        self._rules = rules
        for key, account in list(self._accounts.items()):
            budget = self._budget_of(key)
            if budget is None:
                del self._accounts[key]
            else:
                account.budget, account.most = budget, max(account.most, budget.limit)

    def _budget_of(self, key: tuple[Level, Measure, Window | None]) -> Budget | None:
        level, measure, window = key
        budgets = self._budgets_at(level)
        return next((each for each in budgets if (each.measure, each.window) == (measure, window)), None)

    def _budgets_at(self, level: Level) -> tuple[Budget, ...]:
        if level.kind == "task":
            return self._rules.task_budgets.get(level.name.partition("/")[0], ())
        return self._rules.budgets.get(level, ())

    def _above(self, request: Request) -> list[_Account]:
        levels = [Level("tenant", request.tenant), Level("key", request.key_id)]
        levels += [Level("project", f"{request.tenant}/{request.project}")] if request.project else []
        levels += [Level("task", f"{request.tenant}/{request.task}")] if request.task else []
        accounts = []
        for level in levels:
            for budget in self._budgets_at(level):
                key = (level, budget.measure, budget.window)
                account = self._accounts.get(key)
                if account is None:
                    account = self._accounts[key] = _Account(level, budget, budget.limit)
                account.at_unix_s = max(account.at_unix_s, request.arrival_unix_s)
                accounts.append(account)
        return accounts

    # -- a request's life

    def _submit(self, request: Request) -> None:
        reject = self._books.verdicts.get(request.request_id)
        if reject is not None and reject.rejection.reason in BEFORE_BUDGETS:
            return
        accounts = self._above(request)
        if reject is not None:
            if reject.rejection.shortage is not None or reject.rejection.reason in BY_BUDGET:
                self._refused(request, reject.rejection, accounts)
            return
        most_tokens, least_tokens = (self._grant(request, accounts, is_strict=strict) for strict in (False, True))
        self._books.expect(most_tokens is not None, f"{request.request_id}: admitted, but a budget does not cover it")
        most_tokens = request.max_output_tokens if most_tokens is None else most_tokens
        if least_tokens is None or any(account.budget.measure in SOFT for account in accounts):
            least_tokens = min(request.max_output_tokens, 1)
        cap_tokens = self._books.caps.get(request.request_id)
        if cap_tokens is not None:
            is_covered = cap_tokens <= most_tokens
            name = request.request_id
            self._books.expect(is_covered, f"{name}: may put out {cap_tokens} tokens, its budgets cover {most_tokens}")
            self._books.expect(cap_tokens >= least_tokens, f"{name}: capped to {cap_tokens} tokens, not {least_tokens}")
            least_tokens = most_tokens = cap_tokens
        prompt_tokens = request.prompt_tokens_bound
        hold = _Hold(
            request, _needed(request, prompt_tokens, least_tokens), _needed(request, prompt_tokens, most_tokens)
        )
        hold.accounts = accounts
        self._holds[request.request_id] = hold
        for account in accounts:
            account.shares.append(_Share(account.at_unix_s, hold))

    def _grant(self, request: Request, accounts: list[_Account], *, is_strict: bool) -> int | None:
        """The most output that every hard budget covers; None where one does not even cover the least."""
        least, most = min(request.max_output_tokens, 1), request.max_output_tokens
        lefts = [
            (account.budget.measure, account.budget.limit - account.taken(account.at_unix_s, is_strict=is_strict))
            for account in accounts
            if account.budget.measure not in SOFT
        ]

        def covers(tokens: int) -> bool:
            needed = _needed(request, request.prompt_tokens_bound, tokens)
            return all(needed.of(measure) <= left for measure, left in lefts)

        if not covers(least):
            return None
        while least < most:
            middle = (least + most + 1) // 2
            least, most = (middle, most) if covers(middle) else (least, middle - 1)
        return least

    def _refused(self, request: Request, rejection: Rejection, accounts: list[_Account]) -> None:
        """The loser's error names a budget that is really short, as it stands."""
        expect, name, short = self._books.expect, request.request_id, rejection.shortage
        expect(rejection.status == 429 and short is not None, f"{name}: refused by a budget without saying which")
        if short is None:
            return
        named = [account for account in accounts if _is_named(account, short)]
        expect(bool(named), f"{name}: refused by a budget that is not above it: {short}")
        expect(short.needed > short.left, f"{name}: refused although {short.left} were left of {short.needed}")
        for account in named:
            limit, measure, at_s = account.budget.limit, account.budget.measure, account.at_unix_s
            expect(short.limit == limit, f"{name}: refused by a limit of {short.limit}, which is {limit}")
            if measure in SOFT:
                continue
            least = _needed(request, request.prompt_tokens_bound, min(request.max_output_tokens, 1)).of(measure)
            lefts = [max(limit - account.taken(at_s, is_strict=strict), 0) for strict in (True, False)]
            expect(lefts[0] < least, f"{name}: refused, but {account.level} covers it")
            expect(lefts[0] <= short.left <= lefts[1], f"{name}: told that {short.left} were left, not {lefts[1]}")
            _expect_words(self._books, name, rejection, account, least)

    def _count(self, attempt_id: str, prompt_tokens: int) -> None:
        """The prompt is known: the rest of its hold comes back."""
        attempt = self._books.attempts.get(attempt_id)
        hold = None if attempt is None else self._holds.get(attempt.asked.request.request_id)
        if attempt is None or hold is None or attempt.num_settles or hold.request.num_sequences != 1:
            return
        if prompt_tokens < hold.least.input_tokens:
            hold.set(_needed(hold.request, prompt_tokens, hold.least.output_tokens))

    def _settle(self, settle: Settle) -> None:
        hold, attempt = self._holds.get(settle.request_id), self._books.attempts.get(settle.attempt_id)
        if hold is None or attempt is None or attempt.num_settles or settle.payer is not Payer.REQUEST:
            return
        tokens, was = settle.tokens, hold.used
        hold.used = Amount(
            was.input_tokens + tokens.input_tokens,
            was.cached_tokens + tokens.cached_tokens,
            was.output_tokens + tokens.output_tokens,
            was.money_nano + settle.cost_nano,
            requests=1,
        )
        hold.set(Amount(concurrency=hold.least.concurrency))
        for account in hold.accounts:
            used = account.used(account.at_unix_s, is_strict=False)
            self._books.expect(
                used <= account.most, f"{settle.attempt_id}: {account.level} has used {used} of {account.budget}"
            )

    def _post(self, posted: Posted) -> None:
        attempt = self._books.attempts.get(posted.attempt_id)
        hold = None if attempt is None else self._holds.get(attempt.asked.request.request_id)
        if attempt is None or hold is None or attempt.settle is None or attempt.settle.payer is not Payer.REQUEST:
            return
        carbon_ug = posted.energy_mj * self._rules.carbon_ug_per_mj.get(attempt.zone, 0.0) + 1
        took = (posted.energy_mj, posted.gpu_us, int(carbon_ug) + 1)
        for measure, amount in zip((Measure.ENERGY_MJ, Measure.GPU_US, Measure.CARBON_UG), took, strict=True):
            hold.soft[measure] = hold.soft.get(measure, 0) + amount

    # -- the end

    def _stop(self, end: Stopped) -> None:
        """Nothing is held, and every budget counts what was charged."""
        books = self._books
        still = {measure.value: held for measure, held in end.held.items() if held}
        books.expect(not still and not end.num_holds, f"budgets still hold {still} for {end.num_holds} requests")
        for state in end.budgets:
            books.expect(not state.held, f"{state.level} still holds {state.held} {state.measure}")
            account = next((each for each in self._accounts.values() if _is_named(each, state)), None)
            if account is None:
                books.expect(not state.used, f"{state.level} has used {state.used} {state.measure} of nobody's")
                continue
            at_s = max(end.unix_s, account.at_unix_s)
            if state.measure in SOFT:
                most = min(account.soft(at_s), account.most)
                books.expect(state.used <= most, f"{state.level} has used {state.used} {state.measure}, not {most}")
                continue
            least, most = (account.used(at_s, is_strict=strict) for strict in (False, True))
            books.expect(
                least <= state.used <= most, f"{state.level} has used {state.used} {state.measure}, not {most}"
            )


def _needed(request: Request, prompt_tokens: int, output_tokens: int) -> Amount:
    """The worst case: any part of the prompt may come from a cache or may not; ``output_tokens`` of one sequence."""
    all_tokens, rates = output_tokens * request.num_sequences, request.rates
    dearest_nano = max(rates.input_nano, rates.cached_nano)
    money_nano = -(-(prompt_tokens * dearest_nano + all_tokens * rates.output_nano) // 1_000_000)
    return Amount(prompt_tokens, prompt_tokens, all_tokens, money_nano, requests=1, concurrency=1)


def _is_named(account: _Account, named: Shortage | BudgetState) -> bool:
    window = account.budget.window
    text = "" if window is None else str(window)
    return (str(account.level), account.budget.measure.value, text) == (
        str(named.level),
        str(named.measure),
        named.window,
    )


def _expect_words(books: Books, name: str, rejection: Rejection, account: _Account, needed: int) -> None:
    """A rate is told from a quota, and nobody is told to try again where that is of no use."""
    window, limit = account.budget.window, account.budget.limit
    is_rate = window is None or 0 < window.length_s <= RATE_WINDOW_S
    is_held = limit - account.used(account.at_unix_s, is_strict=False) >= needed
    expected = "rate_limit_exceeded" if is_rate or is_held else "insufficient_quota"
    if needed <= limit:
        is_same = account.used(account.at_unix_s, is_strict=True) == account.used(account.at_unix_s, is_strict=False)
        books.expect(not is_same or rejection.reason == expected, f"{name}: {rejection.reason} is not {expected}")
    is_final = rejection.reason == "insufficient_quota"
    books.expect(not is_final or rejection.should_retry is False, f"{name}: told to try a quota again")
    retry_after_s = rejection.retry_after_s
    is_whole = retry_after_s is None or (isinstance(retry_after_s, int) and retry_after_s >= 1)
    books.expect(is_whole, f"{name}: told to come again after {retry_after_s} s")
