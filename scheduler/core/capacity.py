"""What part of an engine a load takes at the pace that is promised, and what that draws.

Called by ``scheduler.core.parking`` and by planning. Pure. It must never know a request's way or a clock.

An engine that computes u seconds of prompts and output tokens a second, without the fixed part t0 of its steps, makes
t0 / (1 − u) of each step, whatever the mix. So at τ seconds an output token it has room for

    u = λ_prompt·t1 + λ_output·(t2 + t3·context) ≤ 1 − t0/τ

By Little's law λ_output·τ sequences run there then, each with its context in the KV cache.
"""

from __future__ import annotations

from typing import NamedTuple

from scheduler.core.curves import beyond_idle, sound_of
from scheduler.core.worker_view import WorkerView
from workers.step_curves import StepCurves

PACE_RATIO = 0.9
"""Of the promised pace, which an engine is planned to keep on average: prompts come in bursts."""

LEAST_ROOM = 0.1
"""Of an engine's time, where the fixed part of its steps alone takes nearly all of the promised pace: whoever runs
there is late whatever is done."""


class Load(NamedTuple):
    """Of one model, in a second."""

    requests: float = 0.0
    prompt_tokens: float = 0.0
    """That are computed, not cached."""
    output_tokens: float = 0.0

    def times(self, factor: float) -> Load:
        """The same mix, so many times as much."""
        return Load(self.requests * factor, self.prompt_tokens * factor, self.output_tokens * factor)

    @property
    def context_tokens(self) -> float:
        """Mean of a sequence that runs: half of its output is there."""
        return (self.prompt_tokens + self.output_tokens / 2) / self.requests if self.requests else 0.0


def curves_of(view: WorkerView) -> StepCurves:
    """Its own, or what stands for them where it has none that are sound."""
    return sound_of(view.curves)


def engines(view: WorkerView, load: Load, tpot_s: float) -> float:
    """How many engines like this the load takes, at ``PACE_RATIO`` of the promised time of an output token."""
    t0_s, prefill_s, decode_s, context_s = curves_of(view).time_s
    pace_s = PACE_RATIO * tpot_s
    work_s = load.prompt_tokens * prefill_s + load.output_tokens * (decode_s + context_s * load.context_tokens)
    num_sequences = load.output_tokens * pace_s
    kv_tokens = num_sequences * load.context_tokens
    return max(
        work_s / max(1.0 - t0_s / pace_s, LEAST_ROOM),
        num_sequences / max(view.max_sequences, 1),
        kv_tokens / view.kv_tokens if view.kv_tokens else 0.0,
    )


def watts(view: WorkerView, load: Load, tpot_s: float) -> float:
    """What the load takes on engines like this, all of them full, beyond what they would draw parked."""
    num_engines = engines(view, load, tpot_s)
    e0, prefill, decode, context = beyond_idle(curves_of(view), view.num_gpus)
    of_steps = num_engines * e0 / (PACE_RATIO * tpot_s)
    of_tokens = load.prompt_tokens * prefill + load.output_tokens * (decode + context * load.context_tokens)
    return of_steps + of_tokens + num_engines * saved_watts(view)


def saved_watts(view: WorkerView) -> float:
    """What an engine that is parked draws less than one that is idle; 0 where it cannot be parked."""
    if view.power_states is None:
        return 0.0
    return curves_of(view).idle_watts - view.power_states.parked_watts
