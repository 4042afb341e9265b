"""So many rows a minute of each source and of all; every denial is in a row or counted in the next one."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.denials import MAX_PER_MINUTE, MAX_PER_SOURCE, MINUTE_US, Denials


def test_a_source_gets_so_many_rows_a_minute() -> None:
    """The next row says how many were skipped, whoever's it is."""
    denials = Denials()
    told = [denials.admit("a", 5) for _ in range(MAX_PER_SOURCE + 3)]
    assert [0] * MAX_PER_SOURCE + [None] * 3 == told
    assert [3, 0] == [denials.admit("b", 6) for _ in range(2)]
    assert 0 == denials.admit("a", MINUTE_US + 5)


def test_all_sources_together_are_bounded_too() -> None:
    """Addresses are cheap."""
    denials = Denials()
    told = [denials.admit(f"source-{number}", 5) for number in range(MAX_PER_MINUTE + 10)]
    assert 10 == told.count(None)
    assert 10 == denials.admit("x", MINUTE_US)
    assert len(denials._rows) <= MAX_PER_MINUTE


def test_a_clock_that_is_set_back_begins_a_new_minute() -> None:
    """And never stops the log."""
    denials = Denials()
    for _ in range(MAX_PER_SOURCE + 1):
        denials.admit("a", 10 * MINUTE_US)
    assert 1 == denials.admit("a", 3 * MINUTE_US)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * MINUTE_US)), max_size=200))
def test_none_is_lost(came: list[tuple[str, int]]) -> None:
    """Rows and what they count beside themselves are all that came."""
    denials = Denials()
    told = [denials.admit(source, at_us) for source, at_us in came]
    rows = [each for each in told if each is not None]
    assert len(came) == len(rows) + sum(rows) + denials._num_skipped
