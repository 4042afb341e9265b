"""The queue: strict bands, order of places, bounds per band, and memory that follows what waits."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.fairness import Fairness
from scheduler.core.queue import Line, Queue, QueueLimits
from scheduler.core.request import DataClass, Request
from tests.core_words import MODEL, request, thorough


def drained(queue: Queue, model: str = MODEL) -> list[str]:
    """Takes out head after head."""
    order = []
    while lines := queue.lines_of(model):
        (line,) = lines
        head = line.head
        assert head is not None
        order.append(head.request_id)
        queue.remove(head.request_id)
    return order


def only_line(queue: Queue, model: str = MODEL) -> Line:
    (line,) = queue.lines_of(model)
    return line


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
    assert [] == queue.lines_of("z")


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
    line = only_line(queue)
    for each in line.in_order(1):
        seen.append(each.request_id)
        if each.request_id != "b":
            queue.remove(each.request_id)
    assert ["a", "b"] == seen
    assert [] == list(line.in_order(0))


def test_those_who_left_the_middle_take_no_memory() -> None:
    """Two thousand clients that went away leave nothing behind their head."""
    queue = filled(*(request(str(number)) for number in range(2_000)))
    for number in range(1, 1_990):
        queue.remove(str(number))
    band = only_line(queue)._bands[1]
    for order in (band.everybody, band.tenants["t"].turns):
        assert len(order._items) <= 2 * order.num + 16
    assert [str(number) for number in (0, *range(1_990, 2_000))] == drained(queue)


def test_a_line_is_for_those_whom_the_same_workers_may_take() -> None:
    """A head that only one zone may run does not hold up those that may run elsewhere."""
    east, core_data = frozenset({"east"}), DataClass.CORE
    queue = filled(request("a"), request("b", zones=east), request("c", zones=east), request("d", data_class=core_data))
    assert ["a", "b", "d"] == [line.head.request_id for line in queue.lines_of(MODEL) if line.head]
    assert [1, 2, 1] == [line.num_waiting for line in queue.lines_of(MODEL)]


def test_tenants_take_turns_inside_a_band() -> None:
    """A crowd of one tenant is not before one request of another; each tenant's own stand in order."""
    queue = filled(request("a1", tenant="a"), request("a2", tenant="a"), request("b1", tenant="b"))
    line, order = only_line(queue), []
    while (head := line.head) is not None:
        order.append(head.request_id)
        queue.fairness.start(head.request_id, head, prompt_tokens=100, cached_tokens=0, output_tokens=10)
        queue.remove(head.request_id)
    assert ["a1", "b1", "a2"] == order


def test_the_counters_are_those_that_were_given() -> None:
    """An empty set of them too: whoever runs what waits here charges it there."""
    fairness = Fairness()
    queue = Queue(fairness=fairness)
    queue.push(request("a"), 1)
    assert [("t", 1)] == fairness.waiting(1)


def test_a_tenants_turn_is_one_over_all_lines() -> None:
    """What it started in one zone is its turn in every other too."""
    east = frozenset({"east"})
    queue = filled(
        request("a1", tenant="a"), request("a2", tenant="a", zones=east), request("b", tenant="b", zones=east)
    )
    first = queue.lines_of(MODEL)[0].head
    assert first is not None
    queue.fairness.start("a1-1", first, prompt_tokens=1, cached_tokens=0, output_tokens=0)
    queue.remove("a1")
    assert ["b", "a2"] == drained_fairly(queue)


def drained_fairly(queue: Queue) -> list[str]:
    """Takes out head after head of the one line that is left, each charged a token."""
    order = []
    while lines := queue.lines_of(MODEL):
        head = lines[0].head
        assert head is not None
        order.append(head.request_id)
        queue.fairness.start(f"{head.request_id}-1", head, prompt_tokens=1, cached_tokens=0, output_tokens=0)
        queue.remove(head.request_id)
    return order


def test_counting_goes_first_of_its_band_and_takes_no_turn() -> None:
    """It is an answer of milliseconds; a better band still goes before it."""
    queue = filled(request("a"), request("b", is_counting=True), request("c", band=0))
    assert ["c", "b", "a"] == drained(queue)
    assert 0 == sum(num for band in range(3) for _, num in queue.fairness.waiting(band))


def test_the_lowest_band_gives_way_when_everything_is_full() -> None:
    """Its longest tenant's last; nobody gives way to his own or a lower band."""
    limits = QueueLimits(max_requests=10, max_total_requests=4)
    queue = filled(
        request("a", band=1), request("b1", band=2, tenant="b"), request("c", band=2, tenant="c"),
        request("b2", band=2, tenant="b"), limits=limits,
    )  # fmt: skip
    newcomer = request("n", band=0)
    assert "b2" == queue.shed_for(newcomer)
    assert queue.shed_for(request("n", band=2, tenant="c")) is None
    queue.remove("b2")
    assert queue.has_room(newcomer)
    assert queue.shed_for(newcomer) is None


def test_as_many_give_way_as_are_in_the_way_or_nobody() -> None:
    """A large body takes the place of several small ones; where even all of them are not enough, none leaves."""
    queue = filled(
        request("a", band=0, body_bytes=50), *(request(f"f{n}", band=2, body_bytes=10) for n in range(5)),
        limits=QueueLimits(max_total_bytes=100),
    )  # fmt: skip
    assert queue.shed_for(request("n", band=1, body_bytes=60)) is None
    newcomer, shed = request("n", band=1, body_bytes=35), []
    while (request_id := queue.shed_for(newcomer)) is not None:
        shed.append(request_id)
        queue.remove(request_id)
    assert ["f4", "f3", "f2", "f1"] == shed
    assert queue.has_room(newcomer)


def test_one_tenant_cannot_keep_the_others_out_of_a_full_band() -> None:
    """Its last request gives way to those of tenants with fewer, until they have as many."""
    queue = filled(*(request(f"h{n}", tenant="heavy") for n in range(6)), limits=QueueLimits(max_requests=6))
    assert queue.shed_for(request("h6", tenant="heavy")) is None
    shed = []
    for number in range(6):
        newcomer = request(f"l{number}", tenant="light")
        if (request_id := queue.shed_for(newcomer)) is not None:
            shed.append(request_id)
            queue.remove(request_id)
            queue.push(newcomer, 10 + number)
    assert ["h5", "h4", "h3"] == shed
    assert [("heavy", 3), ("light", 3)] == queue.fairness.waiting(1)


def test_who_would_not_be_enough_stays() -> None:
    """In bytes the longest tenant's last may be too small to make room."""
    queue = filled(
        *(request(f"h{n}", tenant="heavy", body_bytes=10) for n in range(6)), limits=QueueLimits(max_bytes=60)
    )
    assert queue.shed_for(request("l", tenant="light", body_bytes=11)) is None
    assert "h5" == queue.shed_for(request("l", tenant="light", body_bytes=10))


def test_those_that_only_count_give_way_too() -> None:
    """They take no turn, but they fill the queue."""
    counting = (request(f"c{n}", tenant="heavy", is_counting=True) for n in range(3))
    queue = filled(*counting, limits=QueueLimits(max_requests=3, max_total_requests=3))
    assert "c2" == queue.shed_for(request("n", band=0))
    assert "c2" == queue.shed_for(request("n"))
    assert queue.shed_for(request("n", tenant="heavy", is_counting=True)) is None


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
            heads = [line.head.request_id for line in queue.lines_of(model) if line.head]
            assert [name for _, name in mine[:1]] == heads
    assert len(waiting) == len(queue) == sum(queue.num_waiting)
    assert sum(entry[2].body_bytes for entry in waiting.values()) == sum(queue.num_bytes)
    assert set(waiting) == set(queue.request_ids())
    assert all(name in queue for name in waiting)


@thorough
@given(st.integers(0, 2**32))
def test_a_full_queue_sheds_only_downwards_and_to_the_longest(seed: int) -> None:
    """Any flood: bounds hold, a better band is never refused for a worse one, and nobody waiting is made to leave for
    a tenant that has as much."""
    chance = random.Random(seed)
    limits = QueueLimits(max_requests=6, max_bytes=60, max_total_requests=9, max_total_bytes=100)
    queue, waiting = Queue(limits), {}
    for place in range(80):
        newcomer = request(
            f"r{place}", band=chance.randrange(3), tenant=chance.choice("abc"), body_bytes=chance.randrange(20),
            zones=chance.choice([None, frozenset({"z"})]), is_counting=chance.random() < 0.1,
        )  # fmt: skip
        while (request_id := queue.shed_for(newcomer)) is not None:
            shed = waiting.pop(request_id)
            queue.remove(request_id)
            assert shed.band >= newcomer.band
            if shed.band == newcomer.band:
                mine, its = (
                    sum(each.tenant == one.tenant and each.band == one.band for each in waiting.values())
                    for one in (newcomer, shed)
                )
                assert its >= mine
        if queue.has_room(newcomer):
            queue.push(newcomer, place)
            waiting[newcomer.request_id] = newcomer
        else:
            worse = sum(each.band > newcomer.band for each in waiting.values())
            own = sum(each.band == newcomer.band for each in waiting.values())
            own_bytes = sum(each.body_bytes for each in waiting.values() if each.band == newcomer.band)
            band_is_full = own >= 6 or own_bytes + newcomer.body_bytes > 60
            assert (
                band_is_full
                or not worse
                or sum(each.body_bytes for each in waiting.values() if each.band <= newcomer.band) + newcomer.body_bytes
                > 100
            )
        if chance.random() < 0.2 and waiting:
            name = chance.choice(sorted(waiting))
            queue.remove(name)
            del waiting[name]
        assert max(queue.num_waiting) <= 6
        assert max(queue.num_bytes) <= 60
        assert len(queue) == len(waiting) <= 9
        assert sum(queue.num_bytes) <= 100
