"""The verdict: which runs may be quoted, and the reason for each that may not."""

from dataclasses import replace

import msgspec
import pytest

from scheduler.bench.report import ClientState, Figures, Halves, Quantiles, Rates, Requests, Tokens
from scheduler.bench.verdict import judge


def quantiles(value_s: float, *, num: int = 200, p99_s: float | None = None) -> Quantiles:
    p99_s = value_s if p99_s is None else p99_s
    return Quantiles(
        num=num, mean_s=value_s, p50_s=value_s, p90_s=value_s, p95_s=value_s, p99_s=p99_s, max_s=max(value_s, p99_s)
    )


GOOD = Figures(
    requests=Requests(measured=200, completed=200, failed=0, by_reason={}, warmup=5, unsent=0),
    tokens=Tokens(
        input=20_000, cached=0, output=4_000, counted_by_server=True, planned_input=20_000, planned_output=4_000,
        mean_pieces_per_request=20,
    ),
    rates=Rates(
        requests_due_per_s=10, requests_completed_per_s=10, output_tokens_per_s=200, num_open_mean=5, num_open_max=9
    ),
    ttft=quantiles(0.1),
    tpot=quantiles(0.02),
    itl=quantiles(0.02),
    e2e=quantiles(0.5),
    goodput=None,
    client=ClientState(lag=quantiles(0.001), send_delay=quantiles(0.001), late_ratio=0.0, cpu_ratio=0.2),
    halves=Halves(ttft_s=(0.1, 0.1), tpot_s=(0.02, 0.02)),
)  # fmt: skip


def reasons(
    figures: Figures, *, duration_s: float = 20.0, exact_output: bool = True, interrupted: bool = False
) -> dict[str, bool]:
    """Reason -> whether it voids the run."""
    verdict = judge(figures, duration_s=duration_s, exact_output=exact_output, interrupted=interrupted)
    assert verdict.valid is not any(finding.voids for finding in verdict.findings)
    return {finding.reason: finding.voids for finding in verdict.findings}


def test_a_clean_run_is_valid_without_remark() -> None:
    """Long enough, no failure, a quick client, two equal halves."""
    assert reasons(GOOD) == {}


def test_a_short_run_is_void() -> None:
    """Below ten seconds no figure is quoted."""
    assert reasons(GOOD, duration_s=9.9) == {"too_short": True}


def test_few_requests_are_void() -> None:
    """Twenty-nine requests are an anecdote."""
    few = replace(GOOD, requests=msgspec.structs.replace(GOOD.requests, measured=29, completed=29))
    assert reasons(few) == {"too_few_requests": True}


def test_a_span_shorter_than_three_lifetimes_is_void() -> None:
    """Where a request takes 8 s, 20 s are mostly edges."""
    assert reasons(replace(GOOD, e2e=quantiles(8.0))) == {"too_short_for_requests": True}


def test_an_interrupted_run_is_void() -> None:
    """Its figures are shown, not quoted."""
    assert reasons(GOOD, interrupted=True) == {"interrupted": True}


@pytest.mark.parametrize(
    ("failed", "expected"), [(1, {"errors": False}), (2, {"errors": False}), (3, {"errors": True})]
)
def test_more_than_one_percent_failures_are_void(failed: int, expected: dict[str, bool]) -> None:
    """A few failures are a remark, more void the run."""
    requests = Requests(
        measured=200, completed=200 - failed, failed=failed, by_reason={"http_503": failed}, warmup=0, unsent=0
    )
    assert reasons(replace(GOOD, requests=requests)) == expected


def test_the_message_names_the_failures() -> None:
    """Whoever reads the verdict sees what failed."""
    requests = Requests(measured=10, completed=5, failed=5, by_reason={"timeout": 3, "http_503": 2}, warmup=0, unsent=0)
    verdict = judge(replace(GOOD, requests=requests), duration_s=20, exact_output=True, interrupted=False)
    messages = {finding.reason: finding.message for finding in verdict.findings}
    assert messages["errors"] == "5 of 10 requests failed (50.0%): timeout 3, http_503 2"


@pytest.mark.parametrize(
    "client",
    [
        ClientState(lag=quantiles(0.001, p99_s=0.02), send_delay=quantiles(0.001), late_ratio=0, cpu_ratio=0.1),
        ClientState(lag=quantiles(0.001), send_delay=quantiles(0.001, p99_s=0.02), late_ratio=0.1, cpu_ratio=0.1),
        ClientState(lag=quantiles(0.001), send_delay=quantiles(0.001), late_ratio=0, cpu_ratio=0.95),
        ClientState(
            lag=msgspec.structs.replace(quantiles(0.02), p99_s=None), send_delay=None, late_ratio=0, cpu_ratio=0.1
        ),
    ],
    ids=["lag", "late sends", "cpu", "lag of few samples"],
)
def test_a_client_that_measured_itself_voids_the_run(client: ClientState) -> None:
    """Lag or late sends beyond 10 ms, or a busy core, are the client's own doing."""
    assert reasons(replace(GOOD, client=client)) == {"client_bound": True}


def test_the_clients_lag_may_grow_with_what_it_measures() -> None:
    """20 ms of lag are 1 % of a TTFT of 2 s, and then allowed."""
    client = ClientState(lag=quantiles(0.02), send_delay=quantiles(0.02), late_ratio=0, cpu_ratio=0.1)
    slow = replace(GOOD, client=client, ttft=quantiles(2.0), halves=Halves(ttft_s=(2.0, 2.0), tpot_s=None))
    assert reasons(slow) == {}


@pytest.mark.parametrize(
    ("halves", "expected"),
    [
        (Halves(ttft_s=(0.1, 0.16), tpot_s=None), {"drift": True}),
        (Halves(ttft_s=(0.16, 0.1), tpot_s=None), {"drift": True}),
        (Halves(ttft_s=None, tpot_s=(0.05, 0.08)), {"drift": True}),
        (Halves(ttft_s=(0.1, 0.149), tpot_s=None), {}),
        (Halves(ttft_s=(0.005, 0.015), tpot_s=(0.001, 0.003)), {}),
        (Halves(ttft_s=None, tpot_s=None), {}),
    ],
)
def test_halves_that_differ_by_half_are_drift(halves: Halves, expected: dict[str, bool]) -> None:
    """A queue that grows, or a cache that warms, is no steady state; milliseconds are no drift."""
    assert reasons(replace(GOOD, halves=halves)) == expected


def test_other_output_lengths_than_asked_void_the_run() -> None:
    """A server that stops early is not comparable with one that does not."""
    short = replace(GOOD, tokens=msgspec.structs.replace(GOOD.tokens, output=3_900))
    assert reasons(short) == {"output_lengths_differ": True}
    assert reasons(short, exact_output=False) == {}


def test_other_input_lengths_are_a_remark() -> None:
    """Prompts 15 % off the plan are said, not void."""
    assert reasons(replace(GOOD, tokens=msgspec.structs.replace(GOOD.tokens, input=23_000))) == {
        "input_lengths_differ": False
    }


def test_a_server_that_counts_nothing_is_a_remark() -> None:
    """Pieces of text stand in for tokens, and that is said."""
    tokens = msgspec.structs.replace(GOOD.tokens, counted_by_server=False, input=0)
    assert reasons(replace(GOOD, tokens=tokens)) == {"tokens_not_counted": False}


def test_notes_of_the_plan_are_kept() -> None:
    """What was cut from a trace stands in the verdict."""
    verdict = judge(GOOD, duration_s=20, exact_output=True, interrupted=False, notes=("3 were cut",))
    assert verdict.valid
    assert [(finding.reason, finding.message) for finding in verdict.findings] == [("note", "3 were cut")]
