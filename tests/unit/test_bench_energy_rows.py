"""benchmarks/energy.py: its cases can be simulated, and its comparisons are worked out by hand."""

from typing import Any

import pytest

from benchmarks.energy import ALL, CASES, LOADS, STRICT, Case, compared, line_of, passes_of
from scheduler.catalogue import load_catalogue
from scheduler.fleet_spec import workers_of
from scheduler.simulation import oracle
from scheduler.simulation.policies import check

CASE = Case(trace="t", fleet="h100x8", model="m", against_round_robin=(-0.68, -0.56, -0.36, -0.19))


def figures(policy: str, seed: int, joules: float | None, attained: float = 1.0) -> dict[str, Any]:
    return {
        "policy": policy, "seed": seed, "case": "c", "load": 0.25, "limit_per_s": 80.0, "joules_per_good_token": joules,
        "slo_attainment_ratio": attained, "ttft_p99_s": 0.2, "tpot_p99_s": None, "mean_loaded_gpus": 2.0, "wakes": 1,
        "cpu_s": 1.0,
    }  # fmt: skip


def runs(**joules: float) -> list[dict[str, Any]]:
    """Two seeds, the second one a tenth dearer for everybody."""
    return [
        figures(policy.replace("_", "-"), seed, value * (1.0 if seed == 1 else 1.1))
        for seed in (1, 2)
        for policy, value in joules.items()
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_cases_fleet_holds_its_model_within_its_objective(name: str) -> None:
    """By the catalogue that we ship; bounds are one a load."""
    case = CASES[name]
    oracle.check(workers_of(load_catalogue(), case.fleet, case.model), case.slo)
    for bounds in (case.against_round_robin, case.against_autoscale, case.without_parking):
        assert len(bounds) in (0, len(LOADS))


def test_every_policy_has_a_name_that_is_known() -> None:
    for policy in ALL:
        check(policy)
    assert (0.5, 0.025) == (STRICT.ttft_s, STRICT.tpot_s)


def test_ratios_are_taken_seed_by_seed() -> None:
    """A tenth dearer for all changes no ratio, and leaves no spread."""
    row = compared(
        CASE, 0.25,
        runs(jouleway=0.4, jouleway_noparking=0.5, round_robin=1.0, autoscale_50=0.9, autoscale_85=0.8, oracle=0.35),
    )  # fmt: skip
    found = {key: row[key]["mean"] for key in row if isinstance(row[key], dict) and "mean" in row[key]}
    expected = {
        "jouleway_to_round_robin": 0.4, "jouleway_to_best_autoscale": 0.5, "placement_alone_to_round_robin": 0.5,
        "parking_on_top_of_placement": 0.8, "jouleway_to_oracle": 0.4 / 0.35, "oracle_to_round_robin": 0.35,
    }  # fmt: skip
    assert expected == pytest.approx(found)
    assert row["jouleway_to_round_robin"]["low"] == pytest.approx(0.4)
    assert ("autoscale-85", "autoscale-85") == (row["best_autoscale"], row["best_baseline"])
    assert 0.42 == pytest.approx(row["policies"]["jouleway"]["joules_per_good_token"]["mean"])


@pytest.mark.parametrize(("joules", "passes"), [(0.44, True), (0.45, False)])
def test_a_bound_is_held_at_its_load(joules: float, passes: bool) -> None:
    """56 % below round robin at a quarter."""
    row = compared(CASE, 0.25, runs(jouleway=joules, round_robin=1.0))
    assert passes is row["pass_jouleway_to_round_robin"]


def test_fewer_good_requests_than_round_robin_are_a_miss() -> None:
    """By more than a point."""
    for attained, passes in ((0.99, True), (0.985, False)):
        found = [figures("jouleway", 1, 0.1, attained), figures("round-robin", 1, 1.0)]
        assert passes is compared(CASE, 0.25, found)["pass_attainment"]


def test_without_bounds_ours_is_to_be_best_of_those_that_attain_as_much() -> None:
    """Who saves by missing the objective is no rival, nor is the bound."""
    bare = Case(trace="t", fleet="h100x8", model="m")
    found = [
        figures("jouleway", 1, 0.5), figures("round-robin", 1, 1.0), figures("race-to-idle", 1, 0.1, 0.5),
        figures("oracle", 1, 0.2),
    ]  # fmt: skip
    assert compared(bare, 0.25, found)["pass_every_baseline"]
    assert not compared(bare, 0.25, [*found, figures("prefix", 1, 0.4)])["pass_every_baseline"]


def test_some_policies_alone_have_no_verdict() -> None:
    row = compared(CASE, 0.25, runs(round_robin=1.0))
    assert {} == passes_of(CASE, row)
    assert row["jouleway_to_round_robin"] is None


def test_a_line_has_a_dash_where_there_is_no_number() -> None:
    assert "TPOT p99 - ms" in line_of(figures("prefix", 1, None)).replace("    ", " ")
