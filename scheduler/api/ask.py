"""An admitted body: what the core is told of it, and how it goes to the engine.

Made by ``scheduler.api.schemas``, read by every file that answers. It must never know a key, a worker or a queue.
"""

from __future__ import annotations

from dataclasses import dataclass

TEMPLATE_TOKENS = 1024
TEMPLATE_TOKENS_PER_MESSAGE = 64
"""Bounds of what a chat template adds; the first step's count replaces them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One checked body."""

    path: str
    model: str
    is_stream: bool
    service_tier: str | None
    num_sequences: int
    """Choices × prompts."""
    max_output_tokens: int | None
    """Of one sequence, as the client limited it; 0 where nothing is generated."""
    text_bytes: int
    """Of all that may become text of the prompt."""
    media_tokens: int
    """Bound of images and sounds, whose own bytes are not text."""
    num_messages: int
    body: bytes
    """Admitted JSON without a token limit, for ``render``."""
    limit_name: bytes | None
    """What the route calls its token limit; None where it has none."""

    def prompt_tokens_bound(self, expansion: int) -> int:
        """No prompt of this body has more tokens. ``expansion``: characters the tokenizer's normaliser makes of one
        at most (none 1, NFC 3, NFKC 11); a token stands for at least one byte of what it makes.
        """
        template = TEMPLATE_TOKENS + TEMPLATE_TOKENS_PER_MESSAGE * self.num_messages
        return self.text_bytes * expansion + self.media_tokens + template

    def render(self, max_output_tokens: int) -> bytes:
        """The engine's body with its token limit."""
        if self.limit_name is None:
            return self.body
        return b'%b,"%b":%d}' % (self.body[:-1], self.limit_name, max_output_tokens)
