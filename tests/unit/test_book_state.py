"""Books as bytes: equal books give equal bytes, and what was saved is what is loaded."""

import msgspec
import pytest

from scheduler.accounting import book_state
from scheduler.accounting.accounts import Account, Kind
from scheduler.accounting.books import Books
from scheduler.accounting.settlement import Settlement
from tests.ledger_words import Traffic, charge_of, hold_of
from tests.scripted_link import posting_of, window_of
from workers.types import Grade


def busy(seed: int = 0, num_rows: int = 400) -> Settlement:
    """After a while of traffic, with attempts in every state."""
    settlement = Settlement()
    Traffic(settlement, seed=seed).fill(num_rows)
    settlement.window("w-1", window_of(calibrating=True), number=800)
    return settlement


@pytest.mark.parametrize("seed", range(5))
def test_what_was_saved_is_what_is_loaded(seed: int) -> None:
    """Every account, every total, what is open, held and remembered; and the same bytes again."""
    books = busy(seed).books
    data = book_state.dump(books)
    again = book_state.load(data)
    assert data == book_state.dump(again)
    assert books.accounts.balance() == again.accounts.balance()
    assert books.accounts.tenant_rows() == again.accounts.tenant_rows()
    assert books.accounts.worker_rows() == again.accounts.worker_rows()
    calibrations = [sorted(map(str, each.accounts.calibration.accounts())) for each in (books, again)]
    assert [] != calibrations[0] == calibrations[1]
    assert (books.open, books.holds, books.last_numbers) == (again.open, again.holds, again.last_numbers)
    assert list(books.closed.items()) == list(again.closed.items())
    assert {key: amount for key, amount in books.balances.items() if amount} == again.balances


def test_empty_books_are_a_state_too() -> None:
    """Of which nothing is left but that."""
    again = book_state.load(book_state.dump(Books()))
    assert ([], {}, {}) == (list(again.accounts.serving.accounts()), again.open, again.holds)


def test_equal_books_give_equal_bytes_in_whatever_order_they_came_about() -> None:
    """Sets and tables have no order of their own."""
    first, second = Books(), Books()
    for books, order in ((first, "abc"), (second, "cba")):
        for name in order:
            books.accounts.windows_of("w").meters.add(name)
            books.accounts.tokens_of(name)
            books.holds[name] = hold_of(name)
            books.accounts.serving.move(Account(Kind.METER, name), Account(Kind.IDLE, name), energy_mj=1)
    assert book_state.dump(first) == book_state.dump(second)
    second.accounts.serving.move(Account(Kind.METER, "a"), Account(Kind.IDLE, "a"), energy_mj=1)
    assert book_state.dump(first) != book_state.dump(second)


def test_a_state_goes_on_as_the_books_would_have() -> None:
    """The same facts in both, and they stay equal: what was open is charged, measured and paid as before."""
    first = busy()
    first.window("w-0", window_of(("req-q-1", 60, 6), grade=Grade.B), number=900)
    first.hold(hold_of("req-q"))
    first.charge(charge_of("req-q-1"))
    second = Settlement(books=book_state.load(book_state.dump(first.books)))
    for settlement in (first, second):
        settlement.open_worker("w-0", incarnation="life-1")
        settlement.window("w-0", window_of(("req-q-1", 40, 4)), number=901)
        assert settlement.post_energy("w-0", posting_of("req-q-1", 100, 10))
        assert not settlement.post_energy("w-0", posting_of("req-q-1", 100, 10))
        settlement.window("w-0", window_of(("req-q-1", 5, 1)), number=902)
        for hold in sorted(settlement.books.holds):
            settlement.release(hold, "over")
        for attempt_id in sorted(settlement.books.open):
            settlement.give_up(attempt_id)
    assert book_state.dump(first.books) == book_state.dump(second.books)
    assert (0, 0) == (second.accounts.balance().difference_mj, second.num_open)


def test_so_many_closed_attempts_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones."""
    monkeypatch.setattr(book_state, "MAX_SAVED_CLOSED", 2)
    settlement = Settlement()
    for name in "abcd":
        settlement.charge(charge_of(f"req-{name}-1"))
        settlement.post_energy("w-0", posting_of(f"req-{name}-1"))
    assert ["req-c-1", "req-d-1"] == list(book_state.load(book_state.dump(settlement.books)).closed)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xc1", b"junk", b'{"a":1}'])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    """Then all rows are replayed."""
    with pytest.raises(ValueError, match=r"."):
        book_state.load(data)


def test_a_state_of_another_version_is_refused() -> None:
    """One that lacks something, or has an account that is not known here."""
    raw = msgspec.msgpack.decode(book_state.dump(busy().books))
    lacking = {name: value for name, value in raw.items() if name != "holds"}
    foreign = {**raw, "serving": [("new_kind", "w", "", 1, 1)]}
    for state in (lacking, foreign):
        with pytest.raises(ValueError, match=r"holds|new_kind"):
            book_state.load(msgspec.msgpack.encode(state))
