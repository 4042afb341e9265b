"""Watts over a span, from counters of joules that are read again and again.

Called by ``scheduler.bench.sweep``. It must never know what was sent meanwhile. Where a counter says nothing of a span
there is no figure and a sentence, never a zero.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgspec

from scheduler.bench.client import Target, TargetError, open_session
from scheduler.bench.energy import scrape
from scheduler.bench.session import EnergySource, local_meter

PERIOD_S = 0.25
"""How often counters are read; the moment of a move is known this well."""
MAX_STRANGERS_RATIO = 0.02
"""Joules of requests in a span that should be idle, as a share of all, above which it was not idle."""
NO_METER = "watts were not measured: give --metrics-url (Jouleway's admin listener) or --local-meter"


class Watts(msgspec.Struct, frozen=True, kw_only=True):
    """Mean watts of a span, and how they were had."""

    watts: float | None
    span_s: float
    """Seconds between the first and last move of the counter inside the span, the shortest of all counters."""
    grade: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Counters at one moment: joules by worker or device, and joules of requests where the server tells them."""

    joules: Mapping[str, float]
    grade: str
    requests_joules: float | None = None


@dataclass(slots=True)
class Track:
    """One counter's moves: when it was first seen with a new value. The first entry is where it stood, not a move."""

    moves: list[tuple[float, float]] = field(default_factory=list)

    def add(self, at_s: float, joules: float) -> None:
        """A reading; kept only where the counter moved."""
        if not self.moves or joules != self.moves[-1][1]:
            self.moves.append((at_s, joules))

    def at(self, at_s: float) -> float | None:
        """What it stood at; None before its first reading."""
        known = [joules for moved_s, joules in self.moves if moved_s <= at_s]
        return known[-1] if known else None

    def between(self, start_s: float, end_s: float) -> tuple[float, float] | None:
        """Joules and seconds from its first to its last move inside the span; None below two moves.

        A counter that is booked by window stands still between: only from move to move are joules and time the same.
        """
        inside = [move for move in self.moves[1:] if start_s <= move[0] <= end_s]
        if len(inside) < 2:
            return None
        return inside[-1][1] - inside[0][1], inside[-1][0] - inside[0][0]

    def went_back(self) -> bool:
        """Whether it fell: a counter that began anew."""
        return any(later[1] < earlier[1] for earlier, later in zip(self.moves, self.moves[1:], strict=False))


class Watch:
    """Reads counters in the background for as long as one point of a sweep takes."""

    def __init__(self, read: Callable[[], Awaitable[Sample]], *, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self._read = read
        self._tracks: dict[str, Track] = {}
        self._requests = Track()
        self._grade = ""
        self._faults: list[tuple[float, str]] = []

    async def follow(self, *, period_s: float = PERIOD_S) -> None:
        """Read until cancelled. A reading that fails is remembered; the next one is tried."""
        while True:
            await self.look()
            await asyncio.sleep(period_s)

    async def look(self) -> None:
        """One reading."""
        try:
            sample = await self._read()
        except TargetError as error:
            self._faults.append((self.clock(), str(error)))
            return
        now_s = self.clock()
        for name, joules in sample.joules.items():
            self._tracks.setdefault(name, Track()).add(now_s, joules)
        if sample.requests_joules is not None:
            self._requests.add(now_s, sample.requests_joules)
        self._grade = max(self._grade, sample.grade)

    def watts(self, start_s: float, end_s: float, *, idle: bool = False) -> Watts:
        """Mean watts of a span of the clock, summed over counters. ``idle``: say so where requests ran in it."""
        notes = [f"a reading failed: {fault}" for at_s, fault in self._faults if start_s <= at_s <= end_s][:1]
        if any(track.went_back() for track in self._tracks.values()):
            notes.append("a counter of joules went back: a worker or driver began anew")
            return Watts(watts=None, span_s=0.0, grade=self._grade, notes=tuple(notes))
        found = {name: track.between(start_s, end_s) for name, track in self._tracks.items()}
        whole = [each for each in found.values() if each is not None]
        if not whole:
            notes.append(
                f"no counter moved twice in {end_s - start_s:.3g} s: make the span at least three windows long"
            )
            return Watts(watts=None, span_s=0.0, grade=self._grade, notes=tuple(notes))
        total = sum(joules / seconds for joules, seconds in whole)
        if still := sorted(name for name, each in found.items() if each is None):
            total += sum(self._coarse(name, start_s, end_s) for name in still)
            notes.append(f"{', '.join(still)}: moved less than twice, taken from edge to edge (± one window)")
        if idle and (strangers := self._moved(self._requests, start_s, end_s)) > MAX_STRANGERS_RATIO * total * (
            end_s - start_s
        ):
            notes.append(f"not idle: {strangers:.3g} J of requests were booked in this span")
        return Watts(watts=total, span_s=min(seconds for _, seconds in whole), grade=self._grade, notes=tuple(notes))

    def _coarse(self, name: str, start_s: float, end_s: float) -> float:
        return self._moved(self._tracks[name], start_s, end_s) / (end_s - start_s)

    @staticmethod
    def _moved(track: Track, start_s: float, end_s: float) -> float:
        first, last = track.at(start_s), track.at(end_s)
        return 0.0 if first is None or last is None else last - first


@asynccontextmanager
async def watching(target: Target, source: EnergySource) -> AsyncIterator[Watch | None]:
    """A watch over whatever ``source`` names, reading until the context is left; None where it names nothing.

    Raises: TargetError when the metrics page cannot be read at the beginning; MeterUnavailable for a local meter.
    """
    if source.metrics_url is None and source.local_meter is None:
        yield None
        return
    async with open_session(target) as session:
        url = source.metrics_url
        with local_meter(source.local_meter if url is None else None, source.gpu_uuids) as meter:

            async def read() -> Sample:
                if url is not None:
                    page = await scrape(session, url, source.admin_key)
                    requests = page.accounts.get("requests", 0.0) + page.accounts.get("in_flight", 0.0)
                    return Sample(joules=page.meter_by_worker, grade=page.grade, requests_joules=requests)
                assert meter is not None
                found = await asyncio.to_thread(meter.read)
                return Sample(joules={meter.name: found.counter_mj / 1000}, grade=found.grade.value)

            await read()
            watch = Watch(read)
            following = asyncio.create_task(watch.follow())
            try:
                yield watch
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following
