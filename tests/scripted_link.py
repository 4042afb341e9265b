"""A worker that says what the test tells it to: the control plane's side of a link without anything behind it.

Used by tests of connection, committer and dispatcher (``from tests.scripted_link import ScriptedLink``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from workers.types import (
    Abort,
    Ack,
    Call,
    Chunk,
    Command,
    Ended,
    EnergyPosting,
    EngineInfo,
    Grade,
    Numbered,
    Outcome,
    Record,
    Report,
    SequenceUsage,
    Started,
    UsageRecord,
    WindowRecord,
    WorkerState,
    WorkerStatus,
)

MODEL = "m"


class ScriptedLink:
    """``scheduler.connection.WorkerLink``. ``say`` and ``fail`` feed its stream; ``commands`` is what was sent."""

    def __init__(self, worker_id: str = "w-0") -> None:
        self.worker_id = worker_id
        self.epochs: list[int] = []
        self.batches: list[list[Command]] = []
        self.send_error: Exception | None = None
        self.stop_error: Exception | None = None
        self.num_stops = 0
        self.num_open_streams = 0
        self._items: asyncio.Queue[Report | Exception | None] = asyncio.Queue()
        self._number = 0

    # -- the face

    async def reports(self, epoch: int) -> AsyncIterator[Report]:
        self.epochs.append(epoch)
        self.num_open_streams += 1
        try:
            while (item := await self._items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.num_open_streams -= 1

    async def send(self, commands: list[Command]) -> None:
        if self.send_error is not None:
            raise self.send_error
        self.batches.append(commands)

    async def stop(self, *, drain_s: float = 0.0) -> None:
        self.num_stops += 1
        if self.stop_error is not None:
            raise self.stop_error

    # -- the script

    def say(self, *outputs: Started | Chunk | Ended, records: tuple[Record, ...] = (), **fields: object) -> None:
        """One report; records get the next numbers of the outbox."""
        numbered = []
        for record in records:
            self._number += 1
            numbered.append(Numbered(self._number, record))
        self.repeat(numbered, *outputs, **fields)

    def repeat(self, numbered: list[Numbered], *outputs: Started | Chunk | Ended, **fields: object) -> None:
        """One report whose records have numbers already."""
        self._items.put_nowait(Report(epoch=0, outputs=list(outputs), records=numbered, **fields))  # type: ignore[arg-type]

    def ready(self, **fields: object) -> None:
        self.say(status=status_of(self.worker_id, **fields))

    def fail(self, error: Exception | None = None) -> None:
        """The stream breaks, or without an error it ends."""
        self._items.put_nowait(error)

    # -- what was sent

    @property
    def commands(self) -> list[Command]:
        return [command for batch in self.batches for command in batch]

    @property
    def calls(self) -> list[Call]:
        return [command for command in self.commands if isinstance(command, Call)]

    @property
    def aborts(self) -> list[tuple[str, str]]:
        return [(command.attempt_id, command.reason) for command in self.commands if isinstance(command, Abort)]

    @property
    def acks(self) -> list[int]:
        return [command.number for command in self.commands if isinstance(command, Ack)]


INFO = EngineInfo(
    engine="scripted",
    version="1",
    models=(MODEL,),
    max_model_len_tokens=4096,
    kv_tokens=100_000,
    max_sequences=64,
    num_gpus=1,
)


def status_of(worker_id: str = "w-0", state: WorkerState = WorkerState.READY, **fields: object) -> WorkerStatus:
    values: dict[str, object] = {"info": INFO, "grade": Grade.A, **fields}
    return WorkerStatus(worker_id=worker_id, state=state, **values)  # type: ignore[arg-type]


def usage_of(attempt_id: str, *, output_tokens: int = 3, prompt_tokens: int = 7, **fields: object) -> UsageRecord:
    """The usage of one sequence that adds up."""
    sequence = SequenceUsage(
        engine_request_id=f"engine-{attempt_id}",
        prompt_tokens=prompt_tokens,
        cached_tokens=0,
        computed_prompt_tokens=prompt_tokens,
        generated_tokens=output_tokens,
        scheduled_tokens=prompt_tokens + max(output_tokens - 1, 0),
    )
    values: dict[str, object] = {
        "outcome": Outcome.COMPLETED,
        "sequences": (sequence,),
        "input_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        **fields,
    }
    return UsageRecord(attempt_id=attempt_id, **values)  # type: ignore[arg-type]


def posting_of(attempt_id: str, energy_mj: int = 100, gpu_us: int = 10, **fields: object) -> EnergyPosting:
    values: dict[str, object] = {"grade": Grade.A, "policy": "shapley", **fields}
    return EnergyPosting(attempt_id=attempt_id, energy_mj=energy_mj, gpu_us=gpu_us, **values)  # type: ignore[arg-type]


def window_of(*shares: tuple[str, int, int], **fields: object) -> WindowRecord:
    """A window that adds up: 50 mJ idle, 20 overhead (5 GPU-µs), 3 unattributed, and the shares."""
    in_flight_mj, gpu_us = sum(share[1] for share in shares), sum(share[2] for share in shares)
    values: dict[str, object] = {
        "window": 1,
        "started_s": 0.0,
        "ended_s": 5.0,
        "ended_unix_s": 5.0,
        "counter_mj": 1000,
        "meter_mj": 73 + in_flight_mj,
        "idle_mj": 50,
        "overhead_mj": 20,
        "unattributed_mj": 3,
        "in_flight_mj": in_flight_mj,
        "shares": shares,
        "busy_gpu_us": 5 + gpu_us,
        "overhead_gpu_us": 5,
        "predicted_mj": 20 + in_flight_mj,
        "scale_ratio": 1.0,
        "grade": Grade.A,
        "meter": "scripted",
        "num_steps": 4,
        **fields,
    }
    return WindowRecord(**values)  # type: ignore[arg-type]


async def settle_loop(num_turns: int = 12) -> None:
    """Lets everything that is ready run, without time passing."""
    for _ in range(num_turns):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], bool], timeout_s: float = 2.0) -> None:
    """Waits for what must come, with an end."""
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0)
