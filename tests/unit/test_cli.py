"""The command line answers at once, loads nothing heavy, keeps data and talk apart, and its exit codes hold."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler import cli
from scheduler.commands import output
from scheduler.commands.exits import EXIT_CODES_HELP, CommandError, ExitCode

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "serve",
    "demo",
    "submit",
    "explain",
    "top",
    "workers",
    "audit",
    "down",
    "doctor",
    "bench",
    "usage",
    "models",
    "outcome",
    "receipt",
    "reconcile",
    "rerate",
    "trace",
)
HEAVY = {"ray", "vllm", "torch", "numpy", "cryptography", "sqlalchemy", "uvicorn", "starlette", "prometheus_client"}
MAX_IMPORT_S = 0.3
MAX_HELP_S = 2.0
MAX_TRIES = 5
"""One of them must be fast: neighbours take caches and turns, but make nothing faster than it is."""


def jouleway(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A real process, as a shell would start it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    command = [sys.executable, "-m", "scheduler.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", check=False)


def children_cpu_s() -> float:
    """CPU time of all processes that were waited for: what others do on this machine is not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_inside(*arguments: str) -> int:
    """The same in this process: faster, for what needs no process."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return int(left.value.code or 0)


def test_importing_the_command_line_is_fast_and_light() -> None:
    """At most 0.3 s of CPU time, however busy the machine is beside it, and nothing heavy is loaded."""
    code = (
        "import sys, time; t = time.process_time(); import scheduler.cli; print(time.process_time() - t, *sys.modules)"
    )
    took_s = []
    for _ in range(MAX_TRIES):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        words = done.stdout.split()
        assert set() == HEAVY & {name.split(".")[0] for name in words[1:]}
        took_s.append(float(words[0]))
        if took_s[-1] <= MAX_IMPORT_S:
            return
    raise AssertionError(f"the import took {took_s} s")


def test_help_answers_at_once() -> None:
    """A person who asks for help waits for less than two seconds of computing."""
    took_s = []
    for _ in range(MAX_TRIES):
        before_s = children_cpu_s()
        done = jouleway("--help")
        took_s.append(children_cpu_s() - before_s)
        assert done.returncode == 0
        assert all(command in done.stdout for command in COMMANDS)
        if took_s[-1] < MAX_HELP_S:
            return
    raise AssertionError(f"--help took {took_s} s")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_json_and_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help names --json and the exit codes of each command."""
    assert run_inside(command, "--help") == ExitCode.OK
    text = capsys.readouterr().out
    assert "--json" in text
    assert "Exit codes" in text


def test_the_exit_codes_are_those_documented() -> None:
    """The numbers in the help and in the operations guide are the enum's."""
    documented = {int(number) for number in re.findall(r"(?<![\w.])\d+", EXIT_CODES_HELP)}
    assert documented == {int(code) for code in ExitCode}
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert [] == [code.name for code in ExitCode if f"| {int(code)} |" not in guide]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["serve"],
        ["submit"],
        ["demo", "--requests", "3"],
        ["demo", "--requests", "x"],
        ["down"],
        ["workers", "--what"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The complaint goes to standard error, and nothing to standard output."""
    assert run_inside(*arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error" in captured.err


@pytest.mark.parametrize("command", ["serve", "demo", "top", "workers", "down", "doctor", "usage", "models"])
def test_a_missing_configuration_is_exit_code_3(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is named; no traceback."""
    assert run_inside(command, "--config", "/no/such/file.yaml") == ExitCode.NOT_FOUND
    captured = capsys.readouterr()
    assert "/no/such/file.yaml" in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("command", ["serve", "demo", "top", "workers", "down", "doctor", "usage", "models"])
def test_a_bad_configuration_is_exit_code_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown key is an error that names its path."""
    path = tmp_path / "bad.yaml"
    path.write_text("no_such_section: 1\n")
    assert run_inside(command, "--config", str(path)) == ExitCode.USAGE
    assert "no_such_section" in capsys.readouterr().err


def test_an_error_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A command's own error becomes two lines and its exit code."""

    def fail(*_: object, **__: object) -> None:
        raise CommandError("port 8000 is taken", code=ExitCode.UNAVAILABLE, remedy="stop what holds it")

    monkeypatch.setattr(cli, "app", fail)
    assert run_inside("serve") == ExitCode.UNAVAILABLE
    assert capsys.readouterr().err == "error: port 8000 is taken\nremedy: stop what holds it\n"


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every shell expects."""
    from scheduler.commands import doctor

    def interrupt(**_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupt)
    assert run_inside("doctor") == ExitCode.INTERRUPTED


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints one line and leaves."""
    assert run_inside("--version") == ExitCode.OK
    assert re.match(r"(\d+\.\d+\.\d+|unknown)", capsys.readouterr().out)


def test_json_is_one_document_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Characters stay as they are; nothing else is printed."""
    output.print_json({"σ": 1})
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ('{\n  "σ": 1\n}\n', "")


def test_progress_goes_to_standard_error_with_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Data can be piped while a person watches."""
    ticks = iter([10.0, 12.5])
    output.Progress(clock=lambda: next(ticks))("starting Ray")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "[   2.5 s] starting Ray\n")


def test_tables_are_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """No colour codes, no markup taken from data, no wrapping of a wide row."""
    output.print_table("t", ["name", "value"], [["[red]worker-1[/red]", "x" * 90]])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "[red]worker-1[/red]" in text
    assert "x" * 90 in text


def test_a_whole_table_is_as_wide_as_it_must_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a narrow screen too; others are cut to it."""
    monkeypatch.setattr(output, "PLAIN_WIDTH", 20)
    for is_whole in (True, False):
        output.print_table("t", ["name", "value"], [["n", "1" * 50]], is_whole=is_whole)
        assert is_whole == ("1" * 50 in capsys.readouterr().out)


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal too."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert output.console().no_color


def test_secrets_are_never_taken_as_flags_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """A flag is seen by everyone who lists processes; keys come from the environment."""
    for command in (
        "serve",
        "demo",
        "submit",
        "explain",
        "top",
        "workers",
        "audit",
        "down",
        "doctor",
        "usage",
        "models",
        "outcome",
    ):
        assert run_inside(command, "--help") == ExitCode.OK
        text = capsys.readouterr().out
        assert "--help" in text
        assert not re.search(r"--[a-z-]*(key|token|secret|password)\b", text)
