"""Fits of step curves to sums of steps: known coefficients come back, none is ever negative."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.curve import Curve
from workers.curve_fit import Bunches, fit, non_negative, predict

TRUTH = Curve.affine((3.16, 0.0216, 0.0665, 2e-5))
PRIOR = Curve.affine((2.0, 0.03, 0.1, 1e-5))
WEAK = 1e-9


def varied(
    truth: Curve, *, num_windows: int = 30, seed: int = 0, gap_watts: float = 0.0, noise: float = 0.0
) -> Bunches:
    """Windows of 40 steps, each at another load."""
    rng = np.random.default_rng(seed)
    decode = rng.integers(1, 64, num_windows).astype(float)
    features = np.stack(
        (rng.choice((0.0, 100.0, 900.0), num_windows), decode, decode * rng.integers(100, 4_000, num_windows)), axis=1
    )
    counts, gaps = rng.integers(20, 60, num_windows).astype(float), rng.uniform(0, 4, num_windows)
    targets = counts * truth.costs(features) + gap_watts * gaps
    return Bunches(
        features=features,
        counts=counts,
        owner=np.arange(num_windows),
        targets=targets * (1 + noise * rng.normal(size=num_windows)),
        weights=np.ones(num_windows),
        gaps=gaps,
        has_gaps=gap_watts > 0,
    )


def coefficients(curve: Curve) -> tuple[float, ...]:
    return curve.base, curve.prefill, curve.decode, curve.context


def test_affine_coefficients_come_back() -> None:
    """Without noise, and from a prior that is half as big again."""
    found = fit(varied(TRUTH), prior=PRIOR, prior_weight=WEAK)
    assert coefficients(found.curve) == pytest.approx(coefficients(TRUTH), rel=1e-3)
    assert found.mean_square < 1e-8
    assert found.condition < 300


def test_idle_watts_are_found_beside_them() -> None:
    """Where gaps are part of the targets."""
    found = fit(varied(TRUTH, gap_watts=119.0), prior=PRIOR, prior_weight=WEAK)
    assert found.gap == pytest.approx(119.0, rel=1e-2)
    assert coefficients(found.curve) == pytest.approx(coefficients(TRUTH), rel=1e-2)


def test_two_percent_of_noise_leaves_predictions_within_one() -> None:
    """What a window's counter and refresh leave uncertain averages out."""
    found = fit(varied(TRUTH, num_windows=60, noise=0.02), prior=PRIOR, prior_weight=1e-6)
    clean = varied(TRUTH, num_windows=60)
    assert np.abs(predict(clean, found.curve, 0.0) / clean.targets - 1).max() < 0.02


def test_without_varied_loads_the_prior_decides_the_split() -> None:
    """One load tells the sum and nothing else: the shape stays the prior's, and the condition says so."""
    one = varied(TRUTH, num_windows=1)
    found = fit(replace(one, targets=one.targets * 1.3), prior=PRIOR, prior_weight=1e-4)
    assert np.isinf(found.condition)
    assert predict(one, found.curve, 0.0)[0] == pytest.approx(1.3 * one.targets[0], rel=0.02)
    assert found.curve.prefill >= 0


@pytest.mark.parametrize("exponent", [0.5, 0.8])
def test_curved_coefficients_come_back(exponent: float) -> None:
    """Costs at other loads are predicted within 1 %, whatever pivot the fit chose."""
    truth = Curve(base=15.0, prefill=0.27, decode=0.82, context=2e-4, exponent=exponent, pivot=49.0)
    found = fit(varied(truth), prior=Curve.affine((20, 0.1, 0.5, 1e-4)), prior_weight=WEAK, exponent=exponent)
    other = varied(truth, seed=9)
    assert np.abs(predict(other, found.curve, 0.0) / other.targets - 1).max() < 0.01
    assert exponent == found.curve.exponent


def test_a_start_is_gone_on_from() -> None:
    """Two rounds from the last fit are as good as twelve from the prior."""
    truth = Curve(base=15.0, prefill=0.27, decode=0.82, context=2e-4, exponent=0.5, pivot=49.0)
    bunches, prior = varied(truth), Curve.affine((20, 0.1, 0.5, 1e-4))
    first = fit(bunches, prior=prior, prior_weight=WEAK, exponent=0.5)
    again = fit(bunches, prior=prior, prior_weight=WEAK, exponent=0.5, start=first.curve, max_rounds=2)
    assert again.mean_square <= first.mean_square * 1.01 + 1e-12


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_no_coefficient_is_negative(seed: int) -> None:
    """Whatever the targets say, a token cannot give energy back."""
    rng = np.random.default_rng(seed)
    bunches = varied(TRUTH, num_windows=8, seed=seed)
    wild = replace(bunches, targets=bunches.targets * rng.uniform(0.2, 5.0, 8))
    for exponent in (1.0, 0.5):
        found = fit(wild, prior=PRIOR, prior_weight=1e-3, exponent=exponent)
        assert min(coefficients(found.curve)) >= 0
        assert all(np.isfinite(coefficients(found.curve)))


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_non_negative_least_squares_is_optimal(seed: int, size: int) -> None:
    """Karush-Kuhn-Tucker: no gradient where it is free, none that points inside where it is bound."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, size))
    normal, right = rows.T @ rows + 1e-6 * np.eye(size), rows.T @ rng.normal(size=12)
    solution = non_negative(normal, right)
    gradient = right - normal @ solution
    assert np.all(solution >= 0)
    assert np.all(np.abs(gradient[solution > 0]) < 1e-6)
    assert np.all(gradient[solution == 0] < 1e-6)
