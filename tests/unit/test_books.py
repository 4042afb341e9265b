"""The books are a fold: live they are what a replay of their rows leads to, from the first one or from any state."""

import pytest
from hypothesis.stateful import initialize, precondition, rule

from scheduler.accounting import book_state
from scheduler.accounting.accounts import OPERATOR, Account, Kind, TokenTotals
from scheduler.accounting.books import Books
from scheduler.accounting.postings import charge_legs, energy_legs, hold_legs, void_legs, window_legs
from scheduler.accounting.rows import (
    Changed,
    Charge,
    Correction,
    Daily,
    Energy,
    Hold,
    Row,
    Void,
    Window,
    decode,
    encode,
    request_id_of,
)
from scheduler.core.actions import Payer
from tests.ledger_words import charge_of, energy_of, hold_of, judged
from tests.scripted_link import window_of
from tests.unit.test_settlement import NAMES, AnyOrder
from workers.types import Grade


def applied(*rows: Row, books: Books | None = None) -> Books:
    """With the legs that settlement gives them."""
    books = books or Books()
    for row in rows:
        match row:
            case Hold():
                row.legs = hold_legs(row)
            case Void():
                row.legs = void_legs(books.holds[row.request_id])
            case Charge():
                row.legs = charge_legs(row, None if row.account == OPERATOR else books.holds.get(row.request_id))
            case Energy():
                row.legs = energy_legs(row.worker_id, row.account, energy_mj=row.energy_mj, gpu_us=row.gpu_us)
            case Window():
                row.legs = window_legs(row.worker_id, row.window, is_calibration=False)
        books.apply(row)
    return books


def metered(*shares: tuple[str, int, int], number: int = 1, **fields: object) -> Window:
    return Window(worker_id="w-0", incarnation="life-1", number=number, window=window_of(*shares, **fields))


def void(request_id: str) -> Void:
    return Void(request_id=request_id, tenant="alpha", cause="gone")


def balances(books: Books) -> dict[tuple[str, str], int]:
    return {key: amount for key, amount in books.balances.items() if amount}


def test_a_hold_is_open_until_it_is_charged_or_given_back() -> None:
    """By its own tenant: work in vain leaves it."""
    books = applied(hold_of("req-a"), hold_of("req-b"), hold_of("req-c"))
    assert ["req-a", "req-b", "req-c"] == list(books.holds)
    applied(void("req-a"), charge_of("req-b-1"), charge_of("req-c-1", payer=Payer.OPERATOR), books=books)
    assert ["req-c"] == list(books.holds)
    assert 50 == books.total("held", "output_tokens")
    applied(charge_of("req-c-2"), books=books)
    assert (0, 0, 0) == tuple(books.total("held", unit) for unit in ("input_tokens", "output_tokens", "USD"))
    assert (120, 80) == (books.total("used", "output_tokens"), books.balances["used/alpha", "output_tokens"])


def test_an_attempt_is_open_until_it_is_charged_and_measured() -> None:
    """With what its windows put in flight, at the worst of their grades."""
    books = applied(metered(("req-a-1", 60, 6), grade=Grade.B), metered(("req-a-1", 40, 4), number=2))
    attempt = books.open["req-a-1"]
    assert (100, 10, Grade.B, None) == (attempt.energy_mj, attempt.gpu_us, attempt.grade, attempt.charge)
    applied(charge_of("req-a-1"), books=books)
    assert attempt.charge is not None
    applied(energy_of("req-a-1"), books=books)
    assert ({}, ["req-a-1"]) == (books.open, list(books.closed))
    serving = books.accounts.serving
    assert ((0, 0), (100, 10)) == (
        serving.balance(Account(Kind.IN_FLIGHT, "w-0")), serving.balance(Account(Kind.REQUESTS, "w-0", "alpha"))
    )  # fmt: skip
    details = books.details["req-a"]
    assert (True, "p", 100) == (
        details.is_final,
        details.postings["req-a-1"].policy,
        details.postings["req-a-1"].energy_mj,
    )


def test_what_the_worker_said_otherwise_is_in_the_details_and_counted() -> None:
    """Of attempts that began here; a stranger's first windows may be in another book."""
    books = applied(
        charge_of("req-a-1"),
        energy_of("req-a-1", posted_mj=130, posted_gpu_us=12, token_difference=3),
        charge_of("req-z-1", attempt_number=0, payer=Payer.OPERATOR),
        energy_of("req-z-1", account=OPERATOR, posted_mj=999),
        energy_of("req-y-1", account=OPERATOR, posted_mj=999),
    )
    assert (30, 3) == (books.accounts.posting_difference_mj, books.accounts.metered_token_difference)
    posting = books.details["req-a"].postings["req-a-1"]
    assert (130, 12) == (posting.energy_mj, posting.gpu_us)


def test_energy_that_comes_late_follows_to_whoever_paid() -> None:
    """In the accounts and in the usage of the request's minute; nothing is opened for it."""
    books = applied(charge_of("req-a-1"), energy_of("req-a-1"), metered(("req-a-1", 30, 3)))
    assert {} == books.open
    assert (130, 13) == books.accounts.serving.total(Kind.REQUESTS, tenant="alpha")
    ((*_, sums),) = [(row[:8], row[8:]) for row in books.usage.rows()]
    assert {130, 13} <= set(sums)


def test_a_cost_that_was_corrected_by_measurement_is_the_payers() -> None:
    """The one difference of a cost-plus price."""
    books = applied(charge_of("req-a-1", cost_nano=100), energy_of("req-a-1", cost_nano=-30))
    assert 70 == books.accounts.tokens_of("alpha").cost_nano


def test_rows_that_only_say_something_move_nothing() -> None:
    """A correction moves what its legs say, a compaction's legs moved already."""
    books = applied(
        Changed(change_id="c", fields={"what": "a"}),
        judged("o"),
        Daily(
            from_seq=0,
            to_seq=9,
            day="2026-11-27",
            num_rows=9,
            legs=[("used/alpha", "USD", 7), ("drawn/alpha", "USD", -7)],
        ),
    )
    assert {} == balances(books)
    applied(
        Correction(
            correction_id="x", of_seq=1, reason="twice", actor="ops",
            legs=[("used/alpha", "USD", -7), ("drawn/alpha", "USD", 7)],
        ),
        books=books,
    )  # fmt: skip
    assert {("used/alpha", "USD"): -7, ("drawn/alpha", "USD"): 7} == balances(books)


def test_the_last_window_of_each_worker_is_known() -> None:
    """Its process and its number: where a restart goes on; and the reading of its counter."""
    books = applied(metered(number=4), metered(number=5, counter_mj=900))
    assert {"w-0": ("life-1", 5)} == books.last_numbers
    assert 900 == books.accounts.windows["w-0"].counter_mj


@pytest.mark.parametrize("num", [1, 5])
def test_memory_has_an_end(num: int) -> None:
    """Closed attempts and details of past requests: the oldest are forgotten."""
    books = Books(max_details=num, max_closed=num)
    for name in "abcdefgh":
        applied(charge_of(f"req-{name}-1"), energy_of(f"req-{name}-1"), books=books)
    assert (num, num) == (len(books.closed), len(books.details))
    assert ["req-h-1", "req-h"] == [next(reversed(books.closed)), next(reversed(books.details))]


# -- the fold


def facts(books: Books) -> bytes:
    """What is in the rows: not a posting that waits for its charge, nor a payer whom somebody only asked about."""
    copy = book_state.load(book_state.dump(books))
    copy.accounts.tokens = {name: each for name, each in copy.accounts.tokens.items() if each != TokenTotals()}
    for attempt_id, attempt in list(copy.open.items()):
        attempt.posting = None
        if attempt.charge is None and not (attempt.energy_mj or attempt.gpu_us):
            del copy.open[attempt_id]
    return book_state.dump(copy)


class Replayed(AnyOrder):
    """As settlement is tested, with holds; whatever happened, the rows lead to the same books again."""

    @initialize()
    def begin(self) -> None:
        super().begin()
        self.texts: list[bytes] = []
        self.saved: list[tuple[int, bytes]] = [(0, book_state.dump(Books()))]
        append = self.settlement.journal.append

        def kept(row: Row) -> int:
            seq = append(row)
            self.texts.append(encode(row))
            return seq

        self.settlement.journal.append = kept  # type: ignore[method-assign]

    @rule(attempt_id=NAMES)
    def hold(self, attempt_id: str) -> None:
        request_id = request_id_of(attempt_id)
        if request_id not in self.settlement.books.holds:
            self.settlement.hold(hold_of(request_id))

    @rule(attempt_id=NAMES)
    def release(self, attempt_id: str) -> None:
        self.settlement.release(request_id_of(attempt_id), "gone")
        assert request_id_of(attempt_id) not in self.settlement.books.holds

    @precondition(lambda self: len(self.saved) < 4)
    @rule()
    def save(self) -> None:
        self.saved.append((len(self.texts), book_state.dump(self.settlement.books)))

    def teardown(self) -> None:
        if not hasattr(self, "texts"):
            return
        live = self.settlement.books
        for start, data in self.saved:
            books = book_state.load(data)
            for text in self.texts[start:]:
                books.apply(decode(text))
            assert facts(live) == facts(books)
            if not start:
                assert sorted(live.usage.rows()) == sorted(books.usage.rows())
                assert live.details == books.details
        assert not any(
            sum(amount for (_, of), amount in live.balances.items() if of == unit) for _, unit in live.balances
        )
        held = {unit: live.total("held", unit) for unit in ("input_tokens", "output_tokens", "USD")}
        assert held == {
            "input_tokens": sum(hold.input_tokens for hold in live.holds.values()),
            "output_tokens": sum(hold.output_tokens for hold in live.holds.values()),
            "USD": sum(hold.cost_nano for hold in live.holds.values()),
        }


TestReplayed = Replayed.TestCase
