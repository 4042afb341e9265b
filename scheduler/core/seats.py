"""Tenants in their lines, and the order of their turns.

Called by ``scheduler.core.fairness``, which charges and lifts them, and by ``scheduler.core.queue``, which asks whose
turn it is. It must never know a worker, a clock or why somebody is charged.

Counters are whole nanoseconds. One that rises is sorted in anew only when it comes to the top; one that falls is
sorted in at once: every operation costs O(log tenants).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.core.request import DataClass, Request


class LineKey(NamedTuple):
    """What decides which workers may take a request."""

    model: str
    data_class: DataClass
    zones: frozenset[str] | None

    @staticmethod
    def of(request: Request) -> LineKey:
        return LineKey(request.model, request.data_class, request.zones)


@dataclass(slots=True, kw_only=True, eq=False)
class Account:
    """One tenant in one band."""

    tenant: str
    weight: float
    charged: int = 0
    """Nanoseconds of catalogue GPU time over weight, whatever line it was for."""
    activation: int = 0
    """Numbers the times a tenant began to wait: older first among equals."""
    is_lifted: bool = True
    """It has started nothing since it began to wait: it goes before its equals."""
    num_running: int = 0
    seats: list[Seat] = field(default_factory=list)
    """The lines where it waits, or waited and may owe something."""

    @property
    def is_waiting(self) -> bool:
        return any(seat.num_waiting for seat in self.seats)


@dataclass(slots=True, kw_only=True, eq=False)
class Seat:
    """One tenant in one line."""

    account: Account
    lane: Lane
    lift: int = 0
    num_waiting: int = 0

    @property
    def counter(self) -> int:
        return self.account.charged + self.lift

    @property
    def key(self) -> tuple[int, bool, int]:
        account = self.account
        return account.charged + self.lift, not account.is_lifted, account.activation


class Ranking:
    """Seats in the order of their turns: a heap whose entries may be too early, never too late."""

    __slots__ = ("_entries", "_heap", "_num_pushed")

    def __init__(self) -> None:
        self._heap: list[_RankingEntry] = []
        self._entries: dict[Seat, _RankingEntry] = {}
        """The one entry of each seat that counts."""
        self._num_pushed = 0

    def add(self, seat: Seat) -> None:
        """It waits here from now on."""
        assert seat not in self._entries, f"{seat.account.tenant} is ranked already"
        self._push(seat)

    def discard(self, seat: Seat) -> None:
        """It waits here no more."""
        del self._entries[seat]
        self._sweep()

    def fell(self, seat: Seat) -> None:
        """Its counter is lower than before. The old entry stays, and no longer counts."""
        self._push(seat)
        self._sweep()

    def first(self) -> Seat | None:
        """Whose turn it is."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            seat = entry[2]
            if entries.get(seat) is not entry:
                heapq.heappop(heap)
            elif seat.key != entry[0]:
                heapq.heappop(heap)
                self._push(seat)
            else:
                return seat
        return None

    def _push(self, seat: Seat) -> None:
        self._num_pushed += 1
        entry = self._entries[seat] = (seat.key, self._num_pushed, seat)
        heapq.heappush(self._heap, entry)

    def _sweep(self) -> None:
        """Memory stays with what waits."""
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._entries)


_RankingEntry = tuple[tuple[int, bool, int], int, Seat]
"""A seat's key, a number that tells equal keys apart, and the seat."""


@dataclass(slots=True, kw_only=True, eq=False)
class Lane:
    """The tenants of one line and band."""

    key: LineKey
    seats: dict[str, Seat] = field(default_factory=dict)
    ranking: Ranking = field(default_factory=Ranking)
    """Those that wait."""
