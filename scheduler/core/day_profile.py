"""What usually comes at which time of the day, in quarters of an hour of UTC.

Called by ``scheduler.core.demand``. Pure: time is an argument. It must never know a model or a worker.
"""

from __future__ import annotations

DAY_S = 86_400
SLOT_S = 900
NUM_SLOTS = DAY_S // SLOT_S
DAY_GAIN = 0.5
"""A new day counts for half."""
MAX_TODAY_RATIO = 4.0
"""Today may be so many times another day."""


class DayProfile:
    """The mean of each quarter of an hour over the last days; one that was not seen whole is unknown."""

    def __init__(self) -> None:
        self._means: list[float | None] = [None] * NUM_SLOTS
        self._slot: int | None = None
        """Number of the quarter that is being summed, since 1970."""
        self._began_s = 0.0
        self._sum = 0.0
        self._num = 0

    def add(self, unix_s: float, value: float) -> None:
        """What was at that time; times rise."""
        slot = int(unix_s // SLOT_S)
        if slot != self._slot:
            self._close()
            self._slot, self._began_s, self._sum, self._num = slot, unix_s, 0.0, 0
        self._sum += value
        self._num += 1

    def _close(self) -> None:
        if self._slot is None or self._began_s - self._slot * SLOT_S > SLOT_S / 10:
            return  # it was not there from the beginning
        place, mean = self._slot % NUM_SLOTS, self._sum / self._num
        before = self._means[place]
        self._means[place] = mean if before is None else before + DAY_GAIN * (mean - before)

    def rise(self, unix_s: float, ahead_s: float, level: float) -> float:
        """By how much more than now usually comes until then, as today is against other days (``level`` is now's).

        Never below 0; 0 where this hour or what follows is not known.
        """
        first, last = int(unix_s // SLOT_S), int((unix_s + ahead_s) // SLOT_S)
        now = self._means[first % NUM_SLOTS]
        if now is None:
            return 0.0
        ahead = [self._means[slot % NUM_SLOTS] or 0.0 for slot in range(first + 1, min(last, first + NUM_SLOTS) + 1)]
        today_ratio = min(level / now, MAX_TODAY_RATIO) if now > 0.0 else 1.0
        return max([0.0, *[mean - now for mean in ahead]]) * today_ratio
