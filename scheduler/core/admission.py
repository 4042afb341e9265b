"""Who may wait, and for how long: every request that is refused is refused here, with the word for it.

Called by ``scheduler.core.scheduler``. It must never know an attempt, and it changes neither queue nor cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product

from scheduler.core import refusals
from scheduler.core.actions import Rejection
from scheduler.core.attempts import work_of
from scheduler.core.cluster import Cluster
from scheduler.core.data_policy import DataPolicy
from scheduler.core.estimates import DrainRate, ModelEstimates, retry_after_s
from scheduler.core.placement import least_wait_s
from scheduler.core.queue import BANDS, Queue, QueueLimits
from scheduler.core.request import Request
from workers.types import UsageRecord, WorkerState

CLEAR_RATIO = 0.25
"""A deadline is clearly infeasible when even a quarter of the least prefill time is too long: prompt bounds overstate,
and a cached prefix costs nothing."""


ASLEEP = frozenset({WorkerState.PARKED, WorkerState.STARTING})
"""States of a worker that said which models it serves: one that starts for the first time does not know yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how often. Every wait has an end."""

    queue: QueueLimits = field(default_factory=QueueLimits)
    max_wait_s: float = 600.0
    """Longest time in the queue, deadline or not; it begins anew after a worker that ran the request was lost."""
    no_worker_timeout_s: float = 60.0
    """Longest time in the queue while no worker of the model is ready, or parked and could be woken."""
    silent_s: float = 10.0
    """A worker not heard for so long gets nothing new."""
    lost_s: float = 60.0
    """A worker not heard for so long is lost."""
    final_timeout_s: float = 30.0
    """From an attempt's end or abort to its usage record; after that its last progress is settled."""
    call_lost_s: float = 60.0
    """An attempt without a sign while its worker reports that it is idle."""
    sign_timeout_s: float = 600.0
    """An attempt without a sign for so long is given up, whatever its worker says."""
    max_retries: int = 1
    """Further attempts after a worker was lost or failed before the first byte."""
    max_bounces: int = 3
    """Further attempts after a worker said that it is full."""


class Admission:
    """Reads cluster and queue, says no. Learns what to expect of each model's requests."""

    def __init__(
        self, cluster: Cluster, queue: Queue, limits: Limits, policy: DataPolicy, *, models: Iterable[str] = ()
    ) -> None:
        self._cluster = cluster
        self.policy = policy
        self._queue = queue
        self._limits = limits
        self._estimates: dict[str, ModelEstimates] = {}
        self._drain_rates = [DrainRate() for _ in BANDS]
        self._unready_since_s: dict[str, float] = {}
        self.models = set(models)
        """Every model that was configured or ever served."""
        self.is_draining = False
        self.is_ledger_writable = True

    def estimates_of(self, model: str) -> ModelEstimates:
        estimates = self._estimates.get(model)
        if estimates is None:
            estimates = self._estimates[model] = ModelEstimates()
        return estimates

    def observe_prompt(self, request: Request, prompt_tokens: int) -> None:
        """An engine counted the request's prompt. Several sequences may share or repeat it: they teach nothing."""
        if request.num_sequences == 1:
            self.estimates_of(request.model).observe_prompt(request, prompt_tokens)

    def observe_end(self, request: Request, usage: UsageRecord) -> None:
        """A request ended by itself, all its sequences together."""
        estimates = self.estimates_of(request.model)
        estimates.observe_output(-(-usage.output_tokens // request.num_sequences))
        estimates.observe_cached(usage.input_tokens, usage.cached_tokens)

    def left_queue(self, band: int, now_s: float) -> None:
        """A request of the band was started."""
        self._drain_rates[band].add(now_s)

    def retry_after_s(self, band: int, now_s: float) -> int:
        """Seconds after which a refused request of this band may find room, from the measured drain rate."""
        drain_per_s = sum(rate.per_s(now_s) for rate in self._drain_rates[: band + 1])
        return retry_after_s(self.num_ahead(band), drain_per_s)

    def num_ahead(self, band: int) -> int:
        """How many wait in the band or a better one."""
        return sum(self._queue.num_waiting[: band + 1])

    def refusal(self, request: Request, now_s: float) -> Rejection | None:
        """Why the request is refused at once, whatever the queue's length; None if it is not."""
        if self.is_draining:
            return refusals.shutting_down()
        if not self.is_ledger_writable:
            return refusals.ledger_unavailable()
        if request.model not in self.models:
            return refusals.model_not_found(request.model)
        if (misplaced := self.misplaced(request)) is not None:
            return misplaced
        if request.deadline_s is None:
            return None
        left_s = request.deadline_s - now_s
        if left_s <= 0:
            return self.expired(request, now_s)
        prompt_tokens = self.estimates_of(request.model).prompt_tokens(request)
        if left_s >= CLEAR_RATIO * self._cluster.slowest.alone_s(prompt_tokens):
            return None  # even the slowest worker would be in time
        least_s = least_wait_s(
            self._cluster, request.model, work_of(request, prompt_tokens=prompt_tokens, output_tokens=1)
        )
        if least_s is None or left_s >= CLEAR_RATIO * least_s:
            return None
        return refusals.deadline_infeasible(left_s, least_s)

    def misplaced(self, request: Request) -> Rejection | None:
        """Why no worker may ever run it, as zones and rules are; None where one may."""
        if not self.policy.mismatch(request):
            return None
        return refusals.data_residency_mismatch(self.policy.known_zones(request.model))

    def misplaced_of(self, requests: Iterable[Request]) -> Iterator[tuple[str, Rejection]]:
        """Who of them may run nowhere any more, after the rules have changed."""
        for request in requests:
            if (why := self.misplaced(request)) is not None:
                yield request.request_id, why

    def shed_for(self, request: Request, now_s: float) -> Iterator[tuple[str, Rejection]]:
        """Who has to leave the queue so that the request may wait; the caller removes each before it asks for more."""
        while (request_id := self._queue.shed_for(request)) is not None:
            yield request_id, self.full(self._queue.get(request_id), now_s)

    def no_room(self, request: Request, now_s: float) -> Rejection | None:
        """Why the request may not wait either; None if its band has room."""
        if self._queue.has_room(request):
            return None
        return self.full(request, now_s)

    def full(self, request: Request, now_s: float) -> Rejection:
        return refusals.queue_full(self.retry_after_s(request.band, now_s))

    def expired(self, request: Request, now_s: float) -> Rejection:
        return refusals.deadline_exceeded(max(now_s - request.arrival_s, 0.0))

    def shutting_down(self) -> Rejection:
        return refusals.shutting_down()

    def timed_out(self, request: Request, now_s: float) -> Rejection:
        return refusals.queue_timeout(self._limits.max_wait_s, self.retry_after_s(request.band, now_s))

    def can_serve(self, model: str) -> bool:
        """Whether some worker of the model takes work now, or will once its parked engine is started again."""
        if self._cluster.has_ready(model):
            return True
        serving = map(self._cluster.worker_at, self._cluster.columns_of(model).tolist())
        return any(worker.view.state in ASLEEP for worker in serving)

    def is_served(self, models: Iterable[str]) -> None:
        """A worker of these models is ready: whoever waits for one begins to wait anew when it goes."""
        for model in models:
            self._unready_since_s.pop(model, None)

    def unserved(self, now_s: float) -> Iterator[tuple[Request, Rejection]]:
        """Who has waited too long for a worker that does not come.

        The caller removes each from the queue before it asks for the next. Only heads of lines are looked at: behind
        them everybody came later.
        """
        longest_s = self._limits.no_worker_timeout_s
        for model in self._queue.models:
            if self.can_serve(model):
                self._unready_since_s.pop(model, None)
                continue
            since_s = self._unready_since_s.setdefault(model, now_s)
            if since_s > now_s - longest_s:
                continue
            for line, band in product(self._queue.lines_of(model), BANDS):
                for request in line.in_order(band):
                    if request.arrival_s > now_s - longest_s:
                        break
                    yield request, refusals.no_worker(model, longest_s)
