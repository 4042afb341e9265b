"""Shares: tenants that wait for the same workers get service in proportion to their weights, up to a bound.

A judge of ``scheduler.simulation.checker``. It must never read the core's state: it knows what was executed in the end
and counts it, in catalogue GPU-seconds over the tenant's weight, where it was started. ``docs/scheduling.md`` has the
bound for what is executed from moment to moment; what is in flight may count on either side here, hence 3 where it has
2:  |ΔS_f − ΔS_g| ≤ 2·L + 3·(C_f + C_g)  while f and g wait in one line all the time, in no other of their band, and
each has been started.

A tenant that comes for the first time is lifted to the last turn: before its first start every other of its line is
started for one charge, and for what comes back to it of those in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from scheduler.core.actions import Dispatch, Tokens
from scheduler.core.fairness import DEFAULT_WEIGHT, DEFAULT_WORK
from scheduler.core.request import Band, Request
from scheduler.simulation.checker_books import Attempt, Books, LineOf, line_of
from scheduler.simulation.trace import Configured, Decided, Event, Restarted, Submitted

ROUNDING_GPU_S = 1e-6
"""Counters are whole nanoseconds."""


@dataclass(slots=True)
class _Stretch:
    """Two tenants that wait in one line, from the moment that both had been started."""

    spells: tuple[int, int]
    gap_gpu_s: float
    """Of what was started for the one and for the other until then."""
    in_flight_gpu_s: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True)
class _Newcomer:
    """A tenant of which nothing was ever heard in its band; by others: what they were started for since, what they had
    in flight at most."""

    others_gpu_s: dict[str, float]
    in_flight_gpu_s: dict[str, float]


class Shares:
    """Reads starts against everybody who waits in the same line."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._served: dict[tuple[int, str], float] = {}
        """By band and tenant: catalogue GPU-seconds over weight of what was started."""
        self._started: dict[tuple[LineOf, str], int] = {}
        """In which spell of waiting the tenant was started last."""
        self._stretches: dict[tuple[LineOf, str, str], _Stretch] = {}
        self._newcomers: dict[tuple[LineOf, str], _Newcomer] = {}
        self._known: set[tuple[int, str]] = set()
        self._largest_gpu_s = [0.0] * len(Band)
        """The quantum: what one start was charged at most, by band."""

    def see(self, event: Event) -> None:
        match event:
            case Configured() | Restarted():
                self._stretches.clear()
                self._newcomers.clear()
                if isinstance(event, Restarted):
                    self._served.clear()
                    self._started.clear()
                    self._known.clear()
            case Submitted(request=request):
                self._submit(request)
            case Decided(action=Dispatch() as dispatch):
                self._dispatch(dispatch)
            case _:
                pass

    def _weight(self, tenant: str) -> float:
        return self._books.rules.weights.get(tenant, DEFAULT_WEIGHT)

    def _gpu_s(self, request: Request, tokens: Tokens) -> float:
        work = self._books.rules.work.get(request.model, DEFAULT_WORK)
        gpu_s = work.gpu_seconds(
            prompt_tokens=tokens.input_tokens, cached_tokens=tokens.cached_tokens, output_tokens=tokens.output_tokens
        )
        return gpu_s / self._weight(request.tenant)

    def _most_gpu_s(self, request: Request) -> float:
        """Its whole bound and all that it may put out."""
        output_tokens = self._books.caps[request.request_id] * request.num_sequences
        return self._gpu_s(request, Tokens(input_tokens=request.prompt_tokens_bound, output_tokens=output_tokens))

    def _in_flight_gpu_s(self, band: int, tenant: str) -> float:
        """As if all of it were put out to its cap."""
        requests = (attempt.asked.request for attempt in self._running(band))
        return sum(self._most_gpu_s(each) for each in requests if each.tenant == tenant)

    def _running(self, band: int) -> Iterator[Attempt]:
        attempts = (each for site in self._books.sites.values() for each in site.running.values())
        return (attempt for attempt in attempts if attempt.asked.request.band == band)

    # -- newcomers

    def _submit(self, request: Request) -> None:
        key = (int(request.band), request.tenant)
        if key not in self._known and request.request_id not in self._books.verdicts:
            self._known.add(key)
            others = {each.asked.request.tenant for each in self._running(key[0])}
            in_flight = {tenant: self._in_flight_gpu_s(key[0], tenant) for tenant in others}
            self._newcomers[line_of(request), request.tenant] = _Newcomer({}, in_flight)

    def _pass_newcomers(self, line: LineOf, tenant: str, started_gpu_s: float) -> None:
        """Somebody of its line was started before it; whoever was started anywhere in its band is none any more."""
        for of_line, newcomer in list(self._newcomers):
            if (of_line[0], newcomer) == (line[0], tenant):
                del self._newcomers[of_line, newcomer]
        for (of_line, newcomer), since in self._newcomers.items():
            if of_line != line or not self._books.crowd.get((line, newcomer), [0])[0]:
                continue
            most = max(since.in_flight_gpu_s.get(tenant, 0.0), self._in_flight_gpu_s(line[0], tenant))
            since.in_flight_gpu_s[tenant] = most
            since.others_gpu_s[tenant] = since.others_gpu_s.get(tenant, 0.0) + started_gpu_s
            bound_gpu_s = self._largest_gpu_s[line[0]] + 2 * most + ROUNDING_GPU_S
            self._books.expect(
                since.others_gpu_s[tenant] <= bound_gpu_s,
                f"{newcomer}: waited for its first turn while {tenant} was started for "
                f"{since.others_gpu_s[tenant]:.4f} GPU-s, bound {bound_gpu_s:.4f}",
            )

    # -- those who wait together

    def _dispatch(self, dispatch: Dispatch) -> None:
        asked = self._books.asked.get(dispatch.request_id)
        if asked is None:
            return
        request, line = asked.request, line_of(asked.request)
        band, tenant = line[0], request.tenant
        tokens = self._books.executed.get(dispatch.attempt_id)
        if tokens is None:  # cut off by a restart: what it came to is not known
            self._stretches.clear()
            self._newcomers.clear()
            return
        started_gpu_s, most_gpu_s = self._gpu_s(request, tokens), self._most_gpu_s(request)
        self._largest_gpu_s[band] = max(self._largest_gpu_s[band], most_gpu_s)
        self._pass_newcomers(line, tenant, started_gpu_s)
        self._served[band, tenant] = self._served.get((band, tenant), 0.0) + started_gpu_s
        waiting = self._waiting_only_in(line)
        for first, second in combinations(waiting, 2):
            self._compare(line, first, second, most_gpu_s, tenant)
        spell = self._books.crowd.get((line, tenant))
        self._started[line, tenant] = 0 if spell is None else spell[1]

    def _waiting_only_in(self, line: LineOf) -> list[str]:
        """Tenants that wait there and nowhere else in the band."""
        where: dict[str, set[LineOf]] = {}
        for (of_line, tenant), (num_waiting, _) in self._books.crowd.items():
            if of_line[0] == line[0] and num_waiting:
                where.setdefault(tenant, set()).add(of_line)
        return sorted(tenant for tenant, lines in where.items() if lines == {line})

    def _compare(self, line: LineOf, first: str, second: str, most_gpu_s: float, started: str) -> None:
        crowd, key = self._books.crowd, (line, first, second)
        spells = (crowd[line, first][1], crowd[line, second][1])
        gap_gpu_s = self._served.get((line[0], first), 0.0) - self._served.get((line[0], second), 0.0)
        stretch = self._stretches.get(key)
        if stretch is None or stretch.spells != spells:
            self._stretches.pop(key, None)
            if (self._started.get((line, first)), self._started.get((line, second))) != spells:
                return
            stretch = self._stretches[key] = _Stretch(spells, gap_gpu_s)
        in_flight = (self._in_flight_gpu_s(line[0], first), self._in_flight_gpu_s(line[0], second))
        in_flight = (in_flight[0] + most_gpu_s * (started == first), in_flight[1] + most_gpu_s * (started == second))
        before = stretch.in_flight_gpu_s
        stretch.in_flight_gpu_s = (max(before[0], in_flight[0]), max(before[1], in_flight[1]))
        bound_gpu_s = 2 * self._largest_gpu_s[line[0]] + 3 * sum(stretch.in_flight_gpu_s) + ROUNDING_GPU_S
        moved_gpu_s = abs(gap_gpu_s - stretch.gap_gpu_s)
        self._books.expect(
            moved_gpu_s <= bound_gpu_s,
            f"{first} and {second} are {moved_gpu_s:.4f} GPU-s apart, bound {bound_gpu_s:.4f}",
        )
