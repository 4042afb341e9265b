"""`jouleway workers`: what a running control plane knows of its workers, asked over its admin listener.

Called by ``scheduler.cli``. It must never take a key as a flag.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler.commands import configuration
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.http_client import BadAnswer, fetch
from scheduler.commands.output import print_json, print_lines, print_table
from scheduler.config import Config

KEY_VARIABLE = "JOULEWAY_ADMIN_KEY"
PATH = "/v1/jouleway/workers"
TIMEOUT_S = 10.0
COLUMNS = ("worker", "state", "zone", "running", "waiting", "KV used", "meter", "grade", "watts", "outbox")


def run(*, config_path: Path | None, url: str | None, as_json: bool) -> ExitCode:
    """Ask, print; 6 where nobody answers, 4 where the key is wrong."""
    config = None if config_path is None else configuration.load(config_path)
    url = url or _url_of(config)
    answer = ask(url, PATH, key=_key(config))
    if as_json:
        print_json(answer)
        return ExitCode.OK
    workers = answer["workers"]
    print_table("jouleway workers", COLUMNS, [row(worker) for worker in workers], numeric_from=3)
    print_lines(complaints(workers))
    return ExitCode.OK


def ask(url: str, path: str, *, key: str) -> dict[str, Any]:
    """One admin route as JSON. Raises: CommandError, with the remedy."""
    try:
        reply = asyncio.run(fetch(url + path, headers={"Authorization": f"Bearer {key}"}, timeout_s=TIMEOUT_S))
        value = reply.json()
    except (OSError, BadAnswer, TimeoutError) as error:
        raise CommandError(
            f"no control plane answers at {url}: {error or type(error).__name__}",
            code=ExitCode.UNAVAILABLE,
            remedy="start `jouleway serve`; --url must be its admin listener (serve prints it)",
        ) from None
    if reply.status in (401, 403):
        raise CommandError(
            f"{url} refuses the admin key", code=ExitCode.POLICY, remedy=f"export {KEY_VARIABLE} from admin.key_file"
        )
    if reply.status != 200 or not isinstance(value, dict):
        raise CommandError(f"{url}{path} answers with status {reply.status}", code=ExitCode.FAILURE)
    return value


def row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    """One worker's line."""
    status = worker["status"]
    if status is None:
        return (worker["worker_id"], worker["phase"], *["–"] * (len(COLUMNS) - 2))
    watts = status["power_watts"]
    return (
        worker["worker_id"],
        status["state"] if worker["phase"] == "connected" else f"{status['state']} ({worker['phase']})",
        status["zone"],
        f"{status['num_running']}",
        f"{status['num_waiting']}",
        f"{status['kv_used_tokens']:,}",
        (status["meter"] or "–") if status["meter_up"] else f"{status['meter'] or 'none'}, down",
        status["grade"],
        "–" if watts is None else f"{watts:,.1f}",
        f"{status['outbox_depth']}",
    )


def complaints(workers: list[Mapping[str, Any]]) -> list[str]:
    """What each worker says beside its state: causes, downgrades, XIDs."""
    lines = []
    for worker in workers:
        status = worker["status"] or {}
        words = [worker["cause"], status.get("cause", ""), *status.get("health", ())]
        lines += [f"{worker['worker_id']}: {text}" for text in dict.fromkeys(words) if text]
    return lines


def _url_of(config: Config | None) -> str:
    if config is None:
        return "http://127.0.0.1:8001"
    if config.admin.port == 0:
        raise CommandError(
            "admin.port is 0: any free one was taken", code=ExitCode.USAGE, remedy="give --url as serve prints it"
        )
    host = config.admin.host
    return f"http://{f'[{host}]' if ':' in host else host}:{config.admin.port}"


def _key(config: Config | None) -> str:
    """From the environment, else from the key's file where this user may read it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
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
