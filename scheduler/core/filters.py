"""What may not be: hard filters over all workers at once. No score overrides one, and what is unknown is out.

Called by ``scheduler.core.placement``. It must never know what a worker would cost.

The filters are asked in the order of their names below; each worker is told the first that it does not pass.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from scheduler.core.cluster import Cluster
from scheduler.core.compiled import CODES, FLOAT, FLOATS, INT, TABLE, compiled
from scheduler.core.data_policy import DataPolicy
from scheduler.core.request import Request
from scheduler.core.score import MISSES_ITS_OWN, MISSES_OTHERS
from scheduler.core.table import LEFT_ROWS, ROOM_ROWS, Floats, Row

Codes = NDArray[np.uint8]

MAX_MEMO = 4_096
"""Combinations of model, class and zones whose standing filters are kept."""


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


ANY_LEFT = 1e-9
"""Of attempts and prompts a worker takes another one as long as any is left of its share, however little."""

PASSED, SLOWS_OTHERS, SLO, BACKLOG = (
    int(each) for each in (Filter.PASSED, Filter.SLOWS_OTHERS, Filter.SLO, Filter.BACKLOG)
)
KV_ROOM, SEQUENCES, ATTEMPTS = (int(each) for each in (Filter.KV_ROOM, Filter.SEQUENCES, Filter.ATTEMPTS))
"""As the loops below know them."""


def filtered(
    cluster: Cluster,
    request: Request,
    *,
    policy: DataPolicy,
    avoid: frozenset[int],
    closed_to: Sequence[Request],
) -> Codes:
    """A ``Filter`` for each column: what depends on who asks and not on how much work it is."""
    codes = _standing(cluster, request, policy).copy()
    if closed_to:
        np.maximum(codes, _kept(cluster, closed_to, policy), out=codes)
    if avoid:
        _avoid(cluster, codes, avoid)
    return codes


def _standing(cluster: Cluster, request: Request, policy: DataPolicy) -> Codes:
    """What changes only when a worker comes, goes, or is ready or not; kept until then."""
    key = (policy, policy.version, request.model, request.data_class, request.zones)
    codes = cluster.memo.get(key)
    if codes is None:
        table = cluster.table
        codes = np.zeros(table.shape[1], dtype=np.uint8)
        if cluster.zones:
            zone = table[Row.ZONE].astype(np.intp)
            _mark(codes, ~policy.mask(request, cluster.zones)[zone], Filter.RESIDENCY)
        _mark(codes, table[Row.READY] == 0, Filter.NOT_READY)
        _mark(codes, ~cluster.serving(request.model), Filter.MODEL)
        _remember(cluster, key, codes)
    return codes


def _kept(cluster: Cluster, closed_to: Sequence[Request], policy: DataPolicy) -> Codes:
    """Where those who came before may run; it changes as seldom as that."""
    key = (policy, policy.version, *[(each.model, each.data_class, each.zones) for each in closed_to])
    codes = cluster.memo.get(key)
    if codes is None:
        codes = np.zeros(cluster.table.shape[1], dtype=np.uint8)
        for earlier in closed_to:
            _mark(codes, _standing(cluster, earlier, policy) == PASSED, Filter.KEPT)
        _remember(cluster, key, codes)
    return codes


def _remember(cluster: Cluster, key: Hashable, codes: Codes) -> None:
    if len(cluster.memo) >= MAX_MEMO:
        cluster.memo.clear()
    cluster.memo[key] = codes


def _avoid(cluster: Cluster, codes: Codes, avoid: frozenset[int]) -> None:
    """Out while any other worker could run it at all, however full that one is now."""
    able = np.flatnonzero((codes == PASSED) | (codes == int(Filter.KEPT))).tolist()
    avoided = [column for column in able if cluster.worker_at(column).life in avoid]
    if len(avoided) < len(able):
        codes[avoided] = np.maximum(codes[avoided], Filter.AVOIDED)


def room_left(cells: Floats, room_ratio: float) -> Floats:
    """What a band that may take this share of a worker's room has left of it, as ``without_room`` counts it."""
    left = cells[LEFT_ROWS]
    return left if room_ratio == 1.0 else left - (1.0 - room_ratio) * cells[ROOM_ROWS]


@compiled(INT, TABLE, CODES, INT, FLOAT, FLOAT, FLOATS, FLOAT)
def without_room(
    table: Floats,
    codes: Codes,
    band: int,
    kv_tokens: float,
    num_sequences: float,
    cached_tokens: Floats,
    room_ratio: float,
) -> int:
    """Marks who has no credit left for it, and counts who passes. Lower bands get a share of the room.

    An idle worker has room for anything: a bound may overstate what could never run otherwise. A prefix that is there
    is waited for as long as it saves (``cached_tokens``; empty where nobody has any).
    """
    kept_ratio, num_passed = 1.0 - room_ratio, 0
    for column in range(len(codes)):
        if codes[column] != PASSED:
            continue
        backlog = table[Row.FIRST_BACKLOG_LEFT + band, column]
        backlog -= kept_ratio * table[Row.FIRST_BACKLOG_ROOM + band, column]
        if len(cached_tokens):
            backlog += cached_tokens[column]
        if table[Row.ATTEMPTS_LEFT, column] - kept_ratio * table[Row.ATTEMPTS_SHARE, column] < ANY_LEFT:
            codes[column] = ATTEMPTS
        elif table[Row.SEQUENCES_LEFT, column] - kept_ratio * table[Row.SEQUENCES_SHARE, column] < num_sequences:
            codes[column] = SEQUENCES
        elif table[Row.KV_LEFT, column] - kept_ratio * table[Row.KV_SHARE, column] < kv_tokens:
            codes[column] = KV_ROOM
        elif backlog < ANY_LEFT:
            codes[column] = BACKLOG
        else:
            num_passed += 1
    return num_passed


@compiled(INT, CODES, CODES)
def without_slo(codes: Codes, missed: Codes) -> int:
    """Marks who would not keep the objectives, unless that were everybody, and counts who passes.

    ``missed`` are the bits of ``scheduler.core.score``. First those are out who miss the newcomer's or anybody's
    promise; where nobody is left, those who break somebody else's. Where nobody is left either, the request goes where
    breaking promises costs least: it must not wait for ever.
    """
    num_passed = num_spotless = num_considerate = 0
    for column in range(len(codes)):
        if codes[column] == PASSED:
            num_passed += 1
            num_spotless += missed[column] == 0
            num_considerate += missed[column] & MISSES_OTHERS == 0
    if num_spotless == num_passed or not num_considerate:
        return num_passed
    for column in range(len(codes)):
        if codes[column] == PASSED:
            if num_spotless and missed[column] & MISSES_ITS_OWN:
                codes[column] = SLO
            elif missed[column] & MISSES_OTHERS:
                codes[column] = SLOWS_OTHERS
    return num_spotless or num_considerate


def _mark(codes: Codes, is_out: NDArray[np.bool_], why: Filter) -> None:
    np.maximum(codes, is_out.view(np.uint8) * np.uint8(why), out=codes)
