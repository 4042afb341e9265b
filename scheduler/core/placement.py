"""Where a request goes: hard filters first, then the least score in money, the same for the same state, always.

Called by ``scheduler.core.scheduler``. It must never know a queue, a budget or a clock; no score can override a filter.

All workers are compared in a few vector operations, from their summaries of slack. For the best few the sum over those
who run there is then made exactly, and the least exact score wins. Equal scores fall to the lower worker id.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.core.cluster import Cluster
from scheduler.core.data_policy import DataPolicy
from scheduler.core.evidence import Decision, Evidence
from scheduler.core.filters import Codes, Filter, filtered, without_room, without_slo
from scheduler.core.prefixes import Prefixes
from scheduler.core.request import Request
from scheduler.core.score import (
    DEFAULT_PLACEMENT,
    SLOWS,
    Floats,
    Forecast,
    PlacementRules,
    Prices,
    Work,
    burden_on,
    forecast,
    terms_of,
)
from scheduler.core.slack import HORIZON_TOKENS, STEP_PROMPT_TOKENS
from scheduler.core.table import PREFILL_ROWS, Row

PASSED = int(Filter.PASSED)

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
) -> Decision:
    """The best worker now; a decision without one where nobody can take it.

    ``avoid`` are lives of workers where it failed before: they are out as long as another one could run it.
    ``room_ratio`` is the share of each worker's room that its band may fill. ``closed_to`` came before it and were
    tried in vain: what they may use is kept for them.
    """
    cluster.refresh(now_s)
    table = cluster.table
    codes = filtered(cluster, request, policy=policy, avoid=avoid, closed_to=closed_to)
    hits = prefixes.hits(request, len(codes))
    due_in_s = request.arrival_s - now_s + target_s(cluster, request, work)
    seen = forecast(table, request, work, hits, due_in_s)
    without_room(table, codes, request, work, seen.cached_tokens, room_ratio)
    if np.count_nonzero(codes) == len(codes):
        return _nowhere(cluster, codes, request)
    codes = without_slo(codes, seen.missed)
    terms = terms_of(table, _prices(cluster, prefixes, request, rules), request, work, seen, rules)
    scores = terms.sum(axis=0)
    scores[codes > PASSED] = np.inf
    best = _best(cluster, scores, terms, request, work, seen, now_s)
    cached_tokens = 0 if seen.cached_tokens is None else int(seen.cached_tokens[best])
    first_s = float(seen.first_s[best])
    reason = (
        f"least of {len(codes) - np.count_nonzero(codes)} scores: first token in {first_s:.3f} s, "
        f"{cached_tokens} of {work.prompt_tokens} prompt tokens cached"
    )
    return Decision(
        worker=cluster.worker_at(best),
        reason=reason,
        cached_tokens=cached_tokens,
        first_s=first_s,
        due_s=now_s + due_in_s,
        evidence=Evidence(cluster.ids(), codes, terms.astype(np.float32)),
    )


def target_s(cluster: Cluster, request: Request, work: Work) -> float:
    """From its arrival until its first token is due: by its objective, and by what it would take alone."""
    slo = request.slo
    if slo.ttft_ratio * cluster.slowest.alone_s(work.prompt_tokens) <= slo.ttft_s:
        return slo.ttft_s  # the fastest worker is not slower than the slowest
    alone_s = least_wait_s(cluster, request.model, work, ready_only=False)
    return slo.ttft_s if alone_s is None else max(slo.ttft_s, slo.ttft_ratio * alone_s)


def _best(
    cluster: Cluster, scores: Floats, terms: Floats, request: Request, work: Work, seen: Forecast, now_s: float
) -> int:
    """The column of the least exact score. The exact sums are written into ``terms``."""
    table = cluster.table
    order, backlog_row = table[Row.ORDER], PREFILL_ROWS[request.band]
    best, best_rank = -1, (np.inf, np.inf)
    for _ in range(NUM_EXACT):
        column = int(scores.argmin())
        score = float(scores[column])
        if score == np.inf or score > best_rank[0]:
            break  # by their summaries nobody further on is better
        tied = (scores == score).nonzero()[0]
        if len(tied) > 1:
            column = int(tied[order[tied].argmin()])
        bound = float(terms[SLOWS, column])
        terms[SLOWS, column] = exact = slows_nano(cluster, column, work, seen, backlog_row, now_s)
        rank = (score - bound + exact, float(order[column]))
        if rank < best_rank:
            best, best_rank = column, rank
        scores[column] = np.inf
    return best


def slows_nano(cluster: Cluster, column: int, work: Work, seen: Forecast, backlog_row: int, now_s: float) -> float:
    """The exact sum of one worker."""
    cells = cluster.table[:, column]
    burden = burden_on(column, work, seen)
    most_s = float(seen.uncached_s[column]) + min(burden.steps, HORIZON_TOKENS) * burden.step_s
    if cells[Row.SLACK_S] >= most_s and not cells[Row.PREFILL] and not cells[Row.LATE_VALUE]:
        return 0.0  # the summary is of everybody there, and nobody can be delayed by more than the least slack
    return cluster.worker_at(column).promises.lateness_nano(cluster.pace(column, backlog_row), burden, now_s)


def _prices(cluster: Cluster, prefixes: Prefixes, request: Request, rules: PlacementRules) -> Prices:
    evicted_ratio = prefixes.evicted_ratio(cluster.serving(request.model)) if request.prefix_blocks else None
    by_zone = rules.gpu_nano_per_s
    if not by_zone:
        return Prices(evicted_ratio=evicted_ratio)
    key = tuple([by_zone.get(zone, 0.0) for zone in cluster.zones])
    nano_per_s = cluster.memo.get(key)
    if nano_per_s is None:
        table = cluster.table
        nano_per_s = np.array(key)[table[Row.ZONE].astype(np.intp)] * table[Row.NUM_GPUS]
        cluster.memo[key] = nano_per_s
    return Prices(nano_per_s, evicted_ratio)


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
