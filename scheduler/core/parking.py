"""Which engines are loaded: those that the load needs, now or before another could be awake. The others are parked.

Called by ``scheduler.core.scheduler``. It must never know a request's way, a link or a clock.

An engine is *surplus* while the others that are up would do for the forecast. It is parked when

    surplus so far · (idle − parked watts) · price  >  start joules · price + ε·V·start time

For how long an engine will be idle nobody knows; that it was surplus for so long already is the estimate (the longer it
was, the longer it will be), and whoever stops by this rule never pays more than twice what who knows the future pays.
What a wake would cost those who come meanwhile is not in this sum: a second beyond their target is worth millions of
joules, so that a sum of both would never park. It is a bound instead: the forecast is the quantile of what may come
before an engine could be awake, and by it a load exceeds what is up in one of ``1 / (1 − QUANTILE)`` looks.

Wanted engines are taken in the order of what the load would cost on them, by their zone's price of energy. Nothing is
parked where energy has no price: then there is nothing to save.

A forecast knows tokens, not how unlike prompts are: one of 80,000 tokens takes an engine for seconds. So it is held
against what happens. Where more than two placements in a hundred had to break a promise, because no engine that is up
kept all of them, the forecast is *boosted* until that is so no longer; the boost ebbs away as it is not needed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.core.actions import Park, Wake
from scheduler.core.capacity import curves_of, engines, saved_watts, watts
from scheduler.core.cluster import Cluster, Worker, WorkerView
from scheduler.core.demand import WINDOW_S, Demand
from scheduler.core.estimates import ModelEstimates
from scheduler.core.request import DEFAULT_SLO, Band, Request, Slo
from scheduler.core.score import PlacementRules
from workers.types import WorkerState

QUANTILE = 0.9
MARGIN_S = 15.0
"""An engine is told to wake so much earlier than it has to be: a load is only known after it came."""
IDLE_S = 5.0
"""Nothing ran on an engine for so long before it is stopped."""
CROWDED_RATIO = 0.02
"""Of placements, that may break a promise."""
BOOST_GAIN = 0.05
MAX_BOOST = 8.0
LEAST_ENGINES = 1e-12
"""That a second of work takes, where none ever came."""
MAX_LOOKS = 600
"""Forecasts that are kept, two seconds apart: nothing pays only after twenty minutes that does not pay at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkingRules:
    """What operators set."""

    warm: Mapping[str, int] = field(default_factory=dict)
    """By model: so many engines are never parked. 0: all may be, and whoever comes first waits for a start."""
    default_warm: int = 1


DEFAULT_PARKING = ParkingRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """How a model's engines stand against what is asked of them, in engines like its best one."""

    level: float
    forecast: float
    up: float
    """Ready or starting."""
    parked: float


class _Model:
    """What is known of one model's load."""

    def __init__(self, now_s: float) -> None:
        self.demand = Demand(now_s)
        self.slo: Slo = DEFAULT_SLO
        self.boost = 1.0
        self.num_placed = self.num_crowded = 0
        """Since the last look."""
        self.forecasts: deque[tuple[float, float]] = deque(maxlen=MAX_LOOKS)
        """When, and how much work a second."""

    def adjust(self, *, most: float) -> None:
        """The boost follows what had to break promises since the last look. ``most`` asks for every engine there is."""
        self.boost += BOOST_GAIN * (self.num_crowded - CROWDED_RATIO * self.num_placed)
        self.boost = max(min(self.boost, most, MAX_BOOST), 1.0)
        self.num_placed = self.num_crowded = 0


class Parking:
    """Looks every two seconds, model by model."""

    def __init__(self, cluster: Cluster, rules: ParkingRules) -> None:
        self.outlooks: dict[str, Outlook] = {}
        """By model, as of the last look."""
        self._cluster = cluster
        self._rules = rules
        self._models: dict[str, _Model] = {}
        self._next_s = 0.0
        self._idle_since_s: dict[str, float] = {}
        self._unix_offset_s: float | None = None

    def reload(self, rules: ParkingRules) -> None:
        """Other rules from now on."""
        self._rules = rules

    def arrived(self, request: Request, estimates: ModelEstimates, now_s: float) -> None:
        """A request that may run; what it brings is counted as expected."""
        model = self._model(request.model, now_s)
        output_tokens = min(estimates.mean_output_tokens, request.max_output_tokens) * request.num_sequences
        model.demand.add(estimates.prompt_tokens(request) * (1.0 - estimates.cached_ratio), output_tokens)
        model.slo = request.slo
        if request.arrival_unix_s:
            self._unix_offset_s = request.arrival_unix_s - request.arrival_s

    def placed(self, request: Request, *, is_crowded: bool) -> None:
        """A request was started; batch-class work may come late and says nothing."""
        model = self._models.get(request.model)
        if model is not None and request.band < Band.FLEX:
            model.num_placed += 1
            model.num_crowded += is_crowded

    def tick(self, waiting: Collection[str], placement: PlacementRules, now_s: float) -> list[Park | Wake]:
        """What to stop and to start. ``waiting``: models for which somebody waits."""
        if now_s < self._next_s:
            return []
        self._next_s = now_s + WINDOW_S
        actions: list[Park | Wake] = []
        for name, workers in self._by_model(now_s).items():
            look = _Look(self._model(name, now_s), workers, placement, now_s, self._unix_s(now_s))
            warm = self._rules.warm.get(name, self._rules.default_warm)
            is_waiting = name in waiting
            wakes = look.wakes(warm, is_waiting=is_waiting)
            actions += wakes if wakes or is_waiting else look.parks(warm, self._idle_since_s)
            self.outlooks[name] = look.outlook()
        return actions

    def _by_model(self, now_s: float) -> dict[str, list[Worker]]:
        """Workers of models of which some engine can be parked; who serves several models is left alone."""
        by_model: dict[str, list[Worker]] = {}
        for worker in self._cluster.workers.values():
            if worker.claims or worker.view.num_running or worker.view.state is not WorkerState.READY:
                self._idle_since_s.pop(worker.worker_id, None)
            else:
                self._idle_since_s.setdefault(worker.worker_id, now_s)
            if len(worker.view.models) == 1:
                by_model.setdefault(worker.view.models[0], []).append(worker)
        for worker_id in self._idle_since_s.keys() - self._cluster.workers.keys():
            del self._idle_since_s[worker_id]
        return {
            name: workers
            for name, workers in by_model.items()
            if any(worker.view.power_states is not None for worker in workers)
        }

    def _model(self, name: str, now_s: float) -> _Model:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = _Model(now_s)
        return model

    def _unix_s(self, now_s: float) -> float | None:
        return None if self._unix_offset_s is None else now_s + self._unix_offset_s


class _Look:
    """One look at one model. Work and forecasts are in the seconds of ``Demand``; capacities are work a second."""

    def __init__(
        self,
        model: _Model,
        workers: Sequence[Worker],
        placement: PlacementRules,
        now_s: float,
        unix_s: float | None,
    ) -> None:
        self._model, self._nano_per_joule, self._now_s = model, placement.nano_per_joule, now_s
        self._delay_nano_per_s = placement.delay_ratio * model.slo.value_nano_per_s
        ahead_s = max(each.view.power_states.start_s for each in workers if each.view.power_states) + MARGIN_S
        prefill_s, decode_s = curves_of(workers[0].view).time_s[1:3]
        demand = model.demand
        demand.advance(now_s, weights=(prefill_s, decode_s), ahead_s=ahead_s, unix_s=unix_s)
        taken = {each.worker_id: engines(each.view, demand.mix, model.slo.tpot_s) for each in workers}
        self._capacity = {worker_id: 1.0 / max(each, LEAST_ENGINES) for worker_id, each in taken.items()}
        forecast_s = demand.forecast_s(QUANTILE, ahead_s=ahead_s, unix_s=unix_s)
        model.adjust(most=self._sum(workers) / forecast_s if forecast_s else 1.0)
        self._forecast_s = forecast_s * model.boost
        model.forecasts.append((now_s, self._forecast_s))
        self._workers = sorted(workers, key=lambda each: (self._cost(each.view), each.worker_id))
        self._up = [each for each in self._workers if each.view.state in (WorkerState.READY, WorkerState.STARTING)]
        self._up_capacity = self._sum(self._up)

    def wakes(self, warm: int, *, is_waiting: bool) -> list[Park | Wake]:
        """The cheapest that sleep, until all that are up would do; one where somebody waits and nobody starts yet."""
        is_starting = any(each.view.state is WorkerState.STARTING for each in self._up)
        capacity, num_up, actions = self._up_capacity, len(self._up), list[Park | Wake]()
        for worker in self._parked:
            if capacity < self._forecast_s:
                reason = f"{1.0 - capacity / self._forecast_s:.0%} of the load that may come has no engine"
            elif num_up < warm:
                reason = f"{num_up} of {warm} warm engines are up"
            elif is_waiting and not is_starting and not actions:
                reason = "requests wait"
            else:
                break
            actions.append(Wake(worker_id=worker.worker_id, reason=reason))
            capacity += self._capacity[worker.worker_id]
            num_up += 1
        return actions

    def parks(self, warm: int, idle_since_s: Mapping[str, float]) -> list[Park | Wake]:
        """The dearest of which nothing has run for a while, as long as that pays."""
        num_up, capacity, actions = len(self._up), self._up_capacity, list[Park | Wake]()
        for worker in reversed(self._up):
            view, idle_s = worker.view, self._now_s - idle_since_s.get(worker.worker_id, math.inf)
            if num_up <= warm:
                break
            if idle_s < IDLE_S:
                continue
            left = capacity - self._capacity[worker.worker_id] if num_up > 1 else 0.0  # exactly
            surplus_s = self._surplus_s(left)
            if pays(view, surplus_s, self._nano_per_joule.get(view.zone, 0.0), self._delay_nano_per_s):
                actions.append(Park(worker_id=worker.worker_id, reason=f"not needed for {surplus_s:.0f} s"))
                num_up, capacity = num_up - 1, left
        return actions

    def outlook(self) -> Outlook:
        """In engines like the cheapest."""
        unit = self._capacity[self._workers[0].worker_id]
        if not self._forecast_s:
            return Outlook(level=0.0, forecast=0.0, up=float(len(self._up)), parked=float(len(self._parked)))
        return Outlook(
            level=self._model.demand.level_s / unit,
            forecast=self._forecast_s / unit,
            up=self._up_capacity / unit,
            parked=self._sum(self._parked) / unit,
        )

    @property
    def _parked(self) -> list[Worker]:
        return [each for each in self._workers if each.view.state is WorkerState.PARKED]

    def _surplus_s(self, capacity: float) -> float:
        """For how long so much would have done for every forecast."""
        since_s = self._now_s
        for at_s, forecast_s in reversed(self._model.forecasts):
            if capacity < forecast_s:
                break
            since_s = at_s
        return self._now_s - since_s

    def _sum(self, workers: Sequence[Worker]) -> float:
        return sum(self._capacity[each.worker_id] for each in workers)

    def _cost(self, view: WorkerView) -> float:
        """Of the load on engines like this, in money a second; what they draw where nothing has a price."""
        price = self._nano_per_joule.get(view.zone, 0.0)
        drawn = watts(view, self._model.demand.mix, self._model.slo.tpot_s)
        return drawn * price if price else drawn


def pays(view: WorkerView, surplus_s: float, nano_per_joule: float, delay_nano_per_s: float) -> bool:
    """Whether an engine that was surplus for so long is better parked: the inequality of the module's head.

    ``delay_nano_per_s`` is what a second within the target is worth, ε·V.
    """
    states = view.power_states
    if states is None or nano_per_joule <= 0.0:
        return False
    start_joules = states.start_s * max(states.start_watts - states.parked_watts, 0.0)
    start_nano = start_joules * nano_per_joule + states.start_s * delay_nano_per_s
    return surplus_s * saved_watts(view) * nano_per_joule > start_nano
