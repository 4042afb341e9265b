"""Options that every command of the benchmark has, each with its one meaning.

Called by ``scheduler.bench.command`` and ``scheduler.bench.sweep_command``. It must never know a default: that is the
command's.
"""

from typing import Annotated

import typer

ExactOutputOption = Annotated[bool, typer.Option(help="Send ignore_eos and min_tokens, so that lengths hold.")]
TemperatureOption = Annotated[float | None, typer.Option(help="Sampling temperature; default: the server's.")]
TimeoutOption = Annotated[float, typer.Option(help="Limit of one request.", min=0.1)]
MaxInFlightOption = Annotated[int, typer.Option(help="Most open requests; more wait, and count as late.", min=1)]
SloTtftOption = Annotated[float | None, typer.Option(help="A good request's first token, at most.", min=1e-6)]
SloTpotOption = Annotated[float | None, typer.Option(help="A good request's time a token, at most.", min=1e-6)]
SloE2eOption = Annotated[float | None, typer.Option(help="A good request's whole time, at most.", min=1e-6)]
MetricsUrlOption = Annotated[str | None, typer.Option(help="Jouleway's /metrics on its admin listener: joules.")]
