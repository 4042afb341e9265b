"""KV room of a simulated engine, counted in tokens, and the prompt blocks that stay cached in it.

Called by ``workers.engines.simulated_core`` alone. It must never know sequences, text or time.

Room is used by tokens that one sequence owns and by shared blocks that at least one sequence refers to. A block that
nobody refers to stays, least recently released first to go, until its room is needed.
"""

from __future__ import annotations

from collections.abc import Sequence


class PrefixCache:
    """Used room and cached blocks; a block is known by a hash that covers everything before it."""

    def __init__(self, *, capacity_tokens: int, block_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._block_tokens = block_tokens
        self._num_references: dict[int, int] = {}
        self._idle: dict[int, None] = {}
        """Blocks without a reference, in the order of their release."""
        self.used_tokens = 0

    @property
    def free_tokens(self) -> int:
        """Room that can be had now; idle blocks give way."""
        return self._capacity_tokens - self.used_tokens

    def take(self, num_tokens: int) -> None:
        """A sequence computed that many tokens of its own."""
        self.used_tokens += num_tokens
        assert self.used_tokens <= self._capacity_tokens, "more KV was taken than there is"
        while self._idle and self.used_tokens + len(self._idle) * self._block_tokens > self._capacity_tokens:
            del self._idle[next(iter(self._idle))]

    def give(self, num_tokens: int) -> None:
        """A sequence lost that many tokens of its own."""
        self.used_tokens -= num_tokens

    def match(self, hashes: Sequence[int]) -> int:
        """How many leading blocks are cached."""
        for index, block in enumerate(hashes):
            if block not in self._num_references and block not in self._idle:
                return index
        return len(hashes)

    def idle_tokens(self, hashes: Sequence[int]) -> int:
        """Room that referring to these cached blocks would use."""
        return sum(block in self._idle for block in hashes) * self._block_tokens

    def acquire(self, hashes: Sequence[int]) -> None:
        """One more sequence refers to these cached blocks."""
        for block in hashes:
            if block in self._idle:
                del self._idle[block]
                self.used_tokens += self._block_tokens
            self._num_references[block] = self._num_references.get(block, 0) + 1

    def share(self, hashes: Sequence[int], *, first: int) -> None:
        """A sequence's own blocks from ``first`` on become cached; a copy that was there already replaces them."""
        for block in hashes[first:]:
            if block in self._num_references:
                self.used_tokens -= self._block_tokens
            elif block in self._idle:
                del self._idle[block]
            self._num_references[block] = self._num_references.get(block, 0) + 1

    def release(self, hashes: Sequence[int]) -> None:
        """A sequence left; its last blocks are the first to be evicted, since the first ones serve more prompts."""
        for block in reversed(hashes):
            self._num_references[block] -= 1
            if not self._num_references[block]:
                del self._num_references[block]
                self._idle[block] = None
                self.used_tokens -= self._block_tokens
