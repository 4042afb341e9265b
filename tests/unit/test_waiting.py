"""Who is worth trying: heads only, the best of all models first; a model that is full costs nothing meanwhile."""

import random
from collections.abc import Collection
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.attempts import Attempt, Entry
from scheduler.core.queue import Queue
from scheduler.core.waiting import Waiting
from tests.core_words import MODEL, request, thorough


class Room:
    """A waiting room whose entries are numbered as they come."""

    def __init__(self, *, max_wait_s: float = 10.0, ageing_s: float = 30.0, ageing_every: int = 4) -> None:
        self.queue = Queue()
        self.waiting = Waiting(self.queue, max_wait_s=max_wait_s, ageing_s=ageing_s, ageing_every=ageing_every)
        self.entries: dict[str, Entry] = {}

    def push(self, name: str, *, since_s: float = 0.0, **values: object) -> None:
        entry = Entry(request=request(name, **values), place=len(self.entries), waits_since_s=since_s)
        self.entries[name] = entry
        self.waiting.push(entry)

    def tried(self, *, fit: Collection[str] = "", now_s: float = 0.0) -> list[str]:
        """Names in the order they are tried; those in ``fit`` are started."""
        names = []
        for turn in self.waiting.candidates(now_s):
            names.append(turn.entry.request.request_id)
            if names[-1] in fit:
                self.start(names[-1])
        return names

    def start(self, name: str) -> None:
        """As the scheduler does: an attempt, its charge, out of the queue."""
        entry = self.entries[name]
        entry.attempt = cast(Attempt, object())
        self.queue.fairness.start(f"{name}-1", entry.request, prompt_tokens=100, cached_tokens=0, output_tokens=0)
        self.waiting.remove(name)


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


EAST = frozenset({"east"})
WEST = frozenset({"west"})


def test_a_line_that_is_stuck_holds_up_nobody_else_but_keeps_its_workers() -> None:
    """Whoever is tried after it is told for whom workers are kept; who goes before it is not."""
    room = Room()
    for name, zones in [("a", None), ("b", EAST), ("c", None), ("d", WEST)]:
        room.push(name, zones=zones)
    turns = {}
    for turn in room.waiting.candidates(0.0):
        name = turn.entry.request.request_id
        turns[name] = [each.request_id for each in turn.closed_to]
        if name in "ad":
            room.start(name)
    assert {"a": [], "b": [], "c": ["b"], "d": ["b", "c"]} == turns


def test_workers_stay_kept_from_one_round_to_the_next() -> None:
    """A newcomer of another line does not take what a head of an earlier round waits for."""
    room = Room()
    room.push("a", zones=EAST)
    assert ["a"] == room.tried()
    room.push("b", zones=WEST)
    (turn,) = list(room.waiting.candidates(0.0))
    assert ("b", ["a"]) == (turn.entry.request.request_id, [each.request_id for each in turn.closed_to])
    room.push("c", zones=WEST, band=0)
    (turn,) = [each for each in room.waiting.candidates(0.0) if each.entry.request.request_id == "c"]
    assert () == turn.closed_to


def test_when_a_head_gives_up_those_whom_it_kept_out_are_tried() -> None:
    """They may have fit but for it."""
    room = Room()
    room.push("a", zones=EAST)
    room.push("b")
    assert ["a", "b"] == room.tried()
    room.waiting.remove("a")
    assert ["b"] == room.tried()


def test_when_a_head_is_refused_those_tried_before_it_are_tried_again_first() -> None:
    """They may fit now; where they do not, nobody behind them takes what they wait for."""
    room = Room()
    room.push("stuck", band=0)
    room.push("late", band=1, zones=EAST)
    room.push("last", band=2, zones=WEST)
    turns = []
    for turn in room.waiting.candidates(0.0):
        name = turn.entry.request.request_id
        turns.append((name, [each.request_id for each in turn.closed_to]))
        if name == "late":
            room.waiting.remove(name)
    assert [("stuck", []), ("late", ["stuck"]), ("stuck", []), ("last", ["stuck"])] == turns


def test_a_new_tenant_is_tried_before_a_crowd() -> None:
    """A tenant that had nothing waiting is lifted to the least counter and wins the tie."""
    room = Room()
    for number in range(5):
        room.push(f"h{number}", tenant="heavy")
    assert ["h0", "h1"] == room.tried(fit=["h0"])
    room.push("new", tenant="light")
    assert ["new", "h1"] == room.tried(fit=["new"])


def test_a_start_moves_its_tenant_back_in_every_line() -> None:
    """Turns are a tenant's, not a line's."""
    room = Room()
    for name, tenant, zones in [("a1", "a", EAST), ("a2", "a", WEST), ("a3", "a", EAST), ("b1", "b", None)]:
        room.push(name, tenant=tenant, zones=zones)
    assert ["a1", "b1", "a2", "a3"] == room.tried(fit=["a1", "a2", "a3", "b1"])


def test_a_lower_band_ages() -> None:
    """Nothing for the young; every fourth start for those that have waited too long, the eldest band apart."""
    room = Room(ageing_s=30.0, ageing_every=4)
    for number in range(4):
        room.push(f"low{number}", band=2)
    for number in range(12):
        room.push(f"high{number}", band=0, since_s=20.0)
    names = list(room.entries)
    assert [f"high{number}" for number in range(5)] == room.tried(fit=names[4:8], now_s=29.9)
    room.waiting.freed([MODEL])
    tried = room.tried(fit=names, now_s=30.0)
    assert ["low0", "high4", "high5", "high6", "low1", "high7", "high8", "high9", "low2"] == tried[:9]


def test_an_aged_turn_says_so_and_is_waited_for() -> None:
    """It may take what is kept for better bands, and these wait until it fits: else it never would."""
    room = Room(ageing_s=1.0, ageing_every=2)
    room.push("low", band=2)
    for number in range(3):
        room.push(f"high{number}", band=0)
    assert ["high0", "low"] == room.tried(fit=["high0"], now_s=2.0)
    room.push("other", band=0, zones=EAST)
    (turn,) = list(room.waiting.candidates(2.0))
    assert ("other", ["low"]) == (turn.entry.request.request_id, [each.request_id for each in turn.closed_to])
    room.waiting.freed([MODEL])
    first = next(iter(room.waiting.candidates(2.0)))
    assert ("low", True) == (first.entry.request.request_id, first.is_aged)


def test_whoever_made_room_keeps_its_age() -> None:
    """Waits begin anew after a preemption, turns do not draw away."""
    room = Room(ageing_s=5.0, ageing_every=2)
    for name, band in (("low", 2), ("high0", 0), ("high1", 0)):
        room.push(name, band=band)
    room.entries["low"].waits_since_s = 4.0
    assert ["high0", "low", "high1"] == room.tried(fit=list(room.entries), now_s=6.0)


def test_only_starts_of_better_bands_count_towards_an_aged_turn() -> None:
    """A band that starts by itself is not passed over, and what is kept for better bands stays kept."""
    room = Room(ageing_s=1.0, ageing_every=2)
    for number in range(6):
        room.push(f"low{number}", band=2)
    turns = []
    for turn in room.waiting.candidates(100.0):
        turns.append(turn.is_aged)
        room.start(turn.entry.request.request_id)
    assert [False] * 6 == turns


def test_nothing_is_remembered_of_models_for_which_nobody_waits() -> None:
    """Their lines and their turns go with the last request."""
    room = Room()
    for number, name in enumerate("abc"):
        room.push(name, model=f"m{number}", zones=EAST)
    room.tried(fit="a")
    room.waiting.remove("b")
    room.waiting.remove("c")
    assert (0, 0, 0) == (len(room.waiting._open), len(room.waiting._models), len(room.waiting._entries))


@thorough
@given(st.integers(0, 2**32))
def test_turns_never_go_backwards_and_nobody_is_forgotten(seed: int) -> None:
    """Any mixture: in each round nobody is tried before one that stands before it in its line, every line that is
    open is tried, and at the end everybody was started or removed."""
    chance = random.Random(seed)
    room = Room(max_wait_s=1e9, ageing_s=5.0, ageing_every=3)
    waiting: set[str] = set()
    for number in range(60):
        name, now_s = f"r{number}", float(number)
        room.push(
            name, since_s=now_s, tenant=chance.choice("abc"), band=chance.randrange(3), model=chance.choice("xy"),
            zones=chance.choice([None, EAST]),
        )  # fmt: skip
        waiting.add(name)
        if chance.random() < 0.2:
            gone = chance.choice(sorted(waiting))
            room.waiting.remove(gone)
            waiting.discard(gone)
        if chance.random() < 0.3:
            room.waiting.freed(["x", "y"])
        lines_left = set()
        for turn in room.waiting.candidates(now_s):
            each = turn.entry.request
            key = (each.model, each.zones)
            assert key not in lines_left, "its line was left already"
            assert each.request_id in waiting
            assert turn.is_aged or not any(
                other.request.band < each.band and (other.request.model, other.request.zones) == key
                for other in (room.entries[one] for one in waiting)
            )
            if chance.random() < 0.5:
                room.start(each.request_id)
                waiting.discard(each.request_id)
            else:
                lines_left.add(key)
        assert {each.key.model for each in room.waiting._open.values()} == set()
    room.waiting.freed(["x", "y"])
    assert sorted(waiting) == sorted(room.tried(fit=waiting.copy(), now_s=99.0))


def test_a_better_band_of_another_model_keeps_what_it_waits_for() -> None:
    """Both models may share a worker: room that was made for one band is not for a lower one. Equals do not care."""
    room = Room()
    room.push("head", band=0, model="x")
    room.push("equal", band=0, model="y")
    room.push("lower", band=2, model="z")
    closed = {
        turn.entry.request.request_id: [each.request_id for each in turn.closed_to]
        for turn in room.waiting.candidates(0.0)
    }
    assert {"head": [], "equal": [], "lower": ["head", "equal"]} == closed
    room.waiting.remove("head")
    assert [("lower", ["equal"])] == [
        (turn.entry.request.request_id, [each.request_id for each in turn.closed_to])
        for turn in room.waiting.candidates(0.0)
        if turn.entry.request.band == 2
    ]
