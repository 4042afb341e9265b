"""The queue: strict bands, order of places, bounds per band, and memory that follows what waits."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.queue import Queue, QueueLimits
from scheduler.core.request import Request
from tests.core_words import MODEL, request, thorough


def drained(queue: Queue, model: str = MODEL) -> list[str]:
    """Takes out head after head."""
    order = []
    while (head := queue.head(model)) is not None:
        order.append(head.request_id)
        queue.remove(head.request_id)
    return order


def filled(*requests: Request, limits: QueueLimits | None = None) -> Queue:
    queue = Queue(limits)
    for place, each in enumerate(requests):
        queue.push(each, place)
    return queue


def test_bands_go_before_places() -> None:
    """A late priority request passes everybody of the lower bands."""
    queue = filled(request("a", band=2), request("b", band=1), request("c", band=1), request("d", band=0))
    assert ["d", "b", "c", "a"] == drained(queue)


def test_who_comes_back_keeps_its_place() -> None:
    """A request of a lost worker stands before those that came after it."""
    queue = filled(request("a"), request("b"), request("c"))
    queue.remove("a")
    queue.push(request("a"), 0)
    assert ["a", "b", "c"] == drained(queue)


def test_models_do_not_see_each_other() -> None:
    """A line for one model does not hold up another."""
    queue = filled(request("a", model="x"), request("b", model="y"))
    assert {"x", "y"} == set(queue.models)
    assert ["b"] == drained(queue, "y")
    assert ["x"] == queue.models
    assert queue.head("z") is None


def test_a_band_is_bounded_in_requests() -> None:
    """A full band refuses its own and nobody else's."""
    queue = filled(request("a"), request("b"), limits=QueueLimits(max_requests=2))
    assert not queue.has_room(request("c"))
    assert queue.has_room(request("c", band=0))
    queue.remove("a")
    assert queue.has_room(request("c"))


def test_a_band_is_bounded_in_bytes() -> None:
    """But a single request of any size fits an empty band, or it could never be served."""
    queue = Queue(QueueLimits(max_bytes=100))
    assert queue.has_room(request("a", body_bytes=1000))
    queue.push(request("a", body_bytes=60), 1)
    assert queue.has_room(request("b", body_bytes=40))
    assert not queue.has_room(request("b", body_bytes=41))
    assert (0, 60, 0) == queue.num_bytes


def test_removing_a_stranger_changes_nothing() -> None:
    """And nobody is taken out twice."""
    queue = filled(request("a"))
    assert not queue.remove("b")
    assert queue.remove("a")
    assert not queue.remove("a")
    assert (0, (0, 0, 0), []) == (len(queue), queue.num_waiting, queue.models)


def test_nobody_waits_twice() -> None:
    """That would be served twice."""
    with pytest.raises(AssertionError, match="waits already"):
        filled(request("a"), request("a"))


def test_a_line_yields_its_head_until_it_is_left() -> None:
    """Whoever is behind a head that stays came later."""
    queue, seen = filled(request("a"), request("b"), request("c")), []
    for each in queue.line(MODEL, 1):
        seen.append(each.request_id)
        if each.request_id != "b":
            queue.remove(each.request_id)
    assert ["a", "b"] == seen
    assert [] == list(queue.line(MODEL, 0))


def test_those_who_left_the_middle_take_no_memory() -> None:
    """Two thousand clients that went away leave nothing behind their head."""
    queue = filled(*(request(str(number)) for number in range(2_000)))
    for number in range(1, 1_990):
        queue.remove(str(number))
    line = queue._lines[MODEL][1]
    assert len(line.heap) <= 2 * line.num_waiting + 16
    assert [str(number) for number in (0, *range(1_990, 2_000))] == drained(queue)


@thorough
@given(st.integers(0, 2**32))
def test_order_and_sums_hold_against_a_plain_list(seed: int) -> None:
    """Any mixture of pushes, removals and returns: the same head, the same sums as sorting a list."""
    chance, queue, waiting = random.Random(seed), Queue(), {}
    for place in range(60):
        each = request(
            f"r{place}", band=chance.randrange(3), model=chance.choice("xy"), body_bytes=chance.randrange(50)
        )
        queue.push(each, place)
        waiting[each.request_id] = (each.band, place, each)
        if chance.random() < 0.6:
            name = chance.choice(sorted(waiting))
            left = waiting.pop(name)
            assert queue.remove(name)
            if chance.random() < 0.3:
                queue.push(left[2], left[1])
                waiting[name] = left
        for model in "xy":
            mine = sorted((entry[:2], entry[2].request_id) for entry in waiting.values() if entry[2].model == model)
            head = queue.head(model)
            assert (mine[0][1] if mine else None) == (head.request_id if head else None)
    assert len(waiting) == len(queue) == sum(queue.num_waiting)
    assert sum(entry[2].body_bytes for entry in waiting.values()) == sum(queue.num_bytes)
    assert set(waiting) == set(queue.request_ids())
    assert all(name in queue for name in waiting)
