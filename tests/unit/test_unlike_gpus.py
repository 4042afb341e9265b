"""Unlike GPUs: work goes where its marginal joules × price + delay are lowest, on cases worked out by hand.

``scheduler.core.score`` holds the formula; curves are the catalogue's, or made up to be told apart easily.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.catalogue import load_catalogue
from scheduler.core.cluster import Cluster
from scheduler.core.request import DEFAULT_SLO
from scheduler.core.score import PlacementRules, Work
from scheduler.core.table import STEP_PROMPT_TOKENS
from tests.core_words import request, thorough, view
from tests.placement_words import chosen, cluster_of, own
from workers.step_curves import StepCurves

CATALOGUE = load_catalogue()
H100, B200 = (CATALOGUE.engine(gpu, "llama-3.1-8b").curves for gpu in ("H100", "B200"))
DELAY_RATIO, PACE_RATIO = 1e-5, 0.1


def made_up(*, prefill_joules: float, decode_joules: float) -> StepCurves:
    """As fast as any other, and nothing idle."""
    return StepCurves(
        time_s=(0.01, 1e-5, 1e-5, 0.0), energy_joules=(1.0, prefill_joules, decode_joules, 0.0), idle_watts=0.0,
        source="windows",
    )  # fmt: skip


def two(a: StepCurves, b: StepCurves, *, zones: tuple[str, str] = ("a", "b")) -> Cluster:
    """Two empty workers, each in a zone of its own."""
    words = {"kv_tokens": 10**6, "max_sequences": 512, "max_running": 512}
    return cluster_of(view("a", curves=a, zone=zones[0], **words), view("b", curves=b, zone=zones[1], **words))


def rules(a: float, b: float | None = None) -> PlacementRules:
    """Prices of a joule in the zones of a and b."""
    prices = {"a": a, "b": a if b is None else b}
    return PlacementRules(delay_ratio=DELAY_RATIO, pace_ratio=PACE_RATIO, nano_per_joule=prices)


def joules(curves: StepCurves, work: Work, *, num_running: int = 0) -> float:
    """What the newcomer adds beyond idling, by hand."""
    fixed, prefill, decode, _ = (
        joules - curves.idle_watts * time_s for joules, time_s in zip(curves.energy_joules, curves.time_s, strict=True)
    )
    return prefill * work.prompt_tokens + work.output_tokens * (decode + fixed / (num_running + 1))


def delay_nano(curves: StepCurves, work: Work, *, num_running: int = 0) -> float:
    """What its delay and its neighbours' cost within the targets, by hand."""
    t0_s, prefill_s, decode_s, _ = curves.time_s
    step_s, num_gaps = t0_s + decode_s * num_running, work.output_tokens - 1
    first_s = work.prompt_tokens * (prefill_s + step_s / STEP_PROMPT_TOKENS) + step_s
    pace_s = step_s + decode_s + decode_s * num_running
    return DELAY_RATIO * DEFAULT_SLO.value_nano_per_s * (first_s + PACE_RATIO * num_gaps * pace_s)


def cost(curves: StepCurves, work: Work, price: float, *, num_running: int = 0) -> float:
    return delay_nano(curves, work, num_running=num_running) + price * joules(curves, work, num_running=num_running)


# -- prompts to one, answers to the other


FOR_PROMPTS = made_up(prefill_joules=0.01, decode_joules=0.30)
FOR_ANSWERS = made_up(prefill_joules=0.02, decode_joules=0.10)


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens", "worker"),
    [(4000, 20, "a"), (200, 400, "b"), (2000, 99, "a"), (2000, 101, "b")],
)
def test_prompts_and_answers_go_where_each_is_cheap(prompt_tokens: int, output_tokens: int, worker: str) -> None:
    """By hand: b takes 10 mJ more a prompt token and 200 mJ less an output token, so that it is the better one from
    one output token for 20 prompt tokens on: 100 for 2,000."""
    work = Work(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    assert worker == chosen(two(FOR_PROMPTS, FOR_ANSWERS), request(), work, rules=rules(40.0))


@thorough
@given(st.integers(1, 6000), st.integers(1, 900))
def test_the_boundary_is_where_the_joules_are_equal(prompt_tokens: int, output_tokens: int) -> None:
    """Wherever the difference is worth a millionth of the cost."""
    work = Work(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    difference = 0.01 * prompt_tokens - 0.2 * output_tokens
    if abs(difference) > 1e-4 * joules(FOR_PROMPTS, work):
        expected = "a" if difference > 0 else "b"
        assert expected == chosen(two(FOR_PROMPTS, FOR_ANSWERS), request(), work, rules=rules(40.0))


# -- B200 and H100 by the catalogue


CHAT = Work(prompt_tokens=1200, output_tokens=200)
CODE = Work(prompt_tokens=2000, output_tokens=28)


def test_joules_of_a_newcomer_by_hand() -> None:
    """Beyond 119 and 160 W of idling: 2.368 and 2.250 J a step, 17.7 and 11.3 mJ a prompt token, 55.9 and 39.5 mJ a
    sequence and step."""
    assert 1200 * 0.0177325 + 200 * (0.0558566 + 2.368352) == pytest.approx(joules(H100, CHAT), rel=1e-5)
    assert 1200 * 0.011312 + 200 * (0.0394611 + 2.249578) == pytest.approx(joules(B200, CHAT), rel=1e-5)


@pytest.mark.parametrize("work", [CHAT, CODE], ids=["chat", "code"])
def test_of_two_empty_engines_the_b200_takes_it(work: Work) -> None:
    """Fewer joules and less delay, at any price above 0."""
    for price in (0.0, 1.0, 40.0, 1000.0):
        assert "b" == chosen(two(H100, B200), request(), work, rules=rules(price))


def test_a_loaded_h100_beats_an_empty_b200() -> None:
    """By hand, chat at 40 · 10⁻⁹ a joule: the step is paid there already. With nothing said of joules it is slower."""
    cluster = two(H100, B200)
    own(cluster, "a", sequences=50, decode_tokens=50 * 100)
    alone, among = joules(B200, CHAT), joules(H100, CHAT, num_running=50)
    assert (471.4, 41.7) == pytest.approx((alone, among), rel=1e-3)
    assert "a" == chosen(cluster, request(), CHAT, rules=rules(40.0))
    assert "b" == chosen(cluster, request(), CHAT, rules=rules(0.0))


@pytest.mark.parametrize("num_running", [0, 5, 50])
@pytest.mark.parametrize("work", [CHAT, CODE], ids=["chat", "code"])
def test_a_dearer_zone_sends_work_away_from_where_the_costs_cross(work: Work, num_running: int) -> None:
    """The price in the B200's zone at which both cost the same, from the formula: just below it goes there, just above
    to the H100 in the cheap one."""
    price = 40.0
    cluster = two(H100, B200)
    own(cluster, "a", sequences=num_running, decode_tokens=num_running * 100)
    own(cluster, "b", sequences=num_running, decode_tokens=num_running * 100)
    ours = cost(H100, work, price, num_running=num_running)
    crossing = (ours - delay_nano(B200, work, num_running=num_running)) / joules(B200, work, num_running=num_running)
    assert crossing > price
    assert "b" == chosen(cluster, request(), work, rules=rules(price, 0.999 * crossing))
    assert "a" == chosen(cluster, request(), work, rules=rules(price, 1.001 * crossing))


def test_a_frugal_slow_gpu_is_worth_its_delay_from_some_price_on() -> None:
    """By hand: three times the step, half the joules."""
    slow = StepCurves(
        time_s=tuple(3 * each for each in H100.time_s), energy_joules=tuple(each / 2 for each in H100.energy_joules),
        idle_watts=0.0, source="windows",
    )  # type: ignore[arg-type]  # fmt: skip
    later = delay_nano(slow, CHAT) - delay_nano(H100, CHAT)
    crossing = later / (joules(H100, CHAT) - joules(slow, CHAT))
    assert crossing > 0
    assert "a" == chosen(two(H100, slow), request(), CHAT, rules=rules(0.999 * crossing))
    assert "b" == chosen(two(H100, slow), request(), CHAT, rules=rules(1.001 * crossing))


def test_who_is_paid_for_taking_energy_takes_more_of_it_and_nobody_is_late_for_it() -> None:
    """At −40 · 10⁻⁹ a joule the H100 earns more than its delay costs; its own lateness it does not."""
    cluster = two(H100, B200)
    assert cost(H100, CHAT, -40.0) < cost(B200, CHAT, -40.0)
    assert "a" == chosen(cluster, request(), CHAT, rules=rules(-40.0))
    own(cluster, "a", prefill_tokens=100_000)  # 3 s of prompts are before it
    assert "b" == chosen(cluster, request(), CHAT, rules=rules(-40.0))


def test_below_nothing_work_spreads_as_it_packs_above() -> None:
    """The same two H100s, one of them loaded: an empty one takes the whole of e0."""
    cluster = two(H100, H100)
    own(cluster, "a", sequences=20, decode_tokens=20 * 100)
    assert "a" == chosen(cluster, request(), CHAT, rules=rules(40.0))
    assert "b" == chosen(cluster, request(), CHAT, rules=rules(-40.0))


def test_a_gpu_that_nobody_measured_is_not_chosen_for_its_joules() -> None:
    """It counts as its whole board power; where joules cost nothing its times decide."""
    unknown = StepCurves(time_s=B200.time_s, energy_joules=(0.0, 0.0, 0.0, 0.0), idle_watts=0.0)
    assert "a" == chosen(two(H100, unknown), request(), CHAT, rules=rules(40.0))
    assert "b" == chosen(two(H100, unknown), request(), CHAT, rules=rules(0.0))
