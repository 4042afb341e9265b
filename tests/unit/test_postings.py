"""Postings: every fact's legs sum to 0 in each unit, a hold comes back whole, and a bill is what was used."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.postings import (
    CACHED,
    CARBON,
    GPU_MICROSECONDS,
    INPUT,
    MILLIJOULES,
    OUTPUT,
    charge_legs,
    differences,
    energy_legs,
    hold_legs,
    void_legs,
    window_legs,
)
from scheduler.accounting.rows import OPERATOR, Leg
from scheduler.core.actions import Payer
from tests.ledger_words import RATES, charge_of, hold_of
from tests.scripted_link import window_of

AMOUNTS = st.integers(0, 10**12)
PARTS = st.integers(-(10**9), 10**9)


def sums(*rows: list[Leg]) -> dict[tuple[str, str], int]:
    """Balances that are not 0."""
    balances: Counter[tuple[str, str]] = Counter()
    for legs in rows:
        for account, unit, amount in legs:
            balances[account, unit] += amount
    return {key: amount for key, amount in balances.items() if amount}


def test_a_hold_draws_its_worst_case() -> None:
    """Tokens in, tokens out, money."""
    assert {
        ("drawn/alpha", INPUT): -100,
        ("held/alpha", INPUT): 100,
        ("drawn/alpha", OUTPUT): -50,
        ("held/alpha", OUTPUT): 50,
        ("drawn/alpha", "EUR"): -7,
        ("held/alpha", "EUR"): 7,
    } == sums(hold_legs(hold_of("a", cost_nano=7, rates=RATES._replace(currency="EUR"))))


@pytest.mark.parametrize("nothing", ["input_tokens", "output_tokens", "cost_nano"])
def test_what_moves_nothing_has_no_leg(nothing: str) -> None:
    """A free request has no money in its row."""
    legs = hold_legs(hold_of("a", **{nothing: 0}))
    assert 4 == len(legs)
    assert all(amount for _, _, amount in legs)


def test_a_charge_uses_of_its_hold_and_gives_back_the_rest() -> None:
    """Nothing stays held; the bill is what was used."""
    hold = hold_of("a", cost_nano=2_000)
    charge = charge_of("a-1", cost_nano=1_500)
    assert {
        ("drawn/alpha", INPUT): -90,
        ("used/alpha", INPUT): 90,
        ("drawn/alpha", CACHED): -30,
        ("used/alpha", CACHED): 30,
        ("drawn/alpha", OUTPUT): -40,
        ("used/alpha", OUTPUT): 40,
        ("drawn/alpha", "USD"): -1_500,
        ("used/alpha", "USD"): 1_500,
    } == sums(hold_legs(hold), charge_legs(charge, hold))


def test_a_charge_without_a_hold_draws_what_was_used() -> None:
    """Of the operator, or where the hold was an earlier control plane's."""
    charge = charge_of("a-1", payer=Payer.OPERATOR, cached_tokens=0)
    assert {
        (f"drawn/{OPERATOR}", INPUT): -90,
        (f"used/{OPERATOR}", INPUT): 90,
        (f"drawn/{OPERATOR}", OUTPUT): -40,
        (f"used/{OPERATOR}", OUTPUT): 40,
    } == sums(charge_legs(charge, None))


@given(held=st.tuples(AMOUNTS, AMOUNTS, AMOUNTS), used=st.tuples(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS))
def test_whatever_was_held_and_used_nothing_is_made_or_lost(held: tuple[int, ...], used: tuple[int, ...]) -> None:
    """More than was held too; a void brings every account back to where it was."""
    hold = hold_of("a", input_tokens=held[0], output_tokens=held[1], cost_nano=held[2])
    charge = charge_of("a-1", input_tokens=used[0], cached_tokens=used[1], output_tokens=used[2], cost_nano=used[3])
    for legs in (hold_legs(hold), void_legs(hold), charge_legs(charge, hold), charge_legs(charge, None)):
        assert {} == differences(legs)
        assert all(amount for _, _, amount in legs)
    assert {} == sums(hold_legs(hold), void_legs(hold))
    after = sums(hold_legs(hold), charge_legs(charge, hold))
    assert sums(charge_legs(charge, None)) == after
    assert not any(account.startswith("held/") for account, _ in after)


def test_energy_moves_from_flight_to_whoever_pays() -> None:
    """Carbon comes with it, from the grid; a cost-plus price has its one difference here."""
    legs = energy_legs("w-0", "alpha", energy_mj=70, gpu_us=8, carbon_ug=3, cost_nano=-2, currency="EUR")
    assert {
        ("in_flight/w-0", MILLIJOULES): -70,
        ("requests/w-0/alpha", MILLIJOULES): 70,
        ("in_flight/w-0", GPU_MICROSECONDS): -8,
        ("requests/w-0/alpha", GPU_MICROSECONDS): 8,
        ("grid/w-0", CARBON): -3,
        ("requests/w-0/alpha", CARBON): 3,
        ("drawn/alpha", "EUR"): 2,
        ("used/alpha", "EUR"): -2,
    } == sums(legs)
    assert {} == differences(legs)
    assert [] == energy_legs("w-0", "alpha", energy_mj=0, gpu_us=0)


def test_a_window_is_spread_over_what_it_says_it_was() -> None:
    """The meter gave all of it."""
    legs = window_legs("w-0", window_of(("a-1", 100, 10), ("b-1", 5, 1)), is_calibration=False)
    assert {
        ("meter/w-0", MILLIJOULES): -178,
        ("idle/w-0", MILLIJOULES): 50,
        ("overhead/w-0", MILLIJOULES): 20,
        ("unattributed/w-0", MILLIJOULES): 3,
        ("in_flight/w-0", MILLIJOULES): 105,
        ("meter/w-0", GPU_MICROSECONDS): -16,
        ("overhead/w-0", GPU_MICROSECONDS): 5,
        ("in_flight/w-0", GPU_MICROSECONDS): 11,
    } == sums(legs)


def test_what_a_worker_takes_to_calibrate_stands_apart() -> None:
    """Whatever it was."""
    legs = window_legs("w-0", window_of(calibrating=True), is_calibration=True)
    assert {
        ("meter/w-0", MILLIJOULES): -73,
        ("calibration/w-0", MILLIJOULES): 73,
        ("meter/w-0", GPU_MICROSECONDS): -5,
        ("calibration/w-0", GPU_MICROSECONDS): 5,
    } == sums(legs)


@given(
    shares=st.lists(st.tuples(st.sampled_from(["a-1", "b-1"]), PARTS, PARTS), max_size=4),
    idle_mj=PARTS,
    overhead_mj=PARTS,
    unattributed_mj=PARTS,
    is_calibration=st.booleans(),
)
def test_a_window_that_adds_up_balances(
    shares: list[tuple[str, int, int]], idle_mj: int, overhead_mj: int, unattributed_mj: int, is_calibration: bool
) -> None:
    """Negative parts too: a clamp may leave less than nothing."""
    meter_mj = idle_mj + overhead_mj + unattributed_mj + sum(share[1] for share in shares)
    record = window_of(
        *shares, idle_mj=idle_mj, overhead_mj=overhead_mj, unattributed_mj=unattributed_mj, meter_mj=meter_mj
    )
    legs = window_legs("w-0", record, is_calibration=is_calibration)
    assert {} == differences(legs)
    assert all(amount for _, _, amount in legs)


def test_legs_that_do_not_balance_are_told_by_unit() -> None:
    """And by how much."""
    legs = [("a", "mJ", 5), ("b", "mJ", -4), ("a", "USD", 3), ("b", "USD", -3), ("c", "EUR", -2)]
    assert {"mJ": 1, "EUR": -2} == differences(legs)
    assert {} == differences([])
