"""What placement makes of a worker's step curves: whether they can be, and what work takes beyond idling.

Called by ``scheduler.core.cluster``. Pure. It must never know a worker or a request.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scheduler.core.table import STEP_PROMPT_TOKENS
from workers.step_curves import StepCurves

PRIOR = "prior"
"""Source of curves that nobody has fitted or published: of energy they say nothing."""

PRIOR_CURVES = StepCurves(
    time_s=(0.02, 1e-4, 1e-3, 0.0), energy_joules=(0.0, 0.0, 0.0, 0.0), idle_watts=0.0, source=PRIOR
)
"""Until a worker has fitted its own."""

PRIOR_WATTS_PER_GPU = 1000.0
"""Where energy is not known: a B200's whole board power whenever it computes, and nothing idle. No GPU of the catalogue
draws more, so that none is chosen for what nobody has measured."""


def is_sound(curves: StepCurves) -> bool:
    """Whether placement can compute with its times: one NaN would win every comparison."""
    return all(0.0 <= coefficient < math.inf for coefficient in curves.time_s)


def said_of(curves: StepCurves | None, num_running: int) -> str:
    """Whose curve a worker is placed by, where so many run already, in words for ``explain``."""
    if curves is None or curves.source == PRIOR or not is_sound(curves):
        return f"none: {PRIOR_WATTS_PER_GPU:g} W a GPU"
    if not curves.is_extrapolated(num_running + 1):
        return curves.source
    low, high = curves.batch_range
    return f"{curves.source}, extrapolated: measured at {low:g} to {high:g} sequences"


def sound_of(curves: StepCurves | None) -> StepCurves:
    """These, or what stands for them where there are none that are sound."""
    return curves if curves is not None and is_sound(curves) else PRIOR_CURVES


def beyond_idle(curves: StepCurves, num_gpus: int) -> tuple[float, ...]:
    """Joules that work takes beyond what its engine would have drawn in the same time without it, by term of the curve.

    Never below 0: a device may idle for more than a fit of short steps says. ``curves`` are sound in time.
    """
    is_known = all(0.0 <= each < math.inf for each in (*curves.energy_joules, curves.idle_watts))
    if curves.source == PRIOR or not is_known:
        return tuple([PRIOR_WATTS_PER_GPU * num_gpus * time_s for time_s in curves.time_s])
    pairs = zip(curves.energy_joules, curves.time_s, strict=True)
    return tuple([max(joules - curves.idle_watts * time_s, 0.0) for joules, time_s in pairs])


class Slowest(NamedTuple):
    """The slowest that any worker ever was: a bound that spares looking at all of them."""

    step_s: float = 0.0
    prefill_s: float = 0.0

    def alone_s(self, prompt_tokens: int) -> float:
        """Time to the first token on an empty worker at most."""
        return -(-prompt_tokens // STEP_PROMPT_TOKENS) * self.step_s + prompt_tokens * self.prefill_s
