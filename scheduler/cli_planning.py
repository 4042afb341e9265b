"""The command line of capacity: `jouleway simulate`.

Called by ``scheduler.cli``. As there: arguments in, exit code out, a command's file is imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SECTION = "What is simulated"

ModelsOption = Annotated[
    list[str],
    typer.Option(
        metavar="NAME[=TRACE[:LOAD]][@FLEET]",
        help="Of the catalogue; repeat it, each with its own GPUs.",
        rich_help_panel=SECTION,
    ),
]
TraceOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|chat|code|agents",
        help="Azure CSV, Mooncake JSON lines, ServeGen JSON, or a made-up one.",
        rich_help_panel=SECTION,
    ),
]
FleetOption = Annotated[
    str | None, typer.Option(metavar="GPUxN[,GPUxN]", help="GPUs, not engines: h100x32.", rich_help_panel=SECTION)
]
LoadOption = Annotated[
    float | None, typer.Option(help="Share of the round-robin limit, on average.", rich_help_panel=SECTION)
]
RateOption = Annotated[
    float | None, typer.Option(help="Requests a second instead, on average.", rich_help_panel=SECTION)
]
PoliciesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[,NAME]",
        help="jouleway, jouleway-noparking, round-robin, least-requests, power-of-two, prefix, race-to-idle,"
        " autoscale-X, or oracle (a bound); may be repeated.",
    ),
]
UntilOption = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Nothing arrives after it; what did is answered.")
]
SloOption = Annotated[
    str | None, typer.Option(metavar="TTFT/TPOT", help="Of a good request, in seconds. Default: 1/0.05.")
]


def simulate(
    model: ModelsOption,
    trace: TraceOption = None,
    fleet: FleetOption = None,
    load: LoadOption = None,
    rate: RateOption = None,
    policy: PoliciesOption = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of arrivals, lengths and losses; may be repeated.")] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="Seeds 1 to N: means with their interval.")] = None,
    slo: SloOption = None,
    tariff: Annotated[float, typer.Option(metavar="PRICE", help="Of a kWh; the core weighs joules by it.")] = 0.15,
    carbon: Annotated[float | None, typer.Option(metavar="GCO2E", help="Of a kWh; without it none is told.")] = None,
    pue: Annotated[float, typer.Option(help="kWh at the hall's door for a kWh at its meters.")] = 1.0,
    until: UntilOption = None,
    faults: Annotated[int, typer.Option(metavar="N", min=0, help="Engines that are lost, at seeded times.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help="Write the figures as JSON ('-' = stdout).")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="PATH", help="Draw watts, queue and loaded GPUs.")] = None,
) -> None:
    """Run a trace over GPUs that are not there: joules per good token, latencies, cost; the production core decides.

    Example: jouleway simulate --trace chat --fleet h100x8 --model llama-3.1-8b --load 0.25 --policy
    jouleway,round-robin,oracle. Nothing of it was measured: grade D. The round-robin limit is looked for once, and kept
    below the user's cache folder. docs/planning.md has the definitions.
    """
    from scheduler.commands import simulate as command
    from scheduler.commands.simulate_words import Wishes

    wishes = Wishes(
        models=model, trace=trace, fleet=fleet, load=load, rate=rate, policies=policy or (), seeds=seed or (),
        num_seeds=seeds, slo=slo, price_per_kwh=tariff, gco2e_per_kwh=carbon, pue_ratio=pue, until_s=until,
        num_losses=faults, json_path=json_path, png_path=png,
    )  # fmt: skip
    raise typer.Exit(command.run(wishes))
