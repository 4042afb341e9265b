"""When work that may wait is cheapest: never later than it may, never dearer than now, no more than there is room."""

from collections import defaultdict
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.price_plan import MIN_SAVING_RATIO, SLICE_S, Postponed, PricePlan
from scheduler.core.steps import Steps
from tests.core_words import thorough

HOUR = 3_600.0
NIGHT = Steps.of(80.0, [(10 * HOUR, 30.0), (18 * HOUR, 80.0)])
"""Cheap from the tenth to the eighteenth hour."""
EVERYWHERE = [True]


def plan_of(
    prices: Steps[float] = NIGHT, *, engines: int = 1, from_s: float = 0.0, hours: float = 24, ratio: float = 1.0
) -> PricePlan:
    return PricePlan(
        {"hall": prices}, {"hall": engines}, from_s=from_s, to_s=from_s + hours * HOUR, capacity_ratio=ratio
    )


def put_off(
    plan: PricePlan, work_s: float = 1.0, *, now_s: float = 0.0, latest_s: float = 24 * HOUR
) -> Postponed | None:
    return plan.put_off(work_s, may_run=EVERYWHERE, now_s=now_s, latest_s=latest_s)


def until_s(postponed: Postponed | None) -> float:
    assert postponed is not None
    return postponed.until_s


def test_it_waits_for_the_beginning_of_the_cheap_hours() -> None:
    """And knows both prices."""
    found = put_off(plan_of())
    assert found is not None
    assert (10 * HOUR, 80.0, 30.0) == (found.until_s, found.now_nano_per_joule, found.then_nano_per_joule)


@pytest.mark.parametrize(
    ("prices", "now_s", "latest_s"),
    [
        (NIGHT, 0.0, 10 * HOUR - 1),
        (NIGHT, 12 * HOUR, inf),
        (NIGHT, 0.0, 0.0),
        (Steps.always(80.0), 0.0, inf),
        (Steps.of(80.0, [(HOUR, 79.9)]), 0.0, inf),
        (Steps.of(30.0, [(HOUR, 80.0)]), 0.0, inf),
    ],
    ids=["too late", "now is cheapest", "no time", "flat", "saves too little", "it gets dearer"],
)
def test_it_begins_at_once_where_waiting_brings_nothing(prices: Steps[float], now_s: float, latest_s: float) -> None:
    """Or where the cheap hours come too late."""
    assert put_off(plan_of(prices), now_s=now_s, latest_s=latest_s) is None


def test_prices_below_zero_are_cheaper_than_nothing() -> None:
    """Who is paid for taking energy takes it then; less of that is dearer."""
    prices = Steps.of(0.0, [(HOUR, -5.0), (2 * HOUR, -20.0), (3 * HOUR, -10.0)])
    assert 2 * HOUR == until_s(put_off(plan_of(prices)))
    assert put_off(plan_of(prices), now_s=2.5 * HOUR) is None


def test_a_full_slice_spills_into_the_next_of_its_price_and_then_into_the_next_price() -> None:
    """Two engines, half of their time: 900 s of work a slice."""
    prices = Steps.of(80.0, [(10 * HOUR, 30.0), (10.5 * HOUR, 50.0), (11 * HOUR, 80.0)])
    plan = plan_of(prices, engines=2, ratio=0.5)
    found = [until_s(put_off(plan, 300.0)) for _ in range(12)]
    expected = [10 * HOUR + SLICE_S * number for number in range(4) for _ in range(3)]
    assert expected == found
    assert put_off(plan, 300.0) is None  # the cheap hours are full, and now costs what is left


def test_who_leaves_gives_its_room_back() -> None:
    """A cancelled one makes room for the next."""
    plan = plan_of(Steps.of(80.0, [(10 * HOUR, 30.0), (10 * HOUR + SLICE_S, 80.0)]))
    first = put_off(plan, 900.0)
    assert first is not None
    assert put_off(plan) is None
    plan.give_back(first)
    assert first.until_s == until_s(put_off(plan))


def test_only_zones_where_it_may_run_count() -> None:
    """The cheap hall may not hold its data; and now it is as cheap as it gets in the other."""
    prices = {"cheap": Steps.of(80.0, [(HOUR, 10.0)]), "far": Steps.of(70.0, [(2 * HOUR, 60.0)])}
    plan = PricePlan(prices, {"cheap": 1, "far": 1, "empty": 0}, from_s=0.0, to_s=24 * HOUR, capacity_ratio=1.0)
    assert ["cheap", "far"] == list(plan.zones)

    def found(*may: bool) -> tuple[float, float]:
        postponed = plan.put_off(1.0, may_run=may, now_s=0.0, latest_s=24 * HOUR)
        assert postponed is not None
        return postponed.until_s, postponed.now_nano_per_joule

    assert [(HOUR, 70.0), (HOUR, 80.0), (2 * HOUR, 70.0)] == [found(True, True), found(True, False), found(False, True)]


def test_a_plan_knows_for_how_many_engines_it_was_made() -> None:
    """Zones without any do not matter."""
    plan = plan_of(engines=2)
    assert (True, False, False) == tuple(
        plan.is_for(each) for each in ({"hall": 2, "other": 0}, {"hall": 3}, {"hall": 2, "other": 1})
    )


CHANGES = st.lists(st.tuples(st.integers(1, 40), st.integers(-3, 8)), max_size=12, unique_by=lambda change: change[0])


@thorough
@given(
    CHANGES,
    st.lists(st.tuples(st.integers(1, 4_000), st.integers(0, 100_000)), min_size=1, max_size=40),
    st.integers(1, 3),
    st.floats(0.1, 1.0),
)
def test_never_late_never_dearer_and_no_slice_beyond_its_room(
    changes: list[tuple[int, int]], works: list[tuple[int, int]], engines: int, ratio: float
) -> None:
    """Room is passed by one request at most, whose work no slice could hold."""
    prices = Steps.of(4.0, [(1_700.0 * at, float(price)) for at, price in sorted(changes)])
    plan = plan_of(prices, engines=engines, ratio=ratio)
    taken: defaultdict[float, list[float]] = defaultdict(list)
    for work_s, latest_s in works:
        found = put_off(plan, float(work_s), latest_s=float(latest_s))
        if found is None:
            continue
        assert 0.0 < found.until_s <= latest_s
        assert prices.at(found.until_s) == found.then_nano_per_joule
        assert found.then_nano_per_joule < prices.at(0.0) - MIN_SAVING_RATIO * abs(prices.at(0.0))
        taken[found.until_s].append(work_s)
    assert all(sum(each[:-1]) <= engines * ratio * SLICE_S + 1e-6 for each in taken.values())


@thorough
@given(CHANGES, st.integers(0, 100_000))
def test_an_empty_plan_finds_the_cheapest_moment_that_there_is(changes: list[tuple[int, int]], latest_s: int) -> None:
    """Held against looking at every change."""
    prices = Steps.of(4.0, [(1_700.0 * at, float(price)) for at, price in sorted(changes)])
    found = put_off(plan_of(prices), latest_s=float(latest_s))
    cheapest = min([prices.at(at_s) for at_s in prices.at_s if at_s <= min(latest_s, 24 * HOUR - 1)], default=4.0)
    expected = cheapest if cheapest < 4.0 * (1 - MIN_SAVING_RATIO) else 4.0
    assert expected == (4.0 if found is None else found.then_nano_per_joule)
