"""The order of turns: the least counter first, whatever rose or fell, in memory that follows what waits."""

import pytest

from scheduler.core.request import DataClass
from scheduler.core.seats import Account, Lane, LineKey, Ranking, Seat
from tests.core_words import MODEL, request


def seat(tenant: str, counter: int = 0, *, activation: int = 1) -> Seat:
    account = Account(tenant=tenant, weight=1.0, charged=counter, activation=activation)
    return Seat(account=account, lane=Lane(key=LineKey.of(request())))


def test_a_counter_is_what_was_charged_anywhere_and_lifted_here() -> None:
    """And the key puts the least first, then who was lifted, then who has waited longer."""
    one = seat("x", 5, activation=2)
    one.lift = 3
    assert 8 == one.counter
    other = seat("y", 8, activation=1)
    assert other.key < one.key
    other.account.is_lifted = False
    assert one.key < other.key
    other.account.charged -= 1
    assert other.key < one.key


def test_lines_are_told_apart_by_model_data_class_and_zones() -> None:
    """Nothing else of a request decides which workers may take it."""
    base = LineKey.of(request())
    assert base == LineKey.of(request("other", tenant="x", band=2, max_output_tokens=1))
    for change in ({"model": "n"}, {"data_class": DataClass.CORE}, {"zones": frozenset({"z"})}, {"zones": frozenset()}):
        assert base != LineKey.of(request(**change))
    assert MODEL == base.model


def test_a_tenant_waits_where_one_of_its_seats_does() -> None:
    """In any of its lines."""
    one, other = seat("x"), seat("x")
    one.account.seats += [one, other]
    assert not one.account.is_waiting
    other.num_waiting = 1
    assert one.account.is_waiting


def test_the_same_seat_waits_once_in_a_ranking() -> None:
    """Twice would be two turns."""
    ranking, one = Ranking(), seat("x")
    ranking.add(one)
    with pytest.raises(AssertionError, match="ranked already"):
        ranking.add(one)


def test_what_rose_is_sorted_in_when_it_comes_to_the_top() -> None:
    """Nobody tells the ranking of it."""
    ranking, one, other = Ranking(), seat("x", 1), seat("y", 2)
    ranking.add(one)
    ranking.add(other)
    assert one is ranking.first()
    one.account.charged = 3
    assert other is ranking.first()


def test_a_ranking_keeps_no_more_than_what_waits() -> None:
    """Ten thousand corrections leave a short heap, and the right first."""
    ranking = Ranking()
    seats = [seat(f"t{number}", 10**9, activation=number) for number in range(4)]
    for each in seats:
        ranking.add(each)
    for number in range(10_000):
        seats[number % 4].account.charged -= 1 + number % 3
        ranking.fell(seats[number % 4])
    assert len(ranking._heap) <= 2 * len(ranking) + 17
    assert min(seats, key=lambda each: each.key) is ranking.first()
    for each in seats:
        ranking.discard(each)
    assert (None, 0) == (ranking.first(), len(ranking))
