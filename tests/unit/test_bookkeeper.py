"""Records are booked once each: usage to the core, postings to the accounts, windows to the meter."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from scheduler.accounting.errors import LedgerError
from scheduler.accounting.settlement import Charge, Settlement
from scheduler.bookkeeper import Bookkeeper
from scheduler.connection import Connection
from scheduler.core.actions import Action, Payer
from scheduler.core.scheduler import Scheduler
from tests.scripted_link import posting_of, status_of, usage_of, window_of
from workers.types import Numbered, Outcome, Record, UsageRecord

CONNECTION = cast(Connection, SimpleNamespace(worker_id="w-0", status=status_of()))


class TellingCore:
    """Knows the attempts it is given, until it is told of their end."""

    def __init__(self, *known: str) -> None:
        self.known = set(known)

    def knows(self, attempt_id: str) -> bool:
        return attempt_id in self.known

    def on_finished(self, usage: UsageRecord, now_s: float) -> list[Action]:
        self.known.discard(usage.attempt_id)
        return []


class Books:
    """A bookkeeper with a core that knows some attempts; ``usages`` is what it passed on."""

    def __init__(self, *known: str) -> None:
        self.core = TellingCore(*known)
        self.settlement = Settlement()
        self.settlement.open_worker("w-0", incarnation="life-1")
        self.usages: list[str] = []
        self.keeper = Bookkeeper(
            core=cast(Scheduler, self.core),
            settlement=self.settlement,
            on_usage=lambda actions, usage: self.usages.append(usage.attempt_id),
        )

    def book(self, *records: Record, first_number: int = 1) -> None:
        numbered = [Numbered(first_number + index, record) for index, record in enumerate(records)]
        self.keeper.book(CONNECTION, numbered, 1.0)


def charge(attempt_id: str, **fields: Any) -> Charge:
    return Charge(
        request_id=attempt_id.rpartition("-")[0], attempt_id=attempt_id, tenant="alpha", model="m", worker_id="w-0",
        outcome=Outcome.COMPLETED, input_tokens=7, cached_tokens=0, output_tokens=3, **fields,
    )  # fmt: skip


def test_usage_of_ours_goes_to_the_core_once() -> None:
    """A repeated number is not booked again, whatever it holds."""
    books = Books("a-1")
    books.book(usage_of("a-1"))
    books.book(usage_of("a-1"))
    assert ["a-1"] == books.usages


def test_usage_of_a_stranger_is_the_operators() -> None:
    """An earlier control plane began it: executed, so charged, but to no tenant."""
    books = Books()
    books.book(usage_of("old-1"))
    assert [] == books.usages
    details = books.settlement.details("old")
    assert details is not None
    assert [Payer.OPERATOR] == [each.payer for each in details.charges.values()]


def test_a_posting_moves_what_is_in_flight() -> None:
    """What the windows put in flight becomes the tenant's."""
    books = Books("a-1")
    books.settlement.charge(charge("a-1"))
    books.book(window_of(("a-1", 100, 10)), posting_of("a-1", 100, 10))
    balance = books.settlement.accounts.balance()
    assert (100, 0, 0) == (balance.requests_mj, balance.in_flight_mj, books.settlement.num_open)


def test_a_posting_without_a_charge_is_closed_as_well() -> None:
    """Its charge is in another book: nothing may stay open for it here."""
    books = Books()
    books.book(posting_of("old-1", 0, 0))
    assert 0 == books.settlement.num_open


def test_a_window_that_does_not_add_up_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """It changes no account, and the records behind it are booked."""
    books = Books("a-1")
    books.book(window_of(idle_mj=51), usage_of("a-1"))
    assert (1, ["a-1"]) == (books.keeper.bad_windows, books.usages)
    assert 0 == books.settlement.accounts.balance().meter_mj
    assert "does not add up" in caplog.text


def test_what_cannot_be_looked_up_waits_and_is_booked_once() -> None:
    """The ledger is away: records of strangers are neither lost nor acknowledged, usage behind them is booked. A window
    is not: it would say that every record before it was.
    """
    books = Books("a-1", "b-1")
    settlement = books.settlement
    is_away, found = True, {("charge", "older-1")}

    def is_booked(kind: str, row_id: str) -> bool:
        if is_away:
            raise LedgerError("away")
        return (kind, row_id) in found

    settlement.is_booked = is_booked
    window = window_of(("old-1", 40, 4))
    books.book(
        usage_of("a-1"), usage_of("old-1"), window, posting_of("old-1", 40, 4), usage_of("older-1"), usage_of("b-1")
    )
    for _ in range(2):
        assert (1, ["a-1", "b-1"]) == (settlement.watermark("w-0"), books.usages)
        assert (0, {}) == (settlement.accounts.balance().meter_mj, settlement.books.last_numbers)
        books.book()
    is_away = False
    books.book()
    assert (6, 0) == (settlement.watermark("w-0"), settlement.num_open)
    assert ("life-1", 3) == settlement.books.last_numbers["w-0"]
    assert (window.meter_mj, 40) == (settlement.accounts.balance().meter_mj, settlement.accounts.balance().operator_mj)
    assert settlement.details("old") is not None
    assert settlement.details("older") is None


def test_a_stranger_that_was_settled_and_forgotten_is_settled_once() -> None:
    """Its worker comes back and says its window again, which opens it anew: the ledger knows its charge and posting."""
    books = Books()
    settlement = books.settlement
    asked: list[tuple[str, str]] = []

    def is_booked(kind: str, row_id: str) -> bool:
        asked.append((kind, row_id))
        return True

    settlement.is_booked = is_booked
    books.book(window_of(("old-1", 40, 4)), usage_of("old-1"), posting_of("old-1", 40, 4))
    assert [("charge", "old-1"), ("energy", "old-1")] == asked[:2]
    settlement.close_worker("w-0")
    assert settlement.details("old") is None
    assert 40 == settlement.accounts.balance().in_flight_mj, "a second posting would never be stored"


def test_a_stranger_that_was_given_up_and_forgotten_is_never_charged() -> None:
    """Its energy is the operator's already: a charge behind it would be one that no posting completes."""
    books = Books()
    books.settlement.is_booked = lambda kind, row_id: (kind, row_id) == ("energy", "old-1")
    books.book(usage_of("old-1"))
    assert (1, 0) == (books.settlement.duplicates_total, books.settlement.num_open)
    assert books.settlement.details("old") is None


def test_a_count_that_cannot_be_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Of ours as of strangers, with the worker's name and not what it said."""
    books = Books("a-1")
    books.book(usage_of("a-1", reasoning_tokens=4), usage_of("old-1", cached_tokens=8))
    assert ["a-1"] == books.usages
    assert ["w-0 counted what cannot be for a-1", "w-0 counted what cannot be for old-1"] == [
        message.partition(":")[0] for message in caplog.messages
    ]
