"""The index of prefixes: first blocks only, least recently used go first, bounded by the worker's KV, gone with it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.prefixes import ROOM_RATIO, Prefixes
from scheduler.core.request import Request
from tests.core_words import MODEL, request, thorough, view
from tests.placement_words import cluster_of


def asking(*blocks: int) -> Request:
    return request(prefix_blocks=blocks)


def hits(prefixes: Prefixes, *blocks: int, columns: int = 16) -> list[int]:
    found = prefixes.hits(asking(*blocks), columns)
    return [] if found is None else found.astype(int).tolist()


def test_first_blocks_count_and_only_those() -> None:
    """A worker that has later blocks without the first has nothing of the prompt."""
    cluster = cluster_of(view("a"), view("b"), view("c"))
    a, b, c = (cluster.workers[name] for name in "abc")
    prefixes = Prefixes()
    prefixes.add(a, asking(1, 2, 3), 300)
    prefixes.add(b, asking(1, 2, 9), 300)
    prefixes.add(c, asking(8, 2, 3), 300)
    found = hits(prefixes, 1, 2, 3, 4)
    assert (3, 2, 0) == (found[a.column], found[b.column], found[c.column])
    assert [] == hits(prefixes, 7, 1)
    assert [] == hits(prefixes)


def test_what_was_not_used_longest_goes_first_and_of_one_prompt_its_end() -> None:
    """Room for five blocks of 100 tokens: two prompts of three."""
    cluster = cluster_of(view(kv_tokens=int(500 / ROOM_RATIO) + 1))
    worker, prefixes = cluster.workers["w"], Prefixes()
    prefixes.add(worker, asking(1, 2, 3), 300)
    prefixes.add(worker, asking(4, 5, 6), 300)
    assert (2, 3) == (hits(prefixes, 1, 2, 3)[worker.column], hits(prefixes, 4, 5, 6)[worker.column])
    prefixes.add(worker, asking(1), 100)
    prefixes.add(worker, asking(7), 100)
    assert (1, 3) == (hits(prefixes, 1, 2, 3)[worker.column], hits(prefixes, 4, 5, 6)[worker.column])


def test_a_worker_that_is_gone_has_nothing() -> None:
    """Nor has the next one in its column."""
    cluster = cluster_of(view("a"), view("b"))
    prefixes = Prefixes()
    for name in "ab":
        prefixes.add(cluster.workers[name], asking(1, 2), 200)
    prefixes.forget(cluster.workers["a"])
    found = hits(prefixes, 1, 2)
    assert (0, 2) == (found[cluster.workers["a"].column], found[cluster.workers["b"].column])
    prefixes.forget(cluster.workers["b"])
    prefixes.forget(cluster.workers["b"])
    assert ([], 0) == (hits(prefixes, 1, 2), len(prefixes))


def test_blocks_are_bounded_whatever_the_room() -> None:
    """Tiny prompts of many blocks cannot fill memory."""
    cluster = cluster_of(view(kv_tokens=10**9))
    prefixes = Prefixes(max_blocks=10)
    for number in range(100):
        prefixes.add(cluster.workers["w"], asking(number), 1)
    assert 10 == len(prefixes)


@pytest.mark.parametrize("num_workers", [3, 70])
@thorough
@given(seed=st.integers(0, 2**32))
def test_hits_are_those_of_a_walk_over_each_worker(num_workers: int, seed: int) -> None:
    """Against a plain model: a list of blocks per worker, most recently used last."""
    chance = random.Random(seed)
    cluster = cluster_of(*(view(f"w{number}", kv_tokens=chance.choice([300, 2000])) for number in range(num_workers)))
    prefixes, plain = Prefixes(), {name: list[int]() for name in cluster.workers}
    prompts = [[chance.randrange(3) * 1000 + depth for depth in range(chance.randrange(1, 8))] for _ in range(20)]
    for _ in range(60):
        worker = cluster.workers[chance.choice(list(cluster.workers))]
        blocks, kept = chance.choice(prompts), plain[worker.worker_id]
        prefixes.add(worker, asking(*blocks), 100 * len(blocks))
        for block in reversed(blocks):
            if block in kept:
                kept.remove(block)
            kept.append(block)
        del kept[: max(len(kept) - int(ROOM_RATIO * worker.view.kv_tokens) // 100, 0)]
    for blocks in prompts:
        found = prefixes.hits(asking(*blocks), cluster.table.shape[1])
        for worker in cluster.workers.values():
            kept = plain[worker.worker_id]
            expected = next((depth for depth, block in enumerate(blocks) if block not in kept), len(blocks))
            assert expected == (0 if found is None else found[worker.column])


def test_a_new_prompt_costs_least_where_the_oldest_blocks_would_go() -> None:
    """Nothing where there is room; and only among the workers that serve its model."""
    cluster = cluster_of(*(view(name, kv_tokens=100) for name in "abc"), view("d"))
    prefixes, serves = Prefixes(), cluster.serving(MODEL)
    assert 0 == len(prefixes.evicted_ratio(serves))
    for number, name in enumerate("abcabd"):
        prefixes.add(cluster.workers[name], asking(10 * number, 10 * number + 1), 200)
    found = prefixes.evicted_ratio(serves)
    of = {name: found[cluster.workers[name].column] for name in "abcd"}
    assert 0.0 == of["d"] < of["c"] < of["a"] < of["b"] < 1.0
    serves[cluster.workers["d"].column] = False
    without = prefixes.evicted_ratio(serves)
    assert 0.0 == without[cluster.workers["c"].column]
    prefixes.forget(cluster.workers["a"])
    after = prefixes.evicted_ratio(serves)
    assert 0.0 == after[cluster.workers["a"].column]
