"""What may not be: hard filters over all workers at once. No score overrides one, and what is unknown is out.

Called by ``scheduler.core.placement``. It must never know what a worker would cost.

The filters are asked in the order of their names below; each worker is told the first that it does not pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from scheduler.core.cluster import Cluster, Row
from scheduler.core.data_policy import DataPolicy
from scheduler.core.request import Request
from scheduler.core.score import Floats, Forecast, PlacementRules, Work
from scheduler.core.slack import HORIZON_TOKENS, STEP_PROMPT_TOKENS

Codes = NDArray[np.uint8]

LEAST_BACKLOG_TOKENS = 2 * STEP_PROMPT_TOKENS
"""Two full steps: however slow a worker is, it may have so much before it."""


class Filter(IntEnum):
    """Why a worker is out; the greatest number is asked first."""

    PASSED = 0
    SLOWS_OTHERS = 1
    """Somebody who runs there would miss a promise that is still kept, or begin between too many prompts."""
    SLO = 2
    """The newcomer's own first token or token rate would miss its target."""
    BACKLOG = 3
    """Enough prompts are before it there: its turn is decided here, not in the engine."""
    KV_ROOM = 4
    SEQUENCES = 5
    ATTEMPTS = 6
    """The worker takes no further attempt."""
    KEPT = 7
    """Somebody who came before waits for room there."""
    AVOIDED = 8
    """It failed there, and another worker is ready."""
    RESIDENCY = 9
    """Its zone may not hold the data."""
    NOT_READY = 10
    MODEL = 11

    @property
    def word(self) -> str | None:
        """None where it passed."""
        return self.name.lower() if self else None


def filtered(
    cluster: Cluster,
    request: Request,
    *,
    policy: DataPolicy,
    avoid: frozenset[int],
    closed_to: Sequence[Request],
) -> Codes:
    """A ``Filter`` for each column: what depends on who asks and not on how much work it is."""
    table = cluster.table
    ready = table[Row.READY] > 0
    zone = table[Row.ZONE].astype(np.intp)
    codes: Codes = np.zeros(table.shape[1], dtype=np.uint8)
    if closed_to and cluster.zones:
        kept = np.zeros(table.shape[1], dtype=np.bool_)
        for earlier in closed_to:
            kept |= policy.mask(earlier, cluster.zones)[zone] & cluster.serving(earlier.model)
        _mark(codes, kept, Filter.KEPT)
    may = policy.mask(request, cluster.zones)
    if not may.all():
        _mark(codes, ~may[zone], Filter.RESIDENCY)
    _mark(codes, ~ready, Filter.NOT_READY)
    _mark(codes, ~cluster.serving(request.model), Filter.MODEL)
    if avoid:
        _avoid(cluster, codes, avoid)
    return codes


def _avoid(cluster: Cluster, codes: Codes, avoid: frozenset[int]) -> None:
    """Out while any other worker could run it at all, however full that one is now."""
    able = [
        column
        for column in np.flatnonzero((codes == Filter.PASSED) | (codes == Filter.KEPT)).tolist()
        if cluster.worker_at(column).life in avoid
    ]
    num_able = int(np.count_nonzero((codes == Filter.PASSED) | (codes == Filter.KEPT)))
    if len(able) < num_able:
        codes[able] = np.maximum(codes[able], Filter.AVOIDED)


def without_room(
    table: Floats, codes: Codes, request: Request, work: Work, seen: Forecast, rules: PlacementRules, room_ratio: float
) -> None:
    """Marks who has no credit left for it. Lower bands get a share of the room (``room_ratio``).

    An idle worker has room for anything: a bound may overstate what could never run otherwise.
    """
    attempts = table[Row.ATTEMPTS]
    sequences = table[Row.SEQUENCES] + table[Row.FOREIGN_SEQUENCES]
    sequences += work.num_sequences
    kv_tokens = table[Row.KV] + table[Row.FOREIGN_KV]
    kv_tokens += work.kv_tokens
    busy = attempts > 0
    # No engine may run dry between two of our words, and waiting for a prefix is worth what it saves.
    token_s = table[Row.T_PREFILL_S]
    limit_s = np.maximum(token_s * LEAST_BACKLOG_TOKENS, rules.backlog_s) * room_ratio
    limit_s += token_s * seen.cached_tokens
    _mark(codes, seen.backlog_tokens * token_s >= limit_s, Filter.BACKLOG)
    _mark(codes, (kv_tokens > table[Row.KV_ROOM] * room_ratio) & busy, Filter.KV_ROOM)
    _mark(codes, (sequences > table[Row.MAX_SEQUENCES] * room_ratio) & busy, Filter.SEQUENCES)
    _mark(codes, (attempts >= table[Row.MAX_ATTEMPTS] * room_ratio) & busy, Filter.ATTEMPTS)
    _mark(codes, attempts >= table[Row.MAX_ATTEMPTS], Filter.ATTEMPTS)


def without_slo(table: Floats, codes: Codes, request: Request, work: Work, seen: Forecast, slowdown: Floats) -> Codes:
    """The codes with the objectives asked too; the codes as they are where nobody would keep them.

    First those who keep the newcomer's and everybody's promise; where there are none, those who break nobody else's.
    Where there are none either the request goes where breaking promises costs least: it must not wait for ever.
    """
    harms = slowdown > table[Row.SLACK_S]
    harms |= is_pile(table, request, work, seen)
    late = seen.first_s > seen.target_s - seen.waited_s
    late |= seen.step_s + seen.added_s > request.slo.tpot_s
    passed = codes == Filter.PASSED
    for is_out, why in ((late | harms, late), (harms, None)):
        if (passed & ~is_out).any():
            asked = codes.copy()
            _mark(asked, harms & is_out & passed, Filter.SLOWS_OTHERS)
            if why is not None:
                _mark(asked, why & passed, Filter.SLO)
            return asked
    return codes


def is_pile(table: Floats, request: Request, work: Work, seen: Forecast) -> NDArray[np.bool_]:
    """Where prompts are before it and, with its own, take longer than the first tokens that follow them may.

    Whoever waits there for a first token has no slack yet: its next tokens come between the prompts behind it. It is
    taken to be promised the same pace as the newcomer.
    """
    prompts = table[Row.PREFILL]
    bearable_s = np.maximum(request.slo.tpot_s - seen.step_s - seen.added_s, 0.0) * HORIZON_TOKENS
    own_tokens = work.prompt_tokens - seen.cached_tokens
    return np.asarray((prompts > 0) & ((prompts + own_tokens) * table[Row.T_PREFILL_S] > bearable_s))


def _mark(codes: Codes, is_out: NDArray[np.bool_], why: Filter) -> None:
    np.maximum(codes, is_out.view(np.uint8) * np.uint8(why), out=codes)
