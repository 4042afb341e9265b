"""What the relay is told about the models it serves and how long it waits: plain values.

Made by ``scheduler.service`` and by tests, read by ``scheduler.api.app`` and ``scheduler.api.openai``. It must never
know a configuration file.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.core.request import DEFAULT_SLO, Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model under the name by which clients ask for it."""

    name: str
    default_output_tokens: int = 4096
    """What a request without a limit of its own gets."""
    expansion: int = 11
    """Characters that the tokenizer's normaliser makes of one, at most: none 1, NFC 3, NFKC 11."""
    created_unix_s: int = 0
    slo: Slo = DEFAULT_SLO


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """Bounds of one exchange."""

    max_body_bytes: int = 1 << 20
    max_output_tokens: int = 131_072
    """The most that a client may ask for in one sequence."""
    request_timeout_s: float = 3600.0
    """From arrival to the last byte."""
    max_window_s: float = 86_400.0
    """The same of a batch-class request that states its deadline, where that is more."""
    keep_alive_s: float = 10.0
    """A stream that waits longer for its first byte begins with comments."""
    slow_reader_s: float = 30.0
    """How long one write to a client may block."""
    body_timeout_s: float = 30.0
    """How long a client may take to send its body."""
    max_answer_bytes: int = 64 << 20
    """Of a whole (not streamed) answer, which waits here for its charge."""
