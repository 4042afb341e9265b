"""A running control plane as the commands see it: where its listeners are, with which key, what its answers mean.

Called by the commands that ask one. It must never take a key as a flag, nor print one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler import addresses
from scheduler.commands import configuration
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.http_client import BadAnswer, Reply, fetch
from scheduler.config import Config

ADMIN_KEY_VARIABLE = "JOULEWAY_ADMIN_KEY"
ADMIN_URL = "http://127.0.0.1:8001"
KEY_VARIABLE = "JOULEWAY_API_KEY"
SERVER_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 10.0
CHANGE_TIMEOUT_S = 60.0
"""Of what changes something: the control plane itself waits half a minute for its ledger, and then says so."""
REFUSALS = {
    400: ExitCode.USAGE,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.FAILURE,
    413: ExitCode.USAGE,
    422: ExitCode.USAGE,
    429: ExitCode.BUDGET,
    503: ExitCode.UNAVAILABLE,
}
"""Statuses that come with words for whoever asked."""
MAX_WORDS_CHARS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where to ask, and as whom."""

    url: str
    key: str = field(repr=False)
    remedy: str
    """Where the right key is to be had."""


def admin_listener(config_path: Path | None, url: str | None) -> Listener:
    """Of a configuration, a URL or both. Raises: CommandError, with the remedy."""
    config = None if config_path is None else configuration.load(config_path)
    return Listener(
        url=root_of(url or _admin_url(config)),
        key=_admin_key(config),
        remedy=f"export {ADMIN_KEY_VARIABLE} from admin.key_file",
    )


def tenant_listener(url: str) -> Listener:
    """The OpenAI endpoint, asked as a tenant. Raises: CommandError, with the remedy."""
    remedy = f"export {KEY_VARIABLE}, a key of your tenant"
    key = _key_of(KEY_VARIABLE)
    if not key:
        raise CommandError("the key is not known", code=ExitCode.POLICY, remedy=remedy)
    return Listener(url=root_of(url), key=key, remedy=remedy)


def own_listener(config_path: Path | None, url: str | None) -> Listener:
    """As the operator where a configuration is named or the operator's key is the only one; else as a tenant.

    Raises: CommandError, with the remedy.
    """
    has_own_key = bool(os.environ.get(KEY_VARIABLE, "").strip())
    if config_path is not None or (not has_own_key and os.environ.get(ADMIN_KEY_VARIABLE, "").strip()):
        return admin_listener(config_path, url)
    return tenant_listener(url or SERVER_URL)


def root_of(url: str) -> str:
    """Of the control plane. Raises: CommandError."""
    try:
        return addresses.root_of(url)
    except ValueError as error:
        raise CommandError(str(error), code=ExitCode.USAGE, remedy="give it as serve prints it") from None


async def send(
    listener: Listener,
    path: str,
    *,
    payload: object = None,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Reply:
    """One route, whatever its status; ``method`` None: a payload makes it a POST. Raises: CommandError where nobody
    answers.
    """
    try:
        return await fetch(
            listener.url + path,
            method=method or ("GET" if payload is None else "POST"),
            payload=payload,
            headers={"Authorization": f"Bearer {listener.key}", **(headers or {})},
            timeout_s=timeout_s,
        )
    except (OSError, BadAnswer, TimeoutError) as error:
        raise unreachable(listener, error) from None


def read(listener: Listener, path: str, reply: Reply) -> dict[str, Any]:
    """The JSON object of a good answer. Raises: CommandError with its exit code."""
    if reply.status in (401, 403):
        raise CommandError(f"{listener.url} refuses the key", code=ExitCode.POLICY, remedy=listener.remedy)
    try:
        value = reply.json()
    except BadAnswer as error:
        raise unreachable(listener, error) from None
    if reply.status != 200 or not isinstance(value, dict):
        raise CommandError(f"{listener.url}{path} answers with status {reply.status}", code=ExitCode.FAILURE)
    return value


def read_words(listener: Listener, path: str, reply: Reply) -> dict[str, Any]:
    """As ``read``; a refusal is told in its own words. Raises: CommandError with its exit code."""
    if reply.status not in REFUSALS:
        return read(listener, path, reply)
    try:
        value = reply.json()
    except BadAnswer as error:
        raise unreachable(listener, error) from None
    told = value.get("error") if isinstance(value, dict) else None
    words = told if isinstance(told, dict) else {}
    if words.get("code") == "route_not_found":
        raise CommandError(
            f"{listener.url} has no {path}",
            code=ExitCode.NOT_FOUND,
            remedy="a control plane with a ledger has it; --url must be the listener that serve prints for this key",
        )
    message = str(words.get("message", f"status {reply.status}"))[:MAX_WORDS_CHARS]
    raise CommandError(f"{listener.url} refuses: {message}", code=REFUSALS[reply.status])


def ask(listener: Listener, path: str) -> dict[str, Any]:
    """One route as JSON. Raises: CommandError, with the remedy."""
    return read(listener, path, asyncio.run(send(listener, path)))


def unreachable(listener: Listener, error: Exception) -> CommandError:
    """Nobody answers there, or not what we asked for."""
    return CommandError(
        f"no control plane answers at {listener.url}: {error or type(error).__name__}",
        code=ExitCode.UNAVAILABLE,
        remedy="start `jouleway serve`; --url must be the listener that serve prints for it",
    )


def _admin_url(config: Config | None) -> str:
    if config is None:
        return ADMIN_URL
    if config.admin.port == 0:
        raise CommandError(
            "admin.port is 0: any free one was taken", code=ExitCode.USAGE, remedy="give --url as serve prints it"
        )
    host = config.admin.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.admin.port}"


def _admin_key(config: Config | None) -> str:
    """From the environment, else from the key's file where this user may read it."""
    key = _key_of(ADMIN_KEY_VARIABLE)
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
        remedy=f"export {ADMIN_KEY_VARIABLE}, or give --config and run as the user who may read admin.key_file",
    )


def _key_of(variable: str) -> str:
    """The key in an environment variable, empty where there is none. Raises: CommandError where it can be no key."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise CommandError(
            f"what {variable} holds is no key: it has characters that no header can carry",
            code=ExitCode.POLICY,
            remedy="copy the key once more, as one line",
        )
    return key
