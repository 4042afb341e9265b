"""The price book: what a request costs, by its model, its service tier and the instant at which it arrived.

Called by ``scheduler.api.intake``, which pins the rates to the request, and by ``scheduler.accounting.rerate``; made by
``scheduler.policies``. Pure: it reads no file and asks no clock. It must never know a tenant.

A book never changes; a new one takes its place, and what was admitted keeps its rates. The instant alone decides, in
unix seconds: a clock that is set back an hour gives the price of the hour that it shows, in whatever order it is asked.
Where no entry holds there is no price, and the request is refused, unless the book says that such requests are free.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from scheduler.accounting.price_problems import in_order, problems_of
from scheduler.accounting.price_versions import PriceVersion, tier_name
from scheduler.accounting.tariffs import minute_of_week, zone_of
from scheduler.core.budget_windows import SECOND_US, utc_text
from scheduler.core.request import Rates

MAX_PROBLEMS = 10
"""Of one message."""


class PriceError(ValueError):
    """These versions cannot be a book. ``problems`` are one line each and name versions and entries."""

    def __init__(self, problems: Sequence[str]) -> None:
        told = list(problems[:MAX_PROBLEMS])
        if len(problems) > MAX_PROBLEMS:
            told.append(f"and {len(problems) - MAX_PROBLEMS} more")
        super().__init__("; ".join(told))
        self.problems = tuple(problems)


class NoPrice(LookupError):
    """Nothing says what such a request costs, so it is not run."""

    def __init__(self, model: str, tier: int, at_unix_s: float) -> None:
        super().__init__(f"model {model!r} has no price for service tier {tier_name(tier)} at this time")
        self.model = model
        self.tier = tier
        self.at_unix_s = at_unix_s


@dataclass(frozen=True, slots=True)
class _Week:
    """The rates of one model and tier over a week: from each minute of ``begins`` on, those at the same place."""

    zone: tzinfo
    begins: tuple[int, ...]
    rates: tuple[Rates, ...]

    def at(self, at_unix_s: float) -> Rates:
        if len(self.rates) == 1:
            return self.rates[0]
        return self.rates[bisect_right(self.begins, minute_of_week(at_unix_s, self.zone)) - 1]


class _Force:
    """A version while it is in force: half-open in unix seconds."""

    def __init__(self, version: PriceVersion, end_s: float) -> None:
        self.version = version
        begin_s = version.effective_from_unix_s
        self.begin_s: float = -math.inf if begin_s is None else begin_s
        self.end_s = end_s
        self.weeks = _weeks_of(version)


class PriceBook:
    """All versions that are in force at some time. Made once, never changed, cheap to ask."""

    def __init__(
        self,
        versions: Iterable[PriceVersion] = (),
        *,
        currency: str = "USD",
        approvals: int = 0,
        is_free_where_missing: bool = False,
    ) -> None:
        """``approvals``: people who must have approved a version before it counts; one with fewer is as if it were not
        there, and the one before it stays in force. ``is_free_where_missing``: who has no price pays nothing.

        Raises: PriceError where two prices hold at once, none holds in between, one is negative, currencies are mixed.
        """
        given = in_order(tuple(versions))
        if problems := problems_of(given, currency=currency):
            raise PriceError(problems)
        self.currency = currency
        self.approvals = approvals
        self.is_free_where_missing = is_free_where_missing
        self.versions = tuple(given)
        """All of them, in order of their beginnings."""
        self.pending = tuple(version for version in given if len(version.approved_by) < approvals)
        """Those that are not approved by enough people."""
        approved = [version for version in given if len(version.approved_by) >= approvals]
        self._forces = [_Force(version, _end_of(approved, place)) for place, version in enumerate(approved)]
        self._begins = [force.begin_s for force in self._forces]
        self._free = Rates(currency=currency)

    def rates(self, model: str, tier: int, at_unix_s: float) -> Rates:
        """What such a request costs, with the version that says so. ``tier``: a ``Band``. Raises: NoPrice."""
        force = self._force_at(at_unix_s)
        week = None if force is None else force.weeks.get((model, tier))
        if week is not None:
            return week.at(at_unix_s)
        if self.is_free_where_missing:
            return self._free
        raise NoPrice(model, tier, at_unix_s)

    def version_at(self, at_unix_s: float) -> PriceVersion | None:
        """The one that is in force then."""
        force = self._force_at(at_unix_s)
        return None if force is None else force.version

    def warnings(self, models: Iterable[str], at_unix_s: float) -> list[str]:
        """What an operator should know at this time: versions that do not count, times and models without a price."""
        lines = [
            f"price version {version.name} has {len(version.approved_by)} of {self.approvals} approvals: "
            "it is not in force"
            for version in self.pending
        ]
        if not self._forces and self.is_free_where_missing:
            return lines
        fate = "are free" if self.is_free_where_missing else "are refused (no_price)"
        if self._force_at(at_unix_s) is None:
            lines.append(f"no price version is in force now: requests {fate}")
        for force in self._forces:
            unpriced = sorted(set(models) - {model for model, _ in force.weeks})
            if unpriced and force.end_s > at_unix_s:
                lines.append(f"price version {force.version.name} has none for {', '.join(unpriced)}: requests {fate}")
        if self._forces and at_unix_s < self._forces[-1].end_s < math.inf:
            ends = utc_text(int(self._forces[-1].end_s) * SECOND_US)
            lines.append(
                f"price version {self._forces[-1].version.name} ends at {ends} and none follows: later requests {fate}"
            )
        return lines

    def _force_at(self, at_unix_s: float) -> _Force | None:
        place = bisect_right(self._begins, at_unix_s) - 1
        if place < 0 or not self._begins[place] <= at_unix_s < self._forces[place].end_s:
            return None
        return self._forces[place]


NO_PRICES = PriceBook(is_free_where_missing=True)
"""Nothing has a price and nothing is refused for it: a demo, a bench."""


def _end_of(versions: Sequence[PriceVersion], place: int) -> float:
    """Where the version at this place ends: where it says, else where the next one begins."""
    end_s = versions[place].effective_to_unix_s
    if end_s is None and place + 1 < len(versions):
        end_s = versions[place + 1].effective_from_unix_s
    return math.inf if end_s is None else end_s


def _weeks_of(version: PriceVersion) -> dict[tuple[str, int], _Week]:
    """By model and tier; every rate carries the version's id."""
    version_id = version.version_id()
    spans: dict[tuple[str, int], list[tuple[int, Rates]]] = {}
    zones: dict[tuple[str, int], tzinfo] = {}
    for entry in version.entries:
        rates = entry.rates._replace(version=version_id)
        for tier in entry.tiers:
            zones[entry.model, tier] = zone_of(entry.tariff.time_zone)
            spans.setdefault((entry.model, tier), []).extend((begin, rates) for begin, _ in entry.tariff.spans)
    weeks = {}
    for key, begun in spans.items():
        begun.sort(key=lambda each: each[0])
        weeks[key] = _Week(zones[key], tuple(begin for begin, _ in begun), tuple(rates for _, rates in begun))
    return weeks
