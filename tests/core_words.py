"""Short ways to say what the core is asked and told.

Used by tests of ``scheduler.core`` (``from tests.core_words import request, view``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from hypothesis import HealthCheck, settings

from scheduler.core.actions import Action
from scheduler.core.cluster import WorkerView
from scheduler.core.request import Request
from scheduler.core.scheduler import Scheduler
from workers.step_curves import StepCurves
from workers.types import Outcome, Progress, UsageRecord, WorkerState

MODEL = "m"

thorough = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For property tests: neighbours on the machine may stall a draw for seconds."""

Kind = TypeVar("Kind", bound=Action)


def request(request_id: str = "r", **values: object) -> Request:
    """A request of 100 prompt tokens and at most 50 output tokens that arrived at 0."""
    fields: dict[str, object] = {
        "tenant": "t", "model": MODEL, "prompt_tokens_bound": 100, "max_output_tokens": 50, "arrival_s": 0.0, **values,
    }  # fmt: skip
    return Request(request_id=request_id, **fields)  # type: ignore[arg-type]


def view(worker_id: str = "w", **values: object) -> WorkerView:
    """A ready worker with room for four attempts."""
    fields: dict[str, object] = {
        "state": WorkerState.READY, "models": (MODEL,), "kv_tokens": 10_000, "max_sequences": 64, "max_running": 4,
        **values,
    }  # fmt: skip
    return WorkerView(worker_id=worker_id, **fields)  # type: ignore[arg-type]


def curves(
    *, t0_s: float = 0.01, prefill_s: float = 1e-4, decode_s: float = 1e-3, context_s: float = 0.0
) -> StepCurves:
    return StepCurves(time_s=(t0_s, prefill_s, decode_s, context_s), energy_joules=(0.0, 0.0, 0.0, 0.0), idle_watts=0.0)


def usage(attempt_id: str, outcome: Outcome = Outcome.COMPLETED, cause: str = "", **values: int) -> UsageRecord:
    """Ten tokens in, five out."""
    counts = {"input_tokens": 10, "output_tokens": 5, **values}
    return UsageRecord(attempt_id=attempt_id, outcome=outcome, cause=cause, **counts)  # type: ignore[arg-type]


def progress(attempt_id: str, *, prompt: int = 10, cached: int = 0, computed: int = 10, output: int = 1) -> Progress:
    return Progress(attempt_id, prompt, cached, computed, output)


def of_kind(actions: Iterable[Action], kind: type[Kind]) -> list[Kind]:
    """The actions of one kind, in order."""
    return [action for action in actions if isinstance(action, kind)]


def kinds(actions: Iterable[Action]) -> list[str]:
    """The names of the actions, in order."""
    return [type(action).__name__ for action in actions]


def assert_idle(core: Scheduler) -> None:
    """Nothing is open, nothing is owed, and every worker's credit is exactly 0."""
    assert (0, 0, 0) == (core.num_open, core.num_running, len(core.queue))
    assert dict.fromkeys(core.cluster.workers, (0,) * 5) == {
        worker_id: tuple(core.cluster.credit(worker_id)) for worker_id in core.cluster.workers
    }
