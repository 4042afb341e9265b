"""Who waits, for how long at most, and who is worth trying: the queue's driver.

Called by ``scheduler.core.scheduler``. It must never know a worker, and time is an argument.

A line whose head did not fit is *saturated*: nobody of it is tried again until something that could make room for it
happens (credit freed, a worker heard of, another head). So a full cluster costs nothing per arrival. Who is tried after
such a head, in another line of its model, may not take the workers that the head waits for: nobody overtakes.

A lower band *ages*: while its oldest has waited longer than ``ageing_s`` and better bands of its model have had
``ageing_every`` - 1 starts since its own last one, its next request goes before them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.core.admission import Limits
from scheduler.core.attempts import Entry
from scheduler.core.deadlines import Deadlines
from scheduler.core.deferral import CHEAPER_HOUR, Deferral
from scheduler.core.queue import BANDS, NO_TURN, Line, Queue, Rank
from scheduler.core.request import Request
from scheduler.core.rules import Rules


class Turn(NamedTuple):
    """Who is worth trying now."""

    entry: Entry
    closed_to: tuple[Request, ...] = ()
    """Heads of other lines that go before it and did not fit: what they wait for is theirs."""
    is_aged: bool = False
    """It goes before better bands because of its age, and may take what is kept for them."""


@dataclass(slots=True)
class _Model:
    """The lines of one model, and what its lower bands are owed."""

    saturated: dict[int, Line] = field(default_factory=dict)
    """By number; in the order in which they were tried in vain."""
    num_passed: list[int] = field(default_factory=lambda: [0] * len(BANDS))
    """By band: starts of better bands since its own last one."""


class Waiting:
    """Entries between their push and their start or refusal."""

    def __init__(
        self,
        queue: Queue,
        *,
        max_wait_s: float,
        ageing_s: float = 30.0,
        ageing_every: int = 16,
        deferral: Deferral | None = None,
    ) -> None:
        """``deferral``: where who waits for a cheaper hour does so; None = nobody does."""
        self._queue = queue
        self._deferral = deferral
        self._max_wait_s = max_wait_s
        self._entries: dict[str, Entry] = {}
        self._limits = Deadlines()
        """When each has waited too long; who was started meanwhile is passed over."""
        self._open: dict[int, Line] = {}
        """Lines that may fit, by number."""
        self._models: dict[str, _Model] = {}
        self.reload(ageing_s=ageing_s, ageing_every=ageing_every)

    @staticmethod
    def of(queue: Queue, deferral: Deferral, limits: Limits, rules: Rules) -> Waiting:
        """As operators want it."""
        return Waiting(
            queue,
            max_wait_s=limits.max_wait_s,
            ageing_s=rules.ageing_s,
            ageing_every=rules.ageing_every,
            deferral=deferral,
        )

    def reload(self, *, ageing_s: float, ageing_every: int) -> None:
        """Other rules of ageing from now on."""
        assert ageing_every >= 2, ageing_every
        self._ageing_s, self._ageing_every = ageing_s, ageing_every

    # -- who comes and goes

    def push(self, entry: Entry) -> None:
        """To its place, for a bounded time."""
        request = entry.request
        line = self._queue.push(request, entry.place)
        self._models.setdefault(request.model, _Model())
        self._entries[request.request_id] = entry
        if not request.is_deferrable:  # its own deadline ends its wait, and nothing before that
            limit_s = entry.waits_since_s + self._max_wait_s
            self._limits.push(limit_s, request.request_id, is_open=self._entries.keys())
        if line.head is request:
            self._reopen(line)

    def defer(self, entry: Entry, now_s: float) -> bool:
        """It waits for a cheaper hour first, which no limit of waiting counts; False: there is none for it."""
        if self._deferral is None or not self._deferral.defer(entry, now_s):
            return False
        entry.begin_wait(CHEAPER_HOUR, now_s)
        return True

    def release(self, now_s: float) -> list[Request]:
        """Whoever's cheaper hour has come waits for a worker from now on; those of which that is so."""
        released = []
        for entry in self._deferral.released(now_s) if self._deferral is not None else ():
            entry.end_wait(now_s)
            entry.begin_wait("queued", now_s)
            self.push(entry)
            released.append(entry.request)
        return released

    def request_ids(self) -> list[str]:
        """Everybody who waits, for whatever it is, in no order that means anything."""
        return self._queue.request_ids() + (self._deferral.request_ids() if self._deferral is not None else [])

    def remove(self, request_id: str) -> None:
        """Started, cancelled or refused. Unknown ids are ignored.

        Where a head leaves that was not started, whoever is next may fit, and so may those whom it kept from workers.
        """
        entry = self._entries.pop(request_id, None)
        if entry is None:
            if self._deferral is not None:
                self._deferral.discard(request_id)
            return
        line = self._queue.line_of(entry.request)
        assert line is not None, f"{request_id} waits in no line"
        is_head = line.next_of(entry.request.band)[0] is entry.request
        self._queue.remove(request_id)
        if not line.num_waiting:
            self._forget(line)
        if is_head and entry.attempt is None:
            self.freed(list(self._models))

    def freed(self, models: Iterable[str]) -> None:
        """Something changed for the better for these models."""
        for model in models:
            state = self._models.get(model)
            if state is not None and state.saturated:
                self._open.update(state.saturated)
                state.saturated.clear()

    def did_not_fit(self, request: Request) -> None:
        """The head of its line was tried in vain."""
        line = self._queue.line_of(request)
        assert line is not None, f"{request.request_id} waits in no line"
        assert line.head is request, f"{request.request_id} is not the next of its line"
        self._saturate(line)

    def overdue(self, now_s: float) -> Iterator[Entry]:
        """Who has waited too long; the caller removes each."""
        for request_id in self._limits.due(now_s):
            entry = self._entries.get(request_id)
            if entry is not None and entry.waits_since_s + self._max_wait_s <= now_s:
                yield entry

    # -- who is next

    def turn_of_newcomer(self, entry: Entry, now_s: float) -> Turn | None:
        """A turn at once where nobody waits that goes before it and may fit; None where it has to wait for its own."""
        request = entry.request
        if self._queue.has_model(request.model):
            return None
        if not any(self._queue.num_waiting[: request.band]):
            return Turn(entry)
        if any(line.bands[0] < request.band for line in self._open.values()):
            return None
        return Turn(entry, self._closed_to(request.model, Rank(request.band, True, NO_TURN, entry.place), now_s))

    def candidates(self, now_s: float) -> Iterator[Turn]:
        """Who may fit, in the order of turns over all lines.

        The caller removes who was started or refused before it asks for the next. Who is left where it is ends its
        line.
        """
        turns = self._turns(now_s)
        while turns:
            rank, number = turns[0]
            line = self._open.get(number)
            if line is None:
                heapq.heappop(turns)
                continue
            request, now_rank = self._next(line, now_s)
            if now_rank != rank:  # a start moved its tenant back, or somebody left
                heapq.heapreplace(turns, (now_rank, number))
                continue
            entry = self._entries[request.request_id]
            yield Turn(entry, self._closed_to(request.model, rank, now_s), rank.urgency < request.band)
            if request.request_id in self._entries:
                heapq.heappop(turns)
                self._saturate(line)
            elif entry.attempt is None:  # refused: lines that were tried in vain are open again
                turns = self._turns(now_s)
            elif self._count_start(request):
                for each in self._queue.lines_of(request.model):  # one of them may be aged now
                    if each.number in self._open:
                        heapq.heappush(turns, (self._next(each, now_s)[1], each.number))

    def _turns(self, now_s: float) -> list[tuple[Rank, int]]:
        """A heap of the turns of lines that may fit."""
        turns = [(self._next(line, now_s)[1], line.number) for line in self._open.values()]
        heapq.heapify(turns)
        return turns

    def _next(self, line: Line, now_s: float) -> tuple[Request, Rank]:
        """Who is next of a line in which somebody waits, age included, and its turn."""
        bands, num_passed = line.bands, self._models[line.key.model].num_passed
        for band in bands:
            if num_passed[band] < self._ageing_every - 1:
                continue
            if self._entries[line.oldest(band).request_id].ages_since_s + self._ageing_s <= now_s:
                request, rank = line.next_of(band)
                return request, rank._replace(urgency=band - len(BANDS))
        return line.next_of(bands[0])

    def _closed_to(self, model: str, rank: Rank, now_s: float) -> tuple[Request, ...]:
        """Of the model itself whoever goes before; of other models, with which it may share workers, better bands."""
        earlier = []
        for name, state in self._models.items():
            for line in state.saturated.values():
                request, its_rank = self._next(line, now_s)
                if its_rank < rank and (name == model or 0 <= its_rank.urgency < rank.urgency):
                    earlier.append(request)
        return tuple(earlier)

    def _count_start(self, request: Request) -> bool:
        """Lower bands were passed over once more; whether one of them may be owed the next turn."""
        state = self._models.get(request.model)
        if state is None:
            return False  # it was the last of its model
        passed = state.num_passed
        passed[request.band] = 0
        for band in range(request.band + 1, len(BANDS)):
            passed[band] += 1
        return self._ageing_every - 1 in passed[request.band + 1 :]

    # -- lines

    def _reopen(self, line: Line) -> None:
        self._models[line.key.model].saturated.pop(line.number, None)
        self._open[line.number] = line

    def _saturate(self, line: Line) -> None:
        self._open.pop(line.number, None)
        self._models[line.key.model].saturated[line.number] = line

    def _forget(self, line: Line) -> None:
        """Nobody waits there any more."""
        self._open.pop(line.number, None)
        self._models[line.key.model].saturated.pop(line.number, None)
        if not self._queue.lines_of(line.key.model):
            del self._models[line.key.model]
