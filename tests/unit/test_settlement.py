"""Settlement: once each, by whichever way comes first; in flight returns to 0; memory has an end."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from scheduler.accounting import settlement as settlement_module
from scheduler.accounting.accounts import OPERATOR, Account, Kind
from scheduler.accounting.settlement import Charge, Settlement, request_id_of
from scheduler.core.actions import Payer
from scheduler.core.request import CostPlus, Rates
from tests.scripted_link import posting_of, window_of
from workers.types import Grade, Outcome


def charge_of(attempt_id: str, *, worker_id: str = "w-0", **fields: object) -> Charge:
    values: dict[str, object] = {
        "tenant": "alpha",
        "model": "m",
        "outcome": Outcome.COMPLETED,
        "input_tokens": 7,
        "cached_tokens": 2,
        "output_tokens": 3,
        "attempt_number": int(attempt_id.rpartition("-")[2]),
        "scheduled_tokens": 9,
        **fields,
    }
    return Charge(
        request_id=request_id_of(attempt_id),
        attempt_id=attempt_id,
        worker_id=worker_id,
        **values,  # type: ignore[arg-type]
    )


def opened(**options: int) -> Settlement:
    settlement = Settlement(**options)
    settlement.open_worker("w-0", incarnation="life-1")
    return settlement


def energy_of(settlement: Settlement, tenant: str) -> tuple[int, int]:
    return settlement.accounts.serving.total(Kind.REQUESTS, tenant=tenant)


def is_closed(settlement: Settlement) -> bool:
    """Nothing in flight, nothing open, and every millijoule has its place."""
    balance = settlement.accounts.balance()
    return (0, 0, 0, 0) == (
        balance.in_flight_mj, balance.in_flight_gpu_us, balance.difference_mj, settlement.num_open
    ) and settlement.accounts.serving.difference() == (0, 0)  # fmt: skip


# -- the outbox's numbers


def test_a_number_is_new_once() -> None:
    """However often a reconnect repeats it."""
    settlement = opened()
    assert [True, True, False, False, True] == [settlement.is_new("w-0", number) for number in (1, 2, 1, 2, 3)]
    assert (3, 2) == (settlement.watermark("w-0"), settlement.duplicates_total)


def test_what_came_before_the_first_number_was_acknowledged_to_somebody_else() -> None:
    """A worker that is adopted goes on counting; what is older than its first record here is not asked for."""
    settlement = opened()
    assert settlement.watermark("w-0") is None
    assert settlement.is_new("w-0", 41)
    assert (41, False) == (settlement.watermark("w-0"), settlement.is_new("w-0", 40))
    assert settlement.watermark("unknown") is None


def test_a_gap_holds_the_watermark_until_it_is_filled() -> None:
    """Only what is booked without a hole may be acknowledged."""
    settlement = opened()
    for number, watermark in ((1, 1), (3, 1), (4, 1), (2, 4)):
        assert settlement.is_new("w-0", number)
        assert watermark == settlement.watermark("w-0")
    assert not settlement.is_new("w-0", 3)


def test_a_gap_that_never_fills_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory: the watermark jumps over the hole to the end of what is known, and nothing is booked twice."""
    monkeypatch.setattr(settlement_module, "MAX_AHEAD", 3)
    settlement = opened()
    assert settlement.is_new("w-0", 1)
    for number in (3, 4, 6):
        assert settlement.is_new("w-0", number)
        assert 1 == settlement.watermark("w-0")
    assert settlement.is_new("w-0", 8)
    assert 4 == settlement.watermark("w-0")
    assert [False] * 5 == [settlement.is_new("w-0", number) for number in (2, 3, 4, 6, 8)]
    assert settlement.is_new("w-0", 5)
    assert 6 == settlement.watermark("w-0")


def test_another_incarnation_counts_anew_and_the_same_one_goes_on() -> None:
    """A successor under the same id begins at 1; a reconnect repeats old numbers."""
    settlement = opened()
    settlement.is_new("w-0", 1)
    settlement.open_worker("w-0", incarnation="life-1")
    assert not settlement.is_new("w-0", 1)
    settlement.open_worker("w-0", incarnation="life-2")
    assert settlement.is_new("w-0", 1)


def test_workers_count_apart() -> None:
    """Number 1 of each is its own."""
    settlement = opened()
    settlement.open_worker("w-1", incarnation="life-1")
    assert settlement.is_new("w-0", 1)
    assert settlement.is_new("w-1", 1)


# -- one attempt


@pytest.mark.parametrize("order", ["wcp", "wpc", "cwp", "pcw", "cpw", "pwc"])
def test_an_attempt_is_charged_and_posted_in_any_order(order: str) -> None:
    """Window, charge and posting: the tenant pays what its window gave, nothing stays in flight, details are final."""
    settlement = opened()
    steps = {
        "w": lambda: settlement.window("w-0", window_of(("req-a-1", 100, 10))),
        "c": lambda: settlement.charge(charge_of("req-a-1")),
        "p": lambda: settlement.post_energy("w-0", posting_of("req-a-1", 100, 10)),
    }
    for step in order:
        steps[step]()
    assert is_closed(settlement)
    assert (100, 10) == energy_of(settlement, "alpha")
    assert settlement.is_charged("req-a-1")
    details = settlement.details("req-a")
    assert details is not None
    assert details.is_final
    assert posting_of("req-a-1", 100, 10) == details.postings["req-a-1"]


def test_a_second_charge_and_a_second_posting_change_nothing() -> None:
    """Before and after the attempt is closed."""
    settlement = opened()
    settlement.window("w-0", window_of(("req-a-1", 100, 10)))
    assert [True, False] == [settlement.charge(charge_of("req-a-1")) for _ in range(2)]
    assert [True, False] == [settlement.post_energy("w-0", posting_of("req-a-1")) for _ in range(2)]
    assert not settlement.charge(charge_of("req-a-1", payer=Payer.OPERATOR))
    assert (3, 1) == (settlement.duplicates_total, settlement.accounts.tokens_of("alpha").attempts)
    assert 0 == settlement.accounts.tokens_of(OPERATOR).attempts
    assert is_closed(settlement)


def test_a_posting_twice_before_the_charge_is_taken_once() -> None:
    """Its energy waits in flight for whoever pays."""
    settlement = opened()
    settlement.window("w-0", window_of(("req-a-1", 100, 10)))
    assert [True, False] == [settlement.post_energy("w-0", posting_of("req-a-1")) for _ in range(2)]
    assert (100, 1) == (settlement.accounts.balance().in_flight_mj, settlement.num_open)
    assert not settlement.is_charged("req-a-1")


def test_a_posting_that_says_otherwise_is_counted_and_never_believed() -> None:
    """What moves is what the windows gave."""
    settlement = opened()
    settlement.window("w-0", window_of(("req-a-1", 100, 10)))
    settlement.charge(charge_of("req-a-1"))
    settlement.post_energy("w-0", posting_of("req-a-1", 130, 10))
    assert (100, 10) == energy_of(settlement, "alpha")
    assert 30 == settlement.accounts.balance().posting_difference_mj
    settlement.post_energy("w-0", posting_of("req-b-1", 9, 0))
    settlement.charge(charge_of("req-b-1"))
    assert 39 == settlement.accounts.balance().posting_difference_mj, "whichever of the two comes first"
    assert is_closed(settlement)


@pytest.mark.parametrize("order", ["charge first", "posting first", "given up"])
def test_cost_plus_is_corrected_once_when_its_energy_is_booked(order: str) -> None:
    """By what its windows gave, whatever comes first; energy that still arrives later moves no money."""
    settlement = opened()
    settlement.window("w-0", window_of(("req-a-1", 100, 10)))
    rates = Rates(plus=CostPlus(gpu_nano_per_s=1_000_000))
    charge = charge_of("req-a-1", rates=rates, cost_nano=33, plus_nano=25)
    if order == "posting first":
        settlement.post_energy("w-0", posting_of("req-a-1", 100, 10))
    settlement.charge(charge)
    if order == "charge first":
        assert 33 == settlement.accounts.tokens_of("alpha").cost_nano
        settlement.post_energy("w-0", posting_of("req-a-1", 100, 10))
    settlement.give_up("req-a-1")
    settlement.window("w-0", window_of(("req-a-1", 7, 5), counter_mj=2000))
    assert 33 - 25 + 10 == settlement.accounts.tokens_of("alpha").cost_nano


def test_a_strangers_posting_is_no_difference() -> None:
    """Its first windows may stand in the book of a control plane that was killed; what came here has its place."""
    settlement = opened()
    settlement.window("w-0", window_of(("req-z-1", 100, 10)))
    settlement.charge(charge_of("req-z-1", attempt_number=0, payer=Payer.OPERATOR))
    settlement.post_energy("w-0", posting_of("req-z-1", 130, 13))
    settlement.post_energy("w-0", posting_of("req-y-1", 5, 1))
    settlement.give_up("req-y-1")
    assert (100, 0) == (energy_of(settlement, OPERATOR)[0], settlement.accounts.balance().posting_difference_mj)
    assert is_closed(settlement)


def test_the_operator_pays_what_was_executed_in_vain() -> None:
    """Tokens and energy of the first try are the house's, of the second the tenant's; the request counts once."""
    settlement = opened()
    settlement.window("w-0", window_of(("req-a-1", 100, 10), ("req-a-2", 60, 6)))
    settlement.charge(charge_of("req-a-1", payer=Payer.OPERATOR, outcome=Outcome.FAILED, output_tokens=1))
    settlement.charge(charge_of("req-a-2"))
    for attempt_id in ("req-a-1", "req-a-2"):
        settlement.post_energy("w-0", posting_of(attempt_id))
    operator, alpha = settlement.accounts.tokens_of(OPERATOR), settlement.accounts.tokens_of("alpha")
    assert ((0, 1, 1, 1), (1, 1, 0, 3)) == (
        (operator.requests, operator.attempts, operator.failed, operator.output_tokens),
        (alpha.requests, alpha.attempts, alpha.failed, alpha.output_tokens),
    )
    assert ((100, 10), (60, 6)) == (energy_of(settlement, OPERATOR), energy_of(settlement, "alpha"))
    assert is_closed(settlement)


def test_a_worker_has_the_output_tokens_of_its_charges() -> None:
    """Whoever pays for them; once."""
    settlement = Settlement()
    settlement.post_energy("w-0", posting_of("req-a-1", 5, 1))
    settlement.charge(charge_of("req-a-1", payer=Payer.OPERATOR, outcome=Outcome.FAILED, output_tokens=4))
    for _ in range(2):
        settlement.charge(charge_of("req-a-2", attempt_number=2, output_tokens=3))
    (row,) = settlement.accounts.worker_rows()
    assert ("w-0", 7) == (row.worker_id, row.output_tokens)


def test_a_charge_from_the_last_progress_is_counted_as_estimated() -> None:
    """So that a report can say how much of it is."""
    settlement = opened()
    settlement.charge(charge_of("req-a-1", is_exact=False, token_difference=0))
    assert 1 == settlement.accounts.tokens_of("alpha").estimated


def test_token_differences_are_summed() -> None:
    """Of the identity, and sequences that could not be compared."""
    settlement = opened()
    settlement.charge(charge_of("req-a-1", token_difference=2))
    settlement.charge(charge_of("req-b-1", token_difference=1, inexact_sequences=3))
    balance = settlement.accounts.balance()
    assert (3, 3) == (balance.token_difference, balance.inexact_sequences)


# -- the tokens that energy was split by


@pytest.mark.parametrize(
    ("computed", "scheduled", "overrun", "expected"),
    [(9, 9, 0, 0), (7, 9, 0, 2), (9, 10, 1, 0), (10, 10, 1, 0), (11, 9, 0, 2), (0, 9, 0, 9)],
)
@pytest.mark.parametrize("is_posted_first", [False, True])
def test_energy_that_was_split_by_other_tokens_is_counted(
    computed: int, scheduled: int, overrun: int, expected: int, is_posted_first: bool
) -> None:
    """Steps that never reached the meter's side; what ran beyond the stop may be in the energy or not."""
    settlement = opened()
    charge = charge_of("req-a-1", scheduled_tokens=scheduled, overrun_tokens=overrun)
    posting = posting_of("req-a-1", computed_tokens=computed)
    for step in sorted(("charge", "posting"), reverse=is_posted_first):
        assert settlement.charge(charge) if step == "charge" else settlement.post_energy("w-0", posting)
    assert expected == settlement.accounts.balance().metered_token_difference


@pytest.mark.parametrize(
    ("scheduled", "fields"),
    [(None, {"computed_tokens": 1}), (9, {"computed_tokens": None}), (9, {"computed_tokens": 1, "complete": False})],
)
def test_what_was_not_counted_on_both_sides_is_not_compared(scheduled: int | None, fields: dict[str, object]) -> None:
    """An aggregate hook, a lost window: that is said elsewhere."""
    settlement = opened()
    settlement.charge(charge_of("req-a-1", scheduled_tokens=scheduled))
    settlement.post_energy("w-0", posting_of("req-a-1", **fields))
    assert 0 == settlement.accounts.balance().metered_token_difference


# -- giving up


def test_an_attempt_that_is_given_up_takes_its_energy_with_it_and_stragglers_follow() -> None:
    """To the same account; a late posting is a duplicate, and the details say that it was given up."""
    settlement = opened()
    settlement.window("w-0", window_of(("req-a-1", 60, 6), grade=Grade.B))
    settlement.window("w-0", window_of(("req-a-1", 40, 4), grade=Grade.A))
    settlement.charge(charge_of("req-a-1"))
    settlement.give_up("req-a-1")
    assert is_closed(settlement)
    settlement.window("w-0", window_of(("req-a-1", 30, 3)))
    assert not settlement.post_energy("w-0", posting_of("req-a-1", 130, 13))
    assert (130, 13) == energy_of(settlement, "alpha")
    assert is_closed(settlement)
    details = settlement.details("req-a")
    assert details is not None
    posting = details.postings["req-a-1"]
    assert ("given_up", False, 100, Grade.B) == (posting.policy, posting.complete, posting.energy_mj, posting.grade)
    settlement.give_up("req-a-1")
    settlement.give_up("req-unknown-1")
    assert is_closed(settlement)


def test_what_nobody_was_charged_for_is_the_operators() -> None:
    """An attempt of an earlier control plane that was seen in windows only; a charge that comes after all is late."""
    settlement = opened()
    settlement.window("w-0", window_of(("req-a-1", 100, 10)))
    settlement.give_up("req-a-1")
    assert (100, 10) == energy_of(settlement, OPERATOR)
    assert not settlement.charge(charge_of("req-a-1"))
    assert is_closed(settlement)


def test_a_posting_that_was_there_is_kept_when_its_charge_is_given_up() -> None:
    """Nobody's words are replaced by ours."""
    settlement = opened()
    settlement.charge(charge_of("req-a-2"))  # so that the request has details
    settlement.post_energy("w-0", posting_of("req-a-1", 0, 0))
    settlement.give_up("req-a-1")
    details = settlement.details("req-a")
    assert details is not None
    assert "shapley" == details.postings["req-a-1"].policy


def test_a_closed_worker_leaves_nothing_in_flight() -> None:
    """Its attempts only; a second close finds nothing."""
    settlement = opened()
    settlement.open_worker("w-1", incarnation="life-1")
    settlement.window("w-0", window_of(("req-a-1", 100, 10), ("req-b-1", 5, 1)))
    settlement.window("w-1", window_of(("req-c-1", 7, 1)))
    settlement.charge(charge_of("req-a-1"))
    assert [2, 0] == [settlement.close_worker("w-0") for _ in range(2)]
    serving = settlement.accounts.serving
    assert (0, 0) == serving.balance(Account(Kind.IN_FLIGHT, "w-0"))
    assert (7, 1) == serving.balance(Account(Kind.IN_FLIGHT, "w-1"))
    assert ((100, 10), (5, 1)) == (energy_of(settlement, "alpha"), energy_of(settlement, OPERATOR))


def test_a_window_that_does_not_add_up_leaves_no_trace() -> None:
    """No attempt is opened for its shares."""
    settlement = opened()
    with pytest.raises(ValueError, match="does not add up"):
        settlement.window("w-0", window_of(("req-a-1", 100, 10), meter_mj=1))
    assert (0, []) == (settlement.num_open, list(settlement.accounts.serving.accounts()))
    assert settlement.last_counter_mj("w-0") is None


def test_the_last_counter_is_that_of_the_last_window() -> None:
    """Where a successor's first window starts; calibration counts too."""
    settlement = opened()
    settlement.window("w-0", window_of(counter_mj=500))
    settlement.window("w-0", window_of(counter_mj=900, calibrating=True))
    assert (900, None) == (settlement.last_counter_mj("w-0"), settlement.last_counter_mj("w-1"))


@pytest.mark.parametrize("is_given_up", [False, True])
def test_whoever_holds_energy_hears_once_what_was_booked(is_given_up: bool) -> None:
    """With a posting or without one: the amounts of the windows, after the charge, never again."""
    settlement, heard = opened(), []
    settlement.on_settled = lambda *words: heard.append((*words, settlement.is_charged("a-1")))
    settlement.window("w-0", window_of(("a-1", 40, 4)))
    settlement.charge(charge_of("a-1"))
    assert [] == heard
    for _ in range(2):
        if is_given_up:
            settlement.give_up("a-1")
        else:
            settlement.post_energy("w-0", posting_of("a-1", 999, 999))
    assert [("a-1", 40, 4, True)] == heard


# -- bounds


def test_details_are_kept_for_so_many_requests() -> None:
    """The oldest are forgotten, their accounts are not."""
    settlement = opened(max_details=2)
    for name in "abc":
        settlement.charge(charge_of(f"req-{name}-1"))
        settlement.post_energy("w-0", posting_of(f"req-{name}-1", 0, 0))
    assert [True, False, False] == [settlement.details(f"req-{name}") is None for name in "abc"]
    assert 3 == settlement.accounts.tokens_of("alpha").attempts


def test_closed_attempts_are_remembered_up_to_a_bound() -> None:
    """Within it a straggler's energy follows its attempt; the table itself does not grow."""
    settlement = opened(max_closed=2)
    for name in "abcd":
        settlement.charge(charge_of(f"req-{name}-1"))
        settlement.post_energy("w-0", posting_of(f"req-{name}-1", 0, 0))
    assert 2 == len(settlement.books.closed)
    settlement.window("w-0", window_of(("req-d-1", 5, 1)))
    assert ((5, 1), 0) == (energy_of(settlement, "alpha"), settlement.num_open)


async def test_a_commit_in_memory_is_done_at_once() -> None:
    """Nothing to wait for."""
    await opened().commit()


@pytest.mark.parametrize(("attempt_id", "request_id"), [("req-abc-2", "req-abc"), ("req-a-b-13", "req-a-b")])
def test_an_attempt_id_names_its_request(attempt_id: str, request_id: str) -> None:
    """Everything before its last hyphen."""
    assert request_id == request_id_of(attempt_id)


# -- any order at all


WORKERS = ("w-0", "w-1")
TENANTS = ("alpha", "beta")
NAMES = st.sampled_from([f"req-{name}-{number}" for name in "abcd" for number in (1, 2)])


def worker_of(attempt_id: str) -> str:
    """Attempts stay where they are: the first tries on one worker, the second on the other."""
    return WORKERS[int(attempt_id[-1]) - 1]


class AnyOrder(RuleBasedStateMachine):
    """Windows, charges, postings and ends of workers in any order, again and late; a plain model says what is due."""

    @initialize()
    def begin(self) -> None:
        self.settlement = Settlement(max_closed=100)
        self.windows_mj = 0
        self.windows_us = 0
        self.numbers: dict[str, set[int]] = {}
        self.lives = 0
        self.charged: dict[str, str] = {}
        self.num_records = 0
        for worker_id in WORKERS:
            self.come_back(worker_id)

    @rule(worker_id=st.sampled_from(WORKERS))
    def come_back(self, worker_id: str) -> None:
        """A new process under the old id."""
        self.lives += 1
        self.numbers[worker_id] = set()
        self.settlement.open_worker(worker_id, incarnation=f"life-{self.lives}")

    @rule(worker_id=st.sampled_from(WORKERS), number=st.integers(1, 12))
    def number(self, worker_id: str, number: int) -> None:
        """Gaps, repetitions, disorder: a number is new at most once a life, and never below the first one seen."""
        seen = self.numbers[worker_id]
        is_new = self.settlement.is_new(worker_id, number)
        assert is_new == (number not in seen and (not seen or number > min(seen)))
        if is_new:
            seen.add(number)
        watermark = self.settlement.watermark(worker_id)
        assert watermark is not None
        assert set(range(min(seen), watermark + 1)) <= seen
        assert watermark + 1 not in seen

    @rule(
        shares=st.lists(st.tuples(NAMES, st.integers(0, 10**9), st.integers(0, 10**9)), max_size=4),
        worker_id=st.sampled_from(WORKERS),
        unattributed_mj=st.integers(-(10**6), 10**6),
        is_broken=st.booleans(),
    )
    def window(self, shares: list[tuple[str, int, int]], worker_id: str, unattributed_mj: int, is_broken: bool) -> None:
        shares = [share for share in shares if worker_of(share[0]) == worker_id]
        in_flight_mj = sum(share[1] for share in shares)
        meter_mj = 70 + unattributed_mj + in_flight_mj
        record = window_of(*shares, unattributed_mj=unattributed_mj, meter_mj=meter_mj + is_broken)
        if is_broken:
            with pytest.raises(ValueError):
                self.settlement.window(worker_id, record)
            return
        self.settlement.window(worker_id, record)
        self.windows_mj += meter_mj
        self.windows_us += record.busy_gpu_us

    @rule(attempt_id=NAMES, tenant=st.sampled_from(TENANTS), payer=st.sampled_from(list(Payer)))
    def charge(self, attempt_id: str, tenant: str, payer: Payer) -> None:
        charge = charge_of(attempt_id, worker_id=worker_of(attempt_id), tenant=tenant, payer=payer)
        is_first = not self.settlement.is_charged(attempt_id)
        assert is_first == self.settlement.charge(charge)
        if is_first:
            assert attempt_id not in self.charged, "charged twice"
            self.charged[attempt_id] = charge.account

    @rule(attempt_id=NAMES, energy_mj=st.integers(0, 100))
    def post(self, attempt_id: str, energy_mj: int) -> None:
        self.settlement.post_energy(worker_of(attempt_id), posting_of(attempt_id, energy_mj))

    @rule(attempt_id=NAMES)
    def give_up(self, attempt_id: str) -> None:
        self.settlement.give_up(attempt_id)

    @rule(worker_id=st.sampled_from(WORKERS))
    def close_worker(self, worker_id: str) -> None:
        self.settlement.close_worker(worker_id)
        assert (0, 0) == self.settlement.accounts.serving.balance(Account(Kind.IN_FLIGHT, worker_id))

    @invariant()
    def every_unit_sums_to_zero(self) -> None:
        """And what the meters gave is what the accounts hold."""
        accounts = self.settlement.accounts
        assert (0, 0) == accounts.serving.difference()
        balance = accounts.balance()
        assert (0, self.windows_mj, self.windows_us) == (
            balance.difference_mj, balance.meter_mj, balance.busy_gpu_us
        )  # fmt: skip
        assert balance.busy_gpu_us == balance.requests_gpu_us + balance.overhead_gpu_us + balance.in_flight_gpu_us

    @invariant()
    def tokens_are_those_of_first_charges(self) -> None:
        accounts = self.settlement.accounts
        for account in (*TENANTS, OPERATOR):
            num_charged = sum(1 for payer in self.charged.values() if payer == account)
            assert (num_charged, 3 * num_charged) == (
                accounts.tokens_of(account).attempts, accounts.tokens_of(account).output_tokens
            )  # fmt: skip

    @invariant()
    def what_is_in_flight_belongs_to_open_attempts(self) -> None:
        open_mj = sum(attempt.energy_mj for attempt in self.settlement.books.open.values())
        assert open_mj == self.settlement.accounts.balance().in_flight_mj
        assert self.settlement.books.open.keys().isdisjoint(self.settlement.books.closed)

    def teardown(self) -> None:
        if hasattr(self, "settlement"):
            for worker_id in WORKERS:
                self.settlement.close_worker(worker_id)
            assert is_closed(self.settlement)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=25, stateful_step_count=25, deadline=None, print_blob=True)
