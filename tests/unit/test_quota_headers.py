"""The x-ratelimit headers speak of the tightest budget, and never promise room too early."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.api.quota_headers import duration, quota_headers
from scheduler.core.budget_accounts import Measure

NOW_S = 1_700_000_000.0


@dataclass(frozen=True, slots=True)
class State:
    """How a budget stands."""

    measure: str
    limit: int
    left: int
    resets_unix_s: float | None = None


def test_without_budgets_there_are_no_headers() -> None:
    """Nothing is promised that nobody counts."""
    assert [] == quota_headers([], NOW_S)


def test_each_measure_is_shown_as_openai_names_it() -> None:
    """One that no time refills has no reset."""
    states = [State(Measure.TOKENS, 5000, 300, NOW_S + 90.2), State(Measure.REQUESTS, 60, 59)]
    assert {
        b"x-ratelimit-limit-tokens": b"5000",
        b"x-ratelimit-remaining-tokens": b"300",
        b"x-ratelimit-reset-tokens": b"1m31s",
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
    } == dict(quota_headers(states, NOW_S))


def test_a_limit_that_was_lowered_below_what_is_used_leaves_nothing() -> None:
    """Not a negative number, which no client understands."""
    headers = dict(quota_headers([State("tokens", 10, -90, NOW_S - 5)], NOW_S))
    assert (b"0", b"0s") == (headers[b"x-ratelimit-remaining-tokens"], headers[b"x-ratelimit-reset-tokens"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, b"0s"), (0.01, b"1s"), (59.0, b"59s"), (59.5, b"1m0s"), (360, b"6m0s"), (86_400, b"24h0m0s"),
        (3661, b"1h1m1s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: bytes) -> None:
    """Whole seconds, rounded up."""
    assert text == duration(seconds)


@given(st.floats(min_value=0, max_value=1e9))
def test_a_duration_is_never_too_short_and_less_than_a_second_too_long(seconds: float) -> None:
    """Whoever waits as told finds the budget reset."""
    text = duration(seconds).decode()
    total = 0
    for unit, length_s in (("h", 3600), ("m", 60), ("s", 1)):
        number, found, rest = text.partition(unit)
        if found:
            total, text = total + int(number) * length_s, rest
    assert seconds <= total <= seconds + 1
