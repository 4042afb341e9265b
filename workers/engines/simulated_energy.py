"""The hidden true energy of a simulated step: what its meter counts, and what no model is told.

Called by ``workers.engines.simulated_core`` and by tests that judge an attribution against the truth. It must never
know the fitted model, attempts or tenants.

    W = Σ_i  α_p·p_i + α_d·d_i + γ·c_i + q·p_i·(c_i + p_i/2)          over the sequences i of the step
    E = e0 + pivot · (W / pivot)^a                                    then × (1 + noise)

with p prefill (and recomputed) tokens, d decode tokens, c context read. It departs from the affine model of the fit in
the exponent a, in the quadratic attention term q and in the noise, and each coefficient is drawn from ± the spread by
seed. The affine part and the exponents follow the measured fits (``mlenergy_v3_step_fits.csv``).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workers.engines.simulated_options import SimulatedOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueEnergy:
    """The coefficients of one device, drawn once."""

    e0_joules: float
    decode_joules: float
    prefill_joules: float
    context_joules: float
    attention_joules: float
    exponent: float
    pivot_joules: float

    @staticmethod
    def draw(options: SimulatedOptions, *, seed: int) -> TrueEnergy:
        """The device of this seed."""
        stream = random.Random(f"energy-{seed}")
        spread_ratio = options.energy_spread_ratio

        def spread(value: float) -> float:
            return value * stream.uniform(1 - spread_ratio, 1 + spread_ratio)

        return TrueEnergy(
            e0_joules=spread(options.energy_e0_joules),
            decode_joules=spread(options.energy_decode_joules),
            prefill_joules=spread(options.energy_prefill_joules),
            context_joules=spread(options.energy_context_joules),
            attention_joules=spread(options.energy_attention_joules),
            exponent=options.energy_exponent,
            pivot_joules=options.energy_pivot_joules,
        )

    def weights(
        self, prefill_tokens: ArrayLike, decode_tokens: ArrayLike, context_tokens: ArrayLike
    ) -> NDArray[np.float64]:
        """W_i in joules, one per sequence, shape (num_sequences,)."""
        prefill, decode, context = (
            np.asarray(tokens, dtype=np.float64) for tokens in (prefill_tokens, decode_tokens, context_tokens)
        )
        linear = self.prefill_joules * prefill + self.decode_joules * decode + self.context_joules * context
        return np.asarray(linear + self.attention_joules * prefill * (context + prefill / 2))

    def step_joules(self, prefill_tokens: ArrayLike, decode_tokens: ArrayLike, context_tokens: ArrayLike) -> float:
        """E of a step (or of any subset of its sequences), without noise; 0 for the empty subset."""
        weights = self.weights(prefill_tokens, decode_tokens, context_tokens)
        return self.joules_of(float(weights.sum())) if weights.size else 0.0

    def joules_of(self, weight_joules: float) -> float:
        """E of a step whose weights sum to ``weight_joules``."""
        if weight_joules <= 0:
            return self.e0_joules
        if self.exponent == 1.0:
            return self.e0_joules + weight_joules
        return self.e0_joules + self.pivot_joules * float((weight_joules / self.pivot_joules) ** self.exponent)

    def sums_joules(self, *, prefill_tokens: int, decode_tokens: int, context_tokens: float, pairs: float) -> float:
        """E from sums over the sequences; ``pairs`` = Σ p_i·(c_i + p_i/2)."""
        return self.joules_of(
            self.prefill_joules * prefill_tokens
            + self.decode_joules * decode_tokens
            + self.context_joules * context_tokens
            + self.attention_joules * pairs
        )
