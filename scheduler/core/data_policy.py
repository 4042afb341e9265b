"""Where data may be: which zones may run a request, by its data class and the zones it allows.

Owned by ``scheduler.core.scheduler``, asked by ``scheduler.core.filters`` at every placement, retry and preemption. It
must never know a worker, a queue or how busy a zone is: no load can open a zone.

It fails closed. A zone that nobody named holds general data only; a request that names zones runs in no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scheduler.core.request import DataClass, Request

MAX_KEPT = 1_024
"""Combinations of class and zones whose answer is kept; then all are worked out anew."""


class DataPolicy:
    """``zones``: the highest class each may hold. ``model_zones``: where workers of each model are configured."""

    def __init__(
        self,
        zones: Mapping[str, DataClass] | None = None,
        model_zones: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self.version = 0
        """Counts the reloads: what was worked out by an older one is out of date."""
        self._seen: dict[str, set[str]] = {}
        """By model: zones in which a worker of it ever was. They come from workers' labels, so they are few."""
        self.reload(zones or {}, model_zones or {})

    def reload(self, zones: Mapping[str, DataClass], model_zones: Mapping[str, Iterable[str]]) -> None:
        """Other rules from now on: for who waits too, and for who comes back from a lost worker."""
        self.version += 1
        self._zones = dict(zones)
        self._model_zones = {model: frozenset(names) for model, names in model_zones.items()}
        self._mismatches: dict[tuple[str, DataClass, frozenset[str] | None], bool] = {}
        self._kept: dict[tuple[DataClass, frozenset[str] | None], tuple[list[str], NDArray[np.bool_]]] = {}

    def see(self, models: Iterable[str], zone: str) -> None:
        """A worker of these models is in the zone."""
        for model in models:
            seen = self._seen.setdefault(model, set())
            if zone not in seen:
                seen.add(zone)
                self._mismatches.clear()

    def class_of(self, zone: str) -> DataClass:
        """The highest class of data that the zone may hold."""
        return self._zones.get(zone, DataClass.GENERAL)

    def may(self, request: Request, zone: str) -> bool:
        """Whether the zone may run the request."""
        return self.class_of(zone) >= request.data_class and (request.zones is None or zone in request.zones)

    def mask(self, request: Request, zones: Sequence[str]) -> NDArray[np.bool_]:
        """``may`` for each of the zones."""
        key = (request.data_class, request.zones)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == zones:
            return kept[1]
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        mask = np.array([self.may(request, zone) for zone in zones], dtype=np.bool_)
        self._kept[key] = (list(zones), mask)
        return mask

    def known_zones(self, model: str) -> list[str]:
        """Where the model's workers are configured, or ever were, in order."""
        return sorted(self._model_zones.get(model, frozenset()) | self._seen.get(model, set()))

    def zones_of(self, request: Request) -> list[str]:
        """The known zones of its model that may run it, in order."""
        return [zone for zone in self.known_zones(request.model) if self.may(request, zone)]

    def mismatch(self, request: Request) -> bool:
        """True: no worker may ever run it as things are configured, so that it is refused and does not wait.

        Where a model's workers are known it is their zones that count. Where none is known yet, any zone might get one:
        then it is enough that some zone may hold the data.
        """
        key = (request.model, request.data_class, request.zones)
        mismatch = self._mismatches.get(key)
        if mismatch is None:
            if len(self._mismatches) >= MAX_KEPT:
                self._mismatches.clear()
            mismatch = self._mismatches[key] = self._is_mismatch(request)
        return mismatch

    def _is_mismatch(self, request: Request) -> bool:
        known = self.known_zones(request.model)
        if known:
            return not any(self.may(request, zone) for zone in known)
        if request.data_class is DataClass.GENERAL:
            return request.zones is not None and not request.zones
        return not any(self.may(request, zone) for zone in self._zones)
