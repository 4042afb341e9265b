"""Windows between two meter readings: when to open and close them, and what moves into which account.

Called by ``workers.worker``. It must never know Ray, an engine or HTTP; the meter is a Protocol, the clock an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from workers.types import Grade


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
