"""Steps that wait for their window: split over payers once, cut at edges by time, kept in bounded memory.

Called by ``workers.attribution``. It must never know a meter, measured energy or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.curve import Floats
from workers.engine_model import Coefficients
from workers.shapley import Batch, split
from workers.steps import StepRecord

OVERHEAD = 0
"""Index among payers of what nobody pays for."""

SPLIT_ROWS = 2_048
"""Rows that may wait unsplit: a window's work is spread over the window, so that its end does not block the loop."""


@dataclass(slots=True, eq=False)
class PendingStep:
    """One step; ``started_s`` moves to the edge when its first part is settled. Rows have shape (sequences,)."""

    started_s: float
    ended_s: float
    duration_s: float
    """Of the whole step."""
    features: Floats
    """Summed over rows, shape (3,)."""
    predicted_mj: float
    """Of the whole step."""
    payers: NDArray[np.int64]
    energy_mj: Floats
    """Predicted per row, without its recomputed part."""
    time_share: Floats
    """Share of the step's time per row, without its recomputed part."""
    tokens: Floats
    """Computed tokens per row, recomputed ones included."""

    def part(self, begin_s: float, end_s: float) -> float:
        """The share of the whole step that lies in begin_s..end_s and is not settled yet, 0..1."""
        if self.duration_s <= 0:
            return 1.0 if begin_s < self.ended_s <= end_s else 0.0
        return max(min(self.ended_s, end_s) - max(self.started_s, begin_s), 0.0) / self.duration_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What a window settles: ``inside[k]`` of step k lies in it, ``late[k]`` lies before it (its window is closed)."""

    steps: tuple[PendingStep, ...]
    inside: Floats
    late: Floats

    @property
    def predicted_mj(self) -> Floats:
        """Of whole steps, shape (steps,)."""
        return np.array([step.predicted_mj for step in self.steps], dtype=np.float64)

    @property
    def durations_s(self) -> Floats:
        """Of whole steps, shape (steps,)."""
        return np.array([step.duration_s for step in self.steps], dtype=np.float64)

    def gap_s(self, started_s: float, ended_s: float) -> float:
        """Seconds of the window in which no step ran; steps that overlap count once."""
        if not self.steps:
            return max(ended_s - started_s, 0.0)
        begins = np.clip([step.started_s for step in self.steps], started_s, ended_s)
        ends = np.clip([step.ended_s for step in self.steps], started_s, ended_s)
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], ends[order]
        reached = np.maximum.accumulate(np.concatenate(([started_s], ends)))[:-1]
        busy_s = float(np.maximum(ends - np.maximum(begins, reached), 0.0).sum())
        return max(ended_s - started_s - busy_s, 0.0)


@dataclass(slots=True)
class Overflow:
    """Steps beyond the bound of rows: only their sums are kept."""

    num_steps: int = 0
    predicted_mj: float = 0.0
    busy_s: float = 0.0
    payers: set[str] = field(default_factory=set)
    """Attempts that had rows in them."""


@dataclass(slots=True, eq=False)
class PendingSteps:
    """All steps whose window is not closed, with at most ``max_rows`` rows (sequence × step)."""

    policy: str
    max_rows: int
    coefficients: Coefficients
    """In force: what the next steps are predicted with."""
    overflow: Overflow = field(default_factory=Overflow)
    latest_s: float | None = None
    _raw: list[tuple[StepRecord, NDArray[np.int64]]] = field(default_factory=list)
    """Steps not split yet, with the indices of their payers."""
    _num_raw_rows: int = 0
    _last_payers: tuple[str | None, ...] = ()
    _last_indices: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _steps: list[PendingStep] = field(default_factory=list)
    _num_rows: int = 0
    _payers: dict[str | None, int] = field(default_factory=lambda: {None: OVERHEAD})
    _energy_mj: Floats = field(default_factory=lambda: np.zeros(1))
    _time_s: Floats = field(default_factory=lambda: np.zeros(1))

    @property
    def num_payers(self) -> int:
        """Payers with pending rows, overhead included."""
        return len(self._payers)

    def names(self) -> list[str | None]:
        """Attempt of each payer index; None is the overhead."""
        return list(self._payers)

    def add(self, step: StepRecord) -> None:
        """Takes a step; beyond the bound only its sums."""
        if self.latest_s is None or step.ended_s > self.latest_s:
            self.latest_s = step.ended_s
        if self._num_rows + len(step.payers) > self.max_rows:
            duration_s = _duration_s(step)
            features = _features(step).sum(axis=0, keepdims=True)
            self.overflow.num_steps += 1
            self.overflow.predicted_mj += float(self._joules(features, np.array([duration_s]))[0]) * 1000
            self.overflow.busy_s += duration_s
            self.overflow.payers.update(payer for payer in step.payers if payer is not None)
            return
        self._num_rows += len(step.payers)
        self._num_raw_rows += len(step.payers)
        if step.payers is not self._last_payers:
            # Most steps have the payers of the one before, in the same tuple.
            known = self._payers
            self._last_indices = np.array(
                [known.setdefault(payer, len(known)) for payer in step.payers], dtype=np.int64
            )
            self._last_payers = step.payers
        self._raw.append((step, self._last_indices))
        if self._num_raw_rows >= SPLIT_ROWS:
            self._split_raw()

    def has(self, attempt_id: str) -> bool:
        """True while a row of this attempt is pending."""
        return attempt_id in self._payers or attempt_id in self.overflow.payers

    def predicted(self, attempt_id: str) -> tuple[float, float]:
        """(mj, step seconds) predicted for an attempt's pending rows."""
        index = self._payers.get(attempt_id)
        if index is None:
            return 0.0, 0.0
        self._split_raw()
        return float(self._energy_mj[index]), float(self._time_s[index])

    def parts(self, started_s: float, ended_s: float) -> Parts:
        """Every pending part up to ``ended_s``, by where it lies."""
        self._split_raw()
        steps, inside, late = [], [], []
        for step in self._steps:
            within = step.part(started_s, ended_s)
            before = step.part(-np.inf, started_s) if step.started_s <= started_s else 0.0
            if within > 0 or before > 0:
                steps.append(step)
                inside.append(within)
                late.append(before)
        return Parts(steps=tuple(steps), inside=np.array(inside), late=np.array(late))

    def settle(self, ended_s: float) -> None:
        """Forgets what lies before the edge, and renumbers the payers of what is left."""
        self._split_raw()
        kept = [step for step in self._steps if step.ended_s > ended_s]
        names = self.names()
        used = np.unique(np.concatenate([step.payers for step in kept])) if kept else np.zeros(0, dtype=np.int64)
        used = used[used != OVERHEAD]
        self._payers = {None: OVERHEAD, **{names[index]: number for number, index in enumerate(used.tolist(), 1)}}
        renumbered = np.zeros(len(names), dtype=np.int64)
        renumbered[used] = np.arange(1, len(used) + 1)
        for step in kept:
            step.started_s = max(step.started_s, ended_s)
            step.payers = renumbered[step.payers]
        self._last_payers, self._last_indices = (), np.zeros(0, dtype=np.int64)
        self._steps = kept
        self._num_rows = sum(len(step.payers) for step in kept)
        self._energy_mj, self._time_s = np.zeros(self.num_payers), np.zeros(self.num_payers)
        for step in kept:
            left = step.part(-np.inf, np.inf)
            self._count(step.payers, left * step.energy_mj, left * step.duration_s * step.time_share)
        self.overflow = Overflow()

    def _count(self, payers: NDArray[np.int64], energy_mj: Floats, time_s: Floats) -> None:
        missing = self.num_payers - len(self._energy_mj)
        self._energy_mj = np.pad(self._energy_mj, (0, missing)) + np.bincount(payers, energy_mj, self.num_payers)
        self._time_s = np.pad(self._time_s, (0, missing)) + np.bincount(payers, time_s, self.num_payers)

    def _joules(self, features: Floats, durations_s: Floats) -> Floats:
        """Predicted joules of steps; while only the shape is known, one watt each."""
        known = self.coefficients
        return known.energy.costs(features) if known.is_learned else durations_s

    def _split_raw(self) -> None:
        """Splits the steps that came since the last call in one flat batch, with the coefficients in force."""
        if not self._raw:
            return
        waiting, self._raw, self._num_raw_rows = self._raw, [], 0
        raw = [step for step, _ in waiting]
        sizes = np.array([len(step.payers) for step in raw])
        owner = np.repeat(np.arange(len(raw)), sizes)
        batch = Batch(features=np.concatenate([_features(step) for step in raw]), owner=owner, num_steps=len(raw))
        tokens = batch.tokens
        recomputed = np.concatenate([step.recomputed_tokens for step in raw]).astype(np.float64)
        payers = np.concatenate([indices for _, indices in waiting])
        durations_s = np.array([_duration_s(step) for step in raw])
        sums = batch.step_features()
        joules = self._joules(sums, durations_s)
        energy = split(batch, self.coefficients.energy, self.policy)
        energy = _shares(batch, energy) * joules[owner]
        time = _shares(batch, split(batch, self.coefficients.time, self.policy))
        paid = 1 - recomputed / np.maximum(tokens, 1)
        energy, time = energy * paid * 1000, time * paid
        self._count(payers, energy, time * durations_s[owner])
        ends = np.cumsum(sizes)
        for index, step in enumerate(raw):
            rows = slice(ends[index] - sizes[index], ends[index])
            self._steps.append(
                PendingStep(
                    started_s=step.started_s,
                    ended_s=step.started_s + float(durations_s[index]),
                    duration_s=float(durations_s[index]),
                    features=sums[index],
                    predicted_mj=float(joules[index]) * 1000,
                    payers=payers[rows],
                    energy_mj=energy[rows],
                    time_share=time[rows],
                    tokens=tokens[rows],
                )
            )


def _shares(batch: Batch, costs: Floats) -> Floats:
    """Each row's share of its step; equal where a step costs nothing."""
    sums, sizes = batch.sums(costs), batch.sums(np.ones_like(costs))
    equal = 1 / np.maximum(sizes, 1)
    return np.where(sums[batch.owner] > 0, costs / np.where(sums > 0, sums, 1.0)[batch.owner], equal[batch.owner])


def _features(step: StepRecord) -> Floats:
    """Rows of (prefill + recomputed, decode, context) tokens: work is work, whoever pays for it."""
    computed = step.prefill_tokens + step.recomputed_tokens
    return np.stack((computed, step.decode_tokens, step.context_tokens), axis=1).astype(np.float64)


def _duration_s(step: StepRecord) -> float:
    return max(step.ended_s - step.started_s, 0.0)
