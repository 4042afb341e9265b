"""Studies: models with their GPUs and traces at shares of their limits, checked before anything runs."""

import json
import pickle
from collections.abc import Sequence

import pytest

from scheduler.catalogue import load_catalogue
from scheduler.core.request import DEFAULT_SLO
from scheduler.fleet_spec import FleetError
from scheduler.limit_cache import Limit
from scheduler.simulation.figures import Footprint
from scheduler.simulation.oracle import NoEngineMeets
from scheduler.simulation.policies import ORACLE, POLICIES, UnknownPolicy
from scheduler.study import MIN_S, Part, Study, StudyError, prepare
from scheduler.trace_files import TraceRow

CATALOGUE = load_catalogue()
ROWS = [TraceRow(arrival_s=2.0 * number, input_tokens=200, output_tokens=50) for number in range(300)]
KEYS = {
    "joules_per_good_token", "slo_attainment_ratio", "joules_total", "good_tokens", "requests", "mean_loaded_gpus",
    "wakes", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s", "cost", "gco2e", "seed",
}  # fmt: skip


def part(model: str = "llama-3.1-8b", fleet: str = "h100x2", **fields: object) -> Part:
    values = {"model": model, "fleet": fleet, "rows": ROWS, "load": 0.1, **fields}
    return Part(**values)  # type: ignore[arg-type]


def ten(workers: Sequence[object], *_: object) -> Limit:
    """Ten a second for each engine."""
    return Limit(10.0 * len(workers), True)


def study(*parts: Part, **fields: object) -> Study:
    values = {"until_s": 120.0, "find_limit": ten, **fields}
    return prepare(parts or (part(),), CATALOGUE, **values)  # type: ignore[arg-type]


def test_a_load_is_a_share_of_the_limit_and_the_mean_rate() -> None:
    """A tenth of 20 a second; the slice of ten minutes is repeated to forty."""
    found = study(until_s=float("inf"))
    assert {"llama-3.1-8b": 2.0} == found.rates_per_s
    arrivals = found.arrivals(seed=1)
    assert 2.0 == pytest.approx(len(arrivals) / MIN_S, rel=0.05)
    assert MIN_S - 10.0 < arrivals[-1].arrival_s < MIN_S + 10.0


def test_a_rate_is_taken_as_it_is_and_the_limit_is_told_beside_it() -> None:
    found = study(part(load=None, rate_per_s=3.5))
    assert {"llama-3.1-8b": 3.5} == found.rates_per_s
    assert 20.0 == found.described()["round_robin_limit_requests_per_s"]


def test_nothing_arrives_after_the_end_and_what_did_is_answered() -> None:
    found = study(until_s=60.0)
    assert max(each.arrival_s for each in found.arrivals(1)) < 60.0
    figures = found.run("round-robin", 1)
    assert (0, 1.0) == (figures["unanswered"], figures["slo_attainment_ratio"])


@pytest.mark.parametrize("policy", [*POLICIES, "autoscale-50", ORACLE])
def test_every_policy_tells_the_same_figures(policy: str) -> None:
    """All that the issue asks for; the document is JSON."""
    figures = study().run(policy, 3)
    assert KEYS <= figures.keys()
    assert (policy, 3) == (figures["policy"], figures["seed"])
    json.dumps(figures, allow_nan=False)


def test_the_oracle_is_below_everybody() -> None:
    found = study(part(fleet="h100x4", load=0.3))
    joules = {policy: found.run(policy, 1)["joules_total"] for policy in ("round-robin", "race-to-idle", ORACLE)}
    assert joules[ORACLE] <= joules["race-to-idle"] < joules["round-robin"]


def test_several_models_have_engines_and_figures_of_their_own() -> None:
    """Names differ over the whole fleet; each model's rate is by its own limit."""
    found = study(part(), part("llama-3.1-70b", "h100x8", load=0.05))
    assert ["h100-000", "h100-001", "h100-002", "h100-003"] == [worker.worker_id for worker in found.workers]
    assert {"llama-3.1-8b": 2.0, "llama-3.1-70b": 1.0} == found.rates_per_s
    arrivals = found.arrivals(1)
    assert sorted(arrivals, key=lambda each: each.arrival_s) == arrivals
    figures = found.run("least-requests", 1)
    assert {"llama-3.1-8b", "llama-3.1-70b"} == figures["models"].keys()
    described = found.described()
    assert (10, 4) == (described["gpus"], described["engines"])
    assert 20.0 == described["by_model"]["llama-3.1-70b"]["round_robin_limit_requests_per_s"]


def test_one_model_is_described_at_the_top() -> None:
    """What was simulated, by which versions, and that it was."""
    found = study(footprint=Footprint(price_per_kwh=0.3, gco2e_per_kwh=380.0, pue_ratio=1.2)).described()
    expected = {
        "simulated": True, "model": "llama-3.1-8b", "fleet": "h100x2", "load": 0.1, "rate_requests_per_s": 2.0,
        "price_per_kwh": 0.3, "gco2e_per_kwh": 380.0, "pue_ratio": 1.2,
        "slo": {"ttft_s": 1.0, "ttft_ratio": 3.0, "tpot_s": 0.05},
    }  # fmt: skip
    assert expected == {key: found[key] for key in expected}
    assert {"jouleway", "numpy", "numba"} == found["versions"].keys()


def test_every_curve_says_what_it_stands_on() -> None:
    """Of a mixed fleet both; beyond the measured sequences it is extrapolated."""
    found = study(part(fleet="h100x2,b200x1")).described()["curves"]
    assert ["llama-3.1-8b on 1 × H100", "llama-3.1-8b on 1 × B200"] == list(found)
    assert [8.0, 691.0] == found["llama-3.1-8b on 1 × H100"]["measured_sequences"]
    assert all("measured" in each["basis"] for each in found.values())


def test_the_core_weighs_what_a_joule_costs_at_the_meter() -> None:
    found = study(footprint=Footprint(price_per_kwh=0.2, pue_ratio=1.5))
    assert 0.3 == pytest.approx(found.setting(1).price_per_kwh)


def test_losses_are_seeded_and_told() -> None:
    """The same engines die at the same times under every policy."""
    found = study(part(fleet="h100x4"), num_losses=3)
    lost = [found.run(policy, 5)["engines_lost"] for policy in ("round-robin", "least-requests")]
    assert lost[0] == lost[1] > 0


def test_a_study_goes_to_another_process() -> None:
    there = pickle.loads(pickle.dumps(study()))
    assert study().run("round-robin", 1) == there.run("round-robin", 1)


def test_blocks_of_a_trace_are_known_to_the_engines() -> None:
    shared = [
        TraceRow(arrival_s=5.0 * n, input_tokens=1_100, output_tokens=10, blocks=(1, 2, 9 + n)) for n in range(99)
    ]
    found = study(part(rows=shared))
    assert {512} == {worker.options.block_tokens for worker in found.workers}
    assert found.run("prefix", 1)["cached_ratio"] > 0.3
    assert {16} == {worker.options.block_tokens for worker in study().workers}


@pytest.mark.parametrize(
    ("parts", "fields", "error", "words"),
    [
        ((part(), part()), {}, StudyError, "llama-3.1-8b is named twice"),
        ((part(load=None),), {}, StudyError, "neither a load nor a rate"),
        ((part(),), {"find_limit": lambda *_: Limit(0.0, True)}, StudyError, "never has 99 % good requests"),
        ((part(fleet="h100x0"),), {}, FleetError, "is no GPU and a count"),
        ((part(),), {"slo": DEFAULT_SLO._replace(tpot_s=0.001)}, NoEngineMeets, "makes a token in 1 ms"),
        ((part(),), {"policies": ("round-robin", "robin")}, UnknownPolicy, "'robin' is unknown"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_says_why(
    parts: tuple[Part, ...], fields: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        study(*parts, **fields)


def test_a_study_without_arrivals_says_so() -> None:
    with pytest.raises(StudyError, match=r"nobody asks anything: 1e-06 requests/s until 120 s with seed 1"):
        study(part(load=None, rate_per_s=1e-6)).run("round-robin", 1)
