"""What is asked: one request as the core sees it, without its bytes.

Called by everybody above the core; made by the relay. It must never know a prompt, a clock or a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


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


class DataClass(IntEnum):
    """How sensitive data is; higher needs more. A zone may hold data up to its own class."""

    GENERAL = 0
    IMPORTANT = 1
    CORE = 2


class Rates(NamedTuple):
    """Prices pinned at admission, in 10⁻⁹ currency units per million tokens of each class."""

    input_nano: int = 0
    cached_nano: int = 0
    output_nano: int = 0
    currency: str = "USD"

    def cost_nano(self, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Money in 10⁻⁹ units, rounded up once. ``input_tokens`` contain the cached ones, which cost their own rate."""
        uncached_tokens = input_tokens - cached_tokens
        parts = uncached_tokens * self.input_nano + cached_tokens * self.cached_nano + output_tokens * self.output_nano
        return -(-parts // 1_000_000)


class Slo(NamedTuple):
    """What a request is promised, and what a second beyond it is worth."""

    ttft_s: float = 1.0
    ttft_ratio: float = 3.0
    """The first token is on time within max(``ttft_s``, ``ttft_ratio`` × its unloaded time to first token)."""
    tpot_s: float = 0.05
    """Mean time of an output token after the first."""
    value_nano_per_s: float = 1e9
    """Money that a second of lateness of this request costs (10⁻⁹ units)."""


FREE = Rates()
DEFAULT_SLO = Slo()


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
    """Of one sequence: the client's limit or the model's default; 0 where nothing is generated (embeddings)."""
    num_sequences: int = 1
    """Sequences the engine will run: choices × prompts."""
    arrival_s: float
    arrival_unix_s: float = 0.0
    """Wall time of its admission: decides the budget windows that it belongs to."""
    deadline_s: float | None = None
    """Point in time after which nobody waits for the answer."""
    body_bytes: int = 0
    """What the request occupies while it waits."""
    task: str = ""
    """Many calls that share one total; empty = none."""
    data_class: DataClass = DataClass.GENERAL
    """Of its key, tightened by the request: only zones that may hold this class may run it."""
    zones: frozenset[str] | None = None
    """Where it may run; None = wherever its data class may."""
    rates: Rates = FREE
    slo: Slo = DEFAULT_SLO
    prefix_blocks: tuple[int, ...] = ()
    """Chained hashes of equal parts of its prompt, salted by tenant: an equal hash is an equal prefix up to there. The
    parts together are the whole prompt, so that k of n known blocks mean k/n of the prompt's tokens."""
    is_counting: bool = False
    """Asks an engine only how many tokens a prompt has: no hold, no charge, no turn in the fair order."""

    def __post_init__(self) -> None:
        assert self.prompt_tokens_bound >= 0, self.prompt_tokens_bound
        assert self.max_output_tokens >= 0, self.max_output_tokens
        assert self.num_sequences >= 1, self.num_sequences
        assert self.body_bytes >= 0, self.body_bytes


def is_late(request: Request, now_s: float) -> bool:
    """Whether its deadline has passed."""
    return request.deadline_s is not None and request.deadline_s <= now_s
