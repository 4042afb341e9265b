"""The command line: `jouleway serve | submit | explain | top | workers | demo | down | doctor | bench`, and what
``scheduler.cli_ledger``, ``cli_accounts``, ``cli_planning`` and ``commands.directory_command`` add to it.

Called by the shell. A command's file is imported when that command runs, so that `--help` answers at once and never
loads Ray, an engine or numpy. It must never decide anything: arguments in, exit code out.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from scheduler.bench.group import bench_app
from scheduler.cli_accounts import models, outcome, usage
from scheduler.cli_ledger import ledger_app, receipt, reconcile, rerate, trace
from scheduler.cli_planning import simulate
from scheduler.commands.directory_command import admin_keys, audit, budgets, keys, tenants
from scheduler.commands.exits import EXIT_CODES_HELP, CommandError, ExitCode

app = typer.Typer(
    name="jouleway",
    help="Places token workloads on GPU workers, meters every request's joules, and settles both.",
    epilog=EXIT_CODES_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="PATH", help="Configuration file (YAML). Unknown keys are errors."),
]
AdminUrlOption = Annotated[
    str | None, typer.Option("--url", help="Admin listener of a running control plane, http://127.0.0.1:PORT.")
]
UrlOption = Annotated[str, typer.Option("--url", help="OpenAI endpoint of a control plane.")]


class ServiceTier(StrEnum):
    """OpenAI's words for the priority of a request."""

    FLEX = "flex"
    DEFAULT = "default"
    PRIORITY = "priority"


def _version(asked: bool) -> None:
    if asked:
        try:
            typer.echo(metadata.version("jouleway"))
        except metadata.PackageNotFoundError:
            typer.echo("unknown (run from a checkout that is not installed)")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Data goes to standard output, everything else to standard error. NO_COLOR is obeyed."""


@app.command(epilog=EXIT_CODES_HELP)
def serve(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="PATH", help="Configuration file (YAML).")],
    as_json: JsonFlag = False,
) -> None:
    """Run the control plane: workers on Ray, the OpenAI endpoint, metrics and admin routes; until Ctrl-C.

    With --json one line is printed on standard output when it serves: {"event": "ready", "url": …, "admin_url": …}.
    """
    from scheduler.commands import serve as command

    raise typer.Exit(command.run(config, as_json=as_json))


@app.command(epilog=EXIT_CODES_HELP)
def demo(
    json_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="PATH", help="Also write the result as JSON to PATH ('-' = stdout)."),
    ] = None,
    requests: Annotated[int, typer.Option("--requests", "-n", min=12, max=10_000, help="How many requests.")] = 40,
    seed: Annotated[int, typer.Option("--seed", help="The same seed plans the same requests.")] = 0,
    ledger: Annotated[
        Path | None,
        typer.Option("--ledger", metavar="FILE", help="Leave the ledger here, to be verified; default: it is dropped."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Real vLLM on Ray with a small model: mixed requests of three tenants, then who used what, and the joule balance.

    Fails with exit code 7 where the balance does not add up. Without --config the demo configuration is used.
    """
    from scheduler.commands import demo as command

    raise typer.Exit(
        command.run(json_path=json_path, num_requests=requests, seed=seed, config_path=config, ledger_path=ledger)
    )


@app.command(epilog=EXIT_CODES_HELP)
def submit(
    jobs: Annotated[Path, typer.Argument(metavar="JOBS.jsonl", help="Requests in OpenAI's batch format, one a line.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Answers; default: JOBS.output.jsonl.")
    ] = None,
    errors: Annotated[
        Path | None, typer.Option("--errors", metavar="PATH", help="Lines without one; default: JOBS.errors.jsonl.")
    ] = None,
    url: UrlOption = "http://127.0.0.1:8000",
    concurrency: Annotated[int, typer.Option(min=1, max=1000, help="Lines that are asked at once.")] = 16,
    service_tier: Annotated[ServiceTier, typer.Option(help="Priority of lines that name none.")] = ServiceTier.FLEX,
    task: Annotated[str, typer.Option(help="One total and, where configured, one budget for all lines.")] = "",
    timeout_s: Annotated[float, typer.Option(min=1.0, max=86_400.0, help="Limit of one try.")] = 3600.0,
    window_s: Annotated[
        float | None,
        typer.Option(min=1.0, max=604_800.0, help="Answers in so many seconds: lines may wait for cheaper hours."),
    ] = None,
    allow_mixed_models: Annotated[
        bool, typer.Option("--allow-mixed-models", help="Take a file whose lines name several models.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Check the file, ask nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask every line of a file, with its tokens, joules and money as they come in; run it again to go on.

    A line that has its answer is never asked again; lines that failed are. Ctrl-C lets running lines end, a second one
    hangs up. The key is read from the environment variable JOULEWAY_API_KEY. Exit code 1: some line has no answer (the
    errors file says why); 5: a budget is used up; 130: stopped. After any of them the same command goes on.
    """
    from scheduler.commands import submit as command

    wishes = command.Wishes(
        source=jobs,
        output=output,
        errors=errors,
        url=url,
        concurrency=concurrency,
        service_tier=service_tier.value,
        task=task,
        timeout_s=timeout_s,
        window_s=window_s,
        allow_mixed_models=allow_mixed_models,
        is_check_only=check,
    )
    raise typer.Exit(command.run(wishes, as_json=as_json))


@app.command(epilog=EXIT_CODES_HELP)
def explain(
    request_id: Annotated[
        str | None, typer.Argument(metavar="[REQUEST_ID]", help="The x-request-id of an answer.")
    ] = None,
    what_if: Annotated[
        Path | None,
        typer.Option("--what-if", metavar="BODY.json", help="A request that might be: its body, or a line."),
    ] = None,
    route: Annotated[str, typer.Option(help="Of a --what-if body.")] = "/v1/chat/completions",
    data_class: Annotated[str | None, typer.Option(help="Of a --what-if request: stricter than its key's.")] = None,
    zones: Annotated[str | None, typer.Option(help="Of a --what-if request: fewer than its key's, by comma.")] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Endpoint (or, with the admin key alone, the admin listener).")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell the life of a request: waits, every worker's filter or score term by term, what it took, its budgets.

    Asks as the tenant of JOULEWAY_API_KEY, which sees its own requests; with --config, or where JOULEWAY_ADMIN_KEY is
    the only key, as the operator, who sees all. --what-if places a request that is not sent, against the live state.
    Exit code 7: the terms of some score do not add up to it.
    """
    from scheduler.commands import explain as command

    wishes = command.Wishes(
        request_id=request_id,
        what_if=what_if,
        route=route,
        data_class=data_class,
        zones=zones,
        url=url,
        config=config,
    )
    raise typer.Exit(command.run(wishes, as_json=as_json))


@app.command(epilog=EXIT_CODES_HELP)
def top(
    config: ConfigOption = None,
    url: AdminUrlOption = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and leave.")] = False,
    interval_s: Annotated[float, typer.Option(min=0.5, max=3600.0, help="Seconds between two looks.")] = 2.0,
    as_json: JsonFlag = False,
) -> None:
    """Watch a running control plane: workers, queues by band and tenant, budgets near their limit; until Ctrl-C.

    With --json each look is one line. The admin key is read from JOULEWAY_ADMIN_KEY, or from the file that --config
    names.
    """
    from scheduler.commands import top as command

    raise typer.Exit(command.run(config_path=config, url=url, is_once=once, interval_s=interval_s, as_json=as_json))


@app.command(epilog=EXIT_CODES_HELP)
def workers(
    config: ConfigOption = None,
    url: AdminUrlOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List the workers of a running control plane: state, load, meter, grade, power, health.

    The admin key is read from the environment variable JOULEWAY_ADMIN_KEY.
    """
    from scheduler.commands import workers as command

    raise typer.Exit(command.run(config_path=config, url=url, as_json=as_json))


@app.command(epilog=EXIT_CODES_HELP)
def down(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="PATH", help="Names the Ray cluster to clear.")],
    drain_s: Annotated[float, typer.Option("--drain-s", min=0.0, max=3600.0, help="Let running work end first.")] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Stop every worker that stands on the Ray cluster of the configuration, and their engines."""
    from scheduler.commands import down as command

    raise typer.Exit(command.run(config, drain_s=drain_s, as_json=as_json))


@app.command(epilog=EXIT_CODES_HELP)
def doctor(config: ConfigOption = None, as_json: JsonFlag = False) -> None:
    """Check this machine: Ray and its auth, engine, driver, NVML, meter, ports, disk, memory, model, clock.

    Each line says what is wrong and what to do about it. Exit code 1 if any check fails; warnings do not count.
    """
    from scheduler.commands import doctor as command

    raise typer.Exit(command.run(config_path=config, as_json=as_json))


for _command in (usage, models, outcome, receipt, trace, reconcile, rerate, simulate):
    app.command(epilog=EXIT_CODES_HELP)(_command)
app.add_typer(ledger_app)
app.add_typer(bench_app)
for group in (tenants, keys, admin_keys, budgets):
    app.add_typer(group)
app.command(epilog=EXIT_CODES_HELP)(audit)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point: runs one command and leaves with its exit code (usage errors 2 and Ctrl-C 130 by typer)."""
    try:
        app(args=arguments, prog_name="jouleway")
    except CommandError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.remedy:
            sys.stderr.write(f"remedy: {error.remedy}\n")
        sys.exit(error.code)
    sys.exit(ExitCode.OK)


if __name__ == "__main__":
    main()
