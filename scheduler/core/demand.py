"""How much of a model is asked for, and how much more may be before another engine could be awake.

Called by ``scheduler.core.parking``. Pure: time is an argument. It must never know a worker.

Arrivals are summed in windows of two seconds. The *level* is the mean of about the last minute. What counts is by how
much the load rises above it before an engine that is told to wake can help: how often that was how much is kept in a
histogram of ratios, which fades. So the forecast is a quantile of what this model's clients do, bursts included, and no
shape of arrivals is assumed. Where a day is like the one before (``scheduler.core.day_profile``), the level is also
raised by what usually comes at this hour.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from scheduler.core.capacity import Load
from scheduler.core.day_profile import DayProfile

WINDOW_S = 2.0
LEVEL_S = 60.0
"""Over which time the level forgets; after so much silence it is nothing."""
NEAR_WINDOWS = 10
"""The load that engines are sized for is a mean of so many windows: what is above it waits for a moment."""
MIN_WINDOWS = 30
"""Before so many windows a level says nothing about what follows it."""
BIN_RATIO = 1.05
NUM_BINS = 64
"""Ratios 1.05ⁿ, from 1/4.8 to 4.5."""
HALF_LIFE_WINDOWS = 900
PRIOR_RATIO = 1.6
PRIOR_WINDOWS = 15.0
"""So many windows count for the prior ratio."""


class _Ahead(NamedTuple):
    """A window of which it is not known yet what followed."""

    closed_s: float
    level_s: float
    highest_s: float
    """Near load since."""


class Demand:
    """Of one model. ``weights`` below are what a prompt token and an output token count for, in seconds."""

    def __init__(self, now_s: float) -> None:
        self.level = Load()
        self.profile = DayProfile()
        self.level_s = 0.0
        """Its work, by the weights of the last window."""
        self.mix = Load()
        """Of a second of work, as it came last; nothing until something came."""
        self._since_s = now_s
        """Of the open window."""
        self._open = Load()
        self._near: deque[Load] = deque(maxlen=NEAR_WINDOWS)
        self._num_windows = self._num_silent = 0
        self._ahead: deque[_Ahead] = deque()
        self._bins = [0.0] * NUM_BINS
        self._bins[_bin(PRIOR_RATIO)] = PRIOR_WINDOWS

    def add(self, prompt_tokens: float, output_tokens: float) -> None:
        """A request, as expected."""
        requests, prompts, outputs = self._open
        self._open = Load(requests + 1.0, prompts + prompt_tokens, outputs + output_tokens)

    def advance(
        self, now_s: float, *, weights: tuple[float, float], ahead_s: float, unix_s: float | None = None
    ) -> None:
        """Closes the windows that are over. ``ahead_s``: until an engine that is told to wake now could help.
        ``unix_s`` is now by the wall clock, where it is known."""
        while now_s - self._since_s >= WINDOW_S:
            self._since_s += WINDOW_S
            self._close(weights, ahead_s)
            if unix_s is not None:
                self.profile.add(unix_s - (now_s - self._since_s), _work_s(self._near[-1], weights))

    def _close(self, weights: tuple[float, float], ahead_s: float) -> None:
        load, self._open = self._open.times(1.0 / WINDOW_S), Load()
        self._near.append(load)
        self._num_windows += 1
        # Young, it is the plain mean of what there was; then it forgets.
        gain = max(1.0 / self._num_windows, 1.0 - math.exp(-WINDOW_S / LEVEL_S))
        self.level = Load(*[was + gain * (new - was) for was, new in zip(self.level, load, strict=True)])
        self._num_silent = 0 if load.requests else self._num_silent + 1
        if self._num_silent * WINDOW_S >= LEVEL_S:
            self.level = Load()
        near_s = sum(_work_s(each, weights) for each in self._near) / len(self._near)
        self._ahead = deque([each._replace(highest_s=max(each.highest_s, near_s)) for each in self._ahead])
        while self._ahead and self._ahead[0].closed_s + ahead_s <= self._since_s:
            was = self._ahead.popleft()
            self._learn(was.highest_s / was.level_s)
        self.level_s = level_s = _work_s(self.level, weights)
        if level_s > 0.0:
            self.mix = self.level.times(1.0 / level_s)
            if self._num_windows > MIN_WINDOWS:
                self._ahead.append(_Ahead(self._since_s, level_s, 0.0))

    def _learn(self, ratio: float) -> None:
        fade = 0.5 ** (1 / HALF_LIFE_WINDOWS)
        self._bins = [weight * fade for weight in self._bins]
        self._bins[_bin(ratio)] += 1.0

    def ratio(self, quantile: float) -> float:
        """By how much the near load exceeds the level before another engine could be awake, at this quantile."""
        left = (1.0 - quantile) * sum(self._bins)
        for index in reversed(range(NUM_BINS)):
            left -= self._bins[index]
            if left < 0.0:
                return float(BIN_RATIO ** (index - NUM_BINS // 2))
        return 1.0

    def forecast_s(self, quantile: float, *, ahead_s: float, unix_s: float | None = None) -> float:
        """The most work to be done before another engine could be awake, in seconds a second; not below the level."""
        rise_s = 0.0 if unix_s is None else self.profile.rise(unix_s, ahead_s, self.level_s)
        return (self.level_s + rise_s) * max(self.ratio(quantile), 1.0)


def _work_s(load: Load, weights: tuple[float, float]) -> float:
    return load.prompt_tokens * weights[0] + load.output_tokens * weights[1]


def _bin(ratio: float) -> int:
    """The least whose ratio is not below."""
    index = math.ceil(math.log(max(ratio, 1e-9), BIN_RATIO) - 1e-9) + NUM_BINS // 2
    return min(max(index, 0), NUM_BINS - 1)
