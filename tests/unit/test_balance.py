"""The judge of a run: each thing that can be wrong is found, and a clean run is not accused."""

from typing import Any

import msgspec
import pytest

from workers.balance import check_balance, measured_busy_mj, metered_token_difference
from workers.types import EnergyPosting, Grade, Outcome, SequenceUsage, UsageRecord, WindowRecord

WINDOW = WindowRecord(
    window=1, started_s=0.0, ended_s=5.0, ended_unix_s=0.0, counter_mj=1_000, meter_mj=1_000, idle_mj=200,
    overhead_mj=30, unattributed_mj=10, in_flight_mj=760, shares=(("a-1", 700, 70), ("b-1", 60, 6)), busy_gpu_us=80,
    overhead_gpu_us=4, predicted_mj=800, scale_ratio=1.0, grade=Grade.A, meter="m", num_steps=9,
)  # fmt: skip


def window(**changes: Any) -> WindowRecord:
    return msgspec.structs.replace(WINDOW, **changes)


def posting(attempt_id: str = "a-1", **changes: Any) -> EnergyPosting:
    energy_mj, gpu_us = {"a-1": (700, 70), "b-1": (60, 6)}[attempt_id]
    made = EnergyPosting(
        attempt_id=attempt_id, energy_mj=energy_mj, gpu_us=gpu_us, grade=Grade.A, policy="shapley", computed_tokens=50
    )
    return msgspec.structs.replace(made, **changes)


def usage(attempt_id: str = "a-1", *, scheduled: int = 50, overrun: int = 0, exact: bool = True) -> UsageRecord:
    sequence = SequenceUsage(
        engine_request_id="x", prompt_tokens=10, cached_tokens=0, computed_prompt_tokens=10, generated_tokens=41,
        scheduled_tokens=scheduled, overrun_tokens=overrun, exact=exact,
    )  # fmt: skip
    return UsageRecord(attempt_id=attempt_id, outcome=Outcome.COMPLETED, sequences=(sequence,))


POSTINGS = (posting("a-1"), posting("b-1"))
USAGES = (usage("a-1"), usage("b-1"))


def test_a_clean_run_has_no_problem() -> None:
    """Its figures are those of its windows."""
    found = check_balance([WINDOW] * 1, POSTINGS, USAGES, observed_mj=1_000)
    assert found.is_clean
    assert (1_000, 200, 30, 10, 760) == (
        found.meter_mj, found.idle_mj, found.overhead_mj, found.unattributed_mj, found.requests_mj,
    )  # fmt: skip
    assert (0, 0, 0) == (found.difference_mj, found.difference_gpu_us, found.observed_difference_mj)
    assert (0.01, 0.95, 1.0) == (found.unattributed_ratio, found.requests_ratio, found.predicted_over_measured)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"meter_mj": 1_001}, "difference is 1 mJ, 0 GPU-us"),
        ({"idle_mj": 199}, "difference is 1 mJ, 0 GPU-us"),
        ({"in_flight_mj": 761, "unattributed_mj": 9}, "difference is 1 mJ, 0 GPU-us"),
        ({"busy_gpu_us": 81}, "difference is 0 mJ, 1 GPU-us"),
        ({"shares": (("a-1", 700, 71), ("b-1", 60, 6))}, "difference is 0 mJ, 2 GPU-us"),
        ({"shares": (("a-1", 701, 70), ("b-1", 59, 6))}, "difference is 2 mJ, 0 GPU-us"),
        ({"unattributed_mj": -25, "idle_mj": 235}, "unattributed is 2.5% of the meter, bound 2%"),
        ({"overhead_mj": 115, "idle_mj": 115}, "requests are 85.9% of busy energy, bound 90%"),
        ({"predicted_mj": 752}, "predicted / measured is 0.940"),
        ({"predicted_mj": 848}, "predicted / measured is 1.060"),
        ({"meter_mj": 0, "idle_mj": -800}, "the meter counted nothing"),
    ],
)
def test_what_is_wrong_with_a_window_is_said(changes: dict[str, Any], words: str) -> None:
    """In words, with its numbers."""
    assert any(problem.startswith(words) for problem in check_balance([window(**changes)], POSTINGS, USAGES).problems)


@pytest.mark.parametrize(
    ("postings", "usages", "words"),
    [
        (POSTINGS[:1], USAGES, "1 attempts without an energy posting: b-1"),
        ((posting(gpu_us=0), POSTINGS[1]), USAGES, "1 attempts that computed tokens and paid no GPU-time: a-1"),
        (
            (posting(computed_tokens=49), POSTINGS[1]),
            USAGES,
            "energy does not cover the tokens scheduled: a-1 (49 of 50)",
        ),
        (
            (posting(computed_tokens=51), POSTINGS[1]),
            USAGES,
            "energy does not cover the tokens scheduled: a-1 (51 of 50)",
        ),
        ((*POSTINGS, posting(energy_mj=0, gpu_us=0)), USAGES, "1 attempts were posted more than once"),
        ((posting(energy_mj=699), POSTINGS[1]), USAGES, "difference is 1 mJ"),
    ],
)
def test_what_is_wrong_with_an_attempt_is_said(
    postings: tuple[EnergyPosting, ...], usages: tuple[UsageRecord, ...], words: str
) -> None:
    """By its name."""
    assert any(words in problem for problem in check_balance([WINDOW], postings, usages).problems)


def test_the_meter_is_held_against_an_observer() -> None:
    """A meter that is wrong by a factor adds up perfectly, all by itself."""
    assert () == check_balance([window()], POSTINGS, USAGES).problems
    (problem,) = check_balance([window()], POSTINGS, USAGES, observed_mj=833).problems
    assert "windows hold +167 mJ of what an observer of the counter saw" == problem


def test_an_attempt_without_steps_needs_no_energy() -> None:
    """Refused, or aborted while it waited."""
    nothing = usage(scheduled=0)
    windows = [window(shares=(), in_flight_mj=0, overhead_mj=790, overhead_gpu_us=80)]
    found = check_balance(windows, [posting(energy_mj=0, gpu_us=0, computed_tokens=0)], [nothing])
    assert not any("attempts" in problem for problem in found.problems)


@pytest.mark.parametrize("changes", [{"complete": False}, {"computed_tokens": None}])
def test_an_attempt_that_is_known_to_miss_something_is_not_compared(changes: dict[str, Any]) -> None:
    """It says so itself; nor is one whose engine could not count."""
    short = (posting(**{"computed_tokens": 3, **changes}), POSTINGS[1])
    assert () == check_balance([WINDOW], short, USAGES).problems
    assert (
        ()
        == check_balance([WINDOW], (posting(computed_tokens=3), POSTINGS[1]), (usage(exact=False), USAGES[1])).problems
    )


@pytest.mark.parametrize(
    ("computed", "scheduled", "overrun", "expected"),
    [(10, 10, 0, 0), (9, 10, 0, 1), (11, 10, 0, 1), (9, 10, 1, 0), (8, 10, 1, 1), (10, 10, 1, 0)],
)
def test_overrun_may_be_in_or_out(computed: int, scheduled: int, overrun: int, expected: int) -> None:
    """What ran beyond the stop was computed before or after the attempt was closed."""
    assert expected == metered_token_difference(computed=computed, scheduled=scheduled, overrun=overrun)


def test_calibration_adds_up_but_is_not_judged() -> None:
    """A curve that is still being learned is off; a millijoule that is missing is missing."""
    calibration = window(
        calibrating=True, predicted_mj=300, shares=(), in_flight_mj=0, overhead_mj=790, overhead_gpu_us=80
    )
    found = check_balance([calibration, WINDOW], POSTINGS, USAGES, observed_mj=2_000)
    assert found.is_clean
    assert 1 == found.num_windows
    broken = msgspec.structs.replace(calibration, meter_mj=1_007)
    assert 7 == check_balance([broken, WINDOW], POSTINGS, USAGES).difference_mj


def test_a_level_that_moves_and_comes_back_is_seen() -> None:
    """Twenty windows off by 6 % vanish in a long run's ratio."""
    windows = [window(predicted_mj=800)] * 200 + [window(predicted_mj=752)] * 20 + [window(predicted_mj=803)] * 200
    found = check_balance(windows)
    assert ("worst 20 windows in a row is 0.940, bounds 0.95-1.05",) == found.problems


def test_live_runs_have_wider_bounds() -> None:
    """Real hardware drifts; 0.9-1.1."""
    assert () == check_balance([window(predicted_mj=735)], is_live=True).problems
    assert check_balance([window(predicted_mj=700)], is_live=True).problems


@pytest.mark.parametrize(
    "cause", ["meter_lost", "meter_found", "meter_back", "counter_reset", "counter_stalled", "worker_lost"]
)
def test_energy_that_was_not_measured_beside_its_steps_says_nothing_of_the_model(cause: str) -> None:
    """Neither for nor against it."""
    unmeasured = window(causes=((cause, 0),), predicted_mj=10)
    assert measured_busy_mj(unmeasured) is None
    assert () == check_balance([unmeasured, window()]).problems


def test_carried_energy_is_not_the_windows_own() -> None:
    """It came from windows that had no room."""
    assert 800 - 300 == measured_busy_mj(window(causes=(("outbox_overflow", 300),)))


def test_no_windows_are_no_proof() -> None:
    """Nothing to judge is a problem, not a pass."""
    assert not check_balance([]).is_clean
