"""The score: every term by hand, unlike GPUs by their own curves, affinity that ends, prices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.cluster import Cluster
from scheduler.core.placement import target_s
from scheduler.core.prefixes import Prefixes
from scheduler.core.request import Request, Slo
from scheduler.core.score import TERMS, Ask, PlacementRules, Prices, Work, cached_tokens_of, score
from scheduler.core.slack import UNDERWAY, Promise
from scheduler.core.table import STEP_PROMPT_TOKENS, Floats
from tests.core_words import curves, request, thorough, view
from tests.placement_words import chosen, cluster_of, own

VALUE = 1e9
SAME_PRICES = Prices()
RULES = PlacementRules(delay_ratio=0.1, pace_ratio=0.2, reuse_ratio=0.3)


def terms(
    cluster: Cluster,
    asked: Request,
    work: Work,
    *,
    hits: int = 0,
    now_s: float = 0.0,
    prices: Prices = SAME_PRICES,
) -> dict[str, float]:
    """Of the worker "w"."""
    cluster.refresh(now_s)
    table, column = cluster.table, cluster.workers["w"].column
    size = table.shape[1]
    known = cached_tokens_of(asked, work, np.full(size, float(hits)) if hits else None)
    ask = Ask.of(asked, work, due_in_s=asked.arrival_s - now_s + target_s(cluster, asked, work), rules=RULES)
    found, scores = np.zeros((len(TERMS), size), dtype=np.float32), np.zeros(size)
    nobody_is_out, missed = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    score(table, nobody_is_out, tuple(ask), known, *prices, found, scores, missed)
    assert scores[column] == pytest.approx(found[:, column].sum())
    return dict(zip(TERMS, found[:, column].tolist(), strict=True))


def everywhere(value: float) -> Floats:
    return np.full(16, value)


def test_every_term_is_the_formula_of_the_module_s_head() -> None:
    """By hand: two run there, one of them decodes, 3,000 prompt tokens are before it, half of its own are cached."""
    cluster = cluster_of(
        view(kv_tokens=10**6, curves=curves(t0_s=0.01, prefill_s=1e-4, decode_s=1e-3, context_s=1e-6), num_gpus=2)
    )
    own(cluster, "w", promise=Promise(UNDERWAY, 1.0, 6.0, VALUE), decode_tokens=50, context_tokens=1000)
    own(cluster, "w", promise=Promise(rank=1), prefill_tokens=3000)
    asked = request(prefix_blocks=(1, 2), slo=Slo(ttft_s=0.2, ttft_ratio=1.0, tpot_s=0.01, value_nano_per_s=VALUE))
    found = terms(
        cluster,
        asked,
        Work(prompt_tokens=4000, output_tokens=20, num_sequences=2),
        hits=1,
        now_s=0.5,
        prices=Prices(everywhere(3.0), everywhere(0.5)),
    )
    step_s = 0.01 + 1e-3 * 2 + 1e-6 * 1000
    added_s = 1e-3 * 2 + 1e-6 * 2 * (4000 + 10)
    first_s = (3000 + 2000) * (1e-4 + step_s / STEP_PROMPT_TOKENS) + step_s
    decoding_s = 19 * (step_s + added_s)
    target_s = 0.01 * 2 + 1e-4 * 4000  # alone, in two steps: more than 0.2 s
    slack_s = 1.0 - 0.5 - 6 * step_s - 1e-4 * 3000
    slowdown = 1e-4 * 2000 + 6 * added_s
    small = 0.1 * VALUE
    expected = {
        "late": VALUE * (0.5 + first_s - target_s + decoding_s - 0.01 * 19),
        "slows": VALUE * max(slowdown - slack_s, 0.0),
        "wait": small * (first_s - 1e-4 * 2000),
        "prefill": small * 1e-4 * 4000,
        "prefix": -small * 1e-4 * 2000,
        "evicts": small * 0.3 * 0.5 * 1e-4 * 2000,
        "decode": small * 0.2 * (decoding_s + 19 * 1e-3 * 2),
        "gpu": 3.0 * (1e-4 * 2000 + 20 * added_s),
    }
    assert expected == pytest.approx(found)
    assert slack_s > 0


def test_who_starts_an_engine_pays_for_its_steps() -> None:
    """On a busy one they are paid for already."""
    asked, work = request(), Work(prompt_tokens=100, output_tokens=50)
    idle, busy = cluster_of(view()), cluster_of(view())
    own(busy, "w")
    base_s = 0.02  # of the prior curve
    assert terms(idle, asked, work, prices=Prices(everywhere(1.0)))["gpu"] == pytest.approx(
        terms(busy, asked, work, prices=Prices(everywhere(1.0)))["gpu"] + 50 * base_s
    )


def test_within_its_targets_nothing_is_late() -> None:
    """A first token in time at the promised pace costs only its delay."""
    found = terms(cluster_of(view()), request(), Work(prompt_tokens=100, output_tokens=50))
    assert (0.0, 0.0) == (found["late"], found["slows"])
    assert found["wait"] > 0
    assert found["prefix"] == 0.0


def test_whoever_generates_nothing_has_no_pace() -> None:
    """Embeddings: only the prompt counts."""
    found = terms(cluster_of(view(curves=curves(t0_s=9.0))), request(), Work(prompt_tokens=100, output_tokens=0))
    assert 0.0 == found["decode"]


LOAD = st.tuples(st.integers(0, 20), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 50_000))


@thorough
@given(LOAD, LOAD, st.integers(1, 4000), st.integers(1, 1000))
def test_more_load_is_never_cheaper(load: tuple[int, ...], more: tuple[int, ...], prompt: int, output: int) -> None:
    """More sequences, prompts, outputs to come or context: no term but the prefix falls."""
    work, costs = Work(prompt_tokens=prompt, output_tokens=output), []
    for sequences, prefill, decode, context in (load, tuple(a + b for a, b in zip(load, more, strict=True))):
        cluster = cluster_of(view(curves=curves(context_s=1e-6)))
        own(cluster, "w", sequences=sequences, prefill_tokens=prefill, decode_tokens=decode, context_tokens=context)
        costs.append(terms(cluster, request(), work))
    light, heavy = costs
    assert all(light[term] <= heavy[term] + 1e-6 for term in TERMS if term not in ("prefix", "gpu")), costs


# -- what it leads to


def test_the_faster_or_emptier_worker_is_cheaper() -> None:
    """The one with less to compute, and the faster one, whatever their ids."""
    cluster = cluster_of(view("a"), view("b"))
    own(cluster, "a", prefill_tokens=1000, decode_tokens=100)
    assert "b" == chosen(cluster)
    assert "b" == chosen(cluster_of(view("a", curves=curves(t0_s=0.02)), view("b", curves=curves(t0_s=0.01))))


def test_a_busy_fast_worker_can_beat_an_idle_slow_one() -> None:
    """Seconds are compared, not counts."""
    cluster = cluster_of(view("fast", curves=curves(t0_s=0.001)), view("slow", curves=curves(t0_s=0.04)))
    own(cluster, "fast", decode_tokens=50)
    assert "fast" == chosen(cluster)


def test_affinity_holds_until_waiting_costs_more_than_computing() -> None:
    """A long prefix is worth a queue, but not one that breaks the target."""
    fast = curves(prefill_s=1e-4)
    cluster = cluster_of(view("a", kv_tokens=10**6, curves=fast), view("b", kv_tokens=10**6, curves=fast))
    asked, work, prefixes = request(prefix_blocks=(1, 2, 3)), Work(prompt_tokens=3000, output_tokens=10), Prefixes()
    prefixes.add(cluster.workers["b"], asked, 3000)
    assert "a" == chosen(cluster, request(), work)
    assert "b" == chosen(cluster, asked, work, prefixes=prefixes)
    own(cluster, "b", prefill_tokens=2000)
    assert "b" == chosen(cluster, asked, work, prefixes=prefixes)
    own(cluster, "b", prefill_tokens=40_000)
    assert "a" == chosen(cluster, asked, work, prefixes=prefixes)


def test_where_gpus_have_prices_the_cheaper_of_equals_is_taken() -> None:
    """By zone."""
    cluster = cluster_of(view("a", zone="dear"), view("b", zone="cheap"))
    prices = {"dear": 2e9, "cheap": 1e9}
    assert "a" == chosen(cluster)
    assert "b" == chosen(cluster, rules=PlacementRules(gpu_nano_per_s=prices))
