"""Where a request goes: hard filters first, then the least predicted wait, the same for the same state, always.

Called by ``scheduler.core.scheduler``. It must never know a queue, a tenant or a clock; no score can override a filter.

The wait predicted for a newcomer with p uncached prompt tokens, s sequences and q output tokens each, on a worker that
owns P prompt tokens to compute, n sequences with D output tokens to come and C tokens of context, by the worker's own
step curve time_s = t0 + t1·prefill + t2·decode + t3·context:

    t1·(P + p)                        the prompts before it, and its own
    + q·(t0 + t2·s + t3·(p + q/2))    its own steps, as if alone
    + t2·min(D, n·q)                  the outputs that share those steps with it
    + t3·C·min(D/n, q)                their context, while they last

Every term is in seconds, so unlike workers compare directly. Two decisions with equal waits go to the worker that owns
fewer sequences (a microsecond each), then to the lower worker id.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.core.cluster import Cluster, Row, Worker

TIE_BREAK_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a newcomer brings, as expected."""

    prompt_tokens: int
    """Not cached."""
    output_tokens: int
    """Of each sequence."""
    num_sequences: int = 1

    @property
    def kv_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens * self.num_sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The choice, and what it was chosen from."""

    worker: Worker
    wait_s: float
    num_feasible: int
    num_serving: int


def predicted_wait_s(columns: NDArray[np.float64], work: Work) -> NDArray[np.float64]:
    """Seconds for each column of a table with the rows of ``Row``; formula and reasons in the module's head."""
    prompt, output, sequences = work.prompt_tokens, work.output_tokens, work.num_sequences
    running, decode = columns[Row.SEQUENCES], columns[Row.DECODE]
    t_prefill, t_decode, t_context = columns[Row.T_PREFILL_S], columns[Row.T_DECODE_S], columns[Row.T_CONTEXT_S]
    own_step_s = columns[Row.T0_S] + t_decode * sequences + t_context * (prompt + output / 2)
    shared_steps = np.minimum(decode / np.maximum(running, 1.0), output)
    wait_s: NDArray[np.float64] = (
        t_prefill * (columns[Row.PREFILL] + prompt)
        + output * own_step_s
        + shared_steps * (t_decode * running + t_context * columns[Row.CONTEXT])
        + TIE_BREAK_S * running
    )
    return wait_s


def feasible(columns: NDArray[np.float64], work: Work) -> NDArray[np.bool_]:
    """Hard filters. An idle worker has room for anything: a bound may overstate what could never run otherwise."""
    attempts = columns[Row.ATTEMPTS]
    sequences = columns[Row.SEQUENCES] + columns[Row.FOREIGN_SEQUENCES] + work.num_sequences
    kv_tokens = columns[Row.KV] + columns[Row.FOREIGN_KV] + work.kv_tokens
    has_room: NDArray[np.bool_] = sequences <= columns[Row.MAX_SEQUENCES]
    has_room &= kv_tokens <= columns[Row.KV_ROOM]
    has_room |= attempts == 0
    has_room &= attempts < columns[Row.MAX_ATTEMPTS]
    has_room &= columns[Row.READY] > 0
    return has_room


def place(cluster: Cluster, model: str, work: Work, *, avoid: frozenset[int] = frozenset()) -> Placement | None:
    """The best worker now, or None where nobody can take it.

    ``avoid`` are lives of workers where it failed before: they are out as long as any other worker is ready.
    """
    serving = cluster.columns_of(model)
    if not len(serving):
        return None
    columns = cluster.table[:, serving]
    can = feasible(columns, work)
    if avoid:
        avoided = np.array([cluster.worker_at(column).life in avoid for column in serving.tolist()])
        if (columns[Row.READY][~avoided] > 0).any():
            can &= ~avoided
    num_feasible = int(np.count_nonzero(can))
    if not num_feasible:
        return None
    wait_s = np.where(can, predicted_wait_s(columns, work), np.inf)
    best = int(wait_s.argmin())
    return Placement(
        worker=cluster.worker_at(int(serving[best])),
        wait_s=float(wait_s[best]),
        num_feasible=num_feasible,
        num_serving=len(serving),
    )


def least_wait_s(cluster: Cluster, model: str, work: Work) -> float | None:
    """Seconds until a first token on the best ready worker if it were empty: no placement can be faster.

    None where no worker of the model is ready.
    """
    columns = cluster.table[:, cluster.columns_of(model)]
    ready = columns[:, columns[Row.READY] > 0]
    if not ready.shape[1]:
        return None
    first_token_s = ready[Row.T0_S] + ready[Row.T_PREFILL_S] * work.prompt_tokens
    return float(first_token_s.min())
