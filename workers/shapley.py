"""Splits the cost of steps over the sequences in them: Shapley value, tokens, or tokens capped at the solo cost.

Called by ``workers.attribution``. It must never know an attempt, a meter or a clock.

The Shapley value of a cost game is a sequence's marginal cost, averaged over all orders of arrival. For an affine
step cost ``base + ΣW`` it is ``base/n + W_i`` exactly. For a curved one (``workers.curve``) the base is still split
equally, and the bend by counting coalitions: the few big sequences (prefill chunks) are enumerated, the many small
ones (decodes) are taken as equals of mean weight, so that a coalition is a subset of the big and a *number* of small.
A small one's own weight enters linearly between two probes; the sum is then brought to the step's cost. Against brute
force this stays within about 1 % (``benchmarks/attribution_truth.py``); proportional shares do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from workers.curve import Curve, Floats

POLICIES = ("shapley", "tokens", "solo-capped")

MAX_BIG = 6
"""Sequences of one step that are enumerated one by one (2^6 subsets); heavier ones first."""

BIG_RATIO = 2.0
"""A sequence this many times heavier than the step's median is big."""

MAX_SIZES = 48
"""Coalition sizes of small sequences that are evaluated; between them sizes are grouped (every size below 17)."""

MAX_FILL_ROUNDS = 12
"""Rounds in which solo-capped passes on what the cap took off; what is left goes by slack."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Steps in flat arrays: row r belongs to step ``owner[r]``; rows of a step lie together, steps in order."""

    features: Floats
    """Prefill (recomputed included), decode and context tokens, shape (rows, 3)."""
    owner: NDArray[np.int64]
    num_steps: int

    @property
    def tokens(self) -> Floats:
        """Computed tokens of each row."""
        return np.asarray(self.features[:, 0] + self.features[:, 1])

    def sums(self, values: Floats) -> Floats:
        """Sum of row values of each step, shape (num_steps,)."""
        return np.asarray(np.bincount(self.owner, values, minlength=self.num_steps), dtype=np.float64)

    def step_features(self) -> Floats:
        """Features summed over each step's rows, shape (num_steps, 3)."""
        return np.stack([self.sums(self.features[:, column]) for column in range(3)], axis=1)


def split(batch: Batch, curve: Curve, policy: str = "shapley") -> Floats:
    """Cost of each row, shape (rows,); the rows of a step add up to the step's cost.

    A row without tokens is a null player and pays nothing, unless nobody in its step has any.
    Raises: ValueError on an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    costs = curve.costs(batch.step_features())
    tokens = batch.tokens
    is_empty = batch.sums(tokens)[batch.owner] <= 0
    plays = (tokens > 0) | is_empty
    num_players = np.maximum(batch.sums(plays.astype(np.float64)), 1)[batch.owner]
    if policy == "shapley":
        weights = np.where(plays, curve.weights(batch.features), 0.0)
        shares = np.where(plays, curve.base / num_players, 0.0)
        shares += weights if curve.exponent == 1.0 else _bent(batch, curve, weights, plays)
    else:
        by_tokens = np.where(is_empty, 1 / num_players, tokens / np.maximum(batch.sums(tokens)[batch.owner], 1e-300))
        shares = by_tokens * costs[batch.owner]
        if policy == "solo-capped":
            solo = np.where(plays, curve.base + curve.bend(curve.weights(batch.features)), 0.0)
            shares = _capped(batch, shares, solo, by_tokens, costs)
    return _brought_to(batch, shares, costs)


def exact_shapley(costs_of_subsets: Floats) -> Floats:
    """Brute force: ``costs_of_subsets[mask]`` is v of the players in the bit mask, v(0) = 0; shape (players,).

    Takes 2^players values; for tests and benchmarks, up to about 16 players.
    """
    size = len(costs_of_subsets)
    num_players = size.bit_length() - 1
    masks = np.arange(size)
    coalition_sizes = np.zeros(size, dtype=np.int64)
    for player in range(num_players):
        coalition_sizes += masks >> player & 1
    factor = np.array([_size_weight(num_players, count) for count in range(num_players)])
    shares = np.empty(num_players)
    for player in range(num_players):
        without = masks[masks >> player & 1 == 0]
        gain = costs_of_subsets[without | 1 << player] - costs_of_subsets[without]
        shares[player] = float(factor[coalition_sizes[without]] @ gain)
    return shares


def _size_weight(num_players: int, size: int) -> float:
    """size!·(n−1−size)!/n!, the Shapley weight of one coalition of ``size`` others."""
    return float(
        np.exp(
            _log_factorials(num_players)[size]
            + _log_factorials(num_players)[num_players - 1 - size]
            - _log_factorials(num_players)[num_players]
        )
    )


@lru_cache(maxsize=1024)
def _log_factorials(largest: int) -> Floats:
    """log k! for k = 0..largest."""
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, largest + 1, dtype=np.float64)))))


@lru_cache(maxsize=4096)
def _counting(num_small: int, num_big: int) -> tuple[Floats, Floats]:
    """Coalition sizes j of ``num_small`` equals, shape (sizes,), and the Shapley weight of (b big, j small) coalitions.

    Weights have shape (num_big + 1, sizes): C(num_small, j)·(b+j)!·(n−1−b−j)!/n! with n − 1 = num_small + num_big
    other players. Many sizes are grouped: a group's mean size stands for all of it.
    """
    num_players = num_small + num_big + 1
    logs = _log_factorials(num_players)
    sizes = np.arange(num_small + 1)
    choose = logs[num_small] - logs[sizes] - logs[num_small - sizes]
    big = np.arange(num_big + 1)[:, None]
    weights = np.exp(choose + logs[big + sizes] + logs[num_players - 1 - big - sizes] - logs[num_players])
    if len(sizes) <= MAX_SIZES:
        return sizes.astype(np.float64), weights
    edges = np.unique(np.concatenate((np.arange(17), np.geomspace(17, num_small + 1, MAX_SIZES - 16).astype(int))))
    starts = edges[:-1]
    means = np.add.reduceat(sizes.astype(np.float64), starts) / np.diff(np.append(starts, len(sizes)))
    return means, np.add.reduceat(weights, starts, axis=1)


@lru_cache(maxsize=64)
def _subsets(num_big: int) -> NDArray[np.int64]:
    """Membership of each subset of ``num_big``, shape (2^num_big, num_big)."""
    members: NDArray[np.int64] = np.arange(2**num_big)[:, None] >> np.arange(num_big) & 1
    return members


def _bent(batch: Batch, curve: Curve, weights: Floats, plays: NDArray[np.bool_]) -> Floats:
    """Shapley value of the bend for every row, steps one by one."""
    shares = np.zeros(len(weights))
    starts = np.searchsorted(batch.owner, np.arange(batch.num_steps + 1))
    for begin, end in pairwise(starts):
        rows = begin + np.flatnonzero(plays[begin:end])
        if len(rows):
            shares[rows] = bent_step(curve, weights[rows])
    return shares


def bent_step(curve: Curve, weights: Floats) -> Floats:
    """Shapley value of ``curve.bend`` in one step by the counting scheme; shape and order of ``weights``."""
    if len(weights) == 1:
        return curve.bend(weights)
    order = np.argsort(-weights)
    threshold = BIG_RATIO * float(np.median(weights))
    num_big = int(np.count_nonzero(weights[order[:MAX_BIG]] > threshold))
    if len(weights) <= MAX_BIG:
        num_big = len(weights)  # few enough to enumerate all: exact
    big, small = weights[order[:num_big]], weights[order[num_big:]]
    shares = np.empty(len(weights))
    mean_small = float(small.mean()) if len(small) else 0.0
    if len(small):
        probes = np.array((small.min(), small.max()))
        low, high = _marginals(curve, probes, big, len(small) - 1, mean_small)
        span = probes[1] - probes[0]
        position = (small - probes[0]) / span if span > 0 else np.zeros(len(small))
        shares[order[num_big:]] = low + (high - low) * position
    for index in range(num_big):
        others = np.delete(big, index)
        shares[order[index]] = _marginals(curve, big[index : index + 1], others, len(small), mean_small)[0]
    total = float(curve.bend(weights.sum(keepdims=True))[0])
    summed = float(shares.sum())
    return shares * (total / summed) if summed > 0 else np.full(len(weights), total / len(weights))


def _marginals(curve: Curve, probes: Floats, big: Floats, num_small: int, mean_small: float) -> Floats:
    """Expected marginal bend of each probe weight over coalitions of ``big`` and ``num_small`` equals."""
    sizes, size_weights = _counting(num_small, len(big))
    members = _subsets(len(big))
    present = (members @ big)[:, None] + sizes * mean_small
    factor = size_weights[members.sum(axis=1)]
    before = float((factor * curve.bend(present)).sum())
    return np.array([float((factor * curve.bend(present + probe)).sum()) - before for probe in probes])


def _capped(batch: Batch, shares: Floats, solo: Floats, by_tokens: Floats, costs: Floats) -> Floats:
    """Nobody above ``solo``; what the cap takes off is passed on by tokens, and in the end by slack.

    The slack always suffices where solo costs add up to the step's cost or more, which holds for every curve with an
    exponent of at most 1.
    """
    for _ in range(MAX_FILL_ROUNDS):
        shares = np.minimum(shares, solo)
        missing = costs - batch.sums(shares)
        if not bool(np.any(missing > 1e-12 * np.maximum(costs, 1e-300))):
            return shares
        open_tokens = np.where(shares < solo, by_tokens, 0.0)
        totals = batch.sums(open_tokens)
        shares = shares + open_tokens * (missing / np.maximum(totals, 1e-300))[batch.owner]
    shares = np.minimum(shares, solo)
    slack = solo - shares
    missing = costs - batch.sums(shares)
    return np.asarray(shares + slack * np.minimum(missing / np.maximum(batch.sums(slack), 1e-300), 1)[batch.owner])


def _brought_to(batch: Batch, shares: Floats, costs: Floats) -> Floats:
    """Shares scaled so that each step's add up to its cost (they differ by rounding only)."""
    sums = batch.sums(shares)
    return np.asarray(shares * np.divide(costs, sums, out=np.ones_like(sums), where=sums > 0)[batch.owner])
