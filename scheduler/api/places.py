"""So many questions to the ledger at a time: a few run on threads, a few more wait, others are refused at once.

Used by every route that reads the ledger's disk. Operators have places of their own, so that no tenant can lock them
out. It must never know what is asked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scheduler.api.errors import ApiError, asking_the_ledger

MAX_RUNNING = 2
MAX_OPEN = 32
"""Questions that are answered or wait, of all tenants."""
MAX_OPEN_PER_CALLER = 8
"""Of a tenant, or of all operators."""
BUSY_RETRY_AFTER_S = 1


class Places:
    """For one kind of questions."""

    def __init__(self, what: str, *, code: str) -> None:
        """``what``: in the words of the refusal. ``code``: its own word."""
        self._what = what
        self._code = code
        self._open: Counter[str | None] = Counter()
        self._tenants_running = asyncio.Semaphore(MAX_RUNNING)
        self._operators_running = asyncio.Semaphore(1)

    @asynccontextmanager
    async def taken(self, tenant: str | None) -> AsyncIterator[None]:
        """Entered when it is this question's turn. ``tenant`` None: an operator.

        Raises: ApiError 503 where too many are open, or for the LedgerError of what is inside.
        """
        num_open = self._open.total() - self._open[None]
        if self._open[tenant] >= MAX_OPEN_PER_CALLER or (tenant is not None and num_open >= MAX_OPEN):
            message = f"Too many questions about {self._what} are open."
            raise ApiError(503, message, code=self._code, retry_after_s=BUSY_RETRY_AFTER_S)
        self._open[tenant] += 1
        try:
            async with self._operators_running if tenant is None else self._tenants_running:
                with asking_the_ledger():
                    yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]


def proof_places() -> Places:
    """For what proves: receipts and checkpoints together, on one listener."""
    return Places("receipts and checkpoints", code="proofs_busy")
