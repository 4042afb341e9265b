"""Splits a measured window over the attempts whose tokens were computed in it, to the millijoule.

Called by ``workers.windows``. It must never know a meter, an engine, an outbox or a clock.

A window's energy is idle watts × seconds without a step, plus its steps. Predicted step energies are scaled to what
was measured (within SCALE_MIN..SCALE_MAX; what that leaves is unattributed), and each step is split over its sequences
(``workers.shapley``). A step across an edge is cut by time. A step that arrives after its window was closed is charged
with the next one, at that one's scale, and taken from unattributed, where its energy went.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from workers.curve import Floats
from workers.engine_model import EngineModel
from workers.pending_steps import OVERHEAD, Overflow, Parts, PendingSteps
from workers.rounding import largest_remainder
from workers.shapley import POLICIES
from workers.steps import StepRecord
from workers.types import Phase

logger = logging.getLogger("jouleway.worker")

SCALE_MIN = 0.7
SCALE_MAX = 1.4
"""Measured over predicted step energy within which a window is believed."""

MAX_PENDING_ROWS = 1 << 19
"""Rows (sequence × step) kept for windows that are not closed yet, about 50 MB; what comes beyond is not split."""

MIN_PREDICTED_MJ = 1e-6
"""Below it a window has no steps to speak of: nothing is scaled by it."""

ROUNDING_MJ = 2
"""What rounding idle and steps apart may leave over; the steps take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSplit:
    """One window, split. meter_mj == idle_mj + overhead_mj + unattributed_mj + Σ share mj, exactly."""

    idle_mj: int
    overhead_mj: int
    """Rows without a payer, and recomputed tokens."""
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
    tokens: dict[str, int]
    """Computed tokens per attempt, of the steps that ended in the window or before: to be held against its usage."""
    overflowed: frozenset[str] = frozenset()
    """Attempts with rows beyond the bound: their shares and tokens are incomplete."""
    causes: tuple[tuple[str, int], ...] = ()
    """Named parts of unattributed (late_steps, rows_overflow, clamped, idle_excess), and curves_unlearned with 0."""

    @staticmethod
    def of_nothing() -> WindowSplit:
        """Of a window that nobody watched: no step, no energy."""
        return WindowSplit(
            idle_mj=0,
            overhead_mj=0,
            unattributed_mj=0,
            shares={},
            busy_gpu_us=0,
            overhead_gpu_us=0,
            predicted_mj=0,
            scale_ratio=1.0,
            num_steps=0,
            tokens={},
        )

    def of(self, phase: Phase) -> WindowSplit:
        """Of an engine that is parked all that nobody is charged for is idle; of one that starts again, overhead."""
        if phase is Phase.SERVING:
            return self
        rest_mj = max(self.unattributed_mj, -self.idle_mj)
        idle_mj, overhead_mj, left_mj = self.idle_mj + rest_mj, self.overhead_mj, self.unattributed_mj - rest_mj
        if phase is Phase.STARTING:
            idle_mj, overhead_mj = 0, idle_mj + overhead_mj
        return replace(
            self,
            idle_mj=idle_mj,
            overhead_mj=overhead_mj,
            unattributed_mj=left_mj,
            causes=(("clamped", left_mj),) if left_mj else (),
        )


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
        self._frozen = model.freeze()
        self._pending = PendingSteps(policy=policy, max_rows=max_pending_rows, coefficients=self._frozen)
        self.overflowed_steps_total = 0
        self.failed_fits_total = 0

    # -- steps

    def add_step(self, step: StepRecord) -> None:
        """One engine step. Beyond the bound of rows its energy becomes unattributed, cause ``rows_overflow``, and its
        time overhead."""
        self._pending.add(step)

    def has_pending(self, attempt_id: str) -> bool:
        """True while a row of this attempt waits for its window."""
        return self._pending.has(attempt_id)

    def provisional(self, attempt_id: str) -> tuple[int, int]:
        """(mj, gpu_us) predicted for the pending rows of an attempt."""
        energy_mj, time_s = self._pending.predicted(attempt_id)
        return round(energy_mj), round(time_s * self._num_gpus * 1e6)

    def latest_step_ended_s(self) -> float | None:
        """End of the newest step seen; None before the first."""
        return self._pending.latest_s

    def predicted_mj(self, *, started_s: float, ended_s: float) -> int:
        """What the model says that the window burned, idle included; for windows without a meter (grade D)."""
        parts = self._pending.parts(started_s, ended_s)
        return round(float(parts.inside @ parts.predicted_mj) + self._idle_mj(parts.gap_s(started_s, ended_s)))

    # -- windows

    def close_window(self, *, started_s: float, ended_s: float, meter_mj: int, learn: bool = True) -> WindowSplit:
        """Splits ``meter_mj`` of the window started_s..ended_s over everything pending up to ended_s.

        ``learn``: the window teaches the model (never one with late or overflowed steps). Coefficients are frozen anew.
        """
        parts = self._pending.parts(started_s, ended_s)
        overflow = self._pending.overflow
        gap_s = max(parts.gap_s(started_s, ended_s) - overflow.busy_s, 0.0)
        result = self._settle(parts, overflow, gap_s, meter_mj, ended_s)
        self.overflowed_steps_total += overflow.num_steps
        if learn and not overflow.num_steps and not parts.late.any():
            self._learn(parts, gap_s, meter_mj)
        self._frozen = self._pending.coefficients = self._model.freeze()
        self._pending.settle(ended_s)
        return result

    def _learn(self, parts: Parts, gap_s: float, meter_mj: int) -> None:
        used = [step for step, part in zip(parts.steps, parts.inside, strict=True) if part > 0]
        try:
            self._model.observe_window(
                np.array([step.features for step in used]),
                gap_s,
                meter_mj,
                fractions=parts.inside[parts.inside > 0],
                times_s=np.array([step.duration_s for step in used]),
            )
        except np.linalg.LinAlgError as error:
            # The window is booked already; the coefficients stay as they were.
            self.failed_fits_total += 1
            logger.warning("the curves learned nothing from a window of %d steps: %s", len(used), error)

    def _settle(
        self, parts: Parts, overflow: Overflow, gap_s: float, meter_mj: int, ended_s: float
    ) -> WindowSplit:  # fmt: skip
        inside_mj = float(parts.inside @ parts.predicted_mj) + overflow.predicted_mj
        late_mj = float(parts.late @ parts.predicted_mj)
        idle_mj, scale = self._balance(inside_mj, late_mj, gap_s, meter_mj)
        charged_mj = round(scale * (inside_mj + late_mj - overflow.predicted_mj))
        causes = [("curves_unlearned", 0)] if inside_mj > 0 and not self._frozen.is_learned else []
        causes += [("late_steps", -round(scale * late_mj))] if late_mj > 0 and self._frozen.is_learned else []
        causes += [("rows_overflow", round(scale * overflow.predicted_mj))] if overflow.num_steps else []
        rest_mj = meter_mj - idle_mj - charged_mj - sum(amount for _, amount in causes)
        if abs(rest_mj) <= ROUNDING_MJ and charged_mj + rest_mj >= 0 and parts.steps:
            charged_mj, rest_mj = charged_mj + rest_mj, 0
        causes += [("clamped" if inside_mj > 0 else "idle_excess", rest_mj)] if rest_mj else []
        energy, time_s = self._by_payer(parts)
        time_s[OVERHEAD] += overflow.busy_s
        busy_gpu_us = round(float(time_s.sum()) * self._num_gpus * 1e6)
        shares_mj = largest_remainder(energy, charged_mj)
        shares_us = largest_remainder(time_s, busy_gpu_us)
        names = self._pending.names()
        present = [int(index) for index in np.flatnonzero((energy > 0) | (time_s > 0))]
        return WindowSplit(
            idle_mj=idle_mj,
            overhead_mj=int(shares_mj[OVERHEAD]),
            unattributed_mj=meter_mj - idle_mj - charged_mj,
            shares={
                str(names[index]): (int(shares_mj[index]), int(shares_us[index]))
                for index in present
                if index != OVERHEAD
            },
            busy_gpu_us=busy_gpu_us,
            overhead_gpu_us=int(shares_us[OVERHEAD]),
            predicted_mj=round(inside_mj if self._frozen.is_learned else scale * inside_mj),
            scale_ratio=scale,
            num_steps=len(parts.steps) + overflow.num_steps,
            tokens=self._tokens(parts, ended_s),
            overflowed=frozenset(overflow.payers),
            causes=tuple(causes),
        )

    def _balance(self, predicted_mj: float, late_mj: float, gap_s: float, meter_mj: int) -> tuple[int, float]:
        """(idle mj, scale) of a window. What the clamp leaves is idle, too, as far as idle watts are uncertain."""
        idle_mj = self._idle_mj(gap_s)
        band_mj = self._model.idle_band_watts() * gap_s * 1000
        if predicted_mj <= MIN_PREDICTED_MJ:
            ceiling_mj = meter_mj if self._model.idle_watts is None else round(idle_mj + band_mj)
            return max(min(meter_mj, ceiling_mj), 0), 1.0
        busy_mj = meter_mj - idle_mj
        if not self._frozen.is_learned:
            # Late steps have no window of their own to be measured by: all there is goes over all of them.
            return round(idle_mj), max(busy_mj, 0.0) / (predicted_mj + late_mj)
        scale = min(max(busy_mj / predicted_mj, SCALE_MIN), SCALE_MAX)
        left_mj = busy_mj - scale * predicted_mj
        return round(idle_mj + min(max(left_mj, -min(band_mj, idle_mj)), band_mj)), scale

    def _by_payer(self, parts: Parts) -> tuple[Floats, Floats]:
        """Predicted mj and step seconds of every payer, overhead included; shape (payers,)."""
        num_payers = self._pending.num_payers
        if not parts.steps:
            return np.zeros(num_payers), np.zeros(num_payers)
        settled = parts.inside + parts.late
        sizes = [len(step.payers) for step in parts.steps]
        payers = np.concatenate([step.payers for step in parts.steps])
        energy = np.concatenate([step.energy_mj for step in parts.steps]) * np.repeat(settled, sizes)
        time_s = np.concatenate([step.time_share for step in parts.steps])
        time_s = time_s * np.repeat(settled * parts.durations_s, sizes)
        by_energy = np.asarray(np.bincount(payers, energy, minlength=num_payers), dtype=np.float64)
        by_time = np.asarray(np.bincount(payers, time_s, minlength=num_payers), dtype=np.float64)
        # What no row of a payer took (recomputed tokens, steps without rows) is overhead.
        by_energy[OVERHEAD] += max(float(settled @ parts.predicted_mj) - float(by_energy.sum()), 0.0)
        by_time[OVERHEAD] += max(float(settled @ parts.durations_s) - float(by_time.sum()), 0.0)
        return by_energy, by_time

    def _tokens(self, parts: Parts, ended_s: float) -> dict[str, int]:
        """Computed tokens of steps whose last part is settled now."""
        whole = [step for step in parts.steps if step.ended_s <= ended_s]
        if not whole:
            return {}
        payers = np.concatenate([step.payers for step in whole])
        counts = np.bincount(payers, np.concatenate([step.tokens for step in whole]))
        names = self._pending.names()
        return {str(names[index]): int(counts[index]) for index in np.unique(payers).tolist() if index != OVERHEAD}

    def _idle_mj(self, gap_s: float) -> float:
        return self._frozen.idle_watts * gap_s * 1000
