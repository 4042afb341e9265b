"""Every millijoule is in one account, through faults and kills, and a wrong program is told from a right one."""

from pathlib import Path

import pytest

from benchmarks.conservation import MUTANTS, clean, failures, killed
from benchmarks.conservation_run import FAULTS, PARKED, Mutant, Outcome, run
from workers.balance import check_balance
from workers.types import Grade, Phase
from workers.types import Outcome as Failure

NUM_FAULT_SEEDS, NUM_FAULT_WINDOWS = 4, 260
"""1,000 windows and more, all seeds together; a window is 5 s of virtual time."""


def assert_conserved(outcome: Outcome, *, unmetered_mj: int = 0) -> None:
    """Requests + idle + overhead + unattributed + in flight == what the observer saw; nothing is left in flight.

    ``unmetered_mj``: drawn before the worker's meter was opened.
    """
    balance = outcome.settlement.accounts.balance()
    assert (-unmetered_mj, 0) == (outcome.difference_mj, balance.in_flight_mj)
    assert 0 == balance.in_flight_gpu_us
    assert balance.busy_gpu_us == balance.requests_gpu_us + balance.overhead_gpu_us
    assert 0 == outcome.settlement.num_open
    assert [] == [window.window for window in outcome.windows if check_balance([window]).difference_mj]
    assert [] == [window.window for window in outcome.windows if check_balance([window]).difference_gpu_us]
    # The in-flight account is emptied by what its windows put in, and by nothing else.
    assert 0 == balance.posting_difference_mj


@pytest.mark.parametrize("seed", range(3))
def test_a_clean_run_adds_up_and_is_believable(tmp_path: Path, seed: int) -> None:
    """Difference 0; unattributed <= 2 %, requests >= 90 % of busy energy, predicted / measured 0.95-1.05."""
    outcome = run(tmp_path / "counter", seed=seed, num_windows=100)
    assert_conserved(outcome)
    balance = check_balance(outcome.windows, outcome.postings, outcome.usages, observed_mj=outcome.observed_mj)
    assert () == balance.problems
    assert balance.unattributed_ratio is not None
    assert balance.unattributed_ratio <= 0.02
    assert balance.requests_ratio is not None
    assert balance.requests_ratio >= 0.90
    assert balance.predicted_over_measured is not None
    assert 0.95 <= balance.predicted_over_measured <= 1.05
    assert 0 == outcome.settlement.accounts.metered_token_difference
    assert outcome.num_requests == len(outcome.postings) == len(outcome.usages) > 150
    assert {Grade.D} == {window.grade for window in outcome.windows}


@pytest.mark.parametrize("seed", range(NUM_FAULT_SEEDS))
def test_faults_and_kills_lose_no_millijoule(tmp_path: Path, seed: int) -> None:
    """Hung, dead and killed workers, meters lost, stuck and reset, records dropped, aborts, a reader that sleeps."""
    outcome = run(tmp_path / "counter", seed=seed, num_windows=NUM_FAULT_WINDOWS, faults=FAULTS)
    assert outcome.num_windows >= NUM_FAULT_WINDOWS
    assert set(FAULTS) == set(outcome.faults)
    assert outcome.num_lives > 3
    assert outcome.num_resets > 0
    assert_conserved(outcome)
    causes = dict(outcome.settlement.accounts.balance().causes)
    assert {"worker_lost", "meter_lost", "meter_back", "counter_reset", "counter_stalled", "step_records_dropped"} <= (
        causes.keys()
    )
    # Faults cost certainty, not energy: most of it still finds its requests.
    balance = outcome.settlement.accounts.balance()
    assert balance.requests_mj > 0.85 * (balance.meter_mj - balance.idle_mj)


@pytest.mark.parametrize("seed", range(3))
def test_parked_and_woken_engines_lose_no_millijoule(tmp_path: Path, seed: int) -> None:
    """What a parked device draws is idle, what a start takes is overhead, and serving is as believable as without.

    What was learned of both is what the device really does: 60 W, 20 s at 200 W.
    """
    device: dict[str, object] = {"start_s": 20.0, "start_watts": 200.0, "parked_watts": 60.0}
    outcome = run(tmp_path / "counter", seed=seed, num_windows=150, faults=(PARKED,), device=device)
    first_start_mj = 20 * 200 * 1000
    assert_conserved(outcome, unmetered_mj=first_start_mj)
    observed_mj = outcome.observed_mj - first_start_mj
    balance = check_balance(outcome.windows, outcome.postings, outcome.usages, observed_mj=observed_mj)
    assert () == balance.problems
    refused = [usage for usage in outcome.usages if usage.outcome is Failure.FAILED]
    assert {"worker_parked", "worker_starting"} == {usage.cause for usage in refused}
    assert {0} == {usage.output_tokens + usage.provisional_mj for usage in refused}
    assert outcome.num_requests == len(outcome.postings) == len(outcome.usages) > len(refused) + 100
    by_phase = {phase: [each for each in outcome.windows if each.phase is phase] for phase in Phase}
    for windows, watts in ((by_phase[Phase.PARKED], 60.0), (by_phase[Phase.STARTING], 200.0)):
        joules = sum(window.meter_mj for window in windows) / 1000
        assert pytest.approx(watts, rel=0.02) == joules / sum(each.ended_s - each.started_s for each in windows)
        assert {(0, ())} == {(window.unattributed_mj, window.causes) for window in windows}
    assert {True} == {window.meter_mj == window.idle_mj for window in by_phase[Phase.PARKED]}
    assert {True} == {window.meter_mj == window.overhead_mj for window in by_phase[Phase.STARTING]}
    states = outcome.power_states
    assert states is not None
    assert len(outcome.faults) >= 2
    assert (60.0, 20.0, 200.0) == pytest.approx(
        (states.parked_watts, states.start_s, states.start_watts), rel=0.02
    )  # fmt: skip


def test_a_run_is_the_same_each_time(tmp_path: Path) -> None:
    """Same seed, same records: a failure can be looked at."""
    first, second = (run(tmp_path / name, seed=7, num_windows=25, faults=("hang", "kill")) for name in ("a", "b"))
    assert first.windows == second.windows
    assert first.postings == second.postings


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_program_is_caught(tmp_path: Path, name: str) -> None:
    """What passes for a clean run must fail when it is not one; nobody tells the worker."""
    figures = clean(tmp_path, seed=0, num_windows=100, mutant=MUTANTS[name])
    expected = {
        "a tenth of the step records is lost, always": "attempts whose energy does not cover the tokens scheduled",
        "a tenth of the step records is lost after 30 windows": "worst 20 windows in a row",
        "the steps of one request are lost": "1 attempts that computed tokens and paid no GPU-time",
        "meter x 1.2, always": "of what an observer of the counter saw",
        "meter x 1.2 after 40 windows": "predicted / measured",
    }[name]
    assert any(expected in problem for problem in figures["problems"]), figures["problems"]


def test_half_the_steps_of_one_request_are_missed(tmp_path: Path) -> None:
    """It still pays GPU-time, and every sum is right: only its tokens tell."""
    figures = clean(tmp_path, seed=0, num_windows=40, mutant=Mutant(loses_attempt=40, loses_ratio=0.5))
    assert 0 == figures["difference_mj"]
    assert 0 < figures["metered_token_difference"]
    assert ["1 attempts whose energy does not cover the tokens scheduled"] == figures["problems"]


def test_a_claim_that_does_not_hold_is_named() -> None:
    """The benchmark's own verdict can fail: one millijoule, one problem, one mutant that was missed."""
    good = {"seed": 0, "difference_mj": 0, "in_flight_mj": 0, "problems": []}
    parts = {
        "clean": [good],
        "faults": [good],
        "killed_processes": [good],
        "mutants": {"m": [{**good, "problems": ["p"]}]},
    }
    assert [] == failures(parts)
    assert ["faults, seed 0: -1 mJ do not add up"] == failures({**parts, "faults": [{**good, "difference_mj": -1}]})
    assert ["clean, seed 0: p"] == failures({**parts, "clean": [{**good, "problems": ["p"]}]})
    assert ["mutant not caught, seed 0: m"] == failures({**parts, "mutants": {"m": [good]}})


def test_sigkill_of_real_processes_loses_no_millijoule(tmp_path: Path) -> None:
    """The counter is read from this process; what the dead one did not hand over is unattributed, cause worker_lost."""
    figures = killed(tmp_path, seed=1, num_kills=2)
    assert (0, 0) == (figures["difference_mj"], figures["in_flight_mj"])
    assert figures["requests_mj"] > 0
    assert figures["worker_lost_mj"] > 0
