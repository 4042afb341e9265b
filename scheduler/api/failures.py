"""Why there is no answer, in the client's terms: the core's refusals and an attempt's failure as OpenAI's errors.

Called by ``scheduler.api.openai``. It must never know a body; the word in the answer is the one that log and metrics
have.
"""

from __future__ import annotations

from scheduler.api.errors import ApiError
from scheduler.core.actions import Rejection, Shortage
from scheduler.core.attempts import is_workers_fault
from scheduler.streams import End

LOST_RETRY_AFTER_S = 1
QUOTA = "insufficient_quota"

PARAMS = {"model_not_found": "model"}


def failure_of(end: End) -> ApiError:
    """An End without a (whole) answer as an error."""
    if end.rejection is not None:
        return refusal_of(end.rejection)
    cause = end.cause.partition(":")[0] or "engine_error"
    if cause == "deadline_exceeded":
        return ApiError(504, "The deadline passed before the answer was complete.", code=cause, should_retry=False)
    if cause == "shutting_down":
        return ApiError(503, "The service is shutting down.", code=cause, retry_after_s=LOST_RETRY_AFTER_S)
    if is_workers_fault(cause):
        message = "The worker that computed this answer was lost."
        return ApiError(503, message, code=cause, retry_after_s=LOST_RETRY_AFTER_S)
    return ApiError(500, "The engine failed on this request.", code=cause)


def refusal_of(rejection: Rejection) -> ApiError:
    """What the core refused, with the budget that refused it where one did."""
    shortage = rejection.shortage
    should_retry = rejection.should_retry
    if should_retry is None and (rejection.reason == QUOTA or rejection.reason.startswith("deadline")):
        should_retry = False  # waiting helps neither
    return ApiError(
        rejection.status,
        rejection.message,
        code=rejection.reason,
        param=PARAMS.get(rejection.reason),
        retry_after_s=rejection.retry_after_s,
        should_retry=should_retry,
        kind=None if shortage is None else _kind_of(rejection.reason, shortage),
        budget=None if shortage is None else _budget_of(shortage),
    )


def _kind_of(reason: str, shortage: Shortage) -> str | None:
    """OpenAI's ``type`` of a 429: the quota, or what was counted. None: the one of its status."""
    if reason == QUOTA:
        return QUOTA
    if shortage.measure.endswith("tokens"):
        return "tokens"
    return "requests" if shortage.measure == "requests" else None


def _budget_of(shortage: Shortage) -> dict[str, object]:
    """Which budget, as figures: a program can decide by them. Units are those of the measure's name."""
    return {
        "level": shortage.level,
        "measure": shortage.measure,
        "window": shortage.window,
        "limit": shortage.limit,
        "left": shortage.left,
        "needed": shortage.needed,
        "resets_unix_s": shortage.resets_unix_s,
    }
