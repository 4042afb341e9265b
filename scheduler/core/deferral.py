"""Who waits for a cheaper hour: batch-class requests with a stated deadline, until the hour that a plan gives them.

Owned by ``scheduler.core.scheduler``. It must never know a clock, a tariff or how a queue is ordered: prices are values
over the core's own time, and whoever is released here begins to wait for a worker as a newcomer does.

A request begins at the latest so long before its deadline that it ends in time on the slowest worker, several times
over, and with a margin for the queue. Whom no cheaper slice takes begins at once. Where prices or engines change,
everybody who waits is planned anew, those who are due first before the others.

One newcomer costs a few vector operations over the slices of two days; nothing is looked at between two releases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from scheduler.core.admission import Admission, Limits
from scheduler.core.attempts import Entry
from scheduler.core.cluster import Cluster
from scheduler.core.data_policy import DataPolicy
from scheduler.core.deadlines import Deadlines
from scheduler.core.price_plan import NO_SLOT, SLICE_S, DeferralRules, PricePlan
from scheduler.core.request import Band
from scheduler.core.rules import Rules
from scheduler.core.steps import Steps
from scheduler.core.table import Row
from workers.types import WorkerState

CHEAPER_HOUR = "cheaper_hour"
"""Why it waits, as its story says it."""
HORIZON_S = 172_800.0
"""How far a plan looks; it is made anew when half of that is over."""
COUNTED = frozenset({WorkerState.READY, WorkerState.STARTING, WorkerState.PARKED})
"""Engines that compute, or will when there is work."""


class _Mean(NamedTuple):
    """The mean engine of a model: its time curve and its room."""

    step_s: float
    prefill_s: float
    decode_s: float
    context_s: float
    kv_tokens: float
    max_sequences: float


MEAN_ROWS = (Row.T0_S, Row.T_PREFILL_S, Row.T_DECODE_S, Row.T_CONTEXT_S, Row.KV_ROOM, Row.MAX_SEQUENCES)
NO_MEAN = _Mean(*[0.0] * len(MEAN_ROWS))


class Deferral:
    """Entries between their submission and the hour for which they wait. Bounded as a band of the queue is."""

    def __init__(
        self,
        cluster: Cluster,
        admission: Admission,
        policy: DataPolicy,
        limits: Limits,
        rules: Rules,
    ) -> None:
        self._cluster = cluster
        self._admission = admission
        self._policy = policy
        self._limits = limits.queue
        self.rules = rules.deferral
        self._prices: Mapping[str, Steps[float]] = {}
        self._has_steps = False
        self._entries: dict[str, Entry] = {}
        self._num_bytes = 0
        self._plans: dict[str, PricePlan] = {}
        """By model."""
        self._means: dict[str, _Mean] = {}
        """The engines that they were made for."""
        self._releases = Deadlines()
        self._looks_s = inf
        """When it is checked next that plans are still for the engines that there are."""

    def __len__(self) -> int:
        return len(self._entries)

    def request_ids(self) -> list[str]:
        """Everybody who waits here."""
        return list(self._entries)

    # -- who comes and goes

    def defer(self, entry: Entry, now_s: float) -> bool:
        """Takes the newcomer in where a cheaper hour is in time; False: it begins at once."""
        request = entry.request
        is_full = len(self._entries) >= self._limits.max_requests
        if not request.is_deferrable or request.band != Band.FLEX or not self._has_steps or is_full:
            return False
        if self._entries and self._num_bytes + request.body_bytes > self._limits.max_bytes:
            return False
        if not self._plan(entry, now_s):
            return False
        self._entries[request.request_id] = entry
        self._num_bytes += request.body_bytes
        self._release_later(entry)
        return True

    def discard(self, request_id: str) -> None:
        """It is over; whoever does not wait here is ignored."""
        entry = self._entries.get(request_id)
        if entry is not None:
            self._let_go(entry)
            plan, postponed = self._plans.get(entry.request.model), entry.postponed
            if plan is not None and postponed is not None:
                plan.give_back(postponed)

    def released(self, now_s: float) -> list[Entry]:
        """Whose hour has come, in the order in which they arrived; from now on they wait for a worker."""
        if now_s >= self._looks_s:
            self._look(now_s)
        due = [self._entries[each] for each in self._releases.due(now_s) if self._is_due(each, now_s)]
        for entry in due:
            self._let_go(entry)
            entry.promised_from_s = entry.waits_since_s = entry.ages_since_s = now_s
        return sorted(due, key=lambda entry: entry.place)

    # -- what changes plans

    def reload(self, rules: DeferralRules, now_s: float) -> None:
        """Other margins from now on, for everybody who waits too."""
        if rules != self.rules:
            self.rules = rules
            self._plan_anew(now_s)

    def set_prices(self, prices: Mapping[str, Steps[float]], now_s: float) -> None:
        """Other prices by zone: everybody is planned anew, and who shall begin now is due."""
        self._prices = prices
        self._has_steps = not all(steps.is_flat for steps in prices.values())
        self._plan_anew(now_s)

    def _look(self, now_s: float) -> None:
        """Once a slice, while there are plans."""
        self._looks_s = now_s + SLICE_S
        if not self._entries:
            self._plans.clear()
            self._looks_s = inf
        plans = self._plans.items()
        if any(plan.to_s < now_s + HORIZON_S / 2 or not plan.is_for(self._engines(model)) for model, plan in plans):
            self._plan_anew(now_s)

    def _plan_anew(self, now_s: float) -> None:
        """Those who are due first choose first."""
        self._plans.clear()
        self._releases = Deadlines()
        for entry in sorted(self._entries.values(), key=lambda each: (each.request.deadline_s or inf, each.place)):
            if not self._plan(entry, now_s):
                assert entry.postponed is not None, f"{entry.request.request_id} waits for no hour"
                entry.postponed = entry.postponed._replace(until_s=now_s, slot=NO_SLOT)
            self._release_later(entry)

    # -- inside

    def _is_due(self, request_id: str, now_s: float) -> bool:
        entry = self._entries.get(request_id)
        return entry is not None and entry.postponed is not None and entry.postponed.until_s <= now_s

    def _release_later(self, entry: Entry) -> None:
        assert entry.postponed is not None, f"{entry.request.request_id} waits for no hour"
        self._releases.push(entry.postponed.until_s, entry.request.request_id, is_open=self._entries.keys())

    def _let_go(self, entry: Entry) -> None:
        del self._entries[entry.request.request_id]
        self._num_bytes -= entry.request.body_bytes

    def _plan(self, entry: Entry, now_s: float) -> bool:
        """Whether a cheaper slice takes it; which one is written into the entry."""
        request = entry.request
        latest_s = self._latest_s(entry)
        if latest_s <= now_s:
            return False
        plan = self._plan_of(request.model, now_s)
        may_run = [self._policy.may(request, zone) for zone in plan.zones]
        if not any(may_run):
            return False
        postponed = plan.put_off(self._work_s(entry), may_run=may_run, now_s=now_s, latest_s=latest_s)
        if postponed is None:
            return False
        entry.postponed = postponed
        return True

    def _plan_of(self, model: str, now_s: float) -> PricePlan:
        plan = self._plans.get(model)
        if plan is None:
            self._means[model] = self._mean(model) if self._engines(model) else NO_MEAN
            self._looks_s = min(self._looks_s, now_s + SLICE_S)
            plan = self._plans[model] = PricePlan(
                self._prices,
                self._engines(model),
                from_s=now_s,
                to_s=now_s + HORIZON_S,
                capacity_ratio=self.rules.capacity_ratio,
            )
        return plan

    def _engines(self, model: str) -> Counter[str]:
        """How many there are, by zone."""
        views = (worker.view for worker in self._cluster.workers.values())
        return Counter(view.zone for view in views if model in view.models and view.state in COUNTED)

    def _latest_s(self, entry: Entry) -> float:
        """When it begins at the latest; −∞ where it has no deadline."""
        request, slowest = entry.request, self._cluster.slowest
        if request.deadline_s is None:
            return -inf
        token_s = max(request.slo.tpot_s, 2 * slowest.step_s)
        longest_s = slowest.alone_s(request.prompt_tokens_bound) + entry.granted_tokens * token_s
        return request.deadline_s - self.rules.margin_s - self.rules.margin_ratio * longest_s

    def _work_s(self, entry: Entry) -> float:
        """Seconds of a full engine that it is expected to take, by the mean curve of its model's engines; as long as
        nothing is known of the model's outputs, with all the output that it may have: work that is put off for a day
        would be known to be too much when it is too late.
        """
        request = entry.request
        estimates, mean = self._admission.estimates_of(request.model), self._means[request.model]
        prompt_tokens = estimates.prompt_tokens(request)
        output_tokens = entry.granted_tokens * request.num_sequences
        if estimates.output.is_learned:
            output_tokens = min(output_tokens, estimates.output_tokens(request))
        num_sequences = max(min(mean.max_sequences, mean.kv_tokens / (prompt_tokens + output_tokens)), 1.0)
        token_s = mean.decode_s + mean.step_s / num_sequences + mean.context_s * (prompt_tokens + output_tokens / 2)
        return mean.prefill_s * prompt_tokens + token_s * output_tokens

    def _mean(self, model: str) -> _Mean:
        table, columns = self._cluster.table, self._cluster.columns_of(model)
        return _Mean(*[float(table[row, columns].mean()) for row in MEAN_ROWS])
