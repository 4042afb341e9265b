"""What a sweep leaves behind: the JSON document, one entry a point, and the curves that follow from them.

Called by ``scheduler.bench.sweep``, ``curves``, ``pairs`` and the faces. It must never know HTTP, a clock or a screen.
The keys are stable: within ``jouleway-sweep/1`` some may be added, none changes its meaning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from scheduler.bench.knee import Knee
from scheduler.bench.report import Report
from scheduler.bench.sweep_plan import Condition, Sweep
from scheduler.bench.watts import Watts
from scheduler.intervals import Interval

SCHEMA = "jouleway-sweep/1"
OVERLOAD = {"drift", "too_short_for_requests"}
"""Findings of a server that is offered more than it can take: a queue that grows, requests as long as the run."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One measured point. ``conditions`` say all that decides it; a sweep that goes on knows its points by them."""

    conditions: dict[str, Condition]
    position: int
    """When it was measured among all points of the sweep, from 0."""
    idle_before: Watts | None
    steady: Watts | None
    """Of the steady window, from the end of the warm-up."""
    idle_after: Watts | None
    good_tokens_per_s: float
    good_tokens_per_joule: float | None
    """Goodput per watt: good output tokens a second of the steady window ÷ its mean watts, idle included."""
    missing: tuple[str, ...] = ()
    """What was not measured, and how to have it measured."""
    report: Report

    @property
    def setting(self) -> str:
        """The curve it belongs to."""
        return str(self.conditions["setting"])

    @property
    def rate_rps(self) -> float:
        """The offered rate."""
        return float(self.conditions["rate_rps"] or 0.0)

    @property
    def repeat(self) -> int:
        """From 0."""
        return int(self.conditions["repeat"] or 0)

    @property
    def steady_state(self) -> bool:
        """Whether its two halves agree; under more load than the server can take they do not."""
        return not any(finding.reason == "drift" for finding in self.report.verdict.findings)

    @property
    def usable(self) -> bool:
        """Whether it may stand on a curve: nothing voids it, or only what overload brings with it by its nature."""
        reasons = {finding.reason for finding in self.report.verdict.findings if finding.voids}
        return not reasons or ("drift" in reasons and reasons <= OVERLOAD)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One rate of a curve: means over its usable repeats."""

    rate_rps: float
    num_measured: int
    num_usable: int
    num_steady: int
    good_tokens_per_s: Interval | None = None
    good_ratio: Interval | None = None
    steady_watts: Interval | None = None
    good_tokens_per_joule: Interval | None = None
    idle_watts: Interval | None = None
    """Of the spans before and after each repeat."""
    ttft_p50_s: Interval | None = None
    ttft_p99_s: Interval | None = None
    tpot_p50_s: Interval | None = None
    e2e_p50_s: Interval | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """Goodput per watt of one setting over the arrival rate."""

    setting: str
    rows: tuple[Row, ...]
    knee: Knee
    knee_rates_of_repeats: tuple[float | None, ...]
    """The knee of each repeat alone: how far it can be trusted."""
    largest_rate_within_slo_rps: float | None
    """The largest rate at which, as at every lower one, enough requests are good in a steady state."""
    overall_good_tokens_per_joule: float | None
    """As SPECpower does: the sum of goodput over all rates ÷ the sum of their watts and the idle watts."""
    idle_watts_ratio: float | None
    """Idle watts ÷ the most watts of any rate; 0 would be energy-proportional."""


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of two settings: second ÷ first over pairs that were neighbours in time, and what that shows."""

    measure: str
    rate_rps: float | None
    """None: over all rates."""
    ratio: Interval | None
    num_void: int
    """Pairs left out, because one of the two may not be quoted or lacks the measure."""
    verdict: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two settings side by side."""

    first: str
    second: str
    ratios: tuple[Ratio, ...]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A whole sweep."""

    schema: str = SCHEMA
    options: dict[str, Any]
    num_planned: int
    points: tuple[Measured, ...] = ()
    curves: tuple[Curve, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every point is measured."""
        return len(self.points) == self.num_planned


class ResumeError(ValueError):
    """A file of an earlier sweep cannot be gone on with; the message says what differs, and the remedy."""


def options_of(sweep: Sweep) -> dict[str, object]:
    """What was asked for, without any key."""
    return {
        "settings": [variant.conditions() for variant in sweep.variants],
        "rates_rps": list(sweep.rates),
        "repeats": sweep.repeats,
        "order": sweep.order,
        "seed": sweep.seed,
        "warmup_s": sweep.warmup_s,
        "duration_s": sweep.duration_s,
        "idle_s": sweep.idle_s,
        "cooldown_s": sweep.cooldown_s,
        "slo_ttft_s": sweep.slo.ttft_s,
        "slo_tpot_s": sweep.slo.tpot_s,
        "slo_e2e_s": sweep.slo.e2e_s,
        "attainment_ratio": sweep.attainment_ratio,
    }


def text_of(document: Document) -> str:
    """The document as JSON."""
    plain = msgspec.to_builtins(document)
    plain["complete"] = document.is_complete
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write(document: Document, path: Path) -> None:
    """Write the document so that a cut leaves the one before it. Raises: OSError."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text_of(document), encoding="utf-8")
    partial.replace(path)


def measured_before(path: Path, sweep: Sweep) -> tuple[Measured, ...]:
    """The points of an earlier run of the same sweep; none where there is no such file.

    A sweep may have grown since (more rates, settings, repeats). Raises: ResumeError when the file is something else,
    or holds a point that this sweep would not measure; the file is not touched.
    """
    if not path.exists():
        return ()
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Document)
    except (OSError, msgspec.DecodeError) as error:
        raise ResumeError(f"{path} is there and is no sweep that can be gone on with: {error}") from error
    if found.schema != SCHEMA:
        raise ResumeError(f"{path} is a {found.schema} document, not {SCHEMA}")
    planned = {_name(point.conditions): point.conditions for point in sweep.points()}
    for point in found.points:
        wanted = planned.get(_name(point.conditions))
        if wanted != point.conditions:
            raise ResumeError(f"{path} holds {_difference(point, wanted)}; name another file, or ask for the same")
    return found.points


def _name(conditions: dict[str, Condition]) -> tuple[Condition, ...]:
    return conditions.get("setting"), conditions.get("rate_rps"), conditions.get("repeat")


def _difference(point: Measured, wanted: dict[str, Condition] | None) -> str:
    """Which condition a kept point has otherwise."""
    where = f"{point.setting} at {point.rate_rps:g}/s, repeat {point.repeat + 1}"
    if wanted is None:
        return f"{where}, which this sweep does not ask for"
    keys = sorted(key for key in {*wanted, *point.conditions} if wanted.get(key) != point.conditions.get(key))
    said = ", ".join(f"{key} {point.conditions.get(key)} (now {wanted.get(key)})" for key in keys)
    return f"{where} with {said}"
