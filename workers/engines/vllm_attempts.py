"""Attempts on vLLM and their engine requests: who pays for what, and when an attempt's last record is here.

Called by ``workers.engines.vllm``; both sides of the count (``vllm_outputs``, ``vllm_feed``) report to it. It must
never know vLLM, a socket or a window.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.engines.vllm_aggregate import AggregateSteps
from workers.engines.vllm_ids import CALIBRATION_PREFIX, CURRENT_ATTEMPT, attempt_of, prompt_number
from workers.engines.vllm_sequences import Sequence
from workers.types import Progress, SequenceUsage

LOST_AFTER_S = 5.0
"""How long a closing record may be missing after the request ended before it is declared lost."""

FLUSH_S = 0.02
"""How long parts of one step's outputs may follow each other."""

MAX_FORGOTTEN = 4096
"""Engine requests of ended attempts that are still told about; beyond it the oldest is forgotten."""


@dataclass(slots=True, eq=False)
class _Attempt:
    """What ran for one attempt."""

    salt: bytes = b""
    sequences: list[Sequence] = field(default_factory=list)
    prompts: dict[str, int] = field(default_factory=dict)
    """Index by external id: children of n > 1 share it."""
    is_ended: bool = False
    told: tuple[int, int, int, int] = (0, 0, 0, 0)
    timer: asyncio.TimerHandle | None = None


class Attempts:
    """The attempts that are open, and all engine requests that are still told about."""

    def __init__(
        self,
        on_closed: Callable[[str, tuple[SequenceUsage, ...]], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_closed = on_closed
        self._clock = clock
        self._attempts: dict[str, _Attempt] = {}
        self._sequences: dict[str, Sequence] = {}
        self._changed: set[str] = set()
        self.is_engine_dead = False
        self._aggregate: AggregateSteps | None = None
        self._is_flush_due = False

    # -- an attempt's life

    def open(self, attempt_id: str, salt: bytes) -> None:
        self._attempts[attempt_id] = _Attempt(salt=salt)

    def asgi_ended(self, attempt_id: str) -> None:
        """``on_closed`` follows: at once if both sides are complete, else when they are, or in 5 s."""
        attempt = self._attempts.setdefault(attempt_id, _Attempt())
        attempt.is_ended = True
        if not self.is_engine_dead and not all(sequence.is_closed for sequence in attempt.sequences):
            attempt.timer = asyncio.get_running_loop().call_later(LOST_AFTER_S, self._close, attempt_id)
        else:
            self._close(attempt_id)

    def engine_died(self) -> None:
        """Nothing will be told any more: attempts close with what is known."""
        self.is_engine_dead = True
        for attempt_id, attempt in list(self._attempts.items()):
            if attempt.is_ended:
                self._close(attempt_id)

    def use_aggregate(self, aggregate: AggregateSteps) -> None:
        """No hook tells steps (any more): they are made up from outputs, and no sequence is exact."""
        self._aggregate = aggregate
        for sequence in list(self._sequences.values()):
            sequence.is_exact = False
            if sequence.is_ended_here:
                self.ended_here(sequence)
            else:
                aggregate.opened(self._clock())

    def is_complete(self, attempt_id: str) -> bool:
        """Whether every engine request of the attempt came to an end here: its last output, a stop string, an abort."""
        attempt = self._attempts.get(attempt_id)
        return attempt is None or all(sequence.is_ended_here for sequence in attempt.sequences)

    def progress(self) -> list[Progress]:
        """Tokens so far of attempts that moved since the last call."""
        moved = []
        changed, self._changed = self._changed, set()
        for attempt_id in changed:
            attempt = self._attempts.get(attempt_id)
            if attempt is None:
                continue
            prompts = {sequence.prompt_index: sequence for sequence in reversed(attempt.sequences)}
            now = (
                sum(sequence.prompt_tokens for sequence in prompts.values()),
                sum(sequence.cached_tokens for sequence in prompts.values()),
                sum(sequence.computed_prompt_tokens for sequence in attempt.sequences),
                sum(sequence.generated_tokens for sequence in attempt.sequences),
            )
            if now != attempt.told and (now[2] or now[3]):
                attempt.told = now
                moved.append(Progress(attempt_id, *now))
        return moved

    @property
    def num_open_sequences(self) -> int:
        """Engine requests that the engine has not let go of, whoever pays."""
        return sum(not (sequence.is_closed or sequence.is_forgotten) for sequence in self._sequences.values())

    # -- left side (``vllm_outputs``)

    def find(self, engine_id: str) -> Sequence | None:
        return self._sequences.get(engine_id)

    def opened(self, sequence: Sequence, *, external_id: str) -> None:
        """vLLM registered an engine request, in the context of the attempt that asked for it."""
        payer = CURRENT_ATTEMPT.get()
        if payer not in self._attempts:
            is_ours = external_id.startswith(CALIBRATION_PREFIX)
            payer = None if is_ours else attempt_of(external_id, self._attempts)
        sequence.payer = payer
        self._add(sequence)
        if self._aggregate is not None:
            sequence.is_exact = False
            self._aggregate.opened(self._clock())
        attempt = self._attempts.get(payer) if payer is not None else None
        if attempt is None:
            sequence.read = None  # nothing is stated of what nobody asked for
            return
        number = prompt_number(external_id)
        number = attempt.prompts.setdefault(external_id, len(attempt.prompts)) if number is None else number
        sequence.prompt_index, sequence.salt = number, attempt.salt
        attempt.sequences.append(sequence)

    def output_arrived(self, sequence: Sequence) -> None:
        if sequence.payer is not None:
            self._changed.add(sequence.payer)
        if sequence.is_ended_there:
            self._look(sequence)

    def ended_here(self, sequence: Sequence) -> None:
        """Without a hook this is the end: nobody will say what the scheduler did."""
        if self._aggregate is not None and not sequence.is_ended_there:
            sequence.is_ended_there = True
            sequence.stopped_output_tokens = sequence.generated_tokens
            self._look(sequence)

    def outputs_arrived(self, made_s: float, rows: list[tuple[Sequence, int]]) -> None:
        if self._aggregate is None:
            return
        self._aggregate.outputs(made_s, rows)
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._aggregate is not None:
            self._aggregate.flush(is_idle=not self.num_open_sequences)

    # -- right side (``vllm_feed``)

    def find_or_adopt(self, engine_id: str, prompt_tokens: int) -> Sequence:
        """The engine may run what nobody here asked for (vLLM's own warm-up): it has no payer."""
        sequence = self._sequences.get(engine_id)
        if sequence is None:
            sequence = Sequence(engine_id=engine_id, payer=None, prompt_tokens=prompt_tokens, is_forgotten=True)
            self._add(sequence)
        if sequence.payer is not None:
            self._changed.add(sequence.payer)
        return sequence

    def ended_there(self, sequence: Sequence) -> None:
        self._look(sequence)

    # -- endings

    def _add(self, sequence: Sequence) -> None:
        self._sequences[sequence.engine_id] = sequence
        while len(self._sequences) > MAX_FORGOTTEN:
            oldest = next((s for s in self._sequences.values() if s.is_forgotten), None)
            if oldest is None:
                break  # as many are really open: the worker bounds them
            del self._sequences[oldest.engine_id]

    def _look(self, sequence: Sequence) -> None:
        """Something ended: forget it if nobody waits, close its attempt if it was the last."""
        if not sequence.is_closed and not (sequence.is_ended_there and sequence.is_forgotten):
            return
        self._sequences.pop(sequence.engine_id, None)
        attempt = self._attempts.get(sequence.payer) if sequence.payer is not None else None
        if attempt is not None and attempt.is_ended and all(other.is_closed for other in attempt.sequences):
            assert sequence.payer is not None
            self._close(sequence.payer)

    def _close(self, attempt_id: str) -> None:
        """The closing records of an attempt; what is incomplete by now is declared lost."""
        attempt = self._attempts.pop(attempt_id, None)
        if attempt is None:
            return
        if attempt.timer is not None:
            attempt.timer.cancel()
        for sequence in attempt.sequences:
            sequence.seal(is_whole=False)
            if not sequence.is_closed:
                sequence.is_exact = False
                sequence.is_forgotten = True
        in_order = sorted(attempt.sequences, key=lambda sequence: (sequence.prompt_index, sequence.choice))
        self._on_closed(attempt_id, tuple(sequence.usage() for sequence in in_order))
