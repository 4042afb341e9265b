"""The right side of the token identity: the step hook's messages, turned into step records and scheduler counts.

Called by ``workers.engines.vllm``, which owns the socket. It must never know vLLM or an attempt's bytes.

While the batch stays the same, only a counter moves: positions of the members are written back when something changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from workers.engines.vllm_messages import StepMessage, decode
from workers.engines.vllm_sequences import Sequence
from workers.steps import StepRecord

Column: TypeAlias = NDArray[np.int64]
Columns: TypeAlias = tuple[tuple[str | None, ...], Column, Column, Column, Column]
"""Payers, prefill, decode, context and recomputed tokens: a row a sequence."""


class FeedSink(Protocol):
    """Who knows engine requests by their id."""

    def find_or_adopt(self, engine_id: str, prompt_tokens: int) -> Sequence: ...

    def ended_there(self, sequence: Sequence) -> None: ...


class StepFeed:
    """Follows one hook. ``take`` one message after the other."""

    def __init__(
        self,
        sink: FeedSink,
        *,
        on_step: Callable[[StepRecord], None],
        on_dropped: Callable[[int], None],
    ) -> None:
        self._sink = sink
        self._on_step = on_step
        self._on_dropped = on_dropped
        self._next_number = 0
        self._by_slot: dict[int, Sequence] = {}
        self._members: dict[int, Sequence] = {}
        """Rows of the last step by slot, in its order."""
        self._run_steps = 0
        """Steps since the members' positions were written back."""
        self._context: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._payers: tuple[str | None, ...] = ()
        self._done_s = float("-inf")
        self._num_steps = 0
        self.num_waiting = 0
        self.num_running = 0
        self.kv_used_ratio = 0.0

    def take(self, encoded: bytes) -> None:
        """One message. Raises: msgspec.DecodeError where it is none."""
        message = decode(encoded)
        num_missed = message.number - self._next_number
        self._next_number = message.number + 1
        if num_missed > 0:
            self._missed(num_missed)
        self.num_running, self.num_waiting = message.num_running, message.num_waiting
        self.kv_used_ratio = message.kv_used_ratio
        if message.is_whole:
            self.write_back()
            self._members, self._by_slot = {}, {}
        for newcomer in message.newcomers:
            sequence = self._sink.find_or_adopt(newcomer.engine_id, newcomer.prompt_tokens)
            sequence.is_exact = sequence.is_exact and num_missed <= 0
            self._by_slot[newcomer.slot] = sequence
        if message.scheduled_s:
            self._step(message)
        for row in message.ended:
            self.write_back()
            self._members.pop(row.slot, None)
            ended = self._by_slot.pop(row.slot, None)
            if ended is not None:
                if row.is_stopped:
                    ended.stopped_output_tokens = row.output_tokens
                    ended.stopped_computed = row.computed
                ended.is_ended_there = True
                self._sink.ended_there(ended)

    def write_back(self) -> None:
        """Brings every member's counts up to date."""
        if self._run_steps:
            steps, self._run_steps = self._run_steps, 0
            for sequence in self._members.values():
                sequence.computed(steps)
        self._payers = ()

    def _missed(self, num_messages: int) -> None:
        """Steps were computed that nobody told: whoever may have been in them is not exact any more."""
        for sequence in self._by_slot.values():
            sequence.is_exact = False
        self._on_dropped(num_messages)

    def _step(self, message: StepMessage) -> None:
        # t_done(n) − max(t_done(n−1), t_scheduled(n)): of two steps in flight the device does one after the other.
        started_s = max(self._done_s, message.scheduled_s)
        self._done_s = max(message.done_s, started_s)
        changed = message.joined or message.left or message.tokens or message.rejected or message.overrun
        if changed:
            self.write_back()
            columns = self._uneven_step(message)
        else:
            columns = self._even_step()
        payers, prefill, decode_tokens, context, recomputed = columns
        if payers:
            self._num_steps += 1
            self._on_step(
                StepRecord(
                    step=self._num_steps,
                    started_s=started_s,
                    ended_s=self._done_s,
                    payers=payers,
                    prefill_tokens=prefill,
                    decode_tokens=decode_tokens,
                    context_tokens=context,
                    recomputed_tokens=recomputed,
                )
            )

    def _even_step(self) -> Columns:
        """The same members, one new token each."""
        members = self._members.values()
        if not self._payers:
            if any(s.position < max(s.high_water, s.prompt_tokens) for s in members):
                return self._rows({}, {})  # some row is no plain decode
            self._payers = tuple(sequence.payer for sequence in members)
            self._context = np.fromiter((s.position for s in members), dtype=np.int64, count=len(members))
        context = self._context + self._run_steps
        self._run_steps += 1
        none = np.zeros(len(context), dtype=np.int64)
        return self._payers, none, none + 1, context, none

    def _uneven_step(self, message: StepMessage) -> Columns:
        for slot in message.left:
            self._members.pop(slot, None)
        for joined in message.joined:
            sequence = self._by_slot[joined.slot]
            sequence.starts_at(joined.position)
            self._members[joined.slot] = sequence
        tokens = {row.slot: row.tokens for row in message.tokens}
        overrun = {row.slot: row.tokens for row in message.overrun}
        columns = self._rows(tokens, overrun)
        for row in message.rejected:
            self._by_slot[row.slot].rejected(row.tokens)
        return columns

    def _rows(self, tokens: dict[int, int], overrun: dict[int, int]) -> Columns:
        """One row a member, in order; ``tokens`` where they are not 1, ``overrun`` where the sequence had ended."""
        context = np.array([sequence.position for sequence in self._members.values()], dtype=np.int64)
        split, payers = [], []
        for slot, sequence in self._members.items():
            num_tokens = tokens.get(slot, 1)
            prefill, decode_tokens, recomputed = sequence.computed(num_tokens)
            split.append((prefill, decode_tokens, recomputed))
            num_dropped = min(overrun.get(slot, 0), num_tokens - recomputed)  # repetitions are counted already
            sequence.dropped(num_dropped)
            payers.append(None if num_dropped == num_tokens else sequence.payer)
        columns = np.array(split, dtype=np.int64).reshape(-1, 3).T
        return tuple(payers), columns[0], columns[1], context, columns[2]
