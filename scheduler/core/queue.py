"""Who waits, in which order: a bounded queue of priority bands, kept apart by what workers may take them.

Called by ``scheduler.core.waiting`` and ``scheduler.core.scheduler``. It must never know a worker, a budget or a clock.

Requests of one model, data class and set of zones stand in one *line*: the same workers may take them, so that a head
that does not fit holds up its own line only. In a line the order is the band, then the tenant whose turn it is
(``scheduler.core.fairness``), then the place, a number given once at arrival; a request that comes back from a lost
worker keeps it. Questions to an engine about a prompt's length take no turn: they go first of their band.

Leaving the middle (cancelled, expired) only marks the entry; marked ones are swept when they outnumber the rest, so
that memory stays with what waits, and no operation looks at everybody.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.core.fairness import Fairness
from scheduler.core.request import Band, Request
from scheduler.core.seats import Lane, LineKey

BANDS = tuple(Band)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Bounds of each band and of all bands together, over all models."""

    max_requests: int = 10_000
    max_bytes: int = 256 * 1024 * 1024
    max_total_requests: int = 20_000
    max_total_bytes: int = 512 * 1024 * 1024


class Rank(NamedTuple):
    """A waiting request's turn among all that wait; the least is next. No two are equal."""

    urgency: int
    """Its band; less for a lower band whose turn it is by its age."""
    has_turns: bool
    """False for who only asks for a prompt's length."""
    tenant_key: tuple[int, bool, int]
    place: int


NO_TURN = (0, False, 0)


class _Order:
    """Requests by place; who left the middle stays until it is swept."""

    __slots__ = ("_items", "_waiting", "num")

    def __init__(self, waiting: Mapping[str, Request]) -> None:
        self._items: deque[tuple[int, str]] = deque()
        self._waiting = waiting
        """Everybody who waits anywhere."""
        self.num = 0

    def add(self, place: int, request_id: str) -> None:
        self.num += 1
        items, item = self._items, (place, request_id)
        if not items or items[-1] < item:
            items.append(item)
            return
        index = bisect_left(items, item)  # it comes back to the place that it had
        if items[index] != item:
            items.insert(index, item)

    def discard(self) -> None:
        """One of them waits no more."""
        self.num -= 1
        if len(self._items) > 2 * self.num + 16:
            self._items = deque(item for item in self._items if item[1] in self._waiting)

    def first(self) -> tuple[int, str]:
        """Place and id of who came first; somebody waits."""
        while self._items[0][1] not in self._waiting:
            self._items.popleft()
        return self._items[0]

    def last(self) -> tuple[int, str]:
        """Place and id of who came last; somebody waits."""
        while self._items[-1][1] not in self._waiting:
            self._items.pop()
        return self._items[-1]


class _Tenant:
    """One tenant in one band of one line."""

    __slots__ = ("counting", "turns")

    def __init__(self, waiting: Mapping[str, Request]) -> None:
        self.turns = _Order(waiting)
        self.counting = _Order(waiting)
        """Those that take no turn."""

    def last(self) -> tuple[int, str]:
        """Place and id of who came last; somebody waits."""
        return max(order.last() for order in (self.turns, self.counting) if order.num)


@dataclass(slots=True)
class _LineBand:
    """One band of one line."""

    everybody: _Order
    counting: _Order
    """Those that take no turn."""
    tenants: dict[str, _Tenant] = field(default_factory=dict)
    lane: Lane | None = None
    """Knows whose turn it is; set since somebody first took turns here."""

    def orders_of(self, request: Request, tenant: _Tenant) -> tuple[_Order, ...]:
        """Where a request stands."""
        if request.is_counting:
            return self.everybody, self.counting, tenant.counting
        return self.everybody, tenant.turns


class Line:
    """Everybody whom the same workers may take: a band is looked at only when those before it are empty."""

    def __init__(self, key: LineKey, number: int, waiting: Mapping[str, Request]) -> None:
        self.key = key
        self.number = number
        """Tells lines apart; in the order in which they were begun."""
        self._waiting = waiting
        self._bands = [_LineBand(_Order(waiting), _Order(waiting)) for _ in BANDS]

    @property
    def num_waiting(self) -> int:
        return sum(band.everybody.num for band in self._bands)

    @property
    def bands(self) -> list[int]:
        """Those in which somebody waits, the best first."""
        return [number for number, band in enumerate(self._bands) if band.everybody.num]

    @property
    def head(self) -> Request | None:
        """Who is next, age apart."""
        for number in self.bands:
            return self.next_of(number)[0]
        return None

    def next_of(self, band: int) -> tuple[Request, Rank]:
        """Who is next of a band in which somebody waits, and the turn of it."""
        mine = self._bands[band]
        if mine.counting.num:
            place, request_id = mine.counting.first()
            return self._waiting[request_id], Rank(band, False, NO_TURN, place)
        seat = None if mine.lane is None else mine.lane.ranking.first()
        assert seat is not None, f"nobody waits in band {band} of {self.key}"
        place, request_id = mine.tenants[seat.account.tenant].turns.first()
        return self._waiting[request_id], Rank(band, True, seat.key, place)

    def oldest(self, band: int) -> Request:
        """Who came first of a band in which somebody waits, whosever turn it is."""
        return self._waiting[self._bands[band].everybody.first()[1]]

    def in_order(self, band: int) -> Iterator[Request]:
        """Everybody of a band, first come first; ends at the first that the caller leaves where it is."""
        everybody = self._bands[band].everybody
        while everybody.num:
            request_id = everybody.first()[1]
            yield self._waiting[request_id]
            if request_id in self._waiting:
                return  # whoever is behind it came later

    def last_of(self, band: int, tenant: str) -> tuple[int, str] | None:
        """Place and id of the tenant's last in a band; None where none waits here."""
        mine = self._bands[band].tenants.get(tenant)
        return None if mine is None else mine.last()

    def add(self, request: Request, place: int, lane: Lane | None) -> None:
        """Called by the queue, once the request is among those that wait; ``lane`` None: it takes no turn."""
        band = self._bands[request.band]
        tenant = band.tenants.get(request.tenant)
        if tenant is None:
            tenant = band.tenants[request.tenant] = _Tenant(self._waiting)
        if lane is not None:
            band.lane = lane
        for order in band.orders_of(request, tenant):
            order.add(place, request.request_id)

    def remove(self, request: Request) -> None:
        """Called by the queue, once the request is no more among those that wait."""
        band = self._bands[request.band]
        tenant = band.tenants[request.tenant]
        for order in band.orders_of(request, tenant):
            order.discard()
        if not tenant.turns.num and not tenant.counting.num:
            del band.tenants[request.tenant]


class _Crowd:
    """How many requests each tenant has waiting in one band, and who has the most: O(1) a change."""

    __slots__ = ("_having", "_num")

    def __init__(self) -> None:
        self._num: dict[str, int] = {}
        self._having: list[dict[str, None]] = [{}]
        """Tenants by how many they have, in the order in which they came to it."""

    def add(self, tenant: str, change: int) -> None:
        """One more (1) or one less (-1)."""
        before = self._num.get(tenant, 0)
        now = before + change
        self._having[before].pop(tenant, None)
        if now:
            self._num[tenant] = now
            if now == len(self._having):
                self._having.append({})
            self._having[now][tenant] = None
        else:
            del self._num[tenant]
        while len(self._having) > 1 and not self._having[-1]:
            self._having.pop()

    def num_of(self, tenant: str) -> int:
        return self._num.get(tenant, 0)

    def most(self) -> tuple[str, int] | None:
        """The tenant that has the most, and how many; None where nobody waits."""
        for tenant in self._having[-1]:
            return tenant, self._num[tenant]
        return None


class Queue:
    """Bounded in requests and bytes, per band and in all. ``push`` what was admitted, ``remove`` what leaves."""

    def __init__(self, limits: QueueLimits | None = None, fairness: Fairness | None = None) -> None:
        self._limits = limits or QueueLimits()
        self.fairness = Fairness() if fairness is None else fairness
        """Told who waits and who does not any more."""
        self._lines: dict[str, dict[LineKey, Line]] = {}
        """By model."""
        self._waiting: dict[str, Request] = {}
        self._crowds = [_Crowd() for _ in BANDS]
        self._num = [0] * len(BANDS)
        self._bytes = [0] * len(BANDS)
        self._num_lines = 0

    # -- bounds

    def has_room(self, request: Request) -> bool:
        """Whether the request may wait. A single request of any size fits an empty queue."""
        return self._band_has_room(request) and self._has_room_in_all(request)

    def shed_for(self, request: Request) -> str | None:
        """Who must leave so that the request may wait; None where it has room, or where nobody should leave for it.

        While all bands together are full, the lowest below the request's own give way. Where its own band is full, the
        tenant that has the most there gives way to one that would still have less: nobody keeps the others out.
        Called again until it answers None.
        """
        band, fits_in_all = request.band, self._has_room_in_all(request)
        if not self._band_has_room(request) or (not fits_in_all and not self._lower_bands_make_room(request)):
            return self._of_longest(request)
        if fits_in_all:
            return None
        lowest = max(number for number in range(band + 1, len(BANDS)) if self._num[number])
        return self._last_of_most(lowest)

    def _band_has_room(self, request: Request) -> bool:
        num, limits = self._num[request.band], self._limits
        if num >= limits.max_requests:
            return False
        return num == 0 or self._bytes[request.band] + request.body_bytes <= limits.max_bytes

    def _has_room_in_all(self, request: Request, *, without_below: int = len(BANDS)) -> bool:
        """``without_below``: as if nobody waited in this band and those below it."""
        num, limits = sum(self._num[:without_below]), self._limits
        if num >= limits.max_total_requests:
            return False
        return num == 0 or sum(self._bytes[:without_below]) + request.body_bytes <= limits.max_total_bytes

    def _lower_bands_make_room(self, request: Request) -> bool:
        return self._has_room_in_all(request, without_below=request.band + 1)

    def _of_longest(self, request: Request) -> str | None:
        """The last of the tenant that has the most in the request's band, if it has more and its place is enough."""
        most = self._crowds[request.band].most()
        if most is None or most[1] <= self._crowds[request.band].num_of(request.tenant) + 1:
            return None
        request_id, limits = self._last_of_most(request.band), self._limits
        more_bytes = request.body_bytes - self._waiting[request_id].body_bytes
        is_enough = self._bytes[request.band] + more_bytes <= limits.max_bytes
        is_enough &= sum(self._bytes[: request.band + 1]) + more_bytes <= limits.max_total_bytes
        return request_id if is_enough else None

    def _last_of_most(self, band: int) -> str:
        """The last request of the tenant that has the most in a band."""
        most = self._crowds[band].most()
        assert most is not None, f"nobody waits in band {band}"
        lines = (line for lines in self._lines.values() for line in lines.values())
        return max(last for line in lines if (last := line.last_of(band, most[0])) is not None)[1]

    # -- who comes and goes

    def push(self, request: Request, place: int) -> Line:
        """Takes it in at its place; the caller asked ``has_room`` unless it held a place before. Returns its line."""
        assert request.request_id not in self._waiting, f"{request.request_id} waits already"
        key = LineKey.of(request)
        lines = self._lines.setdefault(request.model, {})
        line = lines.get(key)
        if line is None:
            self._num_lines += 1
            line = lines[key] = Line(key, self._num_lines, self._waiting)
        self._waiting[request.request_id] = request
        line.add(request, place, None if request.is_counting else self.fairness.enter(request).lane)
        self._count(request, 1)
        return line

    def remove(self, request_id: str) -> bool:
        """Takes it out, wherever it stands; False if it does not wait."""
        request = self._waiting.pop(request_id, None)
        if request is None:
            return False
        key = LineKey.of(request)
        lines = self._lines[request.model]
        lines[key].remove(request)
        if not request.is_counting:
            self.fairness.leave(request)
        self._count(request, -1)
        if not lines[key].num_waiting:
            del lines[key]
            if not lines:
                del self._lines[request.model]
        return True

    def _count(self, request: Request, change: int) -> None:
        self._num[request.band] += change
        self._bytes[request.band] += change * request.body_bytes
        self._crowds[request.band].add(request.tenant, change)

    # -- what is asked

    def line_of(self, request: Request) -> Line | None:
        """Where it waits, or others like it; None where nobody like it does."""
        return self._lines.get(request.model, {}).get(LineKey.of(request))

    def has_model(self, model: str) -> bool:
        """Whether anybody waits for it."""
        return model in self._lines

    def lines_of(self, model: str) -> list[Line]:
        """Every line of a model in which somebody waits, in the order in which they were begun."""
        return list(self._lines.get(model, {}).values())

    def get(self, request_id: str) -> Request:
        """One that waits. Raises: KeyError."""
        return self._waiting[request_id]

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def request_ids(self) -> list[str]:
        """Everybody who waits, in no order that means anything."""
        return list(self._waiting)

    @property
    def models(self) -> list[str]:
        """Models for which somebody waits."""
        return list(self._lines)

    @property
    def num_waiting(self) -> tuple[int, ...]:
        """By band."""
        return tuple(self._num)

    @property
    def num_bytes(self) -> tuple[int, ...]:
        """By band."""
        return tuple(self._bytes)
