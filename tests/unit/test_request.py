"""Requests as the core sees them: bands from service tiers, bounds, deadlines."""

import pytest

from scheduler.core.request import Band, is_late
from tests.core_words import request


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
