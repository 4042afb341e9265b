"""How much delay each running request of a worker still bears before its promise breaks, and what a newcomer breaks.

Called by ``scheduler.core.cluster`` (keeps one per worker) and ``scheduler.core.placement`` (asks for the exact sum of
the best few workers). It must never know a queue, a worker's name or a filter.

Only requests that have their first token are here: a newcomer's prompt stretches the steps in which they decode, while
whoever still waits for a first token is computed before the newcomer, or gives way to it by its band. One that decodes
is looked at ``near`` tokens ahead (what is left of it, at most ``HORIZON_TOKENS``). By what is known it is there at

    now + t1·min(P, near·B) + near·(t0 + t2·n + t3·C)·σ

where P prompt tokens are before the newcomer, at most B of them in a step, and σ is what prompts that keep coming make
of a step (``scheduler.core.score``). Its slack is what that token is due minus
that. The newcomer delays it by

    t1·min(p, max(near·B − P, 0)) + min(near, q)·(what one of the newcomer's tokens adds to a step)

The *summary* of a worker is bounded whatever runs there: its least slack that is not gone yet, of whom, and the worth
of those whose slack is gone. It is what all workers are compared by.
"""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

import numpy as np

from scheduler.core.compiled import FLOAT, FLOATS, INT, TABLE, compiled, tuple_of
from scheduler.core.table import HORIZON_TOKENS, STEP_PROMPT_TOKENS, Floats, Row

UNDERWAY = -1
"""Rank of a prompt whose computation has begun: nobody goes before it any more, whatever the band."""


class Promise(NamedTuple):
    """What one running request was promised, and where it stands."""

    rank: int
    """Its band, or ``UNDERWAY``: prompts of a lower number are computed before it."""
    due_s: float = math.inf
    """When its last token is due; infinite until its first token is out."""
    left_tokens: float = 0.0
    """Tokens of one sequence still to come, as expected."""
    value_nano_per_s: float = 0.0
    """Money that a second of lateness costs."""
    token_s: float = 0.0
    """How much later a token may come than the one before it."""


class Pace(NamedTuple):
    """How a worker computes as things stand."""

    step_s: float
    """A step of all that runs there, without a prompt in it."""
    prefill_s: float
    """A prompt token."""
    backlog_tokens: float
    """Prompt tokens that are computed before a newcomer's."""


class Burden(NamedTuple):
    """What a newcomer brings."""

    prefill_tokens: float
    steps: float
    """In which it decodes."""
    step_s: float
    """By which it stretches each of them."""


class Summary(NamedTuple):
    """A worker's slack in five numbers."""

    least_s: float = math.inf
    """Of those that can still keep their promise; infinite where nobody decodes."""
    near_tokens: float = 0.0
    """Of whoever has it: how far ahead it is looked at."""
    value_nano_per_s: float = 0.0
    """Likewise."""
    reach_s: float = 0.0
    """Likewise: the most by which a newcomer's prompt can delay it."""
    late_nano_per_s: float = 0.0
    """Worth of a second to all whose promise is broken already: they pay any delay in full."""


NO_SUMMARY = Summary()


@compiled(FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT)
def _slack_s(
    due_s: float,
    left_tokens: float,
    token_s: float,
    near: float,
    step_s: float,
    prefill_s: float,
    backlog_tokens: float,
    now_s: float,
) -> float:
    """Of one request, at the token that is looked at."""
    prompts_s = min(near * STEP_PROMPT_TOKENS, backlog_tokens) * prefill_s
    return due_s - now_s - (left_tokens - near) * token_s - near * step_s - prompts_s


@compiled(tuple_of(5), FLOATS, FLOATS, FLOATS, FLOATS, FLOAT, FLOAT, FLOAT, FLOAT)
def _summary(
    due_s: Floats,
    left_tokens: Floats,
    value_nano: Floats,
    token_s: Floats,
    step_s: float,
    prefill_s: float,
    backlog_tokens: float,
    now_s: float,
) -> tuple[float, float, float, float, float]:
    """The fields of a summary, of whoever will still decode when the prompts that are there now are computed."""
    least_s, least_near, least_value, reach_s, late_nano = math.inf, 0.0, 0.0, 0.0, 0.0
    for slot in range(len(due_s)):
        if due_s[slot] == math.inf:
            continue
        near = min(left_tokens[slot], HORIZON_TOKENS)
        slack_s = _slack_s(
            due_s[slot], left_tokens[slot], token_s[slot], near, step_s, prefill_s, backlog_tokens, now_s
        )
        if slack_s < 0.0:
            late_nano += value_nano[slot]
        elif slack_s < least_s and near * STEP_PROMPT_TOKENS > backlog_tokens:
            least_s, least_near, least_value = slack_s, near, value_nano[slot]
            reach_s = (near * STEP_PROMPT_TOKENS - backlog_tokens) * prefill_s
    return least_s, least_near, least_value, reach_s, late_nano


@compiled(None, TABLE, INT, FLOATS, FLOATS, FLOATS, FLOATS, FLOAT)
def _summarise(
    table: Floats,
    column: int,
    due_s: Floats,
    left_tokens: Floats,
    value_nano: Floats,
    token_s: Floats,
    now_s: float,
) -> None:
    """The summary, written where all workers are compared."""
    least_s, near, value, reach_s, late_nano = _summary(
        due_s,
        left_tokens,
        value_nano,
        token_s,
        table[Row.STEP_S, column] * table[Row.STRETCH, column],
        table[Row.T_PREFILL_S, column],
        table[Row.PREFILL, column],
        now_s,
    )
    table[Row.SLACK_S, column] = least_s
    table[Row.SLACK_NEAR, column] = near
    table[Row.SLACK_VALUE, column] = value
    table[Row.SLACK_REACH_S, column] = reach_s
    table[Row.LATE_VALUE, column] = late_nano


@compiled(FLOAT, FLOATS, FLOATS, FLOATS, FLOATS, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT)
def _lateness_nano(
    due_s: Floats,
    left_tokens: Floats,
    value_nano: Floats,
    token_s: Floats,
    step_s: float,
    prefill_s: float,
    backlog_tokens: float,
    burden_tokens: float,
    burden_steps: float,
    burden_step_s: float,
    now_s: float,
) -> float:
    """Of a delay only what exceeds the slack that is left is late; slack that is gone saves nothing."""
    total_nano = 0.0
    for slot in range(len(due_s)):
        if due_s[slot] == math.inf:
            continue
        near = min(left_tokens[slot], HORIZON_TOKENS)
        slack_s = _slack_s(
            due_s[slot], left_tokens[slot], token_s[slot], near, step_s, prefill_s, backlog_tokens, now_s
        )
        room_tokens = max(near * STEP_PROMPT_TOKENS - backlog_tokens, 0.0)
        delay_s = min(room_tokens, burden_tokens) * prefill_s + min(near, burden_steps) * burden_step_s
        total_nano += max(delay_s - max(slack_s, 0.0), 0.0) * value_nano[slot]
    return total_nano


class Promises:
    """Of all attempts on one worker; those that decode stand in arrays. A free place is due never and worth nothing."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[int, int | None]] = {}
        """By attempt: its rank, and its place where it decodes."""
        self._size = 0
        self._free: list[int] = []
        self._rows: tuple[array[float], ...] = (array("d"),) * 4
        self._grow(8)

    def _grow(self, size: int) -> None:
        rows = [array("d", row) for row in self._rows]
        for row, empty in zip(rows, (math.inf, 0.0, 0.0, 0.0), strict=True):
            row.extend([empty] * (size - self._size))
        # Scalars are written through the arrays (cheap), loops read the same memory.
        self._rows = self._due, self._left, self._value, self._token = tuple(rows)
        due, left, value, token = (np.frombuffer(row, dtype=np.float64) for row in rows)
        self._views = due, left, value, token
        self._free.extend(range(size - 1, self._size - 1, -1))
        self._size = size

    def __len__(self) -> int:
        """Attempts that decode."""
        return self._size - len(self._free)

    def rank(self, attempt_id: str) -> int:
        """Of its prompt."""
        return self._of[attempt_id][0]

    def put(self, attempt_id: str, promise: Promise) -> None:
        """Made, or as it stands now."""
        known = self._of.get(attempt_id)
        slot = None if known is None else known[1]
        if promise.due_s < math.inf:
            if slot is None:
                if not self._free:
                    self._grow(2 * self._size)
                slot = self._free.pop()
            self._due[slot] = promise.due_s
            self._left[slot] = promise.left_tokens
            self._value[slot] = promise.value_nano_per_s
            self._token[slot] = promise.token_s
        elif slot is not None:
            self._clear(slot)
            slot = None
        self._of[attempt_id] = (promise.rank, slot)

    def put_out(self, attempt_id: str, num_tokens: float) -> None:
        """So many tokens of each of its sequences are no longer to come."""
        slot = self._of[attempt_id][1]
        if slot is not None:
            self._left[slot] = max(self._left[slot] - num_tokens, 0.0)

    def drop(self, attempt_id: str) -> None:
        """It is over."""
        _, slot = self._of.pop(attempt_id)
        if slot is not None:
            self._clear(slot)

    def _clear(self, slot: int) -> None:
        self._due[slot], self._left[slot], self._value[slot], self._token[slot] = math.inf, 0.0, 0.0, 0.0
        self._free.append(slot)

    def summary(self, pace: Pace, now_s: float) -> Summary:
        """Of whoever will still decode when the prompts that are there now are computed."""
        return Summary(*_summary(*self._views, *pace, now_s)) if len(self) else NO_SUMMARY

    def summarise(self, table: Floats, column: int, now_s: float) -> None:
        """The summary, written into the worker's column, by the pace that stands there."""
        due, left, value, token = self._views
        _summarise(table, column, due, left, value, token, now_s)

    def lateness_nano(self, pace: Pace, burden: Burden, now_s: float) -> float:
        """Money: what the newcomer makes later beyond its due, summed over everybody who decodes here."""
        return _lateness_nano(*self._views, *pace, *burden, now_s) if len(self) else 0.0
