"""What the dispatcher keeps of a request without an End, and of an attempt that is not settled.

Owned by ``scheduler.dispatcher``. It must never know why anything was decided.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.accounting.rows import Charge
from scheduler.connection import Connection
from scheduler.streams import Stream, Submission
from workers.types import Started


@dataclass(slots=True, eq=False)
class Live:
    """A request that has no End yet."""

    submission: Submission
    stream: Stream
    charge: Charge | None = None
    is_held: bool = False
    """Its worst case is written to the ledger; the first attempt does it."""
    speaker: Running | None = None
    """The attempt whose bytes its stream was given."""

    def take_back(self) -> None:
        """What its client has not seen is not said; whoever said it is not heard any more."""
        if self.stream.is_held and self.speaker is not None:
            self.speaker.is_muted = True
            self.speaker = None
            self.stream.take_back()


@dataclass(slots=True, eq=False)
class Running:
    """An attempt that is not settled yet."""

    live: Live
    connection: Connection
    decision: str = ""
    """Why it runs there, in one line."""
    started: Started | None = None
    has_sent: bool = False
    is_muted: bool = False
    """What still comes is dropped: its reader is too slow, or what it said was taken back."""
