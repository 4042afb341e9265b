"""The words of a refusal by budget: which one, how it stands, when to come again.

Called by ``scheduler.core.budgets``. It must never change an account.
"""

from __future__ import annotations

from typing import NamedTuple

from scheduler.core.actions import Rejection, Shortage
from scheduler.core.budget_accounts import Account, Measure
from scheduler.core.budget_windows import SECOND_US, Kind, utc_text

SHORT_WINDOW_S = 3600
"""Budgets of at most this window limit a rate, and waiting helps; longer ones are a quota."""
RETRY_SOON_S = 1
"""What is held by requests that run comes back when they end."""
TASKS_RETRY_AFTER_S = 60

UNITS: dict[Measure, tuple[int, str]] = {
    Measure.MONEY_NANO: (9, "currency units"),
    Measure.ENERGY_MJ: (3, "joules"),
    Measure.GPU_US: (6, "GPU-seconds"),
    Measure.CARBON_UG: (6, "gCO2e"),
    Measure.CONCURRENCY: (0, "requests at a time"),
}
"""Decimal places from the ledger's unit to the one that people use."""


class Short(NamedTuple):
    """An account that does not cover what a request needs."""

    account: Account
    needed: int
    fits_prompt_tokens: int | None
    """With a prompt of so many tokens it would; None where no prompt is short enough."""


def refusal(shorts: list[Short], at_us: int) -> Rejection:
    """Names the budget that stays in the way longest, so that whoever comes again then is not refused by another."""
    worst = max(shorts, key=lambda short: _way_us(short, at_us))
    account = worst.account
    resets_us = account.free_us(worst.needed)
    fits = [short.fits_prompt_tokens for short in shorts]
    shortage = Shortage(
        level=str(account.level),
        measure=account.measure.value,
        window="" if account.budget.window is None else str(account.window),
        limit=account.limit,
        left=account.left,
        needed=worst.needed,
        resets_unix_s=None if resets_us is None else resets_us / SECOND_US,
        fits_prompt_tokens=None if None in fits else min(fit for fit in fits if fit is not None),
    )
    if worst.needed > account.limit:
        reason, retry_after_s, should_retry = _reason(account), None, False
    elif _is_only_held(worst):
        reason, retry_after_s, should_retry = "rate_limit_exceeded", RETRY_SOON_S, None
    else:
        reason = _reason(account)
        retry_after_s = None if resets_us is None else max(-(-(resets_us - at_us) // SECOND_US), 1)
        should_retry = False if reason == "insufficient_quota" else None
    return Rejection(
        reason=reason,
        status=429,
        retry_after_s=retry_after_s,
        should_retry=should_retry,
        message=_message(worst, resets_us),
        shortage=shortage,
    )


def too_many_tasks(level_name: str, most: int) -> Rejection:
    """A tenant's new task would need another one to be forgotten, and none may be."""
    return Rejection(
        reason="too_many_tasks",
        status=429,
        retry_after_s=TASKS_RETRY_AFTER_S,
        message=(
            f"{level_name!r} would be one more than the {most} tasks that this tenant may have at a time; the totals "
            "of the others still count. Use a task that exists, or none, or wait until the window of one is over."
        ),
    )


def amount_text(measure: Measure, amount: int) -> str:
    """``12.5 joules``, exactly; ``1000 tokens``."""
    places, unit = UNITS.get(measure, (0, measure.value.replace("_", " ")))
    whole, rest = divmod(amount, 10**places)
    digits = f"{rest:0{places}d}".rstrip("0") if places else ""
    return f"{whole}{'.' if digits else ''}{digits} {unit}"


def _reason(account: Account) -> str:
    is_rate = account.measure is Measure.CONCURRENCY or 0 < account.window.length_s <= SHORT_WINDOW_S
    return "rate_limit_exceeded" if is_rate else "insufficient_quota"


def _is_only_held(short: Short) -> bool:
    """It would fit if everybody who runs used nothing: what is in the way may come back any moment."""
    return short.needed <= short.account.limit - short.account.used


def _way_us(short: Short, at_us: int) -> tuple[int, int]:
    """How long it stays in the way, for comparison: never free, free at a time, free as soon as somebody ends."""
    if short.needed > short.account.limit:
        return 2, 0
    if _is_only_held(short):
        return 0, 0
    resets_us = short.account.free_us(short.needed)
    return (2, 0) if resets_us is None else (1, resets_us - at_us)


def _message(short: Short, resets_us: int | None) -> str:
    account, measure = short.account, short.account.measure
    window = ""
    if account.budget.window is not None:
        is_total = account.window.kind is Kind.TOTAL
        window = " in total" if is_total else f" per {account.budget.window}"
    text = f"The budget of {account.level} is {amount_text(measure, account.limit)}{window}; "
    text += f"{_number(measure, account.left)} left"
    if account.held:
        text += f", {_number(measure, account.held)} held by requests that run"
    text += f"; this request needs {_number(measure, short.needed)}."
    if not account.limit:
        return f"{text} Nothing is granted while the limit is 0."
    if short.needed > account.limit:
        return f"{text} It never fits: ask for less."
    if measure is Measure.CONCURRENCY:
        return f"{text} It fits as soon as one of them ends."
    if _is_only_held(short):
        return f"{text} What they do not use comes back when they end."
    if resets_us is None:
        return f"{text} It does not reset by itself."
    return f"{text} Enough is free at {utc_text(resets_us)}."


def _number(measure: Measure, amount: int) -> str:
    """The amount without its unit, which was said."""
    return amount_text(measure, amount).partition(" ")[0]
