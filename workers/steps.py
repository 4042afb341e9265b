"""One engine step, as its engine tells it to the worker around it. It never leaves the worker's process.

Made by the files of ``workers.engines``, read by ``workers.windows`` and below. It must never know a meter or a cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepRecord:
    """One engine step. Arrays have shape (num_sequences,) and one row per scheduled sequence.

    ``payers[i]`` is the attempt that pays for row i, None = overhead (warm-up, dummy). A sequence that was scheduled
    with both prompt and output tokens does not exist: rows are either prefill or decode.
    """

    step: int
    started_s: float
    ended_s: float
    payers: tuple[str | None, ...]
    prefill_tokens: NDArray[np.int64]
    """Prompt tokens computed for the first time."""
    decode_tokens: NDArray[np.int64]
    """Output positions computed (drafts included)."""
    context_tokens: NDArray[np.int64]
    """Tokens of KV read: already computed before this step."""
    recomputed_tokens: NDArray[np.int64]
    """Tokens computed again after a preemption: paid by overhead, in the row of their sequence."""
