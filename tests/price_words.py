"""Short ways to say what things cost.

Used by tests of prices (``from tests.price_words import book, entry, version``).
"""

from __future__ import annotations

from datetime import datetime

from scheduler.accounting.price_versions import PriceEntry, PriceVersion
from scheduler.accounting.prices import NO_PRICES, PriceBook
from scheduler.accounting.tariffs import Tariff, joined, spans_of
from scheduler.core.request import FREE, Band, Rates

MODEL = "chat"


def unix_s(text: str) -> int:
    """``2026-11-01T00:00+01:00`` as unix seconds."""
    return int(datetime.fromisoformat(text).timestamp())


def tariff(name: str, hours: str, *, days: str = "mon-sun", time_zone: str = "UTC") -> Tariff:
    return Tariff(name=name, time_zone=time_zone, spans=joined(spans_of([days], hours)))


def entry(input_nano: int = 1, *tiers: Band, model: str = MODEL, **values: object) -> PriceEntry:
    """Of all tiers where none is named."""
    fields: dict[str, object] = {"rates": Rates(input_nano), **({"tiers": tiers} if tiers else {}), **values}
    return PriceEntry(model=model, **fields)  # type: ignore[arg-type]


def version(
    name: str, *entries: PriceEntry, begin: str | None = None, end: str | None = None, **values: object
) -> PriceVersion:
    fields: dict[str, object] = {"currency": "USD", **values}
    return PriceVersion(
        name=name,
        effective_from_unix_s=None if begin is None else unix_s(begin),
        effective_to_unix_s=None if end is None else unix_s(end),
        entries=entries,
        **fields,  # type: ignore[arg-type]
    )


def book_of_one(model: str, rates: Rates) -> PriceBook:
    """One price for everything and ever; none where it is free."""
    if rates == FREE:
        return NO_PRICES
    only = PriceVersion(name="one", currency=rates.currency, entries=(PriceEntry(model=model, rates=rates),))
    return PriceBook([only], currency=rates.currency)
