"""Budgets of tenants, projects, keys and tasks: one hold over all of them or none, settled by what was really used.

Called by ``scheduler.core.scheduler``. It must never know a worker, a queue or a clock: the moment that decides the
windows is the request's own arrival.

``hold`` takes the worst case from every budget above a request, at once. ``trim`` gives back what the prompt turned out
not to need, ``charge`` turns the hold of tokens and money into use, ``end`` gives back the rest. Energy, GPU-time and
carbon are measured later: their hold stays until ``post``, and with it the money that they cost where they are paid for
(cost-plus). No more than was held is ever taken from a budget; what an attempt took beyond it is counted as excess, and
the operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from scheduler.core.actions import Rejection, Tokens
from scheduler.core.budget_accounts import (
    NUM_PARTS,
    REQUESTS,
    Account,
    Amounts,
    Budget,
    BudgetState,
    Level,
    Measure,
    Vector,
    renewed,
)
from scheduler.core.budget_holds import Excess, Hold, Place
from scheduler.core.budget_needs import ENERGY_PARTS, Bound, most_covered, needed, plus_of, short
from scheduler.core.budget_tasks import TaskAccounts
from scheduler.core.budget_windows import SECOND_US, Window
from scheduler.core.energy_bounds import EnergyBound
from scheduler.core.request import Request
from scheduler.core.shortages import refusal, too_many_tasks

MAX_TASKS_PER_TENANT = 10_000
MAX_KNOWN = 10_000
"""Tenants' keys of which it is kept which accounts are above them; then all are looked up anew."""
PART_NAMES = (*Amounts._fields, "requests", "concurrency")
MONEY = Amounts._fields.index("money_nano")


UsedSlots = tuple[str, str, str, str, dict[int, int]]
"""Level, its name, measure, window, use by slot."""


class _Above(NamedTuple):
    """The accounts above a request, from the tenant down, and the same by whether they count energy."""

    accounts: tuple[Account, ...]
    hard: list[Account]
    soft: list[Account]

    @staticmethod
    def of(accounts: tuple[Account, ...]) -> _Above:
        hard = [account for account in accounts if not account.is_energy]
        return _Above(accounts, hard, [account for account in accounts if account.is_energy])


class Granted(NamedTuple):
    """Every budget above the request covers it."""

    output_tokens: int
    """Of one sequence: what ``max_tokens`` is capped to."""
    hold: Hold | None = None
    """None where nothing is held: no budget is above it, or it was only a question."""


class Budgets:
    """All budgets and all holds. One per core; not thread-safe, for nothing in it waits."""

    def __init__(
        self,
        budgets: Mapping[Level, tuple[Budget, ...]] | None = None,
        task_budgets: Mapping[str, tuple[Budget, ...]] | None = None,
        *,
        max_tasks_per_tenant: int = MAX_TASKS_PER_TENANT,
    ) -> None:
        """``task_budgets``, by tenant, are what each of its tasks gets."""
        self.excess = Excess()
        self._accounts: dict[tuple[str, str], tuple[Account, ...]] = {}
        self._tasks = TaskAccounts(task_budgets or {}, max_tasks_per_tenant=max_tasks_per_tenant)
        self._holds: dict[str, Hold] = {}
        self._unposted: dict[str, Hold] = {}
        """By attempt: charged, and its energy neither measured nor given up."""
        self._set(budgets or {})

    def reload(
        self, budgets: Mapping[Level, tuple[Budget, ...]], task_budgets: Mapping[str, tuple[Budget, ...]]
    ) -> None:
        """Other limits from now on. What was used and held stays so; a budget of a new kind counts from now on."""
        self._set(budgets)
        self._tasks.reload(task_budgets)

    # -- a request's life

    def check(self, request: Request, *, prompt_tokens: int, bound: Bound) -> Granted | Rejection:
        """What ``hold`` would answer now; nothing is held."""
        answer = self._examine(request, prompt_tokens, bound)
        return Granted(answer.output_tokens) if isinstance(answer, Hold) else answer

    def hold(self, request: Request, *, prompt_tokens: int, bound: Bound) -> Granted | Rejection:
        """Takes the worst case from every budget above the request, or nothing from any.

        The output is capped to what all of them cover, at least a token of each sequence (none where none is asked
        for). A refusal names the budget that stays in the way longest.
        """
        answer = self._examine(request, prompt_tokens, bound)
        if not isinstance(answer, Hold):
            return answer
        assert request.request_id not in self._holds, f"{request.request_id} holds already"
        self._holds[request.request_id] = answer
        for account, slot in answer.hard + answer.soft:
            account.add(slot, held=account.read(answer.held))
        if request.task and (tasks := tuple(each for each in answer.accounts if each.level.kind == "task")):
            self._tasks.keep(request.tenant, request.task, tasks)
        return Granted(answer.output_tokens, answer)

    def trim(self, request_id: str, prompt_tokens: int) -> None:
        """An engine counted the prompt: what the bound held beyond it comes back.

        Only of a request with one sequence: with more of them nobody knows yet what each prompt has.
        """
        hold = self._holds.get(request_id)
        if hold is None or hold.is_over or hold.charged or hold.request.num_sequences != 1:
            return
        if prompt_tokens >= hold.prompt_tokens:
            return
        hold.prompt_tokens = prompt_tokens
        worst = needed(hold.request, prompt_tokens, hold.output_tokens, hold.bound)
        hold.plus_nano = min(hold.plus_nano, plus_of(hold.request, worst))
        release = [max(held - still, 0) for held, still in zip(hold.held, worst, strict=True)]
        self._move(hold, hold.hard + hold.soft, release)

    def charge(self, request_id: str, attempt_id: str, tokens: Tokens, money_nano: int) -> None:
        """An attempt that the request pays for was settled: its hold becomes use. A second time changes nothing."""
        hold = self._holds.get(request_id)
        if hold is None or attempt_id in hold.charged:
            return
        amounts = [0] * NUM_PARTS
        amounts[:4] = tokens.input_tokens, tokens.cached_tokens, tokens.output_tokens, money_nano
        amounts[REQUESTS] = 0 if hold.charged else 1
        hold.charged.append(attempt_id)
        taken = self._taken(hold, amounts)
        self._move(hold, hold.hard, taken, taken)
        if hold.bound is not None:
            hold.num_unposted += 1
            self._unposted[attempt_id] = hold

    def end(self, request_id: str) -> None:
        """The request is over: what it did not use comes back, energy as soon as all of it is measured or given up.

        A request that nothing was charged for does not count as one.
        """
        hold = self._holds.get(request_id)
        if hold is None:
            return
        hold.is_over = True
        if not hold.num_unposted:
            self._move(hold, hold.hard + hold.soft, hold.held)
            del self._holds[request_id]
            return
        release = hold.held.copy()
        release[ENERGY_PARTS.start : ENERGY_PARTS.stop] = [0] * len(ENERGY_PARTS)
        release[MONEY] = max(release[MONEY] - hold.plus_nano, 0)
        self._move(hold, hold.hard, release)

    def post(self, attempt_id: str, amounts: EnergyBound, *, money_nano: int = 0) -> EnergyBound:
        """What a charged attempt took was measured; what it took beyond the hold is the operator's, and counted.

        ``money_nano``: what that costs beyond the estimate that was charged, negative where it costs less. Returns what
        the budgets carry. Nothing happens for an attempt that was never charged or was posted before, and where nothing
        was held for energy.
        """
        hold = self._unposted.pop(attempt_id, None)
        if hold is None:
            return amounts
        self.excess.num_posted += 1
        parts = [0] * NUM_PARTS
        parts[ENERGY_PARTS.start : ENERGY_PARTS.stop] = amounts
        if hold.plus_nano:  # else nothing is held for it
            parts[MONEY] = max(money_nano, -hold.used[MONEY])  # what was charged beyond the hold used nothing
        taken = self._taken(hold, parts)
        hold.num_unposted -= 1
        is_last = hold.is_over and not hold.num_unposted
        release = hold.held if is_last else [max(amount, 0) for amount in taken]
        self._move(hold, hold.soft + hold.hard if hold.plus_nano else hold.soft, release, taken)
        if is_last:
            del self._holds[hold.request.request_id]
        return EnergyBound(*taken[ENERGY_PARTS.start : ENERGY_PARTS.stop])

    # -- what a ledger remembers

    def restore(self, request: Request, amounts: Amounts, *, num_requests: int = 0) -> None:
        """Used in an earlier life: tokens and money of one request, or what was measured of one of its attempts."""
        parts, at_us = [0] * NUM_PARTS, _at_us(request.arrival_unix_s)
        parts[: len(amounts)], parts[REQUESTS] = amounts, num_requests
        for account, slot in self._places(request, at_us):
            account.restore(slot, account.read(parts))

    def reserve(self, request: Request, money_nano: int) -> Callable[[], None]:
        """The most that a request of an earlier life may still cost is held, until what is returned is called."""
        places = [
            (account, slot)
            for account, slot in self._places(request, _at_us(request.arrival_unix_s))
            if money_nano and account.measure is Measure.MONEY_NANO
        ]
        for account, slot in places:
            account.add(slot, held=money_nano)

        def release() -> None:
            for account, slot in places:
                account.add(slot, held=-money_nano)

        return release

    def used(self) -> list[UsedSlots]:
        """What all accounts have used, so that ``put_back`` on the same budgets leads to it again."""
        return [
            (account.level.kind, account.level.name, account.measure.value, str(account.window), account.used_slots())
            for account in self._all()
            if account.used
        ]

    def put_back(self, used: Iterable[UsedSlots]) -> None:
        """Of budgets that are not there any more nothing is kept."""
        for kind, name, measure, window, slots in used:
            accounts = self._accounts.get(Level(kind, name), ())
            if kind == "task":
                tenant, _, task = name.partition("/")
                if accounts := self._tasks.of(tenant, task, 0):
                    self._tasks.keep(tenant, task, accounts)
            for account in accounts:
                if account.measure == measure and account.window == Window.parse(window):
                    account.put_back(slots)

    # -- what others read

    def states(self, request: Request) -> list[BudgetState]:
        """How every budget above the request stands at its arrival, from the tenant down."""
        at_us = _at_us(request.arrival_unix_s)
        return [account.state(at_us) for account in self._above(request, at_us).accounts]

    def tightest(self, request: Request, at_unix_s: float, measures: Iterable[str]) -> list[BudgetState]:
        """Of each measure that a budget above the request counts, the one of which the least is left then."""
        at_us = _at_us(at_unix_s)
        accounts, found = self._above(request, at_us).hard, []
        for measure in measures:
            of_measure = [account for account in accounts if account.measure == measure]
            if of_measure:
                found.append(min(of_measure, key=lambda account: account.left_at(at_us)).state(at_us))
        return found

    def near_limit(self, at_unix_s: float, *, ratio: float = 0.8, most: int = 100) -> list[BudgetState]:
        """Budgets of which at least this part is used or held, the fullest first."""
        at_us = _at_us(at_unix_s)
        states = [account.state(at_us) for account in self._all() if account.used or account.held]
        full = [state for state in states if 0 < state.used + state.held >= ratio * state.limit]
        full.sort(key=lambda state: (-(state.used + state.held) / max(state.limit, 1), state.level, state.measure))
        return full[:most]

    def held_total(self) -> dict[Measure, int]:
        """What all accounts hold; 0 each when nothing runs and all energy is posted."""
        totals = dict.fromkeys(Measure, 0)
        for account in self._all():
            totals[account.measure] += account.held
        return totals

    @property
    def num_holds(self) -> int:
        """Requests that hold something, or wait for a measurement of their energy."""
        return len(self._holds)

    # -- inside

    def _set(self, budgets: Mapping[Level, tuple[Budget, ...]]) -> None:
        known = self._accounts
        self._known_above: dict[tuple[str, str, str], _Above] = {}
        self._accounts = {
            level: renewed(level, known.get(level, ()), of_level) for level, of_level in budgets.items() if of_level
        }

    def _all(self) -> Iterator[Account]:
        for accounts in self._accounts.values():
            yield from accounts
        yield from self._tasks.accounts()

    def _places(self, request: Request, at_us: int) -> list[Place]:
        """Where a request of an earlier life belongs; its task is kept."""
        accounts = self._above(request, at_us).accounts
        if request.task and (tasks := tuple(each for each in accounts if each.level.kind == "task")):
            self._tasks.keep(request.tenant, request.task, tasks)
        for account in accounts:
            account.advance(at_us)
        return [(account, account.window.slot_of(at_us)) for account in accounts]

    def _above(self, request: Request, at_us: int) -> _Above:
        """Accounts of the request's tenant, project, key and task; those without a task are looked up once."""
        key = (request.tenant, request.project, request.key_id)
        above = self._known_above.get(key)
        if above is None:
            levels = [("tenant", request.tenant), ("key", request.key_id)]
            if request.project:
                levels.insert(1, ("project", f"{request.tenant}/{request.project}"))
            found = [account for level in levels for account in self._accounts.get(level, ())]
            if len(self._known_above) >= MAX_KNOWN:
                self._known_above.clear()
            above = self._known_above[key] = _Above.of(tuple(found))
        if not request.task:
            return above
        tasks = self._tasks.of(request.tenant, request.task, at_us)
        return _Above.of(above.accounts + tasks) if tasks else above

    def _examine(self, request: Request, prompt_tokens: int, bound: Bound) -> Hold | Granted | Rejection:
        """The hold as it would be, not yet taken; Granted where no budget is above the request."""
        at_us = _at_us(request.arrival_unix_s)
        above = self._above(request, at_us)
        if request.is_counting or not above.accounts:
            return Granted(request.max_output_tokens)
        for account in above.accounts:
            account.advance(at_us)
        if request.task and not self._tasks.has_room(request.tenant, request.task, at_us):
            return too_many_tasks(f"{request.tenant}/{request.task}", self._tasks.most)
        covered = most_covered(above.hard, above.soft, request, prompt_tokens, bound)
        if covered is None:
            shorts = [short(account, request, prompt_tokens, bound) for account in above.accounts]
            return refusal([each for each in shorts if each is not None], at_us)
        return Hold(
            request=request,
            bound=covered.bound,
            accounts=above.accounts,
            hard=[(account, account.slot) for account in above.hard],
            soft=[(account, account.slot) for account in above.soft],
            prompt_tokens=prompt_tokens,
            output_tokens=covered.output_tokens,
            first=covered.needs,
            held=covered.needs.copy(),
            used=[0] * NUM_PARTS,
            plus_nano=0 if request.rates.plus is None else plus_of(request, covered.needs),
        )

    def _taken(self, hold: Hold, amounts: Vector) -> Vector:
        """So much of the amounts as is held; what is beyond it is counted."""
        if all(amount <= held for amount, held in zip(amounts, hold.held, strict=True)):
            return amounts
        for name, amount, held in zip(PART_NAMES, amounts, hold.held, strict=True):
            self.excess.add(name, amount - held)
        return [min(amount, held) for amount, held in zip(amounts, hold.held, strict=True)]

    def _move(self, hold: Hold, places: list[Place], release: Vector, use: Vector | None = None) -> None:
        """The only change of a hold: gives back, and uses, in those of its accounts that it concerns."""
        for account, slot in places:
            read = account.read
            held, used = read(release), 0 if use is None else read(use)
            if held or used:
                account.add(slot, used=used, held=-held)
        hold.held = [held - amount for held, amount in zip(hold.held, release, strict=True)]
        if use is not None:
            for part, amount in enumerate(use):
                hold.used[part] += amount


def _at_us(unix_s: float) -> int:
    return int(unix_s * SECOND_US)
