"""Starting: a worker is chosen, its credit claimed, the try remembered; in vain, nothing changes."""

from scheduler.core.admission import Admission, Limits
from scheduler.core.attempts import Entry
from scheduler.core.cluster import Cluster
from scheduler.core.queue import Queue
from scheduler.core.running import Running
from scheduler.core.starting import Starter
from tests.core_words import request, view


def a_starter(*workers: str) -> tuple[Starter, Cluster, Running]:
    cluster, limits = Cluster(), Limits()
    for worker_id in workers:
        cluster.update(view(worker_id), 0.0)
    running = Running(cluster, limits)
    return Starter(cluster, Admission(cluster, Queue(limits.queue), limits), running), cluster, running


def an_entry(**values: object) -> Entry:
    entry = Entry(request=request("r", **values), place=1, waits_since_s=0.0)
    entry.begin_wait("queued", 0.0)
    return entry


def test_a_start_is_an_attempt_with_credit_and_the_end_of_a_wait() -> None:
    """The output that is sent is what its hold covers, not what it asked for."""
    starter, cluster, running = a_starter("w")
    entry = an_entry(max_output_tokens=50)
    entry.granted_tokens = 7
    dispatch = starter.start(entry, 3.0)
    assert dispatch is not None
    assert ("r-1", "w", 7) == (dispatch.attempt_id, dispatch.worker_id, dispatch.max_output_tokens)
    attempt = running.get("r-1")
    assert attempt is not None
    assert ([attempt], attempt, 3.0) == (entry.tries, entry.attempt, entry.waits[-1].to_s)
    assert 1 == cluster.credit("w").sequences
    assert attempt.expected_tokens <= 7


def test_in_vain_nothing_changes() -> None:
    """It may be tried again at any time."""
    starter, _, running = a_starter()
    entry = an_entry()
    assert starter.start(entry, 3.0) is None
    assert (0, [], None, None) == (len(running), entry.tries, entry.attempt, entry.waits[-1].to_s)
