"""Which worker probably has the beginning of a prompt in its KV: a bounded, approximate index of prompt prefixes.

Owned by ``scheduler.core.scheduler``, which adds what it dispatches; read by ``scheduler.core.placement``. It must
never know a prompt: it sees chained hashes, salted by tenant: equal blocks are equal beginnings of one tenant's.

Approximate, because no engine tells what it evicts: each worker is taken for one cache of its KV room that forgets the
least recently used block first, and of one prompt the last block first, as vLLM's does. What an engine really found is
billed; what is expected here only decides where a request goes.

Of each block a bit set of columns says who has it, so a look-up walks a prompt once for all workers.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from scheduler.core.cluster import Worker
from scheduler.core.request import Request
from scheduler.core.table import NO_FLOATS, Floats

MAX_BLOCKS = 31_250
"""Blocks remembered of one worker, however large its KV room."""


ROOM_RATIO = 1.15
"""Blocks remembered of one worker in tokens, as a share of its KV room. A block that is forgotten too early is computed
twice; one that is expected in vain costs nothing but a less good choice; and prompts are expected a little too long."""


FEW_COLUMNS = 16
"""As many columns are faster one by one than as a mask."""


class _Memory:
    """What one worker is taken to have: (tokens, last use) of each block, the least recently used first."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self.tokens = 0
        self.is_full = False


class Prefixes:
    """By columns of the cluster's table."""

    def __init__(self, *, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._holders: dict[int, int] = {}
        """By block: the columns that have it, as bits."""
        self._memories: dict[int, _Memory] = {}
        self._num_uses = 0
        """Prompts so far: the time by which uses are ordered."""
        self._num_full = 0
        self._oldest = np.zeros(16)
        """By column: the last use of the block that goes next; 0 where there is room."""

    def hits(self, request: Request, num_columns: int) -> Floats | None:
        """For each column the number of first blocks of the prompt that it has; None where nobody has any."""
        blocks, holders = request.prefix_blocks, self._holders
        having = holders.get(blocks[0], 0) if blocks else 0
        if not having:
            return None
        counts = np.zeros(num_columns)
        num_blocks = 1
        for block in blocks[1:]:
            still = having & holders.get(block, 0)
            if still != having:
                _put(counts, having ^ still, num_blocks)
                if not still:
                    return counts
                having = still
            num_blocks += 1
        _put(counts, having, num_blocks)
        return counts

    def add(self, worker: Worker, request: Request, prompt_tokens: int) -> None:
        """The request is sent there: its blocks are computed, or kept, and the least recently used ones go."""
        blocks = request.prefix_blocks
        if not blocks:
            return
        memory = self._memories.get(worker.column)
        if memory is None:
            memory = self._memories[worker.column] = _Memory()
        kept, holders, bit = memory.blocks, self._holders, 1 << worker.column
        self._num_uses += 1
        each = (-(-prompt_tokens // len(blocks)), self._num_uses)
        for block in reversed(blocks):  # the first block is the last to be forgotten
            if (known := kept.pop(block, None)) is not None:
                memory.tokens -= known[0]
            else:
                holders[block] = holders.get(block, 0) | bit
            kept[block] = each
            memory.tokens += each[0]
        while kept and (memory.tokens > ROOM_RATIO * worker.view.kv_tokens or len(kept) > self._max_blocks):
            if not memory.is_full:
                memory.is_full = True  # and stays so: what goes makes room for what comes
                self._num_full += 1
            block, (tokens, _) = kept.popitem(last=False)
            memory.tokens -= tokens
            self._take_off(block, bit)
        if memory.is_full and kept:
            self._set_oldest(worker.column, next(iter(kept.values()))[1])

    def forget(self, worker: Worker) -> None:
        """The worker is gone, and its KV with it."""
        self._set_oldest(worker.column, 0)
        memory = self._memories.pop(worker.column, None)
        if memory is not None:
            self._num_full -= memory.is_full
            for block in memory.blocks:
                self._take_off(block, 1 << worker.column)

    def evicted_ratio(self, serves: NDArray[np.bool_]) -> Floats:
        """For each column how recently the blocks that a new prompt drives out were used.

        0: not for as long as on any other worker that serves its model, or there is room; 1: just now. Empty where
        everybody has room.
        """
        if not self._num_full:
            return NO_FLOATS
        if len(self._oldest) < len(serves):
            self._oldest = np.concatenate((self._oldest, np.zeros(len(serves) - len(self._oldest))))
        oldest = self._oldest[: len(serves)]
        least = float(oldest.min(where=serves, initial=np.inf))
        if not least < self._num_uses:
            return NO_FLOATS
        ratios = oldest - least
        ratios *= 1.0 / (self._num_uses - least)
        return ratios

    def _set_oldest(self, column: int, use: int) -> None:
        if column >= len(self._oldest):
            self._oldest = np.concatenate((self._oldest, np.zeros(column + 1)))
        self._oldest[column] = use

    def __len__(self) -> int:
        """Different blocks that somebody has."""
        return len(self._holders)

    def _take_off(self, block: int, bit: int) -> None:
        left = self._holders[block] & ~bit
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]


def _put(counts: Floats, bits: int, num_blocks: int) -> None:
    """The number at the columns of the bits."""
    if bits.bit_count() > FEW_COLUMNS:
        packed = np.frombuffer(bits.to_bytes(-(-len(counts) // 8), "little"), dtype=np.uint8)
        counts[np.unpackbits(packed, count=len(counts), bitorder="little").view(np.bool_)] = num_blocks
        return
    while bits:
        lowest = bits & -bits
        counts[lowest.bit_length() - 1] = num_blocks
        bits ^= lowest
