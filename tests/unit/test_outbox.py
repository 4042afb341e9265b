"""The outbox keeps what was not acknowledged, in order, and replays it."""

from hypothesis import given
from hypothesis import strategies as st

from workers.outbox import Outbox
from workers.types import EnergyPosting, Grade


def posting(name: str) -> EnergyPosting:
    return EnergyPosting(attempt_id=name, energy_mj=1, gpu_us=1, grade=Grade.D, policy="shapley")


def test_numbers_rise_by_one_from_one() -> None:
    """The first record is number 1; a replay is recognised by its number."""
    outbox = Outbox()
    for name in "abc":
        outbox.put(posting(name))
    assert [1, 2, 3] == [item.number for item in outbox.take_unsent()]


def test_what_was_sent_is_not_sent_again_on_the_same_connection() -> None:
    """A second take returns only what came since."""
    outbox = Outbox()
    outbox.put(posting("a"))
    outbox.take_unsent()
    outbox.put(posting("b"))
    assert [2] == [item.number for item in outbox.take_unsent()]
    assert [] == outbox.take_unsent()


def test_a_new_connection_replays_the_unacknowledged() -> None:
    """After a rewind the records come again under their old numbers, without the acknowledged ones."""
    outbox = Outbox()
    for name in "abcd":
        outbox.put(posting(name))
    outbox.take_unsent()
    outbox.ack(2)
    outbox.rewind()
    assert [3, 4] == [item.number for item in outbox.take_unsent()]
    assert 2 == outbox.depth


def test_take_is_bounded_and_goes_on_where_it_stopped() -> None:
    """A long replay comes in portions."""
    outbox = Outbox()
    for index in range(25):
        outbox.put(posting(str(index)))
    assert list(range(1, 11)) == [item.number for item in outbox.take_unsent(max_records=10)]
    assert list(range(11, 21)) == [item.number for item in outbox.take_unsent(max_records=10)]
    assert list(range(21, 26)) == [item.number for item in outbox.take_unsent(max_records=10)]


def test_a_full_outbox_counts_what_it_refuses() -> None:
    """Overflow is never silent, and numbers are not burnt by it."""
    outbox = Outbox(max_records=2)
    assert outbox.put(posting("a"))
    assert outbox.put(posting("b"))
    assert not outbox.put(posting("c"))
    assert 1 == outbox.dropped_total
    outbox.ack(1)
    assert outbox.put(posting("d"))
    assert [1, 2, 3][1:] == [item.number for item in outbox.take_unsent()]


def test_windows_stop_before_requests_do() -> None:
    """The last part of the room is kept for charges and postings."""
    outbox = Outbox(max_records=10)
    for index in range(8):
        outbox.put(posting(str(index)))
    assert not outbox.has_window_room
    assert outbox.has_request_room
    outbox.put(posting("x"))
    assert not outbox.has_request_room


def test_an_unknown_acknowledgement_is_ignored() -> None:
    """A control plane that confuses workers cannot make records vanish."""
    outbox = Outbox()
    outbox.put(posting("a"))
    outbox.ack(99)
    assert 1 == outbox.depth


@given(st.lists(st.sampled_from(["put", "take", "ack", "rewind"]), max_size=60), st.integers(0, 5))
def test_no_record_is_lost_or_reordered(actions: list[str], ack_back: int) -> None:
    """Whatever the interleaving, a connection sees every unacknowledged record exactly once and in order."""
    outbox = Outbox(max_records=1_000)
    num_put, acked, seen = 0, 0, []
    for action in actions:
        if action == "put":
            num_put += 1
            outbox.put(posting(str(num_put)))
        elif action == "take":
            seen += [item.number for item in outbox.take_unsent(max_records=3)]
        elif action == "ack" and seen:
            acked = max(acked, max(0, seen[-1] - ack_back))
            outbox.ack(acked)
        elif action == "rewind":
            outbox.rewind()
            seen = list(range(1, acked + 1))
    while taken := outbox.take_unsent(max_records=3):
        seen += [item.number for item in taken]
    assert list(range(1, num_put + 1)) == seen
    assert num_put - acked == outbox.depth
