"""`jouleway workers`: what a running control plane knows of its workers, asked over its admin listener.

Called by ``scheduler.cli``. It must never compute anything: it prints what it was told.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler.commands.control_plane import admin_listener, ask
from scheduler.commands.exits import ExitCode
from scheduler.commands.output import print_json, print_lines, print_table

PATH = "/v1/jouleway/workers"
COLUMNS = ("worker", "state", "zone", "running", "waiting", "KV used", "meter", "grade", "watts", "outbox")


def run(*, config_path: Path | None, url: str | None, as_json: bool) -> ExitCode:
    """Ask, print; 6 where nobody answers, 4 where the key is wrong."""
    answer = ask(admin_listener(config_path, url), PATH)
    if as_json:
        print_json(answer)
        return ExitCode.OK
    workers = answer["workers"]
    print_table("jouleway workers", COLUMNS, [row(worker) for worker in workers], numeric_from=3)
    print_lines(complaints(workers))
    return ExitCode.OK


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
