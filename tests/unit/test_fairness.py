"""Turns: the least counter is next, nothing hides, silence earns nothing, and what is refunded cancels exactly."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.fairness import MAX_SEATS, NANO, Fairness, WorkWeights
from scheduler.core.request import Request
from scheduler.core.seats import LineKey
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
    lane = fairness._bands[band].lanes.get(LineKey.of(request()))
    first = None if lane is None else lane.ranking.first()
    return None if first is None else first.account.tenant


def counter(fairness: Fairness, tenant: str, band: int = 1) -> float | None:
    return fairness.counter_gpu_s(request(tenant=tenant, band=band))


def known(fairness: Fairness) -> set[str]:
    """Tenants whose account is kept."""
    return {tenant for band in fairness._bands for tenant in band.accounts}


def test_a_start_is_charged_prompt_cached_part_and_expected_output() -> None:
    """Each kind of token at its own constant weight."""
    fairness = fair()
    start(fairness, "a", "x", 10, 5, cached=4)
    assert 6 + 4 * 0.25 + 5 * 2 == counter(fairness, "x")


def test_a_model_without_weights_has_those_of_the_default() -> None:
    """Prefill 32.5 µs a token, decode 194 µs."""
    fairness = Fairness()
    start(fairness, "a", "x", 1_000, 100)
    assert pytest.approx(1_000 * 3.25e-5 + 100 * 1.94e-4) == counter(fairness, "x")


def test_weights_divide_what_is_charged() -> None:
    """Twice the weight, half the charge: twice the share."""
    fairness = fair({"x": 4.0})
    start(fairness, "a", "x", 8)
    start(fairness, "b", "y", 8)
    assert (2.0, 8.0) == (counter(fairness, "x"), counter(fairness, "y"))


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
    assert (7.0, "y") == (counter(fairness, "x"), turn(fairness))


def test_progress_takes_nothing_back_of_the_output_that_is_expected() -> None:
    """The first token of a long answer does not make it short; but the prompt is what the engine counted."""
    fairness = fair()
    start(fairness, "a", "x", 10, 5)
    fairness.true_up("a", prompt_tokens=8, cached_tokens=8, output_tokens=1)
    assert 8 * 0.25 + 5 * 2 == counter(fairness, "x")


def test_the_end_corrects_to_what_was_executed() -> None:
    """What was expected and not written comes back, and the tenant's turn with it."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 1, 10)
    start(fairness, "b", "y", 1, 3)
    assert "y" == turn(fairness)
    fairness.close("a", input_tokens=1, output_tokens=2)
    assert (5.0, "x") == (counter(fairness, "x"), turn(fairness))


def test_what_executed_nothing_costs_nothing() -> None:
    """A lost or preempted attempt is refunded to the nanosecond, whatever was reported between."""
    fairness = fair({"x": 3.0})
    enter(fairness, "x")
    start(fairness, "a", "x", 7, 11)
    fairness.true_up("a", prompt_tokens=5, cached_tokens=1, output_tokens=50)
    fairness.close("a")
    assert 0.0 == counter(fairness, "x")
    fairness.close("a")
    fairness.true_up("a", prompt_tokens=5, cached_tokens=1, output_tokens=50)
    assert 0.0 == counter(fairness, "x")


def test_silence_earns_nothing() -> None:
    """Who comes back is lifted to the counter of the last turn, however little it had before."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 100)
    start(fairness, "b", "y", 80)
    start(fairness, "c", "y", 50)
    enter(fairness, "new")
    assert 80.0 == counter(fairness, "new")


def test_silence_costs_nothing_either() -> None:
    """Who comes back with a higher counter keeps it."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 100)
    fairness.leave(request(tenant="x"))
    enter(fairness, "x")
    assert (100.0, "y") == (counter(fairness, "x"), turn(fairness))


def test_a_lifted_tenant_wins_ties_once() -> None:
    """And of two that were lifted to the same counter the earlier goes first."""
    fairness = fair()
    enter(fairness, "old")
    start(fairness, "a", "old", 0)
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
    assert (900.0, 1_000.0) == (counter(fairness, "new"), counter(fairness, "alone"))


def test_who_had_nothing_goes_before_who_just_had_much() -> None:
    """Though that one waits alone: a newcomer is not lifted above the last turn."""
    fairness = fair()
    start(fairness, "a", "heavy", 100)
    enter(fairness, "heavy", "light")
    assert ("light", 0.0) == (turn(fairness), counter(fairness, "light"))


def test_bands_do_not_know_each_other() -> None:
    """What a tenant had at night in the lowest band is no debt in the highest."""
    fairness = fair()
    enter(fairness, "x", band=2)
    fairness.start("a", request(tenant="x", band=2), prompt_tokens=50, cached_tokens=0, output_tokens=0)
    enter(fairness, "x", band=0)
    assert (50.0, 0.0) == (counter(fairness, "x", band=2), counter(fairness, "x", band=0))
    assert ([("x", 1)], [], [("x", 1)]) == tuple(fairness.waiting(band) for band in range(3))


def test_counting_a_prompt_takes_no_turn() -> None:
    """It asks an engine for a number."""
    fairness = fair()
    fairness.start("a", request(is_counting=True), prompt_tokens=50, cached_tokens=0, output_tokens=0)
    fairness.true_up("a", prompt_tokens=50, cached_tokens=0, output_tokens=0)
    fairness.close("a", input_tokens=50)
    assert 0 == fairness.num_accounts


def test_new_weights_hold_for_what_is_charged_from_then_on() -> None:
    """A reload makes nobody richer for what is over; a weight of 0 is a defect of the caller."""
    fairness = fair()
    start(fairness, "a", "x", 8)
    fairness.reload({"x": 2.0})
    start(fairness, "b", "x", 8)
    assert 12.0 == counter(fairness, "x")
    fairness.close("a", input_tokens=8)
    assert 8.0 == counter(fairness, "x")
    with pytest.raises(AssertionError):
        fairness.reload({"x": 0.0})


def test_who_owes_nothing_is_forgotten() -> None:
    """A tenant whose counter everybody has passed would be lifted anyway; one that owes is kept."""
    fairness = fair()
    enter(fairness, "x", "y")
    start(fairness, "a", "x", 1_000)
    fairness.leave(request(tenant="x"))
    fairness.close("a", input_tokens=1_000)
    assert {"x", "y"} == known(fairness)
    start(fairness, "b", "y", 2_000)
    start(fairness, "b2", "y", 1)
    enter(fairness, "z")
    start(fairness, "c", "z", 1)
    fairness.leave(request(tenant="z"))
    fairness.close("c", input_tokens=1)
    assert {"y", "z"} == known(fairness)


def test_debts_of_the_absent_are_bounded() -> None:
    """A thousand tenants that came once leave as many accounts as may be kept."""
    fairness = fair(max_idle=10)
    enter(fairness, "waits")
    for number in range(1_000):
        start(fairness, "a", f"t{number}", number + 1)
        fairness.close("a", input_tokens=number + 1)
    assert "waits" in known(fairness)
    assert 11 == fairness.num_accounts


EAST = frozenset({"east"})


def line(tenant: str, zones: frozenset[str] | None = None) -> Request:
    """A request of a tenant in one of two lines."""
    return request(tenant=tenant, zones=zones)


def test_who_joins_a_line_is_lifted_to_those_who_wait_there() -> None:
    """Far behind them somebody may wait for the only worker of its zone: that is no head start for a newcomer."""
    fairness = fair()
    for each in (line("slow", EAST), line("fast"), line("fast")):
        fairness.enter(each)
    start(fairness, "a", "fast", 1_000)
    start(fairness, "b", "fast", 1)
    fairness.enter(line("new"))
    fairness.enter(line("newer", EAST))
    assert (1_000.0, 0.0) == (fairness.counter_gpu_s(line("new")), fairness.counter_gpu_s(line("newer", EAST)))


def test_service_counts_in_every_line_of_the_model() -> None:
    """Whoever is served in one zone is not before those of another by as much."""
    fairness = fair()
    for each in (line("x", EAST), line("x"), line("y", EAST)):
        fairness.enter(each)
    start(fairness, "a", "x", 10)
    assert (10.0, 10.0, 0.0) == tuple(
        fairness.counter_gpu_s(each) for each in (line("x"), line("x", EAST), line("y", EAST))
    )


def test_nobody_gets_rid_of_what_it_owes_by_asking_for_other_zones() -> None:
    """A line of its own begins with its debt; so does one where others wait."""
    fairness = fair()
    for each in (line("x"), line("y"), line("z", EAST)):
        fairness.enter(each)
    start(fairness, "a", "x", 10)
    fairness.enter(line("x", EAST))
    fairness.enter(line("x", frozenset({"west"})))
    assert (10.0, 10.0) == (
        fairness.counter_gpu_s(line("x", EAST)), fairness.counter_gpu_s(line("x", frozenset({"west"})))
    )  # fmt: skip


def test_models_share_a_tenants_counter() -> None:
    """Adapters of one engine are models too: a tenant for each would be no reason to be served as much for each."""
    fairness = fair()
    for each in (request(tenant="x", model="other"), request(tenant="x"), request(tenant="y")):
        fairness.enter(each)
    fairness.start("a", request(tenant="x", model="other"), prompt_tokens=10**6, cached_tokens=0, output_tokens=0)
    assert "y" == turn(fairness)


def test_seats_of_those_who_left_are_given_up() -> None:
    """A tenant that asks for ever other zones and models leaves a few, and keeps its debt."""
    fairness = fair()
    enter(fairness, "peer")
    for number in range(100):
        each = request(tenant="x", zones=frozenset({f"z{number}"}))
        fairness.enter(each)
        fairness.start(f"a{number}", each, prompt_tokens=1, cached_tokens=0, output_tokens=0)
        fairness.leave(each)
        fairness.close(f"a{number}", input_tokens=1)
        other = request(tenant="x", model=f"m{number}")
        fairness.enter(other)
        fairness.leave(other)
    band = fairness._bands[1]
    assert len(band.accounts["x"].seats) <= MAX_SEATS
    assert len(band.lanes) <= MAX_SEATS + 1
    assert fairness.counter_gpu_s(request(tenant="x", zones=frozenset({"z99"}))) == pytest.approx(100.0)


@thorough
@given(st.integers(0, 2**32))
def test_counters_and_turns_hold_against_a_plain_computation(seed: int) -> None:
    """Any mixture of coming, starting, progress and ends: counters are lifts plus charges, the least is first."""
    chance, fairness = random.Random(seed), fair({"b": 2.0, "c": 4.0})
    base: dict[str, int] = {}
    charges: dict[str, tuple[str, int]] = {}
    waiting = dict.fromkeys("abcd", 0)
    closed = dict.fromkeys("abcd", 0)
    floor = 0

    def expected(tenant: str) -> int:
        return base[tenant] + closed[tenant] + sum(ns for owner, ns in charges.values() if owner == tenant)

    for number in range(120):
        tenant = chance.choice("abcd")
        weight = {"b": 2.0, "c": 4.0}.get(tenant, 1.0)
        least = min((expected(each) for each in waiting if waiting[each]), default=None)
        what = chance.random()
        if what < 0.4:
            enter(fairness, tenant)
            if not waiting[tenant]:
                begun = counter(fairness, tenant)
                assert begun is not None
                base[tenant] = round(begun * NANO) - (expected(tenant) - base[tenant] if tenant in base else 0)
                assert expected(tenant) >= min(floor, floor if least is None else least)
            waiting[tenant] += 1
        elif what < 0.7 and waiting[tenant]:
            prompt, output = chance.randrange(1, 9), chance.randrange(9)
            floor = max(floor, expected(tenant))
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
            assert expected(each) == round((counter(fairness, each) or 0.0) * NANO), each
        first = turn(fairness)
        assert (first is None) == (not ready)
        assert first is None or expected(first) == min(map(expected, ready))
    assert sorted((each, num) for each, num in waiting.items() if num) == fairness.waiting(1)
