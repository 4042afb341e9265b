"""Placement: the least exact score of those that pass, the same choice for the same state, deadlines' least wait."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.cluster import Cluster, WorkerView
from scheduler.core.data_policy import DataPolicy
from scheduler.core.evidence import Decision
from scheduler.core.placement import least_wait_s, target_s
from scheduler.core.prefixes import Prefixes
from scheduler.core.request import DataClass, Request, Slo
from scheduler.core.score import Work
from scheduler.core.slack import UNDERWAY, Promise
from tests.core_words import MODEL, curves, request, thorough, view
from tests.placement_words import WORK, chosen, cluster_of, decides, own
from workers.types import WorkerState

ZONES = {"vault": DataClass.CORE, "hall": DataClass.IMPORTANT, "yard": DataClass.GENERAL}


def test_ties_fall_to_fewer_sequences_then_to_the_lower_id() -> None:
    """Whatever the order in which the workers came."""
    cluster = cluster_of(view("c"), view("a"), view("b"))
    assert "a" == chosen(cluster)
    own(cluster, "a")
    assert "b" == chosen(cluster)


def test_a_decision_says_what_was_chosen_and_why() -> None:
    """In one line, with the figures that the caller needs."""
    cluster = cluster_of(view("a"), view("b", state=WorkerState.SICK), view("c"), view("d", models=("other",)))
    prefixes, asked = Prefixes(), request(prefix_blocks=(1, 2), arrival_s=5.0)
    prefixes.add(cluster.workers["c"], request(prefix_blocks=(1,)), 50)
    found = decides(cluster, asked, prefixes=prefixes, now_s=6.0)
    assert found.worker is cluster.workers["c"]
    assert 50 == found.cached_tokens
    assert "least of 2 scores" in found.reason
    assert "50 of 100 prompt tokens cached" in found.reason
    assert 5.0 + 1.0 == found.due_s
    assert 0 < found.first_s < 1.0


def test_nobody_serves_the_model() -> None:
    """No worker at all, or of other models only."""
    for cluster in (Cluster(), cluster_of(view(models=("other",)))):
        found = decides(cluster)
        assert found.worker is None
        assert "none serves the model" in found.reason


def test_the_sum_over_those_who_run_decides_between_like_summaries() -> None:
    """Both have the same least slack; on one of them nine more would be late with it."""
    late = Promise(UNDERWAY, 1.0, 40.0, 1e9)
    cluster = cluster_of(*(view(name, max_running=64, kv_tokens=10**6) for name in "ab"))
    for name, num_late in (("a", 10), ("b", 1)):
        own(cluster, name, promise=late, sequences=10, decode_tokens=400)
        for _ in range(num_late - 1):
            own(cluster, name, promise=Promise(UNDERWAY, 1.000001, 40.0, 1e9), sequences=0)
        for _ in range(10 - num_late):
            own(cluster, name, promise=Promise(UNDERWAY, 1e6, 40.0, 1e9), sequences=0)
    assert "b" == chosen(cluster, work=Work(prompt_tokens=30_000, output_tokens=50))


def drawn_view(chance: random.Random, worker_id: str) -> WorkerView:
    return view(
        worker_id,
        state=chance.choice([WorkerState.READY, WorkerState.READY, WorkerState.SICK]),
        models=chance.choice([(MODEL,), (MODEL, "other"), ("other",)]),
        zone=chance.choice(["vault", "hall", "yard", "unnamed"]),
        kv_tokens=chance.randrange(3000),
        max_sequences=chance.randrange(1, 7),
        max_running=chance.randrange(1, 5),
        curves=curves(t0_s=chance.choice([0.005, 0.01])),
    )


def drawn_request(chance: random.Random) -> Request:
    return request(
        data_class=chance.choice(list(DataClass)),
        zones=chance.choice([None, None, frozenset({"vault", "yard"})]),
        band=chance.randrange(3),
        prefix_blocks=chance.choice([(), (1, 2), (1, 3, 4)]),
        arrival_s=chance.uniform(-2, 0),
    )


@thorough
@given(st.integers(0, 2**32))
def test_same_state_same_request_same_placement(seed: int) -> None:
    """However the state came about; and the choice passes every filter, asked one by one."""
    chance = random.Random(seed)
    views = [drawn_view(chance, f"w{number}") for number in range(chance.randrange(1, 10))]
    asked, policy = drawn_request(chance), DataPolicy(ZONES)
    loads = [
        (
            chance.choice(views).worker_id,
            chance.randrange(1, 4),
            chance.randrange(900),
            Promise(chance.choice([UNDERWAY, 0, 1, 2]), chance.choice([1.0, 3.0, np.inf]), chance.randrange(90), 1e9),
        )
        for _ in range(chance.randrange(20))
    ]
    choices: list[Decision] = []
    for order in (views, chance.sample(views, len(views))):
        cluster, prefixes = Cluster(), Prefixes()
        for each in order:
            cluster.update(view(f"gone-{each.worker_id}"), 0.0)
            cluster.update(each, 0.0)
        for each in order:
            cluster.remove(f"gone-{each.worker_id}")
        for worker_id, sequences, tokens, promise in loads:
            own(
                cluster, worker_id, promise=promise, sequences=sequences, prefill_tokens=tokens, decode_tokens=tokens,
                kv_tokens=tokens,
            )  # fmt: skip
            prefixes.add(cluster.workers[worker_id], request(prefix_blocks=(1, 2 + tokens % 3)), 100)
        choices.append(decides(cluster, asked, policy=policy, prefixes=prefixes))
    first, second = choices
    assert first.explain() == second.explain()
    assert (first.worker is None) == (second.worker is None)
    if first.worker is None or second.worker is None:
        return
    assert first.worker.worker_id == second.worker.worker_id
    chosen_view, claims = second.worker.view, second.worker.claims.values()
    assert chosen_view.state is WorkerState.READY
    assert MODEL in chosen_view.models
    assert policy.may(asked, chosen_view.zone)
    assert len(claims) < chosen_view.max_running
    assert not claims or sum(c.kv_tokens for c in claims) + WORK.kv_tokens <= chosen_view.kv_tokens
    assert not claims or sum(c.sequences for c in claims) + 1 <= chosen_view.max_sequences
    scores = {each["worker_id"]: each["score"] for each in second.explain()["workers"] if each["filter"] is None}
    # Scores are told in the precision they are kept in.
    assert scores[second.worker.worker_id] <= min(scores.values()) * (1 + 1e-6) + 1e3


# -- what deadlines are held against


def test_the_least_wait_is_that_of_the_fastest_idle_worker() -> None:
    """No placement can be faster; None where nobody is ready."""
    cluster = cluster_of(
        view("a", curves=curves(t0_s=0.5, prefill_s=0.01)), view("b", curves=curves(t0_s=1.0, prefill_s=0.001))
    )
    own(cluster, "b", prefill_tokens=10**6)
    assert least_wait_s(cluster, MODEL, WORK) == pytest.approx(1.1)
    cluster.hold(cluster.workers["b"])
    assert least_wait_s(cluster, MODEL, WORK) == pytest.approx(1.5)
    cluster.hold(cluster.workers["a"])
    assert least_wait_s(cluster, MODEL, WORK) is None


def test_a_first_token_is_due_by_its_objective_and_by_what_it_takes_alone() -> None:
    """In whole steps on the fastest worker of its model, ready or not; other models do not count."""
    cluster = cluster_of(
        view("a", curves=curves(t0_s=0.5, prefill_s=1e-4)),
        view("b", curves=curves(t0_s=0.01, prefill_s=1e-3), state=WorkerState.SICK),
        view("c", curves=curves(t0_s=0.0, prefill_s=0.0), models=("other",)),
    )
    asked = request(slo=Slo(ttft_s=0.3, ttft_ratio=2.0))
    assert target_s(cluster, asked, Work(prompt_tokens=100, output_tokens=1)) == 0.3
    assert target_s(cluster, asked, Work(prompt_tokens=200, output_tokens=1)) == pytest.approx(2 * 0.21)
    assert target_s(cluster, asked, Work(prompt_tokens=5000, output_tokens=1)) == pytest.approx(2 * (3 * 0.5 + 0.5))
    assert target_s(cluster, request(model="nobody's"), WORK) == Slo().ttft_s
