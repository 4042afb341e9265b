"""What may not be: hard filters over all workers at once. No score overrides one, and what is unknown is out.

Called by ``scheduler.core.placement``. It must never know what a worker would cost.

The filters are asked in the order of their names below; each worker is told the first that it does not pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from scheduler.core.cluster import Cluster
from scheduler.core.data_policy import DataPolicy
from scheduler.core.request import Request
from scheduler.core.score import FIRST, PILE, Floats, Work
from scheduler.core.table import LEFT_ROWS, ROOM_ROWS, Row

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

ROOMS = np.array([[Filter.BACKLOG]] * 3 + [[Filter.KV_ROOM], [Filter.SEQUENCES], [Filter.ATTEMPTS]], dtype=np.uint8)
"""In the order of the table's rows of what is left."""

PROMISES = np.array([[Filter.SLO], [Filter.SLO], [Filter.SLOWS_OTHERS], [Filter.SLOWS_OTHERS]], dtype=np.uint8)
"""In the order of a forecast's excesses."""


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
        kept = np.zeros(len(codes), dtype=np.bool_)
        for earlier in closed_to:
            kept |= _standing(cluster, earlier, policy) == Filter.PASSED
        _mark(codes, kept, Filter.KEPT)
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
        if len(cluster.memo) >= MAX_MEMO:
            cluster.memo.clear()
        cluster.memo[key] = codes
    return codes


def _avoid(cluster: Cluster, codes: Codes, avoid: frozenset[int]) -> None:
    """Out while any other worker could run it at all, however full that one is now."""
    able = np.flatnonzero((codes == Filter.PASSED) | (codes == Filter.KEPT)).tolist()
    avoided = [column for column in able if cluster.worker_at(column).life in avoid]
    if len(avoided) < len(able):
        codes[avoided] = np.maximum(codes[avoided], Filter.AVOIDED)


def room_left(cells: Floats, room_ratio: float) -> Floats:
    """What a band that may take this share of the room has left of it; ``cells`` of one worker or of all."""
    left = cells[LEFT_ROWS]
    return left if room_ratio == 1.0 else left - (1.0 - room_ratio) * cells[ROOM_ROWS]


def without_room(
    table: Floats, codes: Codes, request: Request, work: Work, cached_tokens: Floats | None, room_ratio: float
) -> None:
    """Marks who has no credit left for it. Lower bands get a share of the room (``room_ratio``).

    An idle worker has room for anything: a bound may overstate what could never run otherwise.
    """
    left = room_left(table, room_ratio)
    if cached_tokens is not None and room_ratio == 1.0:
        left = left.copy()
    if cached_tokens is not None:  # a prefix that is there is waited for as long as it saves
        left[request.band] += cached_tokens
    needs = [-np.inf, -np.inf, -np.inf, work.kv_tokens, work.num_sequences, ANY_LEFT]
    needs[request.band] = ANY_LEFT
    _mark_first(codes, left < np.array(needs)[:, None], ROOMS)


def without_slo(codes: Codes, missed: NDArray[np.bool_] | None) -> Codes:
    """The codes with the objectives asked too; the codes as they are where nobody would keep them.

    First those who keep the newcomer's and everybody's promise; where there are none, those who break nobody else's.
    Where there are none either the request goes where breaking promises costs least: it must not wait for ever.
    """
    if missed is None:
        return codes
    for first_asked in (FIRST, PILE):
        asked = codes.copy()
        _mark_first(asked, missed[first_asked:], PROMISES[first_asked:])
        if np.count_nonzero(asked) < len(asked):
            return asked
    return codes


def _mark_first(codes: Codes, are_out: NDArray[np.bool_], why: Codes) -> None:
    """Of several filters, one a row."""
    if np.count_nonzero(are_out):
        np.maximum(codes, (are_out.view(np.uint8) * why).max(axis=0), out=codes)


def _mark(codes: Codes, is_out: NDArray[np.bool_], why: Filter) -> None:
    np.maximum(codes, is_out.view(np.uint8) * np.uint8(why), out=codes)
