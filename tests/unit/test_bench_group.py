"""`jouleway bench` is one run unless it names a command; both ways of calling it mean the same."""

import subprocess
import sys

import click
import pytest
import typer

from scheduler.bench.group import DEFAULT, bench_app

GROUP = typer.main.get_group(bench_app)


def called(*arguments: str) -> tuple[str, list[str]]:
    """Which command gets which arguments."""
    context = click.Context(GROUP)
    GROUP.parse_args(context, list(arguments))
    name, _, rest = GROUP.resolve_command(context, [*context._protected_args, *context.args])
    assert name is not None
    return name, rest


@pytest.mark.parametrize(
    "arguments",
    [
        ("http://h:1", "--rate", "1"),
        ("--rate", "1", "http://h:1"),
        ("--help",),
        ("-h",),
        ("sweeps",),
        (),
    ],
)
def test_what_names_no_command_is_one_run(arguments: tuple[str, ...]) -> None:
    """As it always was."""
    assert (DEFAULT, list(arguments)) == called(*arguments)
    assert (DEFAULT, list(arguments)) == called(DEFAULT, *arguments)


def test_sweep_is_a_command_of_its_own() -> None:
    """Beside vLLM's word for one run."""
    assert ("sweep", ["http://h:1", "--rates", "1,2"]) == called("sweep", "http://h:1", "--rates", "1,2")
    assert {"serve", "sweep"} == set(GROUP.commands)


def test_help_shows_the_options_of_one_run_and_names_the_sweep() -> None:
    """Nobody has to know that there are two."""
    done = subprocess.run(
        [sys.executable, "-m", "scheduler.cli", "bench", "--help"], capture_output=True, text=True, check=True
    )
    assert "--concurrency" in done.stdout
    assert "jouleway bench sweep" in " ".join(done.stdout.split())


def test_the_group_is_cheap_to_import() -> None:
    """`jouleway --help` must not wait for numpy, aiohttp or matplotlib."""
    code = (
        "import sys, scheduler.bench.group\n"
        "print(sorted({'numpy', 'aiohttp', 'matplotlib', 'msgspec', 'ray', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert "[]" == done.stdout.strip()
