"""Steps wait for their window: cut by time, bounded in rows, split while the window runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.curve import Curve
from workers.engine_model import Coefficients
from workers.pending_steps import OVERHEAD, SPLIT_ROWS, PendingSteps
from workers.steps import StepRecord

KNOWN = Coefficients(
    energy=Curve.affine((3.0, 0.02, 0.07, 0.0)), time=Curve.affine((6e-3, 3e-5, 9e-5, 0.0)), idle_watts=100.0,
    is_learned=True,
)  # fmt: skip


def step(
    started_s: float, ended_s: float, *payers: str | None, prefill: int = 0, recomputed: int = 0, number: int = 0
) -> StepRecord:
    """Decodes, but for the first row where it prefills or recomputes."""
    size = len(payers)
    columns = {name: np.zeros(size, dtype=np.int64) for name in ("prefill", "decode", "recomputed")}
    columns["decode"][:] = 1
    if size and (prefill or recomputed):
        columns["decode"][0], columns["prefill"][0], columns["recomputed"][0] = 0, prefill, recomputed
    return StepRecord(
        step=number, started_s=started_s, ended_s=ended_s, payers=payers, prefill_tokens=columns["prefill"],
        decode_tokens=columns["decode"], context_tokens=np.zeros(size, dtype=np.int64),
        recomputed_tokens=columns["recomputed"],
    )  # fmt: skip


def pending(max_rows: int = 1_000) -> PendingSteps:
    return PendingSteps(policy="shapley", max_rows=max_rows, coefficients=KNOWN)


def test_a_step_is_cut_by_time() -> None:
    """A quarter before the edge, three quarters after it."""
    steps = pending()
    steps.add(step(4.9, 5.3, "a"))
    first = steps.parts(0.0, 5.0)
    assert [0.25] == pytest.approx(first.inside.tolist())
    assert 4.9 == pytest.approx(first.gap_s(0.0, 5.0))
    steps.settle(5.0)
    assert steps.has("a")
    second = steps.parts(5.0, 10.0)
    assert ([0.75], [0.0]) == (pytest.approx(second.inside.tolist()), second.late.tolist())
    assert 4.7 == pytest.approx(second.gap_s(5.0, 10.0))


def test_what_lies_before_a_closed_window_is_late() -> None:
    """It is charged with the next window, and never twice."""
    steps = pending()
    steps.settle(5.0)
    steps.add(step(4.0, 4.5, "a"))
    steps.add(step(4.8, 5.2, "a"))
    parts = steps.parts(5.0, 10.0)
    assert [0.0, 0.5] == pytest.approx(parts.inside.tolist())
    assert [1.0, 0.5] == pytest.approx(parts.late.tolist())
    steps.settle(10.0)
    assert () == steps.parts(10.0, 15.0).steps
    assert not steps.has("a")


@given(
    edges=st.lists(st.floats(0.1, 20, allow_nan=False), min_size=1, max_size=6, unique=True),
    spans=st.lists(st.tuples(st.floats(0, 19), st.floats(0, 3)), min_size=1, max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_every_step_is_settled_exactly_once(edges: list[float], spans: list[tuple[float, float]]) -> None:
    """Whatever the edges: the parts of a step add up to 1, energy and time with them."""
    steps = pending()
    for index, (start_s, duration_s) in enumerate(sorted(spans)):
        steps.add(step(start_s, start_s + duration_s, f"r{index}"))
    before_s, settled = 0.0, dict.fromkeys((f"r{index}" for index in range(len(spans))), 0.0)
    for edge_s in [*sorted(edges), 30.0]:
        parts, names = steps.parts(before_s, edge_s), steps.names()
        for each, part in zip(parts.steps, parts.inside + parts.late, strict=True):
            settled[str(names[int(each.payers[0])])] += float(part)
        steps.settle(edge_s)
        before_s = edge_s
    assert [1.0] * len(spans) == pytest.approx(list(settled.values()))


def test_overlapping_steps_are_busy_once() -> None:
    """Two steps in the queue of a device: its gaps are where neither ran."""
    steps = pending()
    for start_s, end_s in ((1.0, 3.0), (2.0, 4.0), (2.5, 2.6), (6.0, 7.0)):
        steps.add(step(start_s, end_s, "a"))
    assert 6.0 == pytest.approx(steps.parts(0.0, 10.0).gap_s(0.0, 10.0))


def test_rows_beyond_the_bound_leave_only_sums() -> None:
    """Energy and time of the step are known, its payers are remembered as incomplete, memory is not touched."""
    steps = pending(max_rows=3)
    steps.add(step(0.0, 1.0, "a", "b"))
    steps.add(step(1.0, 2.0, "b", "c"))
    assert 1 == steps.overflow.num_steps
    assert 3.14 * 1_000 == pytest.approx(steps.overflow.predicted_mj)
    assert {"b", "c"} == steps.overflow.payers
    assert steps.has("c")
    steps.settle(5.0)
    assert (0, False) == (steps.overflow.num_steps, steps.has("c"))
    steps.add(step(6.0, 7.0, "b", "c"))
    assert 0 == steps.overflow.num_steps


def test_recomputed_tokens_are_nobodys() -> None:
    """Half of a chunk was computed before: its row pays half, the step costs the same."""
    steps = pending()
    steps.add(step(0.0, 1.0, "a", prefill=100, recomputed=100))
    (only,) = steps.parts(0.0, 5.0).steps
    assert 7_000 == pytest.approx(only.predicted_mj)
    assert [3_500] == pytest.approx(only.energy_mj.tolist())
    assert [0.5] == pytest.approx(only.time_share.tolist())
    assert [200] == only.tokens.tolist()


def test_payers_are_found_again_after_each_window() -> None:
    """Renumbered to those that are left; the overhead stays first."""
    steps = pending()
    steps.add(step(0.0, 1.0, "a", None, "b"))
    steps.add(step(4.5, 5.5, "b", "c", None))
    steps.settle(5.0)
    assert [None, "b", "c"] == steps.names()
    (left,) = steps.parts(5.0, 10.0).steps
    assert [1, 2, OVERHEAD] == left.payers.tolist()
    steps.add(step(5.5, 6.0, "a", "b"))
    assert [3, 1] == steps.parts(5.0, 10.0).steps[1].payers.tolist()


def test_the_same_tuple_of_payers_is_looked_up_anew_after_a_window() -> None:
    """The short cut for equal tuples must not outlive the numbers that it stands for."""
    steps = pending()
    payers = ("b", "a")
    steps.add(step(0.0, 1.0, "x", "y", "z"))
    steps.add(step(1.0, 2.0, *payers))
    one, two = step(3.0, 4.0, "a"), step(6.0, 7.0, "a")
    object.__setattr__(two, "payers", one.payers)
    steps.add(one)
    steps.settle(5.0)
    steps.add(step(5.1, 5.2, "q"))
    steps.add(two)
    names = steps.names()
    assert ["a"] == [names[int(index)] for index in steps.parts(5.0, 10.0).steps[1].payers]


def test_predictions_cover_what_is_left() -> None:
    """Of a cut step only the part beyond the edge."""
    steps = pending()
    steps.add(step(4.5, 5.5, "a", "b"))
    assert (1_570, 0.5) == pytest.approx(steps.predicted("a"))
    steps.settle(5.0)
    assert (785, 0.25) == pytest.approx(steps.predicted("a"))
    assert (0.0, 0.0) == steps.predicted("nobody")


def test_steps_are_split_while_the_window_runs() -> None:
    """Its end must not block the loop for all of them: never more than a bounded number of rows waits."""
    steps = PendingSteps(policy="shapley", max_rows=1 << 19, coefficients=KNOWN)
    payers = tuple(f"r{index}" for index in range(256))
    for index in range(100):
        steps.add(step(index * 0.05, index * 0.05 + 0.04, *payers))
        assert steps._num_raw_rows < SPLIT_ROWS
    assert 100 == len(steps.parts(0.0, 5.0).steps)


def test_a_step_without_time_lies_where_it_ended() -> None:
    """Two stamps can be the same: it is settled once, with the window that its end is in."""
    steps = pending()
    steps.add(step(5.0, 5.0, "a"))
    assert [1.0] == steps.parts(0.0, 5.0).inside.tolist()
    steps.settle(5.0)
    assert () == steps.parts(5.0, 10.0).steps


def test_a_step_that_ends_before_it_starts_has_no_time() -> None:
    """A clock's mistake must not make negative energy."""
    steps = pending()
    steps.add(step(3.0, 2.9, "a"))
    (only,) = steps.parts(0.0, 5.0).steps
    assert 0.0 == only.duration_s


def test_before_a_level_is_known_time_is_the_weight() -> None:
    """One watt each: shares are right, the level comes from the meter."""
    unknown = Coefficients(energy=KNOWN.energy, time=KNOWN.time, idle_watts=0.0, is_learned=False)
    steps = PendingSteps(policy="shapley", max_rows=100, coefficients=unknown)
    steps.add(step(0.0, 2.0, "a"))
    assert [2_000] == pytest.approx(steps.parts(0.0, 5.0).predicted_mj.tolist())
