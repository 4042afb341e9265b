"""What a request needs at worst, and how much of it the budgets above it cover.

Called by ``scheduler.core.budgets``. It must never change an account.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from scheduler.core.budget_accounts import CONCURRENCY, NUM_PARTS, REQUESTS, Account, Amounts, Vector
from scheduler.core.energy_bounds import EnergyBound
from scheduler.core.request import Request
from scheduler.core.shortages import Short

ENERGY_PARTS = range(Amounts._fields.index("energy_mj"), Amounts._fields.index("carbon_ug") + 1)

Bound = Callable[[int, int], EnergyBound]
"""Energy of so many prompt tokens and output tokens of each sequence, at most; more tokens never take less."""


def needed(request: Request, prompt_tokens: int, output_tokens: int, bound: Bound | None) -> Vector:
    """The worst case; ``output_tokens`` of one sequence. Any part of the prompt may come from a cache or may not."""
    all_output_tokens = output_tokens * request.num_sequences
    energy = EnergyBound() if bound is None else bound(prompt_tokens, output_tokens)
    parts = [0] * NUM_PARTS
    parts[:4] = (
        prompt_tokens,
        prompt_tokens,
        all_output_tokens,
        request.rates.most_nano(
            input_tokens=prompt_tokens,
            output_tokens=all_output_tokens,
            energy_mj=energy.energy_mj,
            gpu_us=energy.gpu_us,
        ),
    )
    parts[ENERGY_PARTS.start : ENERGY_PARTS.stop] = energy
    parts[REQUESTS] = parts[CONCURRENCY] = 1
    return parts


def plus_of(request: Request, needs: Vector) -> int:
    """Money in the needs that is for energy and GPU-time (10⁻⁹ units); 0 where tokens are all that is paid for."""
    energy_mj, gpu_us, _ = needs[ENERGY_PARTS.start : ENERGY_PARTS.stop]
    return request.rates.cost_plus_nano(energy_mj=energy_mj, gpu_us=gpu_us)


class Covered(NamedTuple):
    """What the accounts above a request cover."""

    output_tokens: int
    """Of one sequence."""
    needs: Vector
    """The worst case of that much output."""
    bound: Bound | None
    """None where no account counts energy and no money is paid for it."""


def most_covered(
    hard: list[Account], soft: list[Account], request: Request, prompt_tokens: int, bound: Bound
) -> Covered | None:
    """The most output that all accounts cover; None where they do not cover the least.

    Those of energy (``soft``) are asked last: their bound costs more than all the others. Where energy is paid for
    (cost-plus), money needs the bound as well.
    """
    most, paid_bound = request.max_output_tokens, _paid(request, bound)
    needs = needed(request, prompt_tokens, most, paid_bound)
    if not _cover(hard, needs):
        fitting = _most_covered(hard, request, prompt_tokens, paid_bound, most)
        if fitting is None:
            return None
        most, needs = fitting, needed(request, prompt_tokens, fitting, paid_bound)
    if not soft:
        return Covered(most, needs, paid_bound)
    needs[ENERGY_PARTS.start : ENERGY_PARTS.stop] = bound(prompt_tokens, most)
    if not _cover(soft, needs):
        fitting = _most_covered(soft, request, prompt_tokens, bound, most)
        if fitting is None:
            return None
        most, needs = fitting, needed(request, prompt_tokens, fitting, bound)
    return Covered(most, needs, bound)


def _paid(request: Request, bound: Bound) -> Bound | None:
    return None if request.rates.plus is None else bound


def _cover(accounts: list[Account], needs: Vector) -> bool:
    return all(account.covers(needs) for account in accounts)


def _most_covered(
    accounts: list[Account], request: Request, prompt_tokens: int, bound: Bound | None, most: int
) -> int | None:
    """The same, of some accounts and at most so much."""

    def covers(output_tokens: int) -> bool:
        return _cover(accounts, needed(request, prompt_tokens, output_tokens, bound))

    return _most_that(covers, least_output(request), most)


def short(account: Account, request: Request, prompt_tokens: int, bound: Bound) -> Short | None:
    """How an account does not cover the least that the request may get, and with which prompt it would."""
    its_bound, left = bound if account.is_energy else _paid(request, bound), account.left

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
