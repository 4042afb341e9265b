"""What is counted, and how one budget stands: its limit, what was used of it, what is held.

Called by ``scheduler.core.budgets``; its values are read above the core. It must never know a request or another
budget: it is told amounts and the moment they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from typing import NamedTuple

from scheduler.core.budget_windows import SECOND_US, Kind, Window


class Measure(StrEnum):
    """What a budget counts, with its unit where it has one."""

    TOKENS = "tokens"
    """Prompt and output."""
    INPUT_TOKENS = "input_tokens"
    """Prompts, cached tokens among them."""
    CACHED_TOKENS = "cached_tokens"
    OUTPUT_TOKENS = "output_tokens"
    MONEY_NANO = "money_nano"
    """10⁻⁹ currency units."""
    ENERGY_MJ = "energy_mj"
    GPU_US = "gpu_us"
    CARBON_UG = "carbon_ug"
    REQUESTS = "requests"
    CONCURRENCY = "concurrency"


ENERGY = frozenset({Measure.ENERGY_MJ, Measure.GPU_US, Measure.CARBON_UG})
"""Depend on strangers in the batch: held at a bound that the truth may exceed; the excess is the operator's. The others
are hard: never overspent, whatever happens in which order."""


class Level(NamedTuple):
    """Whose budget it is."""

    kind: str
    """``tenant``, ``project``, ``key`` or ``task``."""
    name: str
    """``acme``, ``acme/search``, ``key-0123456789``, ``acme/nightly``."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Amounts(NamedTuple):
    """What a request holds, used or exceeded. ``input_tokens`` contain the cached ones."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    money_nano: int = 0
    energy_mj: int = 0
    gpu_us: int = 0
    carbon_ug: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``limit`` of the measure per window. A limit of 0 refuses whatever would use any of it."""

    measure: Measure
    limit: int
    window: Window | None = None
    """None for concurrency, and only there: it is what runs at a time."""

    def __post_init__(self) -> None:
        assert self.limit >= 0, self.limit
        assert (self.window is None) == (self.measure is Measure.CONCURRENCY), self.measure


class BudgetState(NamedTuple):
    """How a budget stands at a moment."""

    level: Level
    measure: Measure
    window: str
    """As it was written; empty for concurrency."""
    limit: int
    used: int
    held: int
    """Worst case of what runs; comes back as far as it is not used."""
    left: int
    resets_unix_s: float | None
    """Calendar: the window's end. Rolling: when nothing counts any more of what counts now. None: never by time."""


Vector = list[int]
"""Amounts, and behind them requests and concurrency."""
REQUESTS, CONCURRENCY = len(Amounts._fields), len(Amounts._fields) + 1
NUM_PARTS = len(Amounts._fields) + 2
NEVER_US = 1 << 80
_FOREVER = Window(Kind.TOTAL, 0)

READS: dict[Measure, Callable[[Vector], int]] = {
    Measure.TOKENS: lambda parts: parts[0] + parts[2],
    Measure.INPUT_TOKENS: itemgetter(0),
    Measure.CACHED_TOKENS: itemgetter(1),
    Measure.OUTPUT_TOKENS: itemgetter(2),
    Measure.MONEY_NANO: itemgetter(3),
    Measure.ENERGY_MJ: itemgetter(4),
    Measure.GPU_US: itemgetter(5),
    Measure.CARBON_UG: itemgetter(6),
    Measure.REQUESTS: itemgetter(REQUESTS),
    Measure.CONCURRENCY: itemgetter(CONCURRENCY),
}


class Account:
    """One budget of one level. Only slots that count are kept, so it is bounded; its time never goes back."""

    __slots__ = (
        "_num_slots",
        "_slots",
        "_until_us",
        "_window_text",
        "budget",
        "held",
        "is_energy",
        "level",
        "limit",
        "measure",
        "read",
        "slot",
        "used",
        "window",
    )

    def __init__(self, level: Level, budget: Budget, at_us: int) -> None:
        self.level = level
        self.measure = budget.measure
        self.is_energy = budget.measure in ENERGY
        self.window = budget.window or _FOREVER
        self.change_limit(budget)
        self.read = READS[budget.measure]
        self.used = 0
        """Over all slots that count."""
        self.held = 0
        self._slots: dict[int, list[int]] = {}
        """Used and held by slot."""
        self._num_slots = self.window.num_slots
        self.slot = self.window.slot_of(at_us)
        """The running one."""
        self._until_us = self._end_us()

    def change_limit(self, budget: Budget) -> None:
        """The operator wants more or less; what was used stays used."""
        self.budget = budget
        self.limit = budget.limit
        self._window_text = "" if budget.window is None else str(budget.window)

    @property
    def left(self) -> int:
        """What a newcomer may hold; 0 where a lowered limit is already exceeded."""
        return max(self.limit - self.used - self.held, 0)

    def left_at(self, at_us: int) -> int:
        """The same at a moment that may lie ahead; changes nothing."""
        return self.left if at_us < self._until_us else self.state(at_us).left

    def covers(self, needs: Vector) -> bool:
        """Whether so much more may be held."""
        needed = self.read(needs)
        return not needed or needed <= self.limit - self.used - self.held

    @property
    def is_idle(self) -> bool:
        """Nothing of it is used or held: forgetting it loses nothing."""
        return not self.used and not self.held

    def advance(self, at_us: int) -> None:
        """Forgets what no longer counts."""
        if at_us < self._until_us:
            return
        self.slot = self.window.slot_of(at_us)
        self._until_us = self._end_us()
        oldest = self.slot - self._num_slots + 1
        for slot in [slot for slot in self._slots if slot < oldest]:
            used, held = self._slots.pop(slot)
            self.used -= used
            self.held -= held

    def add(self, slot: int, *, used: int = 0, held: int = 0) -> None:
        """Changes what is used and held in a slot; nothing where the slot no longer counts."""
        if slot <= self.slot - self._num_slots:
            return
        parts = self._slots.get(slot)
        if parts is None:
            parts = self._slots[slot] = [0, 0]
        parts[0] += used
        parts[1] += held
        assert parts[0] >= 0 <= parts[1], (self.level, self.measure, parts)
        self.used += used
        self.held += held

    def restore(self, slot: int, used: int) -> None:
        """What was used in an earlier life; less than nothing where that was corrected, but never below 0: of a budget
        that is younger than the charge only the correction is known.
        """
        if used:
            self.add(slot, used=max(used, -self._slots.get(slot, (0, 0))[0]))

    def used_slots(self) -> dict[int, int]:
        """What is used, by slot."""
        return {slot: used for slot, (used, _) in self._slots.items() if used}

    def put_back(self, slots: dict[int, int]) -> None:
        """What was used in an earlier life, into an account that has used nothing yet."""
        for slot, used in sorted(slots.items()):
            if slot > self.slot:
                self.slot, self._until_us = slot, 0  # the next moment it hears of says which slots still count
            self.add(slot, used=used)

    def free_us(self, needed: int) -> int | None:
        """When time alone will have freed ``needed``, at the earliest; None = never."""
        if needed > self.limit:
            return None
        missing = needed - self.left
        for slot in sorted(self._slots):
            missing -= sum(self._slots[slot])
            if missing <= 0:
                return self.window.free_us(slot)
        return None

    def state(self, at_us: int) -> BudgetState:
        """How it stands at a moment that may lie ahead; changes nothing."""
        slot, counting, used, held = self.slot, self._slots, self.used, self.held
        if at_us >= self._until_us:
            slot = self.window.slot_of(at_us)
            counting = {at: parts for at, parts in counting.items() if at > slot - self._num_slots}
            used, held = (sum(parts[place] for parts in counting.values()) for place in (0, 1))
        if self.window.kind is Kind.ROLLING:
            newest = next((at for at in reversed(counting) if any(counting[at])), None)  # slots begin in order
            resets_us = at_us if newest is None else self.window.free_us(newest)
        else:
            resets_us = self.window.free_us(slot)
        return BudgetState(
            level=self.level,
            measure=self.measure,
            window=self._window_text,
            limit=self.limit,
            used=used,
            held=held,
            left=max(self.limit - used - held, 0),
            resets_unix_s=None if resets_us is None else resets_us / SECOND_US,
        )

    def _end_us(self) -> int:
        end_us = self.window.start_us(self.slot + 1)
        return NEVER_US if end_us is None else end_us


def renewed(level: Level, known: tuple[Account, ...], budgets: tuple[Budget, ...]) -> tuple[Account, ...]:
    """The accounts of a level after its budgets changed: one of the same measure and window keeps what it counted."""
    kinds = [(budget.measure, budget.window or _FOREVER) for budget in budgets]
    assert len(set(kinds)) == len(kinds), f"{level} has two budgets of one kind"
    kept = {(account.measure, account.window): account for account in known}
    accounts = []
    for kind, budget in zip(kinds, budgets, strict=True):
        account = kept.get(kind) or Account(level, budget, 0)
        account.change_limit(budget)
        accounts.append(account)
    return tuple(accounts)
