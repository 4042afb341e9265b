"""What one request holds of the budgets above it, and what attempts took beyond such holds.

Owned and changed by ``scheduler.core.budgets`` alone. It must never know how much of a budget is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.core.budget_accounts import Account, Vector
from scheduler.core.budget_needs import Bound
from scheduler.core.request import Request


@dataclass(slots=True)
class Excess:
    """What attempts took beyond their holds, by part. Of tokens and money there is none unless an engine lies."""

    num_posted: int = 0
    """Attempts whose energy was measured and had been held."""
    times: dict[str, int] = field(default_factory=dict)
    amounts: dict[str, int] = field(default_factory=dict)

    def add(self, part: str, amount: int) -> None:
        """Nothing where the hold sufficed."""
        if amount > 0:
            self.times[part] = self.times.get(part, 0) + 1
            self.amounts[part] = self.amounts.get(part, 0) + amount


Place = tuple[Account, int]
"""An account, and the slot of it that a request belongs to."""


@dataclass(slots=True, kw_only=True, eq=False)
class Hold:
    """What one request holds of the budgets above it; changed by ``Budgets`` alone."""

    request: Request
    bound: Bound | None
    """None where no budget of energy is above it and no money is paid for energy."""
    accounts: tuple[Account, ...]
    """From the tenant down."""
    hard: list[Place]
    soft: list[Place]
    """Those of energy; the others are ``hard``."""
    prompt_tokens: int
    output_tokens: int
    """Of one sequence."""
    first: Vector
    """As it was granted."""
    held: Vector
    used: Vector
    plus_nano: int = 0
    """Of the money: the most that its energy and GPU-time may cost it; stays held until they are measured."""
    charged: list[str] = field(default_factory=list)
    """Attempts; as many as a request is tried."""
    num_unposted: int = 0
    is_over: bool = False

    def told(self) -> list[dict[str, str | int]]:
        """What it held at its admission and used so far, by budget, as plain values."""
        return [
            {
                "level": str(account.level),
                "measure": account.measure.value,
                "window": "" if account.budget.window is None else str(account.budget.window),
                "limit": account.limit,
                "held": account.read(self.first),
                "settled": account.read(self.used),
            }
            for account in self.accounts
        ]
