"""A denied access is written down after its answer left, so that nobody learns from the time it took.

Called by ``scheduler.api.app`` and ``scheduler.api.admin``. It must never hand on a key, a path as it was asked, or a
header.
"""

from __future__ import annotations

import logging
from typing import Protocol

from scheduler.api.access import offered_sha256
from scheduler.api.errors import ApiError
from scheduler.api.exchange import Exchange

logger = logging.getLogger("jouleway.api")

DENIED = (401, 403)


class NotesDenied(Protocol):
    """Whoever keeps the audit log."""

    async def denied(
        self, *, listener: str, source: str, route: str, status: int, code: str, sha256: str | None
    ) -> None:
        """``sha256``: of the key that was offered, to say whose it was; it is not written down."""


async def note(
    notes: NotesDenied | None, exchange: Exchange, error: ApiError, *, listener: str, route: str, values: list[bytes]
) -> None:
    """Nothing for errors that deny nothing. ``values``: all Authorization headers.

    What is somebody else's is answered like what is not there, and is a denial all the same.
    """
    if notes is None or not (error.status in DENIED or error.is_denial()):
        return
    try:
        await notes.denied(
            listener=listener,
            source=exchange.source,
            route=route,
            status=error.status,
            code=error.code or "",
            sha256=offered_sha256(values),
        )
    except Exception as failure:
        # The loop's edge: the client has its answer, the log says what the ledger could not.
        logger.error("a denied access is not in the audit log: %s", type(failure).__name__)
