"""The newest checkpoint over HTTP, with the proof that it grew out of an older one.

Called by ``scheduler.api.app`` and ``scheduler.api.admin``: the same for everybody who has a key, for it tells of no
row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from scheduler.accounting.growth import MAX_SIZE, Growth
from scheduler.api.explain import PREFIX
from scheduler.api.places import Places
from scheduler.api.query import Query

CHECKPOINT_PATH = f"{PREFIX}checkpoint"

Growths = Callable[[int], Growth]
"""Rows that the caller knows of -> how the ledger grew from there; reads a database."""


async def checkpoint_body(growths: Growths, query: bytes, *, places: Places, tenant: str | None = None) -> bytes:
    """The JSON. ``tenant`` None: an operator asks; the answer is the same. Raises: ApiError 400, 503."""
    from_size = Query(query, names=("from",)).whole("from", low=0, high=MAX_SIZE) or 0
    async with places.taken(tenant):
        growth = await asyncio.to_thread(growths, from_size)
    return msgspec.json.encode(growth)
