"""Asks the admin listener of a running control plane: where it is, with which key, and what its answers mean.

Called by the commands that show a running control plane. It must never take a key as a flag, nor print one.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.commands import configuration
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.http_client import BadAnswer, Reply, fetch
from scheduler.config import Config

KEY_VARIABLE = "JOULEWAY_ADMIN_KEY"
DEFAULT_URL = "http://127.0.0.1:8001"
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where to ask, and as whom."""

    url: str
    key: str
    variable: str = KEY_VARIABLE
    """Where the key is expected: what the remedy names."""
    key_place: str = "admin.key_file"


def admin_listener(config_path: Path | None, url: str | None) -> Listener:
    """Of a configuration, a URL or both. Raises: CommandError, with the remedy."""
    config = None if config_path is None else configuration.load(config_path)
    return Listener(url=(url or _url_of(config)).rstrip("/"), key=_key(config))


async def send(listener: Listener, path: str, *, payload: object = None) -> Reply:
    """One route, whatever its status; a payload makes it a POST. Raises: CommandError where nobody answers."""
    try:
        return await fetch(
            listener.url + path,
            method="GET" if payload is None else "POST",
            payload=payload,
            headers={"Authorization": f"Bearer {listener.key}"},
            timeout_s=TIMEOUT_S,
        )
    except (OSError, BadAnswer, TimeoutError, ValueError) as error:
        raise unreachable(listener, error) from None


def read(listener: Listener, path: str, reply: Reply) -> dict[str, Any]:
    """The JSON object of a good answer. Raises: CommandError with its exit code."""
    if reply.status in (401, 403):
        raise CommandError(
            f"{listener.url} refuses the key",
            code=ExitCode.POLICY,
            remedy=f"export {listener.variable} from {listener.key_place}",
        )
    try:
        value = reply.json()
    except BadAnswer as error:
        raise unreachable(listener, error) from None
    if reply.status != 200 or not isinstance(value, dict):
        raise CommandError(f"{listener.url}{path} answers with status {reply.status}", code=ExitCode.FAILURE)
    return value


def ask(listener: Listener, path: str) -> dict[str, Any]:
    """One route as JSON. Raises: CommandError, with the remedy."""
    return read(listener, path, asyncio.run(send(listener, path)))


def key_of(variable: str) -> str:
    """The key in an environment variable, empty where there is none. Raises: CommandError where it can be no key."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CommandError(
            f"what {variable} holds is no key: it has characters that no header can carry",
            code=ExitCode.POLICY,
            remedy="copy the key once more, as one line",
        )
    return key


def unreachable(listener: Listener, error: Exception) -> CommandError:
    """Nobody answers there, or not what we asked for."""
    return CommandError(
        f"no control plane answers at {listener.url}: {error or type(error).__name__}",
        code=ExitCode.UNAVAILABLE,
        remedy="start `jouleway serve`; --url must be the listener that serve prints for it",
    )


def _url_of(config: Config | None) -> str:
    if config is None:
        return DEFAULT_URL
    if config.admin.port == 0:
        raise CommandError(
            "admin.port is 0: any free one was taken", code=ExitCode.USAGE, remedy="give --url as serve prints it"
        )
    host = config.admin.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.admin.port}"


def _key(config: Config | None) -> str:
    """From the environment, else from the key's file where this user may read it."""
    key = key_of(KEY_VARIABLE)
    if key:
        return key
    if config is not None:
        try:
            return config.admin_key_path.read_text(encoding="ascii").split("\n", 1)[0].strip()
        except (OSError, UnicodeDecodeError):
            pass
    raise CommandError(
        "the admin key is not known",
        code=ExitCode.POLICY,
        remedy=f"export {KEY_VARIABLE}, or give --config and run as the user who may read admin.key_file",
    )
