"""Attempts that nobody here owns: of an earlier control plane, or given up by this one. Each is told once to abort.

Called by ``scheduler.dispatcher``. It must never know a request, a worker or an account.
"""

from __future__ import annotations

from collections import OrderedDict

from workers.types import Ended, Output

MAX_STRANGERS = 4_096
"""Attempts that were told and are remembered; one that is forgotten while it still speaks is told again."""


class Strangers:
    """Remembers who was told, until it ends."""

    def __init__(self, *, max_strangers: int = MAX_STRANGERS) -> None:
        self._max_strangers = max_strangers
        self._told: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._told)

    def must_abort(self, output: Output) -> bool:
        """Whether whoever says this is to be told; from this call on it counts as told."""
        attempt_id = output.attempt_id
        if isinstance(output, Ended):
            self._told.pop(attempt_id, None)
            return False
        if attempt_id in self._told:
            return False
        self._told[attempt_id] = None
        if len(self._told) > self._max_strangers:
            self._told.popitem(last=False)
        return True
