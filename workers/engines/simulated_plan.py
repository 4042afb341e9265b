"""The values of simulated batching: a sequence, a chunk of its prompt, the steps in flight, and what ended with them.

Called by ``workers.engines.simulated_core``, which owns and changes them, and by its drivers, which read them.
It must never know how steps are chosen, what they cost, HTTP or text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from workers.digests import NOTHING, Stated
from workers.steps import StepRecord
from workers.types import SequenceUsage


class SequenceState(Enum):
    WAITING = auto()
    PREFILLING = auto()
    DECODING = auto()
    CLOSED = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class SimulatedSequence:
    """The one mutable record of a sequence; the core owns everything below the blank line."""

    sequence_id: str
    payer: str | None
    prompt_tokens: int
    target_tokens: int
    """Output tokens after which it ends by itself; 0: with its prompt, as embeddings do."""
    priority: int = 0
    """Lower is earlier."""
    prompt_index: int = 0
    block_hashes: tuple[int, ...] = ()
    """One per full block of the prompt, each covering everything before it."""
    finish_reason: str = "length"

    state: SequenceState = SequenceState.WAITING
    arrival: int = 0
    num_computed: int = 0
    high_water: int = 0
    """Positions computed at some time; below it a computation is a repetition."""
    num_generated: int = 0
    cached_tokens: int = 0
    computed_prompt_tokens: int = 0
    scheduled_tokens: int = 0
    recomputed_tokens: int = 0
    num_preemptions: int = 0
    num_shared_blocks: int = 0
    """Blocks at its start that the cache holds for it."""
    is_aborted: bool = False

    @property
    def num_known(self) -> int:
        """Tokens whose KV is needed before the next output: the prompt and all outputs so far."""
        return self.prompt_tokens + self.num_generated

    @property
    def is_closed(self) -> bool:
        return self.state is SequenceState.CLOSED

    def usage(self, stated: Stated = NOTHING, *, exact: bool = True) -> SequenceUsage:
        """Its closing record, with what is stated of its text; not exact where it is given up before its end."""
        return SequenceUsage(
            engine_request_id=self.sequence_id,
            prompt_index=self.prompt_index,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            computed_prompt_tokens=self.computed_prompt_tokens,
            generated_tokens=self.num_generated,
            scheduled_tokens=self.scheduled_tokens,
            recomputed_tokens=self.recomputed_tokens,
            output_bytes=stated.num_bytes,
            output_digest=stated.digest,
            finish_reason="abort" if self.is_aborted else self.finish_reason,
            exact=exact,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prefill (or recomputation) of ``num_tokens`` positions from ``start`` on."""

    sequence: SimulatedSequence
    start: int
    num_tokens: int
    num_recomputed: int
    num_decode: int
    """1 where the chunk ends with an output token that was known before a preemption and never computed."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """Steps in flight: ``num_steps`` of the same batch, each with one token more of context."""

    step: int
    started_s: float
    ended_s: float
    num_steps: int
    joules: float
    chunks: list[Chunk]
    decoding: list[SimulatedSequence]
    payers: tuple[str | None, ...]
    context_tokens: NDArray[np.int64]
    """Of the decoding sequences, in the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What ended with a plan."""

    plan: Plan
    started_decoding: list[SimulatedSequence]
    """Got their first token (or the next one after a preemption) from a chunk of this step."""
    closed: list[SimulatedSequence]

    def records(self) -> list[StepRecord]:
        """One record per step, as the hook of a real engine would report it."""
        plan = self.plan
        chunks, num_decoding = plan.chunks, len(plan.decoding)
        if chunks:
            none = np.zeros(num_decoding, dtype=np.int64)

            def column(of_chunks: list[int], of_decoding: NDArray[np.int64]) -> NDArray[np.int64]:
                return np.concatenate((np.array(of_chunks, dtype=np.int64), of_decoding))

            new = [chunk.num_tokens - chunk.num_recomputed - chunk.num_decode for chunk in chunks]
            columns = (
                column(new, none),
                column([chunk.num_decode for chunk in chunks], none + 1),
                column([chunk.start for chunk in chunks], plan.context_tokens),
                column([chunk.num_recomputed for chunk in chunks], none),
            )
        else:
            none = _constant(0, num_decoding)
            columns = (none, _constant(1, num_decoding), plan.context_tokens, none)
        prefill, decode, context, recomputed = columns
        step_s = (plan.ended_s - plan.started_s) / plan.num_steps
        return [
            StepRecord(
                step=plan.step + index,
                started_s=plan.started_s + index * step_s,
                ended_s=plan.ended_s if index == plan.num_steps - 1 else plan.started_s + (index + 1) * step_s,
                payers=plan.payers,
                prefill_tokens=prefill,
                decode_tokens=decode,
                context_tokens=context + index if index else context,
                recomputed_tokens=recomputed,
            )
            for index in range(plan.num_steps)
        ]


_CONSTANTS: dict[tuple[int, int], NDArray[np.int64]] = {}


def _constant(value: int, size: int) -> NDArray[np.int64]:
    """A shared, read-only column: most steps are pure decodes of a batch seen before. At most 2 × max_sequences."""
    column = _CONSTANTS.get((value, size))
    if column is None:
        column = np.full(size, value, dtype=np.int64)
        column.flags.writeable = False
        _CONSTANTS[value, size] = column
    return column
