"""Who is worth trying: heads only, the best of all models first; a model that is full costs nothing meanwhile."""

import pytest

from scheduler.core.attempts import Entry
from scheduler.core.queue import Queue
from scheduler.core.waiting import Waiting
from tests.core_words import MODEL, request


class Room:
    """A waiting room whose entries are numbered as they come."""

    def __init__(self, *, max_wait_s: float = 10.0) -> None:
        self.queue = Queue()
        self.waiting = Waiting(self.queue, max_wait_s=max_wait_s)
        self.entries: dict[str, Entry] = {}

    def push(self, name: str, *, since_s: float = 0.0, **values: object) -> None:
        entry = Entry(request=request(name, **values), place=len(self.entries), waits_since_s=since_s)
        self.entries[name] = entry
        self.waiting.push(entry)

    def tried(self, *, fit: str = "") -> list[str]:
        """Names in the order they are tried; those in ``fit`` are started."""
        names = []
        for entry in self.waiting.candidates():
            names.append(entry.request.request_id)
            if names[-1] in fit:
                self.waiting.remove(names[-1])
        return names


def test_nobody_overtakes() -> None:
    """The first that does not fit ends its model's turn."""
    room = Room()
    for name in "abc":
        room.push(name)
    assert ["a", "b"] == room.tried(fit="ac")
    assert [] == room.tried(fit="abc")


def test_a_full_model_is_tried_again_when_something_was_freed() -> None:
    """And another model's luck changes nothing for it."""
    room = Room()
    room.push("a")
    assert ["a"] == room.tried()
    room.waiting.freed(["other"])
    assert [] == room.tried()
    room.waiting.freed([MODEL])
    assert ["a"] == room.tried()


def test_a_newcomer_behind_a_full_model_costs_nothing_but_a_better_one_is_tried() -> None:
    """Another head is another question."""
    room = Room()
    room.push("a")
    room.tried()
    room.push("b")
    assert [] == room.tried()
    room.push("c", band=0)
    assert ["c", "a"] == room.tried(fit="c")


def test_when_the_head_leaves_the_next_is_tried() -> None:
    """A big request that was cancelled or refused does not hold up a small one; one from the middle changes nothing."""
    room = Room()
    for name in "abc":
        room.push(name)
    room.tried()
    room.waiting.remove("b")
    assert [] == room.tried()
    room.waiting.remove("a")
    assert ["c"] == room.tried()


def test_the_best_of_all_models_goes_first() -> None:
    """On a worker that serves several models, a long line for one does not starve the other."""
    room = Room()
    for name, model, band in [("a", "x", 2), ("b", "x", 2), ("c", "y", 1), ("d", "y", 2), ("e", "z", 0)]:
        room.push(name, model=model, band=band)
    assert ["e", "c", "a", "b", "d"] == room.tried(fit="abcde")


def test_waits_end() -> None:
    """Who has waited too long comes out; who was started does not, and who began anew has its time again."""
    room = Room(max_wait_s=10.0)
    for name in "abc":
        room.push(name)
    room.waiting.remove("a")
    room.waiting.remove("b")
    entry = room.entries["b"]
    entry.waits_since_s = 5.0
    room.waiting.push(entry)
    assert ["c"] == [each.request.request_id for each in room.waiting.overdue(10.0)]
    assert ["b"] == [each.request.request_id for each in room.waiting.overdue(15.0)]


def test_only_a_head_can_have_been_tried() -> None:
    """Anything else would block its model for a wrong reason."""
    room = Room()
    room.push("a")
    room.push("b")
    with pytest.raises(AssertionError, match="not the next"):
        room.waiting.did_not_fit(room.entries["b"].request)
    room.waiting.did_not_fit(room.entries["a"].request)
    assert [] == room.tried()


def test_a_stranger_is_ignored() -> None:
    """A request that never waited can be removed."""
    Room().waiting.remove("nobody")
