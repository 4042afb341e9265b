"""`jouleway bench sweep`: options in, tables, a JSON file that is gone on with, a picture and an exit code out.

Called by ``scheduler.bench.group``. It must import nothing heavy before it runs; what is measured is decided in
``sweep``.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.bench.command import (
    FAILURE,
    INTERRUPTED,
    INVALID,
    OK,
    UNAVAILABLE,
    USAGE,
    EndpointName,
    MeterName,
    base_url,
    fail,
)
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
    from scheduler.bench.session import EnergySource, MeterKind
    from scheduler.bench.sweep_plan import Sweep
    from scheduler.bench.sweep_report import Document, Measured

EPILOG = (
    "Exit codes: 0 every point measured and fit to be quoted, 1 failure, 2 usage, or the --json file is of another "
    "sweep, 6 a server or meter cannot be used, 7 measured but some point may not be quoted (its verdict says why; "
    "overload alone is no reason), 130 interrupted. After 6 and 130 the same command goes on."
)


SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:KEY=VALUE,…]",
        help="A curve of its own: short:output_tokens=16,max_in_flight=4 or bare:url=http://…; repeat. "
        "Keys: url, model, api_key_env, service_tier, input_tokens, output_tokens, length_spread, cv, max_in_flight, "
        "exact_output, metrics_url, admin_key_env, local_meter, gpu.",
    ),
]
JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="PATH", help="Written after each point, and gone on with; '-' = stdout."),
]


class OrderName(StrEnum):
    """In which order the rates of a repeat are measured."""

    RANDOM = "random"
    ASCENDING = "ascending"


def sweep(
    rates: Annotated[str, typer.Option(help="Arrival rates in requests/s, Poisson, as in 0.5,1,2,4.")],
    url: Annotated[str, typer.Argument(help="Any OpenAI server.")] = "http://127.0.0.1:8000",
    setting: SettingOption = None,
    repeats: Annotated[int, typer.Option(help="How often each point is measured; 3 for a comparison.", min=1)] = 1,
    order: Annotated[OrderName, typer.Option(help="Of the rates, in each repeat anew.")] = OrderName.RANDOM,
    model: Annotated[str, typer.Option(help="Model name; default: the first that the server lists.")] = "",
    endpoint: Annotated[EndpointName, typer.Option(help="Which endpoint to stream from.")] = EndpointName.CHAT,
    cv: Annotated[float, typer.Option(help="Burstiness: CV of the gaps; 1 = Poisson.", min=0.01)] = 1.0,
    input_tokens: Annotated[int, typer.Option(help="Mean prompt tokens.", min=1)] = 128,
    output_tokens: Annotated[int, typer.Option(help="Mean output tokens.", min=1)] = 64,
    length_spread: Annotated[float, typer.Option(help="Lengths vary by ± this share.", min=0, max=1)] = 0.0,
    duration_s: Annotated[float, typer.Option(help="Steady window of each point.", min=0.1)] = 60.0,
    warmup_s: Annotated[float, typer.Option(help="The same load before it.", min=0)] = 10.0,
    idle_s: Annotated[float, typer.Option(help="Idle watts before and after each point; 0 = none.", min=0)] = 20.0,
    cooldown_s: Annotated[float, typer.Option(help="Pause between points.", min=0)] = 10.0,
    seed: Annotated[int, typer.Option(help="Same seed: same order, arrivals, lengths and prompts.")] = 0,
    exact_output: ExactOutputOption = True,
    temperature: TemperatureOption = None,
    timeout_s: TimeoutOption = 300.0,
    max_in_flight: MaxInFlightOption = 4096,
    slo_ttft_s: SloTtftOption = None,
    slo_tpot_s: SloTpotOption = None,
    slo_e2e_s: SloE2eOption = None,
    attainment: Annotated[
        float, typer.Option(help="Good requests for a rate to keep the SLO.", min=0.01, max=1)
    ] = 0.99,
    metrics_url: MetricsUrlOption = None,
    local_meter: Annotated[MeterName | None, typer.Option(help="Read a meter of this machine for joules.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="UUID of a GPU for --local-meter nvml; repeat.")] = None,
    json_path: JsonOption = None,
    png: Annotated[Path | None, typer.Option("--png", "--plot", metavar="PATH", help="Draw the curves.")] = None,
    redo_invalid: Annotated[bool, typer.Option("--redo-invalid", help="Measure points again that are void.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the points and how long they take.")] = False,
) -> None:
    """Energy sweep: arrival rates × settings, goodput per watt with its knee, idle watts and the balance of joules.

    Each point: idle watts, warm-up, steady window, idle watts. With several settings they alternate at each rate (A B,
    then B A) with the same arrivals, and each is compared with the first one pair by pair. The same command with the
    same --json goes on where a sweep was cut, or adds rates, settings and repeats to it. Keys are read from the
    environment: JOULEWAY_API_KEY, and JOULEWAY_ADMIN_KEY for --metrics-url.
    """
    if json_path is not None and json_path == png:
        fail("--json and --png name the same file", USAGE)
    from scheduler.bench.client import Target
    from scheduler.bench.report import Slo
    from scheduler.bench.session import EnergySource

    target = Target(
        base_url=base_url(url), model=model, api_key=os.environ.get("JOULEWAY_API_KEY"),
        endpoint=endpoint.value, exact_output=exact_output,
        temperature=temperature, timeout_s=timeout_s,
    )  # fmt: skip
    meter: MeterKind | None = None if local_meter is None else local_meter.value
    source = EnergySource(
        metrics_url=metrics_url, admin_key=os.environ.get("JOULEWAY_ADMIN_KEY"), local_meter=meter,
        gpu_uuids=tuple(gpu or ()),
    )  # fmt: skip
    slo = Slo(ttft_s=slo_ttft_s, tpot_s=slo_tpot_s, e2e_s=slo_e2e_s)
    try:
        asked = _asked(
            target, source, setting or [], rates, lengths=(input_tokens, output_tokens, length_spread), cv=cv,
            max_in_flight=max_in_flight, repeats=repeats, order=order.value, seed=seed, warmup_s=warmup_s,
            duration_s=duration_s, idle_s=idle_s, cooldown_s=cooldown_s, slo=slo, attainment_ratio=attainment,
        )  # fmt: skip
    except ValueError as error:
        fail(str(error), USAGE)
    raise typer.Exit(_run(asked, json_path=json_path, png=png, redo_invalid=redo_invalid, dry_run=dry_run))


def _asked(
    target: Target, source: EnergySource, settings: list[str], rates: str, *, lengths: tuple[int, int, float],
    cv: float, max_in_flight: int, **others: Any,
) -> Sweep:  # fmt: skip
    """The sweep that the options and settings come to: the options alone, or one curve for each setting."""
    from scheduler.bench.sweep_plan import Sweep, Variant, parse_rates, parse_setting, variant_of
    from scheduler.bench.workload import Lengths

    input_tokens, output_tokens, spread_ratio = lengths
    base = Variant(
        name="default",
        target=target,
        lengths=Lengths(input_tokens=input_tokens, output_tokens=output_tokens, spread_ratio=spread_ratio),
        cv=cv,
        max_in_flight=max_in_flight,
        source=source,
    )
    parsed = [parse_setting(text) for text in settings]
    variants = tuple(variant_of(name, wish, base, dict(os.environ)) for name, wish in parsed)
    return Sweep(variants=variants or (base,), rates=parse_rates(rates), **others)


def _run(asked: Sweep, *, json_path: Path | None, png: Path | None, redo_invalid: bool, dry_run: bool) -> int:
    """Measure what is missing, write after each point, show; returns the exit code."""
    from scheduler.bench import sweep_screen
    from scheduler.bench.sweep import document_of
    from scheduler.bench.sweep_report import ResumeError, measured_before

    is_stdout = json_path == Path("-")
    file = None if is_stdout else json_path
    try:
        before = () if file is None else measured_before(file, asked)
    except ResumeError as error:
        fail(str(error), USAGE)
    if redo_invalid:
        before = tuple(point for point in before if point.usable)
    if dry_run:
        sweep_screen.show_plan(asked, num_had=len(before))
        return OK
    latest = document_of(asked, before)
    latest, code = _measure(asked, before, latest, file)
    try:
        _write(latest, file, png, is_stdout=is_stdout)
    except (OSError, RuntimeError) as error:
        sys.stderr.write(f"error: the result could not be written: {error}\n")
        code = code or FAILURE
    sweep_screen.show(latest, to_stderr=is_stdout)
    if code != OK:
        return code
    return OK if all(point.usable for point in latest.points) else INVALID


def _measure(asked: Sweep, before: tuple[Measured, ...], latest: Document, file: Path | None) -> tuple[Document, int]:
    """The last document that was had, and the exit code of what ended the measuring."""
    import uvloop

    from scheduler.bench import sweep_screen
    from scheduler.bench.client import TargetError
    from scheduler.bench.sweep import run_sweep
    from scheduler.bench.sweep_report import write
    from workers.errors import MeterUnavailable

    def keep(document: Document) -> None:
        nonlocal latest
        latest = document
        if file is not None:
            write(document, file)

    try:
        latest, interrupted = uvloop.run(run_sweep(asked, before=before, keep=keep, progress=sweep_screen.progress))
    except KeyboardInterrupt:
        return latest, INTERRUPTED
    except (TargetError, MeterUnavailable) as error:
        sys.stderr.write(f"error: {error}\n")
        return latest, UNAVAILABLE
    except OSError as error:
        sys.stderr.write(f"error: the points could not be kept: {error}\n")
        return latest, FAILURE
    return latest, INTERRUPTED if interrupted else OK


def _write(document: Document, file: Path | None, png: Path | None, *, is_stdout: bool) -> None:
    from scheduler.bench.client import TargetError
    from scheduler.bench.sweep_report import text_of, write

    if is_stdout:
        sys.stdout.write(text_of(document))
    elif file is not None:
        write(document, file)
    if png is not None:
        from scheduler.bench.sweep_plot import draw_sweep

        try:
            draw_sweep(document, png)
        except TargetError as error:
            raise RuntimeError(str(error)) from error
