"""What the core learns: output lengths within a bucket, prompt ratios, drain rates; monotone and bounded."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.estimates import (
    BUCKET_RATIO,
    HALF_LIFE_SAMPLES,
    MAX_PROMPTS_RATIO,
    MAX_RETRY_AFTER_S,
    MEAN_PROMPT_TOKENS,
    MEAN_SAMPLES,
    MIN_SAMPLES,
    PRIOR_OUTPUT_TOKENS,
    UNKNOWN_RETRY_AFTER_S,
    DrainRate,
    ModelEstimates,
    OutputQuantile,
    PromptRate,
    retry_after_s,
)  # fmt: skip
from tests.core_words import request, thorough


def learned(samples: list[int], *, quantile_ratio: float = 0.75) -> int:
    quantile = OutputQuantile(quantile_ratio=quantile_ratio)
    for tokens in samples:
        quantile.add(tokens)
    return quantile.tokens


def test_before_enough_was_seen_the_prior_holds() -> None:
    """Nineteen answers are an anecdote."""
    assert PRIOR_OUTPUT_TOKENS == learned([3] * (MIN_SAMPLES - 1))
    assert learned([3] * MIN_SAMPLES) < 5


@thorough
@given(st.lists(st.integers(1, 200_000), min_size=MIN_SAMPLES, max_size=120), st.sampled_from([0.5, 0.75, 0.9]))
def test_a_quantile_is_never_low_and_at_most_a_bucket_high(samples: list[int], quantile_ratio: float) -> None:
    """Against the sorted samples: the upper edge of the true quantile's bucket."""
    exact = sorted(samples)[math.ceil(quantile_ratio * len(samples)) - 1]
    assert exact <= learned(samples, quantile_ratio=quantile_ratio) <= math.ceil(exact * BUCKET_RATIO)


@thorough
@given(st.lists(st.integers(1, 10_000), min_size=MIN_SAMPLES, max_size=60), st.integers(1, 8))
def test_longer_outputs_never_lower_the_estimate(samples: list[int], factor: int) -> None:
    """Monotone in the samples and in the quantile."""
    assert learned(samples) <= learned([tokens * factor for tokens in samples])
    assert learned(samples, quantile_ratio=0.5) <= learned(samples, quantile_ratio=0.9)


def test_the_past_is_forgotten() -> None:
    """After the work has changed for a few half-lives the estimate is that of the new work."""
    assert learned([1000] * 2 * HALF_LIFE_SAMPLES + [10] * 4 * HALF_LIFE_SAMPLES) <= 13


@pytest.mark.parametrize("tokens", [0, 10**9])
def test_lengths_without_measure_land_in_the_outer_buckets(tokens: int) -> None:
    """Nothing an engine says breaks the estimate."""
    assert 1 <= learned([tokens] * MIN_SAMPLES) <= 2_000_000


def test_a_prompt_estimate_follows_what_engines_count() -> None:
    """It learns how many tokens a byte becomes; never above the bound, never 0; without bytes it is the bound."""
    estimates, asked = ModelEstimates(), request(prompt_tokens_bound=11_000, body_bytes=1000)
    assert 300 == estimates.prompt_tokens(asked)
    assert 100 == estimates.prompt_tokens(request(prompt_tokens_bound=100, body_bytes=1000))
    assert 1000 == estimates.prompt_tokens(request(prompt_tokens_bound=1000))
    for _ in range(200):
        estimates.observe_prompt(asked, 250)
    assert 250 <= estimates.prompt_tokens(asked) <= 260
    assert 1 == estimates.prompt_tokens(request(prompt_tokens_bound=0))


def test_a_prompt_estimate_rises_faster_than_it_falls() -> None:
    """Too little credit overloads a worker, too much only delays somebody."""
    estimates, asked = ModelEstimates(), request(prompt_tokens_bound=1000, body_bytes=1000)
    for _ in range(200):
        estimates.observe_prompt(asked, 100)
    for _ in range(3):
        estimates.observe_prompt(asked, 1000)
    assert estimates.prompt_tokens(asked) > 800


@thorough
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 10**6)), max_size=50))
def test_a_prompt_estimate_stays_between_one_and_the_bound(seen: list[tuple[int, int]]) -> None:
    """Whatever was observed."""
    estimates = ModelEstimates()
    for num_bytes, tokens in seen:
        estimates.observe_prompt(request(body_bytes=num_bytes), tokens)
    for num_bytes in (0, 1, 10**9):
        assert 1 <= estimates.prompt_tokens(request(prompt_tokens_bound=777, body_bytes=num_bytes)) <= 777


def test_an_output_estimate_is_capped_by_the_request_s_own_limit() -> None:
    """Of each sequence, then summed over them."""
    estimates = ModelEstimates()
    assert 3 * 50 == estimates.output_tokens(request(max_output_tokens=50, num_sequences=3))
    assert 2 * PRIOR_OUTPUT_TOKENS == estimates.output_tokens(request(max_output_tokens=9999, num_sequences=2))


@pytest.mark.parametrize("age_s", [2, 10, 200])
def test_a_steady_drain_is_measured_at_any_age(age_s: int) -> None:
    """Young or old, four a second are four a second, within a tenth."""
    rate = DrainRate()
    for number in range(4 * age_s):
        rate.add(number / 4)
    assert rate.per_s(age_s) == pytest.approx(4.0, rel=0.15)


def test_a_drain_that_stopped_is_forgotten() -> None:
    """And one that never began is 0; a clock that stands still does no harm."""
    rate = DrainRate()
    assert 0.0 == rate.per_s(5.0)
    rate.add(0.0)
    assert rate.per_s(0.0) == pytest.approx(1.0, rel=0.05)
    assert rate.per_s(600.0) < 1e-6


@thorough
@given(st.integers(0, 10**6), st.floats(0, 1e6))
def test_retry_after_is_whole_seconds_in_bounds(num_ahead: int, drain_per_s: float) -> None:
    """One second to two minutes."""
    assert 1 <= retry_after_s(num_ahead, drain_per_s) <= MAX_RETRY_AFTER_S


def test_prompts_that_keep_coming_stretch_a_step_by_their_part_of_the_time() -> None:
    """By hand: 2,000 tokens a second at 0.2 ms are two fifths of it; and what nobody could compute is bounded."""
    rate = PromptRate()
    assert 1.0 == rate.stretch(2e-4, 0.0)
    for number in range(400):
        rate.add(number / 4, 500)
    assert rate.stretch(2e-4, 100.0) == pytest.approx(1 / 0.6, rel=0.02)
    assert rate.stretch(1.0, 100.0) == pytest.approx(1 / (1 - MAX_PROMPTS_RATIO))
    assert rate.stretch(2e-4, 200.0) == pytest.approx(1.0, abs=1e-3)


def test_the_mean_output_follows_what_ends() -> None:
    """The prior counts for nothing once something is known; after many the latest still counts."""
    estimates = ModelEstimates()
    assert PRIOR_OUTPUT_TOKENS == estimates.mean_output_tokens
    for tokens in (10, 20, 60):
        estimates.observe_output(tokens)
    assert 30.0 == pytest.approx(estimates.mean_output_tokens)
    for _ in range(20 * MEAN_SAMPLES):
        estimates.observe_output(500)
    assert estimates.mean_output_tokens == pytest.approx(500.0, rel=1e-3)


def test_the_cached_part_of_prompts_is_counted_by_tokens() -> None:
    """A long prompt counts for more, an empty one for nothing, and what was long ago fades."""
    estimates = ModelEstimates()
    estimates.observe_cached(0, 0)
    assert 0.0 == estimates.cached_ratio
    estimates.observe_cached(900, 900)
    estimates.observe_cached(100, 0)
    assert 0.9 == pytest.approx(estimates.cached_ratio)
    for _ in range(100):
        estimates.observe_cached(MEAN_PROMPT_TOKENS, 0)
    assert estimates.cached_ratio < 1e-3


def test_retry_after_says_when_those_ahead_have_left() -> None:
    """Thirty ahead at two a second: fifteen seconds; a guess where no rate is known, at once where nobody is ahead."""
    assert 15 == retry_after_s(30, 2.0)
    assert UNKNOWN_RETRY_AFTER_S == retry_after_s(30, 0.0)
    assert 1 == retry_after_s(0, 0.0)


def test_a_rate_that_has_all_but_died_is_a_long_wait() -> None:
    """Hours after the last start the measured rate is the smallest number there is."""
    assert MAX_RETRY_AFTER_S == retry_after_s(1, 5e-324)
