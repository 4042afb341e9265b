"""The face of the sweep: exit codes, what reaches the runner, the files it writes and goes on with."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from scheduler.bench import sweep_command
from scheduler.bench.client import TargetError
from scheduler.bench.sweep import document_of
from scheduler.bench.sweep_plan import Sweep
from scheduler.bench.sweep_report import Measured
from tests.sweep_words import measured, void
from workers.errors import MeterUnavailable

app = typer.Typer()
app.command()(sweep_command.sweep)


def invoke(*arguments: str, **environment: str) -> Any:
    env = {"NO_COLOR": "1", "COLUMNS": "200", **environment}
    return CliRunner().invoke(app, list(arguments), env=env)


Change = Callable[[Measured], Measured]


class Runner:
    """In the place of ``run_sweep``: measures at once, at most ``num_points`` of what is asked for."""

    def __init__(
        self, *, num_points: int = 999, change: Change = lambda point: point, ends: BaseException | None = None
    ):
        self.sweeps: list[Sweep] = []
        self.before: list[Sequence[Measured]] = []
        self.num_points, self.change, self.ends = num_points, change, ends

    async def __call__(self, sweep: Sweep, *, before: Sequence[Measured], keep: Any, progress: Any) -> Any:
        self.sweeps.append(sweep)
        self.before.append(before)
        done = list(before)
        for point in sweep.points():
            if len(done) - len(before) >= self.num_points:
                if self.ends is not None:
                    raise self.ends
                return document_of(sweep, done), True
            if point.conditions not in [had.conditions for had in before]:
                done.append(self.change(measured(sweep, point.variant.name, point.rate_rps, point.repeat)))
                keep(document_of(sweep, done))
        return document_of(sweep, done), False


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Runner]:
    def replaced(**options: Any) -> Runner:
        runner = Runner(**options)
        monkeypatch.setattr("scheduler.bench.sweep.run_sweep", runner)
        return runner

    return replaced


# -- exit codes


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, 0),
        ({"change": void}, 7),
        ({"change": lambda point: void(point, "drift")}, 0),
        ({"num_points": 1}, 130),
        ({"num_points": 1, "ends": KeyboardInterrupt()}, 130),
        ({"num_points": 1, "ends": TargetError("nobody there")}, 6),
        ({"num_points": 1, "ends": MeterUnavailable("no counter")}, 6),
        ({"num_points": 1, "ends": OSError("disk full")}, 1),
    ],
    ids=["valid", "void", "overload", "Ctrl-C in a run", "Ctrl-C between", "target", "meter", "disk"],
)
def test_the_exit_code_says_how_it_went(
    runs: Callable[..., Runner], tmp_path: Path, options: dict[str, Any], code: int
) -> None:
    """Whatever it was, the points so far are shown and in the file."""
    runs(**options)
    path = tmp_path / "s.json"
    result = invoke("--rates", "1,2,4", "--json", str(path))
    assert code == result.exit_code
    num_points = 1 if "num_points" in options else 3
    assert num_points == len(json.loads(path.read_text())["points"])
    assert f"{num_points} of 3 points" in result.stdout
    if "ends" in options and options["ends"].args:
        assert str(options["ends"]) in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--rates"),
        (("--rates", "1,x"), "'x' is no rate"),
        (("--rates", "1", "--setting", "a", "--setting", "a"), "two settings have one name"),
        (("--rates", "1", "--setting", "a:speed=2"), "no key 'speed'"),
        (("--rates", "1", "--setting", "a:url=h"), "no http:// or https:// address"),
        (("--rates", "1", "--setting", "a:max_in_flight=0"), "setting a: max_in_flight must be at least 1"),
        (("--rates", "1", "--setting", "a:cv=0"), "setting a: cv must be above 0"),
        (("--rates", "1", "--repeats", "0"), "--repeats"),
        (("--rates", "1", "--order", "sideways"), "--order"),
        (("--rates", "1", "--attainment", "1.1"), "--attainment"),
        (("ftp://x", "--rates", "1"), "no http:// or https:// address"),
        (("--rates", "1", "--json", "a", "--png", "a"), "same file"),
    ],
)
def test_wrong_usage_names_the_option(runs: Callable[..., Runner], arguments: tuple[str, ...], message: str) -> None:
    """Nothing is sent; the exit code is 2."""
    runner = runs()
    result = invoke(*arguments)
    assert (2, []) == (result.exit_code, runner.sweeps)
    assert message in result.stderr


# -- what reaches the runner


def test_options_reach_the_sweep(runs: Callable[..., Runner]) -> None:
    """Keys by the environment."""
    runner = runs()
    result = invoke(
        "http://h/v1", "--rates", "2,1", "--setting", "a", "--setting", "b:service_tier=flex", "--repeats", "3",
        "--order", "ascending", "--input-tokens", "7", "--output-tokens", "9", "--length-spread", "0.5", "--cv", "2",
        "--duration-s", "20", "--warmup-s", "1", "--idle-s", "12", "--cooldown-s", "3", "--seed", "5",
        "--no-exact-output", "--endpoint", "completions", "--model", "m", "--max-in-flight", "8", "--slo-ttft-s", "1",
        "--slo-tpot-s", "0.2", "--attainment", "0.95", "--metrics-url", "http://m", "--local-meter", "nvml",
        "--gpu", "GPU-1",
        JOULEWAY_API_KEY="sk-1", JOULEWAY_ADMIN_KEY="ak-1",
    )  # fmt: skip
    assert 0 == result.exit_code, result.stderr
    (sweep,) = runner.sweeps
    first, second = sweep.variants
    assert ((1.0, 2.0), 3, "ascending", 5) == (sweep.rates, sweep.repeats, sweep.order, sweep.seed)
    assert (20, 1, 12, 3) == (sweep.duration_s, sweep.warmup_s, sweep.idle_s, sweep.cooldown_s)
    assert (1, 0.2, None, 0.95) == (sweep.slo.ttft_s, sweep.slo.tpot_s, sweep.slo.e2e_s, sweep.attainment_ratio)
    assert ("http://h", "sk-1", "completions", "m", False) == (
        first.target.base_url, first.target.api_key, first.target.endpoint, first.target.model,
        first.target.exact_output,
    )  # fmt: skip
    assert (7, 9, 0.5) == (first.lengths.input_tokens, first.lengths.output_tokens, first.lengths.spread_ratio)
    assert ("http://m", "ak-1", "nvml", ("GPU-1",)) == (
        first.source.metrics_url, first.source.admin_key, first.source.local_meter, first.source.gpu_uuids
    )  # fmt: skip
    assert (2, 8, None, "flex") == (
        first.cv, first.max_in_flight, first.target.service_tier, second.target.service_tier
    )  # fmt: skip


def test_without_a_setting_there_is_one_curve(runs: Callable[..., Runner]) -> None:
    """Of the options as they are."""
    runner = runs()
    assert 0 == invoke("--rates", "1").exit_code
    assert ["default"] == [variant.name for variant in runner.sweeps[0].variants]


# -- files


def test_the_same_command_goes_on(runs: Callable[..., Runner], tmp_path: Path) -> None:
    """And once more measures nothing."""
    path = tmp_path / "s.json"
    runs(num_points=2)
    assert 130 == invoke("--rates", "1,2,4", "--json", str(path)).exit_code
    runner = runs()
    assert 0 == invoke("--rates", "1,2,4", "--json", str(path)).exit_code
    assert 2 == len(runner.before[0])
    assert json.loads(path.read_text())["complete"] is True
    again = runs()
    assert 0 == invoke("--rates", "1,2,4", "--json", str(path)).exit_code
    assert 3 == len(again.before[0])


def test_void_points_are_measured_again_where_asked(runs: Callable[..., Runner], tmp_path: Path) -> None:
    """A busy machine is no reason to begin anew."""
    path = tmp_path / "s.json"
    runs(change=lambda point: void(point) if point.rate_rps == 2 else point)
    assert 7 == invoke("--rates", "1,2,4", "--json", str(path)).exit_code
    runner = runs()
    assert 7 == invoke("--rates", "1,2,4", "--json", str(path)).exit_code
    assert 0 == invoke("--rates", "1,2,4", "--json", str(path), "--redo-invalid").exit_code
    assert [3, 2] == [len(before) for before in runner.before]


def test_another_sweeps_file_is_left_alone(runs: Callable[..., Runner], tmp_path: Path) -> None:
    """Exit code 2, and what differs."""
    path = tmp_path / "s.json"
    runs()
    invoke("--rates", "1,2,4", "--json", str(path))
    kept = path.read_bytes()
    result = invoke("--rates", "1,2,4", "--duration-s", "30", "--json", str(path))
    assert 2 == result.exit_code
    assert "duration_s 60.0 (now 30.0)" in result.stderr
    assert kept == path.read_bytes()


def test_a_dry_run_sends_nothing_and_writes_nothing(runs: Callable[..., Runner], tmp_path: Path) -> None:
    """It tells the points and the time."""
    runner = runs()
    result = invoke("--rates", "1,2", "--repeats", "2", "--dry-run", "--json", str(tmp_path / "s.json"))
    assert (0, []) == (result.exit_code, runner.sweeps)
    assert "4 points, 0 of them measured; at least 8.0 min to go" in result.stdout
    assert [] == list(tmp_path.iterdir())


def test_json_to_standard_output_is_alone_there(runs: Callable[..., Runner]) -> None:
    """The tables go to standard error."""
    runs()
    result = invoke("--rates", "1,2,4", "--json", "-")
    assert "jouleway-sweep/1" == json.loads(result.stdout)["schema"]
    assert "3 of 3 points" in result.stderr


@pytest.mark.parametrize("option", ["--png", "--plot"])
def test_a_picture_is_written(runs: Callable[..., Runner], tmp_path: Path, option: str) -> None:
    """By either name."""
    runs()
    assert 0 == invoke("--rates", "1,2,4", option, str(tmp_path / "s.png")).exit_code
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_loses_nothing(runs: Callable[..., Runner], tmp_path: Path) -> None:
    """The figures are shown, the exit code says it."""
    runs()
    result = invoke("--rates", "1,2,4", "--png", str(tmp_path / "absent" / "s.png"))
    assert 1 == result.exit_code
    assert "could not be written" in result.stderr
    assert "3 of 3 points" in result.stdout


def test_a_file_that_cannot_be_written_ends_the_sweep_at_its_first_point(
    runs: Callable[..., Runner], tmp_path: Path
) -> None:
    """Not after a night."""
    runs()
    result = invoke("--rates", "1,2,4", "--json", str(tmp_path / "absent" / "s.json"))
    assert 1 == result.exit_code
    assert "the points could not be kept" in result.stderr
    assert "1 of 3 points" in result.stdout


def test_a_key_is_never_shown(runs: Callable[..., Runner]) -> None:
    """Neither in the tables nor in the document."""
    runs()
    result = invoke("--rates", "1", "--json", "-", JOULEWAY_API_KEY="sk-secret", JOULEWAY_ADMIN_KEY="ak-secret")
    assert "secret" not in result.stdout + result.stderr


def test_keys_are_no_flags() -> None:
    """A flag is seen by everyone who lists processes."""
    result = invoke("--help")
    assert 0 == result.exit_code
    assert not re.search(r"--[a-z-]*(key|secret|password)\b", result.stdout)
    assert "JOULEWAY_API_KEY" in result.stdout
