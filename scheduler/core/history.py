"""What became of each request: a bounded memory, told to whoever asks for one by its id.

Filled by ``scheduler.core.scheduler``. It must never know a prompt, an answer or a key; times in what it tells are
seconds since the request arrived.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from scheduler.core.actions import Rejection
from scheduler.core.attempts import Attempt, Entry
from scheduler.core.request import Band

MAX_REQUESTS = 10_000
"""Requests that are over and still remembered; those that are open come on top."""


class History:
    """Open requests, and the last ones that ended."""

    def __init__(self, *, max_requests: int = MAX_REQUESTS) -> None:
        self._max_requests = max_requests
        self._over: OrderedDict[str, Entry] = OrderedDict()

    def add(self, entry: Entry) -> None:
        """The request is over."""
        assert entry.end is not None, f"{entry.request.request_id} is still open"
        self._over[entry.request.request_id] = entry
        while len(self._over) > self._max_requests:
            self._over.popitem(last=False)

    def get(self, request_id: str) -> Entry | None:
        """None: never seen, still open, or too long ago."""
        return self._over.get(request_id)

    def __len__(self) -> int:
        return len(self._over)


def state_of(entry: Entry) -> str:
    """waiting, running, finished or rejected."""
    if entry.end is not None:
        return "rejected" if entry.end.outcome == "rejected" else "finished"
    return "waiting" if entry.attempt is None else "running"


Decisions = Callable[[str], dict[str, Any] | None]
"""The decision of an attempt, or the last one of a request that waits, by id."""


def story_of(entry: Entry, *, decision: Decisions) -> dict[str, Any]:
    """The life of a request as plain values, ready for JSON."""
    since_s = entry.request.arrival_s
    return {
        **_asked(entry),
        "state": state_of(entry),
        "outcome": None if entry.end is None else entry.end.outcome,
        "cause": "" if entry.end is None else entry.end.cause,
        "ended_s": None if entry.end is None else entry.end.at_s - since_s,
        "deferral": _postponed(entry),
        "waits": [
            {
                "from_s": wait.from_s - since_s,
                "to_s": None if wait.to_s is None else wait.to_s - since_s,
                "cause": wait.cause,
            }
            for wait in entry.waits
        ],
        "attempts": [
            {**_try_of(attempt, since_s), "decision": decision(attempt.attempt_id)} for attempt in entry.tries
        ],
        "decision": decision(entry.request.request_id),
        "budgets": [] if entry.hold is None else entry.hold.told(),
    }


def _postponed(entry: Entry) -> dict[str, Any] | None:
    """For which hour it waits or waited, and what that saves; None where it never did."""
    postponed, since_s = entry.postponed, entry.request.arrival_s
    if postponed is None:
        return None
    return {
        "until_s": postponed.until_s - since_s,
        "latest_start_s": postponed.latest_s - since_s,
        "nano_per_joule_at_once": postponed.now_nano_per_joule,
        "nano_per_joule_then": postponed.then_nano_per_joule,
    }


def what_if_of(
    entry: Entry, *, rejection: Rejection | None, num_ahead: int, decision: dict[str, Any]
) -> dict[str, Any]:
    """What would become of a request: refused, started or queued behind so many."""
    is_placed = any(worker["score"] is not None for worker in decision["workers"]) and not num_ahead
    refusal = None
    if rejection is not None:
        refusal = {"reason": rejection.reason, "status": rejection.status, "message": rejection.message}
    return {
        **_asked(entry),
        "state": "what_if",
        "verdict": "refused" if refusal else "started" if is_placed else "queued",
        "rejection": refusal,
        "num_ahead": num_ahead,
        "decision": decision,
    }


def _asked(entry: Entry) -> dict[str, Any]:
    """What was asked, and granted."""
    request = entry.request
    return {
        "request_id": request.request_id,
        "tenant": request.tenant,
        "project": request.project,
        "key_id": request.key_id,
        "task": request.task,
        "model": request.model,
        "band": Band(request.band).name.lower(),
        "data_class": request.data_class.name.lower(),
        "zones": None if request.zones is None else sorted(request.zones),
        "arrival_unix_s": request.arrival_unix_s,
        "prompt_tokens_bound": request.prompt_tokens_bound,
        "max_output_tokens": request.max_output_tokens,
        "granted_output_tokens": entry.granted_tokens,
    }


def _try_of(attempt: Attempt, since_s: float) -> dict[str, Any]:
    settled = attempt.settled
    return {
        "attempt_id": attempt.attempt_id,
        "worker_id": attempt.worker.worker_id,
        "zone": attempt.zone,
        "started_s": attempt.started_s - since_s,
        "first_byte_s": None if attempt.first_byte_s is None else attempt.first_byte_s - since_s,
        "ended_s": None if attempt.ended_s is None else attempt.ended_s - since_s,
        "outcome": None if attempt.outcome is None else attempt.outcome.value,
        "cause": attempt.cause,
        "payer": None if settled is None else settled.payer.value,
        "tokens": {
            "input": settled.tokens.input_tokens if settled else attempt.prompt_tokens,
            "cached": settled.tokens.cached_tokens if settled else attempt.cached_tokens,
            "output": settled.tokens.output_tokens if settled else attempt.output_tokens,
            "is_settled": settled is not None,
        },
    }
