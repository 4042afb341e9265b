"""What this engine's steps take and burn: time and energy curves and idle watts, learned online from windows.

Called by ``workers.attribution`` (predicts with it, teaches it) and ``workers.worker`` (publishes its curves). It must
never know an attempt, a meter's kind or a clock.

Energy is only ever measured over windows of many steps, so it is fitted on windows; time is measured per step. Both
fits see a bounded memory of windows, spread over the loads that were seen: when it is full, a new window replaces the
older of the two most alike, so that hours of one load cannot wash out what another load taught. Before the energy is
identified its shape is taken from the time curve (a device draws roughly constant watts while it works).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from workers.curve import Curve, Floats
from workers.curve_fit import Bunches, Fit, fit, predict
from workers.step_curves import StepCurves

MAX_WINDOWS = 64
"""Windows kept for fitting."""

MAX_GROUPS = 64
"""Groups of like steps kept of one window."""

FORGETTING = 0.995
"""Weight of a window falls by this factor with each newer one."""

MAX_CONDITION = 300.0
"""Above it the loads seen do not tell the coefficients apart: the shape is frozen."""

MEASUREMENT_RATIO = 0.03
"""Assumed standard error of one window (counter refresh, noise), as a share of its energy."""

PRIOR_RATIO = 0.7
"""Assumed standard error of a prior coefficient, as a share of it."""

PRIOR_WEIGHT = (MEASUREMENT_RATIO / PRIOR_RATIO) ** 2
"""Cost of a whole prior coefficient's deviation, in squared relative errors of a window."""

CURVED_PRIOR_WEIGHT = PRIOR_WEIGHT / 1000
"""The same for a curved fit: its prior is affine, so it may only decide where nothing else does."""

MIN_BUSY_RATIO = 0.05
"""Windows with a smaller share of energy above idle say nothing about steps."""

MIN_STEP_S = 1e-6
"""No step is shorter: two stamps that are the same, or nearly, say nothing about time."""

MIN_EXPONENT, EXPONENT_STEP = 0.3, 0.02
FIRST_EXPONENTS, FIRST_ROUNDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 6
NEXT_ROUNDS = 2
"""Rounds per exponent once there is a curve to begin from: each window takes the fit a little further."""

MIN_CURVED_WINDOWS = 8
"""Fewer windows than this cannot tell an exponent: the last one stands."""

DEFAULT_TIME = Curve(base=6.7e-3, prefill=3.25e-5, decode=8.95e-5, context=0.0)
"""Shape until the first steps were timed: an 8B model on an H100 (``simulation_constants.csv``)."""

IDLE_BAND_RATIO = 0.10
"""A window without steps within this band of the learned idle watts is all idle, and teaches."""

IDLE_BAND_WATTS = 1.0
"""Least width of the idle band."""

MIN_IDLE_S = 0.1
"""A shorter window without steps is within a counter's own refresh, and holds the tail of the work before it."""

IDLE_RATE = 0.2
"""Share by which an idle window moves the learned idle watts."""

NUM_IDLE_MOVES = 12
"""Idle windows in a row that must agree on another level before it is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """A snapshot: what one window is predicted with."""

    energy: Curve
    """Joules above idle and while stepping."""
    time: Curve
    """Seconds of a step; the shape by which GPU-time is split."""
    idle_watts: float
    is_learned: bool
    """False: ``energy`` has a shape but no level yet (no prior, no window with steps): no clamp can apply."""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """One window with steps, reduced to groups of like steps."""

    number: int
    features: Floats
    counts: Floats
    time_counts: Floats
    times_s: Floats
    gap_s: float
    energy_joules: float


class EngineModel:
    """Learns one engine. ``curved``: an exponent below 1 is fitted too, and taken where it explains the windows better.

    Mixtures of experts need it; a dense engine is not hurt by it. Without it the fit is affine.

    ``prior`` comes from an earlier run of this engine. ``published`` is of somebody else's: it gives the fits their
    shape, and placement all it has until the first window; a level, by which joules are split and clamped, only windows
    set (calibration), and an idle draw likewise.
    """

    def __init__(
        self, *, prior: StepCurves | None = None, published: StepCurves | None = None, curved: bool = True
    ) -> None:
        self._is_curved = curved
        is_measured = prior is not None
        prior = prior or published
        self._time = DEFAULT_TIME if prior is None else Curve.affine(prior.time_s)
        self._time_prior = self._time
        self._prior = None if prior is None else Curve.affine(prior.energy_joules)
        self._energy = self._time if self._prior is None else self._prior
        self._affine_time, self._affine_energy = self._time, self._energy
        self._is_identified = False
        self._idle_watts = 0.0 if prior is None else prior.idle_watts
        self._is_idle_known = is_measured and self._idle_watts > 0
        self._has_level = self._is_learned = is_measured
        """Whether the prior has one."""
        self._is_frozen = True
        self._source = "prior" if prior is None else prior.source
        self._batch_range = (0.0, math.inf) if prior is None else prior.batch_range
        self._windows: list[_Seen] = []
        self._num_windows = 0
        self._idle_elsewhere: list[float] = []

    # -- what it says

    @property
    def is_frozen(self) -> bool:
        """True while the loads seen do not identify the energy coefficients."""
        return self._is_frozen

    @property
    def idle_watts(self) -> float | None:
        """Learned idle watts; None before anything taught them."""
        return self._idle_watts if self._is_idle_known or self._is_learned else None

    def freeze(self) -> Coefficients:
        """The coefficients as they are now; later observations do not change the snapshot."""
        return Coefficients(
            energy=self._energy, time=self._time, idle_watts=self._idle_watts, is_learned=self._is_learned
        )

    def curves(self) -> StepCurves:
        """Affine step curves for placement (the nearest affine ones where the fit is curved)."""
        energy, time = self._affine_energy, self._affine_time
        return StepCurves(
            time_s=(time.base, time.prefill, time.decode, time.context),
            energy_joules=(energy.base, energy.prefill, energy.decode, energy.context),
            idle_watts=self._idle_watts,
            source=self._source,
            batch_range=self._batch_range,
        )

    def health(self, num_running: int) -> tuple[str, ...]:
        """Of what placement is told: that nobody has measured it here, or not with so many sequences."""
        words = []
        if self._source == "prior":
            words.append("curve_unknown: nobody measured this model on this device: it counts as its whole board power")
        elif not self._is_learned:
            words.append(f"curve_published: nothing was measured here yet; {self._source}")
        low, high = self._batch_range
        if num_running and self.curves().is_extrapolated(num_running):
            words.append(f"curve_extrapolated: {num_running} run, and it was measured at {low:g} to {high:g}")
        return tuple(words)

    # -- what it learns

    def observe_window(
        self,
        features: ArrayLike,
        gap_s: float,
        meter_mj: int,
        *,
        fractions: ArrayLike | None = None,
        times_s: ArrayLike | None = None,
    ) -> None:
        """One measured window: what its steps computed and what the meter counted.

        ``features``: (steps, 3) prefill, decode and context tokens of whole steps; ``fractions``: the part of each
        step that lay in the window (default 1); ``times_s``: the whole steps' seconds; ``gap_s``: seconds without one.
        """
        rows = np.asarray(features, dtype=np.float64).reshape(-1, 3)
        counts = np.ones(len(rows)) if fractions is None else np.asarray(fractions, dtype=np.float64)
        seconds = np.zeros(len(rows)) if times_s is None else np.asarray(times_s, dtype=np.float64)
        if not counts.sum() > 0:
            self._observe_idle(gap_s, meter_mj)
            return
        if meter_mj <= 0:
            return
        self._num_windows += 1
        self._remember(self._grouped(rows, counts, seconds, gap_s, meter_mj / 1000))
        self._fit_time()
        self._fit_energy()

    def idle_band_watts(self) -> float:
        """Half width of the band around the learned idle watts."""
        return max(self._idle_watts * IDLE_BAND_RATIO, IDLE_BAND_WATTS)

    def _observe_idle(self, gap_s: float, meter_mj: int) -> None:
        """A window without steps. Below the band it always teaches: a device cannot draw less than it does."""
        if gap_s < MIN_IDLE_S or meter_mj <= 0:
            return
        watts = meter_mj / 1000 / gap_s
        if not self._is_idle_known:
            self._idle_watts, self._is_idle_known = watts, True
        elif watts <= self._idle_watts + self.idle_band_watts():
            self._idle_watts += IDLE_RATE * (watts - self._idle_watts)
            self._idle_elsewhere.clear()
        else:
            self._idle_elsewhere.append(watts)
            if max(self._idle_elsewhere) > min(self._idle_elsewhere) * (1 + IDLE_BAND_RATIO):
                del self._idle_elsewhere[:-1]
            if len(self._idle_elsewhere) >= NUM_IDLE_MOVES:
                self._idle_watts = float(np.mean(self._idle_elsewhere))
                self._idle_elsewhere.clear()

    def _grouped(self, features: Floats, counts: Floats, seconds: Floats, gap_s: float, joules: float) -> _Seen:
        """At most MAX_GROUPS means of steps that cost about the same and have about the same prefill."""
        if len(features) > MAX_GROUPS:
            order = np.lexsort((self._time.weights(features), features[:, 0]))
            starts = np.linspace(0, len(order), MAX_GROUPS, endpoint=False).astype(np.int64)
            sizes = np.diff(np.append(starts, len(order)))
            features = np.add.reduceat(features[order], starts, axis=0) / sizes[:, None]
            time_counts = np.add.reduceat((seconds[order] > 0).astype(np.float64), starts)
            times_s = np.add.reduceat(seconds[order], starts) / np.maximum(time_counts, 1)
            counts = np.add.reduceat(counts[order], starts)
        else:
            time_counts, times_s = (seconds > 0).astype(np.float64), seconds
        return _Seen(self._num_windows, features, counts, time_counts, times_s, gap_s, joules)

    def _remember(self, seen: _Seen) -> None:
        self._windows.append(seen)
        if len(self._windows) <= MAX_WINDOWS:
            return
        # Where in the space of loads a window lies: the share of its energy per kind of work, and its watts.
        places = np.array([self._place(window) for window in self._windows])
        distances = ((places[:, None] - places[None]) ** 2).sum(axis=2)
        distances[np.tril_indices(len(places))] = np.inf
        older, newer = np.unravel_index(int(np.argmin(distances)), distances.shape)
        del self._windows[min(int(older), int(newer))]

    def _place(self, seen: _Seen) -> Floats:
        slopes = self._energy.slopes
        parts = np.append(seen.counts @ seen.features * slopes, seen.counts.sum() * self._energy.base)
        total = float(parts.sum())
        return np.append(parts / total if total > 0 else parts, np.log1p(seen.counts.sum() / (seen.gap_s + 1)))

    def _fit_time(self) -> None:
        features = np.concatenate([window.features for window in self._windows])
        counts = np.concatenate([window.time_counts for window in self._windows])
        times_s = np.concatenate([window.times_s for window in self._windows])
        ages = np.concatenate([np.full(len(w.counts), self._num_windows - w.number) for w in self._windows])
        is_timed = (counts > 0) & (times_s > MIN_STEP_S)
        if not is_timed.any():
            return
        num_groups = int(is_timed.sum())
        bunches = Bunches(
            features=features[is_timed],
            counts=np.ones(num_groups),
            owner=np.arange(num_groups),
            targets=times_s[is_timed],
            weights=counts[is_timed] * FORGETTING ** ages[is_timed],
            gaps=np.zeros(num_groups),
        )
        affine = fit(bunches, prior=_levelled(self._time_prior, bunches), prior_weight=PRIOR_WEIGHT)
        self._affine_time = affine.curve
        self._time = self._curved(bunches, affine, self._time).curve

    def _fit_energy(self) -> None:
        bunches = self._energy_bunches()
        if bunches is None:
            return
        prior = self._prior
        if prior is None or not self._has_level:
            # A device draws about constant watts while it works: the time curve gives the shape, the windows the level.
            prior = _levelled(prior or self._affine_time, replace(bunches, has_gaps=False))
        found = fit(bunches, prior=prior, prior_weight=PRIOR_WEIGHT)
        self._is_frozen = found.condition > MAX_CONDITION
        if self._is_frozen and self._is_identified:
            return
        self._affine_energy = found.curve
        best = found if self._is_frozen else self._curved(bunches, found, self._energy)
        self._energy = best.curve
        if bunches.has_gaps:
            self._idle_watts = best.gap
        self._is_identified = not self._is_frozen
        self._is_learned, self._source = True, "windows"
        decodes = np.concatenate([window.features[:, 1] for window in self._windows])
        self._batch_range = (0.0, float(decodes.max()))

    def _energy_bunches(self) -> Bunches | None:
        """Windows as observations; idle energy is taken off where the idle watts are known, else fitted."""
        has_gaps = not self._is_idle_known
        known = [
            (window, window.energy_joules - (0.0 if has_gaps else self._idle_watts * window.gap_s))
            for window in self._windows
        ]
        kept = [(window, joules) for window, joules in known if joules > MIN_BUSY_RATIO * window.energy_joules]
        if not kept:
            return None
        gaps = np.array([window.gap_s for window, _ in kept])
        # What is left after a large idle part is as uncertain as the whole window.
        certainty = np.array([joules / window.energy_joules for window, joules in kept])
        ages = np.array([self._num_windows - window.number for window, _ in kept])
        return Bunches(
            features=np.concatenate([window.features for window, _ in kept]),
            counts=np.concatenate([window.counts for window, _ in kept]),
            owner=np.repeat(np.arange(len(kept)), [len(window.counts) for window, _ in kept]),
            targets=np.array([joules for _, joules in kept]),
            weights=certainty**2 * FORGETTING**ages,
            gaps=gaps,
            has_gaps=has_gaps and bool((gaps > 0).any()),
        )

    def _curved(self, bunches: Bunches, affine: Fit, last: Curve) -> Fit:
        """The best of a few exponents around the last one, each begun from it; the affine fit where none is allowed."""
        if not self._is_curved or len(self._windows) < MIN_CURVED_WINDOWS:
            return affine
        candidates: tuple[float, ...] = tuple(last.exponent + step for step in (-EXPONENT_STEP, 0.0, EXPONENT_STEP))
        start, max_rounds = last, NEXT_ROUNDS
        if last.exponent == 1.0:
            if self._num_windows % MIN_CURVED_WINDOWS:
                return affine
            # No curve yet: look everywhere, now and then.
            candidates, start, max_rounds = FIRST_EXPONENTS, affine.curve, FIRST_ROUNDS
        fits = [
            fit(bunches, prior=affine.curve, prior_weight=CURVED_PRIOR_WEIGHT, exponent=exponent, start=start,
                max_rounds=max_rounds)
            for exponent in candidates
            if MIN_EXPONENT <= exponent < 1.0
        ]  # fmt: skip
        return min((*fits, affine), key=lambda found: found.mean_square)


def _levelled(prior: Curve, bunches: Bunches) -> Curve:
    """The prior's shape at the level that fits the targets best."""
    ratios = predict(bunches, prior, 0.0) / bunches.targets
    square = float(bunches.weights @ ratios**2)
    return prior.scaled(float(bunches.weights @ ratios) / square) if square > 0 else prior
