"""What a placement would cost, in money, on every worker at once: the prediction, and the terms of the score.

Called by ``scheduler.core.placement``. It must never know a filter: what may not be is not cheap or dear, it is out.

For a newcomer with p uncached prompt tokens, s sequences of q output tokens each, on a worker with n sequences, P
prompt tokens that are computed before its own and C tokens of context, by the worker's own curve
``time_s = t0 + t1·prefill + t2·decode + t3·context``:

    step      = t0 + t2·n + t3·C                       what a step takes without it
    added     = t2·s + t3·s·(prompt + q/2)             what it adds to each step in which it decodes
    first     = (P + p)·(t1 + step/B) + step           until its first token; B prompt tokens fit in a step
    decoding  = (q − 1)·(step + added)·σ               from its first token to its last

σ = 1 / (1 − t1·the prompt tokens that came there a second lately): where prompts keep coming, they take their part of
the time in which it decodes, as others' prompts did of the time of those who decode now.

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
    energy    price of a joule there · (e1·p + s·q·(e2 + e3·(prompt + q/2)) + s·q·e0/(n + s))

The e are those of the energy curve less what the engine draws idle in the time by the t. The fixed part of a step is
paid once however many decode in it, but who comes keeps the engine stepping when others have ended: with lengths drawn
alike, the longest of n + s lasts 1/(n + s) of a mean length longer for each of them. So the newcomer's part of e0 is
the same as in attribution, where it is the Shapley value, and packing follows from the numbers: it falls with n.

So stickiness to a prefix ends by itself: as soon as waiting for it costs more than computing it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core import compiled as types
from scheduler.core.compiled import compiled
from scheduler.core.request import Request
from scheduler.core.table import HORIZON_TOKENS, NO_FLOATS, Floats, Row

TERMS = ("late", "slows", "wait", "prefill", "prefix", "evicts", "decode", "gpu", "energy")
LATE, SLOWS, WAIT, PREFILL, PREFIX, EVICTS, DECODE, GPU, ENERGY = range(len(TERMS))

MISSES_ITS_OWN, MISSES_OTHERS = 1, 2
"""Bits of what a placement would miss: the newcomer's targets; a promise to somebody who runs there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRules:
    """What operators may weigh."""

    delay_ratio: float = 1e-6
    """A second of delay within the target, as a share of a second beyond it: next to nothing, so that whatever has a
    price decides there. Where nothing has one, its size does not matter."""
    pace_ratio: float = 0.1
    """A second by which an answer comes slower, as a share of a second by which its first token comes later: the
    targets of whole answers are that much longer."""
    reuse_ratio: float = 0.1
    """How likely a block that is evicted now would have been used again."""
    gpu_nano_per_s: Mapping[str, float] = field(default_factory=dict)
    """By zone: price of a GPU-second in 10⁻⁹ currency units; 0 where nothing is said."""
    nano_per_joule: Mapping[str, float] = field(default_factory=dict)
    """By zone: price of a joule at the meter in 10⁻⁹ currency units, the hall's part included; negative where who takes
    energy is paid for it; 0 where nothing is said."""

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


class Ask(NamedTuple):
    """A newcomer as the loops below know it: its work, its objective, and what operators weigh."""

    band: float
    prompt_tokens: float
    output_tokens: float
    num_sequences: float
    due_in_s: float
    """From now until its first token is due."""
    tpot_s: float
    value_nano_per_s: float
    delay_nano_per_s: float
    """A second within its target."""
    pace_ratio: float
    reuse_ratio: float

    @staticmethod
    def of(request: Request, work: Work, *, due_in_s: float, rules: PlacementRules) -> Ask:
        slo = request.slo
        return Ask(
            float(request.band),
            float(work.prompt_tokens),
            float(work.output_tokens),
            float(work.num_sequences),
            due_in_s,
            slo.tpot_s,
            slo.value_nano_per_s,
            rules.delay_ratio * slo.value_nano_per_s,
            rules.pace_ratio,
            rules.reuse_ratio,
        )


NUM_ASKED, OUTPUT_TOKENS = len(Ask._fields), Ask._fields.index("output_tokens")


class Candidate(NamedTuple):
    """Who has the least score by the summaries of slack, and what is predicted there."""

    column: float
    """-1: nobody."""
    score: float
    order: float
    """Among equals the lower goes first."""
    first_s: float
    """From now to its first token."""
    added_s: float
    """What it adds to each step in which it decodes."""
    cached_tokens: float
    slows_nano: float
    """That term, by the summary."""
    is_exact: float
    """Not 0: nobody there can be delayed by more than the least slack, so that the sum over them is 0 as well."""


class Prices(NamedTuple):
    """What differs between workers besides their load; empty where it is the same everywhere."""

    nano_per_s: Floats = NO_FLOATS
    """Of a second of all GPUs of the worker."""
    nano_per_joule: Floats = NO_FLOATS
    evicted_ratio: Floats = NO_FLOATS
    """How recently the blocks that would go were used: 0 = they are the oldest, or there is room; 1 = just now."""


def cached_tokens_of(request: Request, work: Work, hits: Floats | None) -> Floats:
    """Prompt tokens that each worker probably has; empty where none has any.

    The last one is always computed: it yields the first output.
    """
    if hits is None:
        return NO_FLOATS
    known: Floats = hits * (work.prompt_tokens / len(request.prefix_blocks))
    np.minimum(known, max(work.prompt_tokens - 1, 0), out=known)
    return known


AskFields = tuple[float, ...]
"""Those of an Ask, as a plain tuple."""


@compiled(types.tuple_of(5), types.TABLE, types.INT, types.tuple_of(NUM_ASKED), types.FLOAT)
def _forecast(
    table: Floats, column: int, ask: AskFields, cached_tokens: float
) -> tuple[float, float, float, float, float]:
    """The prediction of the module's head: what is not cached by the prefill curve, its first token from now, what it
    adds to a step, a step in which it decodes, and what it adds to the time of whoever has the least slack there.
    """
    band, prompt_tokens, output_tokens, num_sequences, _, _, _, _, _, _ = ask
    prefill_s, step_s, token_s = table[Row.T_PREFILL_S, column], table[Row.STEP_S, column], table[Row.TOKEN_S, column]
    uncached_s = prefill_s * prompt_tokens - cached_tokens * prefill_s
    before_s = table[Row.FIRST_BACKLOG_S + int(band), column]
    first_s = token_s * prompt_tokens + before_s + step_s - cached_tokens * token_s
    added_s = table[Row.T_CONTEXT_S, column] * (num_sequences * (prompt_tokens + output_tokens / 2))
    added_s += table[Row.T_DECODE_S, column] * num_sequences
    near = min(table[Row.SLACK_NEAR, column], output_tokens)
    slowdown_s = near * added_s + min(uncached_s, table[Row.SLACK_REACH_S, column])
    pace_s = (step_s + added_s) * table[Row.STRETCH, column]
    return uncached_s, first_s, added_s, pace_s, slowdown_s


@compiled(types.FLOAT, types.TABLE, types.INT, types.FLOAT)
def slows_nano(table: Floats, column: int, slowdown_s: float) -> float:
    """The term by the worker's summary: at least what the sum over everybody there would be."""
    over_s = max(slowdown_s - table[Row.SLACK_S, column], 0.0)
    by_summary: float = over_s * table[Row.SLACK_VALUE, column] + table[Row.LATE_VALUE, column] * slowdown_s
    return by_summary


@compiled(
    None,
    types.TABLE,
    types.CODES,
    types.tuple_of(NUM_ASKED),
    types.FLOATS,
    types.FLOATS,
    types.FLOATS,
    types.FLOATS,
    types.TERMS,
    types.FLOATS,
    types.CODES,
)
def score(
    table: Floats,
    are_out: NDArray[np.uint8],
    ask: AskFields,
    cached_tokens: Floats,
    nano_per_s: Floats,
    nano_per_joule: Floats,
    evicted_ratio: Floats,
    terms: NDArray[np.float32],
    scores: Floats,
    missed: NDArray[np.uint8],
) -> None:
    """Fills in the terms of every worker that is not out, their sums, and what would be missed there.

    ``slows`` is the bound from each worker's summary. Shapes: (terms, columns) and (columns,).
    """
    _, prompt_tokens, output_tokens, num_sequences, due_in_s, tpot_s, value, small, pace_ratio, reuse_ratio = ask
    num_gaps = max(output_tokens - 1.0, 0.0)
    for column in range(len(scores)):
        if are_out[column]:
            continue
        cached = cached_tokens[column] if len(cached_tokens) else 0.0
        uncached_s, first_s, added_s, pace_s, slowdown_s = _forecast(table, column, ask, cached)
        prefill_s = table[Row.T_PREFILL_S, column]
        late_s, off_pace_s = first_s - due_in_s, pace_s - tpot_s
        # Whoever waits there for a first token has no slack yet: its next tokens come between the prompts behind it.
        # It is taken to be promised the same pace. What a prefix saves there would be computed elsewhere, before
        # others.
        saved_s = cached * prefill_s
        pile_s = off_pace_s * HORIZON_TOKENS + uncached_s - saved_s + table[Row.PROMPTS_S, column]
        missed[column] = MISSES_ITS_OWN * (late_s > 0.0 or off_pace_s > 0.0)
        missed[column] |= MISSES_OTHERS * (pile_s > 0.0 or slowdown_s > table[Row.SLACK_S, column])

        late = (max(off_pace_s, 0.0) * num_gaps + max(late_s, 0.0)) * value
        slows = slows_nano(table, column, slowdown_s)
        wait = (first_s - uncached_s) * small
        prefill = prefill_s * (small * prompt_tokens)
        prefix = uncached_s * small - prefill if len(cached_tokens) else 0.0
        evicts = uncached_s * evicted_ratio[column] * (small * reuse_ratio) if len(evicted_ratio) else 0.0
        decode = (pace_s + table[Row.DECODES_S, column]) * (num_gaps * small * pace_ratio)
        gpu = 0.0
        if len(nano_per_s):
            gpu_s = (added_s + table[Row.START_S, column]) * output_tokens + uncached_s
            gpu = gpu_s * nano_per_s[column]
        energy = 0.0
        if len(nano_per_joule):
            token_joules = table[Row.CONTEXT_JOULES, column] * (prompt_tokens + output_tokens / 2)
            token_joules += table[Row.DECODE_JOULES, column]
            token_joules += table[Row.E0_JOULES, column] / (table[Row.SEQUENCES, column] + num_sequences)
            joules = token_joules * num_sequences * output_tokens
            joules += table[Row.PREFILL_JOULES, column] * (prompt_tokens - cached)
            energy = joules * nano_per_joule[column]
        terms[LATE, column], terms[SLOWS, column], terms[WAIT, column] = late, slows, wait
        terms[PREFILL, column], terms[PREFIX, column], terms[EVICTS, column] = prefill, prefix, evicts
        terms[DECODE, column], terms[GPU, column], terms[ENERGY, column] = decode, gpu, energy
        scores[column] = late + slows + wait + prefill + prefix + evicts + decode + gpu + energy


@compiled(types.tuple_of(8), types.TABLE, types.CODES, types.FLOATS, types.tuple_of(NUM_ASKED), types.FLOATS)
def _cheapest(
    table: Floats, are_out: NDArray[np.uint8], scores: Floats, ask: AskFields, cached_tokens: Floats
) -> tuple[float, float, float, float, float, float, float, float]:
    """The fields of a Candidate."""
    best, least = -1, np.inf
    for column in range(len(scores)):
        if are_out[column] or scores[column] == np.inf:
            continue
        is_first = best >= 0 and table[Row.ORDER, column] < table[Row.ORDER, best]
        if scores[column] < least or (scores[column] == least and is_first):
            best, least = column, scores[column]
    if best < 0:
        return -1.0, np.inf, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    cached = cached_tokens[best] if len(cached_tokens) else 0.0
    uncached_s, first_s, added_s, _, slowdown_s = _forecast(table, best, ask, cached)
    most_s = uncached_s + min(ask[OUTPUT_TOKENS], HORIZON_TOKENS) * added_s
    is_everybody = table[Row.PREFILL, best] == 0.0 and table[Row.LATE_VALUE, best] == 0.0  # in the summary
    is_exact = 1.0 if is_everybody and table[Row.SLACK_S, best] >= most_s else 0.0
    order, by_summary = table[Row.ORDER, best], slows_nano(table, best, slowdown_s)
    return float(best), least, order, first_s, added_s, cached, by_summary, is_exact


def cheapest(
    table: Floats, are_out: NDArray[np.uint8], scores: Floats, ask: AskFields, cached_tokens: Floats
) -> Candidate:
    """Of those that are not out and have a finite score; of equals the one with the lower worker id."""
    return Candidate(*_cheapest(table, are_out, scores, ask, cached_tokens))
