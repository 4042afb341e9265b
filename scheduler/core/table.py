"""The rows of the cluster's table, one column a worker: what it said, what is owned there, what follows from both.

Filled by ``scheduler.core.cluster`` and ``scheduler.core.slack``; read by placement and its neighbours. It must never
know a request.

What a decision needs of each worker and does not depend on the request is worked out when the worker changes, not when
somebody asks: a change touches one worker, a decision all of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.compiled import INT, INTS, TABLE, compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NO_FLOATS: Floats = np.empty(0)
"""Where every worker would have a 0."""

STEP_PROMPT_TOKENS = 2048
"""Prompt tokens that one step takes at most: the default budget of vLLM's scheduler."""

HORIZON_TOKENS = 24.0
"""Whatever length is expected, an answer may end soon: its promise must hold if it ended after so many tokens more."""

BACKLOG_S = 0.5
"""Prompts that a worker may have before it, in seconds of computing: beyond it work waits where its turn is decided,
and not in the engine."""

LEAST_BACKLOG_TOKENS = 2 * STEP_PROMPT_TOKENS
"""Two full steps: a worker may have so much before it however slow it is, and does not run dry between two words."""

MAX_BACKLOG_TOKENS = 1e12
"""Where prompts take no time at all."""


class Rows(NamedTuple):
    """Numbers of the rows. Tokens and sequences are counts, times are seconds."""

    READY: int = 0
    HEARD_S: int = 1
    ORDER: int = 2
    """Place of the worker's id among all ids: ties fall the same way always."""
    ZONE: int = 3
    """Index into ``Cluster.zones``."""
    NUM_GPUS: int = 4

    # What it said of itself, and what runs there for somebody else.
    FOREIGN_SEQUENCES: int = 5
    FOREIGN_KV: int = 6
    KV_ROOM: int = 7
    MAX_SEQUENCES: int = 8
    MAX_ATTEMPTS: int = 9
    T0_S: int = 10
    T_PREFILL_S: int = 11
    T_DECODE_S: int = 12
    T_CONTEXT_S: int = 13

    # Credit.
    ATTEMPTS: int = 14
    SEQUENCES: int = 15
    PREFILL: int = 16
    """Owned prompt tokens, not cached, not yet computed."""
    DECODE: int = 17
    """Owned output tokens still to come, as expected."""
    CONTEXT: int = 18
    """Owned tokens of KV that are read at each step."""
    KV: int = 19
    """Owned KV: prompts and expected outputs."""
    FIRST_PREFILL: int = 20
    """Of the prompts in PREFILL, those that are computed before any newcomer of the first band."""
    SECOND_PREFILL: int = 21
    """Likewise of the second band; the third waits for all."""

    # What follows. First how much of each kind of room there is in all, and how much is left.
    FIRST_BACKLOG_ROOM: int = 22
    """Prompt tokens that may be before a newcomer's, by band."""
    SECOND_BACKLOG_ROOM: int = 23
    THIRD_BACKLOG_ROOM: int = 24
    KV_SHARE: int = 25
    SEQUENCES_SHARE: int = 26
    ATTEMPTS_SHARE: int = 27
    FIRST_BACKLOG_LEFT: int = 28
    SECOND_BACKLOG_LEFT: int = 29
    THIRD_BACKLOG_LEFT: int = 30
    KV_LEFT: int = 31
    """Infinite on an idle worker, like the next two: a bound may overstate what could never run otherwise."""
    SEQUENCES_LEFT: int = 32
    ATTEMPTS_LEFT: int = 33
    STEP_S: int = 34
    """A step of all that runs there, without a prompt in it."""
    START_S: int = 35
    """The fixed part of a step where nothing runs, so that a newcomer brings it about; else 0."""
    TOKEN_S: int = 36
    """A prompt token, with its share of the steps that carry it."""
    FIRST_BACKLOG_S: int = 37
    """The prompts before a newcomer's so computed, by band."""
    SECOND_BACKLOG_S: int = 38
    THIRD_BACKLOG_S: int = 39
    PROMPTS_S: int = 40
    """All prompts there by the prefill curve alone; minus infinity where there is none."""
    DECODES_S: int = 41
    """The part of a step that grows with the sequences: what one more costs each of them, times their number."""

    # The summary of ``scheduler.core.slack``, field by field.
    SLACK_S: int = 42
    SLACK_NEAR: int = 43
    SLACK_VALUE: int = 44
    SLACK_REACH_S: int = 45
    LATE_VALUE: int = 46

    # What work takes beyond what the engine draws anyway while it idles, in joules; term by term of its step curve.
    E0_JOULES: int = 47
    PREFILL_JOULES: int = 48
    DECODE_JOULES: int = 49
    CONTEXT_JOULES: int = 50

    STRETCH: int = 51
    """A step with the prompts that come as they came lately, in steps without one; 1 where none came."""


Row = Rows()

NUM_ROWS = Row.STRETCH + 1

FIXED_ROWS = slice(Row.FOREIGN_SEQUENCES, Row.T_CONTEXT_S + 1)
CURVE_ROWS = slice(Row.T0_S, Row.T_CONTEXT_S + 1)
OWNED_ROWS = slice(Row.ATTEMPTS, Row.SECOND_PREFILL + 1)
WRITTEN_ROWS = slice(Row.ATTEMPTS, Row.DECODES_S + 1)
ROOM_ROWS = slice(Row.FIRST_BACKLOG_ROOM, Row.ATTEMPTS_SHARE + 1)
LEFT_ROWS = slice(Row.FIRST_BACKLOG_LEFT, Row.ATTEMPTS_LEFT + 1)
SLACK_ROWS = slice(Row.SLACK_S, Row.LATE_VALUE + 1)
ENERGY_ROWS = slice(Row.E0_JOULES, Row.CONTEXT_JOULES + 1)

PREFILL_ROWS = (Row.FIRST_PREFILL, Row.SECOND_PREFILL, Row.PREFILL)
"""By band: the prompt tokens that are computed before a newcomer's."""


@compiled(None, TABLE, INT, INTS)
def write(table: Floats, column: int, owned: Ints) -> None:
    """The cells of WRITTEN_ROWS, from what is owned (OWNED_ROWS) and what the worker said (FIXED_ROWS)."""
    attempts, sequences, prompts = owned[0], owned[1], owned[2]
    context_tokens, kv_tokens, first, second = owned[4], owned[5], owned[6], owned[7]
    for index in range(len(owned)):
        table[Row.ATTEMPTS + index, column] = owned[index]

    prefill_s = table[Row.T_PREFILL_S, column]
    room = max(LEAST_BACKLOG_TOKENS, BACKLOG_S / prefill_s) if prefill_s > 0.0 else MAX_BACKLOG_TOKENS
    table[Row.FIRST_BACKLOG_ROOM, column] = room
    table[Row.SECOND_BACKLOG_ROOM, column] = room
    table[Row.THIRD_BACKLOG_ROOM, column] = room
    table[Row.FIRST_BACKLOG_LEFT, column] = room - first
    table[Row.SECOND_BACKLOG_LEFT, column] = room - second
    table[Row.THIRD_BACKLOG_LEFT, column] = room - prompts

    kv_room, max_sequences = table[Row.KV_ROOM, column], table[Row.MAX_SEQUENCES, column]
    max_attempts = table[Row.MAX_ATTEMPTS, column]
    table[Row.KV_SHARE, column] = kv_room
    table[Row.SEQUENCES_SHARE, column] = max_sequences
    table[Row.ATTEMPTS_SHARE, column] = max_attempts
    is_idle = attempts == 0
    table[Row.KV_LEFT, column] = math.inf if is_idle else kv_room - kv_tokens - table[Row.FOREIGN_KV, column]
    table[Row.SEQUENCES_LEFT, column] = (
        math.inf if is_idle else max_sequences - sequences - table[Row.FOREIGN_SEQUENCES, column]
    )
    table[Row.ATTEMPTS_LEFT, column] = math.inf if is_idle else max_attempts - attempts

    t0_s, decodes_s = table[Row.T0_S, column], table[Row.T_DECODE_S, column] * sequences
    step_s = t0_s + decodes_s + table[Row.T_CONTEXT_S, column] * context_tokens
    token_s = prefill_s + step_s / STEP_PROMPT_TOKENS
    table[Row.STEP_S, column] = step_s
    table[Row.START_S, column] = t0_s if is_idle else 0.0
    table[Row.TOKEN_S, column] = token_s
    table[Row.FIRST_BACKLOG_S, column] = first * token_s
    table[Row.SECOND_BACKLOG_S, column] = second * token_s
    table[Row.THIRD_BACKLOG_S, column] = prompts * token_s
    table[Row.PROMPTS_S, column] = prompts * prefill_s if prompts else -math.inf
    table[Row.DECODES_S, column] = decodes_s
