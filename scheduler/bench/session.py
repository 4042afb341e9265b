"""One benchmark run from options to report: probe, plan, drive, read joules, judge.

Called by ``scheduler.bench.command`` and by the comparisons under ``benchmarks/``. It must never know a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scheduler.bench.client import Client, Target, find_model, open_session, probe
from scheduler.bench.drive import Driver, Run, Tally
from scheduler.bench.energy import Reading, from_answers, from_meter, from_metrics, scrape, settled
from scheduler.bench.prompts import Prompts, TokenFit
from scheduler.bench.report import Energy, Report, Slo, figures
from scheduler.bench.verdict import judge
from scheduler.bench.workload import Lengths, Planned, closed, poisson, replay
from scheduler.trace_files import read_trace
from workers.types import MeterSpec

if TYPE_CHECKING:
    import aiohttp

    from workers.windows import PowerMeter

MeterKind = Literal["nvml", "rapl"]
DEFAULT_LENGTHS = Lengths(input_tokens=128, output_tokens=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent: exactly one of ``rate_rps`` (open loop), ``concurrency`` (closed loop) and ``trace`` is set."""

    rate_rps: float | None = None
    cv: float = 1.0
    concurrency: int | None = None
    trace: Path | None = None
    speed: float = 1.0
    skip_s: float = 0.0
    lengths: Lengths = DEFAULT_LENGTHS
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    duration_s: float = 60.0
    warmup_s: float = 5.0
    seed: int = 0
    texts: str = ""
    """Other words, other prompts with the same arrivals and lengths: what was sent before is in no prefix cache."""
    max_in_flight: int = 4096

    def __post_init__(self) -> None:
        kinds = [self.rate_rps is not None, self.concurrency is not None, self.trace is not None]
        if sum(kinds) != 1:
            raise ValueError("give exactly one of --rate, --concurrency and --trace")
        if self.duration_s <= 0 or self.warmup_s < 0:
            raise ValueError("the duration must be positive, the warm-up not negative")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError("the concurrency must be at least 1")
        if self.max_in_flight < 1:
            raise ValueError("--max-in-flight must be at least 1")

    def summary(self) -> str:
        """The load in a few words."""
        lengths = f"{self.lengths.input_tokens} in / {self.lengths.output_tokens} out"
        if self.trace is not None:
            return f"trace {self.trace.name} × {self.speed:g}"
        if self.concurrency is not None:
            return f"closed loop, {self.concurrency} at once, {lengths}"
        return f"{'Poisson' if self.cv == 1 else f'gamma cv {self.cv:g}'} {self.rate_rps:g} requests/s, {lengths}"

    def describe(self) -> dict[str, str | int | float | bool | None]:
        """Every setting, for the report."""
        return {
            "summary": self.summary(),
            "rate_rps": self.rate_rps,
            "cv": self.cv,
            "concurrency": self.concurrency,
            "trace": None if self.trace is None else self.trace.name,
            "speed": self.speed,
            "skip_s": self.skip_s,
            "input_tokens": self.lengths.input_tokens,
            "output_tokens": self.lengths.output_tokens,
            "length_spread_ratio": self.lengths.spread_ratio,
            "max_input_tokens": self.max_input_tokens,
            "max_output_tokens": self.max_output_tokens,
            "seed": self.seed,
            "max_in_flight": self.max_in_flight,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySource:
    """Where joules come from besides the answers: the server's metrics page, or a meter of this machine."""

    metrics_url: str | None = None
    admin_key: str | None = None
    local_meter: MeterKind | None = None
    gpu_uuids: tuple[str, ...] = ()
    """Which GPUs the local meter reads."""
    settle_s: float = 25.0


def make_plan(load: Load) -> tuple[list[Planned], tuple[str, ...]]:
    """The open-loop requests of a load, and notes for the report. Raises: TraceError, ValueError."""
    span_s = load.warmup_s + load.duration_s
    if load.trace is None:
        rate_rps = load.rate_rps or 0.0
        return poisson(rate_rps=rate_rps, duration_s=span_s, lengths=load.lengths, seed=load.seed, cv=load.cv), ()
    plan, num_cut = replay(
        read_trace(load.trace),
        duration_s=span_s,
        seed=load.seed,
        speed=load.speed,
        skip_s=load.skip_s,
        max_input_tokens=load.max_input_tokens,
        max_output_tokens=load.max_output_tokens,
    )
    return plan, (f"{num_cut} of {len(plan)} requests of the trace were cut to the limits",) if num_cut else ()


async def measure(
    target: Target,
    load: Load,
    *,
    slo: Slo | None = None,
    source: EnergySource = EnergySource(),
    on_state: Callable[[str], None] = lambda state: None,
    on_change: Callable[[Tally], None] = lambda tally: None,
) -> tuple[Report, Run]:
    """Benchmark ``target`` under ``load``.

    Raises: TargetError when the server cannot be reached or refuses the first request; TraceError or ValueError for a
    load that cannot be planned; MeterUnavailable when the local meter asked for cannot be had.
    """
    on_state("planning")
    plan, notes = ([], ()) if load.concurrency is not None else make_plan(load)
    async with open_session(target) as session:
        on_state("asking for the model")
        target = replace(target, model=target.model or await find_model(target, session))
        client = Client(target, session)
        on_state("probing")
        prompts = Prompts(seed=f"{load.seed} {load.texts}" if load.texts else load.seed)
        prompts.fit = await probe(client, prompts)
        notes += _fit_notes(prompts.fit)
        driver = Driver(client, prompts, max_in_flight=load.max_in_flight, on_change=on_change)
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with _stopped_by_signal(driver.stop):
            run, joules = await _with_energy(driver, plan, load, slo, source, session, on_state)
    computed = figures(run, slo)
    verdict = judge(
        computed,
        duration_s=load.duration_s,
        exact_output=target.exact_output,
        interrupted=run.interrupted,
        notes=notes,
    )
    report = Report(
        target={
            "base_url": target.base_url,
            "model": target.model,
            "endpoint": target.endpoint,
            "exact_output": target.exact_output,
        },
        workload=load.describe(),
        started_utc=started,
        warmup_s=load.warmup_s,
        duration_s=load.duration_s,
        requests=computed.requests,
        tokens=computed.tokens,
        rates=computed.rates,
        ttft=computed.ttft,
        tpot=computed.tpot,
        itl=computed.itl,
        e2e=computed.e2e,
        goodput=computed.goodput,
        energy=joules,
        client=computed.client,
        halves=computed.halves,
        verdict=verdict,
    )
    return report, run


async def _with_energy(
    driver: Driver,
    plan: list[Planned],
    load: Load,
    slo: Slo | None,
    source: EnergySource,
    session: aiohttp.ClientSession,
    on_state: Callable[[str], None],
) -> tuple[Run, Energy | None]:
    """Drive between two readings of whatever gives joules; the best source wins: metrics, local meter, answers."""
    before: Reading | None = None
    if source.metrics_url is not None:
        before = await scrape(session, source.metrics_url, source.admin_key)
    with local_meter(source.local_meter, source.gpu_uuids) as meter:
        first = None if meter is None else await asyncio.to_thread(meter.read)
        on_state("running")
        run = await _drive(driver, plan, load)
        last = None if meter is None else await asyncio.to_thread(meter.read)
        if before is not None and source.metrics_url is not None:
            on_state("waiting for the last metering window")
            after = await settled(session, source.metrics_url, source.admin_key, settle_s=source.settle_s)
            return run, from_metrics(before, after, run.exchanges, slo)
        if meter is not None and first is not None and last is not None:
            return run, from_meter(meter.name, first, last, run.exchanges, slo)
    return run, from_answers(run.measured, slo, span_s=load.duration_s)


async def _drive(driver: Driver, plan: list[Planned], load: Load) -> Run:
    if load.concurrency is None:
        return await driver.open_loop(plan, warmup_s=load.warmup_s, duration_s=load.duration_s)
    return await driver.closed_loop(
        closed(lengths=load.lengths, seed=load.seed),
        concurrency=load.concurrency,
        warmup_s=load.warmup_s,
        duration_s=load.duration_s,
    )


def _fit_notes(fit: TokenFit) -> tuple[str, ...]:
    return () if fit.measured else ("the server counts no prompt tokens: a prompt has as many words as tokens asked",)


@contextmanager
def local_meter(kind: MeterKind | None, gpu_uuids: tuple[str, ...]) -> Iterator[PowerMeter | None]:
    """A meter of this machine, closed on leaving; None where none is asked for. Raises: MeterUnavailable."""
    if kind is None:
        yield None
        return
    from workers.power.choose import open_meter  # with every meter: only where one was asked for

    meter, _ = open_meter(MeterSpec(kind=kind), gpu_uuids=gpu_uuids, pids=(), counter=None)
    try:
        yield meter
    finally:
        meter.close()


@contextmanager
def _stopped_by_signal(stop: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C ends the run and keeps its figures; the second one kills as usual."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread
        loop.add_signal_handler(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)
