"""The face of an inference engine: an OpenAI ASGI app in process, and a feed of steps.

Declared for its only consumer, ``workers.worker``; implemented by the files of ``workers.engines``.
It must never know meters, attribution or Ray.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from workers.steps import StepRecord
from workers.types import Call, EngineInfo, Progress, SequenceUsage

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What is in the engine now."""

    num_running: int
    num_waiting: int
    kv_used_tokens: int


class EngineSink(Protocol):
    """Where an engine reports to; every method is called on the event loop's thread."""

    def on_step(self, step: StepRecord) -> None: ...

    def on_closed(self, attempt_id: str, sequences: tuple[SequenceUsage, ...]) -> None:
        """Exactly once per attempt, after ``asgi_ended`` and after every closing record of its sequences.

        ``sequences`` are in the order of the answer's choices.
        """

    def on_dropped(self, num_records: int) -> None: ...

    def on_engine_dead(self, cause: str) -> None: ...


class Engine(Protocol):
    """One inference engine: an OpenAI ASGI app in process and a feed of steps."""

    async def start(self, sink: EngineSink) -> EngineInfo:
        """Once, and again after each ``park``. Raises EngineStartError with the engine's last lines."""

    def request(self, call: Call, salt: bytes) -> tuple[Scope, bytes]:
        """The ASGI scope (our ids and priority in it) and the body for one attempt.

        Of each text that it generates the engine states bytes and digest under ``salt``, and keeps none of them.
        """

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def asgi_ended(self, attempt_id: str) -> None:
        """No further engine request will come for this attempt; ``on_closed`` follows."""

    def progress(self) -> list[Progress]:
        """Attempts that changed since the last call."""

    def load(self) -> EngineLoad: ...

    async def calibrate(self, max_s: float) -> None:
        """A short mix of the engine's own dummy work (payer None), so that the curves are known before serving."""

    async def park(self) -> None:
        """Ends what runs of the engine, and frees its memory; ``start`` begins it anew, with the same arguments.

        Called while no attempt is open. What its device draws is metered on.
        """

    async def stop(self) -> None: ...
