"""Fits a non-negative step curve to sums of steps: least squares on relative error, with a prior, by Gauss-Newton.

Called by ``workers.engine_model``. It must never know a request, a meter or a clock.

A target is the cost of a *bunch* of steps (one group of like steps for time; one window for energy), so the model's
value is Σ count·(base + bend(W)). It is linear in the coefficients when the exponent is 1; otherwise each round
linearises around the last coefficients. Each round solves a non-negative least-squares problem of at most five
unknowns (Lawson & Hanson 1974, chapter 23, on the normal equations).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workers.curve import CONTEXT, DECODE, PREFILL, Curve, Floats

MAX_ROUNDS = 12
"""Gauss-Newton rounds of a curved fit; an affine fit needs one."""

TOLERANCE_RATIO = 1e-4
"""Rounds end when no coefficient moved by more than this share."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bunches:
    """Observations. Rows are groups of like steps; ``owner[g]`` is the target that group g belongs to."""

    features: Floats
    """Mean prefill, decode and context tokens of the group's steps, shape (groups, 3)."""
    counts: Floats
    """Steps in the group, fractions of cut steps included, shape (groups,)."""
    owner: NDArray[np.int64]
    targets: Floats
    """Cost of each owner, shape (owners,), all > 0."""
    weights: Floats
    """Weight of each owner's squared relative error, shape (owners,)."""
    gaps: Floats
    """Seconds without a step of each owner; their coefficient is fitted where ``has_gaps``."""
    has_gaps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """A fitted curve and how far it can be trusted."""

    curve: Curve
    gap: float
    """Coefficient of the gaps (idle watts), 0 where they were not fitted."""
    mean_square: float
    """Weighted mean of squared relative errors."""
    condition: float
    """Condition number of the data alone, columns scaled to equal energy; ∞ where a load was never varied."""


def fit(
    bunches: Bunches,
    *,
    prior: Curve,
    prior_weight: float,
    exponent: float = 1.0,
    start: Curve | None = None,
    max_rounds: int = MAX_ROUNDS,
) -> Fit:
    """The curve of this ``exponent`` with the least weighted squared relative error, near ``prior`` where data is thin.

    ``prior`` is affine; ``prior_weight`` is what a deviation by a whole prior coefficient costs, in squared relative
    errors. ``start``: an earlier fit to begin from. A curved fit ends after ``max_rounds`` with the best round.
    """
    scale = _scales(bunches, prior)
    centre = np.array((prior.base, prior.prefill, prior.decode, prior.context, 0.0))
    begin = prior if start is None else start
    pivot = begin.pivot if begin.exponent != 1.0 else _mean_weight(bunches, begin)
    begin = _bent_to(begin, exponent, pivot, _mean_weight(bunches, begin))
    theta = np.array((begin.base, begin.prefill, begin.decode, begin.context, 0.0))
    best: Fit | None = None
    for _ in range(1 if exponent == 1.0 else max_rounds):
        rows, goals = _weighted(bunches, *_linearised(bunches, theta, exponent, pivot))
        normal = rows.T @ rows + np.diag(prior_weight / scale**2)
        moved = non_negative(normal, rows.T @ goals + prior_weight * centre / scale**2)
        is_done = bool(np.all(np.abs(moved - theta) <= TOLERANCE_RATIO * (np.abs(theta) + scale)))
        theta = moved
        found = _judged(bunches, theta, exponent, pivot, condition=_condition(rows))
        if best is None or found.mean_square < best.mean_square:
            best = found
        if is_done:
            break
    assert best is not None
    return best


def _judged(bunches: Bunches, theta: Floats, exponent: float, pivot: float, *, condition: float) -> Fit:
    curve, gap = _curve(theta, exponent, pivot), float(theta[4]) if bunches.has_gaps else 0.0
    errors = predict(bunches, curve, gap) / bunches.targets - 1
    total = float(bunches.weights.sum())
    mean_square = float(bunches.weights @ errors**2) / total if total > 0 else 0.0
    return Fit(curve=curve, gap=gap, mean_square=mean_square, condition=condition)


def _bent_to(curve: Curve, exponent: float, pivot: float, mean_weight: float) -> Curve:
    """The curve with another exponent that costs the same at ``mean_weight``."""
    if mean_weight <= 0:
        return replace(curve, exponent=exponent, pivot=pivot)
    bend = float(curve.bend(np.array([mean_weight]))[0])
    weight = bend if exponent == 1.0 else pivot * (bend / pivot) ** (1 / exponent)
    ratio = weight / mean_weight
    return Curve(
        base=curve.base,
        prefill=curve.prefill * ratio,
        decode=curve.decode * ratio,
        context=curve.context * ratio,
        exponent=exponent,
        pivot=pivot,
    )


def predict(bunches: Bunches, curve: Curve, gap: float) -> Floats:
    """The curve's value of each owner, shape (owners,)."""
    steps = np.bincount(bunches.owner, bunches.counts * curve.costs(bunches.features), minlength=len(bunches.targets))
    return np.asarray(steps + gap * bunches.gaps) if bunches.has_gaps else np.asarray(steps)


def non_negative(normal: Floats, right: Floats) -> Floats:
    """argmin ½ xᵀ·normal·x − rightᵀx over x ≥ 0, for a positive definite ``normal``; shape (unknowns,)."""
    scale = 1 / np.sqrt(np.maximum(np.diag(normal), 1e-300))
    normal, right = normal * np.outer(scale, scale), right * scale
    size = len(right)
    solution, is_free = np.zeros(size), np.zeros(size, dtype=bool)
    limit = 1e-10 * max(float(np.abs(right).max(initial=0.0)), 1e-300)
    for _ in range(3 * size):
        gradient = right - normal @ solution
        gradient[is_free] = -np.inf
        entering = int(np.argmax(gradient))
        if gradient[entering] <= limit:
            break
        is_free[entering] = True
        for _ in range(size + 1):
            trial = np.zeros(size)
            trial[is_free] = np.linalg.lstsq(normal[np.ix_(is_free, is_free)], right[is_free], rcond=None)[0]
            is_bad = is_free & (trial <= 0)
            if not is_bad.any():
                break
            steps = solution[is_bad] / np.maximum(solution[is_bad] - trial[is_bad], 1e-300)
            solution = solution + float(steps.min()) * (trial - solution)
            is_free &= solution > 1e-14
            solution[~is_free] = 0.0
        solution = np.maximum(trial, 0.0)
    return np.asarray(solution * scale)


def _curve(theta: Floats, exponent: float, pivot: float) -> Curve:
    base, prefill, decode, context, _ = (float(value) for value in theta)
    return Curve(base=base, prefill=prefill, decode=decode, context=context, exponent=exponent, pivot=pivot)


def _mean_weight(bunches: Bunches, curve: Curve) -> float:
    """The mean step's sum of weights."""
    num_steps = float(bunches.counts.sum())
    mean = float(bunches.counts @ curve.weights(bunches.features)) / num_steps if num_steps else 0.0
    return mean if mean > 0 else 1.0


def _scales(bunches: Bunches, prior: Curve) -> Floats:
    """How far a coefficient may reasonably lie from the prior: itself, or what would be a tenth of all cost."""
    total = float(bunches.targets.sum())
    counts, features = bunches.counts, bunches.features
    columns = [float((counts * features[:, column]).sum()) for column in (PREFILL, DECODE, CONTEXT)]
    gap_s = float(bunches.gaps.sum()) if bunches.has_gaps else 0.0
    amounts = np.array((float(counts.sum()), *columns, gap_s))
    tenth = np.where(amounts > 0, 0.1 * total / np.maximum(amounts, 1e-9), 0.0)
    centre = np.array((prior.base, prior.prefill, prior.decode, prior.context, 0.0))
    return np.asarray(np.maximum(centre, tenth) + 1e-12)


def _linearised(bunches: Bunches, theta: Floats, exponent: float, pivot: float) -> tuple[Floats, Floats]:
    """Design (owners, 5) and the targets less what does not depend on the coefficients at this point."""
    curve = _curve(theta, exponent, pivot)
    num_owners = len(bunches.targets)
    design = np.zeros((num_owners, 5))
    design[:, 0] = np.bincount(bunches.owner, bunches.counts, minlength=num_owners)
    weights = curve.weights(bunches.features)
    slope = bunches.counts * curve.slope_at(weights)
    for column in (PREFILL, DECODE, CONTEXT):
        design[:, column + 1] = np.bincount(bunches.owner, slope * bunches.features[:, column], minlength=num_owners)
    if bunches.has_gaps:
        design[:, 4] = bunches.gaps
    if exponent == 1.0:
        return design, bunches.targets
    constant = bunches.counts * curve.bend(weights) - slope * weights
    return design, bunches.targets - np.bincount(bunches.owner, constant, minlength=num_owners)


def _weighted(bunches: Bunches, design: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Rows of relative errors: divided by the target, times the root of the owner's weight."""
    factor = np.sqrt(bunches.weights) / bunches.targets
    return design * factor[:, None], values * factor


def _condition(rows: Floats) -> float:
    """Condition number of the columns that carry anything, each scaled to length 1; ∞ with fewer rows than columns."""
    lengths = np.sqrt((rows**2).sum(axis=0))
    used = rows[:, lengths > 0] / lengths[lengths > 0]
    if used.shape[1] == 0 or used.shape[0] < used.shape[1]:
        return float("inf")
    singular = np.linalg.svd(used, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")
