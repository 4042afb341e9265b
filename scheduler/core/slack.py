"""How much delay each running request of a worker still bears before its promise breaks, and what a newcomer breaks.

Called by ``scheduler.core.cluster`` (keeps one per worker) and ``scheduler.core.placement`` (asks for the exact sum of
the best few workers). It must never know a queue, a worker's name or a filter.

Only requests that have their first token are here: a newcomer's prompt stretches the steps in which they decode, while
whoever still waits for a first token is computed before the newcomer, or gives way to it by its band. One that decodes
is looked at ``near`` tokens ahead (what is left of it, at most ``HORIZON_TOKENS``). By what is known it is there at

    now + t1·min(P, near·B) + near·(t0 + t2·n + t3·C)

where P prompt tokens are before the newcomer, at most B of them in a step. Its slack is what that token is due minus
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
from numpy.typing import NDArray

STEP_PROMPT_TOKENS = 2048
"""Prompt tokens that one step takes at most: the default budget of vLLM's scheduler."""

HORIZON_TOKENS = 8.0
"""Whatever length is expected, an answer may end soon: its promise must hold if it ended after so many tokens more."""

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


class Promises:
    """Of all attempts on one worker; those that decode stand in arrays. A free place is due never and worth nothing."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[int, int | None]] = {}
        """By attempt: its rank, and its place where it decodes."""
        self._size = 0
        self._free: list[int] = []
        self._grow(8)

    def _grow(self, size: int) -> None:
        rows = [array("d", row.tolist()) if self._size else array("d") for row in self._views()]
        for row, empty in zip(rows, (math.inf, 0.0, 0.0, 0.0), strict=True):
            row.extend([empty] * (size - self._size))
        # Scalars are written through the arrays (cheap), vectors read through the views of the same memory.
        self._due, self._left, self._value, self._token = rows
        views = (np.frombuffer(row, dtype=np.float64) for row in rows)
        self._due_view, self._left_view, self._value_view, self._token_view = views
        self._free.extend(range(size - 1, self._size - 1, -1))
        self._size = size

    def _views(self) -> tuple[NDArray[np.float64], ...]:
        if not self._size:
            return (np.empty(0),) * 4
        return self._due_view, self._left_view, self._value_view, self._token_view

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
        if not len(self):
            return NO_SUMMARY
        near = self._near()
        slack_s = self._slack_s(near, pace, now_s)
        worst, late_nano = int(slack_s.argmin()), 0.0
        if slack_s[worst] < 0.0 or pace.backlog_tokens:
            is_late = slack_s < 0.0
            late_nano = float(self._value_view @ is_late)
            slack_s[is_late] = math.inf
            slack_s[near * STEP_PROMPT_TOKENS <= pace.backlog_tokens] = math.inf
            worst = int(slack_s.argmin())
            if slack_s[worst] == math.inf:
                return Summary(late_nano_per_s=late_nano)
        worst_near = float(near[worst])
        reach_s = (worst_near * STEP_PROMPT_TOKENS - pace.backlog_tokens) * pace.prefill_s
        return Summary(float(slack_s[worst]), worst_near, self._value[worst], reach_s, late_nano)

    def lateness_nano(self, pace: Pace, burden: Burden, now_s: float) -> float:
        """Money: what the newcomer makes later beyond its due, summed over everybody who decodes here."""
        if not len(self):
            return 0.0
        near = self._near()
        delay_s = np.clip(near * STEP_PROMPT_TOKENS - pace.backlog_tokens, 0.0, burden.prefill_tokens)
        delay_s *= pace.prefill_s
        delay_s += np.minimum(near, burden.steps) * burden.step_s
        # Of a delay only what exceeds the slack that is left is late; slack that is gone saves nothing.
        delay_s -= np.maximum(self._slack_s(near, pace, now_s), 0.0)
        return float(np.maximum(delay_s, 0.0) @ self._value_view)

    def _near(self) -> NDArray[np.float64]:
        """Tokens ahead at which each is looked at."""
        return np.minimum(self._left_view, HORIZON_TOKENS)

    def _slack_s(self, near: NDArray[np.float64], pace: Pace, now_s: float) -> NDArray[np.float64]:
        slack_s = self._due_view - now_s
        slack_s -= (self._left_view - near) * self._token_view
        slack_s -= near * pace.step_s
        if pace.backlog_tokens:
            slack_s -= np.minimum(near * STEP_PROMPT_TOKENS, pace.backlog_tokens) * pace.prefill_s
        return slack_s
