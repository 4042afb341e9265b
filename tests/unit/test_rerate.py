"""What charges of the past would have cost: beside what they did cost, by tenant and model, nothing changed."""

import pytest

from scheduler.accounting.prices import PriceBook
from scheduler.accounting.rerate import PastCharge, Rerated, rerate
from scheduler.core.request import Band, CostPlus, Rates, SpecialTokens
from tests.price_words import MODEL, entry, unix_s, version

NOV = "2026-11-01T00:00+00:00"
RATES = Rates(1_000_000, 0, 2_000_000, reasoning_nano=9_000_000, plus=CostPlus(gpu_nano_per_s=1_000_000))
BOOK = PriceBook(
    [
        version("a", entry(3_000_000)),
        version("b", entry(rates=RATES, tiers=(Band.DEFAULT,)), entry(1, Band.FLEX, Band.PRIORITY), begin=NOV),
    ]
)


def charge(tenant: str = "t", model: str = MODEL, **values: object) -> PastCharge:
    fields: dict[str, object] = {
        "tier": Band.DEFAULT, "at_unix_s": unix_s(NOV) + 0.5, "input_tokens": 10, "cached_tokens": 4,
        "output_tokens": 5, "cost_nano": 100, **values,
    }  # fmt: skip
    return PastCharge(tenant, model, **fields)  # type: ignore[arg-type]


def test_each_charge_is_priced_at_the_arrival_of_its_request() -> None:
    """By its tier, its classes and what it took; the sums are in the unit that was charged."""
    special = SpecialTokens(reasoning_tokens=2)
    charges = [charge(), charge(special=special, gpu_us=7), charge(at_unix_s=0.0), charge(tier=Band.FLEX)]
    (total,) = rerate(charges, BOOK)
    would_be = (6 + 10) + (6 + 3 * 2 + 2 * 9 + 7) + 6 * 3 + 1
    assert Rerated(tenant="t", model=MODEL, num_charges=4, was_nano=400, would_be_nano=would_be) == total


def test_tenants_and_models_are_told_apart() -> None:
    """In order of their names."""
    book = PriceBook([version("v", entry(1_000_000), entry(2_000_000, model="big"))])
    found = rerate([charge("b"), charge("a", "big"), charge("a"), charge("b", cost_nano=1)], book)
    assert [("a", "big", 1, 100, 12), ("a", MODEL, 1, 100, 6), ("b", MODEL, 2, 101, 12)] == [
        (each.tenant, each.model, each.num_charges, each.was_nano, each.would_be_nano) for each in found
    ]


def test_what_would_have_been_refused_is_counted_apart() -> None:
    """It is not compared: nobody knows what its tenant would have done."""
    (known, unknown) = rerate([charge(), charge(model="old", cost_nano=7)], BOOK)
    assert (1, 1, 7, 0, 0) == (
        unknown.num_charges, unknown.num_unpriced, unknown.unpriced_nano, unknown.was_nano, unknown.would_be_nano
    )  # fmt: skip
    assert (0, 0) == (known.num_unpriced, known.unpriced_nano)


def test_currencies_are_not_compared() -> None:
    """A number without its unit would be a lie."""
    with pytest.raises(ValueError, match="a charge in EUR cannot be compared with prices in USD"):
        rerate([charge(currency="EUR")], BOOK)


def test_the_book_in_force_gives_what_was_charged() -> None:
    """A dry run with the prices of the time changes nothing; charges are read once, one after the other."""
    rates = BOOK.rates(MODEL, Band.DEFAULT, unix_s(NOV))
    costs = [
        rates.cost_nano(input_tokens=number, cached_tokens=number // 3, output_tokens=number * 2)
        for number in range(100)
    ]
    stream = (
        charge(input_tokens=number, cached_tokens=number // 3, output_tokens=number * 2, cost_nano=cost)
        for number, cost in enumerate(costs)
    )
    (total,) = rerate(stream, BOOK)
    assert (sum(costs), total.was_nano) == (total.would_be_nano, total.would_be_nano)
    assert [] == rerate([], BOOK)
