"""Turns the exchanges of one run into figures: rates, percentiles, goodput, energy; a plain value that becomes JSON.

Called by ``scheduler.bench.command`` and by the comparisons under ``benchmarks/``. It must never know HTTP or a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from scheduler.bench.client import Exchange
from scheduler.bench.drive import Run

SCHEMA = "jouleway-bench/1"
MIN_SAMPLES_P99 = 100
"""Below this many samples a 99th percentile is one single request, and is not reported."""
LATE_S = 0.01
"""A request sent later than this after its due time counts as late."""


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What a good request keeps; None = no demand."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def is_kept(self, seen: Exchange) -> bool:
        """Completed, and within every target. A single-token answer has no TPOT and keeps any."""
        if seen.reason is not None:
            return False
        pairs = ((self.ttft_s, seen.ttft_s), (self.tpot_s, seen.tpot_s), (self.e2e_s, seen.e2e_s))
        return all(target is None or value is None or value <= target for target, value in pairs)


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Linear-interpolated quantiles of a latency; ``p99_s`` is None below 100 samples."""

    num: int
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float | None
    max_s: float

    @staticmethod
    def of(samples_s: Iterable[float]) -> Quantiles | None:
        """The quantiles, or None without a sample."""
        values = np.fromiter(samples_s, dtype=np.float64)
        if values.size == 0:
            return None
        p50, p90, p95, p99 = (float(value) for value in np.quantile(values, (0.5, 0.9, 0.95, 0.99)))
        return Quantiles(
            num=int(values.size),
            mean_s=float(values.mean()),
            p50_s=p50,
            p90_s=p90,
            p95_s=p95,
            p99_s=p99 if values.size >= MIN_SAMPLES_P99 else None,
            max_s=float(values.max()),
        )


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """Requests due in the measured span, and how they ended."""

    measured: int
    completed: int
    failed: int
    by_reason: dict[str, int]
    warmup: int
    unsent: int


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the measured requests as the server counts them (pieces of text where it does not)."""

    input: int
    cached: int
    output: int
    counted_by_server: bool
    planned_input: int
    planned_output: int
    mean_pieces_per_request: float


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Per second of the measured span; output tokens count when they arrive, whichever request they belong to."""

    requests_due_per_s: float
    requests_completed_per_s: float
    output_tokens_per_s: float
    num_open_mean: float
    num_open_max: int


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that kept the SLO; failed ones count against it."""

    slo: Slo
    good: int
    good_ratio: float
    good_requests_per_s: float
    good_output_tokens_per_s: float


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Joules and the tokens produced for them. ``meter_joules`` includes idle; ``requests_joules`` does not."""

    source: str
    grade: str
    requests_joules: float | None
    meter_joules: float | None
    idle_joules: float | None = None
    overhead_joules: float | None = None
    unattributed_joules: float | None = None
    in_flight_joules: float | None = None
    difference_joules: float | None = None
    """Meter minus its accounts, over the span; 0 when the balance is exact."""
    span_s: float
    output_tokens: int
    good_output_tokens: int
    tokens_per_joule: float | None
    good_tokens_per_joule: float | None
    tokens_per_meter_joule: float | None
    good_tokens_per_meter_joule: float | None
    notes: tuple[str, ...] = ()


class ClientState(msgspec.Struct, frozen=True, kw_only=True):
    """What the benchmark itself contributed: its event loop's lag, late sends, CPU."""

    lag: Quantiles | None
    send_delay: Quantiles | None
    late_ratio: float
    cpu_ratio: float


class Halves(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of the first and the second half of the measured span, for drift."""

    ttft_s: tuple[float, float] | None
    tpot_s: tuple[float, float] | None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One remark on a run; ``voids`` = its figures must not be quoted."""

    reason: str
    message: str
    voids: bool = True


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    valid: bool
    findings: tuple[Finding, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one benchmark run says."""

    schema: str = SCHEMA
    target: dict[str, str | bool]
    workload: dict[str, str | int | float | bool | None]
    started_utc: str
    warmup_s: float
    duration_s: float
    requests: Requests
    tokens: Tokens
    rates: Rates
    ttft: Quantiles | None
    tpot: Quantiles | None
    itl: Quantiles | None
    e2e: Quantiles | None
    goodput: Goodput | None
    energy: Energy | None
    client: ClientState
    halves: Halves
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The computed part of a report, before target, workload and verdict are added."""

    requests: Requests
    tokens: Tokens
    rates: Rates
    ttft: Quantiles | None
    tpot: Quantiles | None
    itl: Quantiles | None
    e2e: Quantiles | None
    goodput: Goodput | None
    client: ClientState
    halves: Halves


def figures(run: Run, slo: Slo | None) -> Figures:
    """All figures of one run. ``slo`` None leaves goodput out."""
    measured = run.measured
    completed = [seen for seen in measured if seen.reason is None]
    return Figures(
        requests=_requests(run, measured, completed),
        tokens=_tokens(measured, completed),
        rates=_rates(run, measured, completed),
        ttft=Quantiles.of(value for seen in completed if (value := seen.ttft_s) is not None),
        tpot=Quantiles.of(value for seen in completed if (value := seen.tpot_s) is not None),
        itl=Quantiles.of(gap for seen in completed for gap in np.diff(seen.token_s)),
        e2e=Quantiles.of(seen.e2e_s for seen in completed),
        goodput=None if slo is None else _goodput(run, measured, slo),
        client=_client(run, measured),
        halves=_halves(run, completed),
    )


def output_tokens_between(exchanges: Iterable[Exchange], start_s: float, end_s: float) -> float:
    """Output tokens that arrived in a span; a request's tokens count evenly over its pieces of text."""
    total = 0.0
    for seen in exchanges:
        if seen.token_s:
            stamps = np.frombuffer(seen.token_s, dtype=np.float64)
            inside = int(np.searchsorted(stamps, end_s) - np.searchsorted(stamps, start_s))
            total += inside * max(seen.output_tokens, len(stamps)) / len(stamps)
    return total


def energy(
    *,
    source: str,
    grade: str,
    span_s: float,
    output_tokens: int,
    good_output_tokens: int,
    accounts: dict[str, float],
    notes: Sequence[str] = (),
) -> Energy:
    """Tokens per joule from accounts in joules (``requests meter idle overhead unattributed in_flight``, any)."""
    requests, meter = accounts.get("requests"), accounts.get("meter")
    parts = [accounts.get(name) for name in ("requests", "idle", "overhead", "unattributed", "in_flight")]
    known = [part for part in parts if part is not None]
    return Energy(
        source=source,
        grade=grade,
        requests_joules=requests,
        meter_joules=meter,
        idle_joules=accounts.get("idle"),
        overhead_joules=accounts.get("overhead"),
        unattributed_joules=accounts.get("unattributed"),
        in_flight_joules=accounts.get("in_flight"),
        difference_joules=None if meter is None or len(known) < len(parts) else round(meter - sum(known), 6) + 0.0,
        span_s=span_s,
        output_tokens=output_tokens,
        good_output_tokens=good_output_tokens,
        tokens_per_joule=_ratio(output_tokens, requests),
        good_tokens_per_joule=_ratio(good_output_tokens, requests),
        tokens_per_meter_joule=_ratio(output_tokens, meter),
        good_tokens_per_meter_joule=_ratio(good_output_tokens, meter),
        notes=tuple(notes),
    )


def _ratio(tokens: int, joules: float | None) -> float | None:
    return tokens / joules if joules else None


def _requests(run: Run, measured: Sequence[Exchange], completed: Sequence[Exchange]) -> Requests:
    return Requests(
        measured=len(measured),
        completed=len(completed),
        failed=len(measured) - len(completed),
        by_reason=dict(Counter(seen.reason for seen in measured if seen.reason is not None).most_common()),
        warmup=sum(seen.due_s < run.warmup_s for seen in run.exchanges),
        unsent=run.num_unsent,
    )


def _tokens(measured: Sequence[Exchange], completed: Sequence[Exchange]) -> Tokens:
    return Tokens(
        input=sum(seen.input_tokens for seen in measured),
        cached=sum(seen.cached_tokens for seen in measured),
        output=sum(seen.output_tokens for seen in measured),
        counted_by_server=bool(completed) and all(seen.counted_by_server for seen in completed),
        planned_input=sum(seen.planned.input_tokens for seen in measured),
        planned_output=sum(seen.planned.output_tokens for seen in measured),
        mean_pieces_per_request=float(np.mean([len(seen.token_s) for seen in completed])) if completed else 0.0,
    )


def _rates(run: Run, measured: Sequence[Exchange], completed: Sequence[Exchange]) -> Rates:
    end_s = run.warmup_s + run.duration_s
    finished = sum(seen.reason is None and run.warmup_s <= seen.ended_s < end_s for seen in run.exchanges)
    counts = open_requests(run, num_points=200)
    return Rates(
        requests_due_per_s=len(measured) / run.duration_s,
        requests_completed_per_s=finished / run.duration_s,
        output_tokens_per_s=output_tokens_between(run.exchanges, run.warmup_s, end_s) / run.duration_s,
        num_open_mean=float(counts.mean()),
        num_open_max=int(counts.max()),
    )


def open_requests(run: Run, *, num_points: int) -> np.ndarray:
    """Requests open at evenly spaced moments of the measured span."""
    moments = np.linspace(run.warmup_s, run.warmup_s + run.duration_s, num_points, endpoint=False)
    starts = np.sort([seen.due_s for seen in run.exchanges])
    ends = np.sort([seen.ended_s for seen in run.exchanges])
    return np.searchsorted(starts, moments, side="right") - np.searchsorted(ends, moments, side="right")


def _goodput(run: Run, measured: Sequence[Exchange], slo: Slo) -> Goodput:
    good = [seen for seen in measured if slo.is_kept(seen)]
    return Goodput(
        slo=slo,
        good=len(good),
        good_ratio=len(good) / len(measured) if measured else 0.0,
        good_requests_per_s=len(good) / run.duration_s,
        good_output_tokens_per_s=sum(seen.output_tokens for seen in good) / run.duration_s,
    )


def _client(run: Run, measured: Sequence[Exchange]) -> ClientState:
    delays = [seen.sent_s - seen.due_s for seen in measured if seen.sent_s is not None]
    return ClientState(
        lag=Quantiles.of(run.lag_s),
        send_delay=Quantiles.of(delays),
        late_ratio=sum(delay > LATE_S for delay in delays) / len(delays) if delays else 0.0,
        cpu_ratio=run.cpu_ratio,
    )


def _halves(run: Run, completed: Sequence[Exchange]) -> Halves:
    middle_s = run.warmup_s + run.duration_s / 2
    first = [seen for seen in completed if seen.due_s < middle_s]
    second = [seen for seen in completed if seen.due_s >= middle_s]

    def medians(name: str) -> tuple[float, float] | None:
        pair = [[value for seen in half if (value := getattr(seen, name)) is not None] for half in (first, second)]
        if min(len(values) for values in pair) < 10:
            return None
        return float(np.median(pair[0])), float(np.median(pair[1]))

    return Halves(ttft_s=medians("ttft_s"), tpot_s=medians("tpot_s"))
