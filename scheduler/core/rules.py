"""What operators set and may change while everything runs: budgets, weights, zones, the shape of the queue.

Made from the configuration above the core, given to ``scheduler.core.scheduler`` at its start and at each reload. It
must never know how a rule is written in a file, nor how one is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.core.budget_accounts import Budget, Level
from scheduler.core.fairness import WorkWeights
from scheduler.core.parking import DEFAULT_PARKING, ParkingRules
from scheduler.core.price_plan import DEFAULT_DEFERRAL, DeferralRules
from scheduler.core.request import DataClass
from scheduler.core.score import DEFAULT_PLACEMENT, PlacementRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """One consistent set. The default is no budget, equal weights, and general data everywhere."""

    budgets: Mapping[Level, tuple[Budget, ...]] = field(default_factory=dict)
    task_budgets: Mapping[str, tuple[Budget, ...]] = field(default_factory=dict)
    """By tenant: what each of its tasks gets."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """By tenant; 1 where nothing is said."""
    work: Mapping[str, WorkWeights] = field(default_factory=dict)
    """By model: what its tokens cost in catalogue GPU-seconds."""
    zones: Mapping[str, DataClass] = field(default_factory=dict)
    """The highest class of data that each zone may hold; a zone that is not named holds general data."""
    model_zones: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Where workers of each model are configured: elsewhere none will come by itself."""
    carbon_ug_per_mj: Mapping[str, float] = field(default_factory=dict)
    """By zone; 1 gCO₂e/kWh = 1/3600 µg/mJ."""
    reserve_ratio: float = 0.1
    """Part of a worker's credit that only the first band may take."""
    ageing_s: float = 30.0
    """A lower band whose first has waited so long gets every ``ageing_every``-th start."""
    ageing_every: int = 16
    parking: ParkingRules = DEFAULT_PARKING
    """Which engines may be stopped while nobody needs them."""
    placement: PlacementRules = DEFAULT_PLACEMENT
    """What a delay and a GPU-second weigh where a worker is chosen."""
    deferral: DeferralRules = DEFAULT_DEFERRAL
    """How batch-class work with a stated deadline waits for cheaper hours."""

    def __post_init__(self) -> None:
        assert 0 <= self.reserve_ratio < 1, self.reserve_ratio
        assert self.ageing_s >= 0, self.ageing_s
        assert self.ageing_every >= 2, self.ageing_every
