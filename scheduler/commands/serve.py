"""`jouleway serve`: the control plane until Ctrl-C or SIGTERM.

Called by ``scheduler.cli``. It must never decide anything: configuration in, a running service, an exit code out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TextIO

import uvloop

from scheduler.accounting.changes import Owner
from scheduler.accounting.errors import LedgerBroken, LedgerError, LedgerInUse
from scheduler.commands import configuration
from scheduler.commands.exits import CommandError, ExitCode
from scheduler.commands.output import Progress
from scheduler.config import Config
from scheduler.config_errors import ConfigError
from scheduler.listeners import PortTaken
from scheduler.service import Service
from workers.core_dumps import forbid_core_dumps
from workers.errors import WorkerError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def run(config_path: Path, *, as_json: bool) -> ExitCode:
    """Serve until a signal; a second signal ends at once."""
    config = configuration.load(config_path)
    set_up_logging()
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what it hears of dead processes; only our line is data
        code: ExitCode = uvloop.run(_serve(config, config_path, output if as_json else None))
    return code


def set_up_logging(default: str = "INFO") -> None:
    """Our own lines on standard error, the level by JOULEWAY_LOG_LEVEL; and no core dumps, which would hold prompts."""
    forbid_core_dumps()
    level = os.environ.get("JOULEWAY_LOG_LEVEL", "").upper()
    logging.basicConfig(stream=sys.stderr, format=LOG_FORMAT, level=logging.WARNING)
    logging.getLogger("jouleway").setLevel(level if level in logging.getLevelNamesMapping() else default)


def make_service(config: Config) -> Service:
    """A service with its ports bound. Raises: CommandError, with the remedy."""
    try:
        return Service(config)
    except PortTaken as error:
        remedy = f"`ss -ltnp 'sport = :{error.port}'` shows who holds it; stop that, or set {error.name}.port"
        raise CommandError(str(error), code=ExitCode.UNAVAILABLE, remedy=remedy) from None
    except ConfigError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from None
    except LedgerInUse as error:
        raise CommandError(str(error), code=ExitCode.UNAVAILABLE) from None
    except LedgerBroken as error:
        raise CommandError(str(error), code=ExitCode.VERIFICATION) from None
    except LedgerError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        message = f"server.host {config.server.host} cannot be bound: {error.strerror}"
        raise CommandError(message, code=ExitCode.USAGE, remedy="give an address of this machine") from None


async def _serve(config: Config, config_path: Path, output: TextIO | None) -> ExitCode:
    """``output``: where it is said, as JSON, that it serves."""
    progress = Progress()
    service = make_service(config)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _ask_to_stop, asked, progress)
        loop.add_signal_handler(signal.SIGHUP, _reload, service, config_path, progress)
        try:
            await service.start(progress=progress)
        except (WorkerError, LedgerError) as error:
            raise CommandError(str(error), code=ExitCode.UNAVAILABLE) from None
        ready = asyncio.create_task(_say_ready(service, progress, output))
        await asked.wait()
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)
    finally:
        progress("stopping")
        await service.stop()
        progress("stopped")
    return ExitCode.OK


async def _say_ready(service: Service, progress: Progress, output: TextIO | None) -> None:
    """Requests are queued from the first second on; this only says when every worker is up."""
    try:
        await service.wait_ready(progress=progress)
    except WorkerError as error:
        progress(f"{error}; serving goes on, the worker is started again")
        return
    progress("ready")
    if output is not None:
        line = {"event": "ready", "url": service.url, "admin_url": service.admin_url}
        output.write(json.dumps(line) + "\n")
        output.flush()


def _reload(service: Service, config_path: Path, progress: Progress) -> None:
    """SIGHUP: the file is read again. One that is wrong changes nothing."""
    try:
        needs_restart = service.reload(configuration.load(config_path))
    except (CommandError, ConfigError, LedgerError) as error:
        progress(f"not reloaded, the old rules stay: {error}")
        return
    if service.directory_owner is Owner.FILE:
        progress("reloaded: keys, budgets, prices, weights, zones and scheduling are those of the file")
    else:
        progress(
            "reloaded: prices, zones and scheduling; tenants, keys and budgets are the API's, not the file's "
            "(directory: api)"
        )
    if needs_restart:
        progress(f"changes of {', '.join(needs_restart)} need a restart")


def _ask_to_stop(asked: asyncio.Event, progress: Progress) -> None:
    if asked.is_set():
        progress("stopping at once")
        os._exit(ExitCode.INTERRUPTED)
    progress("asked to stop: running requests may end; once more to stop at once")
    asked.set()
