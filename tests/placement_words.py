"""Short ways to build a cluster and to ask where a request goes.

Used by tests of ``scheduler.core`` placement (``from tests.placement_words import cluster_of, own``).
"""

from __future__ import annotations

from scheduler.core.cluster import NO_PROMISE, Claim, Cluster, WorkerView
from scheduler.core.data_policy import DataPolicy
from scheduler.core.evidence import Decision
from scheduler.core.placement import place
from scheduler.core.prefixes import Prefixes
from scheduler.core.request import Request
from scheduler.core.score import Work
from scheduler.core.slack import Promise
from tests.core_words import request

WORK = Work(prompt_tokens=100, output_tokens=50)


def cluster_of(*views: WorkerView) -> Cluster:
    cluster = Cluster()
    for each in views:
        cluster.update(each, 0.0)
    return cluster


def own(cluster: Cluster, worker_id: str, name: str = "x", promise: Promise | None = None, **tokens: int) -> None:
    """Somebody runs there."""
    worker = cluster.workers[worker_id]
    fields = {"sequences": 1, "prefill_tokens": 0, "decode_tokens": 0, "context_tokens": 0, "kv_tokens": 0, **tokens}
    cluster.claim(worker, f"{name}-{len(worker.claims)}", Claim(**fields), promise or NO_PROMISE)


def decides(
    cluster: Cluster, asked: Request | None = None, work: Work = WORK, *, now_s: float = 0.0, **values: object
) -> Decision:
    """Where it goes, without prefixes and with general data unless said otherwise."""
    words: dict[str, object] = {"policy": DataPolicy(), "prefixes": Prefixes(), **values}
    return place(cluster, asked or request(), work, now_s=now_s, **words)  # type: ignore[arg-type]


def chosen(cluster: Cluster, asked: Request | None = None, work: Work = WORK, **values: object) -> str | None:
    """The worker's id."""
    decision = decides(cluster, asked, work, **values)
    return decision.worker.worker_id if decision.worker else None


def filters(decision: Decision) -> dict[str, str | None]:
    """By worker id: the first filter that it did not pass."""
    return {each["worker_id"]: each["filter"] for each in decision.explain()["workers"]}
