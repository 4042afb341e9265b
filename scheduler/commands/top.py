"""`jouleway top`: a running control plane, drawn anew every few seconds, over its admin listener.

Called by ``scheduler.cli``. It must never compute anything but what its view shows, and never change anything.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.live import Live

from scheduler.commands import top_view
from scheduler.commands.control_plane import Listener, admin_listener, ask
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import console, print_json

SNAPSHOT_PATH = "/v1/jouleway/snapshot"


def run(
    *,
    config_path: Path | None,
    url: str | None,
    is_once: bool,
    interval_s: float,
    as_json: bool,
    sleep: Callable[[float], None] = time.sleep,
) -> ExitCode:
    """Until Ctrl-C, which is how it ends well; once where it is asked to, or where nobody watches.

    With ``as_json`` each look is one line of JSON (``is_once``: one document). A control plane that stops answering is
    said on the screen and asked again.
    """
    listener = admin_listener(config_path, url)
    told = _look(listener)
    screen = console()
    if is_once or not (as_json or screen.is_terminal):
        print_json(told) if as_json else screen.print(top_view.screen(told))
        return ExitCode.OK
    try:
        if as_json:
            _write_lines(listener, told, interval_s, sleep)
        else:
            _draw(listener, told, interval_s, sleep)
    except KeyboardInterrupt:
        pass
    return ExitCode.OK


def _draw(listener: Listener, told: dict[str, Any], interval_s: float, sleep: Callable[[float], None]) -> None:
    complaint = ""
    with Live(console=console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(top_view.screen(told, complaint=complaint), refresh=True)
            sleep(interval_s)
            try:
                told, complaint = _look(listener), ""
            except CommandError as error:
                if error.code is not ExitCode.UNAVAILABLE:
                    raise
                complaint = f"what follows is old: {error}"


def _write_lines(listener: Listener, told: dict[str, Any], interval_s: float, sleep: Callable[[float], None]) -> None:
    while True:
        sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        sleep(interval_s)
        told = _look(listener)


def _look(listener: Listener) -> dict[str, Any]:
    return top_view.digest(ask(listener, SNAPSHOT_PATH), at_unix_s=time.time())
