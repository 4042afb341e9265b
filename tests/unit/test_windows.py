"""Windows hold what the counter was seen to count, and attempts get out what windows put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.attribution import Attribution
from workers.balance import check_balance
from workers.engine_model import EngineModel
from workers.outbox import Outbox
from workers.step_curves import StepCurves
from workers.steps import StepRecord
from workers.types import EnergyPosting, Grade, Phase, WindowRecord
from workers.windows import MAX_BOUNDARIES, STANDING_S, MeterReading, Windows

PRIOR = StepCurves(time_s=(6e-3, 3e-5, 9e-5, 0.0), energy_joules=(3.0, 0.02, 0.07, 0.0), idle_watts=100.0, source="x")
INFINITY = float("inf")


class Bench:
    """Windows with everything around them; time is whatever a test says."""

    def __init__(
        self, *, last_counter_mj: int | None = None, max_records: int = 1_000, hook: Grade = Grade.A, rows: int = 10_000
    ) -> None:
        self.outbox = Outbox(max_records=max_records)
        model = EngineModel(prior=PRIOR)
        self.windows = Windows(
            attribution=Attribution(model=model, num_gpus=1, max_pending_rows=rows),
            outbox=self.outbox,
            unix_clock=lambda: 1_000.0,
            meter_name=lambda: "scripted",
            hook_grade=hook,
            last_counter_mj=last_counter_mj,
            late_s=60.0,
        )
        self.records: list[WindowRecord | EnergyPosting] = []

    def read(self, at_s: float, counter_mj: int, *, fault: str = "", now_s: float | None = None) -> None:
        reading = MeterReading(at_s=at_s, counter_mj=counter_mj, grade=Grade.A, fault=fault)
        self.windows.add_reading(reading, now_s=at_s if now_s is None else now_s)

    def lose(self, now_s: float) -> None:
        self.windows.add_reading(None, now_s=now_s)

    def step(self, started_s: float, ended_s: float, *payers: str | None) -> None:
        size = len(payers)
        zeros = np.zeros(size, dtype=np.int64)
        self.windows.add_step(
            StepRecord(
                step=0,
                started_s=started_s,
                ended_s=ended_s,
                payers=payers,
                prefill_tokens=zeros,
                decode_tokens=zeros + 1,
                context_tokens=zeros,
                recomputed_tokens=zeros,
            )
        )

    def settle(self, now_s: float = INFINITY, num_running: int = 0) -> int:
        return self.windows.settle(now_s=now_s, num_running=num_running)

    def take(self) -> None:
        """Reads the outbox and acknowledges it."""
        for numbered in self.outbox.take_unsent():
            assert not hasattr(numbered.record, "sequences")
            self.records.append(numbered.record)  # type: ignore[arg-type]
            self.outbox.ack(numbered.number)

    @property
    def found(self) -> list[WindowRecord]:
        self.take()
        return [record for record in self.records if isinstance(record, WindowRecord)]

    @property
    def postings(self) -> dict[str, EnergyPosting]:
        self.take()
        found = [record for record in self.records if isinstance(record, EnergyPosting)]
        assert len(found) == len({posting.attempt_id for posting in found})
        return {posting.attempt_id: posting for posting in found}


def sum_of(windows: list[WindowRecord]) -> int:
    for window in windows:
        balance = check_balance([window])
        assert (0, 0) == (balance.difference_mj, balance.difference_gpu_us)
    return sum(window.meter_mj for window in windows)


def causes_of(window: WindowRecord) -> dict[str, int]:
    return dict(window.causes)


# -- the plain way


def test_an_attempt_gets_what_its_windows_put_in() -> None:
    """Two windows, one posting with their sum, its grade and the tokens it was split by."""
    bench = Bench()
    bench.read(0.0, 1_000)
    bench.windows.open_attempt("a")
    bench.step(4.0, 6.0, "a")
    bench.read(5.0, 1_000 + 401_535)
    bench.read(10.0, 1_000 + 803_070)
    bench.windows.close_attempt("a")
    assert 2 == bench.settle(10.3)
    first, second = bench.found
    assert 803_070 == sum_of([first, second])
    assert (400_000, 1_535, 401_535) == (first.idle_mj, first.in_flight_mj, first.meter_mj)
    posting = bench.postings["a"]
    assert (3_070, 2_000_000, Grade.A, True, 1) == (
        posting.energy_mj, posting.gpu_us, posting.grade, posting.complete, posting.computed_tokens,
    )  # fmt: skip
    assert 0 == bench.windows.in_flight_mj


def test_a_window_waits_for_the_feed_of_steps() -> None:
    """While work runs the last step before the edge may still be on its way."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.read(5.0, 500_000)
    assert 0 == bench.settle(5.2, num_running=1)
    bench.step(4.9, 5.1, None)
    assert 1 == bench.settle(5.2, num_running=1)


def test_an_idle_engine_settles_after_a_moment() -> None:
    """Nothing runs, nothing can come but what is on its way."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.read(5.0, 500_000)
    assert [0, 1] == [bench.settle(5.2), bench.settle(5.25)]


def test_steps_that_never_come_are_given_up() -> None:
    """After 60 s, named and graded down; or when too many edges wait."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.read(5.0, 500_000)
    assert [0, 1] == [bench.settle(64.9, num_running=1), bench.settle(65.0, num_running=1)]
    assert ("steps_late", 0) in bench.found[0].causes
    assert Grade.C == bench.found[0].grade
    for index in range(MAX_BOUNDARIES + 1):
        bench.read(70.0 + index, 600_000 + index)
    assert 1 == bench.settle(71.0, num_running=1)


def test_the_same_reading_makes_no_edge() -> None:
    """The counter has not moved: the window goes on."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.read(5.0, 500_000)
    bench.read(5.0, 500_000, now_s=5.05)
    assert 1 == bench.settle()


def test_a_step_of_a_closed_attempt_is_overhead() -> None:
    """A straggler after the posting: the attempt is never charged twice."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.windows.open_attempt("a")
    bench.windows.close_attempt("a")
    assert 0 == bench.postings["a"].energy_mj
    bench.step(0.0, 1.0, "a")
    bench.read(5.0, 403_070)
    bench.settle()
    (window,) = bench.found
    assert (3_070, 1_000_000, ()) == (window.overhead_mj, window.overhead_gpu_us, window.shares)
    assert 403_070 == sum_of([window])


def test_a_closing_attempt_waits_for_its_last_window() -> None:
    """Its last step was not measured yet."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.windows.open_attempt("a")
    bench.step(0.0, 1.0, "a")
    bench.windows.close_attempt("a")
    assert {} == bench.postings
    assert (3_070, 1_000_000) == bench.windows.provisional("a")
    bench.read(5.0, 403_070)
    bench.settle()
    assert 3_070 == bench.postings["a"].energy_mj


def test_unknown_attempts_are_not_closed() -> None:
    """Never opened, or posted already."""
    bench = Bench()
    bench.windows.close_attempt("nobody")
    assert {} == bench.postings
    assert (0, 0) == bench.windows.provisional("nobody")


def test_dropped_records_grade_their_window_down() -> None:
    """And it does not teach."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.windows.add_dropped(3)
    bench.read(5.0, 500_000)
    bench.read(10.0, 1_000_000)
    bench.settle()
    first, second = bench.found
    assert (Grade.B, Grade.A) == (first.grade, second.grade)
    assert "step_records_dropped" in causes_of(first)


def test_the_worst_grade_of_its_windows_is_the_attempts() -> None:
    """One bad window is enough; an aggregate hook is never better than B and counts no tokens."""
    bench = Bench(hook=Grade.B)
    bench.read(0.0, 0)
    bench.windows.open_attempt("a")
    bench.step(0.0, 7.0, "a")
    bench.lose(5.0)
    bench.read(10.0, 900_000)
    bench.windows.close_attempt("a")
    bench.settle()
    assert [Grade.D, Grade.C] == [window.grade for window in bench.found]
    assert (Grade.D, None) == (bench.postings["a"].grade, bench.postings["a"].computed_tokens)


# -- meters that fail


def test_a_lost_meter_is_not_measured_energy() -> None:
    """The attempt pays the prediction, unattributed gives it; when the meter is back it gets what was used."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.windows.open_attempt("a")
    bench.step(0.0, 1.0, "a")
    bench.lose(5.0)
    bench.settle()
    (lost,) = bench.found
    assert (0, 400_000, 3_070, -403_070) == (lost.meter_mj, lost.idle_mj, lost.in_flight_mj, lost.unattributed_mj)
    assert ("predicted", Grade.D, -403_070) == (lost.meter, lost.grade, causes_of(lost)["meter_lost"])
    bench.read(10.0, 910_000)
    bench.settle()
    back = bench.found[1]
    assert 910_000 == sum_of(bench.found)
    assert (403_070, Grade.C) == (causes_of(back)["meter_back"], back.grade)
    assert 910_000 - 403_070 == back.idle_mj + back.unattributed_mj - 403_070


def test_a_worker_killed_without_its_meter_hands_over_the_true_counter() -> None:
    """What the model stood in for is not booked twice: the gap of the next worker is measured energy."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.read(5.0, 500_000)
    bench.lose(10.0)
    bench.settle()
    last = bench.found[-1]
    assert 500_000 == last.counter_mj == sum_of(bench.found)
    successor = Bench(last_counter_mj=last.counter_mj)
    successor.read(20.0, 2_000_000)
    assert 2_000_000 == sum_of(bench.found) + sum_of(successor.found)


def test_a_first_window_starts_at_the_last_durable_reading() -> None:
    """The gap belongs to nobody who could be asked."""
    bench = Bench(last_counter_mj=1_000)
    bench.read(0.0, 251_000)
    (gap,) = bench.found
    assert (250_000, 250_000, 251_000) == (gap.meter_mj, gap.unattributed_mj, gap.counter_mj)
    assert (("worker_lost", 250_000),) == gap.causes
    assert gap.started_s == gap.ended_s


def test_a_counter_that_began_anew_before_the_start_is_a_named_reset() -> None:
    """What it shows was used since."""
    bench = Bench(last_counter_mj=900_000)
    bench.read(0.0, 4_000)
    assert (("counter_reset", 4_000),) == bench.found[0].causes
    assert (4_000, Grade.D) == (bench.found[0].meter_mj, bench.found[0].grade)


def test_a_counter_without_a_gap_books_nothing() -> None:
    """The last worker's last window ended here."""
    bench = Bench(last_counter_mj=77)
    bench.read(0.0, 77)
    assert [] == bench.found


def test_a_gap_is_not_lost_where_the_meter_is_missing_at_the_start() -> None:
    """The first reading comes later and holds the gap and the window: the steps pay what is predicted."""
    bench = Bench(last_counter_mj=1_000_000)
    bench.lose(0.0)
    bench.windows.open_attempt("a")
    bench.step(0.0, 1.0, "a")
    bench.read(5.0, 9_000_000)
    bench.settle()
    (window,) = bench.found
    assert 8_000_000 == window.meter_mj == sum_of([window])
    assert (3_070, 8_000_000 - 403_070) == (window.in_flight_mj, causes_of(window)["worker_lost"])
    bench.read(10.0, 9_500_000)
    bench.settle()
    assert 500_000 == bench.found[1].meter_mj


def test_a_meter_that_was_never_there_begins_with_its_first_reading() -> None:
    """What its counter held before is not ours."""
    bench = Bench()
    bench.lose(0.0)
    bench.lose(5.0)
    bench.read(10.0, 123_456_789)
    bench.read(15.0, 123_956_789)
    bench.settle()
    assert [0, 0, 500_000] == [window.meter_mj for window in bench.found]
    assert 500_000 == sum_of(bench.found)
    assert "meter_found" in causes_of(bench.found[1])


def test_a_reset_counts_what_the_counter_shows_since() -> None:
    """The rest of its old life nobody saw."""
    bench = Bench()
    bench.read(0.0, 7_000_000)
    bench.read(5.0, 120_000, fault="counter_reset: from 7000000 to 120000 mJ")
    bench.settle()
    (window,) = bench.found
    assert (120_000, Grade.D) == (window.meter_mj, window.grade)
    assert 1 == [cause for cause, _ in window.causes].count("counter_reset")


def test_a_stuck_counter_does_not_keep_windows_open() -> None:
    """Attempts wait for their postings: 5 s past an edge the model stands in, and what the counter did comes later."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.read(5.0, 500_000)
    bench.windows.open_attempt("a")
    bench.step(5.0, 6.0, "a")
    bench.windows.close_attempt("a")
    bench.read(5.0, 500_000, now_s=5.0 + STANDING_S / 2)
    bench.read(5.0, 500_000, now_s=10.0)
    bench.read(5.0, 500_000, now_s=15.0)
    assert 3 == bench.settle(15.3)
    assert 3_070 == bench.postings["a"].energy_mj
    assert 500_000 == sum_of(bench.found)
    assert "counter_stalled" in causes_of(bench.found[1])
    bench.read(20.0, 2_000_000)
    bench.settle()
    assert 2_000_000 == sum_of(bench.found)


def test_a_meter_that_says_so_is_taken_as_stuck_at_once() -> None:
    """RAPL stamps its readings with now, moved or not."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.read(5.0, 500_000)
    bench.read(10.0, 500_000, fault="counter_stalled: no change for 5.1 s")
    bench.settle()
    assert ["scripted", "predicted"] == [window.meter for window in bench.found]


def test_a_stall_that_was_made_good_is_a_reading() -> None:
    """The NVML meter integrates power where its counter stood: the figure moved."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.read(10.0, 1_000_000, fault="counter_stalled: GPU-x did not move for 5.0 s at 100 W; power_gap: GPU-x")
    bench.settle()
    (window,) = bench.found
    assert (1_000_000, "scripted") == (window.meter_mj, window.meter)
    assert {"counter_stalled", "power_gap"} <= causes_of(window).keys()


# -- a full outbox


def test_windows_without_room_are_carried() -> None:
    """Energy and GPU-time come with the next window that finds room, and attempts know that they miss something."""
    bench = Bench(max_records=5)
    bench.read(0.0, 0)
    bench.windows.open_attempt("a")
    for index in range(1, 8):
        bench.step(5.0 * index - 4, 5.0 * index - 3, "a")
        bench.read(5.0 * index, 403_070 * index)
    bench.settle()
    assert 4 == len(bench.found)
    assert 3 == bench.outbox.dropped_total
    bench.read(40.0, 403_070 * 7 + 400_000)
    bench.settle()
    assert 403_070 * 7 + 400_000 == sum_of(bench.found)
    assert 3 * 403_070 == causes_of(bench.found[-1])["outbox_overflow"]
    assert 7_000_000 == sum(window.busy_gpu_us for window in bench.found)
    bench.windows.close_attempt("a")
    posting = bench.postings["a"]
    assert (False, 4 * 3_070) == (posting.complete, posting.energy_mj)
    assert 4 * 3_070 == sum(window.in_flight_mj for window in bench.found)


def test_a_counter_that_fell_in_a_window_without_room_is_said_by_the_next() -> None:
    """Or nobody could tell why the readings do not differ by what was metered."""
    bench = Bench(max_records=5)
    bench.read(0.0, 0)
    for index in range(1, 6):
        bench.read(5.0 * index, 400_000 * index)
    bench.read(30.0, 100_000)
    bench.settle()
    assert (4, 2) == (len(bench.found), bench.outbox.dropped_total)
    bench.read(35.0, 500_000)
    bench.settle()
    last = bench.found[-1]
    assert {"outbox_overflow": 500_000, "counter_reset": 0} == causes_of(last)
    assert 900_000 == last.meter_mj


def test_a_posting_without_room_stays_in_flight() -> None:
    """What a window put in must come out; an attempt that cost nothing may be dropped, and is counted."""
    bench = Bench(max_records=5)
    bench.read(0.0, 0)
    bench.windows.open_attempt("a")
    bench.windows.open_attempt("free")
    bench.step(0.0, 1.0, "a")
    bench.read(5.0, 403_070)
    bench.settle()
    for index in range(4):
        bench.outbox.put(EnergyPosting(attempt_id=f"x{index}", energy_mj=0, gpu_us=0, grade=Grade.A, policy="p"))
    bench.windows.close_attempt("a")
    bench.windows.close_attempt("free")
    assert (3_070, 1) == (bench.windows.in_flight_mj, bench.outbox.dropped_total)
    assert {"x0", "x1", "x2", "x3"} == bench.postings.keys()
    bench.read(10.0, 803_070)
    bench.settle()
    assert (0, 3_070) == (bench.windows.in_flight_mj, bench.postings["a"].energy_mj)


def test_overflowed_rows_leave_their_attempts_incomplete() -> None:
    """Their tokens were not all split."""
    bench = Bench(rows=1)
    bench.read(0.0, 0)
    for name in ("a", "b"):
        bench.windows.open_attempt(name)
        bench.step(0.0, 1.0, name)
        bench.windows.close_attempt(name)
    assert {} == bench.postings
    bench.read(5.0, 406_140)
    bench.settle()
    assert (True, False) == (bench.postings["a"].complete, bench.postings["b"].complete)


# -- the end


def test_nothing_waits_after_the_end() -> None:
    """A step that the last edge cuts leaves its attempt incomplete; one that closes later is posted at once."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.windows.open_attempt("a")
    bench.windows.open_attempt("b")
    bench.step(4.0, 6.0, "a", "b")
    bench.windows.close_attempt("a")
    bench.read(5.0, 401_570)
    assert not bench.windows.is_past_last_step
    bench.windows.close()
    assert (False, 785) == (bench.postings["a"].complete, bench.postings["a"].energy_mj)
    bench.windows.close_attempt("b")
    assert not bench.postings["b"].complete
    assert 0 == bench.windows.in_flight_mj


def test_the_end_is_clean_where_an_edge_lies_behind_the_last_step() -> None:
    """Also before any step, and before any edge."""
    bench = Bench()
    assert bench.windows.is_past_last_step
    bench.step(4.0, 4.5, None)
    assert not bench.windows.is_past_last_step
    bench.read(4.5, 0)
    assert bench.windows.is_past_last_step


EVENT = st.one_of(
    st.tuples(st.just("reading"), st.integers(0, 900_000)),
    st.tuples(st.just("reset"), st.integers(0, 50_000)),
    st.tuples(st.just("lose"), st.just(0)),
    st.tuples(st.just("stuck"), st.just(0)),
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.tuples(st.just("close"), st.integers(0, 3)),
    st.tuples(st.just("dropped"), st.integers(1, 9)),
    st.tuples(st.just("take"), st.just(0)),
)


@given(events=st.lists(EVENT, max_size=40), prior=st.sampled_from([None, 0, 500_000]))
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("max_records", [6, 1_000])
def test_any_life_adds_up(max_records: int, events: list[tuple[str, int]], prior: int | None) -> None:
    """Σ meter == what an observer of the same counter saw; every attempt is posted what its windows gave it."""
    bench = Bench(last_counter_mj=prior, max_records=max_records)
    counter_mj, now_s, seen_mj = 700_000, 0.0, prior
    observed_mj = 0

    def observe() -> None:
        nonlocal seen_mj, observed_mj
        if seen_mj is not None:
            observed_mj += counter_mj - seen_mj if counter_mj >= seen_mj else counter_mj
        seen_mj = counter_mj

    for index in range(4):
        bench.windows.open_attempt(f"a{index}")
    for kind, value in events:
        now_s += 1.7
        if kind == "reading":
            counter_mj += value
            bench.read(now_s, counter_mj)
            observe()
        elif kind == "reset":
            counter_mj = value
            bench.read(now_s, counter_mj)
            observe()
        elif kind == "lose":
            bench.lose(now_s)
        elif kind == "stuck" and bench.windows._opened_s is not None:
            bench.read(bench.windows._opened_s - 1, counter_mj, now_s=now_s)
        elif kind == "step":
            bench.step(now_s - 1.5, now_s - 0.1, f"a{value}", None)
        elif kind == "close":
            bench.windows.close_attempt(f"a{value}")
        elif kind == "dropped":
            bench.windows.add_dropped(value)
        elif kind == "take":
            bench.take()
        bench.settle(now_s, num_running=1)
    for index in range(4):
        bench.windows.close_attempt(f"a{index}")
    bench.take()
    for _ in range(2):
        now_s += 70.0
        counter_mj += 1
        bench.read(now_s, counter_mj)
        observe()
        bench.settle(now_s + 70)
        bench.take()
    bench.windows.close()
    assert observed_mj == sum_of(bench.found)
    postings = bench.postings
    if max_records == 1_000:
        assert 4 == len(postings)
    balance = check_balance(bench.found, postings.values())
    assert (0, 0) == (balance.difference_mj, balance.difference_gpu_us)
    assert 0 == bench.windows.in_flight_mj


# -- an engine that does not serve


def test_windows_of_a_parked_engine_are_idle_and_teach_nothing() -> None:
    """100 W are known as idle: 60 W parked must not become the idle watts that serving is measured by."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.windows.phase = Phase.PARKED
    for number in range(1, 30):
        bench.read(5.0 * number, 300_000 * number)
    bench.windows.phase = Phase.STARTING
    bench.read(150.0, 29 * 300_000 + 1_000_000)
    bench.windows.phase = Phase.SERVING
    bench.read(155.0, 29 * 300_000 + 1_500_000)
    bench.settle()
    *parked, starting, serving = bench.found
    assert {(300_000, 300_000, 0, 0)} == {
        (each.meter_mj, each.idle_mj, each.overhead_mj, each.unattributed_mj) for each in parked
    }
    assert (1_000_000, 0, 1_000_000, 0) == (
        starting.meter_mj, starting.idle_mj, starting.overhead_mj, starting.unattributed_mj
    )  # fmt: skip
    assert (500_000, 500_000, ()) == (serving.meter_mj, serving.idle_mj, serving.causes)
    assert [Phase.PARKED] * 29 + [Phase.STARTING, Phase.SERVING] == [each.phase for each in bench.found]


def test_a_stranger_on_a_parked_device_is_idle_too() -> None:
    """Nobody can say whose it is: it is what this device costs while it serves nobody."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.windows.phase = Phase.PARKED
    bench.read(5.0, 2_000_000)
    bench.settle()
    (window,) = bench.found
    assert (2_000_000, 0, ()) == (window.idle_mj, window.unattributed_mj, window.causes)


def test_a_meter_that_is_lost_while_nobody_is_served_is_waited_for() -> None:
    """No model has to stand in, for nobody is charged: the window goes on until there is a reading."""
    bench = Bench()
    bench.read(0.0, 0)
    bench.windows.phase = Phase.PARKED
    bench.read(5.0, 300_000)
    bench.lose(10.0)
    bench.lose(15.0)
    bench.read(20.0, 1_200_000)
    bench.windows.phase = Phase.SERVING
    bench.lose(25.0)
    bench.settle()
    *parked, serving = bench.found
    assert [(0.0, 5.0, 300_000), (5.0, 20.0, 900_000)] == [
        (each.started_s, each.ended_s, each.idle_mj) for each in parked
    ]
    assert {(0, ())} == {(each.unattributed_mj, each.causes) for each in parked}
    assert "meter_lost" in causes_of(serving)
