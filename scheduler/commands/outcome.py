"""`jouleway outcome`: says what came of a request or a task of one's own.

Called by ``scheduler.cli_accounts``. It must never send more than the verdict.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from scheduler.commands.control_plane import SERVER_URL, read_words, send, tenant_listener
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import print_json, print_lines

PATH = "/v1/jouleway/outcomes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command line says. Exactly one of ``request_id`` and ``task``."""

    request_id: str | None = None
    task: str | None = None
    accepted: bool
    score: float | None = None
    label: str | None = None
    given_id: str | None = None
    url: str | None = None


def run(wishes: Wishes, *, as_json: bool) -> ExitCode:
    """Post, print. 3: no such request or task of this tenant. Raises: CommandError."""
    if (wishes.request_id is None) == (wishes.task is None):
        raise CommandError("give a request id or --task", code=ExitCode.USAGE)
    fields = {
        "request_id": wishes.request_id,
        "task": wishes.task,
        "accepted": wishes.accepted,
        "score": wishes.score,
        "label": wishes.label,
        "id": wishes.given_id,
    }
    payload = {name: value for name, value in fields.items() if value is not None}
    listener = tenant_listener(wishes.url or SERVER_URL)
    told = read_words(listener, PATH, asyncio.run(send(listener, PATH, payload=payload)))
    if as_json:
        print_json(told)
        return ExitCode.OK
    what = told["request_id"] or f"task {told['task']}"
    verdict = "accepted" if told["accepted"] else "rejected"
    known = "" if told["is_new"] else ", as was known"
    corrected = "" if told["replaces"] is None else f"; corrects {told['replaces']}"
    print_lines([f"{what}: {verdict}{known} ({told['id']}{corrected})"])
    return ExitCode.OK
