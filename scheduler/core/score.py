"""What a placement would cost, in money, on every worker at once: the prediction, and the terms of the score.

Called by ``scheduler.core.placement``. It must never know a filter: what may not be is not cheap or dear, it is out.

For a newcomer with p uncached prompt tokens, s sequences of q output tokens each, on a worker with n sequences, P
prompt tokens that are computed before its own and C tokens of context, by the worker's own curve
``time_s = t0 + t1·prefill + t2·decode + t3·context``:

    step      = t0 + t2·n + t3·C                              what a step takes without it
    added     = t2·s + t3·s·(prompt + q/2)                    what it adds to each step in which it decodes
    first     = t1·(P + p) + (⌈(P + p)/B⌉ + ½ if n)·step      until its first token; B prompt tokens fit in a step
    decoding  = (q − 1)·(step + added)                        from its first token to its last

The terms, in 10⁻⁹ currency units; V is what a second beyond its target costs (its objective's ``value_nano_per_s``), ε
how much of that a second within the target counts (``delay_ratio``):

    late      V·(max(0, waited + first − target) + max(0, decoding − tpot·(q − 1)))
    slows     Σ over those who decode there of their V·(what it makes them later than due)
    wait      ε·V·(first without its own prompt)
    prefill   ε·V·t1·prompt                            uncached prompt in seconds, by each GPU's own curve
    prefix    −ε·V·t1·cached                           what is cached is not computed: affinity, in the same unit
    evicts    ε·V·t1·p·ρ·(how recently the blocks that must go were used, 0 to 1), ρ = ``reuse_ratio``
    decode    ε·V·κ·(decoding + min(D, n·q)·added)     its pace and everybody's while both decode, κ = ``pace_ratio``
    gpu       price of a GPU-second there · GPUs · (t1·p + q·added, and q·t0 where nobody else keeps it stepping)

So stickiness to a prefix ends by itself: as soon as waiting for it costs more than computing it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.cluster import Row
from scheduler.core.request import Request
from scheduler.core.slack import STEP_PROMPT_TOKENS, Burden

Floats = NDArray[np.float64]

TERMS = ("late", "slows", "wait", "prefill", "prefix", "evicts", "decode", "gpu")
SLOWS = TERMS.index("slows")

BACKLOG_ROWS = (Row.FIRST_PREFILL, Row.SECOND_PREFILL, Row.PREFILL)
"""By band: the prompt tokens that are computed before a newcomer's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRules:
    """What operators may weigh."""

    delay_ratio: float = 0.01
    """A second of delay within the target, as a share of a second beyond it."""
    pace_ratio: float = 0.1
    """A second by which an answer comes slower, as a share of a second by which its first token comes later: the
    targets of whole answers are that much longer."""
    reuse_ratio: float = 0.1
    """How likely a block that is evicted now would have been used again."""
    backlog_s: float = 0.5
    """Prompts that a worker may have before it in seconds of computing: beyond it work waits here, where its turn is
    decided, and not in the engine. A prefix that is cached there is waited for as long as it saves."""
    gpu_nano_per_s: Mapping[str, float] = field(default_factory=dict)
    """By zone: price of a GPU-second in 10⁻⁹ currency units; 0 where nothing is said."""

    def __post_init__(self) -> None:
        assert self.delay_ratio > 0, self.delay_ratio
        assert self.backlog_s > 0, self.backlog_s


DEFAULT_PLACEMENT = PlacementRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a newcomer brings, as expected."""

    prompt_tokens: int
    """All of it, cached or not."""
    output_tokens: int
    """Of each sequence."""
    num_sequences: int = 1

    @property
    def kv_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens * self.num_sequences


class Forecast(NamedTuple):
    """Over all columns of the table, whether the newcomer may go there or not."""

    cached_tokens: Floats | float
    backlog_tokens: Floats
    own_prefill_s: Floats
    """Its whole prompt, as if nothing were cached."""
    first_s: Floats
    """From now to its first token."""
    step_s: Floats
    added_s: Floats
    decoding_s: Floats
    target_s: float
    """When its first token is due, from its arrival on."""
    waited_s: float


class Prices(NamedTuple):
    """What differs between workers besides their load; None where it is the same everywhere."""

    gpu_nano_per_s: Floats | None = None
    """Of a GPU-second."""
    evicted_ratio: Floats | None = None
    """How recently the blocks that would go were used: 0 = they are the oldest, or there is room; 1 = just now."""


NO_PRICES = Prices()


def cached_tokens_of(request: Request, work: Work, hits: Floats | None) -> Floats | float:
    """Prompt tokens that each worker probably has. The last one is always computed: it yields the first output."""
    if hits is None:
        return 0.0
    known: Floats = hits * (work.prompt_tokens / len(request.prefix_blocks))
    np.minimum(known, max(work.prompt_tokens - 1, 0), out=known)
    return known


def unloaded_ttft_s(table: Floats, serves: NDArray[np.bool_], prompt_tokens: int) -> float:
    """Seconds to the first token on the fastest worker of the model, empty and with nothing cached."""
    num_steps = -(-prompt_tokens // STEP_PROMPT_TOKENS)
    alone_s = table[Row.T0_S] * num_steps
    alone_s += table[Row.T_PREFILL_S] * prompt_tokens
    return float(alone_s.min(where=serves, initial=np.inf))


def forecast(
    table: Floats, serves: NDArray[np.bool_], request: Request, work: Work, hits: Floats | None, now_s: float
) -> Forecast:
    """The prediction of the module's head. The model is served by somebody."""
    prompt, output, sequences = work.prompt_tokens, work.output_tokens, work.num_sequences
    cached = cached_tokens_of(request, work, hits)
    backlog = table[BACKLOG_ROWS[request.band]]
    step_s = table[Row.T_CONTEXT_S] * table[Row.CONTEXT]
    step_s += table[Row.T_DECODE_S] * table[Row.SEQUENCES]
    step_s += table[Row.T0_S]
    added_s = table[Row.T_CONTEXT_S] * (sequences * (prompt + output / 2))
    added_s += table[Row.T_DECODE_S] * sequences
    tokens = backlog + (prompt - cached)
    num_steps = np.ceil(tokens * (1 / STEP_PROMPT_TOKENS))
    num_steps += 0.5 * (table[Row.ATTEMPTS] > 0)
    first_s = tokens * table[Row.T_PREFILL_S]
    first_s += num_steps * step_s
    slo = request.slo
    return Forecast(
        cached_tokens=cached,
        backlog_tokens=backlog,
        own_prefill_s=table[Row.T_PREFILL_S] * prompt,
        first_s=first_s,
        step_s=step_s,
        added_s=added_s,
        decoding_s=(step_s + added_s) * max(output - 1, 0),
        target_s=max(slo.ttft_s, slo.ttft_ratio * unloaded_ttft_s(table, serves, prompt)),
        waited_s=max(now_s - request.arrival_s, 0.0),
    )


def slowdown_s(table: Floats, work: Work, seen: Forecast) -> Floats:
    """What the newcomer adds to the time of whoever has the least slack on each worker; formula in ``slack``."""
    delay_s: Floats = table[Row.SLACK_LEFT] * STEP_PROMPT_TOKENS
    delay_s -= seen.backlog_tokens
    np.clip(delay_s, 0.0, work.prompt_tokens - seen.cached_tokens, out=delay_s)
    delay_s *= table[Row.T_PREFILL_S]
    delay_s += np.minimum(table[Row.SLACK_LEFT], work.output_tokens) * seen.added_s
    return delay_s


def terms_of(
    table: Floats,
    prices: Prices,
    request: Request,
    work: Work,
    seen: Forecast,
    slowdown: Floats,
    rules: PlacementRules,
) -> Floats:
    """Shape (terms, columns); their sum is the score. ``slows`` is the bound from each worker's summary."""
    slo, output = request.slo, work.output_tokens
    value, small = slo.value_nano_per_s, rules.delay_ratio * slo.value_nano_per_s
    terms = np.empty((len(TERMS), table.shape[1]))
    late, slows, wait, prefill, prefix, evicts, decode, gpu = terms
    np.add(seen.first_s, seen.waited_s - seen.target_s, out=late)
    np.maximum(late, 0.0, out=late)
    late += np.maximum(seen.decoding_s - slo.tpot_s * max(output - 1, 0), 0.0)
    late *= value
    np.subtract(slowdown, table[Row.SLACK_S], out=slows)
    np.maximum(slows, 0.0, out=slows)
    slows *= table[Row.SLACK_VALUE]
    slows += table[Row.LATE_VALUE] * slowdown
    own_s = seen.own_prefill_s
    np.multiply(own_s, small, out=prefill)
    if isinstance(seen.cached_tokens, float):
        prefix[:] = 0.0
        wanted_s = own_s
    else:
        saved_s = seen.cached_tokens * table[Row.T_PREFILL_S]
        np.multiply(saved_s, -small, out=prefix)
        wanted_s = own_s - saved_s
    np.subtract(seen.first_s, wanted_s, out=wait)
    wait *= small
    np.minimum(table[Row.DECODE], table[Row.SEQUENCES] * output, out=decode)
    decode *= seen.added_s
    decode += seen.decoding_s
    decode *= small * rules.pace_ratio
    if prices.evicted_ratio is None:
        evicts[:] = 0.0
    else:
        np.multiply(wanted_s, prices.evicted_ratio, out=evicts)
        evicts *= small * rules.reuse_ratio
    gpu[:] = 0.0 if prices.gpu_nano_per_s is None else prices.gpu_nano_per_s * marginal_gpu_s(table, work, seen)
    return terms


def marginal_gpu_s(table: Floats, work: Work, seen: Forecast) -> Floats:
    """GPU-seconds that the newcomer adds: a step that others keep running anyway costs it nothing."""
    gpu_s = (work.prompt_tokens - seen.cached_tokens) * table[Row.T_PREFILL_S] + work.output_tokens * seen.added_s
    gpu_s += work.output_tokens * table[Row.T0_S] * (table[Row.SEQUENCES] == 0)
    return np.asarray(gpu_s * table[Row.NUM_GPUS])


def burden_on(column: int, work: Work, seen: Forecast) -> Burden:
    """The newcomer as those who run on one worker feel it."""
    cached = seen.cached_tokens
    cached_tokens = cached if isinstance(cached, float) else float(cached[column])
    return Burden(work.prompt_tokens - cached_tokens, work.output_tokens, float(seen.added_s[column]))
