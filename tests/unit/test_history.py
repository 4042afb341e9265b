"""What became of a request is told as it was, to whoever asks in time."""

from scheduler.core.attempts import Ending, Entry
from scheduler.core.history import History
from scheduler.core.scheduler import Scheduler
from tests.core_words import MODEL, request, usage, view
from workers.types import Outcome


def over(name: str) -> Entry:
    """A request that was refused at once."""
    entry = Entry(request=request(name), place=1, waits_since_s=0.0)
    entry.end = Ending("rejected", "queue_full", 1.0)
    return entry


def test_the_oldest_is_forgotten_first() -> None:
    """The memory is bounded."""
    history = History(max_requests=2)
    for name in ("a", "b", "c"):
        history.add(over(name))
    assert (None, "b", "c") == (history.get("a"), *(history.get(name).request.request_id for name in ("b", "c")))  # type: ignore[union-attr]
    assert 2 == len(history)


def test_a_life_with_a_lost_worker_is_told_in_order() -> None:
    """Waits with their cause, attempts with who paid them, times since the arrival."""
    core = Scheduler(models=(MODEL,))
    core.on_worker_report(view("v"), 9.0)
    core.submit(request(arrival_s=10.0), 10.0)
    core.on_worker_lost("v", "worker_lost", 12.0)
    assert "waiting" == (core.explain("r") or {})["state"]
    core.on_worker_report(view("w"), 13.0)
    core.on_first_byte("r-2", 14.0)
    core.on_finished(usage("r-2"), 15.0)
    story = core.explain("r")
    assert story is not None
    assert ("finished", "completed", 5.0) == (story["state"], story["outcome"], story["ended_s"])
    assert [{"from_s": 2.0, "to_s": 3.0, "cause": "worker_lost"}] == story["waits"]
    assert [("v", "failed", "operator"), ("w", "completed", "request")] == [
        (attempt["worker_id"], attempt["outcome"], attempt["payer"]) for attempt in story["attempts"]
    ]
    assert 4.0 == story["attempts"][1]["first_byte_s"]
    assert {"input": 10, "cached": 0, "output": 5, "is_settled": True} == story["attempts"][1]["tokens"]


def test_a_refusal_is_remembered_too() -> None:
    """With the word that its client got."""
    core = Scheduler(models=(MODEL,))
    core.submit(request(model="other"), 1.0)
    story = core.explain("r")
    assert story is not None
    assert ("rejected", "model_not_found") == (story["state"], story["cause"])


def test_what_was_never_seen_is_not_told() -> None:
    """None, not an empty life."""
    assert Scheduler(models=(MODEL,)).explain("r") is None


def test_a_request_that_waits_says_so() -> None:
    """Its wait has no end yet."""
    core = Scheduler(models=(MODEL,))
    core.submit(request(), 0.0)
    story = core.explain("r")
    assert story is not None
    assert [{"from_s": 0.0, "to_s": None, "cause": "queued"}] == story["waits"]
    core.cancel("r", "client_gone", 2.0)
    story = core.explain("r")
    assert story is not None
    assert (Outcome.ABORTED.value, 2.0) == (story["outcome"], story["waits"][0]["to_s"])
