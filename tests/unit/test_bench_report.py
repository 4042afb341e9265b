"""Figures of a run, from exchanges whose times are known by hand."""

import json
import math
import random
from array import array
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.bench.client import Exchange
from scheduler.bench.drive import Run
from scheduler.bench.report import (
    MIN_SAMPLES_P99,
    Quantiles,
    Slo,
    energy,
    figures,
    open_requests,
    output_tokens_between,
)
from scheduler.bench.workload import Planned


def exchange(
    due_s: float,
    *,
    ttft_s: float = 0.5,
    tpot_s: float = 0.1,
    output_tokens: int = 11,
    reason: str | None = None,
    late_s: float = 0.0,
    counted: bool = True,
) -> Exchange:
    """A request answered with evenly spaced tokens."""
    stamps = [due_s + ttft_s + i * tpot_s for i in range(output_tokens)]
    return Exchange(
        planned=Planned(index=0, due_s=due_s, input_tokens=100, output_tokens=output_tokens),
        due_s=due_s,
        sent_s=due_s + late_s,
        ended_s=stamps[-1] if stamps else due_s + ttft_s,
        token_s=array("d", stamps),
        reason=reason,
        input_tokens=100,
        output_tokens=output_tokens,
        counted_by_server=counted,
    )


def run_of(*exchanges: Exchange, warmup_s: float = 0.0, duration_s: float = 10.0) -> Run:
    return Run(exchanges=list(exchanges), warmup_s=warmup_s, duration_s=duration_s, ended_s=duration_s)


# -- quantiles


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=300))
def test_quantiles_are_ordered_and_within_the_samples(samples: list[float]) -> None:
    """p50 <= p90 <= p95 <= p99 <= max, all between the smallest and the largest sample."""
    found = Quantiles.of(samples)
    assert found is not None
    p99 = found.max_s if found.p99_s is None else found.p99_s
    ordered = [min(samples), found.p50_s, found.p90_s, found.p95_s, p99, found.max_s]
    assert all(a <= b or math.isclose(a, b) for a, b in pairwise(ordered))
    assert found.max_s == max(samples)
    assert found.mean_s == pytest.approx(sum(samples) / len(samples))


def test_a_99th_percentile_needs_a_hundred_samples() -> None:
    """Below that it would be the single worst request."""
    below, enough = Quantiles.of(range(MIN_SAMPLES_P99 - 1)), Quantiles.of(range(MIN_SAMPLES_P99))
    assert below is not None
    assert enough is not None
    assert below.p99_s is None
    assert enough.p99_s == pytest.approx(98.01)


def test_no_sample_has_no_quantiles() -> None:
    """Nothing measured is None, not zero."""
    assert Quantiles.of([]) is None


# -- latencies and rates


def test_latencies_of_a_run_are_those_of_its_exchanges() -> None:
    """TTFT, TPOT, ITL and E2E of evenly spaced tokens."""
    found = figures(run_of(exchange(1, ttft_s=0.4), exchange(2, ttft_s=0.6)), None)
    assert found.ttft is not None
    assert (found.ttft.num, found.ttft.mean_s, found.ttft.max_s) == (2, pytest.approx(0.5), pytest.approx(0.6))
    assert found.tpot is not None
    assert found.tpot.mean_s == pytest.approx(0.1)
    assert found.itl is not None
    assert (found.itl.num, found.itl.max_s) == (20, pytest.approx(0.1))
    assert found.e2e is not None
    assert found.e2e.max_s == pytest.approx(1.6)


def test_failed_requests_have_no_latency_and_a_named_reason() -> None:
    """A failure counts as measured and failed, and does not make the latencies look better or worse."""
    failed = exchange(2, ttft_s=9.0, reason="http_503")
    found = figures(run_of(exchange(1), failed, exchange(3, reason="http_503"), exchange(4, reason="timeout")), None)
    assert found.requests.by_reason == {"http_503": 2, "timeout": 1}
    assert (found.requests.measured, found.requests.completed, found.requests.failed) == (4, 1, 3)
    assert found.ttft is not None
    assert found.ttft.max_s == pytest.approx(0.5)


def test_the_warm_up_is_counted_and_left_out() -> None:
    """Requests due before the measured span do not enter any latency."""
    found = figures(run_of(exchange(1, ttft_s=7), exchange(6), warmup_s=5, duration_s=10), None)
    assert (found.requests.warmup, found.requests.measured) == (1, 1)
    assert found.ttft is not None
    assert found.ttft.max_s == pytest.approx(0.5)


def test_tokens_count_when_they_arrive() -> None:
    """Of eleven tokens at 4.5 … 5.5 s, six arrive from second 5 on; warm-up requests produce too."""
    run = run_of(exchange(4), warmup_s=4.95, duration_s=10)
    assert output_tokens_between(run.exchanges, 4.95, 14.95) == 6
    assert figures(run, None).rates.output_tokens_per_s == pytest.approx(0.6)


def test_pieces_of_several_tokens_count_as_their_tokens() -> None:
    """Two pieces, ten tokens: each piece stands for five."""
    seen = exchange(0, output_tokens=2)
    seen.output_tokens = 10
    assert output_tokens_between([seen], 0, 0.55) == 5


@given(edges=st.lists(st.floats(0, 30), min_size=2, max_size=8), seed=st.integers(0, 99))
def test_spans_that_touch_share_all_tokens_between_them(edges: list[float], seed: int) -> None:
    """Cutting time into spans loses no token and counts none twice."""
    generator = random.Random(seed)
    seen = [exchange(generator.uniform(0, 20), output_tokens=generator.randint(0, 30)) for _ in range(20)]
    cuts = sorted({0.0, *edges, 1000.0})
    parts = sum(output_tokens_between(seen, a, b) for a, b in pairwise(cuts))
    assert parts == pytest.approx(sum(one.output_tokens for one in seen))


def test_open_requests_are_counted_at_a_moment() -> None:
    """Three requests of 1.5 s that overlap by half: 1, 2 or none are open."""
    run = run_of(exchange(0), exchange(1), exchange(2), duration_s=5)
    assert open_requests(run, num_points=10).tolist() == [1, 1, 2, 1, 2, 1, 1, 0, 0, 0]


def test_a_request_open_for_ever_makes_littles_law_hold() -> None:
    """Mean open requests = rate × mean time in the system."""
    generator = random.Random(1)
    seen = [exchange(generator.uniform(0, 200), output_tokens=generator.randint(2, 40)) for _ in range(2000)]
    found = figures(run_of(*seen, warmup_s=20, duration_s=160), None)
    assert found.e2e is not None
    assert found.rates.num_open_mean == pytest.approx(found.rates.requests_due_per_s * found.e2e.mean_s, rel=0.05)


def test_an_empty_run_has_no_latencies_and_zero_rates() -> None:
    """A run in which nothing was sent still makes a report."""
    found = figures(run_of(), Slo(ttft_s=1.0))
    assert (found.ttft, found.tpot, found.itl, found.e2e) == (None, None, None, None)
    assert found.rates.output_tokens_per_s == 0
    assert found.goodput is not None
    assert found.goodput.good_ratio == 0
    assert not found.tokens.counted_by_server


# -- goodput


@pytest.mark.parametrize(
    ("slo", "kept"),
    [
        (Slo(), True),
        (Slo(ttft_s=0.5), True),
        (Slo(ttft_s=0.49), False),
        (Slo(tpot_s=0.11), True),
        (Slo(tpot_s=0.09), False),
        (Slo(e2e_s=1.6), True),
        (Slo(e2e_s=1.4), False),
        (Slo(ttft_s=1, tpot_s=0.09), False),
    ],
)
def test_a_good_request_keeps_every_target(slo: Slo, kept: bool) -> None:
    """TTFT 0.5 s, TPOT 0.1 s, E2E 1.5 s against each target."""
    assert slo.is_kept(exchange(0)) is kept


def test_a_failed_request_is_never_good() -> None:
    """However early its tokens came."""
    assert not Slo().is_kept(exchange(0, reason="truncated"))


def test_goodput_counts_failures_against_it() -> None:
    """One good, one late, one failed of three: a third, and only its tokens."""
    seen = (exchange(0), exchange(1, ttft_s=3), exchange(2, reason="timeout"))
    found = figures(run_of(*seen), Slo(ttft_s=1.0)).goodput
    assert found is not None
    assert (found.good, found.good_ratio) == (1, pytest.approx(1 / 3))
    assert found.good_output_tokens_per_s == pytest.approx(1.1)
    assert found.good_requests_per_s == pytest.approx(0.1)


# -- the client itself


def test_late_sends_are_the_clients_own_share() -> None:
    """One of two requests left 30 ms late."""
    found = figures(run_of(exchange(0), exchange(1, late_s=0.03)), None).client
    assert found.late_ratio == 0.5
    assert found.send_delay is not None
    assert found.send_delay.max_s == pytest.approx(0.03)


def test_halves_compare_medians() -> None:
    """Twelve requests a half: the medians of both are given, for drift."""
    early = [exchange(i / 3, ttft_s=0.2) for i in range(12)]
    late = [exchange(5 + i / 3, ttft_s=0.8) for i in range(12)]
    assert figures(run_of(*early, *late), None).halves.ttft_s == (pytest.approx(0.2), pytest.approx(0.8))
    assert figures(run_of(*early, *late[:9]), None).halves.ttft_s is None


# -- energy


ACCOUNTS = {"meter": 200.0, "requests": 120.0, "idle": 60.0, "overhead": 15.0, "unattributed": 5.0, "in_flight": 0.0}


def test_tokens_per_joule_by_requests_and_by_the_meter() -> None:
    """The meter includes idle, the requests' joules do not; both are named."""
    found = energy(
        source="s", grade="A", span_s=10, output_tokens=600, good_output_tokens=300, accounts=ACCOUNTS, notes=["n"]
    )
    assert (found.tokens_per_joule, found.good_tokens_per_joule) == (5.0, 2.5)
    assert (found.tokens_per_meter_joule, found.good_tokens_per_meter_joule) == (3.0, 1.5)
    assert (found.difference_joules, found.notes) == (0.0, ("n",))


def test_a_balance_that_does_not_add_up_is_shown() -> None:
    """Three joules that no account has are the difference."""
    found = energy(
        source="s", grade="A", span_s=1, output_tokens=1, good_output_tokens=1, accounts={**ACCOUNTS, "meter": 203.0}
    )
    assert found.difference_joules == 3.0


@pytest.mark.parametrize("accounts", [{"meter": 5.0}, {"requests": 5.0}, {}])
def test_what_is_not_known_stays_unknown(accounts: dict[str, float]) -> None:
    """No balance is claimed from half the accounts, and no zero stands for unknown."""
    found = energy(source="s", grade="D", span_s=1, output_tokens=10, good_output_tokens=5, accounts=accounts)
    assert found.difference_joules is None
    assert (found.tokens_per_joule is None) is ("requests" not in accounts)
    assert (found.tokens_per_meter_joule is None) is ("meter" not in accounts)


def test_no_joule_is_no_infinite_efficiency() -> None:
    """Zero joules give no ratio."""
    found = energy(
        source="s",
        grade="D",
        span_s=1,
        output_tokens=10,
        good_output_tokens=5,
        accounts={"meter": 0.0, "requests": 0.0},
    )
    assert (found.tokens_per_joule, found.tokens_per_meter_joule) == (None, None)


def test_figures_become_plain_json() -> None:
    """No numpy value is left in what is written."""
    found = figures(run_of(exchange(0), exchange(1)), Slo(ttft_s=1.0))
    for part in (found.requests, found.tokens, found.rates, found.ttft, found.goodput, found.client, found.halves):
        assert json.loads(json.dumps(msgspec.to_builtins(part))) == json.loads(msgspec.json.encode(part))
