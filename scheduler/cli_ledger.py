"""The command line of the ledger: `jouleway ledger verify`, `receipt`, `trace`.

Called by ``scheduler.cli``. As there: arguments in, exit code out, a command's file is imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scheduler.commands.exits import EXIT_CODES_HELP

ledger_app = typer.Typer(
    name="ledger",
    help="Check a ledger: is it what was signed, and does it add up.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", metavar="PUB", help="Public key that you trust: its text, or the file that holds it."),
]
ReceiptsOption = Annotated[list[Path] | None, typer.Option("--receipt", metavar="FILE", help="May be given again.")]


@ledger_app.command(epilog=EXIT_CODES_HELP)
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A ledger's SQLite file, or its URL.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="File or URL of an empty database.")],
    as_json: JsonFlag = False,
) -> None:
    """Copy a ledger into an empty database: to move to PostgreSQL, or back. No control plane may have it open.

    The copy is verified against the ledger's own key. The source stays as it is: put it away afterwards, for two
    control planes on two copies would be a fork.
    """
    from scheduler.commands import ledger as command

    raise typer.Exit(command.run_copy(source, target, as_json=as_json))


@ledger_app.command(epilog=EXIT_CODES_HELP)
def verify(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A copy of a ledger's SQLite file, or its URL.")],
    key: KeyOption = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", metavar="FILE", help="Checkpoints kept elsewhere; may be given again."),
    ] = None,
    receipt: ReceiptsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every row: hash, place in the signed tree, legs, price; offline, on a copy, in bounded memory.

    Exit code 7 names the first row that was changed, moved, removed or added, or says that the ledger is a fork, was
    truncated, or is older than a checkpoint kept elsewhere. Without --key it cannot say who signed it.
    """
    from scheduler.commands import ledger as command

    raise typer.Exit(
        command.run_verify(source, key=key, checkpoints=checkpoint or [], receipts=receipt or [], as_json=as_json)
    )


@ledger_app.command(epilog=EXIT_CODES_HELP)
def grew(
    receipts: Annotated[list[Path], typer.Argument(metavar="RECEIPT...", help="Receipts that you kept.")],
    key: KeyOption = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Endpoint (or, with the admin key alone, the admin listener).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="PATH", help="Ask the admin listener of this configuration."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell whether a running control plane's ledger still begins with what your receipts were signed on.

    Asks as the tenant of JOULEWAY_API_KEY for the newest checkpoint and the proof that it grew out of each receipt's.
    Exit code 7: it did not; whoever holds the two checkpoints can prove that.
    """
    from scheduler.commands import grew as command

    raise typer.Exit(command.run(receipts, key=key, url=url, config=config, as_json=as_json))


def receipt(
    request_id: Annotated[str | None, typer.Argument(metavar="[REQUEST_ID]", help="The x-request-id.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Check this receipt, ask nobody.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="PATH", help="Write it here.")] = None,
    key: KeyOption = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Endpoint (or, with the admin key alone, the admin listener).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="PATH", help="Ask the admin listener of this configuration."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Get the receipt of a request, checked: its rows, each with its proof, and the signed checkpoint.

    Asks as the tenant of JOULEWAY_API_KEY, which gets those of its own requests. Exit code 7: it proves nothing.
    """
    from scheduler.commands import receipt as command

    raise typer.Exit(
        command.run(request_id, check=check, output=output, key=key, url=url, config=config, as_json=as_json)
    )


def reconcile(
    source: Annotated[str | None, typer.Argument(metavar="[FILE]", help="A ledger's SQLite file, or its URL.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="PATH", help="The ledger of this configuration.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="TIME", help="2026-11-27T06:00:00Z; UTC.")] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TIME", help="The first moment after the period.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Hold the ledger, the engines' counters and the meters against each other; every difference with its source.

    Exit code 7 where something is unexplained.
    """
    from scheduler.commands import reconcile as command

    raise typer.Exit(command.run(source, config=config, from_text=from_, to_text=to, as_json=as_json))


def rerate(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A ledger's SQLite file, or its URL.")],
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="PATH", help="A configuration with the prices to try.")
    ],
    from_: Annotated[str | None, typer.Option("--from", metavar="TIME", help="2026-11-27T06:00:00Z; UTC.")] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TIME", help="The first moment after the period.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell what a ledger's past would have cost by other prices, by tenant and model. Nothing is changed."""
    from scheduler.commands import rerate as command

    raise typer.Exit(command.run(source, config=config, from_text=from_, to_text=to, as_json=as_json))


def trace(
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A file: exactly one answer or prompt, or JSON.")],
    receipts: Annotated[list[Path], typer.Option("--receipt", metavar="FILE", help="May be given again.")],
    key: KeyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell whether a text was produced or asked here: by the salted digests of receipts that you hold.

    What was asked may be a prompt as text, messages as JSON, or a whole body. Exit code 3: no receipt is of it.
    """
    from scheduler.commands import receipt as command

    raise typer.Exit(command.run_trace(text, receipts=receipts, key=key, as_json=as_json))
