"""Windows between two meter readings: when they open and close, and what moves into which account.

Called by ``workers.worker``. It must never know Ray, an engine or HTTP; the meter is a Protocol, time an argument.

A reading is a boundary. The window before it is settled once the feed of steps has passed the boundary, or the engine
has nothing to run, or the steps are so late that they are given up. Settling splits the window (``attribution``),
moves the shares of attempts into the in-flight account, and posts what is in flight for every attempt that has closed.

``meter_mj`` of a window is what the counter was seen to count, never a guess: whoever reads the same counter finds the
same sum, at every instant. Where it could not be read, attempts are charged what the model predicts, and unattributed
gives it; when the counter is back it shows what was used meanwhile, and unattributed gets it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from workers.attribution import Attribution, WindowSplit
from workers.outbox import Outbox
from workers.steps import StepRecord
from workers.types import EnergyPosting, Grade, Phase, WindowRecord

FEED_GRACE_S = 0.25
"""How long a step record may still be on its way after the engine went idle."""

MAX_BOUNDARIES = 64
"""Readings that may wait for late steps; beyond it the oldest window is settled with what is there."""

STANDING_S = 5.0
"""A counter that has not moved for this long past an edge is taken as stalled: windows must go on closing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterReading:
    """A cumulative reading. ``at_s`` is monotonic, aligned to the moment the counter last moved where possible."""

    at_s: float
    counter_mj: int
    grade: Grade
    fault: str = ""
    """Named downgrade, reset or stall since the last reading; empty when all is well."""


class PowerMeter(Protocol):
    """Cumulative millijoules of exactly one engine's devices."""

    @property
    def name(self) -> str:
        """What was read, for people: ``nvml:energy-counter``, ``modelled:cpu-seconds``."""

    def read(self) -> MeterReading:
        """Blocks up to 0.25 s; called on a thread. Raises MeterUnavailable when the device is lost."""

    def health(self) -> tuple[str, ...]:
        """XID, ECC, throttle reasons and downgrades, in words; empty when all is well."""

    def close(self) -> None:
        """Releases the device."""


@dataclass(frozen=True, slots=True)
class _Boundary:
    """The end of a window: a reading, or ``None`` where the meter was lost and the model stands in for it."""

    at_s: float
    reading: MeterReading | None
    outage: str
    """Why there is no reading: meter_lost, counter_stalled; empty where there is one."""
    calibrating: bool
    phase: Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What the counter counted in a window, and what its steps are to be split over; the rest is unattributed."""

    meter_mj: int
    split_mj: int
    grade: Grade


@dataclass(slots=True)
class _InFlight:
    """One attempt's account between its start and its posting."""

    energy_mj: int = 0
    gpu_us: int = 0
    tokens: int = 0
    grade: Grade | None = None
    """The worst of its windows; None before the first."""
    is_complete: bool = True
    is_final: bool = False
    """Its last step record is here."""


class Windows:
    """Settles metered windows of one engine and keeps its in-flight account.

    ``last_counter_mj`` is the last durable reading of this counter before this worker existed: what the meter counted
    since then belongs to nobody who could be asked, so it becomes unattributed with the cause ``worker_lost``.
    """

    def __init__(
        self,
        *,
        attribution: Attribution,
        outbox: Outbox,
        unix_clock: Callable[[], float],
        meter_name: Callable[[], str],
        hook_grade: Grade = Grade.A,
        policy: str = "shapley",
        last_counter_mj: int | None = None,
        late_s: float = 60.0,
    ) -> None:
        self._attribution = attribution
        self._outbox = outbox
        self._unix_clock = unix_clock
        self._meter_name = meter_name
        self.hook_grade = hook_grade
        """Of the engine as it started last."""
        self.phase = Phase.SERVING
        """What becomes of the engine until the next boundary."""
        self._policy = policy
        self._late_s = late_s
        self._boundaries: deque[_Boundary] = deque()
        self._opened_s: float | None = None
        self._counter_mj = last_counter_mj
        self._has_gap = last_counter_mj is not None
        self._unmetered_mj: int | None = None
        self._carried_mj = 0
        self._carried_gpu_us = 0
        self._carried_jumps: set[str] = set()
        self._dropped_steps = 0
        self._in_flight: dict[str, _InFlight] = {}
        self._num_windows = 0
        self._read_mj: int | None = None
        self._is_closed = False
        self.num_steps = 0

    @property
    def in_flight_mj(self) -> int:
        """Energy of closed windows whose attempts have no posting yet."""
        return sum(account.energy_mj for account in self._in_flight.values())

    # -- what comes in

    def open_attempt(self, attempt_id: str) -> None:
        """An attempt starts; only open attempts can be charged (a straggler's steps are overhead)."""
        self._in_flight[attempt_id] = _InFlight()

    def add_step(self, step: StepRecord) -> None:
        """One engine step, in order of its end."""
        self.num_steps += 1
        self._attribution.add_step(step)

    def add_dropped(self, num_records: int) -> None:
        """Step records were lost: the window they fall into is graded down."""
        self._dropped_steps += num_records

    def close_attempt(self, attempt_id: str) -> None:
        """The attempt's last step record is here: its posting follows with the window that holds its last step."""
        account = self._in_flight.get(attempt_id)
        if account is not None:
            account.is_final = True
            self._post(attempt_id, account)

    def provisional(self, attempt_id: str) -> tuple[int, int]:
        """(mj, gpu_us) so far: closed windows as measured, the open one as predicted."""
        account = self._in_flight.get(attempt_id) or _InFlight()
        pending_mj, pending_gpu_us = self._attribution.provisional(attempt_id)
        return account.energy_mj + pending_mj, account.gpu_us + pending_gpu_us

    def add_reading(self, reading: MeterReading | None, *, now_s: float, calibrating: bool = False) -> None:
        """A boundary. ``None`` = the meter is lost: the model's prediction stands in, grade D, named."""
        outage = "" if reading is not None else "meter_lost"
        at_s = now_s if reading is None else reading.at_s
        if self._opened_s is None:
            self._open_first(at_s, reading)
            return
        last_s = self._boundaries[-1].at_s if self._boundaries else self._opened_s
        if reading is not None:
            is_named = reading.counter_mj == self._read_mj and reading.fault.startswith("counter_stalled")
            if is_named or (at_s <= last_s and now_s - last_s >= STANDING_S):
                reading, at_s, outage = None, now_s, "counter_stalled"
        if at_s <= last_s or (reading is None and self.phase is not Phase.SERVING):
            return  # the counter has not moved since the last boundary, or nobody is charged who could not wait for it
        if reading is not None:
            self._read_mj = reading.counter_mj
        self._boundaries.append(_Boundary(at_s, reading, outage, calibrating, self.phase))

    # -- what comes out

    def settle(self, *, now_s: float, num_running: int) -> int:
        """Settles every window that can be settled; returns how many. Cheap when there is nothing to do."""
        num_settled = 0
        while self._boundaries:
            boundary = self._boundaries[0]
            newest_s = self._attribution.latest_step_ended_s()
            passed = newest_s is not None and newest_s >= boundary.at_s
            idle = num_running == 0 and now_s >= boundary.at_s + FEED_GRACE_S
            given_up = now_s >= boundary.at_s + self._late_s or len(self._boundaries) > MAX_BOUNDARIES
            if not (passed or idle or given_up):
                break
            self._boundaries.popleft()
            self._settle_one(boundary, late=not (passed or idle))
            num_settled += 1
        return num_settled

    @property
    def is_past_last_step(self) -> bool:
        """Whether an edge lies behind every step that is known: no step is cut by the end."""
        newest_s = self._attribution.latest_step_ended_s()
        edge_s = self._boundaries[-1].at_s if self._boundaries else self._opened_s
        return newest_s is None or (edge_s is not None and newest_s <= edge_s)

    def close(self) -> None:
        """No window follows: all are settled as they are, closed attempts are posted, cut ones as incomplete."""
        self.settle(now_s=float("inf"), num_running=0)
        self._is_closed = True
        self._post_closed()

    def _open_first(self, at_s: float, reading: MeterReading | None) -> None:
        """The first reading opens the first window; what the counter did before is unattributed."""
        self._opened_s = at_s
        if reading is None:
            return
        before_mj, self._counter_mj = self._counter_mj, reading.counter_mj
        self._read_mj = reading.counter_mj
        self._has_gap = False
        if before_mj is None or before_mj == reading.counter_mj:
            return
        # As in a running worker: what a counter shows that began anew was used since.
        is_reset = reading.counter_mj < before_mj
        lost_mj = reading.counter_mj if is_reset else reading.counter_mj - before_mj
        grade = Grade.D if is_reset else reading.grade
        self._book(
            WindowSplit.of_nothing(),
            measured=_Measured(meter_mj=lost_mj, split_mj=0, grade=grade),
            grade=grade,
            boundary=_Boundary(at_s, reading, outage="", calibrating=False, phase=Phase.SERVING),
            started_s=at_s,
            causes=[("counter_reset" if is_reset else "worker_lost", lost_mj)],
        )

    def _settle_one(self, boundary: _Boundary, *, late: bool) -> None:
        assert self._opened_s is not None
        started_s, self._opened_s = self._opened_s, boundary.at_s
        causes: list[tuple[str, int]] = []
        measured = self._measured(boundary, started_s, causes)
        grade = measured.grade
        if self._dropped_steps:
            grade = Grade.worst(grade, Grade.B)
            causes.append(("step_records_dropped", 0))
            self._dropped_steps = 0
        if late:
            grade = Grade.worst(grade, Grade.C)
            causes.append(("steps_late", 0))
        learn = not causes and boundary.phase is Phase.SERVING
        split = self._attribution.close_window(
            started_s=started_s, ended_s=boundary.at_s, meter_mj=measured.split_mj, learn=learn
        ).of(boundary.phase)
        self._book(split, measured=measured, grade=grade, boundary=boundary, started_s=started_s, causes=causes)
        self._post_closed()

    def _measured(self, boundary: _Boundary, started_s: float, causes: list[tuple[str, int]]) -> _Measured:
        """Energy of the window; resets and outages are named in ``causes``, with what they leave unattributed."""
        reading = boundary.reading
        if reading is None:
            found = self._predicted(boundary, started_s, meter_mj=0)
            self._unmetered_mj = (self._unmetered_mj or 0) + found.split_mj
            causes.append((boundary.outage, -found.split_mj))
            return found
        grade = Grade.worst(reading.grade, self.hook_grade)
        faults = [fault.split(":")[0] for fault in reading.fault.split("; ") if fault]
        before_mj, self._counter_mj = self._counter_mj, reading.counter_mj
        unmetered_mj, self._unmetered_mj = self._unmetered_mj, None
        has_gap, self._has_gap = self._has_gap, False
        delta_mj = reading.counter_mj - (before_mj or 0)
        if before_mj is not None and delta_mj < 0:
            # The counter began anew: what it shows was used since; what it showed before its end nobody can know.
            causes += [(fault, 0) for fault in dict.fromkeys((*faults, "counter_reset"))]
            return _Measured(meter_mj=reading.counter_mj, split_mj=reading.counter_mj, grade=Grade.D)
        causes += [(fault, 0) for fault in dict.fromkeys(faults)]
        if before_mj is None or has_gap:
            # The first reading ever, or the first since another worker's last: no part of it is this window's alone.
            found = self._predicted(boundary, started_s, meter_mj=delta_mj if has_gap else 0)
            causes.append(("worker_lost" if has_gap else "meter_found", found.meter_mj - found.split_mj))
            return found
        if unmetered_mj is not None:
            # The counter went on while it could not be read: it shows what the model stood in for.
            causes.append(("meter_back", unmetered_mj))
            return _Measured(
                meter_mj=delta_mj, split_mj=delta_mj - unmetered_mj, grade=Grade.worst(grade, Grade.C)
            )  # fmt: skip
        return _Measured(meter_mj=delta_mj, split_mj=delta_mj, grade=grade)

    def _predicted(self, boundary: _Boundary, started_s: float, *, meter_mj: int) -> _Measured:
        split_mj = self._attribution.predicted_mj(started_s=started_s, ended_s=boundary.at_s)
        return _Measured(meter_mj=meter_mj, split_mj=split_mj, grade=Grade.D)

    def _book(
        self,
        split: WindowSplit,
        *,
        measured: _Measured,
        grade: Grade,
        boundary: _Boundary,
        started_s: float,
        causes: list[tuple[str, int]],
    ) -> None:
        for attempt_id in split.overflowed:
            if (account := self._in_flight.get(attempt_id)) is not None:
                account.is_complete = False
        if not self._outbox.has_window_room:
            # Nobody acknowledges: carry all of it to the next window that finds room, without a payer.
            self._carried_mj += measured.meter_mj
            self._carried_gpu_us += split.busy_gpu_us
            self._carried_jumps |= {"counter_reset", "meter_found"} & {cause for cause, _ in causes}
            for attempt_id in split.shares:
                if (account := self._in_flight.get(attempt_id)) is not None:
                    account.is_complete = False
            self._outbox.dropped_total += 1
            return
        shares = self._move_in_flight(split, grade)
        carried_mj, self._carried_mj = self._carried_mj, 0
        carried_gpu_us, self._carried_gpu_us = self._carried_gpu_us, 0
        if carried_mj or carried_gpu_us or self._carried_jumps:
            causes.append(("outbox_overflow", carried_mj))
            causes += [(cause, 0) for cause in sorted(self._carried_jumps - {cause for cause, _ in causes})]
            self._carried_jumps.clear()
        unpaid_mj = split.overhead_mj + sum(mj for mj, _ in split.shares.values()) - sum(mj for _, mj, _ in shares)
        busy_gpu_us = split.busy_gpu_us + carried_gpu_us
        self._num_windows += 1
        self._outbox.put(
            WindowRecord(
                window=self._num_windows,
                started_s=started_s,
                ended_s=boundary.at_s,
                ended_unix_s=self._unix_clock(),
                counter_mj=self._counter_mj or 0,
                meter_mj=measured.meter_mj + carried_mj,
                idle_mj=split.idle_mj,
                overhead_mj=unpaid_mj,
                unattributed_mj=split.unattributed_mj + measured.meter_mj - measured.split_mj + carried_mj,
                in_flight_mj=sum(mj for _, mj, _ in shares),
                shares=shares,
                busy_gpu_us=busy_gpu_us,
                overhead_gpu_us=busy_gpu_us - sum(gpu_us for _, _, gpu_us in shares),
                predicted_mj=split.predicted_mj,
                scale_ratio=split.scale_ratio,
                grade=grade,
                meter=self._meter_name() if boundary.reading is not None else "predicted",
                num_steps=split.num_steps,
                calibrating=boundary.calibrating,
                phase=boundary.phase,
                causes=(*split.causes, *causes),
            )
        )

    def _move_in_flight(self, split: WindowSplit, grade: Grade) -> tuple[tuple[str, int, int], ...]:
        """Shares of attempts that are still open; what is left over has no payer any more."""
        for attempt_id, tokens in split.tokens.items():
            if (account := self._in_flight.get(attempt_id)) is not None:
                account.tokens += tokens
        shares = []
        for attempt_id, (energy_mj, gpu_us) in split.shares.items():
            if (account := self._in_flight.get(attempt_id)) is not None:
                account.energy_mj += energy_mj
                account.gpu_us += gpu_us
                account.grade = grade if account.grade is None else Grade.worst(grade, account.grade)
                shares.append((attempt_id, energy_mj, gpu_us))
        return tuple(shares)

    def _post_closed(self) -> None:
        for attempt_id, account in sorted(self._in_flight.items()):
            self._post(attempt_id, account)

    def _post(self, attempt_id: str, account: _InFlight) -> None:
        """In flight -> the posting, once the attempt is closed and none of its steps waits for a window any more."""
        is_cut = self._attribution.has_pending(attempt_id)
        if not account.is_final or (is_cut and not self._is_closed):
            return
        if self._outbox.is_full and (account.energy_mj or account.gpu_us):
            return  # it stays in flight until there is room: what the windows gave it must come out again
        del self._in_flight[attempt_id]
        self._outbox.put(
            EnergyPosting(
                attempt_id=attempt_id,
                energy_mj=account.energy_mj,
                gpu_us=account.gpu_us,
                grade=self.hook_grade if account.grade is None else account.grade,
                policy=self._policy,
                complete=account.is_complete and not is_cut,
                computed_tokens=account.tokens if self.hook_grade is Grade.A else None,
            )
        )
