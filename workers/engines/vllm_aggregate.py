"""Steps without a hook: made up from the outputs that vLLM's engine hands to this process. Grade B.

Called by ``workers.engines.vllm`` where the step hook cannot run. It must never know vLLM.

Outputs that were made together are a step; it began when the step before ended, or when the engine had nothing to do
until then. A prompt's prefill counts in the step of its first output, whatever steps it was really computed in;
sequences that end without an output show in no step. So windows close and every attempt is charged, but no sequence
is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workers.engines.vllm_sequences import Sequence
from workers.steps import StepRecord


class AggregateSteps:
    """Collects outputs by the moment they were made; a later moment completes the step before."""

    def __init__(self, *, on_step: Callable[[StepRecord], None]) -> None:
        self._on_step = on_step
        self._num_steps = 0
        self._ended_s = float("-inf")
        self._busy_since_s = float("inf")
        self._made_s = 0.0
        self._rows: list[tuple[Sequence, int]] = []

    def opened(self, now_s: float) -> None:
        """A request entered the engine; if it was idle, the next step began now."""
        self._busy_since_s = min(self._busy_since_s, now_s)

    def outputs(self, made_s: float, rows: list[tuple[Sequence, int]]) -> None:
        """Outputs made at one moment: (sequence, new tokens). vLLM hands a large step on in several parts."""
        if made_s != self._made_s:
            self.flush(is_idle=False)
        self._made_s = made_s
        self._rows += [(sequence, tokens) for sequence, tokens in rows if tokens or sequence.has_final_output]

    def flush(self, *, is_idle: bool) -> None:
        """Reports what was collected. ``is_idle``: nothing is left in the engine after it."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        made_s = self._made_s
        started_s = max(self._ended_s, min(self._busy_since_s, made_s))
        self._ended_s = max(made_s, started_s)
        self._busy_since_s = float("inf") if is_idle else self._ended_s
        split = [self._computed(sequence, tokens) for sequence, tokens in rows]
        prefill, decode, context = np.array(split, dtype=np.int64).reshape(-1, 3).T
        self._num_steps += 1
        self._on_step(
            StepRecord(
                step=self._num_steps,
                started_s=started_s,
                ended_s=self._ended_s,
                payers=tuple(sequence.payer for sequence, _ in rows),
                prefill_tokens=prefill,
                decode_tokens=decode,
                context_tokens=context,
                recomputed_tokens=np.zeros(len(rows), dtype=np.int64),
            )
        )

    @staticmethod
    def _computed(sequence: Sequence, tokens: int) -> tuple[int, int, int]:
        """(prefill, decode, context): the first output stands for the whole prompt, each further one for a position."""
        context = sequence.position
        if not sequence.has_run:
            sequence.starts_at(sequence.cached_tokens)
            context = sequence.position
            prefill, decode, _ = sequence.computed(max(sequence.prompt_tokens - context, 0) + max(tokens - 1, 0))
            return prefill, decode, context
        prefill, decode, _ = sequence.computed(tokens)
        return prefill, decode, context
