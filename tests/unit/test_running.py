"""Attempts own credit from their start to their settlement, and whoever is too quiet is found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.actions import Tokens
from scheduler.core.admission import Limits
from scheduler.core.attempts import BUSY_CAUSE, Attempt, Entry
from scheduler.core.cluster import Cluster
from scheduler.core.fairness import Fairness, WorkWeights
from scheduler.core.running import Running
from scheduler.core.slack import Burden, Pace, Promises
from tests.core_words import MODEL, progress, request, thorough, view
from workers.types import Outcome, Progress

LIMITS = Limits(final_timeout_s=30.0, call_lost_s=60.0, sign_timeout_s=600.0)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.update(view("w"), 0.0)
    return cluster


def start(
    running: Running, cluster: Cluster, name: str = "r", now_s: float = 0.0, *, num_sequences: int = 1
) -> Attempt:
    """An attempt of 100 prompt tokens on worker w."""
    entry = Entry(request=request(name, num_sequences=num_sequences), place=1, waits_since_s=now_s)
    attempt = Attempt(
        attempt_id=f"{name}-1",
        entry=entry,
        worker=cluster.workers["w"],
        started_s=now_s,
        last_sign_s=now_s,
        prompt_tokens=100,
        expected_tokens=50,
    )
    running.start(attempt)
    return attempt


def test_credit_is_owned_until_it_is_forgotten(cluster: Cluster) -> None:
    """Claimed at the start, trued up by progress, exactly 0 at the end."""
    running = Running(cluster, Fairness(), LIMITS)
    attempt = start(running, cluster)
    assert (1, 150) == (cluster.credit("w").sequences, cluster.credit("w").kv_tokens)
    running.advance(attempt, progress("r-1", prompt=80, computed=80, output=2), 1.0)
    assert (0, 130) == (cluster.credit("w").prefill_tokens, cluster.credit("w").kv_tokens)
    running.forget(attempt, Tokens())
    assert (0, (0,) * 5) == (len(running), tuple(cluster.credit("w")))
    assert running.get("r-1") is None


@thorough
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 60), st.integers(0, 120), st.integers(0, 140)), max_size=25),
)
def test_credit_is_what_the_attempt_says_whatever_is_heard(
    num_sequences: int, heard: list[tuple[int, int, int, int]]
) -> None:
    """The short way of reports that bring output only leaves the same credit and the same slack as the long one."""
    cluster = Cluster()
    cluster.update(view("w"), 0.0)
    running = Running(cluster, Fairness(), LIMITS)
    attempt = start(running, cluster, num_sequences=num_sequences)
    worker, total = attempt.worker, [0, 0, 0, 0]
    for number, (prompt, cached, computed, output) in enumerate(heard):
        # Mostly what a worker says: more output, and the rest as before.
        total = [prompt, cached, computed, output] if number % 3 == 0 else [*total[:3], total[3] + output % 7]
        running.advance(attempt, Progress(attempt.attempt_id, *total), float(number))
        assert attempt.claim() == worker.claims[attempt.attempt_id] == cluster.credit("w")
        expected = Promises()
        expected.put(attempt.attempt_id, attempt.promise())
        pace, burden = Pace(0.01, 1e-4, 0.0), Burden(100.0, 50.0, 0.5)
        assert expected.rank(attempt.attempt_id) == worker.promises.rank(attempt.attempt_id)
        for now_s in (0.0, 3.0, 40.0):
            assert worker.promises.summary(pace, now_s) == pytest.approx(expected.summary(pace, now_s))
            assert worker.promises.lateness_nano(pace, burden, now_s) == pytest.approx(
                expected.lateness_nano(pace, burden, now_s)
            )
    running.forget(attempt, Tokens())
    assert tuple(cluster.credit("w")) == (0,) * 5


def test_the_first_word_of_an_end_counts(cluster: Cluster) -> None:
    """A second one changes nothing."""
    running = Running(cluster, Fairness(), LIMITS)
    attempt = start(running, cluster)
    running.note_end(attempt, Outcome.FAILED, "stalled", 1.0)
    running.note_end(attempt, Outcome.COMPLETED, "", 2.0)
    assert (Outcome.FAILED, "stalled") == (attempt.outcome, attempt.cause)
    assert running.is_ending(attempt)


def test_a_busy_worker_is_held(cluster: Cluster) -> None:
    """Until its next report nothing is placed there."""
    running = Running(cluster, Fairness(), LIMITS)
    running.note_end(start(running, cluster), Outcome.FAILED, BUSY_CAUSE, 1.0)
    assert not cluster.is_ready(cluster.workers["w"])


def test_who_owes_its_usage_too_long_is_unsettled(cluster: Cluster) -> None:
    """In the order in which they ended; the first that is not late ends the search."""
    running = Running(cluster, Fairness(), LIMITS)
    attempts = [start(running, cluster, name) for name in ("a", "b", "c")]
    running.abort(attempts[1], "client_gone", 1.0)
    running.note_end(attempts[0], Outcome.COMPLETED, "", 5.0)
    running.abort(attempts[2], "client_gone", 20.0)
    late = []
    for attempt in running.unsettled(36.0):
        late.append(attempt.attempt_id)
        running.forget(attempt, Tokens())
    assert ["b-1", "a-1"] == late


def test_silence_is_counted_from_the_last_sign(cluster: Cluster) -> None:
    """Looked at when it may be due, looked at again later if there was a sign."""
    running = Running(cluster, Fairness(), LIMITS)
    attempt = start(running, cluster)
    running.advance(attempt, progress("r-1"), 300.0)
    assert [] == list(running.silent(600.0))
    assert [] == list(running.silent(899.0))
    assert [attempt] == list(running.silent(900.0))


def test_whoever_ends_is_not_silent(cluster: Cluster) -> None:
    """It has another bound: that of its usage."""
    running = Running(cluster, Fairness(), LIMITS)
    running.abort(start(running, cluster), "client_gone", 1.0)
    assert [] == list(running.silent(10_000.0))


def test_an_idle_worker_knows_of_no_call(cluster: Cluster) -> None:
    """Only once it was idle, and the attempt quiet, for long enough."""
    running = Running(cluster, Fairness(), LIMITS)
    attempt, worker = start(running, cluster, now_s=10.0), cluster.workers["w"]
    cluster.update(view("w", num_running=1), 20.0)
    assert [] == list(running.uncalled(worker, 500.0))
    cluster.update(view("w"), 30.0)
    assert [] == list(running.uncalled(worker, 89.0))
    assert [attempt] == list(running.uncalled(worker, 90.0))
    running.abort(attempt, "client_gone", 90.0)
    assert [] == list(running.uncalled(worker, 91.0))


def test_a_tenants_turn_is_what_its_attempts_executed(cluster: Cluster) -> None:
    """Charged as expected, trued up while it runs, corrected at the end."""
    fairness = Fairness(work={MODEL: WorkWeights(prefill_gpu_s=1.0, cached_gpu_s=0.0, decode_gpu_s=10.0)})
    running = Running(cluster, fairness, LIMITS)

    def turn() -> float | None:
        return fairness.counter_gpu_s(attempt.entry.request)

    attempt = start(running, cluster)
    assert 100 + 10 * 50 == turn()
    running.advance(attempt, progress("r-1", prompt=80, computed=80, output=57), 1.0)
    assert 80 + 10 * 57 == turn()
    running.forget(attempt, Tokens(input_tokens=80, output_tokens=3))
    assert 80 + 10 * 3 == turn()
