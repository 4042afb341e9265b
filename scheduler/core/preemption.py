"""Who has to make room for a higher band: as few batch-class attempts as will do, all on one worker.

Called by ``scheduler.core.scheduler`` when the next of a higher band fits nowhere. It must never know a queue or a
score, and it ends nothing itself.

Only attempts of which no byte was sent may go (``Attempt.is_preemptable``). Where attempts that end already will make
the room, nobody else has to: their credit counts as free.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

from scheduler.core.attempts import Attempt, Entry
from scheduler.core.cluster import Claim, Cluster, Worker
from scheduler.core.data_policy import DataPolicy
from scheduler.core.filters import ANY_LEFT, room_left
from scheduler.core.request import Band
from scheduler.core.running import Running
from scheduler.core.score import Work
from scheduler.core.table import LEFT_ROWS, Row

MAX_WORKERS = 64
"""Looked at for one request: enough to find somebody, and no cost that grows with the cluster."""


class _Room(NamedTuple):
    """What is left on a worker for a newcomer's band, as the filters count it."""

    kv_tokens: float
    sequences: float
    attempts: float

    def plus(self, claim: Claim) -> _Room:
        """With one attempt less there."""
        return _Room(self.kv_tokens + claim.kv_tokens, self.sequences + claim.sequences, self.attempts + 1)

    def is_enough(self, work: Work) -> bool:
        return self.kv_tokens >= work.kv_tokens and self.sequences >= work.num_sequences and self.attempts >= ANY_LEFT


def victims(
    cluster: Cluster, entry: Entry, work: Work, *, running: Running, policy: DataPolicy, room_ratio: float
) -> list[Attempt]:
    """The fewest attempts whose end makes room for the request, the latest started of them, among the workers that got
    batch work last (at most ``MAX_WORKERS`` are looked at).

    Empty where none would do, where attempts that end already will, or for work of the last band itself.
    """
    request, found = entry.request, list[Attempt]()
    if request.band >= Band.FLEX or not running.has_batch:
        return found
    ending = running.ending_on(request.model, most=MAX_WORKERS)
    for worker_id in ending:
        worker = cluster.workers[worker_id]
        if _may_take(cluster, worker, entry, policy) and _left(cluster, worker, room_ratio, ending).is_enough(work):
            return found  # it fits as soon as they have ended
    for worker, attempts in islice(running.batch(request.model), MAX_WORKERS):
        if not _may_take(cluster, worker, entry, policy):
            continue
        left = _left(cluster, worker, room_ratio, ending)
        if left.is_enough(work):
            return []  # something but room keeps it out
        for number, attempt in enumerate(attempts, start=1):
            left = left.plus(worker.claims[attempt.attempt_id])
            if left.is_enough(work):
                if not found or number < len(found):
                    found = attempts[:number]
                break
        if len(found) == 1:
            break
    return found


def _may_take(cluster: Cluster, worker: Worker, entry: Entry, policy: DataPolicy) -> bool:
    """Whether only room is missing there."""
    is_ready = cluster.is_ready(worker) and worker.life not in entry.avoid
    return is_ready and policy.may(entry.request, worker.view.zone)


def _left(cluster: Cluster, worker: Worker, room_ratio: float, ending: Mapping[str, list[Attempt]]) -> _Room:
    """What is left there once those that end have ended."""
    cells = room_left(cluster.table[:, worker.column], room_ratio).tolist()
    left = _Room(*cells[Row.KV_LEFT - LEFT_ROWS.start :])
    for attempt in ending.get(worker.worker_id, ()):
        left = left.plus(worker.claims[attempt.attempt_id])
    return left
