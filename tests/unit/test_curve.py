"""The cost of a step, affine and curved."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.curve import Curve

AFFINE = Curve.affine((3.0, 0.02, 0.07, 1e-5))
CURVED = Curve(base=3.0, prefill=0.02, decode=0.07, context=1e-5, exponent=0.5, pivot=4.0)


def test_an_affine_step_costs_its_base_and_its_weights() -> None:
    """base + prefill·p + decode·d + context·c."""
    costs = AFFINE.costs(np.array([[100.0, 3.0, 5_000.0], [0.0, 0.0, 0.0]]))
    assert [3 + 2 + 0.21 + 0.05, 3.0] == pytest.approx(costs.tolist())


def test_curved_and_affine_agree_at_the_pivot() -> None:
    """There the bend is the sum of weights itself, below it more, above it less."""
    assert [4.0, 2.0, 8.0] == pytest.approx(CURVED.bend(np.array([4.0, 1.0, 16.0])).tolist())


@given(st.floats(1e-6, 1e4))
def test_the_slope_is_the_bends_derivative(weight: float) -> None:
    """Against a difference quotient."""
    step = weight * 1e-5
    low, high = CURVED.bend(np.array([weight - step, weight + step]))
    assert float(CURVED.slope_at(np.array([weight]))[0]) == pytest.approx((high - low) / (2 * step), rel=1e-3)


def test_the_slope_at_nothing_is_finite() -> None:
    """A curve with an exponent below 1 is infinitely steep at 0; a fit must survive it."""
    assert np.isfinite(CURVED.slope_at(np.zeros(1)))[0]
    assert 0.0 == CURVED.bend(np.zeros(1))[0]


@given(st.floats(0.01, 100), st.floats(0, 1e4), st.floats(0, 500), st.floats(0, 1e6))
def test_scaling_scales_every_cost(ratio: float, prefill: float, decode: float, context: float) -> None:
    """Also of a curved one, whose pivot has to move along."""
    features = np.array([[prefill, decode, context]])
    for curve in (AFFINE, CURVED):
        assert curve.scaled(ratio).costs(features)[0] == pytest.approx(ratio * curve.costs(features)[0])


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_a_step_together_costs_no_more_than_its_parts_alone(weights: list[float]) -> None:
    """Batching never costs more: what solo-capped rests on."""
    values = np.array(weights)
    for curve in (AFFINE, CURVED):
        together = curve.base + curve.bend(values.sum(keepdims=True))[0]
        assert together <= float((curve.base + curve.bend(values)).sum()) + 1e-9
