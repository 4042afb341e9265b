"""What a request needs at worst, and how much of it the budgets above it cover.

Called by ``scheduler.core.budgets``. It must never change an account.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from scheduler.core.budget_accounts import CONCURRENCY, ENERGY, HARD, NUM_PARTS, REQUESTS, Account, Amounts, Vector
from scheduler.core.energy_bounds import EnergyBound
from scheduler.core.request import Request
from scheduler.core.shortages import Short

ENERGY_PARTS = range(Amounts._fields.index("energy_mj"), Amounts._fields.index("carbon_ug") + 1)

Bound = Callable[[int, int], EnergyBound]
"""Energy of so many prompt tokens and output tokens of each sequence, at most; more tokens never take less."""


def needed(request: Request, prompt_tokens: int, output_tokens: int, bound: Bound | None) -> Vector:
    """The worst case; ``output_tokens`` of one sequence. Any part of the prompt may come from a cache or may not."""
    all_output_tokens = output_tokens * request.num_sequences
    rates = request.rates
    dearest = rates._replace(input_nano=max(rates.input_nano, rates.cached_nano))
    energy = EnergyBound() if bound is None else bound(prompt_tokens, output_tokens)
    parts = [0] * NUM_PARTS
    parts[:4] = (
        prompt_tokens,
        prompt_tokens,
        all_output_tokens,
        dearest.cost_nano(input_tokens=prompt_tokens, cached_tokens=0, output_tokens=all_output_tokens),
    )
    parts[ENERGY_PARTS.start : ENERGY_PARTS.stop] = energy
    parts[REQUESTS] = parts[CONCURRENCY] = 1
    return parts


def most_covered(accounts: tuple[Account, ...], request: Request, prompt_tokens: int, bound: Bound) -> int | None:
    """Output of one sequence that all accounts cover; None where they do not cover the least. Energy is asked last."""
    hard = [account for account in accounts if account.measure in HARD]
    soft = [account for account in accounts if account.measure in ENERGY]
    granted = _covered(hard, request, prompt_tokens, None, request.max_output_tokens)
    return None if granted is None else _covered(soft, request, prompt_tokens, bound, granted)


def _covered(
    accounts: list[Account], request: Request, prompt_tokens: int, bound: Bound | None, most: int
) -> int | None:
    """The same, of some accounts and at most so much."""
    if not accounts:
        return most
    lefts = [(account.read, account.left) for account in accounts]

    def covers(output_tokens: int) -> bool:
        parts = needed(request, prompt_tokens, output_tokens, bound)
        return all(read(parts) <= left for read, left in lefts)

    return _most_that(covers, least_output(request), most)


def short(account: Account, request: Request, prompt_tokens: int, bound: Bound) -> Short | None:
    """How an account does not cover the least that the request may get, and with which prompt it would."""
    its_bound, left = bound if account.measure in ENERGY else None, account.left

    def needs(tokens: int) -> int:
        return account.read(needed(request, tokens, least_output(request), its_bound))

    if needs(prompt_tokens) <= left:
        return None
    return Short(account, needs(prompt_tokens), _most_that(lambda tokens: needs(tokens) <= left, 1, prompt_tokens))


def least_output(request: Request) -> int:
    """Output of each sequence without which there is no answer."""
    return min(request.max_output_tokens, 1)


def _most_that(fits: Callable[[int], bool], least: int, most: int) -> int | None:
    """The largest number from ``least`` to ``most`` that fits, where smaller ones fit better; None where none does."""
    if most >= least and fits(most):
        return most
    if least >= most or not fits(least):
        return None
    return least + bisect_left(range(least + 1, most), True, key=lambda number: not fits(number))
