"""Deadlines: everybody due comes out once, in order, and the heap stays as big as what is open."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.deadlines import MIN_SWEPT, Deadlines
from tests.core_words import thorough


def test_what_is_due_comes_out_earliest_first() -> None:
    """At its very instant a deadline is due; the rest stays."""
    deadlines = Deadlines()
    for deadline_s, name in [(3.0, "c"), (1.0, "a"), (2.0, "b")]:
        deadlines.push(deadline_s, name, is_open={"a", "b", "c"})
    assert ["a", "b"] == list(deadlines.due(2.0))
    assert 1 == len(deadlines)
    assert [] == list(deadlines.due(2.9))
    assert ["c"] == list(deadlines.due(3.0))


def test_the_same_request_may_be_looked_at_again() -> None:
    """What is pushed while others come out is not lost, and not due at once."""
    deadlines = Deadlines()
    deadlines.push(1.0, "a", is_open={"a"})
    for name in deadlines.due(1.0):
        deadlines.push(2.0, name, is_open={"a"})
    assert ["a"] == list(deadlines.due(2.0))


def test_requests_that_are_over_are_swept() -> None:
    """A million short requests with long deadlines take no memory."""
    deadlines, open_ids = Deadlines(), {"long"}
    deadlines.push(1.0, "long", is_open=open_ids)
    for number in range(5 * MIN_SWEPT):
        deadlines.push(1e6, f"r{number}", is_open=open_ids)
    assert len(deadlines) <= MIN_SWEPT + 1
    assert ["long"] == list(deadlines.due(2.0))


@thorough
@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=25), st.floats(0, 100))
def test_nobody_open_is_ever_missed(items: list[tuple[float, bool]], now_s: float) -> None:
    """Whatever is swept: an open request comes out if and only if its deadline has passed."""
    deadlines, open_ids = Deadlines(), {f"r{i}" for i, (_, is_open) in enumerate(items) if is_open}
    for number, (deadline_s, _) in enumerate(items):
        deadlines.push(deadline_s, f"r{number}", is_open=open_ids)
    due = [name for name in deadlines.due(now_s) if name in open_ids]
    assert sorted(due) == sorted(f"r{i}" for i, (at_s, is_open) in enumerate(items) if is_open and at_s <= now_s)
