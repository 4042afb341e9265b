"""One process of workers: what the Ray actor does, without Ray. Many workers in one process only when simulated.

Called by ``workers.ray_worker``, which makes an actor of it. It must never know a request: it moves encoded values.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
from collections.abc import AsyncIterator
from typing import TypedDict

import msgspec

from workers.build import build_worker
from workers.core_dumps import forbid_core_dumps
from workers.errors import StaleEpoch, WireMismatch, WorkerError
from workers.guardian import MARKER, start_guardian
from workers.types import WIRE_VERSION, Command, Report, WorkerSpec
from workers.worker import Worker

logger = logging.getLogger("jouleway.host")

POLL_S = 1.0
RAYLET_GONE_S = 15.0
STOP_TIMEOUT_S = 60.0
"""How long workers may take to stop once their raylet is gone; then the process ends as it is."""
LEAVE_GRACE_S = 10.0
"""How long a process whose workers all stopped waits for its last records to be read and acknowledged."""
GAP_S = 10.0
"""How long a batch of commands may be missing before those after it are carried out without it."""
MAX_BATCHES_AHEAD = 1_000

_encode_report = msgspec.msgpack.Encoder().encode
_decode_commands = msgspec.msgpack.Decoder(list[Command]).decode
_decode_specs = msgspec.msgpack.Decoder(list[WorkerSpec]).decode


class Description(TypedDict):
    """What a control plane asks before it connects."""

    wire_version: int
    worker_ids: list[str]
    pid: int
    started_unix_s: float


class Inbox:
    """Batches of commands in the order they were sent, per connection.

    Ray lets a small call overtake a large one, which travels through its object store: an abort would come before its
    call. Numbers start at 1 with each epoch; a gap that does not fill in ``GAP_S`` is given up. 0 = out of order.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._epoch = 0
        self._next_number = 1
        self._ahead: dict[int, list[Command]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def put(self, epoch: int, number: int, commands: list[Command]) -> None:
        """Carries out what is due. Raises: StaleEpoch."""
        if number == 0 or epoch != self._worker.epoch:
            self._worker.command(epoch, commands)  # refuses a foreign epoch
            return
        if epoch != self._epoch:
            self._epoch, self._next_number = epoch, 1
            self._ahead.clear()
            self._stop_timer()
        if number < self._next_number:
            return  # given up before, or sent twice
        self._ahead[number] = commands
        self._carry_out()
        if len(self._ahead) > MAX_BATCHES_AHEAD:
            self._skip()
        elif self._ahead and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GAP_S, self._skip)

    def _carry_out(self) -> None:
        before = self._next_number
        while (commands := self._ahead.pop(self._next_number, None)) is not None:
            self._next_number += 1
            self._worker.command(self._epoch, commands)
        if self._next_number != before:
            self._stop_timer()

    def _skip(self) -> None:
        """The batch that is waited for was lost on the way."""
        self._timer = None
        if not self._ahead or self._epoch != self._worker.epoch:
            return
        first = min(self._ahead)
        logger.error("batches %d to %d for %s are lost", self._next_number, first - 1, self._worker.spec.worker_id)
        self._next_number = first
        self._carry_out()
        if self._ahead:
            self._timer = asyncio.get_running_loop().call_later(GAP_S, self._skip)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class WorkerHost:
    """One or more workers in one process. Every method is called on the event loop of that process."""

    def __init__(self, encoded_specs: bytes) -> None:
        forbid_core_dumps()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
        logging.getLogger("jouleway").setLevel(logging.INFO)  # an engine that fails raises the root's own level
        self._specs = _decode_specs(encoded_specs)
        self._workers: dict[str, Worker] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._raylet_pid = os.getppid()
        self._started_unix_s = time.time()
        self._tasks: list[asyncio.Task[None]] = []
        self._guardian: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Begins to start every worker and returns at once: the reports say how it goes. Again: does nothing."""
        if self._workers:
            return
        marker = os.environ.get(MARKER, "")
        if marker and any(spec.engine != "simulated" for spec in self._specs):
            self._guardian = start_guardian(marker)
        for spec in self._specs:
            worker = build_worker(spec)
            self._workers[spec.worker_id] = worker
            self._inboxes[spec.worker_id] = Inbox(worker)
            self._tasks.append(asyncio.create_task(_start_one(worker), name=f"start {spec.worker_id}"))
        self._tasks.append(asyncio.create_task(self._leave_when_done(), name="leave"))

    async def describe(self) -> Description:
        """Who is here. Starts the workers where whoever made this process was killed before it could."""
        await self.start()
        return Description(
            wire_version=WIRE_VERSION,
            worker_ids=[spec.worker_id for spec in self._specs],
            pid=os.getpid(),
            started_unix_s=self._started_unix_s,
        )

    async def reports(self, worker_id: str, epoch: int, wire_version: int) -> AsyncIterator[bytes]:
        """Encoded reports of one worker. Being refused is said in the last item's epoch: another epoch = that of the
        newer connection, a negative one = the wire version spoken here."""
        await self.start()
        try:
            async for report in self._workers[worker_id].reports(epoch, wire_version):
                yield _encode_report(report)
        except StaleEpoch as error:
            yield _encode_report(Report(epoch=error.current))
        except WireMismatch as error:
            yield _encode_report(Report(epoch=-error.spoken))

    async def command(self, worker_id: str, epoch: int, number: int, encoded: bytes) -> None:
        """A batch; see ``Inbox`` for its number. A stale one is refused, and only the log says so."""
        try:
            self._inboxes[worker_id].put(epoch, number, _decode_commands(encoded))
        except StaleEpoch as error:
            logger.warning("commands for %s were refused: %s", worker_id, error)

    async def stop(self, worker_id: str, drain_s: float) -> None:
        """Returns when the worker stopped; the process ends once all have, and what they said was heard."""
        if (worker := self._workers.get(worker_id)) is not None:
            await worker.stop(drain_s=drain_s)

    async def _leave_when_done(self) -> None:
        """Ends the process when its last worker stopped, or when its raylet is gone for 15 s."""
        workers = list(self._workers.values())
        gone_s = 0.0
        while not all(worker.stopped.is_set() for worker in workers):
            await asyncio.sleep(POLL_S)
            gone_s = gone_s + POLL_S if os.getppid() != self._raylet_pid else 0.0
            if gone_s >= RAYLET_GONE_S:
                logger.error("the raylet is gone for %.0f s: stopping the engines", gone_s)
                stops = [asyncio.create_task(worker.stop(cause="raylet gone")) for worker in workers]
                await asyncio.wait(stops, timeout=STOP_TIMEOUT_S)
                break
        waited_s = 0.0
        while waited_s < LEAVE_GRACE_S and gone_s == 0.0 and not all(worker.has_said_all for worker in workers):
            await asyncio.sleep(POLL_S / 4)
            waited_s += POLL_S / 4
        await asyncio.sleep(POLL_S)  # the last item is on its way
        logger.info("every worker of this process stopped: leaving")
        os._exit(0)  # what engines left behind falls to the guardian


async def _start_one(worker: Worker) -> None:
    try:
        await worker.start()
    except WorkerError as error:
        logger.error("worker %s did not start: %s", worker.spec.worker_id, error)
    except Exception as error:
        logger.error("worker %s did not start: %s: %s", worker.spec.worker_id, type(error).__name__, error)
