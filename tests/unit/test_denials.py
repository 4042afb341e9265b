"""So many rows a minute of each source and of all; every denial is in a row or counted in the next one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.accounting.denials import MAX_PER_MINUTE, MAX_PER_SOURCE, MINUTE_US, Denials, network_of


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


@pytest.mark.parametrize(
    ("source", "network"),
    [
        ("10.0.0.1", "10.0.0.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("2001:db8::", "2001:db8::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"), ("fe80::1%eth0", "fe80::/64"), ("unknown", "unknown"), ("", ""),
    ],
)  # fmt: skip
def test_an_ipv6_network_is_one_source(source: str, network: str) -> None:
    """Its owner has more addresses in it than there are rows."""
    assert network == network_of(source)


def test_a_source_cannot_change_its_address_within_its_network() -> None:
    """Another network is another source."""
    denials = Denials()
    told = [denials.admit(f"2001:db8::{number:x}", 5) for number in range(MAX_PER_SOURCE + 3)]
    assert [0] * MAX_PER_SOURCE + [None] * 3 == told
    assert 3 == denials.admit("2001:db8:0:1::1", 5)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * MINUTE_US)), max_size=200))
def test_none_is_lost(came: list[tuple[str, int]]) -> None:
    """Rows and what they count beside themselves are all that came."""
    denials = Denials()
    told = [denials.admit(source, at_us) for source, at_us in came]
    rows = [each for each in told if each is not None]
    assert len(came) == len(rows) + sum(rows) + denials.num_skipped
