"""One worker's link kept alive: connect with a rising epoch, read reports, send commands in batches, connect again.

Called by ``scheduler.dispatcher``, which is told what arrives. It must never know a request, an account or Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from typing import Protocol

from workers.errors import StaleEpoch, WireMismatch, WorkerDead, WorkerError
from workers.types import Ack, Command, Report, WorkerState, WorkerStatus

logger = logging.getLogger("jouleway.dispatcher")

RECONNECT_DELAYS_S = (0.2, 1.0, 3.0)
"""Waits before each further try; when the last one fails without a single report, the worker is gone."""

STOP_TIMEOUT_S = 120.0
"""A worker that has not stopped after so long is left to its own watch."""

MAX_COMMANDS = 256
"""Commands of one batch; more leave in the next."""


class WorkerLink(Protocol):
    """The control plane's end of one worker; ``workers.ray_worker.RayLink`` is one."""

    worker_id: str

    def reports(self, epoch: int) -> AsyncIterator[Report]:
        """Connects, fencing off every lower epoch. Raises: WorkerDead, StaleEpoch, WireMismatch."""

    async def send(self, commands: list[Command]) -> None:
        """Raises: WorkerDead."""

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Stops the worker; its last windows and postings still leave through ``reports``."""


class Phase(StrEnum):
    """How it stands with a link."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"
    """Broken; tried again."""
    GONE = "gone"
    """Given up."""
    FENCED = "fenced"
    """A newer control plane has the worker: nothing of ours may be sent there any more."""


class Connection:
    """Owns the link's tasks. ``on_report`` and ``on_lost`` are called on the event loop and must not block."""

    def __init__(
        self,
        link: WorkerLink,
        *,
        max_running: int,
        incarnation: str,
        next_epoch: Callable[[], int],
        on_report: Callable[[Connection, Report], None],
        on_lost: Callable[[Connection, str], None],
        reconnect_delays_s: tuple[float, ...] = RECONNECT_DELAYS_S,
    ) -> None:
        self.link = link
        self.worker_id = link.worker_id
        self.max_running = max_running
        self.incarnation = incarnation
        """Differs for another process under the same worker id."""
        self.phase = Phase.CONNECTING
        self.cause = ""
        self.epoch = 0
        self.status: WorkerStatus | None = None
        self.acked_number = 0
        self._next_epoch = next_epoch
        self._on_report = on_report
        self._on_lost = on_lost
        self._reconnect_delays_s = reconnect_delays_s
        self._commands: list[Command] = []
        self._has_commands = asyncio.Event()
        self._num_failures = 0
        self._is_stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"link-{self.worker_id}")

    def send(self, command: Command) -> None:
        """Leaves with the next batch; a link that is not connected drops it (its attempts are lost anyway)."""
        if self.phase is Phase.CONNECTED:
            self._commands.append(command)
            self._has_commands.set()

    def acknowledge(self, number: int) -> None:
        """The worker may forget its records up to this number; said once a connection, and only where it is heard."""
        if self.phase is Phase.CONNECTED and number > self.acked_number:
            self.acked_number = number
            self.send(Ack(number=number))

    async def stop_worker(self) -> None:
        """Stops the worker: its stream may end without being missed."""
        self._is_stopping = True
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.link.stop()
        except Exception as error:
            # The others must stop all the same.
            logger.warning("worker %s did not stop in order: %s: %s", self.worker_id, type(error).__name__, error)

    @property
    def has_said_all(self) -> bool:
        """Whether a stopped worker's records are all here."""
        status = self.status
        if self.phase is not Phase.CONNECTED or status is None:
            return True
        return status.state is WorkerState.STOPPED and status.outbox_depth == 0

    async def flush(self) -> None:
        """Hands what waits to the link, once."""
        if self._commands and self.phase is Phase.CONNECTED:
            batch, self._commands = self._commands, []
            with contextlib.suppress(WorkerError):
                await self.link.send(batch)

    async def close(self) -> None:
        """Ends the tasks; what the worker says from here on is not heard."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.phase is not Phase.FENCED:
            self.phase = Phase.GONE

    async def _run(self) -> None:
        """Connects until the worker is gone, fenced off or stopped."""
        while True:
            cause, may_return = await self._connect_once()
            self._commands.clear()
            if may_return and not self._is_stopping and self._num_failures < len(self._reconnect_delays_s):
                self.phase, self.cause = Phase.LOST, cause
                self._on_lost(self, cause)
                await asyncio.sleep(self._reconnect_delays_s[self._num_failures])
                self._num_failures += 1
                continue
            if self.phase is not Phase.FENCED:
                self.phase = Phase.GONE
            self.cause = cause
            self._on_lost(self, cause)
            return

    async def _connect_once(self) -> tuple[str, bool]:
        """Reads and writes until one of them fails: (cause, whether another try makes sense)."""
        self.epoch = self._next_epoch()
        self.acked_number = 0  # an acknowledgement may have been lost with the connection before
        reader = asyncio.create_task(self._read(self.epoch), name=f"reports-{self.worker_id}")
        writer = asyncio.create_task(self._write(), name=f"commands-{self.worker_id}")
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, writer):
                task.cancel()
            ended = await asyncio.gather(reader, writer, return_exceptions=True)
        errors = [error for error in ended if isinstance(error, Exception)]
        error = errors[0] if errors else WorkerDead(self.worker_id, "its report stream ended")
        if isinstance(error, StaleEpoch):
            self.phase = Phase.FENCED
            logger.error("worker %s belongs to a newer control plane: %s", self.worker_id, error)
            return "fenced_off", False
        if isinstance(error, WireMismatch):
            logger.error("worker %s: %s", self.worker_id, error)
            return "wire_mismatch", False
        if not isinstance(error, WorkerDead):
            logger.error("link of worker %s failed: %s: %s", self.worker_id, type(error).__name__, error)
        elif not self._is_stopping:
            logger.warning("worker %s is lost: %s", self.worker_id, error)
        return "worker_lost", not (isinstance(error, WorkerDead) and error.is_final)

    async def _read(self, epoch: int) -> None:
        async for report in self.link.reports(epoch):
            if self.phase is not Phase.CONNECTED:
                self.phase, self.cause = Phase.CONNECTED, ""
            self._num_failures = 0
            if report.status is not None:
                self.status = report.status
            self._on_report(self, report)

    async def _write(self) -> None:
        """One batch a turn: whatever the turn before produced leaves together."""
        while True:
            await self._has_commands.wait()
            self._has_commands.clear()
            while self._commands:
                batch, self._commands = self._commands[:MAX_COMMANDS], self._commands[MAX_COMMANDS:]
                await self.link.send(batch)
