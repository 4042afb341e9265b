"""Attempts of nobody are told once to abort, and remembered within a bound."""

from scheduler.strangers import Strangers
from workers.types import Chunk, Ended, Outcome, Started


def test_a_stranger_is_told_once() -> None:
    """However much it goes on to say."""
    strangers = Strangers()
    assert strangers.must_abort(Started("req-a-1", 200, []))
    assert [False, False] == [strangers.must_abort(Chunk("req-a-1", b"x")) for _ in range(2)]
    assert strangers.must_abort(Chunk("req-b-1", b"x"))


def test_one_that_ends_is_forgotten_and_never_told() -> None:
    """There is nothing left to abort."""
    strangers = Strangers()
    ended = Ended("req-a-1", Outcome.ABORTED, "orphaned")
    assert not strangers.must_abort(ended)
    strangers.must_abort(Chunk("req-a-1", b"x"))
    assert not strangers.must_abort(ended)
    assert 0 == len(strangers)


def test_the_memory_is_bounded_and_the_oldest_goes_first() -> None:
    """Who is forgotten while it still speaks is told again."""
    strangers = Strangers(max_strangers=2)
    for name in "abc":
        assert strangers.must_abort(Chunk(f"req-{name}-1", b"x"))
    assert 2 == len(strangers)
    assert not strangers.must_abort(Chunk("req-c-1", b"x"))
    assert strangers.must_abort(Chunk("req-a-1", b"x"))
