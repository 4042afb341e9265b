"""Turns: the least counter is next, nothing hides, silence earns nothing, and what is refunded cancels exactly."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.fairness import NANO, Account, Fairness, Ranking, WorkWeights
from tests.core_words import MODEL, request, thorough

ONE = WorkWeights(prefill_gpu_s=1.0, cached_gpu_s=0.25, decode_gpu_s=2.0)
"""Numbers to compute with by hand."""


def fair(weights: dict[str, float] | None = None, **values: int) -> Fairness:
    return Fairness(weights, {MODEL: ONE}, **values)


def enter(fairness: Fairness, *tenants: str, band: int = 1) -> None:
    for tenant in tenants:
        fairness.enter(request(tenant=tenant, band=band))


def start(fairness: Fairness, attempt_id: str, tenant: str, prompt: int, output: int = 0, *, cached: int = 0) -> None:
    fairness.start(attempt_id, request(tenant=tenant), prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)


def turn(fairness: Fairness, band: int = 1) -> str | None:
    """Whose turn it is."""
    first = fairness._bands[band].backlog.first()
    return None if first is None else first.tenant


def test_a_start_is_charged_prompt_cached_part_and_expected_output() -> None:
    """Each kind of token at its own constant weight."""
    fairness = fair()
    start(fairness, "a", "x", 10, 5, cached=4)
    assert 6 + 4 * 0.25 + 5 * 2 == fairness.counter_gpu_s(1, "x")


def test_a_model_without_weights_has_those_of_the_default() -> None:
    """Prefill 32.5 µs a token, decode 194 µs."""
    fairness = Fairness()
    start(fairness, "a", "x", 1_000, 100)
    assert pytest.approx(1_000 * 3.25e-5 + 100 * 1.94e-4) == fairness.counter_gpu_s(1, "x")


def test_weights_divide_what_is_charged() -> None:
    """Twice the weight, half the charge: twice the share."""
    fairness = fair({"x": 4.0})
    start(fairness, "a", "x", 8)
    start(fairness, "b", "y", 8)
    assert (2.0, 8.0) == (fairness.counter_gpu_s(1, "x"), fairness.counter_gpu_s(1, "y"))


def test_the_least_counter_is_next() -> None:
    """Whoever had less of the GPUs."""
    fairness = fair()
    enter(fairness, "x", "y")
    assert "x" == turn(fairness)
    start(fairness, "a", "x", 10)
    assert "y" == turn(fairness)
    start(fairness, "b", "y", 11)
    assert "x" == turn(fairness)


def test_a_long_answer_cannot_hide() -> None:
    """Output beyond what was expected is charged while it is written, not only at its end."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 1, 1)
    start(fairness, "b", "y", 1, 2)
    assert "x" == turn(fairness)
    fairness.true_up("a", prompt_tokens=1, cached_tokens=0, output_tokens=3)
    assert (7.0, "y") == (fairness.counter_gpu_s(1, "x"), turn(fairness))


def test_progress_takes_nothing_back_of_the_output_that_is_expected() -> None:
    """The first token of a long answer does not make it short; but the prompt is what the engine counted."""
    fairness = fair()
    start(fairness, "a", "x", 10, 5)
    fairness.true_up("a", prompt_tokens=8, cached_tokens=8, output_tokens=1)
    assert 8 * 0.25 + 5 * 2 == fairness.counter_gpu_s(1, "x")


def test_the_end_corrects_to_what_was_executed() -> None:
    """What was expected and not written comes back, and the tenant's turn with it."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 1, 10)
    start(fairness, "b", "y", 1, 3)
    assert "y" == turn(fairness)
    fairness.close("a", input_tokens=1, output_tokens=2)
    assert (5.0, "x") == (fairness.counter_gpu_s(1, "x"), turn(fairness))


def test_what_executed_nothing_costs_nothing() -> None:
    """A lost or preempted attempt is refunded to the nanosecond, whatever was reported between."""
    fairness = fair({"x": 3.0})
    enter(fairness, "x")
    start(fairness, "a", "x", 7, 11)
    fairness.true_up("a", prompt_tokens=5, cached_tokens=1, output_tokens=50)
    fairness.close("a")
    assert 0.0 == fairness.counter_gpu_s(1, "x")
    fairness.close("a")
    fairness.true_up("a", prompt_tokens=5, cached_tokens=1, output_tokens=50)
    assert 0.0 == fairness.counter_gpu_s(1, "x")


def test_silence_earns_nothing() -> None:
    """Who comes back is lifted to the least of those that wait, however little it had before."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 100)
    start(fairness, "b", "y", 80)
    enter(fairness, "new")
    assert 80.0 == fairness.counter_gpu_s(1, "new")


def test_silence_costs_nothing_either() -> None:
    """Who comes back with a higher counter keeps it."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 100)
    fairness.leave(request(tenant="x"))
    enter(fairness, "x")
    assert (100.0, "y") == (fairness.counter_gpu_s(1, "x"), turn(fairness))


def test_a_lifted_tenant_wins_ties_once() -> None:
    """And of two that were lifted to the same counter the earlier goes first."""
    fairness = fair()
    enter(fairness, "old")
    start(fairness, "a", "old", 5)
    enter(fairness, "new", "newer")
    assert "new" == turn(fairness)
    start(fairness, "b", "new", 0)
    assert "newer" == turn(fairness)
    start(fairness, "c", "newer", 0)
    assert "old" == turn(fairness)


def test_who_finds_nobody_begins_at_the_floor() -> None:
    """The highest counter that ever had its turn: hours of work alone are no debt to those that come later."""
    fairness = fair()
    for number in range(10):
        start(fairness, str(number), "alone", 100)
    enter(fairness, "new")
    assert (900.0, 1_000.0) == (fairness.counter_gpu_s(1, "new"), fairness.counter_gpu_s(1, "alone"))


def test_bands_do_not_know_each_other() -> None:
    """What a tenant had at night in the lowest band is no debt in the highest."""
    fairness = fair()
    enter(fairness, "x", band=2)
    fairness.start("a", request(tenant="x", band=2), prompt_tokens=50, cached_tokens=0, output_tokens=0)
    enter(fairness, "x", band=0)
    assert (50.0, 0.0) == (fairness.counter_gpu_s(2, "x"), fairness.counter_gpu_s(0, "x"))
    assert ([("x", 1)], [], [("x", 1)]) == tuple(fairness.waiting(band) for band in range(3))


def test_counting_a_prompt_takes_no_turn() -> None:
    """It asks an engine for a number."""
    fairness = fair()
    fairness.start("a", request(is_counting=True), prompt_tokens=50, cached_tokens=0, output_tokens=0)
    fairness.true_up("a", prompt_tokens=50, cached_tokens=0, output_tokens=0)
    fairness.close("a", input_tokens=50)
    assert 0 == len(fairness)


def test_new_weights_hold_for_what_is_charged_from_then_on() -> None:
    """A reload makes nobody richer for what is over; a weight of 0 is a defect of the caller."""
    fairness = fair()
    start(fairness, "a", "x", 8)
    fairness.reload({"x": 2.0})
    start(fairness, "b", "x", 8)
    assert 12.0 == fairness.counter_gpu_s(1, "x")
    fairness.close("a", input_tokens=8)
    assert 8.0 == fairness.counter_gpu_s(1, "x")
    with pytest.raises(AssertionError):
        fairness.reload({"x": 0.0})


def test_who_owes_nothing_is_forgotten() -> None:
    """A tenant whose counter everybody has passed would be lifted anyway; one that owes is kept."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 1_000)
    fairness.leave(request(tenant="x"))
    fairness.close("a", input_tokens=1_000)
    assert {"x", "y"} == {each.tenant for each in fairness.accounts(1)}
    start(fairness, "b", "y", 2_000)
    enter(fairness, "z")
    start(fairness, "c", "z", 1)
    fairness.leave(request(tenant="z"))
    fairness.close("c", input_tokens=1)
    assert {"y", "z"} == {each.tenant for each in fairness.accounts(1)}


def test_debts_of_the_absent_are_bounded() -> None:
    """A thousand tenants that came once leave as many accounts as may be kept, the largest debts."""
    fairness = fair(max_idle=10)
    enter(fairness, "waits")
    for number in range(1_000):
        start(fairness, "a", f"t{number}", number + 1)
        fairness.close("a", input_tokens=number + 1)
    assert {"waits", *(f"t{number}" for number in range(990, 1_000))} == {each.tenant for each in fairness.accounts(1)}


def test_the_same_tenant_waits_once_in_a_ranking() -> None:
    """Twice would be two turns."""
    ranking, account = Ranking(), Account(tenant="x", band=1, weight=1.0, counter=0, activation=1)
    ranking.add(account)
    with pytest.raises(AssertionError, match="ranked already"):
        ranking.add(account)


def test_a_ranking_keeps_no_more_than_what_waits() -> None:
    """Ten thousand corrections leave a short heap, and the right first."""
    ranking = Ranking()
    accounts = [Account(tenant=f"t{n}", band=1, weight=1.0, counter=10**9, activation=n) for n in range(4)]
    for account in accounts:
        ranking.add(account)
    for number in range(10_000):
        accounts[number % 4].counter -= 1 + number % 3
        ranking.fell(accounts[number % 4])
    assert len(ranking._heap) <= 2 * len(ranking) + 17
    assert min(accounts, key=lambda each: each.key) is ranking.first()
    for account in accounts:
        ranking.discard(account)
    assert (None, 0) == (ranking.first(), len(ranking))


@thorough
@given(st.integers(0, 2**32))
def test_counters_and_turns_hold_against_a_plain_computation(seed: int) -> None:
    """Any mixture of coming, starting, progress and ends: counters are lifts plus charges, the least is first."""
    chance, fairness = random.Random(seed), fair({"b": 2.0, "c": 4.0})
    base: dict[str, int] = {}
    charges: dict[str, tuple[str, int]] = {}
    waiting = dict.fromkeys("abcd", 0)
    closed = dict.fromkeys("abcd", 0)

    def counter(tenant: str) -> int:
        return base[tenant] + closed[tenant] + sum(ns for owner, ns in charges.values() if owner == tenant)

    for number in range(120):
        tenant = chance.choice("abcd")
        weight = {"b": 2.0, "c": 4.0}.get(tenant, 1.0)
        least = min((counter(each) for each in waiting if waiting[each]), default=None)
        what = chance.random()
        if what < 0.4:
            enter(fairness, tenant)
            if not waiting[tenant]:
                known = fairness.counter_gpu_s(1, tenant)
                assert known is not None
                base[tenant] = round(known * NANO) - (counter(tenant) - base[tenant] if tenant in base else 0)
                assert least is None or counter(tenant) >= least
            waiting[tenant] += 1
        elif what < 0.7 and waiting[tenant]:
            prompt, output = chance.randrange(1, 9), chance.randrange(9)
            start(fairness, f"a{number}", tenant, prompt, output)
            fairness.leave(request(tenant=tenant))
            waiting[tenant] -= 1
            charges[f"a{number}"] = (tenant, round((prompt + 2.0 * output) * NANO / weight))
        elif charges:
            attempt_id = chance.choice(sorted(charges))
            owner, _ = charges[attempt_id]
            executed = chance.randrange(20)
            weight = {"b": 2.0, "c": 4.0}.get(owner, 1.0)
            fairness.close(attempt_id, output_tokens=executed)
            del charges[attempt_id]
            closed[owner] += round(2.0 * executed * NANO / weight)
        ready = [each for each in waiting if waiting[each]]
        for each in ready:
            assert counter(each) == round((fairness.counter_gpu_s(1, each) or 0.0) * NANO), each
        first = turn(fairness)
        assert (first is None) == (not ready)
        assert first is None or counter(first) == min(map(counter, ready))
    assert sorted((each, num) for each, num in waiting.items() if num) == fairness.waiting(1)
