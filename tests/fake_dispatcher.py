"""A dispatcher that runs nothing: it hands out streams, and the test fills them.

Used by tests of ``scheduler.api`` (``from tests.fake_dispatcher import FakeDispatcher``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scheduler.accounting.settlement import Charge
from scheduler.core.actions import Rejection
from scheduler.core.budget_accounts import BudgetState
from scheduler.core.request import Request
from scheduler.streams import Body, End, Head, Stream, Submission
from workers.types import Grade, Outcome

EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
JSON = (b"content-type", b"application/json")


@dataclass(slots=True, kw_only=True)
class Ready:
    """As much of a snapshot as ``/ready`` reads."""

    ready_models: tuple[str, ...] = ("m",)
    is_draining: bool = False
    ledger_problem: str = ""


class FakeDispatcher:
    """``submissions`` and ``streams`` in order; ``closed`` holds (request id, reason)."""

    def __init__(self, *, rejections: Iterable[Rejection | None] = (), ends_on_close: bool = True) -> None:
        """``rejections``: of the first submissions in their order; None admits, as does the end of the list."""
        self.submissions: list[Submission] = []
        self.streams: list[Stream] = []
        self.closed: list[tuple[str, str]] = []
        self.ready = Ready()
        self.states: list[BudgetState] = []
        """How the budgets stand, whoever asks."""
        self.stories: dict[str, dict[str, Any]] = {}
        self.asked: list[Request] = []
        self.quota_asked_at_unix_s: list[float] = []
        """What-ifs and questions for the quota."""
        self.num_snapshots = 0
        self.rejections = list(rejections)
        self._ends_on_close = ends_on_close
        self._submitted = asyncio.Event()

    def submit(self, submission: Submission) -> Stream:
        stream = Stream(submission.request.request_id, on_close=self._on_close)
        self.submissions.append(submission)
        self.streams.append(stream)
        self._submitted.set()
        rejection = self.rejections.pop(0) if self.rejections else None
        if rejection is not None:
            stream.put_end(End(rejection=rejection, cause=rejection.reason))
        return stream

    def _on_close(self, request_id: str, reason: str) -> None:
        self.closed.append((request_id, reason))
        if self._ends_on_close:
            self.streams[-1].put_end(End(outcome=Outcome.ABORTED, cause=reason))

    def snapshot(self) -> Ready:
        self.num_snapshots += 1
        return self.ready

    def quota(self, request: Request, at_unix_s: float, measures: Iterable[str]) -> list[BudgetState]:
        self.quota_asked_at_unix_s.append(at_unix_s)
        return [state for state in self.states if state.measure in measures]

    def explain(self, request_id: str, *, tenant: str | None = None) -> dict[str, Any] | None:
        story = self.stories.get(request_id)
        return story if story is not None and tenant in (None, story["tenant"]) else None

    def what_if(self, request: Request) -> dict[str, Any]:
        self.asked.append(request)
        return {"request_id": request.request_id, "state": "what_if"}

    async def stream(self) -> Stream:
        """The latest stream, once there is one."""
        await asyncio.wait_for(self._submitted.wait(), 5)
        return self.streams[-1]


def charge(**values: object) -> Charge:
    """A charge of 7 + 3 tokens, 1.5 J and 0.25 GPU-seconds so far."""
    fields: dict[str, object] = {
        "request_id": "req-x",
        "attempt_id": "req-x-1",
        "tenant": "alpha",
        "model": "m",
        "worker_id": "w",
        "outcome": Outcome.COMPLETED,
        "input_tokens": 7,
        "cached_tokens": 4,
        "output_tokens": 3,
        "provisional_mj": 1500,
        "provisional_gpu_us": 250_000,
        "grade": Grade.A,
        **values,
    }
    return Charge(**fields)  # type: ignore[arg-type]


def head(status: int = 200, *headers: tuple[bytes, bytes]) -> Head:
    return Head(status, list(headers) or [EVENT_STREAM if status == 200 else JSON])


def completed(**values: object) -> End:
    return End(outcome=Outcome.COMPLETED, charge=charge(**values))


__all__ = ["EVENT_STREAM", "JSON", "Body", "FakeDispatcher", "Ready", "charge", "completed", "head"]
