"""Requests as the core sees them: bands from service tiers, bounds, deadlines."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.request import FREE, Band, CostPlus, Rates, SpecialTokens, is_late
from tests.core_words import request, thorough


@pytest.mark.parametrize(
    ("tier", "band"),
    [
        (None, Band.DEFAULT),
        ("auto", Band.DEFAULT),
        ("default", Band.DEFAULT),
        ("priority", Band.PRIORITY),
        ("flex", Band.FLEX),
    ],
)
def test_a_service_tier_is_a_band(tier: str | None, band: Band) -> None:
    """OpenAI's words; ``auto`` and nothing are the default."""
    assert band is Band.of_service_tier(tier)


@pytest.mark.parametrize("tier", ["", "Priority", "scale", "0"])
def test_an_unknown_tier_is_named(tier: str) -> None:
    """The message says which words there are."""
    with pytest.raises(ValueError, match="auto, default, flex, priority"):
        Band.of_service_tier(tier)


def test_bands_are_ordered_as_in_the_engine() -> None:
    """The lower number goes first, and the same number goes into vLLM's queue."""
    assert [0, 1, 2] == [int(band) for band in sorted([Band.FLEX, Band.PRIORITY, Band.DEFAULT])]


@pytest.mark.parametrize(
    "wrong", [{"prompt_tokens_bound": -1}, {"max_output_tokens": -1}, {"num_sequences": 0}, {"body_bytes": -1}]
)
def test_what_can_never_be_is_refused(wrong: dict[str, int]) -> None:
    """The relay checked before; here it is our own mistake."""
    with pytest.raises(AssertionError):
        request(**wrong)


def test_a_deadline_has_passed_when_it_is_reached() -> None:
    """At the very instant nobody waits any more; without a deadline nobody is late."""
    assert not is_late(request(deadline_s=5.0), 4.999)
    assert is_late(request(deadline_s=5.0), 5.0)
    assert not is_late(request(), 1e12)


# -- money

tokens = st.integers(0, 10**7)
nano = st.integers(0, 10**15)
maybe_nano = st.none() | nano
plus = st.builds(
    CostPlus, st.integers(0, 10**12), st.integers(10**6, 10**7), st.integers(0, 10**12), st.integers(0, 10**7)
)
rates = st.builds(Rates, nano, nano, nano, st.just("EUR"), maybe_nano, maybe_nano, maybe_nano, st.none() | plus)


def test_a_price_has_three_classes_where_nothing_else_is_said() -> None:
    """A reasoning token costs what other output does, an image's or a sound's what other input does."""
    some = Rates(1_000_000, 250_000, 4_000_000)
    special = SpecialTokens(reasoning_tokens=5, image_tokens=3, audio_tokens=2)
    assert 60 + 10 + 80 == some.cost_nano(input_tokens=100, cached_tokens=40, output_tokens=20)
    assert 150 == some.cost_nano(input_tokens=100, cached_tokens=40, output_tokens=20, special=special)


def test_each_class_can_have_a_price_of_its_own() -> None:
    """It was counted among its side's tokens, and replaces their price."""
    some = Rates(1_000_000, 0, 2_000_000, reasoning_nano=500_000, image_nano=0, audio_nano=7_000_000)
    special = SpecialTokens(reasoning_tokens=4, image_tokens=3, audio_tokens=2)
    assert (10 - 3 - 2) + 2 * 7 + (6 - 4) * 2 + 2 == some.cost_nano(
        input_tokens=10, cached_tokens=0, output_tokens=6, special=special
    )


@pytest.mark.parametrize(("tokens", "cost"), [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2)])
def test_money_is_rounded_up_once(tokens: int, cost: int) -> None:
    """Of the sum of all classes, not of each."""
    assert cost == Rates(input_nano=1).cost_nano(input_tokens=tokens, cached_tokens=0, output_tokens=0)
    halves = Rates(500_000, 500_000, 1_000_000)
    assert 2 == halves.cost_nano(input_tokens=2, cached_tokens=1, output_tokens=1)


def test_cost_plus_in_numbers() -> None:
    """A kWh at 0.30 with a PUE of 1.5, an hour of a GPU at 0.0005 a second, and a tenth on top: (0.45 + 1.80) · 1.1."""
    some = CostPlus(300_000_000, 1_500_000, 500_000, 100_000)
    assert 2_475_000_000 == some.cost_nano(energy_mj=3_600_000_000, gpu_us=3_600_000_000)
    assert 2_475_000_000 == Rates(plus=some).cost_plus_nano(energy_mj=3_600_000_000, gpu_us=3_600_000_000)
    assert (0, 1) == (some.cost_nano(energy_mj=0, gpu_us=0), some.cost_nano(energy_mj=1, gpu_us=0))


def test_no_more_is_charged_for_what_it_took_than_was_held() -> None:
    """The rest is the operator's. Without such a price it is nothing."""
    some = Rates(plus=CostPlus(gpu_nano_per_s=1_000_000))
    assert [5, 3, 0] == [some.cost_plus_nano(energy_mj=9, gpu_us=5, most_nano=most) for most in (None, 3, 0)]
    assert 0 == FREE.cost_plus_nano(energy_mj=10**9, gpu_us=10**9)


@thorough
@given(some=plus, energy_mj=st.integers(0, 10**12), gpu_us=st.integers(0, 10**13))
def test_cost_plus_is_exact(some: CostPlus, energy_mj: int, gpu_us: int) -> None:
    """Against fractions, rounded up at the very end; and it telescopes: estimate + difference is the final amount."""
    million = 10**6
    energy = Fraction(energy_mj, 3_600_000_000) * some.energy_nano_per_kwh * Fraction(some.pue_ppm, million)
    gpu = Fraction(gpu_us, million) * some.gpu_nano_per_s
    assert ceil((energy + gpu) * (1 + Fraction(some.margin_ppm, million))) == some.cost_nano(
        energy_mj=energy_mj, gpu_us=gpu_us
    )


@thorough
@given(
    some=rates,
    counts=st.tuples(tokens, tokens, tokens, tokens),
    output=st.tuples(tokens, tokens),
    took=st.tuples(tokens, tokens),
    spare=st.tuples(tokens, tokens, tokens, tokens),
)
def test_nothing_costs_more_than_the_most(
    some: Rates,
    counts: tuple[int, int, int, int],
    output: tuple[int, int],
    took: tuple[int, int],
    spare: tuple[int, int, int, int],
) -> None:
    """Whatever classes the tokens turn out to be of, and however much less they are than was held."""
    text, cached, image, audio = counts
    other, reasoning = output
    cost = some.cost_nano(
        input_tokens=sum(counts),
        cached_tokens=cached,
        output_tokens=other + reasoning,
        special=SpecialTokens(reasoning, image, audio),
    )
    cost += some.cost_plus_nano(energy_mj=took[0], gpu_us=took[1])
    assert (
        0
        <= cost
        <= some.most_nano(
            input_tokens=text + cached + image + audio + spare[0],
            output_tokens=other + reasoning + spare[1],
            energy_mj=took[0] + spare[2],
            gpu_us=took[1] + spare[3],
        )
    )
