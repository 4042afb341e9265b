"""vLLM's engine requests as both sides see them: outputs that reached this process, and what the scheduler computed.
Beside the counts: bytes and digest of what was generated, taken once, when the text is whole.

Called by ``workers.engines.vllm_outputs`` (left side), ``workers.engines.vllm_feed`` (right side) and
``workers.engines.vllm_attempts``. It must never know vLLM or a socket, and never keep a token's id or a text.

Nothing of one side is computed from the other, so that the token identity (design §5) can fail when either is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from workers.digests import NOTHING, Stated, stated_of
from workers.types import SequenceUsage


class Generated(NamedTuple):
    """What an engine request generated."""

    text: str
    reasoning_tokens: int


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """The one mutable record of an engine request."""

    engine_id: str
    payer: str | None = None
    """Attempt that pays; None = nobody (calibration)."""
    prompt_index: int = 0
    choice: int = 0
    """Which of the answers to its prompt."""
    prompt_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    salt: bytes = b""
    read: Callable[[bool], Generated] | None = None
    """Reads what it generated: all of it, or (False) what of it has left. None: it generates nothing, or was sealed."""
    stated: Stated = NOTHING
    reasoning_tokens: int = 0

    # Left: the engine's outputs, as they arrived here.
    cached_tokens: int = 0
    generated_tokens: int = 0
    late_tokens: int = 0
    """Outputs that arrived after the sequence had ended here (aborted, stop string)."""
    is_prefill_over: bool = False
    has_final_output: bool = False
    finish_reason: str = ""
    is_ended_here: bool = False

    # Right: the engine's scheduler.
    position: int = 0
    """Positions whose KV exists after the last step told."""
    high_water: int = 0
    """Positions computed or cached at some time; below it a computation is a repetition."""
    scheduled_tokens: int = 0
    recomputed_tokens: int = 0
    rejected_tokens: int = 0
    dropped_tokens: int = 0
    """Scheduled, and thrown away by the scheduler because the request had ended meanwhile."""
    found_tokens: int = 0
    """Cached after a preemption: positions of the prompt that somebody else computed since."""
    has_run: bool = False
    is_exact: bool = True
    is_ended_there: bool = False
    is_forgotten: bool = False
    """Nobody waits for its end: adopted, or declared lost."""
    stopped_output_tokens: int | None = None
    """Outputs that the engine had put out when it was stopped from outside; None = it ended by itself."""
    stopped_computed: int | None = None

    @property
    def is_closed(self) -> bool:
        """Both sides are complete: the scheduler let go, and every output it had put out is here."""
        if not self.is_ended_there:
            return False
        if self.stopped_output_tokens is None:
            return self.has_final_output
        return self.generated_tokens + self.late_tokens >= self.stopped_output_tokens

    @property
    def computed_prompt_tokens(self) -> int:
        """Prompt − cached once the prefill ended; before that what the engine says it had computed when it stopped."""
        if self.is_prefill_over:
            return max(self.prompt_tokens - self.cached_tokens - self.found_tokens, 0)
        if not self.has_run:
            return 0
        if not self.is_ended_there:
            return max(min(self.position, self.prompt_tokens) - self.cached_tokens, 0)
        computed = self.high_water if self.stopped_computed is None else self.stopped_computed
        return max(computed - self.cached_tokens - self.found_tokens, 0)

    @property
    def overrun_tokens(self) -> int:
        """What the scheduler dropped, and the positions behind outputs that came too late."""
        put_out = self.generated_tokens + self.late_tokens
        return self.dropped_tokens + max(put_out - 1, 0) - max(self.generated_tokens - 1, 0)

    def computed(self, num_tokens: int) -> tuple[int, int, int]:
        """The scheduler computed ``num_tokens`` more: (prefill, decode, recomputed) of them."""
        start, end = self.position, self.position + num_tokens
        fresh = max(start, self.high_water)
        recomputed = max(min(end, self.high_water) - start, 0)
        prefill = max(min(end, self.prompt_tokens) - fresh, 0)
        self.position = end
        self.high_water = max(self.high_water, end)
        self.scheduled_tokens += num_tokens
        self.recomputed_tokens += recomputed
        return prefill, num_tokens - recomputed - prefill, recomputed

    def rejected(self, num_tokens: int) -> None:
        """Of the tokens computed last, so many drafts were rejected: their positions will be computed anew."""
        self.rejected_tokens += num_tokens
        self.position -= num_tokens
        if self.high_water > self.position:
            self.high_water = max(self.high_water - num_tokens, self.position)

    def dropped(self, num_tokens: int) -> None:
        """Of the tokens computed last, so many were thrown away: the sequence had ended meanwhile."""
        self.dropped_tokens += num_tokens
        self.position -= num_tokens
        self.high_water -= num_tokens

    def starts_at(self, position: int) -> None:
        """It joins a step: for the first time, after a pause, or again after a preemption."""
        if not self.has_run:
            self.has_run = True
            self.position = self.high_water = position
            if not self.is_prefill_over:
                self.cached_tokens = position
            return
        if position > self.high_water:
            self.found_tokens += position - self.high_water if self.is_exact else 0
            self.high_water = position
        self.position = position

    def seal(self, *, is_whole: bool) -> None:
        """No more text will leave: what is to be stated of it is taken, once, and the text is let go of."""
        if self.read is None:
            return
        generated, self.read = self.read(is_whole), None
        self.stated = stated_of(self.salt, generated.text.encode("utf-8", "surrogatepass"))
        self.reasoning_tokens = min(generated.reasoning_tokens, self.generated_tokens)

    def usage(self) -> SequenceUsage:
        """Its closing record; not exact where a side is incomplete."""
        return SequenceUsage(
            engine_request_id=self.engine_id,
            prompt_index=self.prompt_index,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens + self.found_tokens,
            computed_prompt_tokens=self.computed_prompt_tokens,
            generated_tokens=self.generated_tokens,
            scheduled_tokens=self.scheduled_tokens,
            recomputed_tokens=self.recomputed_tokens,
            rejected_tokens=self.rejected_tokens,
            overrun_tokens=self.overrun_tokens,
            reasoning_tokens=self.reasoning_tokens,
            image_tokens=self.image_tokens,
            audio_tokens=self.audio_tokens,
            output_bytes=self.stated.num_bytes,
            output_digest=self.stated.digest,
            finish_reason=self.finish_reason,
            exact=self.is_exact and self.is_closed,
        )
