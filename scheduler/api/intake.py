"""A body and its headers become a request of the core: checked, bounded, priced, and hashed where a cache may know it.

Called by ``scheduler.api.openai`` and ``scheduler.api.what_if``. It must never know a worker or a budget, and it keeps
nothing of a body.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scheduler.accounting.prices import NO_PRICES, NoPrice, PriceBook
from scheduler.api import request_headers
from scheduler.api.access import Caller
from scheduler.api.ask import Ask
from scheduler.api.errors import ApiError
from scheduler.api.limits import RelayLimits, ServedModel
from scheduler.api.prefix import prefix_blocks
from scheduler.api.request_headers import Headers, Wishes
from scheduler.api.schemas import parse
from scheduler.core.request import Band, Rates, Request

MODEL_MISSING = "This model does not exist here: see /v1/models."


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """What may be submitted."""

    request: Request
    ask: Ask
    wishes: Wishes
    salt: bytes
    """Of the tenant's prefix caches."""


class Intake:
    """Checks what can be told without a budget, a queue or an engine."""

    def __init__(
        self,
        *,
        models: Mapping[str, ServedModel],
        limits: RelayLimits,
        salt_key: bytes,
        zones: frozenset[str] | None = None,
        prices: PriceBook = NO_PRICES,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """``zones``: every configured zone; None = not known here."""
        self._prices = prices
        self._models = models
        self._limits = limits
        self._salt_key = salt_key
        self._zones = zones
        self._unix_clock = unix_clock
        self._salts: dict[str, bytes] = {}

    def admit(
        self, path: str, headers: Headers, body: bytes, *, caller: Caller, arrival_s: float, request_id: str
    ) -> Admitted:
        """Raises: ApiError 400, 403, 404; 503 where nothing says what it costs."""
        limits = self._limits
        wishes = request_headers.read(headers, caller, known_zones=self._zones)
        ask = parse(path, body, max_output_tokens=limits.max_output_tokens)
        model = self._models.get(ask.model)
        if model is None:
            raise ApiError(404, MODEL_MISSING, code="model_not_found", param="model")
        salt = self.salt_of(caller.tenant)
        band = max(Band.of_service_tier(ask.service_tier), caller.best_band)
        arrival_unix_s = self._unix_clock()
        request = Request(
            request_id=request_id,
            tenant=caller.tenant,
            project=caller.project,
            key_id=caller.key_id,
            model=model.name,
            band=band,
            prompt_tokens_bound=ask.prompt_tokens_bound(model.expansion),
            max_output_tokens=model.default_output_tokens if ask.max_output_tokens is None else ask.max_output_tokens,
            num_sequences=ask.num_sequences,
            arrival_s=arrival_s,
            arrival_unix_s=arrival_unix_s,
            deadline_s=arrival_s + _window_s(limits, wishes.deadline_s, band),
            is_deferrable=band == Band.FLEX and wishes.deadline_s is not None,
            body_bytes=len(ask.body),
            task=wishes.task,
            data_class=wishes.data_class,
            zones=wishes.zones,
            rates=self._rates(model.name, band, arrival_unix_s),
            slo=model.slo,
            prefix_blocks=prefix_blocks(ask.body, salt=salt),
        )
        return Admitted(request=request, ask=ask, wishes=wishes, salt=salt)

    def reload(self, prices: PriceBook) -> None:
        """Other prices from now on; what was admitted keeps its rates."""
        self._prices = prices

    def _rates(self, model: str, band: Band, at_unix_s: float) -> Rates:
        """Pinned from here on: of its arrival, and of the tier that its key lets it have."""
        try:
            return self._prices.rates(model, band, at_unix_s)
        except NoPrice as error:
            remedy = "the operator must give one (prices.versions), or say that it is free (prices.missing: free)"
            raise ApiError(
                503, f"It is not run unpaid: {error}; {remedy}.", code="no_price", param="model", should_retry=False
            ) from None

    def salt_of(self, tenant: str) -> bytes:
        """Keeps tenants' prefix caches apart (design §8): nobody can learn from timing what another one asked."""
        salt = self._salts.get(tenant)
        if salt is None:
            salt = hmac.new(self._salt_key, tenant.encode(), hashlib.sha256).hexdigest()[:32].encode()
            self._salts[tenant] = salt  # as many as there are configured tenants
        return salt


def _window_s(limits: RelayLimits, asked_s: float | None, band: Band) -> float:
    """From its arrival to its deadline. Of batch class a client may state a later one than everybody's."""
    if asked_s is None:
        return limits.request_timeout_s
    is_batch = band == Band.FLEX
    return min(asked_s, max(limits.request_timeout_s, limits.max_window_s if is_batch else 0.0))
