"""What a placement would cost, in money, on every worker at once: the prediction, and the terms of the score.

Called by ``scheduler.core.placement``. It must never know a filter: what may not be is not cheap or dear, it is out.

For a newcomer with p uncached prompt tokens, s sequences of q output tokens each, on a worker with n sequences, P
prompt tokens that are computed before its own and C tokens of context, by the worker's own curve
``time_s = t0 + t1·prefill + t2·decode + t3·context``:

    step      = t0 + t2·n + t3·C                       what a step takes without it
    added     = t2·s + t3·s·(prompt + q/2)             what it adds to each step in which it decodes
    first     = (P + p)·(t1 + step/B) + step           until its first token; B prompt tokens fit in a step
    decoding  = (q − 1)·(step + added)                 from its first token to its last

The terms, in 10⁻⁹ currency units; V is what a second beyond its target costs (its objective's ``value_nano_per_s``), ε
how much of that a second within the target counts (``delay_ratio``):

    late      V·(max(0, waited + first − target) + max(0, decoding − tpot·(q − 1)))
    slows     Σ over those who decode there of their V·(what it makes them later than due)
    wait      ε·V·(first without its own prompt)
    prefill   ε·V·t1·prompt                            uncached prompt in seconds, by each GPU's own curve
    prefix    −ε·V·t1·cached                           what is cached is not computed: affinity, in the same unit
    evicts    ε·V·t1·p·ρ·(how recently the blocks that must go were used, 0 to 1), ρ = ``reuse_ratio``
    decode    ε·V·κ·(decoding + (q − 1)·t2·n)          its pace, and what one more costs everybody; κ = ``pace_ratio``
    gpu       price of a GPU-second there · GPUs · (t1·p + q·added, and q·t0 where nobody else keeps it stepping)

So stickiness to a prefix ends by itself: as soon as waiting for it costs more than computing it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.request import Request
from scheduler.core.slack import HORIZON_TOKENS, Burden
from scheduler.core.table import Row

Floats = NDArray[np.float64]

TERMS = ("late", "slows", "wait", "prefill", "prefix", "evicts", "decode", "gpu")
SLOWS = TERMS.index("slows")


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
    gpu_nano_per_s: Mapping[str, float] = field(default_factory=dict)
    """By zone: price of a GPU-second in 10⁻⁹ currency units; 0 where nothing is said."""

    def __post_init__(self) -> None:
        assert self.delay_ratio > 0, self.delay_ratio
        assert self.pace_ratio >= 0, self.pace_ratio
        assert 0 <= self.reuse_ratio <= 1, self.reuse_ratio


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

    cached_tokens: Floats | None
    """None where nobody has anything of its prompt."""
    uncached_s: Floats
    """What is not cached of its prompt, by the prefill curve."""
    first_s: Floats
    """From now to its first token."""
    added_s: Floats
    pace_s: Floats
    """A step in which it decodes."""
    slowdown_s: Floats
    """What it adds to the time of whoever has the least slack; the formula is that of ``slack``."""
    excess_s: Floats
    """Rows of EXCESSES: by how much each promise is missed; what is not above 0 is kept."""
    missed: NDArray[np.bool_] | None
    """Where it is above 0; None where every promise is kept."""


EXCESSES = ("first", "pace", "pile", "slack")
FIRST, PACE, PILE, SLACK = range(len(EXCESSES))


class Prices(NamedTuple):
    """What differs between workers besides their load; None where it is the same everywhere."""

    nano_per_s: Floats | None = None
    """Of a second of all GPUs of the worker."""
    evicted_ratio: Floats | None = None
    """How recently the blocks that would go were used: 0 = they are the oldest, or there is room; 1 = just now."""


NO_PRICES = Prices()


def cached_tokens_of(request: Request, work: Work, hits: Floats) -> Floats:
    """Prompt tokens that each worker probably has. The last one is always computed: it yields the first output."""
    known: Floats = hits * (work.prompt_tokens / len(request.prefix_blocks))
    np.minimum(known, max(work.prompt_tokens - 1, 0), out=known)
    return known


def forecast(table: Floats, request: Request, work: Work, hits: Floats | None, due_in_s: float) -> Forecast:
    """The prediction of the module's head. ``due_in_s``: from now until its first token is due."""
    prompt, output, sequences, band = work.prompt_tokens, work.output_tokens, work.num_sequences, request.band
    prefill_s, step_s = table[Row.T_PREFILL_S], table[Row.STEP_S]
    uncached_s = prefill_s * float(prompt)
    first_s = table[Row.TOKEN_S] * float(prompt)
    first_s += table[Row.FIRST_BACKLOG_S + band]
    first_s += step_s
    cached_tokens: Floats | None = None
    saved_s: Floats | float = 0.0
    if hits is not None:
        cached_tokens = cached_tokens_of(request, work, hits)
        saved_s = cached_tokens * prefill_s
        uncached_s -= saved_s
        first_s -= cached_tokens * table[Row.TOKEN_S]
    added_s = table[Row.T_CONTEXT_S] * (sequences * (prompt + output / 2))
    added_s += table[Row.T_DECODE_S] if sequences == 1 else table[Row.T_DECODE_S] * float(sequences)
    pace_s = step_s + added_s
    near = table[Row.SLACK_NEAR] if output >= HORIZON_TOKENS else np.minimum(table[Row.SLACK_NEAR], float(output))
    slowdown_s = near * added_s
    slowdown_s += np.minimum(uncached_s, table[Row.SLACK_REACH_S])
    excess_s = np.empty((len(EXCESSES), len(first_s)))
    first, pace, pile, slack = excess_s
    np.subtract(first_s, due_in_s, out=first)
    np.subtract(pace_s, request.slo.tpot_s, out=pace)
    # Whoever waits there for a first token has no slack yet: its next tokens come between the prompts behind it. It is
    # taken to be promised the same pace. What a prefix saves there would be computed elsewhere, before others.
    np.multiply(pace, HORIZON_TOKENS, out=pile)
    pile += uncached_s
    pile -= saved_s
    pile += table[Row.PROMPTS_S]
    np.subtract(slowdown_s, table[Row.SLACK_S], out=slack)
    missed = excess_s > 0.0
    return Forecast(
        cached_tokens,
        uncached_s,
        first_s,
        added_s,
        pace_s,
        slowdown_s,
        excess_s,
        missed if np.count_nonzero(missed) else None,
    )


def terms_of(
    table: Floats, prices: Prices, request: Request, work: Work, seen: Forecast, rules: PlacementRules
) -> Floats:
    """Shape (terms, columns); their sum is the score. ``slows`` is the bound from each worker's summary."""
    slo, num_gaps = request.slo, float(max(work.output_tokens - 1, 0))
    value, small = slo.value_nano_per_s, rules.delay_ratio * slo.value_nano_per_s
    terms = np.zeros((len(TERMS), table.shape[1]))
    late, slows, wait, prefill, prefix, evicts, decode, gpu = terms
    if seen.missed is not None:
        lost_s = np.maximum(seen.excess_s, 0.0)
        np.multiply(lost_s[PACE], num_gaps, out=late)
        late += lost_s[FIRST]
        late *= value
        np.multiply(lost_s[SLACK], table[Row.SLACK_VALUE], out=slows)
    if np.count_nonzero(table[Row.LATE_VALUE]):
        slows += table[Row.LATE_VALUE] * seen.slowdown_s
    np.subtract(seen.first_s, seen.uncached_s, out=wait)
    wait *= small
    np.multiply(table[Row.T_PREFILL_S], small * work.prompt_tokens, out=prefill)
    if seen.cached_tokens is not None:
        np.multiply(seen.uncached_s, small, out=prefix)
        prefix -= prefill
    if prices.evicted_ratio is not None:
        np.multiply(seen.uncached_s, prices.evicted_ratio, out=evicts)
        evicts *= small * rules.reuse_ratio
    np.add(seen.pace_s, table[Row.DECODES_S], out=decode)
    decode *= num_gaps * small * rules.pace_ratio
    if prices.nano_per_s is not None:
        np.add(seen.added_s, table[Row.START_S], out=gpu)
        gpu *= float(work.output_tokens)
        gpu += seen.uncached_s
        gpu *= prices.nano_per_s
    return terms


def burden_on(column: int, work: Work, seen: Forecast) -> Burden:
    """The newcomer as those who run on one worker feel it."""
    cached_tokens = 0.0 if seen.cached_tokens is None else float(seen.cached_tokens[column])
    return Burden(work.prompt_tokens - cached_tokens, work.output_tokens, float(seen.added_s[column]))
