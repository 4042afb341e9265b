"""The rows of the cluster's table, one column a worker: what it said, what is owned there, what follows from both.

Filled by ``scheduler.core.cluster``; read by placement and its neighbours. It must never know a request.

What a decision needs of each worker and does not depend on the request is worked out when the worker changes, not when
somebody asks: a change touches one worker, a decision all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scheduler.core.slack import STEP_PROMPT_TOKENS

BACKLOG_S = 0.5
"""Prompts that a worker may have before it, in seconds of computing: beyond it work waits where its turn is decided,
and not in the engine."""

LEAST_BACKLOG_TOKENS = 2 * STEP_PROMPT_TOKENS
"""Two full steps: a worker may have so much before it however slow it is, and does not run dry between two words."""

MAX_BACKLOG_TOKENS = 1e12
"""Where prompts take no time at all."""


class Row:
    """Numbers of the rows. Tokens and sequences are counts, times are seconds."""

    READY = 0
    HEARD_S = 1
    ORDER = 2
    """Place of the worker's id among all ids: ties fall the same way always."""
    ZONE = 3
    """Index into ``Cluster.zones``."""
    NUM_GPUS = 4

    # What it said of itself, and what runs there for somebody else.
    FOREIGN_SEQUENCES = 5
    FOREIGN_KV = 6
    KV_ROOM = 7
    MAX_SEQUENCES = 8
    MAX_ATTEMPTS = 9
    T0_S = 10
    T_PREFILL_S = 11
    T_DECODE_S = 12
    T_CONTEXT_S = 13

    # Credit.
    ATTEMPTS = 14
    SEQUENCES = 15
    PREFILL = 16
    """Owned prompt tokens, not cached, not yet computed."""
    DECODE = 17
    """Owned output tokens still to come, as expected."""
    CONTEXT = 18
    """Owned tokens of KV that are read at each step."""
    KV = 19
    """Owned KV: prompts and expected outputs."""
    FIRST_PREFILL = 20
    """Of the prompts in PREFILL, those that are computed before any newcomer of the first band."""
    SECOND_PREFILL = 21
    """Likewise of the second band; the third waits for all."""

    # What follows. First how much of each kind of room there is in all, and how much is left.
    FIRST_BACKLOG_ROOM = 22
    """Prompt tokens that may be before a newcomer's, by band."""
    SECOND_BACKLOG_ROOM = 23
    THIRD_BACKLOG_ROOM = 24
    KV_SHARE = 25
    SEQUENCES_SHARE = 26
    ATTEMPTS_SHARE = 27
    FIRST_BACKLOG_LEFT = 28
    SECOND_BACKLOG_LEFT = 29
    THIRD_BACKLOG_LEFT = 30
    KV_LEFT = 31
    """Infinite on an idle worker, like the next two: a bound may overstate what could never run otherwise."""
    SEQUENCES_LEFT = 32
    ATTEMPTS_LEFT = 33
    STEP_S = 34
    """A step of all that runs there, without a prompt in it."""
    START_S = 35
    """The fixed part of a step where nothing runs, so that a newcomer brings it about; else 0."""
    TOKEN_S = 36
    """A prompt token, with its share of the steps that carry it."""
    FIRST_BACKLOG_S = 37
    """The prompts before a newcomer's so computed, by band."""
    SECOND_BACKLOG_S = 38
    THIRD_BACKLOG_S = 39
    PROMPTS_S = 40
    """All prompts there by the prefill curve alone; minus infinity where there is none."""
    DECODES_S = 41
    """The part of a step that grows with the sequences: what one more costs each of them, times their number."""

    # The summary of ``scheduler.core.slack``, field by field.
    SLACK_S = 42
    SLACK_NEAR = 43
    SLACK_VALUE = 44
    SLACK_REACH_S = 45
    LATE_VALUE = 46


NUM_ROWS = Row.LATE_VALUE + 1

FIXED_ROWS = slice(Row.FOREIGN_SEQUENCES, Row.T_CONTEXT_S + 1)
CURVE_ROWS = slice(Row.T0_S, Row.T_CONTEXT_S + 1)
OWNED_ROWS = slice(Row.ATTEMPTS, Row.SECOND_PREFILL + 1)
WRITTEN_ROWS = slice(Row.ATTEMPTS, Row.DECODES_S + 1)
ROOM_ROWS = slice(Row.FIRST_BACKLOG_ROOM, Row.ATTEMPTS_SHARE + 1)
LEFT_ROWS = slice(Row.FIRST_BACKLOG_LEFT, Row.ATTEMPTS_LEFT + 1)
SLACK_ROWS = slice(Row.SLACK_S, Row.LATE_VALUE + 1)

PREFILL_ROWS = (Row.FIRST_PREFILL, Row.SECOND_PREFILL, Row.PREFILL)
"""By band: the prompt tokens that are computed before a newcomer's."""


def written(owned: Sequence[int], fixed: Sequence[float]) -> list[float]:
    """The cells of WRITTEN_ROWS from what is owned and the cells of FIXED_ROWS."""
    attempts, sequences, prompts, _, context_tokens, kv_tokens, first, second = owned
    foreign_sequences, foreign_kv, kv_room, max_sequences, max_attempts, t0_s, prefill_s, decode_s, context_s = fixed
    kv_left = sequences_left = attempts_left = math.inf
    if attempts:
        kv_left = kv_room - kv_tokens - foreign_kv
        sequences_left = max_sequences - sequences - foreign_sequences
        attempts_left = max_attempts - attempts
    room = max(LEAST_BACKLOG_TOKENS, BACKLOG_S / prefill_s) if prefill_s else MAX_BACKLOG_TOKENS
    decodes_s = decode_s * sequences
    step_s = t0_s + decodes_s + context_s * context_tokens
    token_s = prefill_s + step_s / STEP_PROMPT_TOKENS
    return [
        *owned,
        room, room, room, kv_room, max_sequences, max_attempts,
        room - first, room - second, room - prompts, kv_left, sequences_left, attempts_left,
        step_s, 0.0 if attempts else t0_s, token_s, first * token_s, second * token_s, prompts * token_s,
        prompts * prefill_s if prompts else -math.inf, decodes_s,
    ]  # fmt: skip
