"""Compiled loops do what is written: each against the same function interpreted, over random columns.

This also finds a loop that numba kept although a constant of another file has changed since (``make clean`` drops it).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scheduler.core import filters, score, slack, table
from scheduler.core.score import NUM_ASKED
from scheduler.core.table import NO_FLOATS, NUM_ROWS, Row
from scheduler.core.table import Floats as Vector

NUM_COLUMNS, NUM_SLOTS = 40, 20
Draw = Callable[[np.random.Generator], tuple[Any, ...]]


def a_table(chance: np.random.Generator) -> Vector:
    """Loads around every bound: some have room, some not, some slack is gone."""
    cells = chance.random((NUM_ROWS, NUM_COLUMNS)) * 10.0 ** chance.integers(-4, 4, size=(NUM_ROWS, 1))
    cells[Row.ORDER] = chance.permutation(NUM_COLUMNS)
    cells[chance.integers(0, NUM_ROWS, 40), chance.integers(0, NUM_COLUMNS, 40)] = 0.0
    cells[Row.SLACK_S] -= cells[Row.SLACK_S].mean()
    cells[table.LEFT_ROWS, ::3] = np.inf
    cells[Row.T_PREFILL_S, ::7] = 0.0
    return cells


def per_column(chance: np.random.Generator) -> Vector:
    return chance.random(NUM_COLUMNS) * 100 if chance.random() < 0.7 else NO_FLOATS


def codes(chance: np.random.Generator, most: int) -> Any:
    return (chance.integers(0, most + 1, NUM_COLUMNS) * (chance.random(NUM_COLUMNS) < 0.6)).astype(np.uint8)


def promises(chance: np.random.Generator) -> tuple[Vector, ...]:
    due = chance.random(NUM_SLOTS) * 4
    due[::5] = np.inf
    return due, chance.integers(0, 20, NUM_SLOTS).astype(float), chance.random(NUM_SLOTS), chance.random(NUM_SLOTS)


def pace(chance: np.random.Generator) -> tuple[float, float, float]:
    return chance.random() / 10, chance.random() / 1000, float(chance.choice([0.0, 700.0, 9_000.0]))


def ask(chance: np.random.Generator) -> tuple[float, ...]:
    """The fields of an Ask."""
    return float(chance.integers(0, 3)), *(float(number) for number in chance.random(NUM_ASKED - 1) * 100)


def draw_score(chance: np.random.Generator) -> tuple[Any, ...]:
    vectors = [per_column(chance) for _ in range(4)]
    terms = np.zeros((len(score.TERMS), NUM_COLUMNS), dtype=np.float32)
    out = np.zeros(NUM_COLUMNS), np.zeros(NUM_COLUMNS, dtype=np.uint8)
    return a_table(chance), codes(chance, 1), ask(chance), *vectors, terms, *out


LOOPS: dict[str, tuple[Any, Draw]] = {
    "write": (table.write, lambda chance: (a_table(chance), 5, chance.integers(0, 3, 8) * 700)),
    "summary": (slack._summary, lambda chance: (*promises(chance), *pace(chance), chance.random())),
    "summarise": (slack._summarise, lambda chance: (a_table(chance), 5, *promises(chance), chance.random())),
    "lateness": (
        slack._lateness_nano,
        lambda chance: (*promises(chance), *pace(chance), 900.0, float(chance.integers(0, 9)), 0.02, chance.random()),
    ),
    "room": (
        filters.without_room,
        lambda chance: (
            a_table(chance), codes(chance, 9), int(chance.integers(0, 3)), 3.0, 2.0, per_column(chance),
            float(chance.choice([1.0, 0.9])),
        ),
    ),
    "slo": (filters.without_slo, lambda chance: (codes(chance, 9), codes(chance, int(chance.integers(1, 4))))),
    "forecast": (score._forecast, lambda chance: (a_table(chance), 7, ask(chance), chance.random() * 50)),
    "slows": (score.slows_nano, lambda chance: (a_table(chance), 7, chance.random())),
    "score": (score.score, draw_score),
    "cheapest": (
        score._cheapest,
        lambda chance: (
            a_table(chance), codes(chance, 1), chance.integers(0, 4, NUM_COLUMNS).astype(float), ask(chance),
            per_column(chance),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_a_compiled_loop_does_what_is_written(name: str) -> None:
    """Results and everything that it writes; where the two differ, try ``make clean`` first."""
    loop, draw = LOOPS[name]
    for seed in range(50):
        given = draw(np.random.default_rng(seed))
        interpreted = copy.deepcopy(given)
        found, expected = loop(*given), loop.py_func(*interpreted)
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=f"seed {seed}") if expected is not None else None
        for mine, other in zip(given, interpreted, strict=True):
            if isinstance(mine, np.ndarray):
                np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6, err_msg=f"seed {seed}")
