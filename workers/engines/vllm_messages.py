"""What the step hook in vLLM's engine process tells the actor: one small message a step, changes only.

Written by ``workers.engines.vllm_step_tap`` there, read by ``workers.engines.vllm_feed`` here. It must never hold a
prompt, an output or a token id: slots, counts and times.
"""

from __future__ import annotations

import msgspec

SOCKET_VARIABLE = "JOULEWAY_STEP_SOCKET"
"""Environment variable that names the Unix socket (SOCK_SEQPACKET) on which the actor listens."""

MAX_MESSAGE_BYTES = 1 << 18
"""Far above a message that names 4,096 newcomers; a larger one counts as dropped."""


class Newcomer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request that the messages call ``slot`` from now on."""

    slot: int
    engine_id: str
    prompt_tokens: int


class Joined(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """In this step and not in the one before, or preempted in between: its first position in this step."""

    slot: int
    position: int


class Tokens(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row's tokens where they are not 1; or how many of them were drafts that were rejected."""

    slot: int
    tokens: int


class EndedRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The scheduler let go of a request, and no step in flight holds it any more.

    ``is_stopped``: it did not end by itself (abort, stop string, error from outside); then ``output_tokens`` is how
    many it had put out, and ``computed`` how many positions were computed, those in flight not counted; None where it
    was preempted, for then the engine had begun to count anew.
    """

    slot: int
    is_stopped: bool = False
    output_tokens: int = 0
    computed: int | None = None


class StepMessage(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """One engine step, as a difference to the one before. Without changes every member computed one token."""

    number: int
    """Rises by one; a gap means that messages were dropped."""
    scheduled_s: float = 0.0
    """When the step was scheduled, on the machine's monotonic clock; 0 = no step, only endings."""
    done_s: float = 0.0
    num_running: int = 0
    num_waiting: int = 0
    kv_used_ratio: float = 0.0
    is_whole: bool = False
    """The members are told anew (the first message, or after a drop): forget those of before."""
    newcomers: list[Newcomer] = []
    joined: list[Joined] = []
    left: list[int] = []
    tokens: list[Tokens] = []
    """Of this step alone; all other members have 1."""
    rejected: list[Tokens] = []
    overrun: list[Tokens] = []
    """Rows, or parts of rows, whose request had already ended when the step came back."""
    ended: list[EndedRow] = []


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(StepMessage).decode
