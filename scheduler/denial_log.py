"""Denied accesses become rows of the audit log: so many a minute of each listener and source; the others are counted.

Owned by ``scheduler.tenancy``. It must never see a key. A count that no later row tells is written by a timer, and at
the stop: as the row of the last denial that had none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from scheduler.accounting.change_log import ChangeLog
from scheduler.accounting.changes import DENIAL_PREFIX, AccessDenied, Actor, Change
from scheduler.accounting.denials import Denials

logger = logging.getLogger("jouleway.api")

COUNT_EVERY_S = 60.0


class _Listener:
    """Its own limits: a flood on one hides nothing on the other."""

    def __init__(self) -> None:
        self.denials = Denials()
        self.last_skipped: tuple[AccessDenied, Actor, int] | None = None
        """With its time."""


class DenialLog:
    """One for each control plane, on its event loop."""

    def __init__(
        self,
        log: ChangeLog,
        *,
        commit: Callable[[], Awaitable[None]],
        new_id: Callable[[str], str],
        count_every_s: float = COUNT_EVERY_S,
    ) -> None:
        """``new_id``: of a row, behind this prefix."""
        self._log = log
        self._commit = commit
        self._new_id = new_id
        self._count_every_s = count_every_s
        self._listeners: dict[str, _Listener] = {}
        self._counting: asyncio.Task[None] | None = None

    async def denied(self, deed: AccessDenied, who: Actor, *, at_us: int) -> None:
        """Returns once its row is durable, or at once where it has none. Raises: what ``commit`` and ``append`` do."""
        listener = self._listeners.setdefault(deed.listener, _Listener())
        also_denied = listener.denials.admit(deed.source, at_us)
        if also_denied is None:
            listener.last_skipped = (deed, who, at_us)
            if self._counting is None or self._counting.done():
                self._counting = asyncio.get_running_loop().create_task(self._count_later(), name="denials")
            return
        listener.last_skipped = None
        self._append(deed, who, at_us=at_us, also_denied=also_denied)
        await self._commit()

    async def stop(self) -> None:
        """What was counted is in the log's next commit, which is its owner's."""
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.wait([self._counting])
        self._write_counts()

    async def _count_later(self) -> None:
        """Once: whoever is skipped later begins anew."""
        await asyncio.sleep(self._count_every_s)
        self._write_counts()
        try:
            await self._commit()
        except Exception as error:
            # The loop's edge: the rows wait for the next commit.
            logger.error("counted denials are not in the audit log yet: %s", type(error).__name__)

    def _write_counts(self) -> None:
        for listener in self._listeners.values():
            if listener.last_skipped is None:
                continue
            deed, who, at_us = listener.last_skipped
            try:
                self._append(deed, who, at_us=at_us, also_denied=listener.denials.num_skipped - 1)
            except Exception as error:
                logger.error("counted denials are not in the audit log yet: %s", type(error).__name__)
                continue
            listener.last_skipped, listener.denials.num_skipped = None, 0

    def _append(self, deed: AccessDenied, who: Actor, *, at_us: int, also_denied: int) -> None:
        deed = replace(deed, also_denied=also_denied)
        self._log.append(Change(change_id=self._new_id(DENIAL_PREFIX), at_us=at_us, who=who, deed=deed))
