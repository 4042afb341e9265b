"""The part of the command line about who used what and what came of it: `jouleway usage | models | outcome`.

Registered by ``scheduler.cli``. A command's file is imported when that command runs. It must never decide anything:
arguments in, exit code out.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="PATH", help="Ask the admin listener of this configuration.")
]
OwnUrlOption = Annotated[
    str | None, typer.Option("--url", help="Endpoint (or, with the admin key alone, the admin listener).")
]
FromOption = Annotated[str | None, typer.Option("--from", metavar="DAY[TTIME]", help="From its minute on (UTC).")]
ToOption = Annotated[
    str | None, typer.Option("--to", metavar="DAY[TTIME]", help="Up to its minute, that one not; default: now.")
]
Values = list[str] | None


class FormName(StrEnum):
    """How usage is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def usage(
    by: Annotated[
        str,
        typer.Option(help="Some of tenant, project, key, model, task, tier and one of minute, hour, day, by comma."),
    ] = "tenant,model",
    from_text: FromOption = None,
    to_text: ToOption = None,
    tenant: Annotated[Values, typer.Option(help="Only of these; may be given again.")] = None,
    project: Annotated[Values, typer.Option(help="Only of these.")] = None,
    key: Annotated[Values, typer.Option("--keys", help="Only of these public names of keys.")] = None,
    model: Annotated[Values, typer.Option(help="Only of these.")] = None,
    task: Annotated[Values, typer.Option(help="Only of these; '' = requests without one.")] = None,
    tier: Annotated[Values, typer.Option(help="Only of these: priority, default, flex.")] = None,
    value: Annotated[bool, typer.Option("--value", help="What an accepted result cost, with its interval.")] = False,
    form: Annotated[
        FormName | None, typer.Option("--format", help="Default: by the name of --output, else a table.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")] = None,
    url: OwnUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Say who used what: tokens, GPU-seconds, joules, J/token, carbon, money, accepted results; of this month.

    Asks as the tenant of JOULEWAY_API_KEY, which sees itself only; with --config, or where JOULEWAY_ADMIN_KEY is the
    only key, as the operator, who sees all. Exports hold exact decimals; Parquet needs the extra 'exports'.
    """
    from scheduler.commands import usage as command

    filters = {"tenant": tenant, "project": project, "key": key, "model": model, "task": task, "tier": tier}
    wishes = command.Wishes(
        by=by,
        from_text=from_text,
        to_text=to_text,
        filters={name: values for name, values in filters.items() if values},
        has_value=value,
        form=command.Form.JSON if as_json else None if form is None else command.Form(form.value),
        output=output,
        url=url,
        config=config,
    )
    raise typer.Exit(command.run(wishes))


def models(
    compare: Annotated[
        bool, typer.Option("--compare", help="Also tokens and price of text, J/token, and accepted results.")
    ] = False,
    from_text: FromOption = None,
    to_text: ToOption = None,
    url: OwnUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List the models with their prices; --compare sets them side by side, over the last 30 days by default.

    A tenant compares by its own usage, the operator by everybody's.
    """
    from scheduler.commands import models as command

    code = command.run(
        is_comparing=compare, from_text=from_text, to_text=to_text, config_path=config, url=url, as_json=as_json
    )
    raise typer.Exit(code)


def outcome(
    accepted: Annotated[bool, typer.Option("--accepted/--rejected", help="Whether the result was of use.")],
    request_id: Annotated[
        str | None, typer.Argument(metavar="[REQUEST_ID]", help="The x-request-id of an answer.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A whole task instead of a request.")] = None,
    score: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="How good it was.")] = None,
    label: Annotated[str | None, typer.Option(help="One word, for example why.")] = None,
    given_id: Annotated[
        str | None, typer.Option("--id", help="A name of yours for this post: sent again, it is known.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="OpenAI endpoint of a control plane.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what came of a request or a task; another verdict later corrects it.

    The key is read from the environment variable JOULEWAY_API_KEY.
    """
    from scheduler.commands import outcome as command

    wishes = command.Wishes(
        request_id=request_id, task=task, accepted=accepted, score=score, label=label, given_id=given_id, url=url
    )
    raise typer.Exit(command.run(wishes, as_json=as_json))
