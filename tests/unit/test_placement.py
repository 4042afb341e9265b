"""Placement: filters no score overrides, the least predicted wait, the same choice for the same state."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.cluster import Claim, Cluster, Row, WorkerView
from scheduler.core.placement import Work, feasible, least_wait_s, place, predicted_wait_s
from tests.core_words import MODEL, curves, thorough, view
from workers.types import WorkerState

WORK = Work(prompt_tokens=100, output_tokens=50)


def cluster_of(*views: WorkerView) -> Cluster:
    cluster = Cluster()
    for each in views:
        cluster.update(each, 0.0)
    return cluster


def own(cluster: Cluster, worker_id: str, name: str = "x", **tokens: int) -> None:
    """Somebody runs there."""
    worker = cluster.workers[worker_id]
    fields = {"sequences": 1, "prefill_tokens": 0, "decode_tokens": 0, "context_tokens": 0, "kv_tokens": 0, **tokens}
    cluster.claim(worker, f"{name}-{len(worker.claims)}", Claim(**fields))


def chosen(cluster: Cluster, work: Work = WORK, **values: frozenset[int]) -> str | None:
    placement = place(cluster, MODEL, work, **values)
    return placement.worker.worker_id if placement else None


# -- the formula


def test_the_predicted_wait_is_the_formula_of_the_module_s_head() -> None:
    """Every term by hand."""
    cluster = cluster_of(view(curves=curves(t0_s=0.01, prefill_s=1e-4, decode_s=1e-3, context_s=1e-6)))
    own(cluster, "w", sequences=2, prefill_tokens=300, decode_tokens=60, context_tokens=1000)
    work = Work(prompt_tokens=100, output_tokens=50, num_sequences=2)
    wait_s = predicted_wait_s(cluster.table[:, cluster.columns_of(MODEL)], work)
    prefill_s = 1e-4 * (300 + 100)
    own_s = 50 * (0.01 + 1e-3 * 2 + 1e-6 * (100 + 25))
    shared_s = min(60 / 2, 50) * (1e-3 * 2 + 1e-6 * 1000)
    assert wait_s[0] == pytest.approx(prefill_s + own_s + shared_s + 2e-6, rel=1e-12)


LOAD = st.tuples(st.integers(0, 20), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 50_000))


@thorough
@given(LOAD, LOAD, st.integers(1, 4000), st.integers(1, 1000))
def test_more_load_is_never_less_wait(load: tuple[int, ...], more: tuple[int, ...], prompt: int, output: int) -> None:
    """More prompt to compute, more context: the wait does not fall; a bigger newcomer waits longer everywhere."""
    table = np.zeros((len(Row), 2))
    table[Row.T0_S : Row.T_CONTEXT_S + 1] = np.array([[0.01], [1e-4], [1e-3], [1e-6]])
    sequences, prefill, decode, context = load
    for column, extra in [(0, (0, 0, 0, 0)), (1, more)]:
        table[Row.SEQUENCES, column] = sequences
        table[Row.DECODE, column] = decode
        table[Row.PREFILL, column] = prefill + extra[1]
        table[Row.CONTEXT, column] = context + extra[3]
    wait_s = predicted_wait_s(table, Work(prompt_tokens=prompt, output_tokens=output))
    assert wait_s[0] <= wait_s[1]
    assert (predicted_wait_s(table, Work(prompt_tokens=prompt + 1, output_tokens=output + 1)) > wait_s).all()


# -- the choice


def test_the_shortest_wait_wins() -> None:
    """The one with less to compute, and the faster one, whatever their ids."""
    cluster = cluster_of(view("a"), view("b"))
    own(cluster, "a", prefill_tokens=1000, decode_tokens=100)
    assert "b" == chosen(cluster)
    assert "b" == chosen(cluster_of(view("a", curves=curves(t0_s=0.02)), view("b", curves=curves(t0_s=0.01))))


def test_a_busy_fast_worker_can_beat_an_idle_slow_one() -> None:
    """Seconds are compared, not counts."""
    cluster = cluster_of(view("fast", curves=curves(t0_s=0.001)), view("slow", curves=curves(t0_s=0.1)))
    own(cluster, "fast", decode_tokens=50)
    assert "fast" == chosen(cluster)


def test_ties_fall_to_fewer_sequences_then_to_the_lower_id() -> None:
    """Whatever the order in which the workers came."""
    cluster = cluster_of(view("c"), view("a"), view("b"))
    assert "a" == chosen(cluster)
    own(cluster, "a")
    assert "b" == chosen(cluster)


def test_what_was_chosen_from_is_kept() -> None:
    """The reason of a placement: the wait, how many could, how many serve the model."""
    cluster = cluster_of(view("a"), view("b", state=WorkerState.SICK), view("c"), view("d", models=("other",)))
    placement = place(cluster, MODEL, WORK)
    assert placement is not None
    assert (2, 3) == (placement.num_feasible, placement.num_serving)
    assert placement.wait_s > 0


# -- filters


@pytest.mark.parametrize(
    "unfit",
    [
        {"state": WorkerState.SICK},
        {"state": WorkerState.DRAINING},
        {"models": ("other",)},
        {"max_running": 1},
        {"kv_tokens": 1100},
        {"max_sequences": 1},
    ],
    ids=lambda unfit: next(iter(unfit)),
)
def test_no_score_overrides_a_filter(unfit: dict[str, object]) -> None:
    """A worker a thousand times faster is not chosen if it may not be."""
    cluster = cluster_of(view("a", curves=curves(t0_s=1e-5), **unfit), view("z", curves=curves(t0_s=10.0)))
    for name in "az":
        own(cluster, name, kv_tokens=1000)
    assert "z" == chosen(cluster)
    cluster.hold(cluster.workers["z"])
    assert chosen(cluster) is None


def test_foreign_load_takes_room() -> None:
    """What runs there for somebody else counts in sequences and KV."""
    cluster = cluster_of(view(max_sequences=8))
    own(cluster, "w")
    for _ in range(2):
        cluster.update(view(max_sequences=8, num_running=8), 0.0)
    assert chosen(cluster) is None
    for _ in range(2):
        cluster.update(view(kv_used_tokens=9_900), 0.0)
    assert chosen(cluster) is None


def test_an_idle_worker_has_room_for_anything() -> None:
    """A bound may overstate: who fits nowhere would otherwise wait for ever; the engine has the last word."""
    cluster = cluster_of(view(max_sequences=2))
    huge = Work(prompt_tokens=10**6, output_tokens=10**6, num_sequences=64)
    assert "w" == chosen(cluster, huge)
    own(cluster, "w")
    assert chosen(cluster, huge) is None


def test_a_worker_where_it_failed_is_avoided_while_another_is_ready() -> None:
    """Even if the other is full; when no other is left the same one is better than none."""
    cluster = cluster_of(view("a"), view("b", max_running=1))
    avoid = frozenset({cluster.workers["a"].life})
    assert "b" == chosen(cluster, avoid=avoid)
    own(cluster, "b")
    assert chosen(cluster, avoid=avoid) is None
    cluster.hold(cluster.workers["b"])
    assert "a" == chosen(cluster, avoid=avoid)


def test_a_worker_that_came_back_is_not_avoided() -> None:
    """It is another process."""
    cluster = cluster_of(view("a"), view("b"))
    avoid = frozenset({cluster.workers["a"].life})
    cluster.remove("a")
    cluster.update(view("a"), 1.0)
    assert "a" == chosen(cluster, avoid=avoid)


def drawn_view(chance: random.Random, worker_id: str) -> WorkerView:
    return view(
        worker_id,
        state=chance.choice([WorkerState.READY, WorkerState.READY, WorkerState.SICK]),
        models=chance.choice([(MODEL,), (MODEL, "other"), ("other",)]),
        kv_tokens=chance.randrange(3000),
        max_sequences=chance.randrange(1, 7),
        max_running=chance.randrange(1, 5),
        curves=curves(t0_s=chance.choice([0.005, 0.01])),
    )


@thorough
@given(st.integers(0, 2**32))
def test_same_state_same_request_same_placement(seed: int) -> None:
    """However the state came about, and the choice passes every filter and is the least of those that do."""
    chance = random.Random(seed)
    views = [drawn_view(chance, f"w{number}") for number in range(chance.randrange(1, 10))]
    loads = [
        (chance.choice(views).worker_id, chance.randrange(1, 4), chance.randrange(900))
        for _ in range(chance.randrange(20))
    ]
    choices = []
    for order in (views, chance.sample(views, len(views))):
        cluster = cluster_of(*order)
        for worker_id, sequences, tokens in loads:
            own(cluster, worker_id, sequences=sequences, prefill_tokens=tokens, decode_tokens=tokens, kv_tokens=tokens)
        choices.append(place(cluster, MODEL, WORK))
    first, second = choices
    assert (first is None) == (second is None)
    if first is None or second is None:
        return
    assert (first.worker.worker_id, first.wait_s) == (second.worker.worker_id, second.wait_s)
    chosen_view, claims = first.worker.view, first.worker.claims.values()
    assert chosen_view.state is WorkerState.READY
    assert MODEL in chosen_view.models
    assert len(claims) < chosen_view.max_running
    assert not claims or sum(c.kv_tokens for c in claims) + WORK.kv_tokens <= chosen_view.kv_tokens
    assert not claims or sum(c.sequences for c in claims) + 1 <= chosen_view.max_sequences
    columns = cluster.table[:, cluster.columns_of(MODEL)]
    assert first.wait_s == min(predicted_wait_s(columns, WORK)[feasible(columns, WORK)])


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
