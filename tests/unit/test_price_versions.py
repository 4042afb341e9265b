"""One version has one text and one digest, and comes back from it."""

import hashlib
import json

import pytest

from scheduler.accounting.price_versions import ID_DIGITS, PriceVersion, tier_name, version_of
from scheduler.core.request import Band, CostPlus, Rates
from tests.price_words import entry, tariff, version

NIGHT = tariff("night", "22:00-06:00", time_zone="Europe/Berlin")
RATES = Rates(1, 2, 3, "EUR", reasoning_nano=4, plus=CostPlus(5, 1_300_000, 6, 7))
FULL = version(
    "2026-11", entry(1, Band.FLEX, tariff=NIGHT, rates=RATES), entry(9, model="äther", rates=Rates(9, currency="EUR")),
    begin="2026-11-01T00:00+00:00", end="2026-12-01T00:00+00:00", currency="EUR",
)  # fmt: skip


def test_the_text_is_canonical_json_of_integers() -> None:
    """Sorted keys, no blanks, UTF-8 as it is; null where a class has no price of its own."""
    one = version("v", entry(7, Band.FLEX, Band.DEFAULT))
    assert one.text() == (
        '{"currency":"USD","effective_from_unix_s":null,"effective_to_unix_s":null,"entries":[{"model":"chat","rates":'
        '{"audio_nano":null,"cached_nano":0,"image_nano":null,"input_nano":7,"output_nano":0,"plus":null,'
        '"reasoning_nano":null},"tariff":{"name":"always","spans":[[0,10080]],"time_zone":"UTC"},'
        '"tiers":["default","flex"]}],"name":"v"}'
    )
    assert "äther" in FULL.text()


def test_a_version_is_named_by_its_name_and_its_texts_digest() -> None:
    """So that the same name can never mean other prices unseen."""
    digest = hashlib.sha256(FULL.text().encode()).hexdigest()
    assert (digest, f"2026-11/{digest[:ID_DIGITS]}") == (FULL.digest(), FULL.version_id())


def test_the_order_in_which_it_was_written_does_not_matter() -> None:
    """Nor who approved it: what is approved does not change by it."""
    first, second = entry(1, Band.FLEX, Band.DEFAULT), entry(2, Band.PRIORITY)
    swapped = entry(1, Band.DEFAULT, Band.FLEX)
    assert version("v", first, second).text() == version("v", second, swapped, approved_by=("ada",)).text()


@pytest.mark.parametrize(
    "other",
    [
        version("w", entry(7)),
        version("v", entry(8)),
        version("v", entry(7, model="other")),
        version("v", entry(7, Band.FLEX)),
        version("v", entry(7, tariff=NIGHT)),
        version("v", entry(7), begin="2026-11-01T00:00+00:00"),
        version("v", entry(7), end="2026-11-01T00:00+00:00"),
        version("v", entry(7), currency="EUR"),
        version("v", entry(rates=Rates(7, plus=CostPlus()))),
    ],
)
def test_everything_that_decides_a_price_is_in_the_digest(other: PriceVersion) -> None:
    """Whatever differs, the digest does."""
    assert version("v", entry(7)).digest() != other.digest()


def test_a_version_comes_back_from_its_text() -> None:
    """Equal, and with the same digest; a ledger's row is enough."""
    back = version_of(FULL.text())
    assert FULL.digest() == back.digest()
    assert (RATES, NIGHT, (Band.FLEX,)) == ((found := back.entries[0]).rates, found.tariff, found.tiers)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + " ",
        lambda text: text[:-1],
        lambda text: text.replace('"name":"2026-11"', '"name":"2026-11","more":1'),
        lambda text: text.replace('"input_nano":9', '"input_nano":9.0'),
        lambda text: text.replace('"input_nano":9', '"input_nano":NaN'),
        lambda text: text.replace('"input_nano":9', '"input_nano":9,"input_nano":9'),
        lambda text: text.replace('"flex"', '"scale"'),
        lambda text: json.dumps(json.loads(text)),
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "[" * 100_000,
    ],
)
def test_another_text_is_none(change: object) -> None:
    """Not even one that means the same."""
    assert callable(change)
    with pytest.raises(ValueError, match="no canonical text"):
        version_of(change(FULL.text()))


def test_tiers_are_openais_words() -> None:
    """As requests write them."""
    assert ["priority", "default", "flex"] == [tier_name(tier) for tier in (0, 1, 2)]
