"""Models compare by text and by accepted results, whatever their tokenizers make of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.comparison import compare
from scheduler.accounting.usage import MINUTE_US, UsageRow
from scheduler.core.request import Rates

PRICE = Rates(input_nano=500_000_000, cached_nano=50_000_000, output_nano=1_500_000_000, currency="EUR")


def row(model: str, **values: object) -> UsageRow:
    fields = {"bucket_us": MINUTE_US, "currency": "EUR", **values}
    return UsageRow(model=model, **fields)  # type: ignore[arg-type]


def test_the_same_text_costs_what_it_costs() -> None:
    """A tokenizer that makes twice the tokens is twice as dear at the same price of a token."""
    text = {"requests": 1, "input_bytes": 4_000, "output_bytes": 1_000}
    rows = [
        row("coarse", input_tokens=1_000, output_tokens=250, **text),
        row("fine", input_tokens=2_000, output_tokens=500, **text),
    ]
    coarse, fine = compare(rows, {"coarse": PRICE, "fine": PRICE})
    assert (250.0, 250.0, 500.0) == (
        coarse.input_tokens_per_kilobyte, coarse.output_tokens_per_kilobyte, fine.input_tokens_per_kilobyte,
    )  # fmt: skip
    assert (125_000_000, 250_000_000) == (coarse.input_price_nano_per_megabyte, fine.input_price_nano_per_megabyte)
    assert (375_000_000, 750_000_000) == (coarse.output_price_nano_per_megabyte, fine.output_price_nano_per_megabyte)


def test_pictures_are_no_text() -> None:
    """Their tokens have no bytes of text."""
    (figures,) = compare([row("m", input_tokens=1_000, image_tokens=300, audio_tokens=200, input_bytes=2_000)], {})
    assert 250.0 == figures.input_tokens_per_kilobyte


def test_what_was_paid_and_used() -> None:
    """Over all bytes; joules of requests over output tokens; the value of what was accepted."""
    used = row(
        "m", requests=4, accepted=3, rejected=1, cost_nano=9_000, energy_mj=6_000, output_tokens=12,
        input_bytes=2_000, output_bytes=1_000,
    )  # fmt: skip
    (figures,) = compare([used], {})
    assert (3_000_000, 0.5, 3_000, 2_000) == (
        figures.cost_nano_per_megabyte, figures.joules_per_output_token,
        figures.value.cost_nano, figures.value.energy_mj,
    )  # fmt: skip


def test_a_model_that_nobody_used_has_its_price() -> None:
    """And nothing else can be told of it."""
    (figures,) = compare([], {"m": PRICE})
    assert ("m", "EUR", 0, 500_000_000, 50_000_000, 1_500_000_000) == (
        figures.model, figures.currency, figures.requests,
        figures.input_price_nano, figures.cached_price_nano, figures.output_price_nano,
    )  # fmt: skip
    assert {None} == {
        figures.input_tokens_per_kilobyte, figures.input_price_nano_per_megabyte, figures.cost_nano_per_megabyte,
        figures.joules_per_output_token, figures.value.cost_nano,
    }  # fmt: skip


def test_a_model_that_has_no_price_any_more_is_shown() -> None:
    """With what was used."""
    (figures,) = compare([row("old", requests=1, output_tokens=10, output_bytes=40)], {})
    assert (None, 250.0, None) == (
        figures.output_price_nano, figures.output_tokens_per_kilobyte, figures.output_price_nano_per_megabyte,
    )  # fmt: skip


def test_currencies_stay_apart() -> None:
    """A price is not set against money of another currency; what was free joins the price's."""
    use = {"requests": 1, "output_bytes": 10, "output_tokens": 5}
    rows = [row("m", currency=currency, **use) for currency in ("", "EUR", "USD")]
    euro, dollar = compare(rows, {"m": PRICE})
    assert (("EUR", 2, 1_500_000_000), ("USD", 1, None)) == (
        (euro.currency, euro.requests, euro.output_price_nano),
        (dollar.currency, dollar.requests, dollar.output_price_nano),
    )  # fmt: skip


def test_models_come_by_name() -> None:
    """So that two looks compare line by line."""
    assert ["a", "b", "c"] == [each.model for each in compare([row("c"), row("a")], {"b": PRICE})]


@pytest.mark.parametrize("field", ["input", "output"])
@given(price=st.integers(0, 10**13), tokens=st.integers(0, 10**12), num_bytes=st.integers(1, 10**13))
def test_a_price_of_a_megabyte_is_exact(field: str, price: int, tokens: int, num_bytes: int) -> None:
    """Rounded once, halves up."""
    rates = Rates(**{f"{field}_nano": price}, currency="EUR")
    used = row("m", **{f"{field}_tokens": tokens, f"{field}_bytes": num_bytes})
    (figures,) = compare([used], {"m": rates})
    expected = (2 * price * tokens + num_bytes) // (2 * num_bytes)
    assert expected == getattr(figures, f"{field}_price_nano_per_megabyte")
