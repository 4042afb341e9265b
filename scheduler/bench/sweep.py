"""Measures the points of a sweep one after the other and keeps each as soon as it is had.

Called by ``scheduler.bench.sweep_command``. It must never know a terminal or a file: it hands every new document to
``keep``, and goes on from the points that it is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from scheduler.bench.curves import curve_of
from scheduler.bench.drive import Run, Tally
from scheduler.bench.pairs import compare
from scheduler.bench.report import Report, Slo
from scheduler.bench.session import measure
from scheduler.bench.sweep_plan import NO_SLO, Point, Sweep
from scheduler.bench.sweep_report import Document, Measured, options_of
from scheduler.bench.watts import NO_METER, Watch, Watts, watching

Callbacks = tuple[Callable[[str], None], Callable[[Tally], None]]
Progress = Callable[[Point, int, int], AbstractContextManager[Callbacks]]
"""Point, its place from 0 and how many there are -> where its states and tallies go."""


def document_of(sweep: Sweep, points: Sequence[Measured]) -> Document:
    """The document of what is measured so far."""
    first, *others = [variant.name for variant in sweep.variants]
    return Document(
        options=options_of(sweep),
        num_planned=sweep.size(),
        points=tuple(points),
        curves=tuple(curve_of(variant.name, points, sweep) for variant in sweep.variants),
        comparisons=tuple(compare(first, other, points, sweep) for other in others),
    )


async def run_sweep(
    sweep: Sweep, *, before: Sequence[Measured], keep: Callable[[Document], None], progress: Progress
) -> tuple[Document, bool]:
    """Measure what is not in ``before``; the document, and whether it was interrupted.

    Raises: what ``session.measure`` raises; what was measured until then has been kept.
    """
    done = list(before)
    had = [point.conditions for point in before]
    todo = [(place, point) for place, point in enumerate(sweep.points()) if point.conditions not in had]
    for number, (place, point) in enumerate(todo):
        with progress(point, place, sweep.size()) as (on_state, on_change):
            if number and sweep.cooldown_s:
                on_state(f"cooling down {sweep.cooldown_s:g} s")
                await asyncio.sleep(sweep.cooldown_s)
            measured, interrupted = await _measure(sweep, point, place, on_state, on_change)
        if interrupted or measured is None:
            return document_of(sweep, done), True
        done.append(measured)
        keep(document_of(sweep, done))
    return document_of(sweep, done), False


async def _measure(
    sweep: Sweep, point: Point, place: int, on_state: Callable[[str], None], on_change: Callable[[Tally], None]
) -> tuple[Measured | None, bool]:
    """Idle, the load, idle again, all under one watch."""
    variant = point.variant
    async with watching(variant.target, variant.source) as watch:
        idle_before = await _idle(watch, sweep.idle_s, "before", on_state)
        report, run = await measure(
            variant.target, point.load, slo=sweep.slo, source=variant.source, on_state=on_state, on_change=on_change
        )
        if run.interrupted:
            return None, True
        steady = None if watch is None else _steady(watch, run)
        idle_after = await _idle(watch, sweep.idle_s, "after", on_state)
    tokens_per_s = good_tokens_per_s(report, sweep.slo)
    watts = None if steady is None else steady.watts
    return Measured(
        conditions=point.conditions,
        position=place,
        idle_before=idle_before,
        steady=steady,
        idle_after=idle_after,
        good_tokens_per_s=tokens_per_s,
        good_tokens_per_joule=tokens_per_s / watts if watts else None,
        missing=missing(steady, idle_before, idle_after, report),
        report=report,
    ), False


async def _idle(watch: Watch | None, idle_s: float, when: str, on_state: Callable[[str], None]) -> Watts | None:
    if watch is None or not idle_s:
        return None
    on_state(f"watching {idle_s:g} s of idle {when}")
    start_s = watch.clock()
    await asyncio.sleep(idle_s)
    return watch.watts(start_s, watch.clock(), idle=True)


def _steady(watch: Watch, run: Run) -> Watts:
    start_s = run.origin_s + run.warmup_s
    return watch.watts(start_s, start_s + run.duration_s)


def good_tokens_per_s(report: Report, slo: Slo) -> float:
    """Output tokens a second of requests that kept the SLO; without an SLO, all that arrived in the window: what came
    only in the drain behind it is no throughput."""
    if report.goodput is None or slo == NO_SLO:
        return report.rates.output_tokens_per_s
    return report.goodput.good_output_tokens_per_s


def missing(
    steady: Watts | None, idle_before: Watts | None, idle_after: Watts | None, report: Report
) -> tuple[str, ...]:
    """What this point cannot say, and how to have it said."""
    found = []
    if steady is None:
        found.append(NO_METER)
    for when, span in (("steady", steady), ("idle before", idle_before), ("idle after", idle_after)):
        if span is not None:
            found += [f"{when}: {note}" for note in span.notes]
    if idle_before is None and idle_after is None and steady is not None:
        found.append("idle watts were not measured: --idle-s 0")
    if report.energy is None or report.energy.difference_joules is None:
        has_meter = report.energy is not None and report.energy.meter_joules is not None
        found.append(
            "no accounts of joules: the server attributes none" + (", the meter is all there is" if has_meter else "")
        )
    return tuple(found)
