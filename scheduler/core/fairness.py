"""Whose turn it is: virtual token counters of tenants, in catalogue GPU-seconds over the tenant's weight.

Called by ``scheduler.core.queue`` (who waits) and ``scheduler.core.running`` (what runs). It must never know a worker,
a budget or a clock, nor what was attributed to a request: strangers in the batch would decide whose turn it is.

The tenant with the least counter is next. A start charges the whole prompt and the output that is expected; every
progress report trues it up, so that a long answer cannot hide; the end corrects it to what was executed. A tenant that
had nothing waiting is lifted to the counter that had the last turn, and wins ties once: silence earns nothing and costs
nothing. ``docs/scheduling.md`` has the bound and its proof.

Tenants are compared inside one band. What a tenant was charged there is one number, whatever model it was for; what it
was lifted is a number of each *line* (those whom the same workers may take), because a tenant that waits for the only
worker of its zone may be far behind those that wait for others, and whoever joins these must not pass them by as much.

Counters are whole nanoseconds, so that what is charged and refunded cancels exactly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.core.request import Band, Request
from scheduler.core.seats import Account, Lane, LineKey, Seat

NANO = 1_000_000_000


class WorkWeights(NamedTuple):
    """Catalogue GPU-seconds of a token of each kind: constants of the model, whatever batch it ran in.

    The defaults are an 8B model on an H100: measured prefill 32.5 µs, a tenth of it for a cached token (it is read, not
    computed), and a decode step of 64 sequences, (6.7 ms + 64 × 0.09 ms) / 64.
    """

    prefill_gpu_s: float = 3.25e-5
    cached_gpu_s: float = 3.25e-6
    decode_gpu_s: float = 1.94e-4

    def gpu_seconds(self, *, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """Of a work vector. ``prompt_tokens`` contain the cached ones."""
        return (
            (prompt_tokens - cached_tokens) * self.prefill_gpu_s
            + cached_tokens * self.cached_gpu_s
            + output_tokens * self.decode_gpu_s
        )


DEFAULT_WORK = WorkWeights()
DEFAULT_WEIGHT = 1.0

MAX_SEATS = 4
"""Of one tenant in lines where it does not wait any more."""

NUM_ASKED = 2
"""Idle tenants that are asked for what they owe whenever one more is idle: sooner or later all of them."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Charge:
    """What one attempt in flight is charged."""

    band: _BandAccounts
    account: Account
    work: WorkWeights
    expected_tokens: int
    """Output that was expected at its start."""
    tokens: tuple[int, int, int] = (0, 0, 0)
    """Prompt, cached and output tokens that are charged."""
    charged: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class _BandAccounts:
    """The tenants of one band."""

    accounts: dict[str, Account] = field(default_factory=dict)
    lanes: dict[LineKey, Lane] = field(default_factory=dict)
    floor: int = 0
    """The highest counter whose turn it ever was."""
    idle: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Tenants that neither wait nor run but may owe something; who was asked longest ago first."""

    def level(self, lane: Lane) -> int:
        """What a tenant is lifted to when it begins to wait there: the last turn's, or who is behind even that."""
        first = lane.ranking.first()
        return self.floor if first is None else min(first.counter, self.floor)

    def debt(self, account: Account) -> int:
        """What it had more than those whom it waits or waited with, where that is most; 0 where it owes nothing."""
        return max([0, *(seat.counter - self.level(seat.lane) for seat in account.seats)])

    def forget(self, account: Account) -> None:
        """As if it had never come."""
        for seat in list(account.seats):
            self.drop(seat)
        del self.accounts[account.tenant]

    def drop(self, seat: Seat) -> None:
        """It waits there no more and what it owes there is known elsewhere, or nothing."""
        seat.account.seats.remove(seat)
        del seat.lane.seats[seat.account.tenant]
        if not seat.lane.seats:
            del self.lanes[seat.lane.key]


class Fairness:
    """Counters of all bands. ``enter`` and ``leave`` what waits; ``start``, ``true_up`` and ``close`` what
    runs.

    What waits is started before it leaves: who has nothing waiting is lifted.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        work: Mapping[str, WorkWeights] | None = None,
        *,
        max_idle: int = 10_000,
    ) -> None:
        self._weights: dict[str, float] = {}
        self._work = dict(work or {})
        self._max_idle = max_idle
        """Tenants of a band that neither wait nor run but owe something; beyond it some are forgiven."""
        self._bands = [_BandAccounts() for _ in Band]
        self._charges: dict[str, _Charge] = {}
        self._num_activations = 0
        self.reload(weights or {})

    def reload(self, weights: Mapping[str, float], work: Mapping[str, WorkWeights] | None = None) -> None:
        """Other weights from now on; what is in flight is weighed anew when more of it is charged, or it ends."""
        assert all(0 < weight < float("inf") for weight in weights.values()), weights
        self._weights = dict(weights)
        if work is not None:
            self._work = dict(work)
        for band in self._bands:
            for tenant, account in band.accounts.items():
                account.weight = self._weights.get(tenant, DEFAULT_WEIGHT)

    # -- who waits

    def enter(self, request: Request) -> Seat:
        """One more request of its tenant waits; who had none in its line is lifted."""
        seat = self._seat(self._bands[request.band], request)
        seat.num_waiting += 1
        if seat.num_waiting == 1:
            seat.lane.ranking.add(seat)
        return seat

    def leave(self, request: Request) -> None:
        """One of them waits no more: started or gone."""
        band = self._bands[request.band]
        seat = band.lanes[LineKey.of(request)].seats[request.tenant]
        seat.num_waiting -= 1
        if not seat.num_waiting:
            seat.lane.ranking.discard(seat)
            self._rest(band, seat.account)

    # -- what runs

    def start(
        self, attempt_id: str, request: Request, *, prompt_tokens: int, cached_tokens: int, output_tokens: int
    ) -> None:
        """An attempt begins: all that is expected of it is charged. ``output_tokens`` of all its sequences."""
        assert attempt_id not in self._charges, f"{attempt_id} is charged already"
        if request.is_counting:
            return
        band = self._bands[request.band]
        seat = self._seat(band, request)
        account = seat.account
        band.floor = max(band.floor, seat.counter)
        account.num_running += 1
        account.is_lifted = False
        charge = _Charge(
            band=band,
            account=account,
            work=self._work.get(request.model, DEFAULT_WORK),
            expected_tokens=output_tokens,
        )
        self._charges[attempt_id] = charge
        self._set(charge, prompt_tokens, cached_tokens, output_tokens)

    def true_up(self, attempt_id: str, *, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """It was heard of: the prompt is what the engine counted, the output at least what was put out so far."""
        charge = self._charges.get(attempt_id)
        if charge is None:
            return
        tokens = (prompt_tokens, cached_tokens, max(output_tokens, charge.expected_tokens))
        if tokens != charge.tokens:
            self._set(charge, *tokens)

    def close(self, attempt_id: str, *, input_tokens: int = 0, cached_tokens: int = 0, output_tokens: int = 0) -> None:
        """It is over, having executed this: what it was charged beyond comes back. Nothing = all of it comes back."""
        charge = self._charges.pop(attempt_id, None)
        if charge is not None:
            self._set(charge, input_tokens, cached_tokens, output_tokens)
            charge.account.num_running -= 1
            self._rest(charge.band, charge.account)

    # -- what others ask

    def waiting(self, band: int) -> list[tuple[str, int]]:
        """Requests that wait, by tenant, in the order of names."""
        accounts = self._bands[band].accounts.values()
        num_by_tenant = ((each.tenant, sum(seat.num_waiting for seat in each.seats)) for each in accounts)
        return sorted((tenant, num) for tenant, num in num_by_tenant if num)

    def counter_gpu_s(self, request: Request) -> float | None:
        """Catalogue GPU-seconds over weight of its tenant, as they count in its line; None where none is known."""
        lane = self._bands[request.band].lanes.get(LineKey.of(request))
        seat = None if lane is None else lane.seats.get(request.tenant)
        return None if seat is None else seat.counter / NANO

    @property
    def num_accounts(self) -> int:
        """That are kept."""
        return sum(len(band.accounts) for band in self._bands)

    # -- inside

    def _seat(self, band: _BandAccounts, request: Request) -> Seat:
        """The tenant's seat in the request's line, lifted if it had nothing waiting there."""
        account = band.accounts.get(request.tenant)
        if account is None:
            weight = self._weights.get(request.tenant, DEFAULT_WEIGHT)
            account = band.accounts[request.tenant] = Account(tenant=request.tenant, weight=weight)
        if not account.is_waiting:
            self._num_activations += 1
            account.activation, account.is_lifted = self._num_activations, True
            band.idle.pop(request.tenant, None)
        key = LineKey.of(request)
        lane = band.lanes.get(key)
        if lane is None:
            lane = band.lanes[key] = Lane(key=key)
        seat = lane.seats.get(request.tenant)
        if seat is None:
            # What it owes elsewhere it owes here: nobody gets rid of it by asking for other zones.
            lift = band.level(lane) + band.debt(account) - account.charged
            seat = lane.seats[request.tenant] = Seat(account=account, lane=lane, lift=lift)
            account.seats.append(seat)
        elif not seat.num_waiting:
            seat.lift = max(seat.lift, band.level(lane) - account.charged)
        return seat

    def _set(self, charge: _Charge, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """The attempt is charged exactly this from now on."""
        account, charge.tokens = charge.account, (prompt_tokens, cached_tokens, output_tokens)
        gpu_s = charge.work.gpu_seconds(
            prompt_tokens=prompt_tokens, cached_tokens=min(cached_tokens, prompt_tokens), output_tokens=output_tokens
        )
        charged = round(gpu_s * NANO / account.weight)
        change = charged - charge.charged
        if change:
            charge.charged = charged
            account.charged += change
            if change < 0:
                for seat in account.seats:
                    if seat.num_waiting:
                        seat.lane.ranking.fell(seat)

    def _rest(self, band: _BandAccounts, account: Account) -> None:
        """Something of it is over. Who neither waits nor runs nor owes is forgotten: it would be lifted anyway."""
        spare = [seat for seat in account.seats if not seat.num_waiting]
        if len(account.seats) > MAX_SEATS and spare:
            band.drop(min(spare, key=lambda seat: seat.counter - band.level(seat.lane)))
        if account.num_running or account.is_waiting:
            return
        idle = band.idle
        idle[account.tenant] = None
        for _ in range(NUM_ASKED):
            if idle:
                tenant, _ = idle.popitem(last=False)
                if len(idle) >= self._max_idle or not band.debt(band.accounts[tenant]):
                    band.forget(band.accounts[tenant])
                else:
                    idle[tenant] = None
