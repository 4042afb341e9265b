"""Receipts over HTTP: a tenant gets those of its own requests, the operator all.

Called by ``scheduler.api.app`` and ``scheduler.api.admin``. It must never tell another tenant's request from one that
never was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from scheduler.accounting.receipts import OfAnotherTenant, Receipt
from scheduler.api.exchange import REQUEST_ID
from scheduler.api.explain import PREFIX, request_not_found
from scheduler.api.places import Places

RECEIPTS_PREFIX = f"{PREFIX}receipts/"

Receipts = Callable[[str, str | None], Receipt | None]
"""(request id, tenant or None for all) -> its receipt; reads a database. Raises: OfAnotherTenant."""


async def receipt_body(
    receipts: Receipts | None, request_id: str, *, places: Places, tenant: str | None = None
) -> bytes:
    """The JSON. Raises: ApiError 404, 503."""
    if receipts is None or not REQUEST_ID.fullmatch(request_id):
        raise request_not_found()
    async with places.taken(tenant):
        try:
            receipt = await asyncio.to_thread(receipts, request_id, tenant)
        except OfAnotherTenant:
            raise request_not_found(is_denial=lambda: True) from None
    if receipt is None:
        raise request_not_found()
    return msgspec.json.encode(receipt)
