"""What a person reads of a sweep: figures, knee, balance, what is missing, comparisons, the plan."""

import re

import pytest

from scheduler.bench import sweep_screen
from scheduler.bench.report import Slo
from scheduler.bench.sweep import document_of
from scheduler.bench.sweep_plan import Sweep
from scheduler.bench.sweep_report import Measured
from scheduler.intervals import Interval, mean_of
from tests.sweep_words import measured, sweep_of, variant, void

RISE = {1.0: 1.0, 2.0: 4.0, 3.0: 5.0, 5.0: 5.5}
SLO = Slo(ttft_s=1.0)


def shown(capsys: pytest.CaptureFixture[str], sweep: Sweep, points: list[Measured]) -> str:
    """Words on standard output, each run of spaces as one."""
    sweep_screen.show(document_of(sweep, points), to_stderr=False)
    captured = capsys.readouterr()
    assert "" == captured.err
    return re.sub(r"\s+", " ", captured.out)


def full(sweep: Sweep, setting: str = "a") -> list[Measured]:
    return [
        measured(sweep, setting, rate, repeat, per_joule=RISE[rate], good_ratio=1.0 if rate < 5 else 0.7)
        for rate in sweep.rates
        for repeat in range(sweep.repeats)
    ]


def test_a_curve_is_told_with_its_knee_and_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    """And the grade in words: nobody takes modelled watts for measured ones."""
    sweep = sweep_of(rates=tuple(RISE), repeats=2, slo=SLO)
    text = shown(capsys, sweep, full(sweep))
    assert "a · tiny at http://one · watts of grade D (modelled or simulated, no device was read)" in text
    assert "2 40 ± 0 100.0% 80 ± 0 41 4 ± 0 100 ms 20 ms 2/2" in text
    assert "knee 2/s at 4 good tokens/J, 0.42 of the rise above the chord; by repeat: 2, 2" in text
    assert "SLO largest rate 3/s (0.99 of requests with ttft ≤ 1 s)" in text
    assert "overall" in text
    assert "idle 51% of the most watts" in text
    assert "8 of 8 points · complete" in text


def test_the_balance_of_each_point_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Requests + idle + overhead + unattributed + in flight = counter; and idle watts before and after."""
    sweep = sweep_of(rates=(1.0,))
    text = shown(capsys, sweep, [measured(sweep)])
    assert "requests idle overhead unattributed in flight = sum counter difference idle W before after" in text
    assert "1 1 60 30 8 2 0 100 100 0 40 42" in text


def test_a_bare_server_says_what_is_missing_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A dash, never a zero."""
    sweep = sweep_of(rates=(1.0, 2.0))
    notes = ("watts were not measured: give a meter",)
    points = [
        measured(sweep, "a", rate, per_joule=None, steady=None, idle=(None, None), joules=None, missing=notes)
        for rate in sweep.rates
    ]
    text = shown(capsys, sweep, points)
    assert "1 40 100.0% – – – 100 ms 20 ms 1/1" in text
    assert "1 1 – – – – – – – – – –" in text
    assert 1 == text.count("watts were not measured: give a meter (2 of 2 points)")
    assert "knee none: 0 rates have a value" in text
    assert "SLO none given (--slo-ttft-s" in text


def test_void_and_unsteady_runs_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason of the verdict."""
    sweep = sweep_of(rates=(1.0, 2.0), slo=SLO)
    points = [void(measured(sweep, "a", 1.0)), void(measured(sweep, "a", 2.0), "drift")]
    text = shown(capsys, sweep, points)
    assert "1 – – – 41 – – – 0/1" in text
    assert "1/1 not steady" in text
    assert "✗ client_bound: it was (1 of 2 points)" in text
    assert "SLO no rate keeps it" in text


def test_a_sweep_that_was_cut_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """And a setting of which there is nothing yet says that."""
    sweep = sweep_of(variant("a"), variant("b"))
    text = shown(capsys, sweep, [measured(sweep)])
    assert "1 of 6 points · INCOMPLETE: the same command with the same --json goes on" in text
    assert "b · nothing measured yet" in text


def test_two_settings_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """Over all rates, and rate by rate where there is an interval."""
    sweep = sweep_of(variant("a"), variant("b"), rates=(1.0, 2.0), repeats=3)
    points = [
        measured(sweep, name, rate, repeat, per_joule=value)
        for name, value in (("a", 0.5), ("b", 0.75))
        for rate in sweep.rates
        for repeat in range(3)
    ]
    text = shown(capsys, sweep, points)
    assert "b ÷ a, pair by pair" in text
    assert "good_tokens_per_joule all 1.500 1.500 … 1.500 6 0 better" in text
    assert "good_tokens_per_joule 2 1.500 1.500 … 1.500 3 0 better" in text
    few = shown(capsys, sweep, [point for point in points if point.repeat == 0])
    assert "good_tokens_per_joule all 1.500" in few
    assert "nothing: 2 of the 3 valid pairs that it takes" in few
    assert "good_tokens_per_joule 2" not in few


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (mean_of([12.3456]), "12.35"), (Interval(mean=10, low=9.5, high=10.5, num=3), "10 ± 0.5")],
)
def test_a_mean_and_half_of_its_interval(value: Interval | None, words: str) -> None:
    """Four digits are enough."""
    assert words == sweep_screen.spread(value)


def test_the_plan_is_told_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Six points of a minute, two of them had."""
    sweep = sweep_of(repeats=2, idle_s=10, warmup_s=5, duration_s=30, cooldown_s=5, order="ascending")
    sweep_screen.show_plan(sweep, num_had=2)
    lines = capsys.readouterr().out.splitlines()
    assert ["1", "repeat", "1", "1/s", "a"] == lines[0].split()
    assert "6 points, 2 of them measured; at least 4.0 min to go" == lines[-1]


def test_progress_names_the_point_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """So that data on standard output stays alone."""
    point = sweep_of(order="ascending").points()[1]
    with sweep_screen.progress(point, 1, 3) as (on_state, _):
        on_state("running")
    captured = capsys.readouterr()
    assert "" == captured.out
    assert "[2/3] a at 2/s, repeat 1" in captured.err
    assert "running" in captured.err
