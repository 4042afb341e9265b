"""One cumulative figure out of several devices' counters, however badly these behave.

Called by ``workers.power.nvml``. It must never know a vendor's library, an engine or a window.

A counter that drops was reset: what it shows was used since. One that stands still while the device draws power is
broken: from then on its power is sampled and integrated (grade C), and the time it stood still is made good at the
power found. Nothing of this is silent, and the sum never steps back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from workers.errors import MeterUnavailable
from workers.types import Grade
from workers.windows import MeterReading

STALLED_AFTER_S = 5.0
"""A counter that has not moved for this long, with power drawn, is broken (seen on ROCm/amdsmi #38)."""
EDGE_WAIT_S = 0.2
"""How long a reading waits for the counter's next tick; real boards tick every 20–100 ms."""
EDGE_POLL_S = 0.002
SAMPLE_PERIOD_S = 0.05
"""Between two samples of power where there is no counter."""
MAX_GAP_S = 3.0
"""A longer hole between two samples of power is named (the bound that InferenceX uses)."""


class DeviceLost(MeterUnavailable):
    """The device itself is gone; every figure of its meter is, until it is back."""


class EnergyDevice(Protocol):
    """One device; every call blocks for at most some milliseconds."""

    uuid: str
    has_counter: bool
    is_shared: bool
    """Its figures hold more than this engine's device: a GPU cut by MIG, a module with its CPU."""

    def counter_mj(self) -> int:
        """Raises: DeviceLost."""

    def power_watts(self) -> float | None:
        """None where power cannot be had. Raises: DeviceLost."""

    def complaints(self) -> tuple[str, ...]:
        """What the device says of its own health, in words; never raises."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Account:
    """What is known of one device's energy; ``lock`` guards it against the sampling thread."""

    device: EnergyDevice
    is_integrated: bool
    raw_mj: int = 0
    total_mj: float = 0.0
    moved_s: float = 0.0
    """When the total was last known to move."""
    sampled_s: float | None = None
    sampled_watts: float = 0.0
    faults: list[str] = field(default_factory=list)
    """Since the last reading."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take_faults(self) -> list[str]:
        with self.lock:
            faults, self.faults = self.faults, []
        return faults

    def count(self, raw_mj: int, now_s: float) -> bool:
        """A reading of the counter; True if it moved."""
        if raw_mj == self.raw_mj:
            return False
        if raw_mj < self.raw_mj:
            self.faults.append(f"counter_reset: {self.device.uuid} from {self.raw_mj} to {raw_mj} mJ")
            self.total_mj += raw_mj
        else:
            self.total_mj += raw_mj - self.raw_mj
        self.raw_mj = raw_mj
        self.moved_s = now_s
        return True

    def integrate(self, watts: float, now_s: float) -> None:
        """A sample of power: the trapezoid since the one before."""
        with self.lock:
            if self.sampled_s is not None and now_s > self.sampled_s:
                gap_s = now_s - self.sampled_s
                if gap_s > MAX_GAP_S:
                    self.faults.append(f"power_gap: {self.device.uuid} was not sampled for {gap_s:.1f} s")
                self.total_mj += (self.sampled_watts + watts) / 2 * gap_s * 1000
                self.moved_s = now_s
            if self.sampled_s is None or now_s >= self.sampled_s:
                self.sampled_s, self.sampled_watts = now_s, watts

    def give_up_counter(self, watts: float, now_s: float) -> None:
        """The counter is broken: its standstill is made good at ``watts``, and power is integrated from here on."""
        standing_s = now_s - self.moved_s
        self.faults.append(f"counter_stalled: {self.device.uuid} did not move for {standing_s:.1f} s at {watts:.0f} W")
        with self.lock:
            self.total_mj += watts * standing_s * 1000
            self.moved_s = now_s
            self.sampled_s, self.sampled_watts = now_s, watts
            self.is_integrated = True


class DeviceMeter:
    """The sum over ``devices``, which must be exactly one engine's.

    ``read`` waits for the counters' next tick, so that a window's edge is where the counter really moved. ``notes`` are
    lasting downgrades for ``health``; ``release`` is called once after the devices are closed. With ``samples_itself``
    off nothing is sampled between readings (tests with a clock of their own).
    """

    def __init__(
        self,
        devices: tuple[EnergyDevice, ...],
        *,
        vendor: str,
        notes: tuple[str, ...] = (),
        release: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        samples_itself: bool = True,
    ) -> None:
        """Raises: MeterUnavailable where a device has neither counter nor power, or is lost."""
        if not devices:
            raise MeterUnavailable("a meter needs at least one device")
        self._vendor = vendor
        self._notes = list(notes)
        self._release = release
        self._clock = clock
        self._sleep = sleep
        self._samples_itself = samples_itself
        self._accounts = [_Account(device, is_integrated=not device.has_counter) for device in devices]
        self._last_s = clock()
        self._health = notes
        self._sampler: threading.Thread | None = None
        self._closed = threading.Event()
        for account in self._accounts:
            account.moved_s = clock()
            if account.is_integrated:
                self._sample(account)
            else:
                account.raw_mj = account.device.counter_mj()
                account.total_mj = account.raw_mj
        self._start_sampling()

    @property
    def name(self) -> str:
        """How the worst of the devices is read."""
        is_integrated = any(account.is_integrated for account in self._accounts)
        return f"{self._vendor}:{'integrated-power' if is_integrated else 'energy-counter'}"

    @property
    def grade(self) -> Grade:
        """A for counters of whole devices, C where one is integrated or shared."""
        is_lower = any(account.is_integrated or account.device.is_shared for account in self._accounts)
        return Grade.C if is_lower else Grade.A

    def read(self) -> MeterReading:
        """Raises: MeterUnavailable when a device is lost; what others count meanwhile comes with a later reading."""
        self._read_counters()
        now_s = self._clock()
        for account in self._accounts:
            if not account.is_integrated and now_s - account.moved_s >= STALLED_AFTER_S:
                watts = account.device.power_watts()
                if watts:
                    account.give_up_counter(watts, now_s)
                    self._start_sampling()
            elif account.is_integrated:
                self._sample(account)
        faults = [fault for account in self._accounts for fault in account.take_faults()]
        self._notes += [fault for fault in faults if fault.startswith("counter_stalled")]
        # Devices tick out of phase: the mean of their edges is the best single moment for their sum.
        moved_s = sum(account.moved_s for account in self._accounts) / len(self._accounts)
        self._last_s = max(moved_s, self._last_s)
        passing = [fault for fault in faults if fault not in self._notes]
        complaints = [word for account in self._accounts for word in account.device.complaints()]
        self._health = (*self._notes, *passing, *complaints)
        return MeterReading(
            at_s=self._last_s,
            counter_mj=int(sum(account.total_mj for account in self._accounts)),
            grade=Grade.worst(self.grade, Grade.C) if faults else self.grade,
            fault="; ".join(faults),
        )

    def health(self) -> tuple[str, ...]:
        """As of the last reading: asking the devices may block."""
        return self._health

    def close(self) -> None:
        self._closed.set()
        if self._sampler is not None:
            self._sampler.join(timeout=1.0)
        for account in self._accounts:
            account.device.close()
        release, self._release = self._release, None
        if release is not None:
            release()

    def _read_counters(self) -> None:
        """Polls every counter to its next tick. One that ticks slower is as it was seen: moved when we looked."""
        waiting = [account for account in self._accounts if not account.is_integrated]
        started_s = self._clock()
        for account in waiting:
            account.count(account.device.counter_mj(), started_s)
        while waiting and self._clock() - started_s < EDGE_WAIT_S:
            self._sleep(EDGE_POLL_S)
            for account in list(waiting):
                if account.count(account.device.counter_mj(), self._clock()):
                    waiting.remove(account)

    def _sample(self, account: _Account) -> None:
        watts = account.device.power_watts()
        if watts is None:
            raise MeterUnavailable(f"{account.device.uuid} shows neither energy nor power")
        account.integrate(watts, self._clock())

    def _start_sampling(self) -> None:
        is_needed = any(account.is_integrated for account in self._accounts)
        if is_needed and self._samples_itself and self._sampler is None:
            self._sampler = threading.Thread(target=self._sample_forever, name="power-samples", daemon=True)
            self._sampler.start()

    def _sample_forever(self) -> None:
        while not self._closed.wait(SAMPLE_PERIOD_S):
            for account in self._accounts:
                if account.is_integrated:
                    try:
                        self._sample(account)
                    except MeterUnavailable:
                        # The reader raises it; here it leaves a gap, which is named once samples come again.
                        continue
