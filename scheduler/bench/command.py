"""`jouleway bench`: options in, a table, a JSON file and a picture out, and an exit code.

Called by ``scheduler.bench.group``. It must import nothing heavy before it runs; what is measured is decided in
``session``.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from scheduler.addresses import root_of
from scheduler.bench.options import (
    ExactOutputOption,
    MaxInFlightOption,
    MetricsUrlOption,
    SloE2eOption,
    SloTpotOption,
    SloTtftOption,
    TemperatureOption,
    TimeoutOption,
)

if TYPE_CHECKING:
    from scheduler.bench.client import Target
    from scheduler.bench.drive import Run
    from scheduler.bench.report import Report, Slo
    from scheduler.bench.session import EnergySource, Load, MeterKind

OK, FAILURE, USAGE, NOT_FOUND, UNAVAILABLE, INVALID, INTERRUPTED = 0, 1, 2, 3, 6, 7, 130
"""The exit codes of all commands; 7 here: the run was measured, but its figures must not be quoted."""
EPILOG = (
    "Exit codes: 0 measured and valid, 1 failure, 2 usage, 3 trace file not usable, 6 target not usable, "
    "7 measured but invalid (the verdict says why), 130 interrupted (figures so far are written)."
)


class EndpointName(StrEnum):
    """The two endpoints that stream text."""

    CHAT = "chat"
    COMPLETIONS = "completions"


class MeterName(StrEnum):
    """Meters of this machine that can be read beside the target."""

    NVML = "nvml"
    RAPL = "rapl"


def bench(
    url: Annotated[str, typer.Argument(help="Any OpenAI server.")] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Model name; default: the first that the server lists.")] = "",
    api_key: Annotated[
        str | None, typer.Option(envvar="JOULEWAY_API_KEY", show_envvar=True, help="Bearer key.")
    ] = None,
    endpoint: Annotated[EndpointName, typer.Option(help="Which endpoint to stream from.")] = EndpointName.CHAT,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests per second, Poisson.", min=1e-6)] = None,
    cv: Annotated[float, typer.Option(help="Burstiness of --rate: CV of the gaps; 1 = Poisson.", min=0.01)] = 1.0,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: requests open at once.", min=1)] = None,
    trace: Annotated[Path | None, typer.Option(help="Replay: Azure CSV or Mooncake JSONL file.")] = None,
    speed: Annotated[float, typer.Option(help="Replay this many times faster.", min=1e-6)] = 1.0,
    skip_s: Annotated[float, typer.Option(help="Start this far into the trace, in trace time.", min=0)] = 0.0,
    input_tokens: Annotated[int, typer.Option(help="Mean prompt tokens (not for --trace).", min=1)] = 128,
    output_tokens: Annotated[int, typer.Option(help="Mean output tokens (not for --trace).", min=1)] = 64,
    length_spread: Annotated[float, typer.Option(help="Lengths vary by ± this share.", min=0, max=1)] = 0.0,
    max_input_tokens: Annotated[int | None, typer.Option(help="Cut a trace's longer prompts.", min=1)] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Cut a trace's longer outputs.", min=1)] = None,
    duration_s: Annotated[float, typer.Option(help="Measured seconds, after the warm-up.", min=0.1)] = 60.0,
    warmup_s: Annotated[float, typer.Option(help="Seconds of the same load before measuring.", min=0)] = 5.0,
    seed: Annotated[int, typer.Option(help="Same seed: same arrivals, lengths and prompts.")] = 0,
    exact_output: ExactOutputOption = True,
    temperature: TemperatureOption = None,
    timeout_s: TimeoutOption = 300.0,
    max_in_flight: MaxInFlightOption = 4096,
    slo_ttft_s: SloTtftOption = None,
    slo_tpot_s: SloTpotOption = None,
    slo_e2e_s: SloE2eOption = None,
    metrics_url: MetricsUrlOption = None,
    admin_key: Annotated[str | None, typer.Option(envvar="JOULEWAY_ADMIN_KEY", help="Key of --metrics-url.")] = None,
    local_meter: Annotated[MeterName | None, typer.Option(help="Read a meter of this machine for joules.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="UUID of a GPU for --local-meter nvml; repeat.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help="Write the report as JSON ('-' = stdout).")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="PATH", help="Draw the run as a PNG.")] = None,
) -> None:
    """Benchmark any OpenAI server: latencies from the scheduled send, goodput under an SLO, tokens per joule.

    Give one of --rate (open loop), --concurrency (closed loop) and --trace (replay). Ends with a verdict on whether
    the run may be quoted: too short, client-bound, errors, drift. Many rates and settings: `jouleway bench sweep`.
    """
    if json_path is not None and plot is not None and json_path == plot:
        fail("--json and --plot name the same file", USAGE)
    from scheduler.bench.client import Target
    from scheduler.bench.report import Slo
    from scheduler.bench.session import EnergySource, Load
    from scheduler.bench.workload import Lengths

    try:
        lengths = Lengths(input_tokens=input_tokens, output_tokens=output_tokens, spread_ratio=length_spread)
        load = Load(
            rate_rps=rate, cv=cv, concurrency=concurrency, trace=trace, speed=speed, skip_s=skip_s, lengths=lengths,
            max_input_tokens=max_input_tokens, max_output_tokens=max_output_tokens, duration_s=duration_s,
            warmup_s=warmup_s, seed=seed, max_in_flight=max_in_flight,
        )  # fmt: skip
    except ValueError as error:
        fail(str(error), USAGE)
    target = Target(
        base_url=base_url(url), model=model, api_key=api_key, endpoint=endpoint.value, exact_output=exact_output,
        temperature=temperature, timeout_s=timeout_s,
    )  # fmt: skip
    wanted = (slo_ttft_s, slo_tpot_s, slo_e2e_s)
    slo = Slo(ttft_s=slo_ttft_s, tpot_s=slo_tpot_s, e2e_s=slo_e2e_s) if any(wanted) else None
    meter: MeterKind | None = None if local_meter is None else local_meter.value
    source = EnergySource(metrics_url=metrics_url, admin_key=admin_key, local_meter=meter, gpu_uuids=tuple(gpu or ()))
    raise typer.Exit(_run(target, load, slo, source, json_path=json_path, plot_path=plot))


def _run(
    target: Target, load: Load, slo: Slo | None, source: EnergySource, *, json_path: Path | None, plot_path: Path | None
) -> int:
    """Measure, write, print; returns the exit code."""
    import uvloop

    from scheduler.bench import screen
    from scheduler.bench.client import TargetError
    from scheduler.bench.session import measure
    from scheduler.trace_files import TraceError
    from workers.errors import MeterUnavailable

    try:
        with screen.progress(load.warmup_s + load.duration_s) as (on_state, on_change):
            report, run = uvloop.run(
                measure(target, load, slo=slo, source=source, on_state=on_state, on_change=on_change)
            )
    except TraceError as error:
        fail(str(error), NOT_FOUND)
    except ValueError as error:
        fail(str(error), USAGE)
    except (TargetError, MeterUnavailable) as error:
        fail(str(error), UNAVAILABLE)
    try:
        _write(report, run, json_path, plot_path)
    except (OSError, TargetError) as error:
        screen.show(report, to_stderr=json_path == Path("-"))
        fail(f"the result could not be written: {error}", FAILURE)
    screen.show(report, to_stderr=json_path == Path("-"))
    if run.interrupted:
        return INTERRUPTED
    return OK if report.verdict.valid else INVALID


def _write(report: Report, run: Run, json_path: Path | None, plot_path: Path | None) -> None:
    if json_path is not None:
        import msgspec

        text = json.dumps(msgspec.to_builtins(report), indent=2, ensure_ascii=False) + "\n"
        if json_path == Path("-"):
            sys.stdout.write(text)
        else:
            json_path.write_text(text, encoding="utf-8")
    if plot_path is not None:
        from scheduler.bench.plot import draw

        draw(report, run, plot_path)


def base_url(url: str) -> str:
    """The server's root; leaves with a usage error for anything but http(s)."""
    try:
        return root_of(url)
    except ValueError as error:
        fail(str(error), USAGE)


def fail(message: str, code: int) -> NoReturn:
    """Leave with a message on standard error."""
    sys.stderr.write(f"error: {message}\n")
    raise typer.Exit(code)
