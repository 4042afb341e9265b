"""Which requests were made once and must not run again: by the client's Idempotency-Key, per tenant, for a day.

Called by ``scheduler.api.openai``. It must never hold a key, a body or an answer: hashes of the first two, and of the
third its tokens and the id of its receipt.

A key is taken while its request runs, remembered once the answer was complete, and free again if it was not: whoever
got no answer may ask anew with the same key.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from scheduler.accounting.settlement import Charge
from scheduler.api.errors import ApiError
from scheduler.api.request_headers import IDEMPOTENCY_KEY

MAX_KEYS = 65_536
MAX_KEYS_PER_TENANT = 8_192
MAX_AGE_S = 86_400.0
IN_FLIGHT_RETRY_AFTER_S = 1
FULL_RETRY_AFTER_S = 10
_DIGEST_BYTES = 16


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """The one run of a key. ``charge`` None: it is under way."""

    tenant: str
    key_digest: bytes
    body_digest: bytes
    begun_s: float
    charge: Charge | None = None


class Idempotency:
    """A bounded table. When it is full, what was remembered longest is forgotten first."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        max_keys: int = MAX_KEYS,
        max_keys_per_tenant: int = MAX_KEYS_PER_TENANT,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._max_keys_per_tenant = max_keys_per_tenant
        self._max_age_s = max_age_s
        self._runs: dict[str, OrderedDict[bytes, Run]] = {}
        """By tenant, which are as many as are configured; each in the order in which the keys were taken."""
        self._num_keys = 0

    def __len__(self) -> int:
        return self._num_keys

    def begin(self, tenant: str, key: bytes, path: str, body: bytes, *, salt: bytes) -> Run:
        """A new run, to be ended by ``end``; or the finished one of this key, which has its charge.

        ``salt``: of the tenant, at most 64 bytes. Raises: ApiError 409 while the first one runs, 422 where the key came
        with another body or route, 503 when only running ones are left to forget.
        """
        now_s = self._clock()
        key_digest = _digest(key, salt=salt)
        body_digest = _digest(path.encode(), b"\n", body, salt=salt)
        runs = self._runs.setdefault(tenant, OrderedDict())
        self._forget_old(runs, now_s)
        known = runs.get(key_digest)
        if known is None:
            self._make_room(runs)
            run = Run(tenant=tenant, key_digest=key_digest, body_digest=body_digest, begun_s=now_s)
            runs[key_digest] = run
            self._num_keys += 1
            return run
        if known.body_digest != body_digest:
            message = "This Idempotency-Key was used with another body: one key, one request."
            raise _refusal(422, message, code="idempotency_key_reused")
        if known.charge is None:
            message = "The request of this Idempotency-Key is under way: ask again for its result."
            raise _refusal(409, message, code="idempotency_key_in_flight", retry_after_s=IN_FLIGHT_RETRY_AFTER_S)
        return known

    def end(self, run: Run, charge: Charge | None) -> None:
        """The run is over. ``charge`` None: it was not answered, so that its key may be used again."""
        assert run.charge is None, "a run ends once"
        if charge is not None:
            run.charge = charge
            return
        del self._runs[run.tenant][run.key_digest]
        self._num_keys -= 1

    def _forget_old(self, runs: OrderedDict[bytes, Run], now_s: float) -> None:
        while runs:
            oldest = next(iter(runs.values()))
            if oldest.begun_s > now_s - self._max_age_s or not self._forget(runs, oldest):
                return

    def _make_room(self, runs: OrderedDict[bytes, Run]) -> None:
        """A tenant beyond its share pays with its own keys; beyond the table's bound whoever has the most does."""
        if len(runs) >= self._max_keys_per_tenant:
            self._forget_first(runs)
        elif self._num_keys >= self._max_keys:
            self._forget_first(max(self._runs.values(), key=len))

    def _forget_first(self, runs: OrderedDict[bytes, Run]) -> None:
        for run in runs.values():
            if self._forget(runs, run):
                return
        raise _refusal(
            503,
            "Too many requests with an Idempotency-Key are under way.",
            code="idempotency_table_full",
            retry_after_s=FULL_RETRY_AFTER_S,
        )

    def _forget(self, runs: OrderedDict[bytes, Run], run: Run) -> bool:
        """False for a run that is under way: it would run twice."""
        if run.charge is None:
            return False
        del runs[run.key_digest]
        self._num_keys -= 1
        return True


def _digest(*parts: bytes, salt: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, key=salt)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _refusal(status: int, message: str, *, code: str, retry_after_s: int | None = None) -> ApiError:
    return ApiError(status, message, code=code, param=IDEMPOTENCY_KEY.decode(), retry_after_s=retry_after_s)
