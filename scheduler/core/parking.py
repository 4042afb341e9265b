"""Which engines are loaded: those that the load needs now and will need soon; the others are parked while it pays.

Called by ``scheduler.core.scheduler``. It must never know a request's way, a link or a clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from scheduler.core.actions import Park, Wake
from scheduler.core.cluster import Cluster, Worker
from scheduler.core.curves import PRIOR_CURVES, is_sound
from workers.types import WorkerState

PERIOD_S = 1.0
WINDOW_S = 2.0
MEAN_WINDOWS = 5
SLACK_S = 1.0
BIN = 0.125
"""Of an engine: how exactly needs are counted."""
HALF_LIFE_WINDOWS = 450
TPOT_RATIO = 0.8
"""Of the target pace, which an engine is planned to keep on average."""
QUANTILE = 0.97
MIN_WINDOWS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkingRules:
    """What operators set."""

    warm: int = 1
    """Engines of a model that are never parked."""
    tpot_s: float = 0.05


@dataclass(slots=True)
class _Demand:
    """Of one model."""

    window_since_s: float
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    recent: list[tuple[float, float]] = field(default_factory=list)
    """Tokens a second, of the last windows."""
    counts: dict[int, float] = field(default_factory=dict)
    """Windows by need, in bins; old ones fade."""
    work: dict[int, float] = field(default_factory=dict)
    """Likewise, by the work that came in them."""
    num_windows: float = 0.0


class Parking:
    """Looks once a second."""

    def __init__(self, cluster: Cluster, rules: ParkingRules) -> None:
        self._cluster = cluster
        self._rules = rules
        self._demands: dict[str, _Demand] = {}
        self._next_s = 0.0
        self._idle_since: dict[str, float] = {}

    def arrived(self, model: str, prompt_tokens: float, output_tokens: float, now_s: float) -> None:
        """A request, as expected."""
        demand = self._demands.get(model)
        if demand is None:
            demand = self._demands[model] = _Demand(now_s)
        demand.prompt_tokens += prompt_tokens
        demand.output_tokens += output_tokens

    def tick(self, waiting: Iterable[str], now_s: float) -> list[Park | Wake]:
        """What to park and to wake."""
        if now_s < self._next_s:
            return []
        self._next_s = now_s + PERIOD_S
        by_model: dict[str, list[Worker]] = {}
        for worker in self._cluster.workers.values():
            if worker.claims or worker.view.state is not WorkerState.READY:
                self._idle_since.pop(worker.worker_id, None)
            else:
                self._idle_since.setdefault(worker.worker_id, now_s)
            if len(worker.view.models) == 1:
                by_model.setdefault(worker.view.models[0], []).append(worker)
        waits = set(waiting)
        return [each for model, workers in by_model.items() for each in self._of_model(model, workers, model in waits, now_s)]

    def _of_model(self, model: str, workers: list[Worker], is_waiting: bool, now_s: float) -> list[Park | Wake]:
        demand = self._demands.get(model)
        if demand is None:
            demand = self._demands[model] = _Demand(now_s)
        workers = sorted(workers, key=lambda worker: worker.worker_id)
        while now_s - demand.window_since_s >= WINDOW_S:
            self._close_window(demand, workers)
        if demand.num_windows < MIN_WINDOWS:
            return []
        up = [each for each in workers if each.view.state in (WorkerState.READY, WorkerState.STARTING)]
        parked = [each for each in workers if each.view.state is WorkerState.PARKED]
        need = max(self._quantile(demand), self._now(demand, workers), float(self._rules.warm))
        wanted = math.ceil(need - 1e-9)
        if len(up) < wanted or is_waiting:
            return [Wake(worker_id=each.worker_id, reason="needed") for each in parked[: max(wanted - len(up), 1)]]
        actions: list[Park | Wake] = []
        num_up = len(up)
        for worker in reversed(up):
            power = worker.view.power_states
            if num_up <= wanted or power is None:
                break
            idle_since_s = self._idle_since.get(worker.worker_id)
            if idle_since_s is None or now_s - idle_since_s < 5.0 or worker.view.state is not WorkerState.READY:
                continue
            curves = worker.view.curves or PRIOR_CURVES
            saved_watts = curves.idle_watts - power.parked_watts
            start_j = power.start_s * (power.start_watts - power.parked_watts)
            if saved_watts * self._until(demand, num_up - 1) > start_j:
                actions.append(Park(worker_id=worker.worker_id, reason="idle"))
                num_up -= 1
        return actions

    def _close_window(self, demand: _Demand, workers: list[Worker]) -> None:
        x, y = demand.prompt_tokens / WINDOW_S, demand.output_tokens / WINDOW_S
        demand.prompt_tokens = demand.output_tokens = 0.0
        demand.window_since_s += WINDOW_S
        demand.recent = [*demand.recent[-MEAN_WINDOWS + 1:], (x, y)]
        need = self._needed(demand, workers)
        fade = 0.5 ** (1 / HALF_LIFE_WINDOWS)
        for each in (demand.counts, demand.work):
            for index in each:
                each[index] *= fade
        index = math.ceil(need / BIN)
        demand.counts[index] = demand.counts.get(index, 0.0) + 1.0
        demand.work[index] = demand.work.get(index, 0.0) + x
        demand.num_windows = demand.num_windows * fade + 1.0

    def _need(self, x: float, y: float, workers: list[Worker]) -> float:
        """Engines, the first ones first."""
        left, num = 1.0, 0.0
        for worker in workers:
            curves = worker.view.curves if worker.view.curves is not None and is_sound(worker.view.curves) else PRIOR_CURVES
            t0_s, prefill_s, decode_s, _ = curves.time_s
            share = (1.0 - t0_s / (TPOT_RATIO * self._rules.tpot_s)) / max(x * prefill_s + y * decode_s, 1e-12)
            if share >= left:
                return num + left / share
            left -= max(share, 0.0)
            num += 1.0
        return num + 1.0

    def _now(self, demand: _Demand, workers: list[Worker]) -> float:
        """By the last windows."""
        return self._needed(demand, workers)

    def _needed(self, demand: _Demand, workers: list[Worker]) -> float:
        x = sum(each[0] for each in demand.recent) / len(demand.recent)
        y = sum(each[1] for each in demand.recent) / len(demand.recent)
        burst = demand.recent[-1][0] * WINDOW_S / (WINDOW_S + SLACK_S)
        return max(self._need(x, y, workers), self._need(burst * (1.0 - 0.0067 / 0.04), 0.0, workers))

    def _quantile(self, demand: _Demand) -> float:
        total, seen = sum(demand.work.values()), 0.0
        for index in sorted(demand.work, reverse=True):
            seen += demand.work[index]
            if seen > (1 - QUANTILE) * total:
                return index * BIN
        return 0.0

    def _until(self, demand: _Demand, num_engines: int) -> float:
        """Seconds until more than so many engines are needed, as it was so far."""
        beyond = sum(count for index, count in demand.counts.items() if index * BIN > num_engines)
        return WINDOW_S * (demand.num_windows + 1.0) / (beyond + 1.0)
