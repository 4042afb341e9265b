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
from workers.step_curves import StepCurves

VALUE = 1e9
SAME_PRICES = Prices()
RULES = PlacementRules(delay_ratio=0.1, pace_ratio=0.2, reuse_ratio=0.3)


FULL_CURVES = StepCurves(
    time_s=(0.01, 1e-4, 1e-3, 1e-6), energy_joules=(3.0, 0.03, 0.4, 3e-4), idle_watts=100.0, source="windows"
)


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
    cluster = cluster_of(view(kv_tokens=10**6, curves=FULL_CURVES, num_gpus=2))
    own(cluster, "w", promise=Promise(UNDERWAY, 1.0, 6.0, VALUE), decode_tokens=50, context_tokens=1000)
    own(cluster, "w", promise=Promise(rank=1), prefill_tokens=3000)
    asked = request(prefix_blocks=(1, 2), slo=Slo(ttft_s=0.2, ttft_ratio=1.0, tpot_s=0.01, value_nano_per_s=VALUE))
    found = terms(
        cluster,
        asked,
        Work(prompt_tokens=4000, output_tokens=20, num_sequences=2),
        hits=1,
        now_s=0.5,
        prices=Prices(everywhere(3.0), everywhere(7.0), everywhere(0.5)),
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
        # At 100 W idle of the four joules 1, 0.01, 0.1 and 1e-4 would be drawn without it.
        "energy": 7.0 * (0.02 * 2000 + 40 * (0.3 + 2e-4 * (4000 + 10) + 2.0 / 4)),
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


def test_the_fuller_of_two_engines_takes_fewer_joules() -> None:
    """By hand: 50 tokens share the 2 J that a step takes at least with nobody, or with nine others."""
    asked, work = request(), Work(prompt_tokens=100, output_tokens=50)
    idle, busy = cluster_of(view(curves=FULL_CURVES)), cluster_of(view(curves=FULL_CURVES))
    for _ in range(9):
        own(busy, "w")
    prices = Prices(nano_per_joule=everywhere(1.0))
    alone, among = (terms(cluster, asked, work, prices=prices)["energy"] for cluster in (idle, busy))
    own_joules = 0.02 * 100 + 50 * (0.3 + 2e-4 * (100 + 25))
    assert [own_joules + 50 * 2.0, own_joules + 50 * 2.0 / 10] == pytest.approx([alone, among])


def test_a_cached_prompt_takes_no_joules() -> None:
    prices = Prices(nano_per_joule=everywhere(1.0))
    cluster, asked, work = (
        cluster_of(view(curves=FULL_CURVES)),
        request(prefix_blocks=(1, 2)),
        Work(prompt_tokens=100, output_tokens=50),
    )
    whole, half = (terms(cluster, asked, work, hits=hits, prices=prices)["energy"] for hits in (0, 1))
    assert 0.02 * 50 == pytest.approx(whole - half, rel=1e-4)


def test_no_engine_takes_less_than_it_draws_idle() -> None:
    """A fit that says so is of a device that idles for more: the difference is nothing, not a gain."""
    loud = StepCurves(
        time_s=(0.01, 1e-4, 1e-3, 0.0), energy_joules=(0.5, 0.001, 0.01, 0.0), idle_watts=100.0, source="windows"
    )
    found = terms(
        cluster_of(view(curves=loud)), request(), Work(prompt_tokens=9, output_tokens=9),
        prices=Prices(nano_per_joule=everywhere(1.0)),
    )  # fmt: skip
    assert 0.0 == found["energy"]


def test_where_prompts_keep_coming_its_tokens_come_slower() -> None:
    """1,000 tokens a second at 0.1 ms are a tenth of the time: nine steps become ten."""
    quiet, busy = (cluster_of(view(kv_tokens=10**6, curves=FULL_CURVES)) for _ in range(2))
    for number in range(1_000):
        busy.workers["w"].prompts.add(number / 10, 100)
    asked, work = request(arrival_s=100.0), Work(prompt_tokens=100, output_tokens=20)
    before, after = (terms(each, asked, work, now_s=100.0) for each in (quiet, busy))
    assert after["decode"] / before["decode"] == pytest.approx(1 / 0.9, rel=0.01)
    assert before["wait"] == after["wait"]


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
    assert all(light[term] <= heavy[term] + 1e-6 for term in TERMS if term not in ("prefix", "gpu", "energy")), costs


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


def test_where_joules_have_prices_the_fuller_engine_is_taken_while_nobody_is_late() -> None:
    """Nobody says pack or spread: a joule costs more than a delay within the target, and less than a missed one."""
    cluster = cluster_of(view("a", curves=FULL_CURVES), view("b", curves=FULL_CURVES))
    work = Work(prompt_tokens=100, output_tokens=50)
    own(cluster, "b", decode_tokens=50)
    rules = PlacementRules(delay_ratio=1e-6, nano_per_joule={"local": 40.0})
    assert "a" == chosen(cluster, work=work)
    assert "b" == chosen(cluster, work=work, rules=rules)
    own(cluster, "b", sequences=40, decode_tokens=40 * 50)  # 41 · 1 ms a step and more: 50 ms a token are promised
    assert "a" == chosen(cluster, work=work, rules=rules)


def test_where_joules_have_prices_the_cheaper_zone_is_taken() -> None:
    """Also where a joule costs less than nothing."""
    cluster = cluster_of(view("a", zone="dear", curves=FULL_CURVES), view("b", zone="cheap", curves=FULL_CURVES))
    for dear, cheap in ((40.0, 20.0), (1.0, -5.0)):
        rules = PlacementRules(nano_per_joule={"dear": dear, "cheap": cheap})
        assert "b" == chosen(cluster, rules=rules)
