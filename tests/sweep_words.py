"""Sweeps and measured points in a few words, for tests of ``scheduler.bench`` (``from tests.sweep_words import …``)."""

from __future__ import annotations

from typing import Any

import msgspec

from scheduler.bench.client import Target
from scheduler.bench.report import (
    ClientState,
    Energy,
    Finding,
    Goodput,
    Halves,
    Quantiles,
    Rates,
    Report,
    Requests,
    Slo,
    Tokens,
    Verdict,
    energy,
)
from scheduler.bench.session import EnergySource
from scheduler.bench.sweep_plan import Sweep, Variant
from scheduler.bench.sweep_report import Measured
from scheduler.bench.watts import Watts
from scheduler.bench.workload import Lengths

ACCOUNTS = {"meter": 100.0, "requests": 60.0, "idle": 30.0, "overhead": 8.0, "unattributed": 2.0, "in_flight": 0.0}
START = "2026-01-01T00:00:00+00:00"


def variant(name: str = "a", *, url: str = "http://one", **options: Any) -> Variant:
    settings = {"lengths": Lengths(input_tokens=20, output_tokens=4), "cv": 1.0, "max_in_flight": 64, **options}
    return Variant(name=name, **{"target": Target(base_url=url), "source": EnergySource(), **settings})


def sweep_of(*variants: Variant, **options: Any) -> Sweep:
    return Sweep(variants=variants or (variant(),), **{"rates": (1.0, 2.0, 4.0), **options})


def quantiles(value_s: float) -> Quantiles:
    return Quantiles(num=200, mean_s=value_s, p50_s=value_s, p90_s=value_s, p95_s=value_s, p99_s=value_s, max_s=value_s)


def accounts(**values: float) -> Energy:
    return energy(
        source="server metrics", grade="D", span_s=60, output_tokens=80, good_output_tokens=80,
        accounts={**ACCOUNTS, **values},
    )  # fmt: skip


def report_of(
    *, good_ratio: float = 1.0, tokens_per_s: float = 40.0, ttft_s: float = 0.1, reasons: tuple[str, ...] = (),
    joules: Energy | None = None, started_utc: str = START,
) -> Report:  # fmt: skip
    findings = tuple(Finding(reason=reason, message=f"{reason} it was") for reason in reasons)
    return Report(
        target={"base_url": "http://one", "model": "tiny", "endpoint": "chat", "exact_output": True},
        workload={"summary": "Poisson 1 requests/s"},
        started_utc=started_utc,
        warmup_s=1,
        duration_s=10,
        requests=Requests(measured=100, completed=100, failed=0, by_reason={}, warmup=0, unsent=0),
        tokens=Tokens(
            input=1, cached=0, output=400, counted_by_server=True, planned_input=1, planned_output=400,
            mean_pieces_per_request=1,
        ),
        rates=Rates(
            requests_due_per_s=10, requests_completed_per_s=10, output_tokens_per_s=tokens_per_s, num_open_mean=1,
            num_open_max=1,
        ),
        ttft=quantiles(ttft_s), tpot=quantiles(0.02), itl=None, e2e=quantiles(0.5),
        goodput=Goodput(
            slo=Slo(ttft_s=1), good=int(100 * good_ratio), good_ratio=good_ratio, good_requests_per_s=10 * good_ratio,
            good_output_tokens_per_s=tokens_per_s * good_ratio,
        ),
        energy=joules,
        client=ClientState(lag=None, send_delay=None, late_ratio=0, cpu_ratio=0),
        halves=Halves(ttft_s=None, tpot_s=None),
        verdict=Verdict(valid=not reasons, findings=findings),
    )  # fmt: skip


def watts(value: float | None, *, notes: tuple[str, ...] = ()) -> Watts:
    return Watts(watts=value, span_s=10.0, grade="D", notes=notes)


def measured(
    sweep: Sweep, setting: str = "a", rate_rps: float = 1.0, repeat: int = 0, *, per_joule: float | None = 0.5,
    steady: float | None = 80.0, idle: tuple[float | None, float | None] = (40.0, 42.0), missing: tuple[str, ...] = (),
    **report: Any,
) -> Measured:  # fmt: skip
    """A point of a sweep as it would have been measured, by default a good one."""
    (place, point) = next(
        (place, point)
        for place, point in enumerate(sweep.points())
        if (point.variant.name, point.rate_rps, point.repeat) == (setting, rate_rps, repeat)
    )
    made = report_of(**{"joules": accounts(), **report})
    assert made.goodput is not None
    return Measured(
        conditions=point.conditions,
        position=place,
        idle_before=None if idle[0] is None else watts(idle[0]),
        steady=None if steady is None else watts(steady),
        idle_after=None if idle[1] is None else watts(idle[1]),
        good_tokens_per_s=made.goodput.good_output_tokens_per_s,
        good_tokens_per_joule=per_joule,
        missing=missing,
        report=made,
    )


def void(point: Measured, reason: str = "client_bound") -> Measured:
    findings = (Finding(reason=reason, message="it was"),)
    report = msgspec.structs.replace(point.report, verdict=Verdict(valid=False, findings=findings))
    return msgspec.structs.replace(point, report=report)
