"""When the work of one model that may wait is cheapest: future time in slices, each with a price and room for work.

Made by ``scheduler.core.deferral``. Pure: time is an argument. It must never know a request, a queue or a worker.

It is a plan of fluids: work is seconds of computing of a full engine, and a slice of some zone has room for the seconds
of its engines times a share. Work that the cheapest slices have no room for spills over to the next cheapest, so that
what is put off never adds up to more than the engines can compute in time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np

from scheduler.core.steps import Steps

SLICE_S = 900.0
"""The longest slice: what is put off to one comes in at its beginning, and waits for an engine within it."""
MIN_SAVING_RATIO = 0.01
"""For less of the price now nobody waits: a feed's last digits would move work by hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferralRules:
    """What operators may weigh."""

    margin_s: float = 1_800.0
    """Kept free before a deadline, beside the time that the request takes."""
    margin_ratio: float = 2.0
    """So many times the longest time that it is expected to take."""
    capacity_ratio: float = 0.7
    """Part of its engines' time that is planned for work that waited."""

    def __post_init__(self) -> None:
        assert self.margin_s >= 0, self.margin_s
        assert self.margin_ratio >= 1, self.margin_ratio
        assert 0 < self.capacity_ratio <= 1, self.capacity_ratio


DEFAULT_DEFERRAL = DeferralRules()


class Postponed(NamedTuple):
    """What was decided for one request, in the core's time; prices in 10⁻⁹ currency units a joule."""

    until_s: float
    latest_s: float
    """Later than this it never begins, whatever it costs."""
    now_nano_per_joule: float
    then_nano_per_joule: float
    work_s: float
    """Of a full engine."""
    slot: int
    """Of the plan that it stands in, or ``NO_SLOT``."""


NO_SLOT = -1


class PricePlan:
    """Room and price of every slice and zone between two moments. ``engines`` by zone: those that are there."""

    def __init__(
        self,
        prices: Mapping[str, Steps[float]],
        engines: Mapping[str, int],
        *,
        from_s: float,
        to_s: float,
        capacity_ratio: float,
    ) -> None:
        self.zones: Sequence[str] = sorted(zone for zone, number in engines.items() if number)
        self.to_s = to_s
        self._engines = {zone: engines[zone] for zone in self.zones}
        self._steps = [prices.get(zone, Steps.always(0.0)) for zone in self.zones]
        grid = np.arange(ceil(from_s / SLICE_S), ceil(to_s / SLICE_S)) * SLICE_S
        changes = [at_s for steps in self._steps for at_s in steps.between(from_s, to_s)]
        starts = np.unique(np.concatenate(([from_s], grid[grid > from_s], changes)))
        lengths = np.diff(starts, append=to_s)
        size = len(self.zones)
        price = np.array([[steps.at(at_s) for at_s in starts] for steps in self._steps]).reshape(size, len(starts))
        order = np.lexsort((np.tile(starts, size), price.ravel()))
        # Plain lists from the cheapest slice on: most requests look at one or two of them.
        self._price: list[float] = price.ravel()[order].tolist()
        self._start: list[float] = np.tile(starts, size)[order].tolist()
        self._zone: list[int] = np.repeat(np.arange(size), len(starts))[order].tolist()
        each = np.array([float(self._engines[zone]) for zone in self.zones])
        self._room: list[float] = (capacity_ratio * np.outer(each, lengths)).ravel()[order].tolist()
        self._first = 0
        """Before it every slice is full or over."""

    def is_for(self, engines: Mapping[str, int]) -> bool:
        """Whether it was made for so many engines."""
        return self._engines == {zone: number for zone, number in engines.items() if number}

    def put_off(self, work_s: float, *, may_run: Sequence[bool], now_s: float, latest_s: float) -> Postponed | None:
        """The cheapest slice with room, in time, and cheaper than beginning now; its room is taken. None: begin now.

        ``may_run``: in which of ``zones``, at least in one. Of equal prices the earlier slice.
        """
        now_price = min([steps.at(now_s) for steps, may in zip(self._steps, may_run, strict=True) if may])
        dearest = now_price - MIN_SAVING_RATIO * abs(now_price)
        price, start, room, size = self._price, self._start, self._room, len(self._price)
        while self._first < size and (room[self._first] <= 0.0 or start[self._first] <= now_s):
            self._first += 1
        slot = self._first
        while slot < size and price[slot] < dearest:
            if now_s < start[slot] <= latest_s and room[slot] > 0.0 and may_run[self._zone[slot]]:
                room[slot] -= work_s
                return Postponed(
                    until_s=start[slot],
                    latest_s=latest_s,
                    now_nano_per_joule=now_price,
                    then_nano_per_joule=price[slot],
                    work_s=work_s,
                    slot=slot,
                )
            slot += 1
        return None

    def give_back(self, postponed: Postponed) -> None:
        """Whoever stood in this plan left before its time."""
        if postponed.slot != NO_SLOT:
            self._room[postponed.slot] += postponed.work_s
            self._first = min(self._first, postponed.slot)
