"""Splits a measured window over the attempts whose tokens were computed in it, to the millijoule.

Called by ``workers.windows``. It must never know a meter, an engine, an outbox or a clock.

A window's energy is idle watts × seconds without a step, plus its steps. Predicted step energies are scaled to what
was measured (within SCALE_MIN..SCALE_MAX; what that leaves is unattributed), and each step is split over its sequences
(``workers.shapley``). A step across an edge is cut by time. A step that arrives after its window was closed is charged
with the next one, at that one's scale, and taken from unattributed, where its energy went.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.curve import Floats
from workers.engine_model import EngineModel
from workers.shapley import POLICIES, Batch, split
from workers.types import StepRecord

SCALE_MIN = 0.7
SCALE_MAX = 1.4
"""Measured over predicted step energy within which a window is believed."""

MAX_PENDING_ROWS = 1 << 19
"""Rows (sequence × step) kept for windows that are not closed yet, about 40 MB; more are not split, see add_step."""

_OVERHEAD = 0
"""Index of the overhead among payers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSplit:
    """One window, split. meter_mj == idle_mj + overhead_mj + unattributed_mj + Σ share mj, exactly."""

    idle_mj: int
    overhead_mj: int
    unattributed_mj: int
    """Measured but nobody's; negative where more was predicted than measured."""
    shares: dict[str, tuple[int, int]]
    """attempt_id: (mj, gpu_us)."""
    busy_gpu_us: int
    """Step time × GPUs == overhead_gpu_us + Σ share gpu_us, exactly."""
    overhead_gpu_us: int
    predicted_mj: int
    """Predicted energy of the steps in the window, with coefficients frozen before it."""
    scale_ratio: float
    """Measured over predicted step energy, clamped."""
    num_steps: int
    causes: tuple[tuple[str, int], ...] = ()
    """Named parts of unattributed, and names of what was done with cost 0."""


@dataclass(slots=True, eq=False)
class _Step:
    """A step that waits for its window; ``started_s`` moves to the edge when its first part is settled."""

    started_s: float
    ended_s: float
    duration_s: float
    features: Floats
    """Summed over rows, shape (3,)."""
    predicted_mj: float
    payers: NDArray[np.int64]
    energy_mj: Floats
    """Predicted, per row, without its recomputed part."""
    time_share: Floats
    """Share of the step's time per row, without its recomputed part."""

    def part(self, begin_s: float, end_s: float) -> float:
        """The share of the whole step that lies in begin..end and is not settled yet."""
        if self.duration_s <= 0:
            return 1.0 if self.ended_s <= end_s else 0.0
        return max(min(self.ended_s, end_s) - max(self.started_s, begin_s), 0.0) / self.duration_s


@dataclass(slots=True)
class _Overflow:
    """Steps beyond MAX_PENDING_ROWS: only their sums are kept."""

    num_steps: int = 0
    predicted_mj: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Parts:
    """The parts of pending steps that fall into one window."""

    steps: list[_Step] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    """Share of each step that lies in the window."""
    late: list[float] = field(default_factory=list)
    """Share that lies before it."""


class Attribution:
    """Pending steps of one engine, and the split of its windows. Not thread-safe; called on one thread."""

    def __init__(
        self,
        *,
        model: EngineModel,
        num_gpus: int,
        policy: str = "shapley",
        max_pending_rows: int = MAX_PENDING_ROWS,
    ) -> None:
        """Raises: ValueError on an unknown policy."""
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        self._model = model
        self._num_gpus = max(num_gpus, 1)
        self._policy = policy
        self._max_pending_rows = max_pending_rows
        self._frozen = model.freeze()
        self._raw: list[StepRecord] = []
        self._steps: list[_Step] = []
        self._num_rows = 0
        self._payers: dict[str | None, int] = {None: _OVERHEAD}
        self._latest_s: float | None = None
        self._overflow = _Overflow()
        self.overflowed_steps_total = 0

    # -- steps

    def add_step(self, step: StepRecord) -> None:
        """One engine step. Beyond the bound of rows only its sums are kept: its energy becomes unattributed,
        cause ``rows_overflow``, and its time overhead."""
        if self._latest_s is None or step.ended_s > self._latest_s:
            self._latest_s = step.ended_s
        if self._num_rows + len(step.payers) > self._max_pending_rows:
            self._overflow.num_steps += 1
            self._overflow.predicted_mj += self._predicted_mj(_features(step).sum(axis=0), _duration_s(step))
            self._overflow.busy_s += _duration_s(step)
            self.overflowed_steps_total += 1
            return
        self._num_rows += len(step.payers)
        for payer in step.payers:
            self._payers.setdefault(payer, len(self._payers))
        self._raw.append(step)

    def has_pending(self, attempt_id: str) -> bool:
        """True while a row of this attempt waits for its window."""
        return attempt_id in self._payers

    def provisional(self, attempt_id: str) -> tuple[int, int]:
        """(mj, gpu_us) predicted for the pending rows of an attempt."""
        index = self._payers.get(attempt_id)
        if index is None:
            return 0, 0
        self._split_raw()
        energy_mj = time_s = 0.0
        for step in self._steps:
            rows = step.payers == index
            if rows.any():
                left = step.part(step.started_s, step.ended_s)
                energy_mj += left * float(step.energy_mj[rows].sum())
                time_s += left * step.duration_s * float(step.time_share[rows].sum())
        return round(energy_mj), round(time_s * self._num_gpus * 1e6)

    def latest_step_ended_s(self) -> float | None:
        """End of the newest step seen; None before the first."""
        return self._latest_s

    def predicted_mj(self, *, started_s: float, ended_s: float) -> int:
        """What the model says that the window burned, idle included; for windows without a meter (grade D)."""
        self._split_raw()
        parts = self._parts(started_s, ended_s)
        steps_mj = sum(part * step.predicted_mj for step, part in zip(parts.steps, parts.inside, strict=True))
        return round(steps_mj + self._idle_mj(self._gap_s(started_s, ended_s, parts)))

    # -- windows

    def close_window(self, *, started_s: float, ended_s: float, meter_mj: int, learn: bool = True) -> WindowSplit:
        """Splits ``meter_mj`` of the window started_s..ended_s over everything pending up to ended_s.

        ``learn``: the window teaches the model (never when steps of it overflowed). Coefficients are frozen anew after.
        """
        self._split_raw()
        parts = self._parts(started_s, ended_s)
        overflow, self._overflow = self._overflow, _Overflow()
        gap_s = max(self._gap_s(started_s, ended_s, parts) - overflow.busy_s, 0.0)
        result = self._settle(parts, overflow, gap_s, meter_mj)
        if learn and not overflow.num_steps:
            self._teach(parts, gap_s, meter_mj)
        self._frozen = self._model.freeze()
        self._drop_settled(ended_s)
        return result

    def _settle(self, parts: _Parts, overflow: _Overflow, gap_s: float, meter_mj: int) -> WindowSplit:
        inside, late = np.array(parts.inside), np.array(parts.late)
        predicted = np.array([step.predicted_mj for step in parts.steps])
        in_window_mj = float(inside @ predicted) + overflow.predicted_mj if parts.steps else overflow.predicted_mj
        causes: list[tuple[str, int]] = []
        idle_mj, scale = self._balance(in_window_mj, gap_s, meter_mj)
        if in_window_mj > 0 and not self._frozen.is_learned:
            causes.append(("curves_unlearned", 0))
        num_payers = len(self._payers)
        energy, time_s = np.zeros(num_payers), np.zeros(num_payers)
        late_mj = 0.0
        if parts.steps:
            energy, time_s = self._by_payer(parts, inside + late)
            late_mj = scale * float(late @ predicted)
        charged_mj = round(scale * float((inside + late) @ predicted)) if parts.steps else 0
        overflow_mj = round(scale * overflow.predicted_mj)
        time_s[_OVERHEAD] += overflow.busy_s
        busy_gpu_us = round(float(time_s.sum()) * self._num_gpus * 1e6)
        shares_mj = largest_remainder(energy, charged_mj)
        shares_us = largest_remainder(time_s, busy_gpu_us)
        unattributed_mj = meter_mj - idle_mj - charged_mj
        causes += [("late_steps", -round(late_mj))] if late_mj else []
        causes += [("rows_overflow", overflow_mj)] if overflow.num_steps else []
        rest_mj = unattributed_mj - sum(amount for _, amount in causes)
        causes += [(self._rest_cause(in_window_mj, scale), rest_mj)] if rest_mj else []
        present = np.flatnonzero((energy > 0) | (time_s > 0))
        names = {index: payer for payer, index in self._payers.items()}
        shares = {
            name: (int(shares_mj[index]), int(shares_us[index]))
            for index in present
            if (name := names[int(index)]) is not None
        }
        return WindowSplit(
            idle_mj=idle_mj,
            overhead_mj=int(shares_mj[_OVERHEAD]),
            unattributed_mj=unattributed_mj,
            shares=shares,
            busy_gpu_us=busy_gpu_us,
            overhead_gpu_us=int(shares_us[_OVERHEAD]),
            predicted_mj=round(in_window_mj) if self._frozen.is_learned else round(scale * in_window_mj),
            scale_ratio=scale,
            num_steps=sum(1 for step, part in zip(parts.steps, inside, strict=True) if step.ended_s and part > 0)
            + overflow.num_steps,
            causes=tuple(causes),
        )

    def _balance(self, predicted_mj: float, gap_s: float, meter_mj: int) -> tuple[int, float]:
        """(idle mj, scale) of a window: what the clamp leaves within the idle band is idle, too."""
        idle_mj = self._idle_mj(gap_s)
        band_mj = self._model.idle_band_watts() * gap_s * 1000
        if predicted_mj <= 0:
            if self._model.idle_watts is None:
                return max(meter_mj, 0), 1.0
            return max(min(meter_mj, round(idle_mj + band_mj)), 0), 1.0
        busy_mj = meter_mj - idle_mj
        if not self._frozen.is_learned:
            return round(idle_mj), max(busy_mj, 0.0) / predicted_mj
        scale = min(max(busy_mj / predicted_mj, SCALE_MIN), SCALE_MAX)
        left_mj = busy_mj - scale * predicted_mj
        return round(idle_mj + min(max(left_mj, -min(band_mj, idle_mj)), band_mj)), scale

    def _rest_cause(self, predicted_mj: float, scale: float) -> str:
        """Why something is left over."""
        if predicted_mj <= 0:
            return "idle_excess"
        return "clamped" if scale in (SCALE_MIN, SCALE_MAX) else "rounding"

    def _by_payer(self, parts: _Parts, settled: Floats) -> tuple[Floats, Floats]:
        """Predicted mj and step seconds of every payer, overhead included; shape (payers,)."""
        sizes = [len(step.payers) for step in parts.steps]
        payers = np.concatenate([step.payers for step in parts.steps])
        factor = np.repeat(settled, sizes)
        seconds = np.repeat(settled * np.array([step.duration_s for step in parts.steps]), sizes)
        energy = np.concatenate([step.energy_mj for step in parts.steps]) * factor
        time_s = np.concatenate([step.time_share for step in parts.steps]) * seconds
        num_payers = len(self._payers)
        by_energy = np.asarray(np.bincount(payers, energy, minlength=num_payers), dtype=np.float64)
        by_time = np.asarray(np.bincount(payers, time_s, minlength=num_payers), dtype=np.float64)
        # What no row of a payer took (recomputed tokens, steps without rows) is overhead.
        total_mj = float(settled @ np.array([step.predicted_mj for step in parts.steps]))
        total_s = float(settled @ np.array([step.duration_s for step in parts.steps]))
        by_energy[_OVERHEAD] += max(total_mj - float(by_energy.sum()), 0.0)
        by_time[_OVERHEAD] += max(total_s - float(by_time.sum()), 0.0)
        return by_energy, by_time

    def _teach(self, parts: _Parts, gap_s: float, meter_mj: int) -> None:
        if any(late > 0 for late in parts.late):
            return
        used = [index for index, part in enumerate(parts.inside) if part > 0]
        self._model.observe_window(
            np.array([parts.steps[index].features for index in used]),
            gap_s,
            meter_mj,
            fractions=np.array([parts.inside[index] for index in used]),
            times_s=np.array([parts.steps[index].duration_s for index in used]),
        )

    # -- pending steps

    def _split_raw(self) -> None:
        """Splits the steps that came since the last call, with the frozen coefficients, in one flat batch."""
        if not self._raw:
            return
        raw, self._raw = self._raw, []
        sizes = np.array([len(step.payers) for step in raw])
        features = np.concatenate([_features(step) for step in raw])
        recomputed = np.concatenate([step.recomputed_tokens for step in raw]).astype(np.float64)
        batch = Batch(features=features, owner=np.repeat(np.arange(len(raw)), sizes), num_steps=len(raw))
        index_of = self._payers
        payers = np.array([index_of[payer] for step in raw for payer in step.payers], dtype=np.int64)
        paid = 1 - recomputed / np.maximum(batch.tokens, 1)
        durations = np.array([_duration_s(step) for step in raw])
        sums = batch.step_features()
        predicted = self._predicted(sums, durations)
        energy = split(batch, self._frozen.energy, self._policy)
        if not self._frozen.is_learned:
            # No level yet: every step at one watt, its rows by the shape.
            energy *= (predicted / np.maximum(batch.sums(energy), 1e-300))[batch.owner]
        time = split(batch, self._frozen.time, self._policy)
        time /= np.maximum(batch.sums(time), 1e-300)[batch.owner]
        energy *= 1000 * paid
        time *= paid
        ends = np.cumsum(sizes)
        for index, step in enumerate(raw):
            rows = slice(ends[index] - sizes[index], ends[index])
            self._steps.append(
                _Step(
                    started_s=step.started_s,
                    ended_s=max(step.ended_s, step.started_s),
                    duration_s=float(durations[index]),
                    features=sums[index],
                    predicted_mj=float(predicted[index]) * 1000,
                    payers=payers[rows],
                    energy_mj=energy[rows],
                    time_share=time[rows],
                )
            )

    def _predicted(self, features: Floats, durations_s: Floats) -> Floats:
        """Joules of steps; before a level is learned, one watt each."""
        return self._frozen.energy.costs(features) if self._frozen.is_learned else durations_s

    def _predicted_mj(self, features: Floats, duration_s: float) -> float:
        return float(self._predicted(features[None, :], np.array([duration_s]))[0]) * 1000

    def _parts(self, started_s: float, ended_s: float) -> _Parts:
        parts = _Parts()
        for step in self._steps:
            inside = step.part(started_s, ended_s)
            late = step.part(-np.inf, min(started_s, ended_s)) if step.started_s < started_s else 0.0
            if step.duration_s <= 0 and step.ended_s < started_s:
                inside, late = 0.0, 1.0
            if inside > 0 or late > 0:
                parts.steps.append(step)
                parts.inside.append(inside)
                parts.late.append(late if step.duration_s > 0 or inside == 0 else 0.0)
        return parts

    def _gap_s(self, started_s: float, ended_s: float, parts: _Parts) -> float:
        """Seconds of the window in which no step ran (overlapping steps count once)."""
        if not parts.steps:
            return max(ended_s - started_s, 0.0)
        begins = np.clip([step.started_s for step in parts.steps], started_s, ended_s)
        ends = np.clip([step.ended_s for step in parts.steps], started_s, ended_s)
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], ends[order]
        reached = np.maximum.accumulate(np.concatenate(([started_s], ends)))[:-1]
        busy_s = float(np.maximum(ends - np.maximum(begins, reached), 0.0).sum())
        return max(ended_s - started_s - busy_s, 0.0)

    def _idle_mj(self, gap_s: float) -> float:
        return self._frozen.idle_watts * gap_s * 1000

    def _drop_settled(self, ended_s: float) -> None:
        """Keeps what lies after the edge, and renumbers its payers."""
        kept = [step for step in self._steps if step.ended_s > ended_s]
        names = {index: payer for payer, index in self._payers.items()}
        self._payers = {None: _OVERHEAD}
        for step in kept:
            step.started_s = max(step.started_s, ended_s)
            step.payers = np.array(
                [self._payers.setdefault(names[int(index)], len(self._payers)) for index in step.payers],
                dtype=np.int64,
            )
        self._steps = kept
        self._num_rows = sum(len(step.payers) for step in kept)


def largest_remainder(amounts: Floats, total: int) -> NDArray[np.int64]:
    """Integers proportional to ``amounts`` (≥ 0) that add up to ``total``; ties go to the earlier one.

    All of it goes to the first when the amounts add up to 0.
    """
    result = np.zeros(len(amounts), dtype=np.int64)
    weight = float(amounts.sum())
    if weight <= 0 or not np.isfinite(weight):
        if len(result):
            result[0] = total
        return result
    quotas = amounts * (total / weight)
    result[:] = np.floor(quotas)
    missing = total - int(result.sum())
    if missing:
        order = np.argsort(-(quotas - result), kind="stable")
        count, sign = abs(missing), 1 if missing > 0 else -1
        positive = order[amounts[order] > 0] if sign > 0 else order[::-1][result[order[::-1]] > 0]
        chosen = positive if len(positive) else order
        result += sign * np.bincount(np.resize(chosen, count), minlength=len(result)).astype(np.int64)
    return result


def _features(step: StepRecord) -> Floats:
    """Rows of (prefill + recomputed, decode, context) tokens: work is work, whoever pays for it."""
    return np.stack(
        (step.prefill_tokens + step.recomputed_tokens, step.decode_tokens, step.context_tokens), axis=1
    ).astype(np.float64)


def _duration_s(step: StepRecord) -> float:
    return max(step.ended_s - step.started_s, 0.0)
