"""An account counts what its window counts, forgets the rest, and says when how much is free again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.budget_accounts import (
    NUM_PARTS,
    READS,
    REQUESTS,
    Account,
    Budget,
    Level,
    Measure,
    renewed,
)
from scheduler.core.budget_windows import NUM_BUCKETS, SECOND_US, Window
from tests.core_words import thorough

LEVEL = Level("tenant", "acme")


def account(window: str = "60s", limit: int = 100) -> Account:
    return Account(LEVEL, Budget(Measure.TOKENS, limit, Window.parse(window)), 0)


def test_a_calendar_window_forgets_at_its_end() -> None:
    """Its last microsecond counts, the next window's first does not."""
    day = account("calendar minute")
    day.add(day.slot, used=70, held=20)
    day.advance(60 * SECOND_US - 1)
    assert (70, 20, 10) == (day.used, day.held, day.left)
    day.advance(60 * SECOND_US)
    assert (0, 0, 100) == (day.used, day.held, day.left)


def test_what_belongs_to_a_past_window_changes_nothing() -> None:
    """A charge belongs to the window of its admission, even if that is over."""
    minute = account("calendar minute")
    slot = minute.slot
    minute.add(slot, held=50)
    minute.advance(60 * SECOND_US)
    minute.add(slot, used=30, held=-50)
    assert (0, 0) == (minute.used, minute.held)
    assert minute.is_idle


def test_time_never_goes_back() -> None:
    """A clock that jumps back does not open a window anew."""
    minute = account("calendar minute")
    minute.advance(120 * SECOND_US)
    minute.add(minute.slot, used=100)
    minute.advance(0)
    assert (2, 0) == (minute.slot, minute.left)


@thorough
@given(
    uses=st.lists(st.tuples(st.integers(0, 300 * SECOND_US), st.integers(0, 40)), max_size=30),
    length_s=st.sampled_from([7, 60]),
)
def test_no_stretch_of_a_rolling_windows_length_counts_more_than_the_limit(
    uses: list[tuple[int, int]], length_s: int
) -> None:
    """Whatever is granted when: summed over every stretch, half-open, that begins at a grant."""
    rolling = account(f"{length_s}s")
    granted = []
    for at_us, amount in sorted(uses):
        rolling.advance(at_us)
        if amount <= rolling.left:
            rolling.add(rolling.slot, used=amount)
            granted.append((at_us, amount))
    for since_us, _ in granted:
        until_us = since_us + length_s * SECOND_US
        assert sum(amount for at_us, amount in granted if since_us <= at_us < until_us) <= 100
    assert len(rolling._slots) <= NUM_BUCKETS + 1


@thorough
@given(
    uses=st.lists(st.tuples(st.integers(0, 90 * SECOND_US), st.integers(1, 30)), max_size=12),
    needed=st.integers(1, 120),
    window=st.sampled_from(["60s", "calendar minute", "total"]),
)
def test_the_moment_that_is_told_is_the_first_at_which_enough_is_free(
    uses: list[tuple[int, int]], needed: int, window: str
) -> None:
    """A microsecond before it there is too little, then there is enough."""
    some, at_us = account(window), 0
    for at_us, amount in sorted(uses):
        some.advance(at_us)
        if amount <= some.left:
            some.add(some.slot, used=amount)
    if needed <= some.left:
        return
    free_us = some.free_us(needed)
    if needed > some.limit or window == "total":
        assert free_us is None
        return
    assert free_us is not None
    some.advance(free_us - 1)
    assert some.left < needed
    some.advance(free_us)
    assert some.left >= needed


def test_a_state_may_lie_ahead_and_changes_nothing() -> None:
    """As it will be if nothing happens until then."""
    minute = account("calendar minute")
    minute.add(minute.slot, used=70, held=20)
    assert (70, 20, 10, 60.0) == minute.state(SECOND_US)[4:]
    assert (0, 0, 100, 120.0) == minute.state(61 * SECOND_US)[4:]
    assert (70, 20) == (minute.used, minute.held)


def test_a_rolling_window_resets_when_nothing_counts_any_more() -> None:
    """The newest charge decides; an untouched window is reset already."""
    rolling = account("60s")
    assert 5.0 == rolling.state(5 * SECOND_US).resets_unix_s
    rolling.advance(5 * SECOND_US)
    rolling.add(rolling.slot, used=1)
    assert 66.0 == rolling.state(5 * SECOND_US).resets_unix_s


def test_a_lowered_limit_leaves_nothing_and_owes_nothing() -> None:
    """What was used stays used."""
    some = account()
    some.add(some.slot, used=80)
    some.change_limit(Budget(Measure.TOKENS, 50, Window.parse("60s")))
    assert (0, 80) == (some.left, some.used)
    assert 0 == some.state(0).left


def test_concurrency_has_no_window() -> None:
    """And only concurrency."""
    running = Account(LEVEL, Budget(Measure.CONCURRENCY, 3), 0)
    assert ("", None) == running.state(0)[2:8:5]
    with pytest.raises(AssertionError):
        Budget(Measure.CONCURRENCY, 3, Window.parse("1h"))
    with pytest.raises(AssertionError):
        Budget(Measure.TOKENS, 3)
    with pytest.raises(AssertionError):
        Budget(Measure.TOKENS, -1, Window.parse("1h"))


def test_every_measure_reads_its_own_part() -> None:
    """Tokens are prompt and output; cached ones are among the prompt."""
    vector = [10**place for place in range(NUM_PARTS)]
    expected = {Measure.TOKENS: 101, Measure.REQUESTS: 10**REQUESTS, Measure.CONCURRENCY: 10 ** (REQUESTS + 1)}
    names = [each for each in Measure if each not in expected]
    assert {**expected, **{each: 10**place for place, each in enumerate(names)}} == {
        each: READS[each](vector) for each in Measure
    }


def test_a_changed_level_keeps_what_its_measures_counted() -> None:
    """The same measure and window is the same budget; another one begins with nothing."""
    old = account("1h")
    old.add(old.slot, used=5)
    new = renewed(
        LEVEL,
        (old,),
        (Budget(Measure.TOKENS, 7, Window.parse("60m")), Budget(Measure.TOKENS, 9, Window.parse("calendar day"))),
    )
    assert [(7, 5, "60m"), (9, 0, "calendar day")] == [(each.limit, each.used, str(each.budget.window)) for each in new]
    assert new[0] is old


def test_two_budgets_of_one_kind_are_a_mistake_of_ours() -> None:
    """The configuration refuses them."""
    with pytest.raises(AssertionError, match="two budgets of one kind"):
        renewed(
            LEVEL, (), (Budget(Measure.TOKENS, 7, Window.parse("1h")), Budget(Measure.TOKENS, 9, Window.parse("60m")))
        )


# -- over a restart


@thorough
@given(
    uses=st.lists(st.tuples(st.integers(0, 300 * SECOND_US), st.integers(0, 40)), max_size=30),
    window=st.sampled_from(["7s", "60s", "calendar minute", "calendar month", "total"]),
    at_us=st.integers(0, 700 * SECOND_US),
)
def test_what_was_used_counts_on_as_if_nothing_had_happened(
    uses: list[tuple[int, int]], window: str, at_us: int
) -> None:
    """Now, and at any moment that follows: what is forgotten when does not change."""
    first = account(window, limit=10**6)
    for used_us, used in sorted(uses):
        first.advance(used_us)
        first.add(first.slot, used=used)
    second = account(window, limit=10**6)
    second.put_back(first.used_slots())
    assert first.used_slots() == second.used_slots()
    later_us = max([at_us, *(used_us for used_us, _ in uses)])
    assert first.state(later_us) == second.state(later_us)
    for each in (first, second):
        each.advance(later_us)
    assert (first.used, first.left, first.used_slots()) == (second.used, second.left, second.used_slots())


def test_what_is_held_is_not_put_back() -> None:
    """Whoever held it is gone."""
    first, second = account(), account()
    first.add(first.slot, used=5, held=7)
    second.put_back(first.used_slots())
    assert (5, 0) == (second.used, second.held)


def test_a_correction_takes_back_what_was_counted_and_no_more() -> None:
    """A budget that never counted the charge is not below nothing."""
    old, young = account(), account()
    old.restore(old.slot, 50)
    for each in (old, young):
        each.restore(each.slot, -20)
    assert (30, 0) == (old.used, young.used)
    assert (70, 100) == (old.left, young.left)
