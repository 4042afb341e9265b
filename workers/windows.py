"""Windows between two meter readings: when they open and close, and what moves into which account.

Called by ``workers.worker``. It must never know Ray, an engine or HTTP; the meter is a Protocol, time an argument.

A reading is a boundary. The window before it is settled once the feed of steps has passed the boundary, or the engine
has nothing to run, or the steps are so late that they are given up. Settling splits the window (``attribution``),
moves the shares of attempts into the in-flight account, and posts what is in flight for every attempt that has closed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from workers.attribution import Attribution, WindowSplit
from workers.outbox import Outbox
from workers.types import EnergyPosting, Grade, StepRecord, WindowRecord

FEED_GRACE_S = 0.25
"""How long a step record may still be on its way after the engine went idle."""

MAX_BOUNDARIES = 64
"""Readings that may wait for late steps; beyond it the oldest window is settled with what is there."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Boundary:
    """The end of a window: a reading, or ``None`` where the meter was lost and the model stands in for it."""

    at_s: float
    reading: MeterReading | None
    calibrating: bool


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
        self._hook_grade = hook_grade
        self._policy = policy
        self._late_s = late_s
        self._boundaries: deque[_Boundary] = deque()
        self._opened_s: float | None = None
        self._counter_mj = last_counter_mj
        self._has_prior_counter = last_counter_mj is not None
        self._booked_unmetered_mj = 0
        self._carried_mj = 0
        self._dropped_steps = 0
        self._in_flight: dict[str, list[int]] = {}
        self._grades: dict[str, Grade] = {}
        self._incomplete: set[str] = set()
        self._final: set[str] = set()
        self._num_windows = 0
        self.num_steps = 0

    @property
    def in_flight_mj(self) -> int:
        """Energy of closed windows whose attempts have no posting yet."""
        return sum(account[0] for account in self._in_flight.values())

    @property
    def counter_mj(self) -> int | None:
        """The absolute counter at the last settled reading."""
        return self._counter_mj

    # -- what comes in

    def open_attempt(self, attempt_id: str) -> None:
        """An attempt starts; only open attempts can be charged (a straggler's steps are overhead)."""
        self._in_flight[attempt_id] = [0, 0]

    def add_step(self, step: StepRecord) -> None:
        """One engine step, in order of its end."""
        self.num_steps += 1
        self._attribution.add_step(step)

    def add_dropped(self, num_records: int) -> None:
        """Step records were lost: the window they fall into is graded down."""
        self._dropped_steps += num_records

    def close_attempt(self, attempt_id: str) -> None:
        """The attempt's last step record is here: its posting follows with the window that holds its last step."""
        if attempt_id in self._in_flight:
            self._final.add(attempt_id)
            if not self._attribution.has_pending(attempt_id):
                self._post(attempt_id)

    def provisional(self, attempt_id: str) -> tuple[int, int]:
        """(mj, gpu_us) so far: closed windows as measured, the open one as predicted."""
        energy_mj, gpu_us = self._in_flight.get(attempt_id, (0, 0))
        pending_mj, pending_gpu_us = self._attribution.provisional(attempt_id)
        return energy_mj + pending_mj, gpu_us + pending_gpu_us

    def add_reading(self, reading: MeterReading | None, *, now_s: float, calibrating: bool = False) -> None:
        """A boundary. ``None`` = the meter is lost: the model's prediction stands in, grade D, named."""
        at_s = now_s if reading is None else reading.at_s
        if self._opened_s is None:
            self._open_first(at_s, reading)
            return
        last_s = self._boundaries[-1].at_s if self._boundaries else self._opened_s
        if at_s <= last_s:
            return  # the counter has not moved since the last boundary
        self._boundaries.append(_Boundary(at_s=at_s, reading=reading, calibrating=calibrating))

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

    def _open_first(self, at_s: float, reading: MeterReading | None) -> None:
        """The first reading opens the first window; what the counter did before is unattributed."""
        self._opened_s = at_s
        if reading is None:
            return
        before_mj, self._counter_mj = self._counter_mj, reading.counter_mj
        if not self._has_prior_counter or before_mj is None:
            return
        if reading.counter_mj < before_mj:
            self._put_unattributed(0, cause="counter_reset", at_s=at_s, grade=Grade.D)
        elif reading.counter_mj > before_mj:
            lost_mj = reading.counter_mj - before_mj
            self._put_unattributed(lost_mj, cause="worker_lost", at_s=at_s, grade=reading.grade)

    def _settle_one(self, boundary: _Boundary, *, late: bool) -> None:
        assert self._opened_s is not None
        started_s, self._opened_s = self._opened_s, boundary.at_s
        causes: list[tuple[str, int]] = []
        meter_mj, grade = self._measured(boundary, started_s, causes)
        if self._dropped_steps:
            grade = Grade.worst(grade, Grade.B)
            causes.append(("step_records_dropped", 0))
            self._dropped_steps = 0
        if late:
            grade = Grade.worst(grade, Grade.C)
            causes.append(("steps_late", 0))
        learn = not causes
        split = self._attribution.close_window(
            started_s=started_s, ended_s=boundary.at_s, meter_mj=meter_mj, learn=learn
        )
        self._book(split, meter_mj=meter_mj, grade=grade, boundary=boundary, started_s=started_s, causes=causes)
        self._post_settled()

    def _measured(self, boundary: _Boundary, started_s: float, causes: list[tuple[str, int]]) -> tuple[int, Grade]:
        """Energy of the window and its grade; resets and outages are named in ``causes``."""
        reading = boundary.reading
        if reading is None:
            meter_mj = self._attribution.predicted_mj(started_s=started_s, ended_s=boundary.at_s)
            self._booked_unmetered_mj += meter_mj
            causes.append(("meter_lost", 0))
            return meter_mj, Grade.D
        grade = Grade.worst(reading.grade, self._hook_grade)
        if reading.fault:
            causes.append((reading.fault.split(":")[0], 0))
        before_mj, self._counter_mj = self._counter_mj, reading.counter_mj
        booked_mj, self._booked_unmetered_mj = self._booked_unmetered_mj, 0
        if before_mj is None:
            causes.append(("meter_found", 0))
            return self._attribution.predicted_mj(started_s=started_s, ended_s=boundary.at_s), Grade.D
        delta_mj = reading.counter_mj - before_mj
        if delta_mj < 0:
            # The counter began anew: what it shows was used since; what it showed before its end nobody can know.
            causes.append(("counter_reset", 0))
            return reading.counter_mj, Grade.D
        if booked_mj:
            # The counter went on while it could not be read: take back what the model stood in for.
            causes.append(("meter_back", 0))
            return delta_mj - booked_mj, Grade.worst(grade, Grade.C)
        return delta_mj, grade

    def _book(
        self,
        split: WindowSplit,
        *,
        meter_mj: int,
        grade: Grade,
        boundary: _Boundary,
        started_s: float,
        causes: list[tuple[str, int]],
    ) -> None:
        if not self._outbox.has_window_room:
            # Nobody acknowledges: carry the energy to the next window that finds room, as unattributed.
            self._carried_mj += meter_mj
            self._incomplete.update(attempt_id for attempt_id in split.shares if attempt_id in self._in_flight)
            self._outbox.dropped_total += 1
            return
        overhead_mj, overhead_gpu_us = split.overhead_mj, split.overhead_gpu_us
        shares = []
        for attempt_id, (energy_mj, gpu_us) in split.shares.items():
            account = self._in_flight.get(attempt_id)
            if account is None:
                overhead_mj += energy_mj
                overhead_gpu_us += gpu_us
                continue
            account[0] += energy_mj
            account[1] += gpu_us
            self._grades[attempt_id] = Grade.worst(grade, self._grades.get(attempt_id, Grade.A))
            shares.append((attempt_id, energy_mj, gpu_us))
        carried_mj, self._carried_mj = self._carried_mj, 0
        if carried_mj:
            causes.append(("outbox_overflow", carried_mj))
        self._num_windows += 1
        self._outbox.put(
            WindowRecord(
                window=self._num_windows,
                started_s=started_s,
                ended_s=boundary.at_s,
                ended_unix_s=self._unix_clock(),
                counter_mj=self._counter_mj or 0,
                meter_mj=meter_mj + carried_mj,
                idle_mj=split.idle_mj,
                overhead_mj=overhead_mj,
                unattributed_mj=split.unattributed_mj + carried_mj,
                in_flight_mj=sum(share[1] for share in shares),
                shares=tuple(shares),
                busy_gpu_us=split.busy_gpu_us,
                overhead_gpu_us=overhead_gpu_us,
                predicted_mj=split.predicted_mj,
                scale_ratio=split.scale_ratio,
                grade=grade,
                meter=self._meter_name() if boundary.reading is not None else "predicted",
                num_steps=split.num_steps,
                calibrating=boundary.calibrating,
                causes=(*split.causes, *causes),
            )
        )

    def _put_unattributed(self, energy_mj: int, *, cause: str, at_s: float, grade: Grade) -> None:
        self._num_windows += 1
        self._outbox.put(
            WindowRecord(
                window=self._num_windows,
                started_s=at_s,
                ended_s=at_s,
                ended_unix_s=self._unix_clock(),
                counter_mj=self._counter_mj or 0,
                meter_mj=energy_mj,
                idle_mj=0,
                overhead_mj=0,
                unattributed_mj=energy_mj,
                in_flight_mj=0,
                shares=(),
                busy_gpu_us=0,
                overhead_gpu_us=0,
                predicted_mj=0,
                scale_ratio=1.0,
                grade=grade,
                meter=self._meter_name(),
                num_steps=0,
                causes=((cause, energy_mj),),
            )
        )

    def _post_settled(self) -> None:
        """Posts every closed attempt of which no step waits for a window any more."""
        for attempt_id in sorted(self._final):
            if not self._attribution.has_pending(attempt_id):
                self._post(attempt_id)

    def _post(self, attempt_id: str) -> None:
        self._final.discard(attempt_id)
        energy_mj, gpu_us = self._in_flight.pop(attempt_id)
        is_complete = attempt_id not in self._incomplete
        self._incomplete.discard(attempt_id)
        self._outbox.put(
            EnergyPosting(
                attempt_id=attempt_id,
                energy_mj=energy_mj,
                gpu_us=gpu_us,
                grade=self._grades.pop(attempt_id, self._hook_grade),
                policy=self._policy,
                complete=is_complete,
            )
        )
