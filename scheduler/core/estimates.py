"""What the core learns while it runs: how long outputs are, how tight prompt bounds are, how fast the queue drains.

Called by ``scheduler.core.scheduler``. Pure and deterministic: time is an argument. It must never know a worker.
"""

from __future__ import annotations

import math

from scheduler.core.request import Request

BUCKET_RATIO = 1.25
NUM_BUCKETS = 64
"""Buckets of output lengths, each 1.25 × the one before: 1 to about 1.3 million tokens, error below 25 %."""

PRIOR_OUTPUT_TOKENS = 256
MIN_SAMPLES = 20
HALF_LIFE_SAMPLES = 1_000
"""After so many samples the weights of all earlier ones are halved."""


class OutputQuantile:
    """A running quantile of output lengths in tokens; forgets slowly, costs the same for ever."""

    def __init__(self, *, quantile_ratio: float = 0.75) -> None:
        assert 0 < quantile_ratio < 1, quantile_ratio
        self._quantile_ratio = quantile_ratio
        self._weights = [0.0] * NUM_BUCKETS
        self._num_samples = 0
        self.tokens = PRIOR_OUTPUT_TOKENS

    @property
    def is_learned(self) -> bool:
        """Whether enough sequences have ended for it to say anything."""
        return self._num_samples >= MIN_SAMPLES

    def add(self, output_tokens: int) -> None:
        """One sequence ended by itself with so many tokens."""
        bucket = min(max(math.ceil(math.log(max(output_tokens, 1), BUCKET_RATIO) - 1e-9), 0), NUM_BUCKETS - 1)
        self._weights[bucket] += 1.0
        self._num_samples += 1
        if self._num_samples % HALF_LIFE_SAMPLES == 0:
            self._weights = [weight / 2 for weight in self._weights]
        if self.is_learned:
            self.tokens = self._quantile_tokens()

    def _quantile_tokens(self) -> int:
        """Upper edge of the bucket in which the quantile lies."""
        wanted = self._quantile_ratio * sum(self._weights)
        seen = 0.0
        for bucket, weight in enumerate(self._weights):
            seen += weight
            if seen >= wanted:
                return math.ceil(BUCKET_RATIO**bucket - 1e-9)
        return math.ceil(BUCKET_RATIO ** (NUM_BUCKETS - 1))


PRIOR_TOKENS_PER_BYTE = 0.3
"""Of a body, until the model's own ratio is learned: English has about 4 bytes a token, and JSON some more."""


MEAN_SAMPLES = 500
MEAN_PROMPT_TOKENS = 1_000_000
"""Over so many outputs and prompt tokens a mean is taken."""


class ModelEstimates:
    """Of one model: outputs to expect, and how many tokens a byte of a body becomes."""

    def __init__(self) -> None:
        self.output = OutputQuantile()
        self.mean_output_tokens = float(PRIOR_OUTPUT_TOKENS)
        """Of a sequence that ended by itself."""
        self.cached_ratio = 0.0
        """Of prompt tokens, those that a prefix cache had."""
        self._num_outputs = self._num_prompt_tokens = 0
        self._tokens_per_byte = PRIOR_TOKENS_PER_BYTE

    def prompt_tokens(self, request: Request) -> int:
        """Expected prompt, never above the bound, at least one token; of a body of unknown size the bound."""
        expected = math.ceil(request.body_bytes * self._tokens_per_byte)
        return max(min(expected or request.prompt_tokens_bound, request.prompt_tokens_bound), 1)

    def observe_output(self, output_tokens: int) -> None:
        """A sequence ended by itself with so many tokens."""
        self.output.add(output_tokens)
        self._num_outputs = min(self._num_outputs + 1, MEAN_SAMPLES)
        self.mean_output_tokens += (output_tokens - self.mean_output_tokens) / self._num_outputs

    def observe_cached(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Of a prompt so many tokens were not computed; long prompts count for more."""
        self._num_prompt_tokens += prompt_tokens
        self.cached_ratio += (cached_tokens - self.cached_ratio * prompt_tokens) / max(self._num_prompt_tokens, 1)
        self._num_prompt_tokens = min(self._num_prompt_tokens, MEAN_PROMPT_TOKENS)

    def output_tokens(self, request: Request) -> int:
        """Expected output of all its sequences, each capped by the request's own limit."""
        return min(self.output.tokens, request.max_output_tokens) * request.num_sequences

    def observe_prompt(self, request: Request, prompt_tokens: int) -> None:
        """The engine counted the prompt: the ratio moves a twentieth of the way, upwards at once by half."""
        if not request.body_bytes:
            return
        ratio = prompt_tokens / request.body_bytes
        gain = 0.5 if ratio > self._tokens_per_byte else 0.05
        self._tokens_per_byte += gain * (ratio - self._tokens_per_byte)


class DrainRate:
    """Requests a second that leave the queue for a worker, measured with exponential forgetting."""

    def __init__(self, *, memory_s: float = 30.0) -> None:
        self._memory_s = memory_s
        self._weight = 0.0
        self._at_s: float | None = None
        self._since_s = 0.0

    def add(self, now_s: float, num: int = 1) -> None:
        if self._at_s is None:
            self._since_s = now_s
        self._weight = self._decayed(now_s) + num
        self._at_s = now_s

    def per_s(self, now_s: float) -> float:
        """0 where nothing ever left. While younger than its memory, over its age alone (at least one second)."""
        if self._at_s is None:
            return 0.0
        age_s = max(now_s - self._since_s, 1.0)
        return self._decayed(now_s) / (self._memory_s * (1 - math.exp(-age_s / self._memory_s)))

    def _decayed(self, now_s: float) -> float:
        if self._at_s is None:
            return 0.0
        return self._weight * math.exp(-max(now_s - self._at_s, 0.0) / self._memory_s)


PROMPTS_MEMORY_S = 10.0
MAX_PROMPTS_RATIO = 0.9
"""Of an engine's time, prompts count for so much at most: no pace is predicted from more."""


class PromptRate(DrainRate):
    """Prompt tokens a second that a worker is sent to compute. Where they keep coming, they come between its tokens."""

    def __init__(self) -> None:
        super().__init__(memory_s=PROMPTS_MEMORY_S)

    def stretch(self, prefill_s: float, now_s: float) -> float:
        """A step with its part of such prompts, in steps without; 1 where none came. ``prefill_s`` is of one token."""
        return 1.0 / (1.0 - min(self.per_s(now_s) * prefill_s, MAX_PROMPTS_RATIO))


MAX_RETRY_AFTER_S = 120
UNKNOWN_RETRY_AFTER_S = 10


def retry_after_s(num_ahead: int, drain_per_s: float) -> int:
    """Whole seconds, 1 to 120, until ``num_ahead`` requests have left at this rate; 10 where no rate is known."""
    if drain_per_s <= 0:
        return UNKNOWN_RETRY_AFTER_S if num_ahead else 1
    return max(math.ceil(min(num_ahead / drain_per_s, MAX_RETRY_AFTER_S)), 1)
