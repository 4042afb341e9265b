"""Who has to make room for a higher band: as few batch-class attempts as will do, all on one worker.

Called by ``scheduler.core.scheduler`` when the next of a higher band fits nowhere. It must never know a queue or a
score, and it ends nothing itself.

Only attempts of which no byte was sent may go (``Attempt.is_preemptable``). Where attempts that end already will make
the room, nobody else has to: their credit counts as free.
"""

from __future__ import annotations

from typing import NamedTuple

from scheduler.core.attempts import Attempt, Entry
from scheduler.core.cluster import Claim, Cluster, Row, Worker
from scheduler.core.data_policy import DataPolicy
from scheduler.core.request import Band
from scheduler.core.running import Running
from scheduler.core.score import Work


class _Room(NamedTuple):
    """What a newcomer lacks on a worker; at most 0 each where it fits."""

    attempts: float
    sequences: float
    kv_tokens: float

    def less(self, claim: Claim) -> _Room:
        """Without one attempt more."""
        return _Room(self.attempts - 1, self.sequences - claim.sequences, self.kv_tokens - claim.kv_tokens)

    @property
    def is_enough(self) -> bool:
        return max(self) <= 0


def victims(
    cluster: Cluster, entry: Entry, work: Work, *, running: Running, policy: DataPolicy, room_ratio: float
) -> list[Attempt]:
    """The fewest attempts whose end makes room for the request; the latest started of them, the lower worker id.

    Empty where none would do, where attempts that end already will, or for work of the last band itself.
    """
    request = entry.request
    if request.band >= Band.FLEX:
        return []
    found: list[Attempt] = []
    for column in cluster.columns_of(request.model).tolist():
        worker = cluster.worker_at(column)
        if not _may_take(cluster, worker, entry, policy):
            continue
        lacks = _lacks(cluster, worker, work, room_ratio)
        may_go: list[Attempt] = []
        for attempt in running.on(worker):
            if running.is_ending(attempt) or not attempt.is_answering:
                lacks = lacks.less(worker.claims[attempt.attempt_id])
            elif attempt.is_preemptable:
                may_go.append(attempt)
        if lacks.is_enough:
            return []  # it fits as soon as they have ended, or something but room keeps it out
        going: list[Attempt] = []
        for attempt in reversed(may_go):  # the latest has done least in vain
            going.append(attempt)
            lacks = lacks.less(worker.claims[attempt.attempt_id])
            if lacks.is_enough:
                break
        if lacks.is_enough and (not found or len(going) < len(found)):
            found = going
    return found


def _may_take(cluster: Cluster, worker: Worker, entry: Entry, policy: DataPolicy) -> bool:
    """Whether only room is missing there."""
    is_ready = cluster.is_ready(worker) and worker.life not in entry.avoid
    return is_ready and policy.may(entry.request, worker.view.zone)


def _lacks(cluster: Cluster, worker: Worker, work: Work, room_ratio: float) -> _Room:
    cells = cluster.table[:, worker.column].tolist()
    return _Room(
        attempts=cells[Row.ATTEMPTS] + 1 - max(int(cells[Row.MAX_ATTEMPTS] * room_ratio), 1),
        sequences=cells[Row.SEQUENCES]
        + cells[Row.FOREIGN_SEQUENCES]
        + work.num_sequences
        - cells[Row.MAX_SEQUENCES] * room_ratio,
        kv_tokens=cells[Row.KV] + cells[Row.FOREIGN_KV] + work.kv_tokens - cells[Row.KV_ROOM] * room_ratio,
    )
