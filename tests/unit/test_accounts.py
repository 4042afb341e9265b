"""Accounts: two sides to every movement, sums that always follow, windows refused that do not add up, rows by payer."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.accounting.accounts import MAX_CAUSES, OPERATOR, Account, Accounts, Book, Kind
from tests.scripted_link import window_of
from workers.types import Grade, Outcome

IDLE = Account(Kind.IDLE, "w-0")
METER = Account(Kind.METER, "w-0")

ACCOUNTS = st.builds(
    Account,
    st.sampled_from(list(Kind)),
    st.sampled_from(["w-0", "w-1"]),
    st.sampled_from(["", "alpha", OPERATOR]),
)
AMOUNTS = st.integers(min_value=-(10**15), max_value=10**15)


# -- the book


def test_a_move_takes_from_one_and_gives_to_the_other() -> None:
    """In both units; an account that nobody touched is empty."""
    book = Book()
    book.move(METER, IDLE, energy_mj=70, gpu_us=3)
    assert ((-70, -3), (70, 3)) == (book.balance(METER), book.balance(IDLE))
    assert (0, 0) == book.balance(Account(Kind.IDLE, "w-1"))
    book.move(METER, IDLE, energy_mj=-80)
    assert (-10, 3) == book.balance(IDLE)


def test_a_move_onto_itself_changes_nothing() -> None:
    """Not even the sums."""
    book = Book()
    book.move(IDLE, IDLE, energy_mj=5, gpu_us=5)
    assert ((0, 0), (0, 0)) == (book.balance(IDLE), book.total(Kind.IDLE))


@given(moves=st.lists(st.tuples(ACCOUNTS, ACCOUNTS, AMOUNTS, AMOUNTS), max_size=12))
@settings(max_examples=40, deadline=None)
def test_every_sum_is_the_sum_of_its_accounts(moves: list[tuple[Account, Account, int, int]]) -> None:
    """Whatever moved where: 0 over all, and each total as if one had walked through the book."""
    book = Book()
    for source, target, energy_mj, gpu_us in moves:
        book.move(source, target, energy_mj=energy_mj, gpu_us=gpu_us)
    assert (0, 0) == book.difference()
    for kind in Kind:
        for worker_id in (None, "w-0", "w-1"):
            for tenant in (None, "", "alpha", OPERATOR):
                walked = [
                    (energy_mj, gpu_us)
                    for account, energy_mj, gpu_us in book.accounts()
                    if account.kind is kind
                    and worker_id in (None, account.worker_id)
                    and tenant in (None, account.tenant)
                ]
                expected = (sum(energy for energy, _ in walked), sum(gpu_us for _, gpu_us in walked))
                assert expected == book.total(kind, worker_id=worker_id, tenant=tenant)


# -- windows


def test_a_window_moves_the_meter_into_four_accounts() -> None:
    """Idle, overhead, unattributed, in flight; the rest of the record is remembered beside them."""
    accounts = Accounts()
    accounts.add_window("w-0", window_of(("req-a-1", 100, 10), ("req-b-1", 50, 7), counter_mj=4321))
    balance = accounts.balance()
    assert (223, 50, 20, 3, 150) == (
        balance.meter_mj, balance.idle_mj, balance.overhead_mj, balance.unattributed_mj, balance.in_flight_mj
    )  # fmt: skip
    assert (22, 5, 17, 0) == (
        balance.busy_gpu_us, balance.overhead_gpu_us, balance.in_flight_gpu_us, balance.requests_gpu_us
    )  # fmt: skip
    assert (0, 1, "A", ("scripted",)) == (balance.difference_mj, balance.num_windows, balance.grade, balance.meters)
    assert 4321 == accounts.windows["w-0"].counter_mj


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"meter_mj": 174}, "does not add up to its 174 mJ"),
        ({"idle_mj": 49}, "does not add up"),
        ({"in_flight_mj": 101, "meter_mj": 174}, "shares"),
        ({"busy_gpu_us": 16}, "GPU-time"),
        ({"overhead_gpu_us": 4}, "GPU-time"),
    ],
)
def test_a_window_that_does_not_add_up_is_refused_whole(fields: dict[str, int], words: str) -> None:
    """Nothing of it is booked, not even its reading: the message names window and worker."""
    accounts = Accounts()
    with pytest.raises(ValueError, match=words) as caught:
        accounts.add_window("w-0", window_of(("req-a-1", 100, 10), window=9, **fields))
    assert "window 9 of w-0" in str(caught.value)
    assert Accounts().balance() == accounts.balance()
    assert [] == list(accounts.serving.accounts())
    assert {} == accounts.windows


def test_unattributed_may_be_negative_and_is_judged_by_its_size() -> None:
    """What the clamp took too much: signs must not cancel in the bound of 2 %."""
    accounts = Accounts()
    accounts.add_window("w-0", window_of(unattributed_mj=-30, meter_mj=40))
    accounts.add_window("w-0", window_of(unattributed_mj=30, meter_mj=100))
    balance = accounts.balance()
    assert (0, 60, 0) == (balance.unattributed_mj, balance.absolute_unattributed_mj, balance.difference_mj)


def test_calibration_is_booked_aside() -> None:
    """Its energy, grade and prediction say nothing about serving; its reading is still the last one known."""
    accounts = Accounts()
    accounts.add_window("w-0", window_of(calibrating=True, grade=Grade.D, counter_mj=500))
    balance = accounts.balance()
    assert (0, 73, 0, None) == (
        balance.meter_mj, balance.calibration_mj, balance.num_windows, balance.predicted_over_measured
    )  # fmt: skip
    assert 500 == accounts.windows["w-0"].counter_mj
    accounts.add_window("w-0", window_of(grade=Grade.A))
    assert ("A", 73, 73) == (accounts.balance().grade, accounts.balance().meter_mj, accounts.balance().calibration_mj)


def test_a_calibrating_window_with_requests_belongs_to_them() -> None:
    """Otherwise their postings would take from an account that nothing went into."""
    accounts = Accounts()
    accounts.add_window("w-0", window_of(("req-a-1", 100, 10), calibrating=True))
    assert (100, 0) == (accounts.balance().in_flight_mj, accounts.balance().calibration_mj)


def test_predicted_over_measured_is_taken_over_measured_windows_only() -> None:
    """A window whose energy was not measured beside its steps says nothing about the model."""
    accounts = Accounts()
    accounts.add_window("w-0", window_of(("req-a-1", 100, 10), predicted_mj=123))
    assert 1.0 == accounts.balance().predicted_over_measured
    for cause in ("worker_lost", "meter_lost", "counter_reset"):
        accounts.add_window("w-0", window_of(predicted_mj=10**6, causes=((cause, 3),)))
    balance = accounts.balance()
    assert (1.0, 123, 123, 4) == (
        balance.predicted_over_measured, balance.predicted_mj, balance.measured_mj, balance.num_windows
    )  # fmt: skip
    assert (("counter_reset", 3), ("meter_lost", 3), ("worker_lost", 3)) == balance.causes


def test_nothing_measured_is_no_ratio() -> None:
    """None, not 0 and not a division by it; without a window the grade is the lowest."""
    balance = Accounts().balance()
    assert (None, "D", ()) == (balance.predicted_over_measured, balance.grade, balance.meters)


def test_causes_and_meters_are_bounded() -> None:
    """Words from a worker cannot grow our memory; those known go on being counted."""
    accounts = Accounts()
    for number in range(MAX_CAUSES + 10):
        accounts.add_window("w-0", window_of(causes=((f"cause-{number}", 1),), meter=f"meter-{number}"))
    accounts.add_window("w-0", window_of(causes=(("cause-0", 1),)))
    totals = accounts.windows["w-0"]
    assert (MAX_CAUSES, MAX_CAUSES, 2) == (len(totals.causes), len(totals.meters), totals.causes["cause-0"])


# -- postings and rows


def test_a_posting_moves_in_flight_to_its_payer() -> None:
    """The operator's part is named within the requests'."""
    accounts = Accounts()
    accounts.add_window("w-0", window_of(("req-a-1", 100, 10), ("req-b-1", 50, 7)))
    accounts.add_posting("w-0", "alpha", energy_mj=100, gpu_us=10)
    accounts.add_posting("w-0", OPERATOR, energy_mj=50, gpu_us=7)
    balance = accounts.balance()
    assert (150, 50, 0, 0, 0) == (
        balance.requests_mj, balance.operator_mj, balance.in_flight_mj, balance.in_flight_gpu_us, balance.difference_mj
    )  # fmt: skip
    assert [("(operator)", 50, 7), ("alpha", 100, 10)] == [
        (row.tenant, row.energy_mj, row.gpu_us) for row in accounts.tenant_rows()
    ]


def test_each_worker_has_a_balance_of_its_own() -> None:
    """And a row; they sum to the whole."""
    accounts = Accounts()
    accounts.add_window("w-1", window_of(("req-a-1", 100, 10)))
    accounts.add_window("w-0", window_of(("req-b-1", 40, 4), grade=Grade.C))
    accounts.add_posting("w-0", OPERATOR, energy_mj=40, gpu_us=4)
    first, second = accounts.worker_rows()
    assert (("w-0", 113, 40, 0, 4), ("w-1", 173, 0, 100, 0)) == (
        (first.worker_id, first.meter_mj, first.requests_mj, first.in_flight_mj, first.requests_gpu_us),
        (second.worker_id, second.meter_mj, second.requests_mj, second.in_flight_mj, second.requests_gpu_us),
    )
    for row in (first, second):
        assert row.meter_mj == (
            row.requests_mj + row.idle_mj + row.overhead_mj + row.unattributed_mj + row.in_flight_mj
        )
        assert row.meter_mj == accounts.balance(row.worker_id).meter_mj
    assert (40, 0) == (accounts.balance("w-0").operator_mj, accounts.balance("w-1").operator_mj)
    assert ("C", "A", "C") == (
        accounts.balance("w-0").grade, accounts.balance("w-1").grade, accounts.balance().grade
    )  # fmt: skip


def test_a_row_that_was_handed_out_does_not_change() -> None:
    """Snapshots are kept; what is booked later is not in them."""
    accounts = Accounts()
    accounts.add_window("w-0", window_of(causes=(("clamped", 1),)))
    (row,), (tenant,) = accounts.worker_rows(), (accounts.tokens_of("alpha"), accounts.tenant_rows())[1]
    before = dataclasses.asdict(row)
    accounts.add_window("w-0", window_of(causes=(("clamped", 1), ("late_steps", 2)), meter="another"))
    tokens = accounts.tokens_of("alpha")
    tokens.add(input_tokens=1, cached_tokens=0, output_tokens=1, cost_nano=5, outcome=Outcome.COMPLETED)
    assert before == dataclasses.asdict(row)
    assert 0 == tenant.attempts


def test_tokens_are_counted_by_outcome() -> None:
    """Aborted and failed attempts are named among all."""
    tokens = Accounts().tokens_of("alpha")
    for outcome in (Outcome.COMPLETED, Outcome.ABORTED, Outcome.FAILED, Outcome.FAILED):
        tokens.add(input_tokens=7, cached_tokens=2, output_tokens=3, cost_nano=5, outcome=outcome)
    assert (4, 1, 2, 28, 8, 12) == (
        tokens.attempts, tokens.aborted, tokens.failed, tokens.input_tokens, tokens.cached_tokens, tokens.output_tokens
    )  # fmt: skip
