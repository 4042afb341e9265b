"""A budget as operators write it and as the ledger keeps it: which words count what, in which integers.

Called by ``scheduler.config_tenants`` (the file), ``scheduler.accounting.directory`` (rows) and the admin routes. It
must never know whose budget it is, nor how much of it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

import msgspec

from scheduler.core.budget_accounts import Budget, Measure
from scheduler.core.budget_windows import Window

MAX_AMOUNT = 2**63 - 1
"""Of the ledger's integers."""
NANO_PLACES = 9
"""Decimal places of money in the ledger."""
MAX_WINDOW_CHARS = 64


class Counted(NamedTuple):
    """What a word of a budget counts, and how many decimal places the ledger keeps of it."""

    measure: Measure
    places: int = 0


COUNTED = {
    "tokens": Counted(Measure.TOKENS),
    "input_tokens": Counted(Measure.INPUT_TOKENS),
    "cached_tokens": Counted(Measure.CACHED_TOKENS),
    "output_tokens": Counted(Measure.OUTPUT_TOKENS),
    "money": Counted(Measure.MONEY_NANO, NANO_PLACES),
    "joules": Counted(Measure.ENERGY_MJ, 3),
    "gpu_seconds": Counted(Measure.GPU_US, 6),
    "gco2e": Counted(Measure.CARBON_UG, 6),
    "requests": Counted(Measure.REQUESTS),
    "concurrency": Counted(Measure.CONCURRENCY),
}
_WORDS = {counted.measure: word for word, counted in COUNTED.items()}


def ledger_amount(value: Decimal, places: int) -> int:
    """The ledger's integer of an amount. Raises: ValueError where it is negative, too large or finer than that."""
    if not value.is_finite():
        raise ValueError("must be a finite number")
    if value < 0:
        raise ValueError("must be 0 or more")
    if value > Decimal(MAX_AMOUNT).scaleb(-places):
        raise ValueError(f"must be at most {Decimal(MAX_AMOUNT).scaleb(-places):f}; leave it out for no limit")
    scaled = value.scaleb(places)
    if scaled != scaled.to_integral_value():
        raise ValueError(
            f"must have at most {places} decimal places: finer amounts are not counted"
            if places
            else "must be a whole number"
        )
    return int(scaled)


class BudgetTerm(msgspec.Struct, frozen=True, kw_only=True):
    """At most ``limit`` of ``measure`` per window; the form that stands in a row."""

    measure: Measure
    limit: int
    """In the ledger's unit."""
    per: str | None
    """As it was written; None for concurrency, which has no window."""

    @property
    def budget(self) -> Budget:
        """For the core."""
        return Budget(self.measure, self.limit, self.window)

    @property
    def window(self) -> Window | None:
        """None for concurrency."""
        return None if self.per is None else Window.parse(self.per)

    def words(self) -> dict[str, int | str]:
        """As the configuration file has it: ``{"money": "0.5", "per": "1h"}``; decimals are text and stay exact."""
        word = _WORDS[self.measure]
        places = COUNTED[word].places
        amount = f"{Decimal(self.limit).scaleb(-places).normalize():f}" if places else self.limit
        return {word: amount, **({} if self.per is None else {"per": self.per})}

    @staticmethod
    def of(words: Mapping[str, Decimal | None], per: str | None) -> BudgetTerm:
        """Of the words of ``COUNTED``, exactly one of which may have an amount; not checked. Raises: ValueError."""
        given = [word for word in COUNTED if words.get(word) is not None]
        if len(given) != 1:
            told = ", ".join(given) or "nothing"
            raise ValueError(f"one budget counts one thing, this one {told}; give exactly one of {', '.join(COUNTED)}")
        (word,) = given
        counted, amount = COUNTED[word], words[word]
        assert amount is not None
        try:
            limit = ledger_amount(amount, counted.places)
        except ValueError as error:
            raise ValueError(f"{word} {error}") from None
        return BudgetTerm(measure=counted.measure, limit=limit, per=per)

    def check(self) -> None:
        """Raises: ValueError where no account could count it."""
        if not 0 <= self.limit <= MAX_AMOUNT:
            raise ValueError(f"the limit must be from 0 to {MAX_AMOUNT}")
        if (self.measure is Measure.CONCURRENCY) != (self.per is None):
            raise ValueError(
                f"{_WORDS[self.measure]} needs a window, for example per: calendar day"
                if self.per is None
                else "concurrency is what runs at a time: it has no window, leave per out"
            )
        if self.per is not None:
            if len(self.per) > MAX_WINDOW_CHARS:
                raise ValueError(f"per must have at most {MAX_WINDOW_CHARS} characters")
            Window.parse(self.per)


def refuse_alike(terms: Iterable[BudgetTerm]) -> None:
    """Raises: ValueError where two budgets of one level count the same per the same window."""
    places: dict[tuple[Measure, Window | None], int] = {}
    for place, term in enumerate(terms):
        kind = (term.measure, term.window)
        if kind in places:
            raise ValueError(f"entries {places[kind]} and {place} count the same per the same window: keep one of them")
        places[kind] = place
