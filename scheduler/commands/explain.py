"""`jouleway explain`: the life of one request, told term by term; or what would become of one now.

Called by ``scheduler.cli``. It must never decide or predict anything: it prints what it was told. The one thing that it
computes is whether the terms of each score add up.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from scheduler.commands import explain_view
from scheduler.commands.control_plane import (
    SERVER_URL,
    own_listener,
    read,
    send,
    tenant_listener,
)
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.http_client import BadAnswer, Reply
from scheduler.commands.output import print_json

REQUESTS_PATH = "/v1/jouleway/requests/"
WHAT_IF_PATH = "/v1/jouleway/what-if"
CHAT_PATH = "/v1/chat/completions"
MAX_BODY_BYTES = 16 << 20
CODE_BY_STATUS = {
    403: ExitCode.POLICY,
    404: ExitCode.NOT_FOUND,
    429: ExitCode.BUDGET,
    503: ExitCode.UNAVAILABLE,
    504: ExitCode.UNAVAILABLE,
}
"""Of a request that would be refused."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the command line asks for: a request that was, or one that might be."""

    request_id: str | None = None
    what_if: Path | None = None
    route: str = CHAT_PATH
    """Of a ``what_if`` file that is a body and not a line of a jobs file."""
    data_class: str | None = None
    zones: str | None = None
    url: str | None = None
    config: Path | None = None
    """Asks the admin listener of this configuration instead of the endpoint."""


def run(wishes: Wishes, *, as_json: bool) -> ExitCode:
    """Ask, print, add up. 3: never seen, or of another tenant; 7: some score is not the sum of its terms.

    A ``what_if`` that would be refused has the exit code of its refusal.
    """
    if (wishes.request_id is None) == (wishes.what_if is None):
        raise CommandError("give a request id or --what-if", code=ExitCode.USAGE)
    story = _what_if(wishes) if wishes.request_id is None else _life_of(wishes.request_id, wishes)
    if as_json:
        print_json(story)
    else:
        explain_view.show(story)
    wrong = explain_view.wrong_sums(story)
    if wrong:
        raise CommandError(f"terms do not add up to the score: {', '.join(wrong)}", code=ExitCode.VERIFICATION)
    rejection = story.get("rejection")
    return ExitCode.OK if rejection is None else CODE_BY_STATUS.get(rejection["status"], ExitCode.FAILURE)


def _life_of(request_id: str, wishes: Wishes) -> dict[str, Any]:
    if not _REQUEST_ID.fullmatch(request_id):
        raise CommandError(
            "this is no request id", code=ExitCode.USAGE, remedy="it is the x-request-id header of an answer"
        )
    listener = own_listener(wishes.config, wishes.url)
    path = REQUESTS_PATH + request_id
    reply = asyncio.run(send(listener, path))
    if reply.status == 404:
        raise CommandError(
            f"{listener.url} does not know {request_id}",
            code=ExitCode.NOT_FOUND,
            remedy="the last 10,000 that ended are remembered; a tenant sees its own only",
        )
    return read(listener, path, reply)


def _what_if(wishes: Wishes) -> dict[str, Any]:
    assert wishes.what_if is not None
    if wishes.config is not None:
        raise CommandError(
            "--what-if asks as a tenant, --config as the operator", code=ExitCode.USAGE, remedy="give --url"
        )
    line = line_of(wishes.what_if, wishes.route)
    listener = tenant_listener(wishes.url or SERVER_URL)
    wanted = {"x-jouleway-data-class": wishes.data_class, "x-jouleway-zones": wishes.zones}
    headers = {name: value for name, value in wanted.items() if value is not None}
    if any(not (value.isascii() and value.isprintable()) for value in headers.values()):
        raise CommandError("--data-class and --zones are names", code=ExitCode.USAGE)
    reply = asyncio.run(send(listener, WHAT_IF_PATH, payload=line, headers=headers))
    if 400 <= reply.status < 500 and reply.status != 401:
        raise _refused(reply)
    return read(listener, WHAT_IF_PATH, reply)


def line_of(path: Path, route: str) -> bytes:
    """The file as a line of a jobs file. Raises: CommandError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BODY_BYTES + 1)
    except FileNotFoundError:
        raise CommandError(f"{path}: there is no such file", code=ExitCode.NOT_FOUND) from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", code=ExitCode.USAGE) from None
    if len(content) > MAX_BODY_BYTES:
        raise CommandError(f"{path}: longer than {MAX_BODY_BYTES:,} bytes", code=ExitCode.USAGE)
    try:
        fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CommandError(
            f"{path}: this is no JSON object",
            code=ExitCode.USAGE,
            remedy='give a request\'s body, or a line of a jobs file: {"url": "…", "body": {…}}',
        ) from None
    if "body" in fields:
        return content
    return msgspec.json.encode({"url": route, "body": msgspec.Raw(content)})


def _refused(reply: Reply) -> CommandError:
    """In the words of the refusal, as the request itself would have got them."""
    message, code = f"status {reply.status}", ""
    try:
        value = reply.json()
        if isinstance(value, dict) and isinstance(value.get("error"), dict):
            message, code = str(value["error"].get("message")), str(value["error"].get("code"))
    except BadAnswer:
        pass
    return CommandError(
        f"this request would be refused: {message} ({code})", code=CODE_BY_STATUS.get(reply.status, ExitCode.USAGE)
    )
