"""When a worker is sick, hung or an orphan: the rules alone, with time as an argument.

Called by ``workers.worker`` once a second. It must never know a clock, an engine or a control plane.
"""

from __future__ import annotations

from enum import StrEnum

from workers.types import WorkerState


class Verdict(StrEnum):
    """What the rules say."""

    FINE = "fine"
    STALLED = "stalled"
    """Work runs and no step came: what runs is failed, nothing new is taken, a step heals it."""
    HUNG = "hung"
    """Sick for as long again: this engine does not come back, its worker ends and is replaced."""
    ORPHANED = "orphaned"
    """No control plane spoke for too long."""


class Watch:
    """Remembers the last step and the last word of a control plane.

    ``orphan_timeout_s`` 0 = never. Only what a living control plane sends is a contact: a stream that is being read
    proves nothing, for Ray goes on reading it after its reader died.
    """

    def __init__(self, *, stall_timeout_s: float, orphan_timeout_s: float, now_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._orphan_timeout_s = orphan_timeout_s
        self._last_step_s = now_s
        self._last_contact_s = now_s
        self._sick_since_s: float | None = None

    def on_contact(self, now_s: float) -> None:
        """A control plane connected or sent something."""
        self._last_contact_s = max(now_s, self._last_contact_s)

    def on_step(self, now_s: float) -> None:
        """The engine stepped, or got work after it had none: the stall clock starts anew."""
        self._last_step_s = max(now_s, self._last_step_s)

    def stalled_s(self, now_s: float) -> float:
        """Since the last step."""
        return now_s - self._last_step_s

    def silent_s(self, now_s: float) -> float:
        """Since the last word of a control plane."""
        return now_s - self._last_contact_s

    def look(self, now_s: float, *, state: WorkerState, has_work: bool) -> Verdict:
        """What holds now. ``has_work``: attempts run and nothing but the engine holds them up."""
        if state in (WorkerState.DRAINING, WorkerState.STOPPED):
            return Verdict.FINE
        if 0 < self._orphan_timeout_s < self.silent_s(now_s):
            return Verdict.ORPHANED
        if state is WorkerState.SICK:
            self._sick_since_s = now_s if self._sick_since_s is None else self._sick_since_s
            return Verdict.HUNG if now_s - self._sick_since_s > self._stall_timeout_s else Verdict.FINE
        self._sick_since_s = None
        if not has_work:
            self.on_step(now_s)
        elif state is WorkerState.READY and self.stalled_s(now_s) > self._stall_timeout_s:
            return Verdict.STALLED
        return Verdict.FINE
