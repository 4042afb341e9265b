"""Which changes were made: so many ids of them, and whether there were ever more.

Part of ``scheduler.accounting.directory``. It must never look into a change.
"""

from __future__ import annotations

from collections import OrderedDict

MAX_KNOWN_CHANGES = 65_536
"""Of older ones only the log knows."""


class KnownChanges:
    """Forgets what was remembered longest."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._has_forgotten = False

    def __contains__(self, change_id: str) -> bool:
        return change_id in self._ids

    def add(self, change_id: str) -> None:
        """It was made."""
        self._ids[change_id] = None
        if len(self._ids) > MAX_KNOWN_CHANGES:
            self._ids.popitem(last=False)
            self._has_forgotten = True

    def may_have_forgotten(self, change_id: str) -> bool:
        """False: whether it was made is known for sure."""
        return self._has_forgotten and change_id not in self._ids
