"""The command's face: help, exit codes, the files it writes, and what it imports."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from scheduler.bench import command
from scheduler.bench.client import TargetError
from scheduler.bench.drive import Run
from scheduler.bench.report import (
    ClientState,
    Finding,
    Halves,
    Rates,
    Report,
    Requests,
    Tokens,
    Verdict,
)
from scheduler.trace_files import TraceError
from workers.errors import MeterUnavailable

app = typer.Typer()
app.command()(command.bench)

REPORT = Report(
    target={"base_url": "http://x", "model": "tiny", "endpoint": "chat", "exact_output": True},
    workload={"summary": "Poisson 1 requests/s"},
    started_utc="2026-01-01T00:00:00+00:00",
    warmup_s=0,
    duration_s=10,
    requests=Requests(measured=1, completed=1, failed=0, by_reason={}, warmup=0, unsent=0),
    tokens=Tokens(
        input=1, cached=0, output=1, counted_by_server=True, planned_input=1, planned_output=1,
        mean_pieces_per_request=1,
    ),
    rates=Rates(
        requests_due_per_s=1, requests_completed_per_s=1, output_tokens_per_s=1, num_open_mean=1, num_open_max=1
    ),
    ttft=None, tpot=None, itl=None, e2e=None, goodput=None, energy=None,
    client=ClientState(lag=None, send_delay=None, late_ratio=0, cpu_ratio=0),
    halves=Halves(ttft_s=None, tpot_s=None),
    verdict=Verdict(valid=True, findings=()),
)  # fmt: skip


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"NO_COLOR": "1", "COLUMNS": "200"})


def measured(monkeypatch: pytest.MonkeyPatch, outcome: tuple[Report, Run] | Exception) -> list[tuple[Any, Any, Any]]:
    """Replace the measurement by its outcome; returns what it was called with."""
    calls: list[tuple[Any, Any, Any]] = []

    async def measure(target: Any, load: Any, *, source: Any, **others: Any) -> tuple[Report, Run]:
        calls.append((target, load, source))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("scheduler.bench.session.measure", measure)
    return calls


def done(*, valid: bool = True, interrupted: bool = False) -> tuple[Report, Run]:
    import msgspec

    findings = () if valid else (Finding(reason="too_short", message="measured 1 s"),)
    report = msgspec.structs.replace(REPORT, verdict=Verdict(valid=valid, findings=findings))
    return report, Run(warmup_s=0, duration_s=10, interrupted=interrupted)


# -- exit codes


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (lambda: done(), 0),
        (lambda: done(valid=False), 7),
        (lambda: done(valid=False, interrupted=True), 130),
        (lambda: TargetError("nobody there"), 6),
        (lambda: MeterUnavailable("no counter"), 6),
        (lambda: TraceError("t.csv: line 3: broken"), 3),
        (lambda: ValueError("speed must be positive"), 2),
    ],
)
def test_the_exit_code_says_how_it_went(monkeypatch: pytest.MonkeyPatch, outcome: Callable[[], Any], code: int) -> None:
    """0 valid, 2 usage, 3 trace, 6 target, 7 not to be quoted, 130 interrupted."""
    measured(monkeypatch, outcome())
    result = invoke("--rate", "1")
    assert result.exit_code == code
    if code in (2, 3, 6):
        assert f"error: {outcome()}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "exactly one of --rate, --concurrency and --trace"),
        (("--rate", "1", "--concurrency", "2"), "exactly one"),
        (("--rate", "-1"), "--rate"),
        (("--rate", "nan"), "--rate"),
        (("--rate", "1", "--length-spread", "2"), "--length-spread"),
        (("--rate", "1", "--endpoint", "embeddings"), "--endpoint"),
        (("--rate", "1", "--nonsense"), "--nonsense"),
        (("ftp://x", "--rate", "1"), "no http:// or https:// address"),
        (("localhost:8000", "--rate", "1"), "no http:// or https:// address"),
        (("http://", "--rate", "1"), "no http:// or https:// address"),
        (("http://x:99999", "--rate", "1"), "no http:// or https:// address"),
        (("--rate", "1", "--json", "a", "--plot", "a"), "same file"),
    ],
)
def test_wrong_usage_names_the_option(arguments: tuple[str, ...], message: str) -> None:
    """Nothing is sent; the exit code is 2."""
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("url", ["http://h:1/v1", "http://h:1/v1/", "http://h:1", "http://h:1/"])
def test_the_address_is_taken_with_or_without_v1(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Both ways of writing a base URL are in use."""
    calls = measured(monkeypatch, done())
    invoke(url, "--rate", "1")
    assert calls[0][0].base_url == "http://h:1"


def test_options_reach_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written on the command line is what is run."""
    calls = measured(monkeypatch, done())
    result = invoke(
        "http://h", "--concurrency", "3", "--input-tokens", "7", "--output-tokens", "9", "--duration-s", "20",
        "--warmup-s", "1", "--seed", "5", "--no-exact-output", "--endpoint", "completions", "--api-key", "sk-1",
        "--metrics-url", "http://m", "--admin-key", "ak", "--local-meter", "nvml", "--gpu", "GPU-1", "--gpu", "GPU-2",
    )  # fmt: skip
    assert result.exit_code == 0
    target, load, source = calls[0]
    assert (target.endpoint, target.exact_output, target.api_key) == ("completions", False, "sk-1")
    assert (load.concurrency, load.duration_s, load.warmup_s, load.seed) == (3, 20, 1, 5)
    assert (load.lengths.input_tokens, load.lengths.output_tokens) == (7, 9)
    assert (source.metrics_url, source.admin_key, source.local_meter) == ("http://m", "ak", "nvml")
    assert source.gpu_uuids == ("GPU-1", "GPU-2")


# -- what is written


def test_json_to_standard_output_is_alone_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """With '-' the table goes to standard error, so that the output can be piped."""
    measured(monkeypatch, done(valid=False))
    result = invoke("--rate", "1", "--json", "-")
    document = json.loads(result.stdout)
    assert document["schema"] == "jouleway-bench/1"
    assert document["verdict"]["findings"][0]["reason"] == "too_short"
    assert "verdict" in result.stderr


def test_json_and_picture_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty run still makes a picture, and the document reads back."""
    measured(monkeypatch, done())
    result = invoke("--rate", "1", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png"))
    assert result.exit_code == 0
    assert json.loads((tmp_path / "r.json").read_text())["target"]["model"] == "tiny"
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_that_cannot_be_written_is_still_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An hour of measuring is not lost to a wrong path."""
    measured(monkeypatch, done())
    result = invoke("--rate", "1", "--json", str(tmp_path / "absent" / "r.json"))
    assert result.exit_code == 1
    assert "could not be written" in result.stderr
    assert "verdict" in result.stdout


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the table nor in the document."""
    measured(monkeypatch, done())
    result = invoke("--rate", "1", "--api-key", "sk-secret", "--admin-key", "ak-secret", "--json", "-")
    assert "secret" not in result.stdout + result.stderr


def test_help_names_every_way_to_send_and_the_exit_codes() -> None:
    """The help is enough to begin."""
    result = invoke("--help")
    assert result.exit_code == 0
    for word in ("--rate", "--concurrency", "--trace", "--slo-ttft-s", "--metrics-url", "--json", "--plot", "--seed"):
        assert word in result.stdout
    assert "7 measured but invalid" in command.EPILOG


def test_the_command_is_cheap_to_import() -> None:
    """`jouleway --help` must not wait for numpy, aiohttp or matplotlib."""
    code = (
        "import sys, scheduler.bench.command\n"
        "print(sorted({'numpy', 'aiohttp', 'matplotlib', 'ray', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
