"""What a simulated run of a fleet yielded, one row a request, and the figures drawn from it.

Called by ``scheduler.simulation.fleet``, which fills it, and by benchmarks and planning. It must never know a router or
an engine. Every figure here is simulated: grade D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.core.request import Slo
from scheduler.simulation.power import StateJoules
from scheduler.simulation.traces import Arrival
from workers.engines.simulated_options import SimulatedOptions


def unloaded_ttft_s(prompt_tokens: NDArray[np.float64], options: SimulatedOptions) -> NDArray[np.float64]:
    """Seconds to the first token on an empty engine with nothing cached, shape as given."""
    chunk = options.max_batched_tokens
    num_steps = np.ceil(prompt_tokens / chunk)
    # Context read by the chunks after the first: 0 + 1 + … + (steps − 1) chunks.
    context_tokens = chunk * num_steps * (num_steps - 1) / 2
    return np.asarray(
        options.time_t0_s * num_steps + options.time_prefill_s * prompt_tokens + options.time_context_s * context_tokens
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Results:
    """Arrays of shape (num_requests,), in order of arrival. Times are virtual seconds; NaN = it never happened."""

    arrivals: Sequence[Arrival]
    first_token_s: NDArray[np.float64]
    ended_s: NDArray[np.float64]
    worker: NDArray[np.int64]
    """Where it ended; −1 is refused."""
    cached_tokens: NDArray[np.int64]
    num_preemptions: NDArray[np.int64]
    unloaded_s: NDArray[np.float64]
    """Its TTFT alone on the fleet's fastest engine."""
    num_attempts: int
    wall_s: float
    """Of the loop, first arrival to last end."""
    cpu_s: float
    joules: StateJoules
    """Of all engines from 0 to ``span_s``: steps by the curve, and what is drawn between them, at starts and parked."""
    busy_s: float
    """Of steps, summed over the engines."""
    loaded_s: float
    """In which they could take requests, summed likewise."""
    loaded_gpu_s: float
    """The same × each engine's GPUs."""
    span_s: float
    """To the last answer, or to what an engine began after it."""
    num_wakes: int
    num_losses: int = 0
    """Engines that died; each was started again, which is no wake."""

    @property
    def arrival_s(self) -> NDArray[np.float64]:
        return np.array([arrival.arrival_s for arrival in self.arrivals])

    @property
    def prompt_tokens(self) -> NDArray[np.int64]:
        return np.array([arrival.prompt_tokens for arrival in self.arrivals])

    @property
    def output_tokens(self) -> NDArray[np.int64]:
        return np.array([arrival.output_tokens for arrival in self.arrivals])

    @property
    def tenants(self) -> NDArray[np.str_]:
        return np.array([arrival.tenant for arrival in self.arrivals])

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Arrival to first token; infinite where there was none."""
        return np.nan_to_num(self.first_token_s - self.arrival_s, nan=np.inf)

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        return np.nan_to_num(self.ended_s - self.arrival_s, nan=np.inf)

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Mean time of an output token after the first; 0 where there is only one."""
        spans = np.nan_to_num(self.ended_s - self.first_token_s, nan=np.inf)
        return np.asarray(spans / np.maximum(self.output_tokens - 1, 1))

    def is_good(self, slo: Slo) -> NDArray[np.bool_]:
        """Within both targets of the objective."""
        on_time = self.ttft_s <= np.maximum(slo.ttft_s, slo.ttft_ratio * self.unloaded_s)
        return np.asarray(on_time & (self.tpot_s <= slo.tpot_s))

    def joules_per_good_token(self, slo: Slo) -> float:
        """Everything that the fleet drew ÷ output tokens of good requests; infinite where none was good."""
        good_tokens = int(self.output_tokens[self.is_good(slo)].sum())
        return self.joules.total / good_tokens if good_tokens else math.inf

    @property
    def cached_ratio(self) -> float:
        """Prompt tokens that were found in a prefix cache ÷ prompt tokens."""
        return float(self.cached_tokens.sum() / self.prompt_tokens.sum())
