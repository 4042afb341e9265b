"""Whose turn it is: virtual token counters per band and tenant, in catalogue GPU-seconds over the tenant's weight.

Called by ``scheduler.core.queue`` (who waits) and ``scheduler.core.scheduler`` (what runs). It must never know a
worker, a budget or a clock, nor what was attributed to a request: strangers in the batch would decide whose turn it is.

The tenant with the least counter is next. A start charges the whole prompt and the output that is expected; every
progress report trues it up, so that a long answer cannot hide; the end corrects it to what was executed. A tenant that
had nothing waiting is lifted to the least counter of those that have, and goes before them once: silence earns nothing
and costs nothing. ``docs/scheduling.md`` has the bound and its proof.

Counters are whole nanoseconds, so that what is charged and refunded cancels exactly. A counter that rises is sorted in
anew only when it comes to the top; one that falls is sorted in at once: every operation costs O(log tenants).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.core.request import Band, Request

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


@dataclass(slots=True, kw_only=True, eq=False)
class Account:
    """One tenant in one band."""

    tenant: str
    band: int
    weight: float
    counter: int
    """Nanoseconds of catalogue GPU time over weight, lifts included."""
    activation: int
    """Numbers the times a tenant began to wait: older first among equals."""
    is_lifted: bool = True
    """It has started nothing since it began to wait: it goes before its equals."""
    num_waiting: int = 0
    num_running: int = 0
    rankings: list[Ranking] = field(default_factory=list)
    """Where it waits: its band's backlog and its lines."""

    @property
    def key(self) -> tuple[int, bool, int]:
        return self.counter, not self.is_lifted, self.activation

    @property
    def is_idle(self) -> bool:
        return not self.num_waiting and not self.num_running


class Ranking:
    """Accounts in the order of their turns: a heap whose entries may be too early, never too late."""

    __slots__ = ("_entries", "_heap", "_num_pushed")

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._entries: dict[Account, _Entry] = {}
        """The one entry of each account that counts."""
        self._num_pushed = 0

    def add(self, account: Account) -> None:
        """It waits here from now on."""
        assert account not in self._entries, f"{account.tenant} is ranked already"
        account.rankings.append(self)
        self._push(account)

    def discard(self, account: Account) -> None:
        """It waits here no more."""
        del self._entries[account]
        account.rankings.remove(self)
        self._sweep()

    def fell(self, account: Account) -> None:
        """Its counter is lower than before. The old entry stays, and no longer counts."""
        self._push(account)
        self._sweep()

    def first(self) -> Account | None:
        """Whose turn it is."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            account = entry[2]
            if entries.get(account) is not entry:
                heapq.heappop(heap)
            elif account.key != entry[0]:
                heapq.heappop(heap)
                self._push(account)
            else:
                return account
        return None

    def _push(self, account: Account) -> None:
        self._num_pushed += 1
        entry = self._entries[account] = (account.key, self._num_pushed, account)
        heapq.heappush(self._heap, entry)

    def _sweep(self) -> None:
        """Memory stays with what waits."""
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._entries)


_Entry = tuple[tuple[int, bool, int], int, Account]
"""An account's key, a number that tells equal keys apart, and the account."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Charge:
    """What one attempt in flight is charged."""

    account: Account
    work: WorkWeights
    expected_tokens: int
    """Output that was expected at its start."""
    charged: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class _BandAccounts:
    accounts: dict[str, Account] = field(default_factory=dict)
    backlog: Ranking = field(default_factory=Ranking)
    """Tenants that wait."""
    floor: int = 0
    """The highest counter whose turn it ever was: where a tenant begins that finds nobody waiting."""
    idle: list[tuple[int, str]] = field(default_factory=list)
    """A heap of accounts that neither wait nor run, by counter; some may have come back."""

    @property
    def level(self) -> int:
        """What a tenant is lifted to when it begins to wait."""
        first = self.backlog.first()
        return self.floor if first is None else first.counter


class Fairness:
    """Counters of all bands. The queue calls ``enter`` and ``leave``, the scheduler ``start``, ``true_up``, ``close``.

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
        """Tenants of a band that neither wait nor run but owe something; beyond it the smallest debt is forgotten."""
        self._bands = [_BandAccounts() for _ in Band]
        self._charges: dict[str, _Charge] = {}
        self._num_activations = 0
        self.reload(weights or {})

    def reload(self, weights: Mapping[str, float], work: Mapping[str, WorkWeights] | None = None) -> None:
        """Other weights from now on; what is in flight is weighed anew when it is heard of next."""
        assert all(0 < weight < float("inf") for weight in weights.values()), weights
        self._weights = dict(weights)
        if work is not None:
            self._work = dict(work)
        for band in self._bands:
            for tenant, account in band.accounts.items():
                account.weight = self._weights.get(tenant, DEFAULT_WEIGHT)

    # -- who waits

    def enter(self, request: Request) -> Account:
        """One more request of its tenant waits; who had none is lifted."""
        band = self._bands[request.band]
        account = self._active(band, request)
        account.num_waiting += 1
        if account.num_waiting == 1:
            band.backlog.add(account)
        return account

    def leave(self, request: Request) -> None:
        """One of them waits no more: started or gone."""
        band = self._bands[request.band]
        account = band.accounts[request.tenant]
        account.num_waiting -= 1
        if not account.num_waiting:
            band.backlog.discard(account)
            self._rest(band, account)

    # -- what runs

    def start(
        self, attempt_id: str, request: Request, *, prompt_tokens: int, cached_tokens: int, output_tokens: int
    ) -> None:
        """An attempt begins: all that is expected of it is charged. ``output_tokens`` of all its sequences."""
        assert attempt_id not in self._charges, f"{attempt_id} is charged already"
        if request.is_counting:
            return
        band = self._bands[request.band]
        account = self._active(band, request)
        band.floor = max(band.floor, account.counter)
        account.num_running += 1
        account.is_lifted = False
        charge = _Charge(
            account=account, work=self._work.get(request.model, DEFAULT_WORK), expected_tokens=output_tokens
        )
        self._charges[attempt_id] = charge
        self._set(charge, prompt_tokens, cached_tokens, output_tokens)

    def true_up(self, attempt_id: str, *, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """It was heard of: the prompt is what the engine counted, the output at least what was put out so far."""
        charge = self._charges.get(attempt_id)
        if charge is not None:
            self._set(charge, prompt_tokens, cached_tokens, max(output_tokens, charge.expected_tokens))

    def close(self, attempt_id: str, *, input_tokens: int = 0, cached_tokens: int = 0, output_tokens: int = 0) -> None:
        """It is over, having executed this: what it was charged beyond comes back. Nothing = all of it comes back."""
        charge = self._charges.pop(attempt_id, None)
        if charge is not None:
            self._set(charge, input_tokens, cached_tokens, output_tokens)
            charge.account.num_running -= 1
            self._rest(self._bands[charge.account.band], charge.account)

    # -- what others ask

    def waiting(self, band: int) -> list[tuple[str, int]]:
        """Requests that wait, by tenant, in the order of names."""
        accounts = self._bands[band].accounts.values()
        return sorted((each.tenant, each.num_waiting) for each in accounts if each.num_waiting)

    def counter_gpu_s(self, band: int, tenant: str) -> float | None:
        """Catalogue GPU-seconds over weight, lifts included; None where it has no account."""
        account = self._bands[band].accounts.get(tenant)
        return None if account is None else account.counter / NANO

    def accounts(self, band: int) -> Iterator[Account]:
        """Every tenant that is known in the band, to be read."""
        yield from self._bands[band].accounts.values()

    def __len__(self) -> int:
        """Accounts that are kept."""
        return sum(len(band.accounts) for band in self._bands)

    # -- inside

    def _active(self, band: _BandAccounts, request: Request) -> Account:
        """The tenant's account, lifted if it had nothing waiting."""
        account = band.accounts.get(request.tenant)
        if account is not None and account.num_waiting:
            return account
        level = band.level
        self._num_activations += 1
        if account is None:
            account = band.accounts[request.tenant] = Account(
                tenant=request.tenant,
                band=request.band,
                weight=self._weights.get(request.tenant, DEFAULT_WEIGHT),
                counter=level,
                activation=self._num_activations,
            )
            return account
        account.counter = max(account.counter, level)
        account.activation, account.is_lifted = self._num_activations, True
        return account

    def _set(self, charge: _Charge, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """The attempt is charged exactly this from now on."""
        account = charge.account
        gpu_s = charge.work.gpu_seconds(
            prompt_tokens=prompt_tokens, cached_tokens=min(cached_tokens, prompt_tokens), output_tokens=output_tokens
        )
        charged = round(gpu_s * NANO / account.weight)
        change = charged - charge.charged
        if change:
            charge.charged = charged
            account.counter += change
            if change < 0:
                for ranking in account.rankings:
                    ranking.fell(account)

    def _rest(self, band: _BandAccounts, account: Account) -> None:
        """Forgets who neither waits nor runs once it owes nothing: it would be lifted above its counter anyway."""
        if not account.is_idle:
            return
        level, idle, accounts = band.level, band.idle, band.accounts
        heapq.heappush(idle, (account.counter, account.tenant))
        while idle and (idle[0][0] <= level or len(idle) > self._max_idle):
            counter, tenant = heapq.heappop(idle)
            known = accounts.get(tenant)
            if known is not None and known.is_idle and known.counter == counter:
                del accounts[tenant]
