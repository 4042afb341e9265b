"""The engine model learns from windows alone, keeps what it learned, and says when it knows nothing."""

import numpy as np
import pytest

from workers.curve import Curve, Floats
from workers.engine_model import IDLE_BAND_WATTS, MAX_GROUPS, MAX_WINDOWS, NUM_IDLE_MOVES, EngineModel
from workers.step_curves import StepCurves

IDLE_WATTS = 119.0
TRUTH = Curve.affine((3.16, 0.0216, 0.0665, 2e-5))
TIME = Curve.affine((6e-3, 3e-5, 9e-5, 0.0))
LOADS = [(0, 1), (0, 4), (0, 16), (0, 60), (900, 2), (300, 30), (0, 30), (1_500, 1)]


class Device:
    """Burns by a curve, draws idle watts between."""

    def __init__(self, energy: Curve = TRUTH, *, noise: float = 0.0, seed: int = 0) -> None:
        self.energy = energy
        self.noise = noise
        self.rng = np.random.default_rng(seed)

    def window(self, prefill: int, decode: int, *, num_steps: int = 60) -> tuple[Floats, float, int, Floats]:
        """Features, gap, counter's mJ and step times of 5 s."""
        context = np.full(num_steps, self.rng.integers(100, 6_000) * decode)
        features = np.stack((np.full(num_steps, prefill), np.full(num_steps, decode), context), axis=1).astype(float)
        features[num_steps // 2 :, 0] = 0
        times_s = TIME.costs(features)
        gap_s = max(5.0 - float(times_s.sum()), 0.1)
        joules = float(self.energy.costs(features).sum()) + IDLE_WATTS * gap_s
        return features, gap_s, round(joules * 1000 * (1 + self.noise * self.rng.normal())), times_s

    def teach(self, model: EngineModel, load: tuple[int, int]) -> None:
        features, gap_s, meter_mj, times_s = self.window(*load)
        model.observe_window(features, gap_s, meter_mj, times_s=times_s)


def taught(device: Device, *, num_rounds: int = 4, curved: bool = False) -> EngineModel:
    model = EngineModel(curved=curved)
    model.observe_window(np.zeros((0, 3)), 5.0, round(IDLE_WATTS * 5_000))
    for load in LOADS * num_rounds:
        device.teach(model, load)
    return model


def worst_error(model: EngineModel, device: Device) -> float:
    """Largest relative error of a step's predicted energy, over all loads."""
    features = np.array([[prefill, decode, 1_000.0 * decode] for prefill, decode in LOADS])
    return float(np.abs(model.freeze().energy.costs(features) / device.energy.costs(features) - 1).max())


def test_known_coefficients_are_found_from_windows() -> None:
    """Energy, time and idle watts, from sums over 60 steps each."""
    model = taught(Device())
    known = model.freeze()
    assert known.is_learned
    assert not model.is_frozen
    assert known.idle_watts == pytest.approx(IDLE_WATTS, rel=1e-3)
    assert (known.energy.base, known.energy.prefill, known.energy.decode) == pytest.approx(
        (3.16, 0.0216, 0.0665), rel=0.02
    )
    assert (known.time.base, known.time.prefill, known.time.decode) == pytest.approx((6e-3, 3e-5, 9e-5), rel=0.02)
    assert "windows" == model.curves().source


def test_noise_of_two_percent_leaves_steps_within_four() -> None:
    """Refresh of the counter and the device's own noise."""
    device = Device(noise=0.02)
    assert worst_error(taught(device, num_rounds=8), device) < 0.04


def test_a_curve_is_found_where_it_may_be_curved() -> None:
    """A mixture of experts: the affine fit is off where the curved one is not."""
    moe = Device(Curve(base=15.0, prefill=0.27, decode=0.82, context=2e-4, exponent=0.5, pivot=49.0))
    curved, affine = taught(moe, num_rounds=8, curved=True), taught(moe, num_rounds=8)
    assert worst_error(curved, moe) < 0.05 < worst_error(affine, moe)
    assert 0.4 <= curved.freeze().energy.exponent <= 0.6
    assert 1.0 == affine.freeze().energy.exponent


def test_nothing_is_known_at_first() -> None:
    """No level, no idle watts: nothing can be clamped by it."""
    model = EngineModel()
    assert not model.freeze().is_learned
    assert model.idle_watts is None
    assert model.is_frozen
    assert "prior" == model.curves().source


def test_one_window_sets_the_level() -> None:
    """The shape is the time curve's until loads have varied: a device draws about constant watts while it works."""
    device, model = Device(), EngineModel()
    features, gap_s, meter_mj, times_s = device.window(0, 16)
    model.observe_window(features, gap_s, meter_mj, times_s=times_s)
    known = model.freeze()
    assert known.is_learned
    assert model.is_frozen
    predicted_joules = float(known.energy.costs(features).sum()) + known.idle_watts * gap_s
    assert predicted_joules == pytest.approx(meter_mj / 1000, rel=0.05)


def test_a_prior_is_used_at_once() -> None:
    """From an earlier run; its source is kept until windows speak."""
    prior = StepCurves(
        time_s=(6e-3, 3e-5, 9e-5, 0.0), energy_joules=(3.0, 0.02, 0.07, 0.0), idle_watts=100.0, source="yesterday"
    )
    model = EngineModel(prior=prior)
    assert prior == model.curves()
    assert model.freeze().is_learned
    assert 100.0 == model.idle_watts


def test_a_constant_load_freezes_the_shape() -> None:
    """Hours of one load must not wash out what the others taught (persistent excitation)."""
    device = Device(noise=0.01)
    model = taught(device)
    for _ in range(300):
        device.teach(model, (0, 16))
    assert worst_error(model, device) < 0.05


def test_ill_conditioned_windows_change_nothing_once_it_is_identified() -> None:
    """Frozen means frozen: the coefficients are the same objects' values."""
    device = Device()
    model = taught(device)
    before = model.freeze()
    model._windows.clear()
    for _ in range(3):
        device.teach(model, (0, 16))
    assert model.is_frozen
    assert before.energy == model.freeze().energy


def test_a_snapshot_does_not_move() -> None:
    """A window is predicted with what was known before it."""
    device, model = Device(), taught(Device())
    before = model.freeze()
    values = (before.energy, before.time, before.idle_watts)
    for load in LOADS:
        Device(TRUTH.scaled(1.5)).teach(model, load)
    device.teach(model, (0, 4))
    assert values == (before.energy, before.time, before.idle_watts)
    assert values[0] != model.freeze().energy


def test_memory_is_bounded() -> None:
    """Windows and groups of steps, however many there were."""
    device, model = Device(), EngineModel()
    for index in range(MAX_WINDOWS + 40):
        features, gap_s, meter_mj, times_s = device.window(*LOADS[index % len(LOADS)], num_steps=150)
        model.observe_window(features, gap_s, meter_mj, times_s=times_s)
    assert MAX_WINDOWS == len(model._windows)
    assert MAX_GROUPS >= max(len(window.counts) for window in model._windows)


def test_grouping_keeps_counts_and_sums() -> None:
    """Grouped windows are the same windows: steps, cut steps and tokens add up."""
    device, model = Device(), EngineModel()
    features, gap_s, meter_mj, times_s = device.window(300, 30, num_steps=400)
    fractions = np.ones(400)
    fractions[0] = 0.25
    model.observe_window(features, gap_s, meter_mj, times_s=times_s, fractions=fractions)
    seen = model._windows[0]
    assert seen.counts.sum() == pytest.approx(399.25)
    assert 400 == seen.time_counts.sum()
    assert float(seen.time_counts @ seen.times_s) == pytest.approx(float(times_s.sum()))


@pytest.mark.parametrize(("gap_s", "meter_mj"), [(5.0, 0), (5.0, -3), (0.0, 100)])
def test_windows_without_energy_or_time_teach_nothing(gap_s: float, meter_mj: int) -> None:
    """A stuck counter must not teach that idle costs nothing."""
    model = taught(Device())
    before = (model.freeze(), model.idle_watts)
    model.observe_window(np.zeros((0, 3)), gap_s, meter_mj)
    if meter_mj <= 0:
        model.observe_window(np.ones((3, 3)), gap_s, meter_mj)
    assert before == (model.freeze(), model.idle_watts)


def test_idle_watts_follow_slowly_inside_their_band() -> None:
    """A warmer device draws a little more."""
    model = taught(Device())
    for _ in range(40):
        model.observe_window(np.zeros((0, 3)), 5.0, round(125.0 * 5_000))
    assert model.idle_watts == pytest.approx(125.0, abs=0.5)


def test_a_moment_without_steps_teaches_no_idle_watts() -> None:
    """Ten milliseconds after the last step hold its tail: 14 W where the engine idles at 3."""
    model = EngineModel()
    model.observe_window([], 0.010, 140)
    assert model.idle_watts is None
    model.observe_window([], 5.0, 15_000)
    assert 3.0 == model.idle_watts


def test_idle_watts_fall_at_once() -> None:
    """A device cannot draw less than it does: what is below was wrong before."""
    model = taught(Device())
    for _ in range(30):
        model.observe_window(np.zeros((0, 3)), 5.0, round(60.0 * 5_000))
    assert model.idle_watts == pytest.approx(60.0, abs=1.0)


def test_idle_watts_rise_only_after_windows_that_agree() -> None:
    """A stranger on the GPU for a minute is not idle; a new level that stays is."""
    model = taught(Device())
    for index in range(NUM_IDLE_MOVES * 3):
        model.observe_window(np.zeros((0, 3)), 5.0, round((300.0 if index % 2 else 500.0) * 5_000))
    assert model.idle_watts == pytest.approx(IDLE_WATTS, rel=1e-3)
    for _ in range(NUM_IDLE_MOVES):
        model.observe_window(np.zeros((0, 3)), 5.0, round(200.0 * 5_000))
    assert model.idle_watts == pytest.approx(200.0, rel=1e-3)


def test_the_idle_band_has_a_least_width() -> None:
    """A tenth of 3 W would be below what any counter can tell."""
    assert IDLE_BAND_WATTS == EngineModel().idle_band_watts()
    assert taught(Device()).idle_band_watts() == pytest.approx(11.9, rel=1e-2)


PUBLISHED = StepCurves(
    time_s=(7e-3, 3e-5, 8e-5, 0.0), energy_joules=(4.0, 0.02, 0.05, 0.0), idle_watts=60.0,
    source="catalogue: m on 1 × H100", batch_range=(8.0, 691.0),
)  # fmt: skip


def test_a_published_curve_is_told_and_splits_no_joules() -> None:
    """Placement has it at once; a level or an idle draw that nobody measured here may not clamp a bill."""
    model = EngineModel(published=PUBLISHED)
    assert PUBLISHED == model.curves()
    assert not model.freeze().is_learned
    assert model.idle_watts is None
    assert ("curve_published: nothing was measured here yet; catalogue: m on 1 × H100",) == model.health(0)


@pytest.mark.parametrize("level_ratio", [0.5, 1.0, 2.0])
def test_a_published_curve_gives_the_first_window_its_shape(level_ratio: float) -> None:
    """And not its level: another release of the engine burns half or twice as much, by the same curve."""
    truth = Curve.affine(tuple(level_ratio * each for each in PUBLISHED.energy_joules))  # type: ignore[arg-type]
    device, model = Device(truth), EngineModel(published=PUBLISHED)
    model.observe_window(np.zeros((0, 3)), 5.0, round(IDLE_WATTS * 5_000))
    device.teach(model, (0, 16))
    assert model.is_frozen
    assert "windows" == model.curves().source
    assert worst_error(model, device) < 0.03
    assert IDLE_WATTS == pytest.approx(model.idle_watts or 0.0)


def test_windows_take_a_wrong_published_curve_to_the_truth() -> None:
    """It is where the curve begins, not where it ends."""
    wrong = StepCurves(
        time_s=(0.05, 1e-4, 1e-5, 0.0), energy_joules=(30.0, 0.001, 0.7, 0.0), idle_watts=500.0, source="x"
    )
    device, model = Device(), EngineModel(published=wrong, curved=False)
    model.observe_window(np.zeros((0, 3)), 5.0, round(IDLE_WATTS * 5_000))
    for load in LOADS * 4:
        device.teach(model, load)
    assert worst_error(model, device) < 0.05


def test_without_any_curve_its_health_says_so() -> None:
    """Until the first window."""
    model = EngineModel()
    assert ["curve_unknown"] == [word.split(":")[0] for word in model.health(3)]
    Device().teach(model, (0, 16))
    assert () == model.health(3)


def test_more_sequences_than_were_measured_are_extrapolated_and_said() -> None:
    """Its own windows measure up to what they held; an idle worker extrapolates nothing."""
    model = EngineModel(published=PUBLISHED)
    assert "curve_extrapolated: 7 run, and it was measured at 8 to 691" == model.health(7)[-1]
    assert 1 == len(model.health(8)) == len(model.health(0))
    for load in [(0, 4), (0, 16)]:
        Device().teach(model, load)
    assert (0.0, 16.0) == model.curves().batch_range
    assert () == model.health(16)
    assert ("curve_extrapolated: 17 run, and it was measured at 0 to 16",) == model.health(17)
