"""A measured window is split to the millijoule, on every path."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.attribution import SCALE_MAX, SCALE_MIN, Attribution, WindowSplit
from workers.engine_model import EngineModel
from workers.shapley import POLICIES
from workers.step_curves import StepCurves
from workers.steps import StepRecord
from workers.types import Phase

PRIOR = StepCurves(time_s=(6e-3, 3e-5, 9e-5, 0.0), energy_joules=(3.0, 0.02, 0.07, 0.0), idle_watts=100.0, source="x")


def step(
    started_s: float, ended_s: float, rows: list[tuple[str | None, int, int, int]], context: int = 0
) -> StepRecord:
    """Rows of (payer, prefill, decode, recomputed)."""
    columns = [np.array([row[column] for row in rows], dtype=np.int64) for column in (1, 2, 3)]
    return StepRecord(
        step=0, started_s=started_s, ended_s=ended_s, payers=tuple(row[0] for row in rows), prefill_tokens=columns[0],
        decode_tokens=columns[1], context_tokens=np.full(len(rows), context, dtype=np.int64),
        recomputed_tokens=columns[2],
    )  # fmt: skip


def decodes(started_s: float, ended_s: float, *payers: str | None) -> StepRecord:
    return step(started_s, ended_s, [(payer, 0, 1, 0) for payer in payers])


def attribution(
    *, policy: str = "shapley", num_gpus: int = 1, max_rows: int = 10_000, known: bool = True
) -> Attribution:
    model = EngineModel(prior=PRIOR if known else None)
    return Attribution(model=model, num_gpus=num_gpus, policy=policy, max_pending_rows=max_rows)


def assert_adds_up(split: WindowSplit, meter_mj: int) -> None:
    shares_mj = sum(energy_mj for energy_mj, _ in split.shares.values())
    assert meter_mj == split.idle_mj + split.overhead_mj + split.unattributed_mj + shares_mj
    assert split.busy_gpu_us == split.overhead_gpu_us + sum(gpu_us for _, gpu_us in split.shares.values())
    assert split.unattributed_mj == sum(amount for _, amount in split.causes)
    assert split.idle_mj >= 0
    assert split.overhead_mj >= 0
    assert all(energy_mj >= 0 and gpu_us >= 0 for energy_mj, gpu_us in split.shares.values())


ROW = st.tuples(
    st.sampled_from(["a", "b", "c", "d", None]), st.integers(0, 600), st.integers(0, 2), st.sampled_from([0, 0, 0, 40])
)
STEP = st.tuples(st.floats(-3, 21), st.floats(0, 2), st.lists(ROW, max_size=6), st.integers(0, 5_000))


@pytest.mark.parametrize("policy", POLICIES)
@given(
    steps=st.lists(STEP, max_size=14),
    meters=st.lists(st.integers(-200_000, 5_000_000), min_size=4, max_size=4),
    known=st.booleans(),
    max_rows=st.sampled_from([5, 10_000]),
)
@settings(max_examples=60, deadline=None)
def test_any_window_adds_up(
    policy: str, steps: list[tuple[float, float, list[tuple[str | None, int, int, int]], int]], meters: list[int],
    known: bool, max_rows: int,
) -> None:  # fmt: skip
    """Cut, late, overlapping, empty and overflowed steps; meters that stand, jump and run backwards."""
    under_test = attribution(policy=policy, num_gpus=4, max_rows=max_rows, known=known)
    waiting = sorted((step(s, s + d, rows, context) for s, d, rows, context in steps), key=lambda each: each.ended_s)
    waiting_late = waiting[::4]
    for index, meter_mj in enumerate(meters):
        ended_s = 5.0 * (index + 1)
        for each in list(waiting):
            if each.started_s < ended_s and (index == 3 or each not in waiting_late):
                under_test.add_step(each)
                waiting.remove(each)
        split = under_test.close_window(started_s=ended_s - 5, ended_s=ended_s, meter_mj=meter_mj)
        assert_adds_up(split, meter_mj)
        assert known is False or SCALE_MIN <= split.scale_ratio <= SCALE_MAX


def test_a_clean_window_charges_everything() -> None:
    """Idle for the gaps, the rest to the requests by their steps."""
    under_test = attribution()
    under_test.add_step(decodes(0.0, 1.0, "a", "b"))
    under_test.add_step(decodes(1.0, 2.0, "a"))
    meter_mj = 300_000 + 3_140 + 3_070
    split = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=meter_mj)
    assert_adds_up(split, meter_mj)
    assert (300_000, 0, 0, 1.0) == (split.idle_mj, split.overhead_mj, split.unattributed_mj, split.scale_ratio)
    assert {"a": (1_570 + 3_070, 1_500_000), "b": (1_570, 500_000)} == split.shares
    assert (6_210, 2) == (split.predicted_mj, split.num_steps)
    assert {"a": 2, "b": 1} == split.tokens


def test_gpu_time_is_measured_and_counts_every_gpu() -> None:
    """Step seconds × GPUs, whatever the model thought of them."""
    under_test = attribution(num_gpus=4)
    under_test.add_step(decodes(0.0, 0.25, "a", None))
    split = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=475_000 + 3_140)
    assert (1_000_000, 500_000, 500_000) == (split.busy_gpu_us, split.overhead_gpu_us, split.shares["a"][1])


@pytest.mark.parametrize(("ratio", "scale", "sign"), [(0.5, SCALE_MIN, -1), (2.0, SCALE_MAX, 1)])
def test_the_clamp_leaves_the_rest_unattributed(ratio: float, scale: float, sign: int) -> None:
    """Beyond 0.7..1.4 the window is not believed; half as much as predicted makes it negative."""
    under_test = attribution()
    for index in range(100):
        under_test.add_step(decodes(index * 0.05, (index + 1) * 0.05, *"abcdefgh"))
    predicted_mj = 100 * 3_560
    meter_mj = round(ratio * predicted_mj)
    split = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=meter_mj, learn=False)
    assert_adds_up(split, meter_mj)
    assert scale == split.scale_ratio
    assert sign * split.unattributed_mj > 0
    assert split.unattributed_mj == meter_mj - round(scale * predicted_mj)
    assert ["clamped"] == [cause for cause, _ in split.causes]


def test_uncertain_idle_watts_absorb_what_they_can() -> None:
    """Ten watts more than learned over the gaps are idle, not a mystery."""
    under_test = attribution()
    under_test.add_step(decodes(0.0, 1.0, "a"))
    meter_mj = 400_000 + 30_000 + 3_070
    split = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=meter_mj, learn=False)
    assert 0 == split.unattributed_mj
    assert split.idle_mj > 400_000


def test_an_idle_window_above_its_band_is_unattributed() -> None:
    """A stranger on the GPU must not become idle by itself."""
    split = attribution().close_window(started_s=0.0, ended_s=5.0, meter_mj=2_000_000)
    assert (550_000, 1_450_000) == (split.idle_mj, split.unattributed_mj)
    assert (("idle_excess", 1_450_000),) == split.causes


def test_idle_watts_are_learned_from_the_first_idle_window() -> None:
    """All of it is idle then; from there on it has a band."""
    under_test = attribution(known=False)
    first = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=600_000)
    assert (600_000, 0) == (first.idle_mj, first.unattributed_mj)
    second = under_test.close_window(started_s=5.0, ended_s=10.0, meter_mj=900_000)
    assert (660_000, 240_000) == (second.idle_mj, second.unattributed_mj)


def test_an_unlearned_window_is_charged_by_time() -> None:
    """No level is known, so no clamp applies; it is named, and the next one is judged."""
    under_test = attribution(known=False)
    under_test.add_step(decodes(0.0, 5.0, "a", "b"))
    split = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=2_000_000)
    assert {"a": (1_000_000, 2_500_000), "b": (1_000_000, 2_500_000)} == split.shares
    assert (("curves_unlearned", 0),) == split.causes


def test_late_steps_of_an_unlearned_engine_do_not_multiply() -> None:
    """A short step measured beside a long late one shares what was measured with it."""
    under_test = attribution(known=False)
    under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=500_000)
    under_test.add_step(decodes(0.0, 4.9, "a"))
    under_test.add_step(decodes(5.0, 5.1, "b"))
    split = under_test.close_window(started_s=5.0, ended_s=10.0, meter_mj=540_000)
    assert_adds_up(split, 540_000)
    assert sum(energy_mj for energy_mj, _ in split.shares.values()) <= 540_000
    assert 0 == split.unattributed_mj


def test_late_steps_are_taken_from_unattributed() -> None:
    """Their window was closed without them; both windows add up, and together nothing is unattributed."""
    under_test = attribution()
    first_mj, second_mj = 400_000 + 100 * 3_070, 500_000
    first = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=first_mj, learn=False)
    for index in range(100):
        under_test.add_step(decodes(index * 0.01, (index + 1) * 0.01, "a"))
    second = under_test.close_window(started_s=5.0, ended_s=10.0, meter_mj=second_mj)
    assert_adds_up(first, first_mj)
    assert_adds_up(second, second_mj)
    assert (307_000, 1_000_000) == second.shares["a"]
    assert ("late_steps", -307_000) in second.causes
    assert {"a": 100} == second.tokens


def test_work_without_a_payer_and_recomputed_work_are_overhead() -> None:
    """Warm-up has nobody, a recomputation only somebody who paid already."""
    under_test = attribution()
    under_test.add_step(step(0.0, 1.0, [("a", 100, 0, 100), (None, 200, 0, 0)]))
    meter_mj = 400_000 + 3_000 + 8_000
    split = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=meter_mj)
    assert_adds_up(split, meter_mj)
    assert 2_750 == split.shares["a"][0]
    assert 8_250 == split.overhead_mj
    assert {"a": 200} == split.tokens


def test_tokens_count_with_the_window_that_ends_the_step() -> None:
    """A cut step has computed its tokens once."""
    under_test = attribution()
    under_test.add_step(decodes(4.0, 6.0, "a", "b", None))
    first = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=400_000)
    second = under_test.close_window(started_s=5.0, ended_s=10.0, meter_mj=400_000)
    assert ({}, {"a": 1, "b": 1}) == (first.tokens, second.tokens)
    assert first.shares["a"][1] == second.shares["a"][1] == pytest.approx(1_000_000 / 3, abs=1)


def test_overflowed_steps_are_named_and_their_payers_told() -> None:
    """Their energy is unattributed, their time overhead; they teach nothing."""
    under_test = attribution(max_rows=2)
    under_test.add_step(decodes(0.0, 1.0, "a", "b"))
    under_test.add_step(decodes(1.0, 2.0, "b", "c"))
    meter_mj = 300_000 + 2 * 3_140
    split = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=meter_mj)
    assert_adds_up(split, meter_mj)
    assert {"b", "c"} == split.overflowed
    assert ("rows_overflow", 3_140) in split.causes
    assert (1_000_000, 1, 2) == (split.overhead_gpu_us, under_test.overflowed_steps_total, split.num_steps)


def test_a_window_is_predicted_with_what_was_known_before_it() -> None:
    """Steps of the open window keep their prediction while the model learns from the closed one."""
    under_test = attribution()
    under_test.add_step(decodes(0.0, 5.0, "a"))
    under_test.add_step(decodes(5.0, 10.0, "a"))
    before_mj, _ = under_test.provisional("a")
    assert 2 * 3_070 == before_mj
    under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=4_000)
    assert (3_070, 5_000_000) == under_test.provisional("a")


def test_a_failed_fit_costs_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window was booked before; the coefficients stay, and the failure is counted."""

    def fails(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    under_test = attribution()
    monkeypatch.setattr(under_test._model, "observe_window", fails)
    under_test.add_step(decodes(0.0, 1.0, "a"))
    split = under_test.close_window(started_s=0.0, ended_s=5.0, meter_mj=403_070)
    assert_adds_up(split, 403_070)
    assert (1, False) == (under_test.failed_fits_total, under_test.has_pending("a"))


def test_a_lost_meter_is_stood_in_for_by_the_model() -> None:
    """Idle watts and steps, as of now."""
    under_test = attribution()
    under_test.add_step(decodes(0.0, 1.0, "a"))
    assert 400_000 + 3_070 == under_test.predicted_mj(started_s=0.0, ended_s=5.0)


def test_an_unknown_policy_is_refused() -> None:
    """Before anything is metered by it."""
    with pytest.raises(ValueError, match="policy must be one of"):
        attribution(policy="fair")


def test_a_window_that_nobody_watched_is_empty() -> None:
    """It can be booked with any energy as unattributed."""
    nothing = WindowSplit.of_nothing()
    assert_adds_up(nothing, 0)


# -- an engine that does not serve


def split(**values: object) -> WindowSplit:
    fields: dict[str, object] = {"idle_mj": 500, "overhead_mj": 30, "unattributed_mj": 0, **values}
    return replace(WindowSplit.of_nothing(), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("unattributed_mj", "phase", "expected"),
    [
        (70, Phase.SERVING, (500, 30, 70)),
        (70, Phase.PARKED, (570, 30, 0)),
        (70, Phase.STARTING, (0, 600, 0)),
        (-70, Phase.PARKED, (430, 30, 0)),
        (-70, Phase.STARTING, (0, 460, 0)),
        (-800, Phase.PARKED, (0, 30, -300)),
        (-800, Phase.STARTING, (0, 30, -300)),
        (0, Phase.PARKED, (500, 30, 0)),
    ],
)
def test_what_nobody_is_charged_for_has_one_account_by_phase(
    unattributed_mj: int, phase: Phase, expected: tuple[int, int, int]
) -> None:
    """Parked: idle. Starting: overhead, its idle part too. Only what tail steps were charged beyond it is left over."""
    given_split = split(unattributed_mj=unattributed_mj, causes=(("idle_excess", unattributed_mj),))
    found = given_split.of(phase)
    assert expected == (found.idle_mj, found.overhead_mj, found.unattributed_mj)
    assert sum(expected) == given_split.idle_mj + given_split.overhead_mj + given_split.unattributed_mj
    if phase is not Phase.SERVING:
        assert found.unattributed_mj == sum(mj for _, mj in found.causes)
