"""`jouleway submit`: a file of requests in OpenAI's batch format, asked with bounded concurrency, resumable.

Called by ``scheduler.cli``. It must never hold the file in memory, nor show what its lines say.

An end has one of these exit codes: 0 every line has its answer; 1 some line failed or lost its answer; 2 the file, the
output or the arguments cannot be used, nothing was asked; 3 there is no such file or model; 4 the key is refused; 5 the
budget is used up; 6 the server does not answer; 130 stopped by Ctrl-C or SIGTERM. After 1, 4, 5, 6 and 130 the same
command goes on where this one ended.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.commands import submit_screen
from scheduler.commands.control_plane import Listener, read, send, tenant_listener
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import Progress, print_json
from scheduler.commands.submit_ask import Manner
from scheduler.commands.submit_file import Checked, check, jobs
from scheduler.commands.submit_output import Outputs
from scheduler.commands.submit_run import Run, State, Stop

MODELS_PATH = "/v1/models"
CODE_BY_STOP = {
    Stop.INTERRUPTED: ExitCode.INTERRUPTED,
    Stop.QUOTA: ExitCode.BUDGET,
    Stop.KEY: ExitCode.POLICY,
    Stop.UNAVAILABLE: ExitCode.UNAVAILABLE,
}

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
"""As the server takes it: a name that it refuses would fail every line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command line asks for."""

    source: Path
    output: Path | None = None
    """None: beside the jobs file, ``jobs.output.jsonl``."""
    errors: Path | None = None
    url: str
    concurrency: int
    service_tier: str
    task: str = ""
    timeout_s: float
    window_s: float | None = None
    """From the beginning of this run until every line must have its answer; None = lines begin when there is room."""
    allow_mixed_models: bool = False
    is_check_only: bool = False


def run(wishes: Wishes, *, as_json: bool) -> ExitCode:
    """Check, ask, write, sum up. Raises: CommandError."""
    progress = Progress()
    checked = check(wishes.source, allow_mixed_models=wishes.allow_mixed_models)
    models = ", ".join(sorted(checked.models))
    progress(f"{checked.num_jobs:,} lines ({checked.num_bytes:,} bytes) can be asked of {models}")
    if wishes.is_check_only:
        if as_json:
            print_json(_file_json(checked))
        return ExitCode.OK
    if wishes.task and not _TASK.fullmatch(wishes.task):
        raise CommandError(
            "--task: 1 to 128 letters, digits or any of . _ : / @ + -, the first a letter or a digit",
            code=ExitCode.USAGE,
        )
    listener = tenant_listener(wishes.url)
    output = wishes.output or _beside(wishes.source, "output")
    errors = wishes.errors or _beside(wishes.source, "errors")
    started_s = time.monotonic()
    with Outputs(checked, output, errors) as outputs:
        state = asyncio.run(_ask_all(checked, outputs, listener, wishes, progress))
    summary = {
        **_file_json(checked),
        "output": str(output),
        "errors": str(errors),
        "finished": state.num_before - state.num_lost_before + state.num_done,
        "finished_by_this_run": state.num_done,
        "failed": state.num_failed,
        "answers_lost": state.num_lost_before + state.num_lost,
        "left": state.num_left,
        "retries": state.num_retries,
        "stopped_by": state.stop,
        "elapsed_s": round(time.monotonic() - started_s, 3),
        "totals": state.totals.to_json(),
    }
    if as_json:
        print_json(summary)
    for line in submit_screen.summary(state, output=output, errors=errors):
        progress(line)
    return exit_code(state)


def exit_code(state: State) -> ExitCode:
    """What the end of a run means to a shell."""
    if state.stop is not None and (state.num_left or state.stop is not Stop.INTERRUPTED):
        return CODE_BY_STOP[state.stop]
    is_whole = not (state.num_left or state.num_failed or state.num_lost or state.num_lost_before)
    return ExitCode.OK if is_whole else ExitCode.FAILURE


async def _ask_all(checked: Checked, outputs: Outputs, listener: Listener, wishes: Wishes, progress: Progress) -> State:
    """Until every line ended, or a signal or the server stops it."""
    if len(outputs.found.finished) < checked.num_jobs:
        await _check_models(checked, listener)
    manner = Manner(
        url=listener.url,
        key=listener.key,
        digest=checked.digest,
        service_tier=wishes.service_tier,
        task=wishes.task,
        timeout_s=wishes.timeout_s,
        due_s=None if wishes.window_s is None else time.monotonic() + wishes.window_s,
    )
    with submit_screen.bar(checked.num_jobs) as on_change:
        run = Run(
            jobs(checked),
            outputs,
            manner,
            num_jobs=checked.num_jobs,
            concurrency=wishes.concurrency,
            on_change=on_change,
        )
        on_change(run.state)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _on_signal(run, progress))
        return await run.run()


def _on_signal(run: Run, progress: Progress) -> Callable[[], None]:
    """The first signal begins nothing more, the second hangs up."""

    def stop() -> None:
        if run.state.stop is None:
            progress(f"stopping: {run.state.num_running} lines may end; once more to hang up on them")
            run.stop(Stop.INTERRUPTED)
        else:
            progress("hanging up; the next run asks these lines again")
            run.stop_at_once()

    return stop


async def _check_models(checked: Checked, listener: Listener) -> None:
    """Server, key and models, before each line fails on them by itself. Raises: CommandError."""
    reply = await send(listener, MODELS_PATH)
    if reply.status == 404:
        return  # another server of OpenAI's API, which lists none
    listed = read(listener, MODELS_PATH, reply)
    try:
        served = {model["id"] for model in listed["data"]}
    except (KeyError, TypeError):
        raise CommandError(f"{listener.url} does not list its models", code=ExitCode.FAILURE) from None
    missing = sorted(checked.models.keys() - served)
    if missing:
        raise CommandError(
            f"{checked.path} asks for {', '.join(map(repr, missing))}, which {listener.url} does not serve",
            code=ExitCode.NOT_FOUND,
            remedy=f"it serves {', '.join(sorted(map(str, served))) or 'none'}",
        )


def _beside(source: Path, what: str) -> Path:
    return source.with_name(f"{source.stem}.{what}.jsonl")


def _file_json(checked: Checked) -> dict[str, Any]:
    return {
        "input": str(checked.path),
        "input_sha256": checked.digest,
        "bytes": checked.num_bytes,
        "lines": checked.num_jobs,
        "models": dict(sorted(checked.models.items())),
        "routes": dict(sorted(checked.routes.items())),
    }
