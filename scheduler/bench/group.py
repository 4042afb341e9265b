"""`jouleway bench`: one run by default, `bench sweep` for many; `bench serve` is the default's name, as in vLLM.

Called by ``scheduler.cli``. It must import nothing heavy: `jouleway --help` loads it.
"""

from __future__ import annotations

import typer
from typer.core import TyperGroup

from scheduler.bench import command, sweep_command

DEFAULT = "serve"


class DefaultGroup(TyperGroup):
    """Takes what names no command for the arguments of ``serve``, so that `jouleway bench URL --rate 1` is one run."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Put the default's name before arguments that begin with no command's."""
        if not args or args[0] not in self.commands:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


bench_app = typer.Typer(
    name="bench",
    cls=DefaultGroup,
    help="Benchmark any OpenAI server: one run (jouleway bench URL), or an energy sweep (jouleway bench sweep URL).",
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench_app.command(DEFAULT, epilog=command.EPILOG)(command.bench)
bench_app.command("sweep", epilog=sweep_command.EPILOG)(sweep_command.sweep)
