"""What is asked: one request as the core sees it, without its bytes.

Called by everybody above the core; made by the relay. It must never know a prompt, a clock or a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Band(IntEnum):
    """Strict priority bands; lower is earlier, as in vLLM, and the same number goes into the engine's own queue."""

    PRIORITY = 0
    DEFAULT = 1
    FLEX = 2

    @staticmethod
    def of_service_tier(tier: str | None) -> Band:
        """The band of an OpenAI ``service_tier``; ``auto`` and nothing are the default. Raises: ValueError."""
        if tier in (None, "auto", "default"):
            return Band.DEFAULT
        try:
            return {"priority": Band.PRIORITY, "flex": Band.FLEX}[str(tier)]
        except KeyError:
            raise ValueError(f"service_tier {tier!r} is none of auto, default, flex, priority") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request after authentication. Times are seconds of the caller's one monotonic clock."""

    request_id: str
    """``req-`` and 26 lowercase base32 characters; made here, never taken from a client."""
    tenant: str
    project: str = ""
    key_id: str = ""
    model: str
    band: int = Band.DEFAULT
    prompt_tokens_bound: int
    """No prompt of this body can have more tokens; the first step's count replaces it."""
    max_output_tokens: int
    """Of one sequence: the client's limit or the model's default."""
    num_sequences: int = 1
    """Sequences the engine will run: choices × prompts."""
    arrival_s: float
    deadline_s: float | None = None
    """Point in time after which nobody waits for the answer."""
    body_bytes: int = 0
    """What the request occupies while it waits."""
    task: str = ""

    def __post_init__(self) -> None:
        assert self.prompt_tokens_bound >= 0, self.prompt_tokens_bound
        assert self.max_output_tokens >= 1, self.max_output_tokens
        assert self.num_sequences >= 1, self.num_sequences
        assert self.body_bytes >= 0, self.body_bytes


def is_late(request: Request, now_s: float) -> bool:
    """Whether its deadline has passed."""
    return request.deadline_s is not None and request.deadline_s <= now_s
