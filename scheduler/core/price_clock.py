"""What energy costs now and later, by zone, on the core's own clock: rules that change by time alone.

Owned by ``scheduler.core.scheduler``, told by its drivers. It must never know unix time, a tariff or a file: whoever
tells it has converted all of that. Between two changes it costs one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

from scheduler.core.cluster import Cluster
from scheduler.core.holds import Holds
from scheduler.core.rules import Rules
from scheduler.core.starting import Starter
from scheduler.core.steps import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyPrices:
    """By zone, over the core's time; a zone that is not named has 0."""

    nano_per_joule: Mapping[str, Steps[float]] = field(default_factory=dict)
    """10⁻⁹ currency units for a joule at the meter; may be below 0."""
    carbon_ug_per_mj: Mapping[str, Steps[float]] = field(default_factory=dict)
    """1 gCO₂e/kWh = 1/3600 µg/mJ."""

    def shifted(self, by_s: float) -> EnergyPrices:
        """The same on a clock that shows so much more."""
        return EnergyPrices(
            nano_per_joule={zone: steps.shifted(by_s) for zone, steps in self.nano_per_joule.items()},
            carbon_ug_per_mj={zone: steps.shifted(by_s) for zone, steps in self.carbon_ug_per_mj.items()},
        )


class PriceClock:
    """``next_s``: when a price or an intensity changes next; infinite while none is known to."""

    def __init__(self, cluster: Cluster, starter: Starter, holds: Holds) -> None:
        self._cluster = cluster
        self._starter = starter
        self._holds = holds
        self._prices: EnergyPrices | None = None
        self.next_s = inf

    def set(self, prices: EnergyPrices) -> None:
        """From now on: the next step is due at once."""
        self._prices = prices
        self.next_s = -inf

    def step(self, rules: Rules, now_s: float) -> Rules:
        """The rules with what holds now, told to everybody who decides by prices or intensities."""
        rules = self.applied(rules, now_s)
        self._starter.reload(rules)
        self._holds.reload_carbon(rules.carbon_ug_per_mj)
        self._cluster.memo.clear()  # it keeps a row for every price that there was
        return rules

    def applied(self, rules: Rules, now_s: float) -> Rules:
        """The rules with what holds now; as they are where nothing was ever set."""
        prices = self._prices
        if prices is None:
            return rules
        every = [*prices.nano_per_joule.values(), *prices.carbon_ug_per_mj.values()]
        self.next_s = min([steps.next_s(now_s) for steps in every], default=inf)
        placement = replace(rules.placement, nano_per_joule=_now(prices.nano_per_joule, now_s))
        return replace(rules, placement=placement, carbon_ug_per_mj=_now(prices.carbon_ug_per_mj, now_s))


def _now(by_zone: Mapping[str, Steps[float]], now_s: float) -> dict[str, float]:
    """Zones that have another value than 0."""
    return {zone: value for zone, steps in by_zone.items() if (value := steps.at(now_s))}
