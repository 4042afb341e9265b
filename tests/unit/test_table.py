"""What follows from a worker's words and credit: every derived cell by hand."""

import math

import numpy as np
import pytest

from scheduler.core import table
from scheduler.core.table import BACKLOG_S, LEAST_BACKLOG_TOKENS, NUM_ROWS, STEP_PROMPT_TOKENS, Row, write

FIXED = [3.0, 50.0, 1000.0, 20.0, 8.0, 0.01, 1e-4, 1e-3, 1e-6]
"""Three foreign sequences, 50 foreign tokens; room for 1,000 tokens, 20 sequences and 8 attempts; a curve."""
UNTOUCHED = -7.5
OWNED = [2, 4, 300, 70, 500, 900, 100, 200]


def cells(owned: list[int], fixed: list[float]) -> dict[int, float]:
    whole = np.full((NUM_ROWS, 3), UNTOUCHED)
    whole[table.FIXED_ROWS, 1] = fixed
    write(whole, 1, np.array(owned, dtype=np.int64))
    assert set(np.flatnonzero(whole[:, 1] != UNTOUCHED)) == {
        *range(table.FIXED_ROWS.start, table.FIXED_ROWS.stop),
        *range(table.WRITTEN_ROWS.start, table.WRITTEN_ROWS.stop),
    }
    assert (whole[:, [0, 2]] == UNTOUCHED).all()
    return dict(enumerate(whole[:, 1].tolist()))


def test_rows_are_numbered_once_and_without_gaps() -> None:
    """A number used twice would overwrite a neighbour."""
    assert list(range(NUM_ROWS)) == sorted(Row)


def test_what_is_left_is_the_room_less_what_is_owned_or_foreign() -> None:
    """By kind, and prompts by band."""
    found = cells(OWNED, FIXED)
    assert OWNED == [found[row] for row in range(table.OWNED_ROWS.start, table.OWNED_ROWS.stop)]
    room = BACKLOG_S / 1e-4
    assert [room - 100, room - 200, room - 300, 50.0, 13.0, 6.0] == pytest.approx(
        [found[row] for row in range(table.LEFT_ROWS.start, table.LEFT_ROWS.stop)]
    )
    assert [room, room, room, 1000.0, 20.0, 8.0] == pytest.approx(
        [found[row] for row in range(table.ROOM_ROWS.start, table.ROOM_ROWS.stop)]
    )


def test_an_idle_worker_has_room_for_anything_and_a_step_to_start() -> None:
    """Whatever a bound overstates."""
    found = cells([0] * 8, FIXED)
    assert [math.inf] * 3 == [found[row] for row in (Row.KV_LEFT, Row.SEQUENCES_LEFT, Row.ATTEMPTS_LEFT)]
    assert (0.01, 0.01, -math.inf) == (found[Row.STEP_S], found[Row.START_S], found[Row.PROMPTS_S])


def test_times_are_those_of_the_curve() -> None:
    """A step, a prompt token with its share of a step, the prompts before each band."""
    found = cells(OWNED, FIXED)
    step_s = 0.01 + 4 * 1e-3 + 500 * 1e-6
    token_s = 1e-4 + step_s / STEP_PROMPT_TOKENS
    assert [step_s, 0.0, token_s, 100 * token_s, 200 * token_s, 300 * token_s, 300 * 1e-4, 4 * 1e-3] == pytest.approx(
        [found[row] for row in range(Row.STEP_S, Row.DECODES_S + 1)]
    )


def test_a_slow_or_timeless_worker_still_has_a_bound() -> None:
    """Two steps, however long; something finite where prompts take no time."""
    slow = cells(OWNED, [*FIXED[:6], 1.0, *FIXED[7:]])
    assert slow[Row.FIRST_BACKLOG_ROOM] == LEAST_BACKLOG_TOKENS
    assert math.isfinite(cells(OWNED, [*FIXED[:6], 0.0, *FIXED[7:]])[Row.THIRD_BACKLOG_LEFT])
