"""Where a request goes: hard filters first, then the least score in money, the same for the same state, always.

Called by ``scheduler.core.scheduler``. It must never know a queue, a budget or a clock; no score can override a filter.

All workers are compared in a few vector operations, from their summaries of slack. For the best few the sum over those
who run there is then made exactly, and the least exact score wins. Equal scores fall to the lower worker id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.core.cluster import Cluster
from scheduler.core.data_policy import DataPolicy
from scheduler.core.evidence import Decision, Evidence
from scheduler.core.filters import Codes, Filter, filtered, without_room, without_slo
from scheduler.core.prefixes import Prefixes
from scheduler.core.request import Request
from scheduler.core.score import (
    DEFAULT_PLACEMENT,
    SLOWS,
    TERMS,
    Ask,
    AskFields,
    Candidate,
    PlacementRules,
    Prices,
    Work,
    cached_tokens_of,
    cheapest,
    score,
)
from scheduler.core.slack import Burden
from scheduler.core.table import NO_FLOATS, PREFILL_ROWS, STEP_PROMPT_TOKENS, Floats, Row

NUM_EXACT = 4
"""The best few, for which the sum over running requests is made."""


def place(
    cluster: Cluster,
    request: Request,
    work: Work,
    *,
    policy: DataPolicy,
    prefixes: Prefixes,
    now_s: float,
    avoid: frozenset[int] = frozenset(),
    room_ratio: float = 1.0,
    closed_to: Sequence[Request] = (),
    rules: PlacementRules = DEFAULT_PLACEMENT,
    promised_from_s: float | None = None,
) -> Decision:
    """The best worker now; a decision without one where nobody can take it.

    ``avoid`` are lives of workers where it failed before: they are out as long as another one could run it.
    ``room_ratio`` is the share of each worker's room that its band may fill. ``closed_to`` came before it and were
    tried in vain: what they may use is kept for them. ``promised_from_s``: from when on its objective counts; None =
    from its arrival.
    """
    cluster.refresh(now_s)
    table = cluster.table
    codes = filtered(cluster, request, policy=policy, avoid=avoid, closed_to=closed_to)
    size, band = len(codes), int(request.band)  # numba is slow to know an enumeration
    cached_tokens = cached_tokens_of(request, work, prefixes.hits(request, size))
    if not without_room(table, codes, band, work.kv_tokens, work.num_sequences, cached_tokens, room_ratio):
        return _nowhere(cluster, codes, request)
    from_s = request.arrival_s if promised_from_s is None else promised_from_s
    due_in_s = from_s - now_s + target_s(cluster, request, work)
    ask = tuple(Ask.of(request, work, due_in_s=due_in_s, rules=rules))
    terms = np.zeros((len(TERMS), size), dtype=np.float32)
    scores, missed = np.empty(size), np.empty(size, dtype=np.uint8)
    score(table, codes, ask, cached_tokens, *_prices(cluster, prefixes, request, rules), terms, scores, missed)
    num_scored = without_slo(codes, missed)
    best = _best(cluster, codes, scores, terms, ask, cached_tokens, work, PREFILL_ROWS[band], now_s)
    num_cached = int(best.cached_tokens)
    reason = (
        f"least of {num_scored} scores: first token in {best.first_s:.3f} s, "
        f"{num_cached} of {work.prompt_tokens} prompt tokens cached"
    )
    return Decision(
        worker=cluster.worker_at(int(best.column)),
        reason=reason,
        cached_tokens=num_cached,
        first_s=best.first_s,
        due_s=now_s + due_in_s,
        evidence=Evidence(cluster.ids(), codes, terms),
        is_crowded=bool(missed[int(best.column)]),
    )


def target_s(cluster: Cluster, request: Request, work: Work) -> float:
    """From its arrival until its first token is due: by its objective, and by what it would take alone."""
    slo = request.slo
    if slo.ttft_ratio * cluster.slowest.alone_s(work.prompt_tokens) <= slo.ttft_s:
        return slo.ttft_s  # the fastest worker is not slower than the slowest
    alone_s = least_wait_s(cluster, request.model, work, ready_only=False)
    return slo.ttft_s if alone_s is None else max(slo.ttft_s, slo.ttft_ratio * alone_s)


def _best(
    cluster: Cluster,
    codes: Codes,
    scores: Floats,
    terms: NDArray[np.float32],
    ask: AskFields,
    cached_tokens: Floats,
    work: Work,
    backlog_row: int,
    now_s: float,
) -> Candidate:
    """Who has the least exact score. The exact sums are written into ``terms``."""
    best, best_rank = None, (np.inf, np.inf)
    for _ in range(NUM_EXACT):
        found = cheapest(cluster.table, codes, scores, ask, cached_tokens)
        if found.column < 0 or found.score >= best_rank[0]:
            break  # by their summaries nobody further on is better
        column, exact = int(found.column), 0.0
        if not found.is_exact:
            burden = Burden(work.prompt_tokens - found.cached_tokens, work.output_tokens, found.added_s)
            pace = cluster.pace(column, backlog_row)
            exact = cluster.worker_at(column).promises.lateness_nano(pace, burden, now_s)
        rank = (found.score - found.slows_nano + exact, found.order)
        if rank < best_rank:
            best, best_rank = found, rank
        terms[SLOWS, column], scores[column] = exact, np.inf
    assert best is not None, "every score is infinite"
    return best


def _prices(cluster: Cluster, prefixes: Prefixes, request: Request, rules: PlacementRules) -> Prices:
    evicted_ratio = prefixes.evicted_ratio(cluster.serving(request.model)) if request.prefix_blocks else NO_FLOATS
    nano_per_s = _by_worker(cluster, rules.gpu_nano_per_s)
    if len(nano_per_s):
        nano_per_s = nano_per_s * cluster.table[Row.NUM_GPUS]
    return Prices(nano_per_s, _by_worker(cluster, rules.nano_per_joule), evicted_ratio)


def _by_worker(cluster: Cluster, by_zone: Mapping[str, float]) -> Floats:
    """The price of each worker's zone; empty where nothing has one."""
    if not by_zone:
        return NO_FLOATS
    key = tuple([by_zone.get(zone, 0.0) for zone in cluster.zones])
    prices = cluster.memo.get(key)
    if prices is None:
        prices = cluster.memo[key] = np.array(key)[cluster.table[Row.ZONE].astype(np.intp)]
    return prices


def _nowhere(cluster: Cluster, codes: Codes, request: Request) -> Decision:
    """How many workers were out by which filter."""
    serving = codes[cluster.serving(request.model)]
    counts = np.bincount(serving, minlength=len(Filter)).tolist()
    why = ", ".join([f"{count} {Filter(code).word}" for code, count in enumerate(counts) if count])
    return Decision(
        worker=None,
        reason=f"no worker can take it now: {why or 'none serves the model'}",
        cached_tokens=0,
        first_s=np.inf,
        due_s=np.inf,
        evidence=Evidence(cluster.ids(), codes, None),
    )


def least_wait_s(cluster: Cluster, model: str, work: Work, *, ready_only: bool = True) -> float | None:
    """Seconds until a first token on the best worker if it were empty, nothing cached: no placement can be faster.

    None where no worker of the model is ready, or there.
    """
    columns = cluster.table[:, cluster.columns_of(model)]
    if ready_only:
        columns = columns[:, columns[Row.READY] > 0]
    if not columns.shape[1]:
        return None
    num_steps = -(-work.prompt_tokens // STEP_PROMPT_TOKENS)
    first_token_s = columns[Row.T0_S] * num_steps + columns[Row.T_PREFILL_S] * work.prompt_tokens
    return float(first_token_s.min())
