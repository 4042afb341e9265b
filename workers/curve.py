"""What a step costs, as a function of the work in it: a fixed part and a (possibly curved) sum of weights.

Called by ``workers.engine_model`` (fits it) and ``workers.shapley`` (splits by it). It must never know a request, a
meter or a clock.

    W_i = prefill·p_i + decode·d_i + context·c_i          cost = base + pivot · (ΣW_i / pivot)^exponent

Exponent 1 is the affine cost of dense models, whatever the pivot; mixtures of experts were fitted at 0.4-0.9. The form
and the exponents come from the ML.ENERGY v3 step curves (``docs/metering.md``). The unit is the fitted one: J or s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PREFILL, DECODE, CONTEXT = 0, 1, 2
"""Columns of a feature array: computed prefill tokens, decode tokens, context tokens read."""

MIN_WEIGHT_RATIO = 1e-12
"""A weight below this share of the pivot counts as this share, where a slope is taken (a curve's slope at 0 is ∞)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Coefficients of one curve, per step and per token; all ≥ 0."""

    base: float
    prefill: float
    decode: float
    context: float
    exponent: float = 1.0
    pivot: float = 1.0
    """Sum of weights at which curved and affine cost agree; no meaning while the exponent is 1."""

    @staticmethod
    def affine(coefficients: tuple[float, float, float, float]) -> Curve:
        """The curve of a ``StepCurves`` tuple."""
        base, prefill, decode, context = coefficients
        return Curve(base=base, prefill=prefill, decode=decode, context=context)

    @property
    def slopes(self) -> Floats:
        """Weight per token of each feature, shape (3,)."""
        return np.array((self.prefill, self.decode, self.context))

    def weights(self, features: Floats) -> Floats:
        """W of each row of ``features`` (…, 3): prefill, decode, context tokens."""
        # By columns: a matrix product wakes the threads of BLAS, which wait for cores that serving needs.
        prefill, decode, context = features[..., PREFILL], features[..., DECODE], features[..., CONTEXT]
        return np.asarray(self.prefill * prefill + self.decode * decode + self.context * context)

    def bend(self, weights: Floats) -> Floats:
        """Cost of summed weights, without the base; 0 at 0."""
        if self.exponent == 1.0:
            return weights
        return np.asarray(self.pivot * (weights / self.pivot) ** self.exponent)

    def slope_at(self, weights: Floats) -> Floats:
        """Derivative of ``bend``."""
        if self.exponent == 1.0:
            return np.ones_like(weights)
        ratio = np.maximum(weights / self.pivot, MIN_WEIGHT_RATIO)
        return np.asarray(self.exponent * ratio ** (self.exponent - 1))

    def costs(self, features: Floats) -> Floats:
        """Cost of whole steps whose summed features are the rows of ``features`` (steps, 3)."""
        return np.asarray(self.base + self.bend(self.weights(features)))

    def scaled(self, ratio: float) -> Curve:
        """The same shape, every cost ``ratio`` times as high."""
        return Curve(
            base=self.base * ratio,
            prefill=self.prefill * ratio,
            decode=self.decode * ratio,
            context=self.context * ratio,
            exponent=self.exponent,
            pivot=self.pivot * ratio,
        )
